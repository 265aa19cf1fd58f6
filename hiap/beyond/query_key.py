"""Ours, not the paper's: queries and keys of fewer dimensions, in closed form and without training.

A head's scores stay the same in any basis: q . k = (A q) . (A^-T k). Let F be the mean of g g^T, with g the gradient of
the network's own answers with respect to a query (their Fisher information), and U the eigenvectors of
F^1/2 (sum of q q^T) F^1/2. The basis A = U^T F^1/2 sorts the dimensions by what leaving them out costs: dimension j its
eigenvalue, per image and in the unit of ``hiap.beyond.obs``, so that they compete with all other units for what is
left. It is a principal component analysis that knows which errors of a query matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hiap.backbones.families import copied
from hiap.beyond.obs import TINY
from hiap.budget.prices import kept_cost
from hiap.budget.selection import Ranking, Target
from hiap.gated_layers import BlockMask

DAMPING = 1e-4  # of F's mean diagonal
STEPS = 8  # a head keeps a multiple of an eighth of its dimensions: 8 of 64, which kernels like
PRICED = ("MACs", "parameters")  # how a table of times changes with the widths of Q and K is not known


@dataclass
class Basis:
    """Basis of queries and keys for one block's heads: ``errors`` (H, Dh), falling, what each dimension of the basis
    costs if it goes; ``query`` and ``key`` (H, Dh, Dh), A and A^-T, whose rows are the dimensions."""

    errors: Tensor
    query: Tensor
    key: Tensor

    def to(self, device: torch.device) -> Basis:
        return Basis(self.errors.to(device), self.query.to(device), self.key.to(device))


class Queries:
    """Sums over the tokens of all images of one block's queries and of their gradients, as ``obs.moments`` collects."""

    def __init__(self, attn: Any):
        self.linear, self.shape = attn.qkv, (attn.num_heads, attn.head_dim)
        size = (attn.num_heads, attn.head_dim, attn.head_dim)
        self.seen, self.fisher = (attn.qkv.weight.new_zeros(size, dtype=torch.float64) for _ in range(2))
        self.images = self.tokens = 0
        self.output = torch.empty(0)

    def take(self, _: Any, args: tuple[Tensor], output: Tensor) -> None:
        self.output = output

    def add(self, grad: Tensor | None) -> None:
        """Add a batch. ``grad`` (B, N, 3 H Dh) of Q, K and V; without it nothing is learnt."""
        if grad is not None:
            self.images, self.tokens = self.images + len(grad), self.tokens + grad.shape[0] * grad.shape[1]
            for to, values in ((self.seen, self.output.detach()), (self.fisher, grad)):
                q = values.chunk(3, -1)[0].flatten(0, -2).unflatten(-1, self.shape).float().transpose(0, 1)
                to += q.mT @ q
        self.output = torch.empty(0)

    def basis(self) -> Basis:
        """Return the basis that the sums give."""
        fisher = self.fisher / self.tokens
        least = DAMPING * fisher.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(TINY)
        values, vectors = torch.linalg.eigh(fisher + least[:, None, None] * torch.eye(self.shape[1]).to(fisher))
        root, inverse = (vectors * values[:, None] ** power @ vectors.mT for power in (0.5, -0.5))
        errors, turned = torch.linalg.eigh(root @ (self.seen / self.images) @ root)
        turned = turned.flip(-1).mT
        return Basis(errors.flip(-1).clamp_min(0), turned @ root, turned @ inverse)


def watch(model: Any) -> list[Queries]:
    """Return collectors for every block of a ViT in the method's form; none where queries or keys are normed or
    rotated, which fixes their basis, or come from maps of their own."""
    if not all(_plain(block.attn) for block in model.blocks):
        return []
    return [Queries(block.attn) for block in model.blocks]


