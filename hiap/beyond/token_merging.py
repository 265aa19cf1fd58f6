"""Ours, not the paper's: similar tokens are merged while a network runs, on top of what pruning has left of it.

The idea is Token Merging's (Bolya et al., 2023): between attention and FFN of each block, patches are dealt out in turn
to two sets, every one of the first finds its most similar one in the second by the cosine of their keys, and the r most
similar pairs become their mean. A token stands for as many patches as went into it: it weighs so much in further means,
and attention adds the logarithm of that to its scores, so that a merged token is looked at as its parts would be.
Nothing is trained. Deviations: keys of all heads stand side by side instead of being averaged, since pruned heads may
differ in width, and where a block has no attention left the tokens themselves are compared.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from hiap import cost
from hiap.backbones import count
from hiap.backbones.errors import UnsupportedModelError
from hiap.backbones.pruned import PrunedAttention, PrunedBlock
from hiap.gated_vit import is_gated


def merge_tokens(model: Any, r: int | Sequence[int]) -> Any:
    """Return a view of ``model``, on the same parameters, that merges ``r`` pairs of tokens in each block (or, block by
    block, so many; at most half of the patches that are left). For inference; at r = 0 it computes what ``model``
    computes.

    ``model``: a dense or extracted ``VisionTransformer`` whose classifier looks at the class token; that one and other
    prefix tokens are never merged. Raises ``UnsupportedModelError``, which names what it has, for anything else, and
    ``ValueError`` for an ``r`` that is no number of pairs.
    """
    _check(model)
    return _with_blocks(model, MergingBlocks(model.blocks, _schedule(model, r), model.num_prefix_tokens))


def _with_blocks(model: Any, blocks: nn.Module) -> Any:
    view = copy.copy(model)
    view._modules = {**model._modules, "blocks": blocks}
    return view


def macs(model: Any, r: int | Sequence[int], executed: bool = False) -> int:
    """Count the MACs of one image of the size that ``model`` was built for through ``merge_tokens(model, r)``, with
    what it takes to compare tokens; ``executed`` as in ``hiap.macs``."""
    _check(model)
    _, (rows, columns) = count.in_patches(model.patch_embed)
    prefix, patches = model.num_prefix_tokens, rows * columns
    total = cost.constant_macs(model, cost.image_of(model), prefix + patches)
    for block, wanted in zip(model.blocks, _schedule(model, r), strict=True):
        total += count.attention_macs(block, prefix + patches, executed)
        if gone := mergeable(patches, wanted):
            first = (patches + 1) // 2
            total += first * (patches - first) * _compared_width(block, model.embed_dim)
        patches -= gone
        total += count.ffn_macs(block, prefix + patches)
    return total


class MergingBlocks(nn.Module):
    """Blocks of a ViT, with ``schedule[i]`` pairs of tokens merged within the i-th. (B, N, D) to (B, N', D)."""

    def __init__(self, blocks: Any, schedule: Sequence[int], prefix: int):
        super().__init__()
        self.blocks, self.schedule, self.prefix = blocks, list(schedule), prefix

    def forward(self, x: Tensor) -> Tensor:
        size: Tensor | None = None  # (B, N), None while every token stands for itself
        for block, wanted in zip(self.blocks, self.schedule, strict=True):
            count = mergeable(x.shape[1] - self.prefix, wanted)
            x, compared = _attend(block, x, size, count > 0)
            if count:
                x, size = merge(x, compared, size, count, self.prefix)
            x = _branch(block, "mlp", block.norm2, block.ls2, block.drop_path2, x)
        return x

    def __iter__(self) -> Iterator[Any]:
        raise UnsupportedModelError(
            "the network merges tokens: take the one that it is a view of, or token_merging.macs for its cost"
        )

    def unmerged(self, view: Any) -> Any:
        """Return the network that ``view`` is a view of."""
        return _with_blocks(view, self.blocks)

    def extra_repr(self) -> str:
        return f"schedule={self.schedule}"


def mergeable(patches: int, wanted: int) -> int:
    """Return how many pairs can be merged at once."""
    return min(wanted, patches // 2)


def merge(x: Tensor, compared: Tensor, size: Tensor | None, count: int, prefix: int) -> tuple[Tensor, Tensor]:
    """Merge ``count`` pairs of the tokens x (B, N, D) behind the first ``prefix``, those whose ``compared`` (B, N, K)
    are most alike. ``size`` (B, N): how many patches each token stands for, None if one. Return tokens (B, N - count,
    D), in the order prefix, what is left of the first set, the second set, and their sizes (B, N - count), float32."""
    size = torch.ones(x.shape[:2], device=x.device) if size is None else size
    direction = F.normalize(compared[:, prefix:], dim=-1)
    alike, partner = (direction[:, ::2] @ direction[:, 1::2].transpose(1, 2)).max(-1)  # (B, first set)
    order = alike.argsort(dim=-1, descending=True, stable=True)
    gone, stay = order[:, :count], order[:, count:].sort(-1).values
    to = partner.gather(1, gone)
    whole = torch.cat([size[..., None] * x, size[..., None]], -1)  # (B, N, D + 1): sums, and of how many
    first, second = whole[:, prefix::2], whole[:, prefix + 1 :: 2]
    merged = second.scatter_add(1, _wide(to, whole), first.gather(1, _wide(gone, whole)))
    summed = torch.cat([whole[:, :prefix], first.gather(1, _wide(stay, whole)), merged], 1)
    return (summed[..., :-1] / summed[..., -1:]).to(x.dtype), summed[..., -1]


def _wide(index: Tensor, like: Tensor) -> Tensor:
    return index[..., None].expand(-1, -1, like.shape[-1])


def _attend(block: Any, x: Tensor, size: Tensor | None, keys: bool) -> tuple[Tensor, Tensor]:
    """Return the tokens after the attention branch, and what they are compared by, where ``keys`` are asked for: the
    tokens themselves where there is no attention."""
    if block.attn is None:
        x = _branch(block, "attn", None, None, None, x)
        return x, x
    found: list[Tensor] = []
    mask = None if size is None else size.log().to(x.dtype)[:, None, None]
    with block.attn.qkv.register_forward_hook(lambda _, args, out: found.append(out)) if keys else nullcontext():
        x = _branch(block, "attn", block.norm1, block.ls1, block.drop_path1, x, attn_mask=mask)
    width = _compared_width(block, 0)
    return x, found[0][..., width : 2 * width] if found else x


def _branch(block: Any, name: str, norm: Any, scale: Any, drop: Any, x: Tensor, **options: Any) -> Tensor:
    """Run one residual branch, as the block itself computes it."""
    part = getattr(block, name)
    if part is None:
        constant = getattr(block, f"{name}_constant")
        return x if constant is None else x + constant
    return x + drop(scale(part(norm(x), **options)))


def _compared_width(block: Any, tokens: int) -> int:
    """Count the numbers by which a token is compared: its keys of all heads; ``tokens`` where there are none."""
    return sum(count.qk_dims(block)) or tokens


def _schedule(model: Any, r: int | Sequence[int]) -> list[int]:
    depth = len(model.blocks)
    schedule = list(r) if isinstance(r, Sequence) else [r] * depth
    if len(schedule) != depth or not all(hasattr(count, "__index__") and count >= 0 for count in schedule):
        raise ValueError(f"merge_tokens: r {r!r}: expected a number, 0 or more, or one for each of {depth} blocks")
    return schedule


def _check(model: Any) -> None:
    if not isinstance(model, VisionTransformer):
        raise UnsupportedModelError(f"merge_tokens: {type(model).__name__}: expected a timm VisionTransformer")
    if is_gated(model):
        raise UnsupportedModelError("merge_tokens: the model carries gates; expected a dense or extracted one")
    if model.attn_pool is not None or model.global_pool != "token":
        raise UnsupportedModelError(
            f"merge_tokens: pooling '{model.global_pool}' of all tokens; expected the class token's"
        )
    for name, part in _unknown(model):
        raise UnsupportedModelError(
            f"merge_tokens: {name} ({type(part).__name__}): expected plain attention, whose tokens have no positions"
        )


def _unknown(model: Any) -> Iterator[tuple[str, Any]]:
    for i, block in enumerate(model.blocks):
        if type(block) not in (Block, PrunedBlock):
            yield f"blocks.{i}", block
        elif block.attn is not None and (
            type(block.attn) not in (Attention, PrunedAttention) or getattr(block.attn, "position", None) is not None
        ):
            yield f"blocks.{i}.attn", block.attn
