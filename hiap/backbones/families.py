"""timm's ViTs read into the one form that the method knows.

That form is a block with ``norm1, attn, ls1, drop_path1, norm2, mlp, ls2, drop_path2`` whose attention has ``qkv``,
``q_norm``, ``k_norm``, ``norm``, ``proj`` and a ``position``, and whose FFN is timm's ``Mlp``, possibly with a gated
activation (``parts.Glu``) and a norm. timm's own plain block is such a block and is left as it is. What other families
call by other names is put in its place, on the same parameters:

- Q, K and V apart or with biases of their own: ``JoinedLinear``;
- rotary angles and relative positions: ``Position``;
- gated FFNs, in whatever order their halves come: a neuron is then a pair of fc1's rows;
- LayerScale as a vector: ``LayerScale``; norms after the branch instead of before it stand in LayerScale's place.

A norm over what is pruned (attention's output, an FFN's neurons) runs over the units that are left.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.layers import Attention, AttentionPoolLatent, LayerScale, Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from hiap.backbones.errors import UnsupportedModelError
from hiap.backbones.guard import require_dropout, require_linear, require_plain
from hiap.backbones.parts import Glu, JoinedLinear, RelativeBias, Rotary, TokenAndMean, is_norm
from hiap.backbones.pruned import PrunedAttention, PrunedBlock
from hiap.backbones.sharded import own_type

# By name: older versions of timm lack some of these classes. A subclass may compute something else and is not meant.
_OTHER_MODELS = ("timm.models.eva.Eva", "timm.models.beit.Beit")
_BLOCKS = ("timm.models.eva.EvaBlock", "timm.models.beit.Block")
_POST_NORM_BLOCKS = ("timm.models.eva.EvaBlockPostNorm", "timm.models.vision_transformer.ResPostBlock")
_ATTENTIONS = (
    "timm.layers.attention.Attention",
    "timm.layers.attention.AttentionRope",
    "timm.models.eva.EvaAttention",
    "timm.models.beit.Attention",
)


def is_vit(model: Any) -> bool:
    """Tell whether ``model`` is of a class that is read here: timm's VisionTransformer, Eva or Beit."""
    return isinstance(model, VisionTransformer) or _kind(model) in _OTHER_MODELS


def require_vit(model: Any) -> None:
    """Raise ``UnsupportedModelError`` for what is none, or something around one."""
    if type(model).__module__.startswith("transformers."):
        raise UnsupportedModelError(f"{type(model).__name__}: make it timm's first: hiap.from_transformers(model)")
    if not is_vit(model):
        inner = next((name for name in ("module", "_orig_mod") if is_vit(getattr(model, name, None))), "")
        cure = f"; give what it wraps: model.{inner}" if inner else ""
        if hasattr(model, "merge_and_unload"):
            cure = "; merge the adapter first: model.merge_and_unload()"
        raise UnsupportedModelError(f"{type(model).__name__}: expected a timm VisionTransformer, Eva or Beit{cure}")


def standard(model: Any) -> Any:
    """Return ``model`` with every block in the method's form: itself where they are, else a view of it on the same
    parameters, to be read only. Raises ``UnsupportedModelError`` naming the first module without a form."""
    require_vit(model)
    pool = getattr(model, "attn_pool", None)
    if pool is not None and not isinstance(pool, (AttentionPoolLatent, TokenAndMean)):
        raise UnsupportedModelError(
            f"attn_pool ({type(pool).__name__}): expected a pooling of tokens or AttentionPoolLatent"
        )
    if getattr(model, "rel_pos_bias", None) is not None:
        raise UnsupportedModelError("rel_pos_bias (RelativePositionBias): expected none that all blocks share")
    blocks = [_block(f"blocks.{i}", block, model) for i, block in enumerate(model.blocks)]
    if all(new is old for new, old in zip(blocks, model.blocks, strict=True)):
        return model
    view = copy.copy(model)
    view._modules = {**model._modules, "blocks": type(model.blocks)()}
    for i, block in enumerate(blocks):
        view.blocks.add_module(str(i), block)
    return view