def _plain(attn: Any) -> bool:
    normed = any(not isinstance(getattr(attn, name), nn.Identity) for name in ("q_norm", "k_norm"))
    return isinstance(attn.qkv, nn.Linear) and not normed and getattr(attn, "position", None) is None


def keep_best(target: Target, ranking: Ranking, bases: Sequence[Basis]) -> tuple[list[BlockMask], list[int]]:
    """Return what stays within ``target``, and in how many dimensions of Q and K each block's heads stay: the threshold
    that value dimensions and neurons meet decides on these too, a block's heads together. Without ``bases``, or with a
    target in time, Q and K stay whole."""
    width = target.dims.head_dim
    kept, widths = target.keep_best(ranking), [width] * target.dims.depth
    if not bases or target.prices.unit not in PRICED:
        return kept, widths
    low, high = target.amount, target.dense  # what all units may cost together, if Q and K were whole
    while high - low > target.dense // 1000:
        middle = (low + high) // 2
        more = replace(target, amount=middle).keep_best(ranking)
        fewer = _widths(target, ranking, bases, more)
        if _cost(target, more, fewer) <= target.amount:
            low, kept, widths = middle, more, fewer
        else:
            high = middle
    return kept, widths


def _widths(target: Target, ranking: Ranking, bases: Sequence[Basis], kept: list[BlockMask]) -> list[int]:
    assert ranking.dims is not None
    assert ranking.neurons is not None
    keys = torch.cat([ranking.dims.flatten(), ranking.neurons.flatten()])
    count = sum(sum(mask.head_widths()) + mask.neuron_count() for mask in kept)
    threshold = float(keys.sort(descending=True).values[min(count, len(keys) - 1)])
    width, price = target.dims.head_dim, target.prices.head / target.dims.head_dim
    step, widths = max(1, width // STEPS), []
    for basis, mask in zip(bases, kept, strict=True):
        alive = (mask.dims & mask.heads[:, None]).any(-1).to(basis.errors.device)
        worth = int((basis.errors[alive].mean(0) / price > threshold).sum()) if alive.any() else 0
        widths.append(min(width, max(step, (worth + step // 2) // step * step)))
    return widths


def _cost(target: Target, kept: list[BlockMask], widths: list[int]) -> int:
    whole = kept_cost(target.prices, kept, target.dims.head_dim)  # in a new basis a head has all dimensions again
    gone = sum(len(mask.head_widths()) * (target.dims.head_dim - w) for mask, w in zip(kept, widths, strict=True))
    return whole - target.prices.head // target.dims.head_dim * gone


@torch.no_grad()
def narrowed(model: Any, bases: Sequence[Basis], widths: Sequence[int]) -> Any:
    """Return a copy of ``model`` with Q and K in these bases and zeros behind the first ``widths`` dimensions of every
    head: the same function if nothing is left out. ``hiap.backbones.evening.trimmed`` removes the zeros."""
    model = copied(model)
    for block, basis, width in zip(model.blocks, bases, widths, strict=True):
        qkv, shape = block.attn.qkv, basis.query.shape[:2]
        whole = qkv.weight if qkv.bias is None else torch.cat([qkv.weight, qkv.bias[:, None]], 1)
        q, k = (part.double().unflatten(0, shape) for part in whole.chunk(3)[:2])
        q, k = basis.query @ q, basis.key @ k
        balance = (k.norm(dim=-1, keepdim=True) / q.norm(dim=-1, keepdim=True)).sqrt()  # no number grows for nothing
        balance = torch.where(balance.isfinite() & (balance > 0), balance, 1.0)
        q, k = q * balance, k / balance
        q[:, width:], k[:, width:] = 0, 0
        for i, rows in enumerate((q.flatten(0, 1), k.flatten(0, 1))):
            qkv.weight.chunk(3)[i].copy_(rows[:, : qkv.in_features])
            if qkv.bias is not None:
                qkv.bias.chunk(3)[i].copy_(rows[:, -1])
    return model
