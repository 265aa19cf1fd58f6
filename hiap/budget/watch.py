"""Whether a loop prunes: it is told what it lacks while there is time."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hiap.backbones.count import maps_of
from hiap.backbones.errors import UnsupportedModelError
from hiap.backbones.guard import require_linear
from hiap.gated_layers import named_gates
from hiap.pruner import PrunerError

LOOK = 10  # steps after which the logits must have moved: an optimiser's first rates may be 0


def _require_read(model: Any) -> None:
    """Raise ``UnsupportedModelError`` if a layer was replaced, by one with an adapter, say, and warn of hooks on it:
    gated blocks read its weights, and do not call it."""
    for i, block in enumerate(model.blocks):
        for name, layer in maps_of(block):
            try:
                require_linear(f"blocks.{i}.{name}", layer)
            except UnsupportedModelError as error:
                raise UnsupportedModelError(
                    f"{error}; put adapters on the network that pruner.finish() returns"
                ) from None
            if layer._forward_hooks or layer._forward_pre_hooks:
                warnings.warn(
                    f"blocks.{i}.{name}: has hooks; its weights are read, so they are not called", stacklevel=4
                )
                return


class Watch:
    """Watcher of a loop, for signs of whether it prunes: the mode of the gates, gradients of the penalty, steps of the
    optimiser. Each fault is told once, as a warning."""

    def __init__(self, model: Any):
        self.model, self.heard, self.calls, self.asleep, self.moved = model, False, 0, 0, 0
        self.gates = [gate for _, gate in named_gates(model)]
        self.version = self._version()
        self.told: set[str] = set()

    def _version(self) -> int:
        """Return what changes whenever anybody writes a logit; read without waiting for the device."""
        version = 0
        for gate in self.gates:
            version += gate.logit._version
        return version

    def seen(self) -> None:
        """Take what has been written so far for the pruner's own writing."""
        self.version = self._version()

    def listen(self, terms: Mapping[str, Tensor], done: int) -> None:
        """Notice a gradient that comes back through one of ``terms``. Raises ``PrunerError`` for one that is not
        finite, at once; on a device, where to look is to wait, at the first steps and at every tenth.
        ``UnsupportedModelError`` for layers that were replaced since they were gated."""
        if self.model is not None:
            _require_read(self.model)
            self.model = None
        if not self.heard:
            for term in terms.values():
                if term.requires_grad:
                    term.register_hook(self._hear)
        first = next(iter(terms.values()))
        if type(first) is not Tensor or torch.compiler.is_compiling():
            return
        if first.device.type != "cpu" and done >= LOOK and done % LOOK:
            return
        if bad := [f"{name} is {term.item()}" for name, term in terms.items() if not term.isfinite()]:
            raise PrunerError(
                f"penalty: {', '.join(bad)} at step {done + 1}: the gates or the strengths are not finite; a loss "
                "that diverged has reached the gates: lower the rates, or clip gradients"
            )

    def _hear(self, gradient: Tensor) -> None:
        self.heard = True

    def before(self) -> None:
        """Look at each call of ``step``, before gates are written."""
        self.calls += 1
        self.moved += self._version() != self.version
        for gate in self.gates:
            if gate.training:
                self.asleep = 0
                return
        self.asleep += 1

    def after(self, look: int, priced: bool) -> None:
        """Look after gates were written, and warn of what has been wrong for ``look`` steps; ``priced``: there are
        penalties."""
        done = self.calls
        self.seen()
        if self.asleep == look:
            self._tell(
                f"step: the network has been in eval mode for {look} steps, in which its gates are not sampled and "
                "learn nothing of the task; call pruner.model.train() after each validation"
            )
        if done == look and priced and not self.heard:
            self._tell(f"step: no gradient has come through pruner.penalty() in {done} steps; add it to the loss")
        # Once may be something else: fused optimisers leave no mark, and a resumed loop writes everything.
        if done == look and 1 < self.moved <= look // 2:
            self._tell(
                f"step: called {done} times, while the optimiser wrote the gates {self.moved} times; call it once per "
                "optimiser step, and make the pruner with as many steps"
            )

    def _tell(self, line: str) -> None:
        if line not in self.told:
            self.told.add(line)
            warnings.warn(line, stacklevel=1)