def copied(model: Any) -> Any:
    """Return a copy of ``model`` in the method's form, its joined layers made one where they agree about a bias."""
    own = copy.deepcopy(standard(model))
    for block in own.blocks:
        block.attn.qkv, block.mlp.fc1 = _merged(block.attn.qkv), _merged(block.mlp.fc1)
    own.num_classes = classes(own)
    return own


class Names:
    """Callable that a gated network has as ``no_weight_decay``: timm's optimisers ask it, and logits have their own
    decay (A6)."""

    def __init__(self, names: set[str]):
        self.names = names

    def __call__(self) -> set[str]:
        return set(self.names)


def require_alike(model: Any, cut: str | None) -> None:
    """Raise ``UnsupportedModelError`` unless ``model`` has a form here, with blocks that are alike and, where ``cut``
    names what asks for it, Q and K that may lose dimensions."""
    form = standard(model)
    require_plain(model)
    given: Any = list(model.blocks)  # type: ignore[arg-type]
    if not given:
        raise UnsupportedModelError("blocks: there are none; expected at least one")
    sizes: Any = None
    for i, block in enumerate(form.blocks):
        if not block.attn.head_dim:
            raise UnsupportedModelError(
                f"blocks.{i}.attn: heads of different widths, as pruning left them; prune it again by hiap.Pruner or "
                "hiap.prune, or make it even first: hiap.backbones.evening.even"
            )
        if any(given[i] is given[j] for j in range(i)):
            raise UnsupportedModelError(f"blocks.{i}: the same module as an earlier block; expected one for each")
        size = block.attn.num_heads, block.attn.head_dim, block.mlp.fc2.in_features
        sizes = sizes or size
        if size != sizes:
            raise UnsupportedModelError(f"blocks.{i}: {size} heads, their width and neurons; blocks.0 has {sizes}")
        if not cut:
            continue
        if not isinstance(block.attn.q_norm, nn.Identity):
            raise UnsupportedModelError(f"blocks.{i}.attn.q_norm: {cut} cannot cut normalised Q, K")
        if getattr(block.attn, "position", None) is not None:
            raise UnsupportedModelError(f"blocks.{i}.attn.position: {cut} cannot cut Q, K that depend on the position")


def _merged(layer: Any) -> Any:
    if not isinstance(layer, JoinedLinear) or len({part.bias is None for part in layer.parts}) > 1:
        return layer
    kinds = [{getattr(part, name).requires_grad for part in layer.parts} for name in ("weight", "bias")
             if getattr(layer.parts[0], name) is not None]  # fmt: skip
    if any(len(kind) > 1 for kind in kinds):  # one tensor is learned as a whole or not at all
        return layer
    trained = [kind.pop() for kind in kinds]
    bias = None if layer.bias is None else nn.Parameter(layer.bias.detach(), requires_grad=trained[-1])
    return linear(layer.weight.detach(), bias, trained[0])


def classifiers(model: Any) -> list[nn.Module]:
    """Return what stands behind the pooling: none, one, or two of a distilled DeiT."""
    found = (model.head, getattr(model, "head_dist", None))
    return [head for head in found if head is not None and not isinstance(head, nn.Identity)]


def classes(model: Any) -> int:
    """Return how many numbers the network gives as logits, counted from its head, which somebody may have replaced; 0
    of a network without one, which gives features."""
    if not classifiers(model):
        return 0
    layers = [layer for layer in model.head.modules() if isinstance(layer, nn.Linear)]
    return layers[-1].out_features if layers else model.num_classes


def pretrained(model: Any) -> dict[str, Any]:
    """Return timm's ``pretrained_cfg``, which networks saved here have too: what a network knows of its images and
    classes. {} where it knows nothing."""
    return getattr(model, "pretrained_cfg", None) or {}


def channels(embed: Any) -> int:
    """Return the number of channels of the images."""
    return embed.proj.in_channels if isinstance(embed.proj, nn.Conv2d) and is_patches(embed) else embed.in_chans


def fc1_rows(mlp: Any) -> int:
    """Return how many rows of fc1 make one neuron: 2 in a gated FFN."""
    return mlp.fc1.out_features // mlp.fc2.in_features


