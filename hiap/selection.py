"""Which units stay: the highest-ranked ones that fit a target in MACs.

Everything in this project that lands on a target does so here: HiAP with a budget and every baseline.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hiap import cost, ledger
from hiap.config import ConfigError
from hiap.gated_vit import BlockMask


@dataclass
class Ranking:
    """Keys by which units are kept, highest first, comparable across all units. A kind left None is not pruned.

    ``dims`` (L, H, Dh) value dimensions, a head goes with its last one; ``neurons`` (L, Dffn), an FFN goes with its
    last one. ``cut_qk``: a dimension takes its Q and K rows along."""

    dims: Tensor | None = None
    neurons: Tensor | None = None
    cut_qk: bool = False


def keep_best(dims: ledger.Dims, ranking: Ranking, target: int) -> list[BlockMask]:
    """Masks that keep the highest-ranked units such that the extracted model has at most ``target`` MACs, and no
    further unit of a head that is left, or neuron, would fit. The best value dimension stays whatever its rank: with
    no head at all the image would not reach the classifier. Raises ``ConfigError`` if the target is out of reach."""
    require_reachable(dims, ranking, target)
    order = _order(ranking)

    def macs(chosen: Tensor) -> int:
        return cost.masked_macs(dims, _masks(dims, ranking, chosen), ranking.cut_qk)

    low, high = 0, len(order)  # the longest prefix of the order that fits
    while low < high:
        middle = (low + high + 1) // 2
        fits = macs(_first(order, middle)) <= target
        low, high = (middle, high) if fits else (low, middle - 1)
    chosen = _first(order, low)
    return _masks(dims, ranking, _top_up(dims, ranking, chosen, order[low:], target - macs(chosen)))


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


def _top_up(dims: ledger.Dims, ranking: Ranking, chosen: Tensor, rest: Tensor, slack: int) -> Tensor:
    """Add the best remaining units that still fit; a dimension of a head that is gone would bring the head back, with
    all that its Q and K cost: not it."""
    prices = ledger.true_prices(dims.tokens, dims.dim, dims.head_dim)
    price = prices.value_dim + (prices.head // dims.head_dim if ranking.cut_qk else 0)
    n_dims = 0 if ranking.dims is None else ranking.dims.numel()
    for unit in rest.tolist():
        if slack < min(price, prices.neuron):
            break
        if unit < n_dims:
            head = unit // dims.head_dim * dims.head_dim
            if not chosen[head : head + dims.head_dim].any():
                continue
        unit_price = price if unit < n_dims else prices.neuron
        if unit_price <= slack:
            chosen[unit] = True
            slack -= unit_price
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
