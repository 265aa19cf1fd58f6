"""What the callbacks of all trainers share: refuse before the first step what cannot end well, and say at the end what
came out."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from hiap.budget.pruner import Pruner
from hiap.gated_vit import named_gates
from hiap.pruner import PrunerError


class Follower:
    """Base of the callbacks: leaves the smaller network in ``small`` when the pruner's steps are done; until then it is
    None."""

    def __init__(self, pruner: Pruner):
        if pruner.shrink:
            raise PrunerError("PrunerCallback: the trainer's optimiser cannot follow a pruner with shrink")
        self.pruner = pruner
        self.small: Any = None

    def begin(self, optimizers: Iterable[Any], steps: float | None) -> Any:
        """Check the loop before it starts, of so many optimiser steps (None: unknown). Return the optimiser that moves
        the gates, None where the trainer's keep parameters of their own. Raises ``PrunerError`` (one line) if all steps
        are done, if the loop has more than are left, or if no optimiser has the gates."""
        left, all_steps = self.pruner.steps - self.pruner.done, self.pruner.steps
        if not left:
            raise PrunerError(
                f"PrunerCallback: all {all_steps} steps are done; train callback.small on, or make a new pruner"
            )
        if steps is not None and steps > left:
            raise PrunerError(
                f"PrunerCallback: the loop has {steps:g} optimiser steps, the pruner {left} left of {all_steps}; make "
                f"it with steps={self.pruner.done + int(steps)}, or end the loop after {left}"
            )
        if steps is not None and steps < left:
            warnings.warn(
                f"PrunerCallback: the loop has {steps:g} optimiser steps, the pruner {left} left of {all_steps}: this "
                "loop will end before the gates are annealed",
                stacklevel=2,
            )
        return self._gates_in(list(optimizers))

    def end(self) -> None:
        """Leave the smaller network after the loop, or warn why there is none and how to get it."""
        if self.small is not None:
            return
        if self.pruner.done == self.pruner.steps:
            self.small = self.pruner.finish()
            return
        warnings.warn(
            f"PrunerCallback: training ended after {self.pruner.done} of the pruner's {self.pruner.steps} steps, so "
            "there is no smaller network yet: train on with the same callback, or take callback.pruner.finish() as it "
            "stands, with gates that are not annealed",
            stacklevel=2,
        )

    def _look_at(self, group: dict[str, Any], mixed: bool) -> None:
        """Warn of gates that are trained as weights are."""
        if mixed:
            warnings.warn(
                f"PrunerCallback: the optimiser has gates and weights in one group (lr {group['lr']:g}, weight decay "
                f"{group.get('weight_decay', 0):g}); make it from pruner.param_groups(...), with a gate_lr",
                stacklevel=4,
            )

    def _gates_in(self, optimizers: list[Any]) -> Any:
        model = self.pruner.model
        logits = {id(gate.logit) for _, gate in named_gates(model)}
        weights = {id(parameter) for parameter in model.parameters()}
        known = False
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                held = {id(parameter) for parameter in group["params"]}
                known = known or bool(held & weights)
                if held & logits:
                    self._look_at(group, bool(held - logits))
                    return optimizer
        if known:
            raise PrunerError("PrunerCallback: no optimiser has the gates; make it from pruner.param_groups(...)")
        return None