def rows_of(mlp: Any, neurons: Tensor) -> Tensor:
    """Return fc1's rows of these neurons."""
    return torch.cat([neurons + i * mlp.fc2.in_features for i in range(fc1_rows(mlp))])


def _block(name: str, block: Any, model: Any) -> Any:
    if isinstance(block, PrunedBlock) and not (block.attn and block.mlp):
        raise UnsupportedModelError(f"{name}: a branch is gone; expected a network with all of its heads and neurons")
    post = _kind(block) in _POST_NORM_BLOCKS
    if not (post or own_type(block) in (Block, PrunedBlock) or _kind(block) in _BLOCKS):
        raise UnsupportedModelError(
            f"{name} ({type(block).__name__}): expected timm's Block, ResPostBlock, EvaBlock or Beit's"
        )
    attn, mlp = _attention(f"{name}.attn", block.attn, model), _ffn(f"{name}.mlp", block.mlp)
    _require_known(name, attn, mlp)
    if attn is block.attn and mlp is block.mlp and own_type(block) in (Block, PrunedBlock):
        return block
    # What stands before an FFN of ViTamin's: the block's norm and one of the FFN's own.
    norm2 = nn.Sequential(block.norm2, block.mlp.norm) if _kind(block.mlp) == _GEGLU else block.norm2
    parts: dict[str, Any] = {
        "norm1": nn.Identity() if post else block.norm1,
        "attn": attn,
        "ls1": block.norm1 if post else _scale(block, 1),
        "drop_path1": block.drop_path1,
        "norm2": nn.Identity() if post else norm2,
        "mlp": mlp,
        "ls2": block.norm2 if post else _scale(block, 2),
        "drop_path2": block.drop_path2,
    }
    return PrunedBlock(parts, {"attn_constant": None, "mlp_constant": None})


def _require_known(name: str, attn: Any, mlp: Any) -> None:
    """Raise ``UnsupportedModelError`` unless the layers that are read by their weights, or by their rate, are torch's
    own."""
    for part, module, layers in (("attn", attn, ("qkv", "proj")), ("mlp", mlp, ("fc1", "fc2"))):
        for layer in layers:
            if getattr(module, layer) is not None:  # a network that is being cut has lost some
                require_linear(f"{name}.{part}.{layer}", getattr(module, layer))
    for part, module, layers in (("attn", attn, ("attn_drop", "proj_drop")), ("mlp", mlp, ("drop1", "drop2"))):
        for layer in layers:
            require_dropout(f"{name}.{part}.{layer}", getattr(module, layer))


def _scale(block: Any, branch: int) -> Any:
    if hasattr(block, f"ls{branch}"):
        return getattr(block, f"ls{branch}")
    gamma = getattr(block, f"gamma_{branch}")
    if gamma is None:
        return nn.Identity()
    scale: Any = LayerScale(len(gamma))
    scale.gamma = gamma
    return scale


def _attention(name: str, attn: Any, model: Any) -> Any:
    plain = type(attn) is Attention and isinstance(attn.norm, nn.Identity)
    if not plain and not getattr(attn, "standard", False) and _kind(attn) not in _ATTENTIONS:
        raise UnsupportedModelError(f"{name} ({type(attn).__name__}): expected timm.layers.Attention, Eva's or Beit's")
    if getattr(attn, "gate", None) is not None:
        raise UnsupportedModelError(f"{name}.gate: attention with an output gate of its own")
    if getattr(attn, "num_kv_groups", 1) > 1:
        raise UnsupportedModelError(f"{name} ({type(attn).__name__}): heads that share K and V; expected one of each")
    if plain or getattr(attn, "standard", False):
        return attn
    heads, width = attn.num_heads, attn.proj.in_features // attn.num_heads
    with torch.device("meta"):
        view = PrunedAttention(attn.proj.out_features, [width] * heads, [width] * heads, attn.scale)
    view.qkv, view.proj = _qkv(attn), attn.proj
    view.attn_drop, view.proj_drop = attn.attn_drop, attn.proj_drop
    view.q_norm, view.k_norm = getattr(attn, "q_norm", view.q_norm), getattr(attn, "k_norm", view.k_norm)
    view.norm = _inner_norm(f"{name}.norm", getattr(attn, "norm", None))
    view.position = _position(attn, model)
    return view


