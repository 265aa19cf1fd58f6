"""Which units stay: the highest-ranked ones that fit a target in MACs, parameters or predicted time.

Everything in this project that lands on a target does so here: HiAP with a budget and every baseline.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hiap import cost, ledger
from hiap.gated_vit import BlockMask, masks, stack_gates
from hiap.ledger import Prices
from hiap.options import ConfigError


@dataclass
class Ranking:
    """Keys by which units are kept, highest first, comparable across all units. A kind left None is not pruned.

    ``dims`` (L, H, Dh) value dimensions, a head goes with its last one; ``neurons`` (L, Dffn), an FFN goes with its
    last one. ``cut_qk``: a dimension takes its Q and K rows along. Of all units, dimensions first: ``tied``, those that
    a macro gate ranks, with all others of their head or FFN that it ranks, their own gates only order them; and
    ``stay``, those that are kept whatever their key."""

    dims: Tensor | None = None
    neurons: Tensor | None = None
    cut_qk: bool = False
    tied: Tensor | None = None
    stay: Tensor | None = None


@dataclass(frozen=True)
class Target:
    """At most ``amount`` of what ``prices`` count, of a network of these sizes; ``dense`` is what it has unpruned."""

    dims: ledger.Dims
    prices: Prices
    amount: int

    @property
    def dense(self) -> int:
        return self.prices.constant + ledger.dense_cost(self.dims, self.prices)

    def excess(self, gated: Any, progress: float, start: float | None = None) -> Tensor:
        """Expected minus wanted cost, as a share of dense. What is wanted falls linearly from ``start`` (dense) to the
        target as ``progress`` goes from 0 to 1."""
        first = self.dense if start is None else start
        wanted = first + min(1.0, progress) * (self.amount - first)
        return (cost.expected(gated, self.prices) - wanted) / self.dense

    @torch.no_grad()
    def expected(self, gated: Any) -> float:
        """What the gates expect it to cost."""
        return float(cost.expected(gated, self.prices))

    def keep_best(self, ranking: Ranking) -> list[BlockMask]:
        return keep_best(self.dims, ranking, self.amount, self.prices)

    def require_reachable(self, ranking: Ranking) -> None:
        require_reachable(self.dims, ranking, self.amount, self.prices)


def target_of(
    model: Any,
    target_macs: float | None = None,
    target_params: float | None = None,
    target_latency: float | None = None,
    latency: ledger.LatencyTable | str | os.PathLike[str] | None = None,
) -> Target | None:
    """What a dense or gated ViT is to be pruned to: at most so many MACs of an image, so many parameters, or so many
    microseconds of a batch as the table ``latency`` predicts them; a number below 1 is a share of the dense network's.
    Raises ``ConfigError`` for two at once, a number that is none, or a table that is not of this network."""
    given = {"target_macs": target_macs, "target_params": target_params, "target_latency": target_latency}
    chosen = {name: wanted for name, wanted in given.items() if wanted is not None}
    if not chosen:
        return None
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)}: set one of them")
    ((name, wanted),) = chosen.items()
    if not hasattr(wanted, "__float__") or not 0 < wanted < float("inf"):
        raise ConfigError(f"{name} {wanted!r}: expected a share of the dense network in (0, 1), or a number")
    dims = cost.dims_of(model)
    if name == "target_latency":
        prices, wanted = cost.latency_prices(model, latency), wanted if wanted < 1 else wanted * ledger.PICOSECONDS
    else:
        prices = ledger.mac_prices(dims) if name == "target_macs" else cost.param_prices(model)
    whole = Target(dims, prices, 0)
    return Target(dims, prices, ledger.amount(wanted, whole.dense))


def keep_best(dims: ledger.Dims, ranking: Ranking, target: int, prices: Prices | None = None) -> list[BlockMask]:
    """Masks that keep the highest-ranked units such that the extracted model costs at most ``target`` (MACs, unless
    ``prices`` count something else), and no further unit would fit. A head or FFN whose macro gate the threshold splits
    is closed, and units of open ones fill what is left; only if there are too few of them does it come back, as narrow
    as it must. The best value dimension stays whatever its rank: with no head at all the image would not reach the
    classifier. Raises ``ConfigError`` if the target is out of reach."""
    prices = prices or ledger.mac_prices(dims)
    require_reachable(dims, ranking, target, prices)
    order, fixed = _order(ranking)

    def left(chosen: Tensor) -> int:
        return cost.kept_cost(prices, _masks(dims, ranking, chosen), dims.head_dim, ranking.cut_qk)

    low, high = fixed, len(order)  # the longest prefix of the order that fits
    while low < high:
        middle = (low + high + 1) // 2
        fits = left(_first(order, middle)) <= target
        low, high = (middle, high) if fits else (low, middle - 1)
    chosen = _without_split(_groups(dims, ranking), _first(order, low), ranking.tied, order[:fixed])
    for gone_too in (False, True):
        chosen = _top_up(dims, ranking, prices, chosen, order, target - left(chosen), gone_too)
    return _masks(dims, ranking, chosen)


def require_reachable(dims: ledger.Dims, ranking: Ranking, target: int, prices: Prices | None = None) -> None:
    """Raise ``ConfigError`` with the reachable range if removing every unit that ``ranking`` ranks is not enough."""
    prices = prices or ledger.mac_prices(dims)
    least = cost.kept_cost(prices, _masks(dims, ranking, _first(*_order(ranking))), dims.head_dim, ranking.cut_qk)
    if least > target:
        most = prices.constant + ledger.dense_cost(dims, prices)
        raise ConfigError(
            f"a target of {target / 1e6:.2f} {prices.million} cannot be reached by removing these units; "
            f"reachable: {least / 1e6:.2f} to {most / 1e6:.2f} {prices.million.split()[0]}"
        )


def joint_ranking(gated: Any, keep: Mapping[str, Any] | None = None) -> Ranking:
    """A unit's key is the smaller of its own logit and that of the head or FFN it belongs to: what a threshold common
    to all gates keeps. Units that a macro gate ties are ordered by their own logit. ``keep``: see ``protected``."""
    g, d, b, c = stack_gates(gated, lambda gate: gate.logit.detach().cpu())
    g, b = g[..., None], b[:, None]
    own = torch.cat([d.flatten(), c.flatten()])
    joint = torch.cat([torch.minimum(g, d).flatten(), torch.minimum(b, c).flatten()])
    order = own.argsort(stable=True)
    order = order[joint[order].argsort(stable=True)]
    keys = torch.empty(len(order))
    keys[order] = torch.arange(len(order), dtype=keys.dtype)
    masks = protected(gated, keep or {})
    stay = [torch.stack([getattr(mask, part) for mask in masks]).flatten() for part in ("dims", "neurons")]
    return Ranking(
        dims=keys[: d.numel()].view_as(d),
        neurons=keys[d.numel() :].view_as(c),
        cut_qk=gated.blocks[0].attn.cuts_qk,
        tied=torch.cat([(d >= g).flatten(), (c >= b).flatten()]),
        stay=torch.cat(stay),
    )


def protected(gated: Any, keep: Mapping[str, Any]) -> list[BlockMask]:
    """Units that must stay. ``keep`` maps 'blocks.<i>.attn' to head numbers or True (all of them, with all dimensions),
    'blocks.<i>.mlp' to neuron numbers or True, 'blocks.<i>' to True. Raises ``ConfigError`` for anything else."""
    stay = [BlockMask(*(torch.zeros_like(t, device="cpu") for t in vars(mask).values())) for mask in masks(gated)]
    for name, units in keep.items():
        found = re.fullmatch(r"blocks\.(\d+)(?:\.(attn|mlp))?", name)
        if not found or int(found[1]) >= len(stay) or (not found[2] and units is not True):
            raise ConfigError(
                f"keep {name!r}: expected 'blocks.<i>.attn', '.mlp' or, with True, 'blocks.<i>', i < {len(stay)}"
            )
        mask = stay[int(found[1])]
        try:
            chosen = slice(None) if units is True else sorted(units)
            if found[2] != "mlp":
                mask.heads[chosen] = True
                mask.dims[chosen] = True
            if found[2] != "attn":
                mask.neurons[chosen] = True
                mask.ffn |= mask.neurons.any()
        except (IndexError, TypeError):
            raise ConfigError(f"keep {name!r}: {units!r} are not numbers of its heads or neurons") from None
    return stay


def open_also(kept: list[BlockMask], stay: list[BlockMask]) -> list[BlockMask]:
    """The units of both."""
    return [
        BlockMask(*(a | b.to(a.device) for a, b in zip(vars(one).values(), vars(two).values(), strict=True)))
        for one, two in zip(kept, stay, strict=True)
    ]


def _order(ranking: Ranking) -> tuple[Tensor, int]:
    """Positions of all units, dimensions before neurons, highest key first, and how many of the first stay whatever the
    target: those of ``ranking.stay``, and the best dimension."""
    kinds = [t.detach().flatten().cpu() for t in (ranking.dims, ranking.neurons) if t is not None]
    keys = torch.cat(kinds)
    stay = torch.zeros(len(keys), dtype=torch.bool) if ranking.stay is None else ranking.stay.clone()
    if ranking.dims is not None and not stay[: len(kinds[0])].any():
        stay[kinds[0].argmax()] = True
    return keys.masked_fill(stay, torch.inf).argsort(descending=True, stable=True), int(stay.sum())


def _first(order: Tensor, count: int) -> Tensor:
    chosen = torch.zeros(len(order), dtype=torch.bool)
    chosen[order[:count]] = True
    return chosen


def _groups(dims: ledger.Dims, ranking: Ranking) -> Tensor:
    """Which head (numbered from 0) or FFN (after the heads) each unit belongs to."""
    heads = torch.arange(dims.depth * dims.heads).repeat_interleave(dims.head_dim)
    ffns = torch.arange(dims.depth).repeat_interleave(dims.hidden) + dims.depth * dims.heads
    return torch.cat([heads] * (ranking.dims is not None) + [ffns] * (ranking.neurons is not None))


def _without_split(groups: Tensor, chosen: Tensor, tied: Tensor | None, stay: Tensor) -> Tensor:
    """``chosen`` without the heads and FFNs of which some tied units are chosen and others are not: a threshold common
    to all gates does not cut through one gate. The groups of the units ``stay`` stay."""
    if tied is None:
        return chosen
    split = set(groups[tied & chosen].tolist()) & set(groups[tied & ~chosen].tolist()) - set(groups[stay].tolist())
    return chosen & ~torch.isin(groups, torch.tensor(sorted(split), dtype=groups.dtype))


def _top_up(
    dims: ledger.Dims, ranking: Ranking, prices: Prices, chosen: Tensor, order: Tensor, slack: int, gone_too: bool
) -> Tensor:
    """Add the best remaining units that still fit; of heads and FFNs that are gone only if ``gone_too``, and then the
    first dimension of a head pays for its Q and K as well, and the first of a layer for what the layer has once."""
    dim = prices.value_dim + (prices.head // dims.head_dim if ranking.cut_qk else 0)
    cheapest = min([dim] * (ranking.dims is not None) + [prices.neuron] * (ranking.neurons is not None))
    groups, heads = _groups(dims, ranking), dims.depth * dims.heads
    alive = set(groups[chosen].tolist())
    layers = {group // dims.heads for group in alive if group < heads}  # with attention
    for unit in order[~chosen[order]].tolist():
        if slack < cheapest:
            break
        group = int(groups[unit])
        if group not in alive and not gone_too:
            continue
        price = prices.neuron if group >= heads else dim
        if group not in alive:
            if group >= heads:
                price += prices.ffn
            else:
                price += 0 if ranking.cut_qk else prices.head
                price += 0 if group // dims.heads in layers else prices.attention
        if price <= slack:
            chosen[unit] = True
            alive.add(group)
            if group < heads:
                layers.add(group // dims.heads)
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
