"""The strength of the penalty for a target, found while training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hiap.budget.selection import Target


class Multipliers:
    """Dual variables of a constraint on cost, and how much of the run they have seen."""

    def __init__(self, count: int):
        self.value, self.progress = torch.zeros(count), torch.zeros(())

    @torch.no_grad()
    def ascend(self, violation: Tensor, progress: float, rate: float) -> None:
        """Take a step of gradient ascent: ``rate`` times the share of the run that went by times ``violation``
        (count,), so that a run ten times longer takes steps a tenth as large."""
        self.to(violation.device)
        self.value += rate * (progress - self.progress) * violation
        self.progress.fill_(progress)

    def to(self, device: torch.device) -> None:
        self.value, self.progress = self.value.to(device), self.progress.to(device)

    def state_dict(self) -> dict[str, Tensor]:
        return {"value": self.value, "progress": self.progress}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.value, self.progress = state["value"].clone(), state["progress"].clone()


class Budget:
    """Controller that brings the single phase to its target: ours, not the paper's. A small expected cost does not make
    the hardened network small (Proposition 2 holds only as gates turn certain), so the strength is found and the end is
    exact.

    The penalties of Eq. 7 are multiplied by one ``strength``, whose logarithm follows the excess of the expected cost;
    the ratio of macro to micro stays as set. The wanted cost falls from ``start``, what the gates expect at first, to
    the target over a share ``ramp`` of the phase, linearly. (From dense, as in CoFi, it would first lie above gates
    that start near the threshold, and what adds up meanwhile would hold the price down when it is needed.) At the end
    the threshold of 1/2 moves, alike for all gates, to where the extracted network fits; a unit below it may fill what
    is left.
    """

    # log(strength) = RATE * (integral of the excess over the run) + DAMP * excess. The second term, of an augmented
    # Lagrangian, lets go as soon as the target is passed: saturated gates hardly come back. Both set by how closely the
    # expected MACs follow, not by accuracy.
    RATE = 100.0
    DAMP = 50.0
    # Bounds of log(strength), a factor of 10,000. While gates are still on their way to the threshold the excess only
    # adds up; an integral at its bound says so, and starts again from 0 as soon as the excess changes its sign.
    LIMIT = math.log(1e4)

    def __init__(self, target: Target, ramp: float, start: float):
        self.target, self.ramp, self.start = target, ramp, start
        self.dual, self.strength = Multipliers(1), torch.ones(())

    @torch.no_grad()
    def update(self, gated: Any, progress: float) -> None:
        """Set the strength for the step at ``progress`` in [0, 1)."""
        excess, dual = self.target.excess(gated, progress / self.ramp, self.start), self.dual
        dual.to(excess.device)
        wound_up = (dual.value.abs() >= self.LIMIT) & (dual.value * excess < 0)
        dual.value.masked_fill_(wound_up, 0.0)
        dual.ascend(excess, progress, self.RATE)
        dual.value.clamp_(-self.LIMIT, self.LIMIT)
        self.strength = (dual.value + self.DAMP * excess).clamp(-self.LIMIT, self.LIMIT).exp().squeeze()

    def state_dict(self) -> dict[str, Tensor]:
        return {**self.dual.state_dict(), "strength": self.strength}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.dual.load_state_dict(state)
        self.strength = state["strength"].clone()
