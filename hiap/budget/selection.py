"""Which units stay: the highest-ranked ones that fit a target in MACs, parameters or predicted time.

Everything in this project that lands on a target does so here: HiAP with a budget and every baseline.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hiap import cost, ledger
from hiap.backbones.evening import Given
from hiap.backbones.sharded import write
from hiap.budget import sizes
from hiap.budget.latency import PICOSECONDS, LatencyTable
from hiap.budget.prices import kept_cost, latency_table, million, param_prices
from hiap.gated_layers import BlockMask, gates_with_masks, masks, stack_gates
from hiap.gated_vit import harden_to
from hiap.gates import CERTAIN
from hiap.ledger import Prices
from hiap.options import ConfigError

MULTIPLE = 16  # what matrix kernels run well: vector registers and matrix units take 8 or 16 numbers at a time
COARSEST = 1 / 400  # of dense: what so many units may cost, so that a cut still lands near its target


@dataclass
class Ranking:
    """Keys by which units are kept, highest first, comparable across all units. A kind left None is not pruned.

    ``dims`` (L, H, Dh): value dimensions; a head goes with its last one. ``neurons`` (L, Dffn): an FFN goes with its
    last one. ``cut_qk``: a dimension takes its Q and K rows along. Booleans (units,), dimensions before neurons:
    ``tied`` marks units whose key is their head's or FFN's gate, so that a threshold takes all of these in a head or
    FFN or none, and their own gates only order them; ``stay`` marks units that are kept whatever their key."""

    dims: Tensor | None = None
    neurons: Tensor | None = None
    cut_qk: bool = False
    tied: Tensor | None = None
    stay: Tensor | None = None


@dataclass(frozen=True)
class Target:
    """Target of a cut: at most ``amount`` of what ``prices`` count, of a network of sizes ``dims``, cut in multiples of
    ``multiple`` units; ``dense`` is what the network has unpruned. Of one that was pruned before: ``gone``, what is
    zeros, and ``qk_left`` as in ``kept_cost``."""

    dims: ledger.Dims
    prices: Prices
    amount: int
    multiple: int = 1
    gone: tuple[BlockMask, ...] = field(default=(), compare=False)
    qk_left: Sequence[Sequence[int]] = field(default=(), compare=False)

    @property
    def dense(self) -> int:
        """Return what the network has unpruned."""
        return self.prices.constant + ledger.dense_cost(self.dims, self.prices)

    @property
    def first(self) -> int:
        """Return what the network has to begin with: ``dense``, without what a cut before has left zeros of."""
        return self.cost_of(_there(self.gone)) if self.gone else self.dense

    def excess(self, gated: Any, progress: float, start: float | None = None) -> Tensor:
        """Return expected minus wanted cost, as a share of dense. What is wanted falls linearly from ``start`` (what
        the network has) to the target as ``progress`` goes from 0 to 1."""
        first = self.first if start is None else start
        wanted = first + min(1.0, progress) * (self.amount - first)
        return (cost.expected(gated, self.prices) - wanted) / self.dense

    @torch.no_grad()
    def expected(self, gated: Any) -> float:
        """Return what the gates expect it to cost."""
        return float(cost.expected(gated, self.prices))

    def cost_of(self, kept: list[BlockMask], cut_qk: bool = False) -> int:
        """Return what extraction by these masks leaves."""
        return kept_cost(self.prices, kept, self.dims.head_dim, cut_qk, self.qk_left)

    def keep_best(self, ranking: Ranking) -> list[BlockMask]:
        """Return masks that keep the highest-ranked units such that the extracted model costs at most ``amount``, and
        no further unit would fit. A head or FFN whose macro gate the threshold splits is closed, and units of open ones
        fill what is left; only if there are too few of them does it come back, as narrow as it must. The best value
        dimension stays whatever its rank: with no head at all the image would not reach the classifier. Each head and
        FFN keeps its best units, a ``multiple`` of them, or all or none, as near as possible to what the threshold
        leaves. What is ``gone`` goes, but for the constant of an FFN that is gone as a whole, which costs nothing.
        Raises ``ConfigError`` if the target is out of reach."""
        portions = _portions(self.dims, ranking, self.multiple)
        self._require_reachable(ranking, portions)

        def left(chosen: Tensor) -> int:
            return self.cost_of(_masks(self.dims, ranking, chosen[portions.of]), ranking.cut_qk)

        low, high = portions.fixed, len(portions.order)  # the longest prefix of the order that fits
        while low < high:
            middle = (low + high + 1) // 2
            fits = left(portions.first(middle)) <= self.amount
            low, high = (middle, high) if fits else (low, middle - 1)
        chosen = _without_split(portions, portions.first(low))
        for gone_too in (False, True):
            chosen = self._top_up(ranking, portions, chosen, self.amount - left(chosen), gone_too)
        kept = _masks(self.dims, ranking, chosen[portions.of])
        if not self.gone:
            return kept
        return [
            replace(mask, ffn=mask.neurons.any() | constant)
            for mask, constant in zip(drop_zeros(kept, self.gone), constants(self.gone), strict=True)
        ]

    def require_reachable(self, ranking: Ranking) -> None:
        """Raise ``ConfigError`` with the reachable range if removing every unit that ``ranking`` ranks is not
        enough."""
        self._require_reachable(ranking, _portions(self.dims, ranking, self.multiple))

    def _require_reachable(self, ranking: Ranking, portions: _Portions) -> None:
        target, most, name = self.amount, self.dense, million(self.prices)
        least = self.cost_of(_masks(self.dims, ranking, portions.first(portions.fixed)[portions.of]), ranking.cut_qk)
        if target > most:
            raise _above(target, most, name)
        if least > target:
            meant = f"; did you mean {target / 100:g}, a share?" if 1 < target <= 100 else ""
            meant = meant or ("; a share is less than 1" if target == 1 else "")
            wanted = f"{target / 1e6:.2f} {name}" if target >= 1e4 else f"{target:g} {self.prices.unit}"
            raise ConfigError(
                f"a target of {wanted} cannot be reached by removing these units; "
                f"reachable: {least / 1e6:.2f} to {most / 1e6:.2f} {name.split()[0]}{meant}"
            )

    def _top_up(self, ranking: Ranking, portions: _Portions, chosen: Tensor, slack: int, gone_too: bool) -> Tensor:
        """Add the best remaining portions that still fit; of heads and FFNs that are gone only if ``gone_too``, and
        then the first of a head pays for its Q and K as well, and the first of a layer for what the layer has once."""
        dims, prices = self.dims, self.prices
        groups, heads = portions.group, dims.depth * dims.heads
        qk = _qk_prices(self, ranking.cut_qk)
        dim = prices.value_dim + (prices.head // dims.head_dim if ranking.cut_qk else 0)
        price_of = portions.size * torch.where(groups < heads, dim, prices.neuron)
        cheapest = int(price_of.min())
        alive = set(groups[chosen].tolist())
        layers = {group // dims.heads for group in alive if group < heads}  # with attention
        for portion in portions.order[~chosen[portions.order]].tolist():
            if slack < cheapest:
                break
            group = int(groups[portion])
            if group not in alive and not gone_too:
                continue
            price = int(price_of[portion])
            if group not in alive:
                if group >= heads:
                    price += prices.ffn
                else:
                    price += qk[group]
                    price += 0 if group // dims.heads in layers else prices.attention
            if price <= slack:
                chosen[portion] = True
                alive.add(group)
                if group < heads:
                    layers.add(group // dims.heads)
                slack -= price
        return chosen


def target_of(
    model: Any,
    target_macs: float | None = None,
    target_params: float | None = None,
    target_latency: float | None = None,
    latency: LatencyTable | str | os.PathLike[str] | None = None,
    multiple: int | None = 1,
) -> Target | None:
    """Return the target of a dense or gated ViT, None if none is set: at most so many MACs of an image, so many
    parameters, or so many microseconds of a batch as the table ``latency`` predicts them; a number below 1 is a share
    of the dense network's. ``multiple`` None is ``fitting_multiple``. Raises ``ConfigError`` for two at once, a number
    that is none, or a table that is not of this network."""
    if multiple is not None and (not hasattr(multiple, "__index__") or multiple < 1):
        raise ConfigError(f"multiple {multiple!r}: expected a number of units, 1 or more")
    given = {"target_macs": target_macs, "target_params": target_params, "target_latency": target_latency}
    chosen = {name: wanted for name, wanted in given.items() if wanted is not None}
    if not chosen:
        return None
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)}: set one of them")
    ((name, wanted),) = chosen.items()
    if not hasattr(wanted, "__float__") or not 0 < wanted < float("inf"):
        raise ConfigError(f"{name} {wanted!r}: expected a share of the dense network in (0, 1), or a number")
    wanted = wanted if isinstance(wanted, int) else float(wanted)  # of a tensor, say
    dims, before = cost.dims_of(model), pruned_before(model)
    if name == "target_latency":
        prices = latency_table(model, latency).prices
        wanted = wanted if wanted < 1 else wanted * PICOSECONDS
    else:
        prices = ledger.mac_prices(dims) if name == "target_macs" else param_prices(model)
    whole = Target(dims, prices, 0)
    if before:
        whole = replace(whole, gone=before.gone, qk_left=before.qk_left)
        if name == "target_params":
            constant = prices.constant + dims.dim * sum(constants(before.gone))
            whole = replace(whole, prices=replace(prices, constant=constant))
        known = {"target_macs": before.macs, "target_params": before.params}
        if wanted < 1:
            wanted = round(wanted * known.get(name, whole.cost_of(_there(before.gone))))
        elif wanted > known.get(name, wanted):  # what the network is filled up with for the gates is not there
            raise _above(round(wanted), known[name], million(prices))
    if multiple is None:
        multiple = fitting_multiple(whole, getattr(model.blocks[0].attn, "cuts_qk", False))
    return replace(whole, amount=sizes.amount(wanted, whole.dense), multiple=multiple)


def _above(wanted: int, there: int, name: str) -> ConfigError:
    text = f"a target of {wanted / 1e6:.2f} {name} is above the {there / 1e6:.2f} of this network"
    return ConfigError(f"{text}; expected less, or a share in (0, 1)")


def require_used(latency: object, used: bool) -> None:
    """Raise ``ConfigError`` if a table of times is given that nothing would ask."""
    if latency is not None and not used:
        raise ConfigError("latency: a table of times is for target_latency, which is not set")


def fitting_multiple(target: Target, cut_qk: bool = False) -> int:
    """Return how many units go at a time where a network is made for use: the largest power of two up to ``MULTIPLE``
    of which so many neurons, and so many value dimensions (``cut_qk``: with their Q and K), cost at most ``COARSEST``
    of dense. That is 16 from DeiT-Tiny upwards and 1 where a network has a few hundred neurons in all."""
    prices = target.prices
    unit = max(prices.neuron, prices.value_dim + (prices.head // target.dims.head_dim if cut_qk else 0))
    multiple = MULTIPLE
    while multiple > 1 and multiple * unit > COARSEST * target.dense:
        multiple //= 2
    return multiple


def kept_units(
    gated: Any, target: Target | None = None, keep: Mapping[str, Any] | None = None, multiple: int = 1
) -> list[BlockMask]:
    """Return what stays of a gated model: with a target, the units above the one threshold, common to all logits, that
    meets it; without, its hardened gates, rounded to the nearest ``multiple``. Units of ``keep`` stay in any case, what
    was gone before does not."""
    if target:
        return drop_removed(gated, target.keep_best(joint_ranking(gated, keep)))
    kept = union(masks(gated), protected(gated, keep)) if keep else masks(gated)
    kept, before = drop_removed(gated, rounded(gated, kept, multiple, keep)), pruned_before(gated)
    return drop_zeros(kept, before.gone) if before else kept


def rounded(gated: Any, kept: list[BlockMask], multiple: int, keep: Mapping[str, Any] | None = None) -> list[BlockMask]:
    """Return ``kept`` with the nearest ``multiple`` of units, or all of them, in each head and FFN that is open: its
    best of those that are open, then of those that are closed. Half a multiple is rounded up; fewer units than that go,
    unless ``keep`` has one of them or no head were left at all. Macro gates stay as they are."""
    if multiple == 1:
        return kept
    ranking = joint_ranking(gated, keep)
    assert ranking.dims is not None
    assert ranking.neurons is not None
    stay = ranking.stay
    assert stay is not None
    dims = torch.stack([m.dims & m.heads[:, None] for m in kept]).cpu()
    neurons = torch.stack([m.neurons & m.ffn for m in kept]).cpu()
    opened, count = torch.cat([dims.flatten(), neurons.flatten()]), len(stay)
    by_dims, by_neurons = ranking.dims + count * dims, ranking.neurons + count * neurons
    ranking = replace(ranking, dims=by_dims, neurons=by_neurons)
    portions = _portions(cost.dims_of(gated), ranking, multiple)
    chosen = 2 * portions.of[opened].bincount(minlength=len(portions.size)) >= portions.size
    chosen[portions.of[stay]] = True
    if dims.any() and not chosen[portions.of[: dims.numel()]].any():
        chosen[portions.of[by_dims.argmax()]] = True
    found = _masks(cost.dims_of(gated), ranking, chosen[portions.of])
    return [
        BlockMask(old.heads.cpu(), new.dims, old.ffn.cpu(), new.neurons) for old, new in zip(kept, found, strict=True)
    ]


def joint_ranking(gated: Any, keep: Mapping[str, Any] | None = None) -> Ranking:
    """Rank units as a threshold common to all gates keeps them: a key is the smaller of a unit's own logit and that of
    its head or FFN. Units that a macro gate ties are ordered by their own logit. ``keep``: see ``protected``."""
    g, d, b, c = stack_gates(gated, lambda gate: gate.alpha.detach().cpu())
    g, b = g[..., None], b[:, None]
    own = torch.cat([d.flatten(), c.flatten()])
    joint = torch.cat([torch.minimum(g, d).flatten(), torch.minimum(b, c).flatten()])
    order = own.argsort(stable=True)
    order = order[joint[order].argsort(stable=True)]
    keys = torch.empty(len(order), dtype=torch.float64)
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
    """Return the units that must stay. ``keep`` maps 'blocks.<i>.attn' to head numbers or True (all of them, with all
    dimensions), 'blocks.<i>.mlp' to neuron numbers or True, 'blocks.<i>' to True. Raises ``ConfigError`` for anything
    else."""
    if not isinstance(keep, Mapping):
        raise ConfigError(
            f"keep {keep!r}: expected a mapping, {{'blocks.0.attn': [0, 2], 'blocks.5': True}} for example"
        )
    stay = [mask.map(partial(torch.zeros_like, device="cpu")) for mask in masks(gated)]
    for name, units in keep.items():
        found = re.fullmatch(r"blocks\.(\d+)(?:\.(attn|mlp))?", name)
        if not found or int(found[1]) >= len(stay) or (not found[2] and units is not True):
            raise ConfigError(
                f"keep {name!r}: expected 'blocks.<i>.attn', '.mlp' or, with True, 'blocks.<i>', i < {len(stay)}"
            )
        mask = stay[int(found[1])]
        try:
            chosen = slice(None) if units is True else [_number(unit) for unit in units]
            if found[2] != "mlp":
                mask.heads[chosen] = True
                mask.dims[chosen] = True
            if found[2] != "attn":
                mask.neurons[chosen] = True
                mask.ffn |= mask.neurons.any()
        except (IndexError, TypeError):
            raise ConfigError(f"keep {name!r}: {units!r} are not numbers of its heads or neurons") from None
    if before := pruned_before(gated):  # what is gone cannot be kept
        stay = [replace(one, ffn=one.neurons.any()) for one in drop_zeros(stay, before.gone)]
    return stay


def _number(unit: Any) -> int:
    """Return the number of a unit. Raises ``TypeError`` for what is none, as the entries of a mask, and ``IndexError``
    for one below 0."""
    if isinstance(unit, bool) or "bool" in str(getattr(unit, "dtype", "")):
        raise TypeError
    if (number := operator.index(unit)) < 0:
        raise IndexError
    return number


def drop_removed(gated: Any, kept: list[BlockMask]) -> list[BlockMask]:
    """Return ``kept`` without the units whose weights are gone. A head or FFN without units keeps its gate, which may
    hold an output bias open (A9)."""
    there = []
    for block, mask in zip(gated.blocks, kept, strict=True):
        attn, mlp = block.attn, block.mlp
        heads, neurons = present(attn.left, mask.heads), present(mlp.left, mask.neurons)
        there.append(
            BlockMask(
                heads=mask.heads & (heads | attn.head_gate.hardened().to(heads.device)),
                dims=mask.dims & heads[:, None],
                ffn=mask.ffn & (neurons.any() | mlp.block_gate.hardened().squeeze().to(neurons.device)),
                neurons=mask.neurons & neurons,
            )
        )
    return there


def present(left: Tensor | None, like: Tensor) -> Tensor:
    """Return Booleans (K,) as ``like``: the units whose weights are there, by ``GatedAttention.left`` or
    ``GatedMlp.left``."""
    if left is None:
        return torch.ones_like(like)
    return torch.zeros_like(like).index_fill(0, left.to(like.device), True)


@torch.no_grad()
def force_open(gated: Any, stay: list[BlockMask]) -> None:
    """Open the gates of these units in every sample; the others are left as they are."""
    for g, mask in gates_with_masks(gated, stay):
        write(g.logit, g.alpha.masked_fill(mask.to(g.logit.device), CERTAIN))


def keep_one_head(gated: Any) -> None:
    """Harden, if no head is left, to the one with the largest logit, with the dimensions of it that are open (its best
    one, if none is)."""
    kept = masks(gated)
    if any(bool((m.heads & m.dims.any(-1)).any()) for m in kept):
        return
    logits = stack_gates(gated, lambda gate: gate.alpha.detach())[0]
    block, head = divmod(int(logits.argmax()), logits.shape[1])
    kept[block].heads[head] = True
    if not kept[block].dims[head].any():
        kept[block].dims[head, gated.blocks[block].attn.value_gate.alpha[head].argmax()] = True
    harden_to(gated, kept)


def union(kept: list[BlockMask], stay: list[BlockMask]) -> list[BlockMask]:
    """Return the units of both."""
    return [one.map(lambda a, b: a | b.to(a.device), two) for one, two in zip(kept, stay, strict=True)]


def pruned_before(model: Any) -> Given | None:
    """Return what a network had that was pruned before and evened; None for any other."""
    before: Given | None = getattr(model, "given", None)
    if before and not before.gone:
        before.gone = zero_units(model)
    return before


@torch.no_grad()
def zero_units(model: Any) -> tuple[BlockMask, ...]:
    """Return the heads, value dimensions and neurons that give nothing in a network that was made even (gated or
    not); and the FFNs that have not left a constant either."""
    gone = []
    for block in model.blocks:
        attn, mlp = block.attn, block.mlp
        dims = (attn.proj.weight == 0).all(0).view(attn.num_heads, attn.head_dim)
        neurons = (mlp.fc2.weight == 0).all(0)
        nothing = neurons.all() & (mlp.fc2.bias is None or (mlp.fc2.bias == 0).all())
        gone.append(BlockMask(heads=dims.all(-1), dims=dims, ffn=nothing, neurons=neurons))
    return tuple(gone)


def constants(gone: Sequence[BlockMask]) -> list[bool]:
    """Tell of each block whether its FFN is gone but for a constant, which costs no MACs."""
    return [bool(zero.neurons.all() & ~zero.ffn) for zero in gone]


def _there(gone: Sequence[BlockMask]) -> list[BlockMask]:
    """Return what is not ``gone``."""
    return [BlockMask(~zero.heads, ~zero.dims, torch.ones_like(zero.ffn), ~zero.neurons) for zero in gone]


def drop_zeros(kept: list[BlockMask], gone: Sequence[BlockMask]) -> list[BlockMask]:
    """Return ``kept`` without units that are ``gone``: they may fill what is left of a target, and give nothing."""
    pairs = [(mask, mask.dims & ~zero.dims.to(mask.dims.device), zero) for mask, zero in zip(kept, gone, strict=True)]
    return [
        BlockMask(mask.heads & dims.any(-1), dims, mask.ffn, mask.neurons & ~zero.neurons.to(dims.device))
        for mask, dims, zero in pairs
    ]


@dataclass
class _Portions:
    """Units that stay or go as one: so many units of a head or FFN as it keeps a multiple of, neighbours in its
    ranking; the last portion of each has what is left over as well. ``of`` (units,): which one a unit is in. Of each
    portion: ``group``, the head (numbered from 0) or FFN (after the heads) that it belongs to, ``size`` and ``tied``.
    ``order``: best first, by their middle units, so that a threshold within a portion falls to the nearer side; the
    first ``fixed`` of them stay whatever the target: those of ``ranking.stay``, and the best dimension's."""

    of: Tensor
    group: Tensor
    size: Tensor
    tied: Tensor | None
    order: Tensor
    fixed: int

    def first(self, count: int) -> Tensor:
        """Return which ones are the best so many."""
        chosen = torch.zeros(len(self.order), dtype=torch.bool)
        chosen[self.order[:count]] = True
        return chosen


