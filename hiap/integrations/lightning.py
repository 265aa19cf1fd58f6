"""Lightning: ``Trainer(callbacks=[PrunerCallback(pruner)])``.

The module trains ``pruner.model``, adds ``pruner.penalty()`` to its loss and builds its optimiser from
``pruner.param_groups(...)``; the callback steps the pruner with the optimiser that has the gates, however many others
there are and however many batches it accumulates, keeps the pruner's state in Lightning's checkpoints, and leaves the
smaller network in ``small``. A ``fit`` that ends early says so, and a further one goes on where it stood.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from hiap.integrations.follower import Follower
from hiap.pruner import PrunerError


class PrunerCallback(Follower, Callback):
    """Callback of Lightning's ``Trainer`` that steps the pruner with the optimiser; the smaller network is then in
    ``small``."""

    _clock: Any = None
    _stepped = False
    _known_end = True

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.precision in ("16-true", "transformer-engine-float16"):
            raise PrunerError(
                f"PrunerCallback: precision '{trainer.precision}' trains in fp16 weights, in which the optimiser's eps "
                "is 0 and gates become NaN; use '16-mixed', 'bf16-mixed' or 'bf16-true'"
            )
        steps = _steps(trainer, module)
        self._known_end = steps is not None
        self._clock = self.begin(trainer.optimizers, steps) or next(iter(trainer.optimizers), None)

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        """Count the step, also one that a GradScaler then skips: the loop's schedule counts it too."""
        self._catch_up()
        self._stepped = optimizer is self._clock

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        self._catch_up()
        if not self._known_end and self.pruner.done == self.pruner.steps:
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.end()

    def state_dict(self) -> dict[str, Any]:
        return self.pruner.state_dict(model=False)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pruner.load_state_dict(state)

    def _catch_up(self) -> None:
        """Take the pruner's step, after the optimiser's."""
        if self._stepped:
            self._stepped = False
            self.pruner.step()


def _steps(trainer: Trainer, module: LightningModule) -> int | None:
    """Return how many optimiser steps this loop still has before it; None where only the module or the data know."""
    if not module.automatic_optimization:
        return None
    try:
        steps = trainer.estimated_stepping_batches
    except MisconfigurationException:  # accumulation that changes from epoch to epoch
        return None
    return int(steps) - trainer.global_step if 0 < steps < float("inf") else None
