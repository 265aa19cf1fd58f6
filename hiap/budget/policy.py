"""The decisions of a phase with a target, protected units, multiples or cuts on the way, as a policy of
``hiap.pruner``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from hiap import options, pruner
from hiap.budget.controller import Budget
from hiap.budget.latency import LatencyTable
from hiap.budget.options import GateConfig, PenaltyConfig
from hiap.budget.prices import latency_table
from hiap.budget.selection import (
    force_open,
    joint_ranking,
    keep_one_head,
    kept_units,
    protected,
    pruned_before,
    require_used,
    target_of,
    union,
)
from hiap.budget.summary import Summary, summary_of
from hiap.cost import dims_of
from hiap.gated_layers import BlockMask, gates_with_masks, masks
from hiap.gated_vit import harden_to, named_gates
from hiap.gates import CERTAIN, Gate
from hiap.options import ConfigError


class Policy(pruner.Policy):
    """Decisions that ``hiap.Pruner`` adds to the paper's rule; its arguments are explained there. ``zeros``: the
    network was pruned before, and units of zeros stand where some are gone."""

    def __init__(
        self,
        gated: Any,
        *,
        gates: options.GateConfig,
        penalty: PenaltyConfig,
        targets: Mapping[str, float | None],
        latency: LatencyTable | str | os.PathLike[str] | None,
        ramp: float,
        keep: Mapping[str, Any] | None,
        multiple: int | None,
        shrink: Any,
        zeros: bool,
    ):
        self.gone = close_zeros(gated) if zeros else None
        self.keep, self.stay = keep, protected(gated, keep or {})
        self.keep_head = isinstance(gates, GateConfig) and gates.keep_head
        require_used(latency, targets["target_latency"] is not None or penalty.ledger == "latency")
        table = latency or penalty.latency_table
        self.prices = latency_table(gated, table).prices if penalty.ledger == "latency" else None
        target = target_of(gated, **targets, latency=table, multiple=multiple)
        self.multiple = target.multiple if target else multiple or 1
        self.threshold: list[BlockMask] | None = None  # what the gates left, once ``harden`` has rounded it
        self.drawn = [one.offset.clone() for _, one in named_gates(gated)]  # before anything is decided
        self.decided = False
        self.budget = Budget(target, ramp, start=target.expected(gated)) if target else None
        if target:
            if gates.harden == "sample":
                raise ConfigError("gates.harden 'sample' draws what is kept; with a target it must be 'probability'")
            target.require_reachable(joint_ranking(gated, keep))
        self.shrink = shrink
        if shrink:
            shrink.begin(gated)

    def scale(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.budget is None:
            return terms
        return {name: self.budget.strength * term for name, term in terms.items()}

    def undecide(self, gated: Any) -> None:
        """Take back what ``harden`` decided, for a phase that goes on: it was to be looked at."""
        if self.decided:
            for (_, one), drawn in zip(named_gates(gated), self.drawn, strict=True):
                one.offset.copy_(drawn)
        self.decided, self.threshold = False, None

    def update(self, gated: Any, progress: float) -> None:
        if self.decided:
            self.undecide(gated)
        if self.keep:
            force_open(gated, self.stay)
        if self.shrink:
            self.shrink.hold(gated)
        if self.budget and progress < 1:
            self.budget.update(gated, progress)

    def harden(self, gated: Any) -> None:
        self.undecide(gated)
        self._require_same_sizes(gated)
        self.decided = True
        if self.budget or self.keep:
            harden_to(gated, self.kept(gated))
        if self.keep_head:
            keep_one_head(gated)
        if not self.budget and self.multiple > 1:
            self.threshold = masks(gated)
            harden_to(gated, self._rounded(gated))

    def _require_same_sizes(self, gated: Any) -> None:
        """Raise ``ConfigError`` if the network has other images or classes than that whose cost the target is a share
        of."""
        if not self.budget:
            return
        now, then = dims_of(gated), self.budget.target.dims
        for what, has, had in (
            ("tokens an image", now.tokens, then.tokens),
            ("classes", now.classes, then.classes),
        ):
            if has != had:
                raise ConfigError(
                    f"the target was made for {had} {what}, and the network has {has} now; undo that, or make a pruner "
                    "of the network as it is to be"
                )

    def kept(self, gated: Any) -> list[BlockMask]:
        """Return what stays, before a threshold's numbers are rounded to multiples."""
        return kept_units(gated, self.budget.target if self.budget else None, self.keep)

    def _rounded(self, gated: Any) -> list[BlockMask]:
        return kept_units(gated, None, self.keep, self.multiple)

    def summary(self, gated: Any) -> Summary:
        """Return sizes of what ``harden`` would leave, and of what a threshold leaves before it is rounded."""
        if self.budget or self.multiple == 1:
            return summary_of(gated, self.kept(gated), self.multiple)
        return summary_of(gated, self._rounded(gated), self.multiple, self.threshold or self.kept(gated))

    def free(self, gated: Any) -> Iterator[tuple[Gate, Tensor]]:
        """Return every gate with those of its units that nothing holds."""
        held = union(self.stay, self.shrink.gone()) if self.shrink else self.stay
        held = union(held, self.gone) if self.gone else held
        for one, stay in gates_with_masks(gated, held):
            yield one, ~stay.to(one.logit.device)

    def state_dict(self) -> dict[str, Any]:
        parts = {"budget": self.budget, "shrink": self.shrink}
        return {name: part.state_dict() for name, part in parts.items() if part}

    def load_state_dict(self, gated: Any, state: Mapping[str, Any]) -> None:
        """Continue where ``state`` was taken; with ``shrink``, ``gated`` takes its sizes."""
        if self.shrink:
            self.shrink.load_state_dict(gated, state["shrink"])
        if self.budget:
            self.budget.load_state_dict(state["budget"])
        self.decided = True  # perhaps: the gates' buffers, which come with the network, may be what ``harden`` left


@torch.no_grad()
def close_zeros(gated: Any) -> list[BlockMask]:
    """Close the gates of units that give nothing, for good; return which they are."""
    before = pruned_before(gated)
    assert before
    for one, closed in gates_with_masks(gated, list(before.gone)):
        one.logit.masked_fill_(closed.to(one.logit.device), -CERTAIN)
    return list(before.gone)
