"""Other people's formats for an extracted network: ONNX, ``torch.export``, and a state dict for stock timm.

::

    export.to_onnx(small, "small.onnx")                   # needs the onnx and onnxscript packages
    program = export.to_program(small)                    # torch.export.save(program, "small.pt2")
    arguments, state = export.to_timm(small)
    timm.create_model("deit_small_patch16_224", **arguments).load_state_dict(state)

Batch size is dynamic in the first two. ``torch.compile(small, fullgraph=True)`` works as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from hiap.backbones.guard import modes_kept
from hiap.backbones.parts import is_norm
from hiap.backbones.pruned import PrunedAttention
from hiap.cost import image_of
from hiap.gated_vit import is_gated

OPSET = 18


SUFFIXES = (".onnx", ".pt2", ".safetensors")


class ExportError(ValueError):
    """Error of a form that a network does not have; the message names what stands in the way, the first block for
    example."""


def to_program(model: Any) -> torch.export.ExportedProgram:
    """Export the network in eval mode by ``torch.export``: images (B, C, height, width), any B, to logits."""
    batch = torch.export.Dim("batch", min=1, max=65536)
    with evaluated(model):
        return torch.export.export(model, (_images(model),), dynamic_shapes=({0: batch},), strict=False)


def to_onnx(model: Any, path: str | Path, opset: int = OPSET) -> None:
    """Write an ONNX file: input ``images`` (batch, C, height, width), output ``logits`` (batch, classes). Raises
    ``ExportError`` for an ``opset`` below 18: torch's exporter would write 18 without a word."""
    if opset < OPSET:
        raise ExportError(f"opset {opset}: expected {OPSET} or newer, which is the oldest that torch.onnx writes")
    if any(p.dtype is torch.bfloat16 for p in model.parameters()):
        raise ExportError(
            "the network is in bfloat16, which ONNX runtimes lack on most devices; call .float() or .half()"
        )
    with evaluated(model):
        torch.onnx.export(
            model,
            (_images(model),),
            str(path),
            dynamo=True,
            opset_version=opset,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=65536)},),
            external_data=False,
            optimize=True,  # the default of newer torch; without it OpenVINO meets functions that it does not know
            verbose=False,
        )


@contextmanager
def evaluated(model: Any) -> Iterator[None]:
    """Let the network be in eval mode, and afterwards as it was. Raises ``ExportError`` for one with gates."""
    _require_plain(model)
    with modes_kept(model):
        model.eval()
        yield


def _require_plain(model: Any) -> None:
    if is_gated(model):
        raise ExportError("the network carries gates, so nothing is removed yet: export what pruner.finish() gives")


def to_file(model: Any, path: str | Path, opset: int = OPSET) -> str:
    """Write the form that the file's ending names (``SUFFIXES``); returns a line on it. Raises ``ExportError``."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ExportError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        raise ExportError(f"{path}: no such folder: '{path.parent}'")
    if path.suffix == ".onnx":
        to_onnx(model, path, opset)
        return f"{path}: ONNX, opset {opset}; input 'images' (batch, {_sizes(model)}), output 'logits'"
    if path.suffix == ".pt2":
        torch.export.save(to_program(model), path)
        return f"{path}: torch.export.load gives it back; images (batch, {_sizes(model)})"
    arguments, state = to_timm(model)
    save_file(state, path)
    given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return f"{path}: a state dict for timm.create_model(<what it was pruned from>, {given})"


def _sizes(model: Any) -> str:
    return ", ".join(map(str, image_of(model)))


def to_timm(model: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Keyword arguments for ``timm.create_model`` beside the backbone's own, and the state dict that it then loads.

    timm builds all blocks alike, with attention as wide as the embedding, so every block must keep as many neurons as
    the others. Missing heads and value dimensions become zeros: the function stays, the saving in attention does not.
    Raises ``ExportError`` if a branch is gone, the blocks differ, or the network is of another family than a plain ViT.
    """
    _require_plain(model)
    if not isinstance(model, VisionTransformer):
        raise ExportError(f"{type(model).__name__}: expected a timm VisionTransformer")
    counts: list[int] = []
    blocks: Any = model.blocks
    for i, block in enumerate(blocks):
        for branch in ("attn", "mlp"):
            if getattr(block, branch) is None:
                raise ExportError(f"blocks.{i}.{branch} is gone: timm has no such block")
        if isinstance(block.attn, PrunedAttention) and (block.attn.norm is not None or is_norm(block.ls1)):
            raise ExportError(f"blocks.{i}: norms over what is pruned, or behind it, have no such form")
        counts.append(block.mlp.fc1.out_features)
        if counts[i] != counts[0]:
            raise ExportError(f"blocks.{i} keeps {counts[i]} neurons and blocks.0 {counts[0]}: timm wants equal ones")
    state = {k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in model.state_dict().items()}
    heads = set[int]()
    for i, block in enumerate(blocks):
        if isinstance(block.attn, PrunedAttention):
            heads.add(_whole_heads(block.attn, f"blocks.{i}"))
            state |= {f"blocks.{i}.attn.{k}": v for k, v in _dense_attention(block.attn).items()}
        else:
            heads.add(block.attn.num_heads)
    if len(heads) > 1:
        raise ExportError(f"blocks of {' and '.join(map(str, sorted(heads)))} heads: timm wants equal ones")
    # half a neuron more, because timm truncates the product
    return {"mlp_ratio": (counts[0] + 0.5) / model.embed_dim, "num_heads": heads.pop()}, state


def _whole_heads(attn: PrunedAttention, name: str) -> int:
    """Return how many heads attention had before extraction, as wide together as the embedding. Raises ``ExportError``
    where its scale is of other heads."""
    dim, width = attn.qkv.in_features, round(attn.scale**-2)
    widest = max([*attn.qk_dims, *attn.value_dims])
    if width < widest or dim % width or len(attn.qk_dims) > dim // width:
        raise ExportError(f"{name}: its scale is of heads of {width} dimensions, it has some of {widest}: no such form")
    return dim // width


def _dense_attention(attn: PrunedAttention) -> dict[str, Tensor]:
    """Weights of the attention that was there before extraction, with zeros where something was removed."""
    dim, width = attn.qkv.in_features, round(attn.scale**-2)
    qk, value = (
        torch.cat([h * width + torch.arange(w) for h, w in enumerate(widths)])
        for widths in (attn.qk_dims, attn.value_dims)
    )
    rows = torch.cat([qk, dim + qk, 2 * dim + value]).to(attn.qkv.weight.device)
    state = {"proj.weight": attn.proj.weight.new_zeros(dim, dim)}
    state["proj.weight"][:, value] = attn.proj.weight.detach()
    for name, part in (("qkv.weight", attn.qkv.weight), ("qkv.bias", attn.qkv.bias)):
        if part is not None:
            state[name] = part.new_zeros(3 * dim, *part.shape[1:])
            state[name][rows] = part.detach()
    return state


def _images(model: Any) -> Tensor:
    parameter = next(model.parameters())
    # Two images: torch.export takes a batch of one for a constant.
    return torch.zeros(2, *image_of(model), dtype=parameter.dtype, device=parameter.device)
