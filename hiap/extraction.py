"""Physical removal: a gated model becomes a smaller plain one that computes the same function."""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from hiap.backbones.families import rows_of
from hiap.backbones.guard import require_same, tell_lost
from hiap.backbones.parts import JoinedLinear, biases, is_norm, narrowed_norm, rate, slice_linear
from hiap.backbones.pruned import LAYOUTS, PrunedAttention, PrunedBlock, allow_gaps, set_layout
from hiap.backbones.sharded import gathered
from hiap.gated_layers import BlockMask, decided, is_gated, masks


@torch.no_grad()
def extract(gated: Any, kept: list[BlockMask] | None = None, layout: str = LAYOUTS[0]) -> Any:
    """Return the plain, smaller ViT, of the class that was gated, that computes what ``gated`` computes with the gates
    ``kept`` open and the others closed; without ``kept``, what ``gated.eval()`` computes. No fine-tuning, and the gated
    model is left alone.

    ``layout`` (see ``hiap.backbones.pruned``) can be changed later with ``set_layout``. Raises ``ValueError`` if the
    model carries no gates, or if no head is left anywhere (nothing would look at the image), and
    ``UnsupportedModelError`` if what is left computes something else (``hiap.backbones.guard``).
    """
    if not is_gated(gated):
        raise ValueError("extract: the model carries no gates; call hiap.gate first")
    given, gated = gated, gathered(gated)
    kept = masks(gated) if kept is None else kept
    if not any((m.heads[:, None] & m.dims).any() for m in kept):
        raise ValueError("extract: no head is left in any layer, so no patch would reach the classifier")
    small = built(gated, kept)
    tell_lost(given, small, "extract")
    require_same(gated, small, "extraction", lambda model: decided(model, kept))
    set_layout(small, layout)
    return small


@torch.no_grad()
def built(gated: Any, kept: list[BlockMask]) -> Any:
    """Return what is left of a gated model by these masks, as a network of its own. The blocks are rebuilt from slices
    and everything else is copied (the memo spares deepcopy from copying dense blocks)."""
    model = copy.deepcopy(gated, {id(gated.blocks): gated.blocks})
    pairs = zip(gated.blocks, kept, strict=True)
    blocks = [_extract_block(block, mask).train(block.training) for block, mask in pairs]
    model.blocks = nn.Sequential(*blocks).train(gated.blocks.training)
    allow_gaps(model)
    for added in ("dense_dims", "dense_param_prices", "given", "no_weight_decay", "forward", "_original_forward"):
        vars(model).pop(added, None)
    return model


def _extract_block(block: Any, mask: BlockMask) -> PrunedBlock:
    attn, attn_constant = _extract_attention(block.attn, mask)
    mlp, mlp_constant = _extract_mlp(block.mlp, mask)
    parts: dict[str, Any] = {"attn": attn, "mlp": mlp}
    for part, names in ((attn, ("norm1", "ls1", "drop_path1")), (mlp, ("norm2", "ls2", "drop_path2"))):
        parts |= {name: copy.deepcopy(getattr(block, name)) if part else None for name in names}
    constants = {
        "attn_constant": None if attn else _scaled_bias(block.ls1, attn_constant),
        "mlp_constant": None if mlp else _scaled_bias(block.ls2, mlp_constant),
    }
    return PrunedBlock(parts, constants)


def _scaled_bias(scale: Any, bias: Tensor | None) -> Tensor | None:
    """Return what LayerScale, or what is in its place, makes of a branch that is gone but for ``bias``."""
    if bias is None and (weight := next(scale.parameters(), None)) is not None:
        bias = torch.zeros_like(weight)
        if not is_norm(scale) and not scale(bias).any():  # LayerScale: nothing stays
            return None
    if bias is None:
        return None
    return nn.Parameter(scale(bias).detach(), bias.requires_grad)


def _extract_attention(attn: Any, mask: BlockMask) -> tuple[PrunedAttention | None, Tensor | None]:
    """Return the surviving attention, or what is left of its output when no head survives."""
    dims = mask.dims & mask.heads[:, None]
    if attn.left is not None:
        dims = dims[attn.left.to(dims.device)]
    widths = dims.sum(-1)
    # Widest first, stable, so that heads of equal width stand together.
    order = [h for h in widths.argsort(descending=True, stable=True).tolist() if widths[h]]
    bias_open = attn.proj.bias is not None and (not attn.bias_gated or bool(mask.heads.any()))
    if not order:
        return None, attn.proj.bias if bias_open else None
    size, device = attn.head_dim, dims.device
    values = torch.cat([h * size + dims[h].nonzero().flatten() for h in order])
    qk = values
    if not attn.cuts_qk:
        qk = torch.cat([torch.arange(h * size, (h + 1) * size, device=device) for h in order])
    value_dims = [int(widths[h]) for h in order]
    position, norm = attn.position and attn.position.of_heads(order), attn.norm and narrowed_norm(attn.norm, values)
    with torch.device("meta"):  # weights follow
        pruned = PrunedAttention(
            attn.qkv.in_features,
            value_dims if attn.cuts_qk else [size] * len(order),
            value_dims,
            attn.scale,
            qkv_bias=biases(attn.qkv) if isinstance(attn.qkv, JoinedLinear) else attn.qkv.bias is not None,
            proj_bias=bias_open,
            q_norm=copy.deepcopy(attn.q_norm),
            k_norm=copy.deepcopy(attn.k_norm),
            attn_drop=rate(attn.attn_drop),
            proj_drop=rate(attn.proj_drop),
            position=position,
            norm=norm,
        )
    if isinstance(attn.qkv, JoinedLinear):
        for part, source, rows in zip(pruned.qkv.parts, attn.qkv.parts, (qk, qk, values), strict=True):
            slice_linear(part, source, rows=rows)
    else:
        inner = attn.num_heads * size
        slice_linear(pruned.qkv, attn.qkv, rows=torch.cat([qk, inner + qk, 2 * inner + values]))
    slice_linear(pruned.proj, attn.proj, columns=values)
    return pruned, None


def _extract_mlp(mlp: Any, mask: BlockMask) -> tuple[Mlp | None, Tensor | None]:
    """Return the surviving FFN, or what is left of it: the open block's bias when no neuron survives (A9)."""
    if not mask.ffn:
        return None, None
    is_open = mask.neurons if mlp.left is None else mask.neurons[mlp.left.to(mask.neurons.device)]
    neurons = is_open.nonzero().flatten()
    if not len(neurons):
        return None, mlp.fc2.bias
    rows = rows_of(mlp, neurons)
    with torch.device("meta"):  # weights follow
        pruned = Mlp(mlp.fc1.in_features, len(neurons), mlp.fc2.out_features, drop=(rate(mlp.drop1), rate(mlp.drop2)))
    pruned.act = copy.deepcopy(mlp.act)
    if mlp.norm is not None:
        pruned.norm = narrowed_norm(mlp.norm, neurons)
    slice_linear(pruned.fc1, mlp.fc1, rows=rows)
    slice_linear(pruned.fc2, mlp.fc2, columns=neurons)
    return pruned, None
