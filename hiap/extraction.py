"""Physical removal: a gated model becomes a smaller plain one that computes the same function."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from hiap.backbones.families import rows_of
from hiap.backbones.guard import require_same, tell_hooks
from hiap.backbones.parts import JoinedLinear, biases, is_norm, narrowed_norm
from hiap.backbones.sharded import gathered
from hiap.gated_vit import BlockMask, decided, is_gated, still_there
from hiap.ledger import LatencyTable
from hiap.pruned_vit import LAYOUTS, PrunedAttention, PrunedBlock, set_layout
from hiap.selection import Target, joint_ranking, rounded, target_of, thresholded


def kept_units(
    gated: Any, target: Target | None = None, keep: Mapping[str, Any] | None = None, multiple: int = 1
) -> list[BlockMask]:
    """What stays of a gated model: with a target the units that one threshold common to all logits leaves within it
    (``hiap.selection``), else its hardened gates, to the nearest ``multiple``; the units of ``keep`` in any case."""
    if target:
        return still_there(gated, target.keep_best(joint_ranking(gated, keep)))
    return still_there(gated, rounded(gated, thresholded(gated, keep), multiple, keep))


@torch.no_grad()
def extract(
    gated: Any,
    layout: str = LAYOUTS[0],
    multiple: int | None = None,
    *,
    target_macs: float | None = None,
    target_params: float | None = None,
    target_latency: float | None = None,
    latency: LatencyTable | str | os.PathLike[str] | None = None,
    keep: Mapping[str, Any] | None = None,
) -> Any:
    """The plain, smaller ViT, of the class that was gated, that computes what ``gated.eval()`` computes. No
    fine-tuning.

    ``target_macs``, ``target_params`` or ``target_latency`` (microseconds of a batch, as the table ``latency``, or the
    file that has it, predicts them), a number or a share of dense below 1: instead of the threshold of 1/2 the one that
    lands at most ``multiple`` units below the target (the first of a branch pays for the branch). The gated model is
    left alone, so one trained model serves any number of targets. ``keep`` protects units: ``{"blocks.0.attn": [0, 2],
    "blocks.1.mlp": True, "blocks.5": True}`` keeps two heads, an FFN and a whole block.

    ``multiple``: each head keeps a multiple of so many value dimensions and each FFN of so many neurons, the best, or
    all of them: matrix kernels lose time to odd sizes. Unset, with a target it is 16, fewer in small networks
    (``hiap.selection.fitting_multiple``), and without one it is 1. Set without a target, the threshold's numbers go to
    the nearest multiple; units just below it stay or just above it go, with their own weights, so that the function is
    no longer that of ``gated.eval()``.

    ``layout`` (see ``hiap.pruned_vit``) can be changed later with ``set_layout``. Raises ``ValueError`` if the model
    carries no gates, or if no head is left anywhere (nothing would look at the image), ``ConfigError`` for a target
    out of reach, and ``UnsupportedModelError`` if what is left computes something else (``hiap.backbones.guard``).
    """
    if not is_gated(gated):
        raise ValueError("extract: the model carries no gates; call hiap.gate first")
    given, gated = gated, gathered(gated)
    target = target_of(gated, target_macs, target_params, target_latency, latency, multiple)
    kept = kept_units(gated, target, keep, multiple or 1)
    if not any((m.heads[:, None] & m.dims).any() for m in kept):
        raise ValueError("extract: no head is left in any layer, so no patch would reach the classifier")
    small = built(gated, kept)
    tell_hooks(given, small, "extract")
    require_same(gated, small, "extraction", lambda model: decided(model, kept))
    set_layout(small, layout)
    return small


@torch.no_grad()
def built(gated: Any, kept: list[BlockMask]) -> Any:
    """What is left of a gated model by these masks, as a network of its own. The blocks are rebuilt from slices and
    everything else is copied (the memo keeps deepcopy from copying dense blocks)."""
    model = copy.deepcopy(gated, {id(gated.blocks): gated.blocks})
    blocks = [_extract_block(block, mask) for block, mask in zip(gated.blocks, kept, strict=True)]
    model.blocks = nn.Sequential(*blocks)
    for ours in ("uncut", "no_weight_decay", "forward", "_original_forward"):
        vars(model).pop(ours, None)
    return model.train(gated.training)


def _extract_block(block: Any, mask: BlockMask) -> PrunedBlock:
    attn, attn_constant = _extract_attention(block.attn, mask)
    mlp, mlp_constant = _extract_mlp(block.mlp, mask)
    keep = copy.deepcopy
    parts = {
        "norm1": keep(block.norm1) if attn else None,
        "attn": attn,
        "ls1": keep(block.ls1) if attn else None,
        "drop_path1": keep(block.drop_path1) if attn else None,
        "norm2": keep(block.norm2) if mlp else None,
        "mlp": mlp,
        "ls2": keep(block.ls2) if mlp else None,
        "drop_path2": keep(block.drop_path2) if mlp else None,
    }
    constants = {
        "attn_constant": None if attn else _constant(block.ls1, attn_constant),
        "mlp_constant": None if mlp else _constant(block.ls2, mlp_constant),
    }
    return PrunedBlock(parts, constants)


def _constant(scale: Any, bias: Tensor | None) -> Tensor | None:
    """What LayerScale, or the norm after the branch in its place, makes of a branch that is gone but for ``bias``."""
    if bias is None and is_norm(scale):
        bias = torch.zeros_like(scale.weight)
    if bias is None:
        return None
    return nn.Parameter(scale(bias).detach(), bias.requires_grad)


def _extract_attention(attn: Any, mask: BlockMask) -> tuple[PrunedAttention | None, Tensor | None]:
    """The surviving attention, or what is left of its output when no head survives."""
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
            attn_drop=attn.attn_drop.p,
            proj_drop=attn.proj_drop.p,
            position=position,
            norm=norm,
        )
    if isinstance(attn.qkv, JoinedLinear):
        for part, source, rows in zip(pruned.qkv.parts, attn.qkv.parts, (qk, qk, values), strict=True):
            _slice_linear(part, source, rows=rows)
    else:
        inner = attn.num_heads * size
        _slice_linear(pruned.qkv, attn.qkv, rows=torch.cat([qk, inner + qk, 2 * inner + values]))
    _slice_linear(pruned.proj, attn.proj, columns=values)
    return pruned, None


def _extract_mlp(mlp: Any, mask: BlockMask) -> tuple[Mlp | None, Tensor | None]:
    """The surviving FFN, or what is left of its output: the open block's bias when no neuron survives (A9)."""
    if not mask.ffn:
        return None, None
    is_open = mask.neurons if mlp.left is None else mask.neurons[mlp.left.to(mask.neurons.device)]
    neurons = is_open.nonzero().flatten()
    if not len(neurons):
        return None, mlp.fc2.bias
    rows = rows_of(mlp, neurons)
    with torch.device("meta"):  # weights follow
        pruned = Mlp(mlp.fc1.in_features, len(neurons), mlp.fc2.out_features, drop=(mlp.drop1.p, mlp.drop2.p))
    pruned.act = copy.deepcopy(mlp.act)
    if mlp.norm is not None:
        pruned.norm = narrowed_norm(mlp.norm, neurons)
    _slice_linear(pruned.fc1, mlp.fc1, rows=rows)
    _slice_linear(pruned.fc2, mlp.fc2, columns=neurons)
    return pruned, None


def _slice_linear(to: Any, source: Any, rows: Tensor | None = None, columns: Tensor | None = None) -> None:
    """Give ``to`` these rows and columns of ``source``, of its type, and trained where they were."""
    for name in ("weight", "bias"):
        value = getattr(source, name)
        if value is None or (name == "bias" and to.bias is None):
            setattr(to, name, None)
            continue
        value = value if rows is None else value[rows]
        value = value if columns is None or name == "bias" else value[:, columns]
        setattr(to, name, nn.Parameter(value.detach().clone(), is_trained(source, name)))
    to.out_features, to.in_features = to.weight.shape


def is_trained(layer: Any, name: str) -> bool:
    """Whether ``layer`` learns this tensor, or what it is computed from (``torch.nn.utils.parametrize``)."""
    if isinstance(layer, JoinedLinear):
        return any(p is not None and p.requires_grad for part in layer.parts for p in (getattr(part, name),))
    if name in layer._parameters:
        return bool(layer._parameters[name].requires_grad)
    return any(p.requires_grad for p in layer.parametrizations[name].parameters())
