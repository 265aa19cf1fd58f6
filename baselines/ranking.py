"""What every rank-and-remove baseline does: order units, keep the best that fit the target, extract, train on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hiap import cost, gated_vit, ledger
from hiap.config import ConfigError, GateConfig
from hiap.extraction import extract
from hiap.gated_vit import BlockMask
from hiap.method import Context, Stage


@dataclass
class Ranking:
    """Keys by which units are kept, highest first, comparable across all units. A kind left None is not pruned.
    ``dims`` (L, H, Dh) value dimensions; ``neurons`` (L, Dffn)."""

    dims: Tensor | None = None
    neurons: Tensor | None = None


class PruneThenTune(Stage):
    """Rank, remove to the target at once, then train what is left for ``epochs``."""

    def __init__(self, epochs: int, rank: Callable[[Any, Context], Ranking]):
        super().__init__("fine-tune", epochs)
        self.rank = rank

    def prepare(self, model: Any, context: Context) -> Any:
        assert context.target_macs is not None
        gated = gated_vit.gate(model, GateConfig())
        kept = keep_best(cost.dims_of(model), self.rank(model, context), context.target_macs)
        gated_vit.set_masks(gated, kept)
        return extract(gated)


def keep_best(dims: ledger.Dims, ranking: Ranking, target: int) -> list[BlockMask]:
    """Masks that keep the highest-ranked units such that the extracted model has at most ``target`` MACs, and no
    further unit would fit. Raises ``ConfigError`` with the reachable range if removing all is not enough."""
    keys = torch.cat([t.flatten() for t in (ranking.dims, ranking.neurons) if t is not None])
    order = keys.argsort(descending=True, stable=True)

    def macs(chosen: Tensor) -> int:
        return cost.masked_macs(dims, _masks(dims, ranking, chosen))

    chosen = torch.zeros(len(keys), dtype=torch.bool)
    least = macs(chosen)
    if least > target:
        raise ConfigError(
            f"budget.target_macs: {target / 1e6:.2f} M MACs cannot be reached by removing these units; "
            f"reachable: {least / 1e6:.2f} to {ledger.dense_macs(dims) / 1e6:.2f} M"
        )
    low, high = 0, len(keys)  # the longest prefix of the order that fits
    while low < high:
        middle = (low + high + 1) // 2
        fits = macs(_first(order, middle)) <= target
        low, high = (middle, high) if fits else (low, middle - 1)
    chosen = _first(order, low)
    return _masks(dims, ranking, _top_up(dims, ranking, chosen, order[low:], target - macs(chosen)))


def within_layer_rank(scores: Tensor) -> Tensor:
    """(L, ...) scores to keys in (0, 1]: the share of the layer's units that a unit is at least as good as. Keeping the
    highest keys keeps the same share of every layer."""
    flat = scores.flatten(1)
    ranks = flat.argsort(dim=1, stable=True).argsort(dim=1, stable=True) + 1
    return (ranks / flat.shape[1]).reshape(scores.shape)


def l1_neurons(model: Any) -> Tensor:
    """(L, Dffn): l1 norm of each neuron's fc1 row and fc2 column."""
    return torch.stack([b.mlp.fc1.weight.abs().sum(1) + b.mlp.fc2.weight.abs().sum(0) for b in model.blocks]).detach()


def l1_value_dims(model: Any) -> Tensor:
    """(L, H, Dh): l1 norm of each value dimension's V row and output-projection column."""

    def of(attn: Any) -> Tensor:
        rows = attn.qkv.weight.chunk(3)[2].abs().sum(1)
        return (rows + attn.proj.weight.abs().sum(0)).view(attn.num_heads, attn.head_dim)

    return torch.stack([of(b.attn) for b in model.blocks]).detach()


def _first(order: Tensor, count: int) -> Tensor:
    chosen = torch.zeros(len(order), dtype=torch.bool)
    chosen[order[:count]] = True
    return chosen


def _top_up(dims: ledger.Dims, ranking: Ranking, chosen: Tensor, rest: Tensor, slack: int) -> Tensor:
    """Add the best remaining units that still fit; one of a head that is gone would bring the head back: not it."""
    price = ledger.true_prices(dims.tokens, dims.dim, dims.head_dim)
    n_dims = 0 if ranking.dims is None else ranking.dims.numel()
    for unit in rest.tolist():
        if slack < min(price.value_dim, price.neuron):
            break
        if unit < n_dims:
            head = unit // dims.head_dim * dims.head_dim
            if not chosen[head : head + dims.head_dim].any():
                continue
        unit_price = price.value_dim if unit < n_dims else price.neuron
        if unit_price <= slack:
            chosen[unit] = True
            slack -= unit_price
    return chosen


def _masks(dims: ledger.Dims, ranking: Ranking, chosen: Tensor) -> list[BlockMask]:
    n_dims = 0 if ranking.dims is None else ranking.dims.numel()
    shape = (dims.depth, dims.heads, dims.head_dim)
    value = torch.ones(shape, dtype=torch.bool) if ranking.dims is None else chosen[:n_dims].view(shape)
    neurons = torch.ones(dims.depth, dims.hidden, dtype=torch.bool)
    if ranking.neurons is not None:
        neurons = chosen[n_dims:].view(neurons.shape)
    return [BlockMask(heads=v.any(-1), dims=v, ffn=n.any(), neurons=n) for v, n in zip(value, neurons, strict=True)]
