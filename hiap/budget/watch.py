"""Whether a loop prunes: it is told what it lacks while there is time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from hiap.backbones.count import image_of, maps_of
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


def _note(embed: Any, given: tuple[Any, ...]) -> None:
    embed.seen = tuple(given[0].shape[-2:])


class Sizes:
    """Look at the first images of a network that takes any: a target is of the size that it was made for. ``remove``
    when that is known."""

    def __init__(self, model: Any):
        self.embed, self.made_for = model.patch_embed, image_of(model)[1:]
        self.handle = self.embed.register_forward_pre_hook(_note)

    def remove(self) -> str:
        """Return a line if the images seen are of another size; '' if not, or if none were seen."""
        self.handle.remove()
        seen, (rows, columns) = self.embed.__dict__.pop("seen", self.made_for), self.made_for
        if seen == self.made_for:
            return ""
        return (
            f"step: images of {seen[0]}x{seen[1]} are trained on, and the target is of {rows}x{columns}, where another "
            f"share of the cost is gone; call model.set_input_size(({seen[0]}, {seen[1]})) before the pruner is made"
        )


class Watch:
    """Watcher of a loop, for signs of whether it prunes: the mode of the gates, gradients of the penalty, steps of the
    optimiser; of a network with a target (``aimed``) the size of its images. Each fault is told once, as a warning."""

    def __init__(self, model: Any, aimed: bool = False):
        self.sizes = Sizes(model) if aimed and getattr(model, "dynamic_img_size", False) else None
        self.model, self.heard, self.calls, self.moved = model, False, 0, 0
        self.names, self.gates = zip(*named_gates(model), strict=True)
        self.asleep = [0] * len(self.gates)  # calls in a row that found it in eval mode
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
        self.end()
        self.moved += self._version() != self.version
        for i, gate in enumerate(self.gates):
            self.asleep[i] = 0 if gate.training else self.asleep[i] + 1

    def end(self) -> None:
        """Look at the sizes of images no longer."""
        if self.sizes and (line := self.sizes.remove()):
            self._tell(line)
        self.sizes = None

    def after(self, look: int, priced: bool, free: Callable[[], Iterable[tuple[Any, Tensor]]]) -> None:
        """Look after gates were written, and warn of what has been wrong for ``look`` steps; ``priced``: there are
        penalties; ``free``: gives every gate with those of its units that nothing holds."""
        done = self.calls
        self.seen()
        if look in self.asleep:
            self._tell_asleep(look, {id(gate) for gate, units in free() if units.any()})
        if done == look and priced and not self.heard:
            self._tell(f"step: no gradient has come through pruner.penalty() in {done} steps; add it to the loss")
        # Once may be something else: fused optimisers leave no mark, and a resumed loop writes everything.
        if done == look and 1 < self.moved <= look // 2:
            self._tell(
                f"step: called {done} times, while the optimiser wrote the gates {self.moved} times; call it once per "
                "optimiser step, and make the pruner with as many steps"
            )

    def still(self, done: int) -> None:
        """Say why no gate is elsewhere than where it began. Raises ``PrunerError`` where nobody wrote any."""
        if self.moved > 1:  # once may be the state of a resumed loop
            self._tell(
                f"step: no gate has moved in {done} steps, though the optimiser writes them: their rate is 0 so far, "
                "by a warm-up, say"
            )
            return
        raise PrunerError(
            f"step: no gate has moved in {done} steps; the optimiser must have what pruner.param_groups gives, and "
            "step is called once per optimiser step"
        )

    def _tell_asleep(self, look: int, free: set[int]) -> None:
        """Warn of gates in eval mode: the task says nothing to them, and the penalty closes them none the less."""
        names = [name for name, gate, calls in zip(self.names, self.gates, self.asleep, strict=True)
                 if calls == look and id(gate) in free]  # fmt: skip
        if names and all(calls >= look for calls in self.asleep):
            self._tell(
                f"step: the network has been in eval mode for {look} steps, in which its gates are not sampled and "
                "learn nothing of the task; call pruner.model.train() after each validation"
            )
        elif names:
            self._tell(
                f"step: {names[0]} and {len(names) - 1} more gates have been in eval mode for {look} steps: the "
                "penalty closes them, and the task does not object; put their blocks into train mode "
                "(requires_grad_(False) freezes weights), or name them in keep"
            )

    def _tell(self, line: str) -> None:
        if line not in self.told:
            self.told.add(line)
            warnings.warn(line, stacklevel=1)