def _qkv(attn: Any) -> Any:
    if attn.qkv is None:
        return JoinedLinear([attn.q_proj, attn.k_proj, attn.v_proj])
    if getattr(attn, "q_bias", None) is None:
        return attn.qkv
    require_linear("attn.qkv", JoinedLinear([attn.qkv]))
    biases = (attn.q_bias, None, attn.v_bias)
    return JoinedLinear(
        [
            linear(weight, bias, attn.qkv.weight.requires_grad)
            for weight, bias in zip(attn.qkv.weight.detach().chunk(3), biases, strict=True)
        ]
    )


def linear(weight: Tensor, bias: Tensor | None, trained: bool = True) -> nn.Linear:
    """Return a layer of these weights (out, in), which are not copied; ``trained``: whether those that are no
    parameters yet ask for a gradient."""
    layer: Any = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=trained)
    layer.bias = bias if bias is None or isinstance(bias, nn.Parameter) else nn.Parameter(bias, requires_grad=trained)
    return layer


def _position(attn: Any, model: Any) -> Any:
    if getattr(attn, "relative_position_bias_table", None) is not None:
        bias = RelativeBias(attn.window_size, 0)
        bias.relative_position_bias_table = attn.relative_position_bias_table
        bias.index = attn.relative_position_index
        return bias
    if getattr(model, "rope", None) is None:
        return None
    heads = list(range(attn.num_heads)) if model.rope_mixed else None
    return Rotary(attn.num_prefix_tokens, getattr(attn, "rotate_half", False), heads)


def _inner_norm(name: str, norm: Any) -> Any:
    if norm is None or isinstance(norm, nn.Identity):
        return None
    if not is_norm(norm) or norm.weight is None:
        raise UnsupportedModelError(f"{name} ({type(norm).__name__}): expected a LayerNorm or RmsNorm with weights")
    return norm


_GEGLU = "timm.models.vitamin.GeGluMlp"
# Kind of FFN: its layers from the input, the one to the output, its norm over the neurons.
_FFNS: dict[str, tuple[tuple[str, ...], str, str | None]] = {
    "timm.layers.mlp.GluMlp": (("fc1",), "fc2", "norm"),
    "timm.layers.mlp.SwiGLU": (("fc1_g", "fc1_x"), "fc2", "norm"),
    _GEGLU: (("w0", "w1"), "w2", None),
}


def _ffn(name: str, mlp: Any) -> Any:
    if getattr(mlp, "standard", False):
        return mlp
    if type(mlp) is Mlp:
        _inner_norm(f"{name}.norm", mlp.norm)
        return mlp
    if _kind(mlp) not in _FFNS:
        raise UnsupportedModelError(f"{name} ({type(mlp).__name__}): expected timm's Mlp, GluMlp, SwiGLU or GeGluMlp")
    first, last, norm = _FFNS[_kind(mlp)]
    inputs, output = [getattr(mlp, layer) for layer in first], getattr(mlp, last)
    with torch.device("meta"):
        view: Any = Mlp(output.out_features, 1)
    view.fc1 = inputs[0] if len(inputs) == 1 else JoinedLinear(inputs)
    view.act = Glu(mlp.act, getattr(mlp, "gate_last", False))
    view.norm = (norm and _inner_norm(f"{name}.norm", getattr(mlp, norm))) or nn.Identity()
    view.fc2 = output
    # Older ones have no dropout.
    view.drop1, view.drop2 = (getattr(mlp, drop, nn.Dropout(0.0)) for drop in ("drop1", "drop2"))
    return view


def is_patches(embed: Any) -> bool:
    """Tell whether ``embed`` cuts an image into patches by one layer, with no convolutional stem."""
    return hasattr(embed, "norm") and not hasattr(embed, "backbone")


def _kind(module: Any) -> str:
    return f"{own_type(module).__module__}.{own_type(module).__name__}"
