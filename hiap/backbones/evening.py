"""A network that was pruned before as one whose blocks are alike, which can be gated: zeros stand where units are gone.

The function stays what it is. Units of zeros cost nothing to remove, so they go first.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from hiap.backbones.count import image_of, macs, params, qk_dims, value_dims
from hiap.backbones.errors import UnsupportedModelError
from hiap.backbones.families import fc1_rows
from hiap.backbones.guard import require_linear, require_plain, require_same
from hiap.backbones.parts import JoinedLinear, biases, is_norm, is_trained, rate
from hiap.backbones.pruned import PrunedAttention, PrunedBlock, set_layout

PARTS = {"attn": ("norm1", "attn", "ls1", "drop_path1"), "mlp": ("norm2", "mlp", "ls2", "drop_path2")}


@dataclass
class Given:
    """Sizes of a network before it was made even: a share of a target means a share of these, without the zeros.
    ``qk_left`` (L, H): the dimensions of Q and K of each head, which now has ``width``. ``gone``: the units of zeros,
    once ``hiap.budget.selection`` has looked (``BlockMask`` of each block)."""

    macs: int
    params: int
    qk_left: list[list[int]]
    width: int
    gone: tuple[Any, ...] = ()

    def qk_share(self, like: Tensor) -> Tensor:
        """Return (L, H): which share of Q and K each head has left."""
        return torch.tensor(self.qk_left).to(like) / self.width

    def qk_rows(self, heads: Tensor, dims: Tensor) -> Tensor:
        """Count the dimensions of Q that are open, where each goes with a value dimension: ``heads`` (L, H), ``dims``
        (L, H, Dh), as probabilities."""
        left = torch.tensor(self.qk_left, device=dims.device)
        there = torch.arange(self.width, device=dims.device) < left[..., None]
        return (heads * (dims * there).sum(-1)).sum()


@torch.no_grad()
def even(model: Any) -> Any:
    """Return ``model`` itself if its blocks are alike, else a copy with zeros where units are gone; shares of a target
    are then still those of ``model`` (``hiap.budget.selection.target_of``). Raises ``UnsupportedModelError`` for a
    pruned network with norms over its units, for one that has no FFN or no attention at all, and for layers that do
    more than their weights say (``hiap.backbones.guard``)."""
    if not any(isinstance(block, PrunedBlock) for block in model.blocks) or alike(model.blocks):
        return model
    require_plain(model)
    for i, block in enumerate(model.blocks):
        attn, mlp = block.attn, block.mlp
        if not isinstance(getattr(attn, "norm", None) or nn.Identity(), nn.Identity):
            raise UnsupportedModelError(f"blocks.{i}.attn: pruned, with a norm over its heads; expected none")
        if mlp is not None and not isinstance(mlp.norm, nn.Identity):
            raise UnsupportedModelError(f"blocks.{i}.mlp: pruned, with a norm over its neurons; expected none")
    donors = {branch: next((b for b in model.blocks if getattr(b, branch) is not None), None) for branch in PARTS}
    for branch, donor in donors.items():
        if donor is None:
            raise UnsupportedModelError(f"blocks.*.{branch} are all gone: expected one that is left")
    heads = max(len(value_dims(block)) for block in model.blocks)
    width = max(max(qk_dims(block) + value_dims(block), default=0) for block in model.blocks)
    neurons = max(block.mlp.fc2.in_features for block in model.blocks if block.mlp is not None)
    whole = copy.deepcopy(model, {id(model.blocks): model.blocks})
    whole.blocks = nn.Sequential(*(_block(block, donors, heads, width, neurons) for block in model.blocks))
    set_layout(whole, "padded")
    left = [
        [*qk_dims(block), *[0] * heads][:heads] if _can_be_trimmed(now.attn) else [width] * heads
        for block, now in zip(model.blocks, whole.blocks, strict=True)
    ]
    whole.given = Given(macs(model, image_of(model)), params(model), left, width)
    require_same(model, whole.train(model.training), "evening")
    return whole


def alike(blocks: Any) -> bool:
    """Tell whether all blocks have equally many heads, all of one width, and equally many neurons."""
    if any(block.attn is None or block.mlp is None for block in blocks):
        return False
    sizes = {(tuple(qk_dims(b)), tuple(value_dims(b)), b.mlp.fc2.in_features) for b in blocks}
    (qk, values, _), *others = sizes
    return not others and len({*qk, *values}) == 1


def _block(block: Any, donors: dict[str, Any], heads: int, width: int, neurons: int) -> PrunedBlock:
    parts: dict[str, nn.Module | None] = {}
    for branch, names in PARTS.items():
        gone = getattr(block, branch) is None
        source = donors[branch] if gone else block
        parts |= {name: copy.deepcopy(getattr(source, name)) for name in names if name != branch}
        whole = _attention(source.attn, heads, width) if branch == "attn" else _ffn(source.mlp, neurons)
        if gone:
            _silence(whole, parts[names[2]], getattr(block, f"{branch}_constant", None))
        parts[branch] = whole
    return PrunedBlock(parts, {"attn_constant": None, "mlp_constant": None})


def _silence(part: Any, scale: Any, constant: Tensor | None) -> None:
    """Let a branch give ``constant`` alone."""
    output = part.proj if isinstance(part, PrunedAttention) else part.fc2
    for layer in part.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.zero_()
            if layer.bias is not None:
                layer.bias.zero_()
    if hasattr(scale, "gamma"):
        scale.gamma.fill_(1.0)
    if is_norm(scale):  # behind the branch: what it made of nothing is part of the constant
        scale.weight.zero_()
        if getattr(scale, "bias", None) is not None:
            scale.bias.copy_(torch.zeros_like(scale.bias) if constant is None else constant)
    elif constant is not None:
        output.bias.requires_grad_(constant.requires_grad).copy_(constant)


def _attention(attn: Any, heads: int, width: int) -> PrunedAttention:
    qk, values = attn.qk_dims, attn.value_dims
    whole = PrunedAttention(
        attn.qkv.in_features,
        [width] * heads,
        [width] * heads,
        attn.scale,
        qkv_bias=biases(attn.qkv) if isinstance(attn.qkv, JoinedLinear) else attn.qkv.bias is not None,
        q_norm=copy.deepcopy(attn.q_norm),
        k_norm=copy.deepcopy(attn.k_norm),
        attn_drop=rate(attn.attn_drop),
        proj_drop=rate(attn.proj_drop),
        position=attn.position and attn.position.padded(heads),
    ).to(attn.proj.weight)
    device = attn.proj.weight.device
    rows = [
        torch.cat([h * width + torch.arange(w, device=device) for h, w in enumerate(widths)])
        for widths in (qk, qk, values)
    ]
    if isinstance(attn.qkv, JoinedLinear):
        for to, source, places in zip(whole.qkv.parts, attn.qkv.parts, rows, strict=True):
            _placed(to, source, rows=places)
    else:
        _placed(whole.qkv, attn.qkv, rows=torch.cat([i * heads * width + places for i, places in enumerate(rows)]))
    _placed(whole.proj, attn.proj, columns=rows[2])
    return whole


def _ffn(mlp: Any, neurons: int) -> Any:
    own, rows = mlp.fc2.in_features, fc1_rows(mlp)
    # An output bias in any case: what is gone may have left a constant.
    whole: Any = Mlp(mlp.fc1.in_features, neurons, mlp.fc2.out_features, bias=(mlp.fc1.bias is not None, True))
    if rows > 1:
        whole.fc1 = nn.Linear(mlp.fc1.in_features, rows * neurons, bias=mlp.fc1.bias is not None)
    whole = whole.to(mlp.fc2.weight)
    whole.act, whole.drop1, whole.drop2 = (copy.deepcopy(part) for part in (mlp.act, mlp.drop1, mlp.drop2))
    places = torch.cat([i * neurons + torch.arange(own) for i in range(rows)]).to(mlp.fc2.weight.device)
    _placed(whole.fc1, mlp.fc1, rows=places)
    _placed(whole.fc2, mlp.fc2, columns=places[:own])
    return whole


def _placed(to: Any, source: Any, rows: Tensor | None = None, columns: Tensor | None = None) -> None:
    """Copy ``source``'s rows or columns to these places of ``to``, with zeros everywhere else, trained where they
    were."""
    require_linear("a layer that was pruned", source)
    to.weight.requires_grad_(is_trained(source, "weight")).zero_()
    if to.bias is not None:
        to.bias.requires_grad_(to.weight.requires_grad if source.bias is None else is_trained(source, "bias")).zero_()
    if rows is not None:
        to.weight[rows] = source.weight
        if source.bias is not None:
            to.bias[rows] = source.bias
    else:
        to.weight[:, columns] = source.weight
        if source.bias is not None:
            to.bias.copy_(source.bias)


@torch.no_grad()
def trimmed(model: Any) -> Any:
    """Remove from ``model``, which is extracted, the dimensions of Q and K that are zero in both, all but one of each
    head; return it."""
    for block in model.blocks:
        if _can_be_trimmed(block.attn):
            block.attn = _trimmed(block.attn)
    return model


def _can_be_trimmed(attn: Any) -> bool:
    plain = isinstance(attn, PrunedAttention) and isinstance(attn.qkv, nn.Linear) and attn.position is None
    return plain and isinstance(attn.q_norm, nn.Identity)


def _trimmed(attn: PrunedAttention) -> PrunedAttention:
    inner = sum(attn.qk_dims)
    full = attn.qkv.weight if attn.qkv.bias is None else torch.cat([attn.qkv.weight, attn.qkv.bias[:, None]], 1)
    live = (full[:inner] != 0).any(1) & (full[inner : 2 * inner] != 0).any(1)
    widths, kept, start = [], [], 0
    for width in attn.qk_dims:
        units = live[start : start + width].nonzero().flatten()
        units = units if len(units) else torch.zeros(1, dtype=torch.long, device=units.device)
        widths.append(len(units))
        kept.append(start + units)
        start += width
    if widths == attn.qk_dims:
        return attn
    qk = torch.cat(kept)
    rows = torch.cat([qk, inner + qk, torch.arange(2 * inner, len(full), device=qk.device)])
    narrow = PrunedAttention(
        attn.qkv.in_features,
        widths,
        attn.value_dims,
        attn.scale,
        attn.qkv.bias is not None,
        attn.proj.bias is not None,
        attn_drop=rate(attn.attn_drop),
        proj_drop=rate(attn.proj_drop),
        norm=attn.norm,
    )
    narrow = narrow.to(attn.proj.weight)
    narrow.layout, narrow.proj = attn.layout, attn.proj
    for name, p in narrow.qkv.named_parameters():
        p.requires_grad_(is_trained(attn.qkv, name)).copy_(getattr(attn.qkv, name)[rows])
    return narrow.train(attn.training)
