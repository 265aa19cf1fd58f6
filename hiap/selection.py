"""Which units stay: the highest-ranked ones that fit a target in MACs.

Everything in this project that lands on a target does so here: HiAP with a budget and every baseline.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hiap import cost, ledger
from hiap.gated_vit import BlockMask
from hiap.options import ConfigError


@dataclass
class Ranking:
    """Keys by which units are kept, highest first, comparable across all units. A kind left None is not pruned.

    ``dims`` (L, H, Dh) value dimensions, a head goes with its last one; ``neurons`` (L, Dffn), an FFN goes with its
    last one. ``cut_qk``: a dimension takes its Q and K rows along. ``tied``, of all units, dimensions first: those that
    a macro gate ranks, with all others of their head or FFN that it ranks; their own gates only order them."""

    dims: Tensor | None = None
    neurons: Tensor | None = None
    cut_qk: bool = False
    tied: Tensor | None = None


def keep_best(dims: ledger.Dims, ranking: Ranking, target: int) -> list[BlockMask]:
    """Masks that keep the highest-ranked units such that the extracted model has at most ``target`` MACs, and no
    further unit would fit. A head or FFN whose macro gate the threshold splits is closed, and units of open ones fill
    what is left; only if there are too few of them does it come back, as narrow as it must. The best value dimension
    stays whatever its rank: with no head at all the image would not reach the classifier. Raises ``ConfigError`` if the
    target is out of reach."""
    require_reachable(dims, ranking, target)
    order = _order(ranking)

    def macs(chosen: Tensor) -> int:
        return cost.masked_macs(dims, _masks(dims, ranking, chosen), ranking.cut_qk)

    low, high = 0, len(order)  # the longest prefix of the order that fits
    while low < high:
        middle = (low + high + 1) // 2
        fits = macs(_first(order, middle)) <= target
        low, high = (middle, high) if fits else (low, middle - 1)
    chosen = _without_split(_groups(dims, ranking), _first(order, low), ranking.tied, keep=int(order[0]))
    for gone_too in (False, True):
        chosen = _top_up(dims, ranking, chosen, order, target - macs(chosen), gone_too)
    return _masks(dims, ranking, chosen)


def require_reachable(dims: ledger.Dims, ranking: Ranking, target: int) -> None:
    """Raise ``ConfigError`` with the reachable range if removing every unit that ``ranking`` ranks is not enough."""
    order = _order(ranking)
    fewest = _first(order, 0 if ranking.dims is None else 1)
    least = cost.masked_macs(dims, _masks(dims, ranking, fewest), ranking.cut_qk)
    if least > target:
        raise ConfigError(
            f"budget.target_macs: {target / 1e6:.2f} M MACs cannot be reached by removing these units; "
            f"reachable: {least / 1e6:.2f} to {ledger.dense_macs(dims) / 1e6:.2f} M"
        )


def within_layer_rank(scores: Tensor) -> Tensor:
    """(L, ...) scores to keys in (0, 1]: the share of the layer's units that a unit is at least as good as. Keeping the
    highest keys keeps the same share of every layer."""
    flat = scores.flatten(1)
    ranks = flat.argsort(dim=1, stable=True).argsort(dim=1, stable=True) + 1
    return (ranks / flat.shape[1]).reshape(scores.shape)


def global_rank(scores: Tensor) -> Tensor:
    """Scores to keys in (0, 1]: the share of all units of this kind that a unit is at least as good as."""
    return within_layer_rank(scores[None])[0]


def _order(ranking: Ranking) -> Tensor:
    """Positions of all units, dimensions before neurons, highest key first; in front of all the best dimension."""
    kinds = [t.detach().flatten().cpu() for t in (ranking.dims, ranking.neurons) if t is not None]
    if ranking.dims is not None:
        kinds[0] = kinds[0].clone()
        kinds[0][kinds[0].argmax()] = torch.inf
    return torch.cat(kinds).argsort(descending=True, stable=True)


def _first(order: Tensor, count: int) -> Tensor:
    chosen = torch.zeros(len(order), dtype=torch.bool)
    chosen[order[:count]] = True
    return chosen


def _groups(dims: ledger.Dims, ranking: Ranking) -> Tensor:
    """Which head (numbered from 0) or FFN (after the heads) each unit belongs to."""
    heads = torch.arange(dims.depth * dims.heads).repeat_interleave(dims.head_dim)
    ffns = torch.arange(dims.depth).repeat_interleave(dims.hidden) + dims.depth * dims.heads
    return torch.cat([heads] * (ranking.dims is not None) + [ffns] * (ranking.neurons is not None))


def _without_split(groups: Tensor, chosen: Tensor, tied: Tensor | None, keep: int) -> Tensor:
    """``chosen`` without the heads and FFNs of which some tied units are chosen and others are not: a threshold common
    to all gates does not cut through one gate. The group of unit ``keep`` stays."""
    if tied is None:
        return chosen
    split = set(groups[tied & chosen].tolist()) & set(groups[tied & ~chosen].tolist()) - {int(groups[keep])}
    return chosen & ~torch.isin(groups, torch.tensor(sorted(split), dtype=groups.dtype))


def _top_up(dims: ledger.Dims, ranking: Ranking, chosen: Tensor, order: Tensor, slack: int, gone_too: bool) -> Tensor:
    """Add the best remaining units that still fit; of heads and FFNs that are gone only if ``gone_too``, and then the
    first dimension of a head pays for its Q and K as well."""
    prices = ledger.true_prices(dims.tokens, dims.dim, dims.head_dim)
    dim = prices.value_dim + (prices.head // dims.head_dim if ranking.cut_qk else 0)
    cheapest = min([dim] * (ranking.dims is not None) + [prices.neuron] * (ranking.neurons is not None))
    groups, heads = _groups(dims, ranking), dims.depth * dims.heads
    alive = set(groups[chosen].tolist())
    for unit in order[~chosen[order]].tolist():
        if slack < cheapest:
            break
        group = int(groups[unit])
        if group not in alive and not gone_too:
            continue
        price = prices.neuron if group >= heads else dim
        if group < heads and group not in alive and not ranking.cut_qk:
            price += prices.head
        if price <= slack:
            chosen[unit] = True
            alive.add(group)
            slack -= price
    return chosen


def _masks(dims: ledger.Dims, ranking: Ranking, chosen: Tensor) -> list[BlockMask]:
    value, n_dims = torch.ones(dims.depth, dims.heads, dims.head_dim, dtype=torch.bool), 0
    if ranking.dims is not None:
        n_dims = ranking.dims.numel()
        value = chosen[:n_dims].view(value.shape)
    neurons = torch.ones(dims.depth, dims.hidden, dtype=torch.bool)
    if ranking.neurons is not None:
        neurons = chosen[n_dims:].view(neurons.shape)
    return [BlockMask(heads=v.any(-1), dims=v, ffn=n.any(), neurons=n) for v, n in zip(value, neurons, strict=True)]