def _portions(dims: ledger.Dims, ranking: Ranking, multiple: int) -> _Portions:
    kinds = [t.detach().flatten().cpu() for t in (ranking.dims, ranking.neurons) if t is not None]
    keys, groups = torch.cat(kinds), _groups(dims, ranking)
    stay = torch.zeros(len(keys), dtype=torch.bool) if ranking.stay is None else ranking.stay.clone()
    if ranking.dims is not None and not stay[: len(kinds[0])].any():
        stay[kinds[0].argmax()] = True
    keys = keys.masked_fill(stay, torch.inf)
    best = keys.argsort(descending=True, stable=True)
    best = best[groups[best].argsort(stable=True)]  # group by group, the best of each first
    group, units = groups[best], groups.bincount()
    rank = torch.arange(len(best)) - (units.cumsum(0) - units)[group]
    number = torch.minimum(rank // multiple, (units // multiple - 1).clamp(min=0)[group])
    _, inverse, size = torch.unique_consecutive(group * len(best) + number, return_inverse=True, return_counts=True)
    start = size.cumsum(0) - size
    first, middle = best[start], best[start + (size - 1) // 2]
    ordered = keys[middle].masked_fill(stay[first], torch.inf)
    return _Portions(
        of=torch.empty_like(best).scatter(0, best, inverse),
        group=groups[first],
        size=size,
        tied=None if ranking.tied is None else ranking.tied[middle],
        order=ordered.argsort(descending=True, stable=True),
        fixed=int(stay[first].sum()),
    )


def _groups(dims: ledger.Dims, ranking: Ranking) -> Tensor:
    """Return which head (numbered from 0) or FFN (after the heads) each unit belongs to."""
    heads = torch.arange(dims.depth * dims.heads).repeat_interleave(dims.head_dim)
    ffns = torch.arange(dims.depth).repeat_interleave(dims.hidden) + dims.depth * dims.heads
    return torch.cat([heads] * (ranking.dims is not None) + [ffns] * (ranking.neurons is not None))


def _without_split(portions: _Portions, chosen: Tensor) -> Tensor:
    """Return ``chosen`` without the heads and FFNs of which some tied units are chosen and others are not: a threshold
    common to all gates does not cut through one gate. The groups of the units that are ``fixed`` stay."""
    group, tied = portions.group, portions.tied
    if tied is None:
        return chosen
    fixed = set(group[portions.order[: portions.fixed]].tolist())
    split = set(group[tied & chosen].tolist()) & set(group[tied & ~chosen].tolist()) - fixed
    return chosen & ~torch.isin(group, torch.tensor(sorted(split), dtype=group.dtype))


def _qk_prices(target: Target, cut_qk: bool) -> list[int]:
    """Return what Q and K of each head cost beside its value dimensions, head by head."""
    heads, dims = target.dims.depth * target.dims.heads, target.dims
    if cut_qk:
        return [0] * heads
    if not target.qk_left:
        return [target.prices.head] * heads
    row = target.prices.head // dims.head_dim
    return [target.prices.head - row * (dims.head_dim - max(1, own)) for layer in target.qk_left for own in layer]


def _masks(dims: ledger.Dims, ranking: Ranking, chosen: Tensor) -> list[BlockMask]:
    value, n_dims = torch.ones(dims.depth, dims.heads, dims.head_dim, dtype=torch.bool), 0
    if ranking.dims is not None:
        n_dims = ranking.dims.numel()
        value = chosen[:n_dims].view(value.shape)
    neurons = torch.ones(dims.depth, dims.hidden, dtype=torch.bool)
    if ranking.neurons is not None:
        neurons = chosen[n_dims:].view(neurons.shape)
    return [BlockMask(heads=v.any(-1), dims=v, ffn=n.any(), neurons=n) for v, n in zip(value, neurons, strict=True)]
