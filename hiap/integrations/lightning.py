"""Lightning: ``Trainer(callbacks=[PrunerCallback(pruner)])``.

The module trains ``pruner.model``, adds ``pruner.penalty()`` to its loss and builds its optimiser from
``pruner.param_groups(...)``; the callback steps the pruner with the optimiser, keeps its state in Lightning's
checkpoints, and leaves the smaller network in ``small``.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from hiap.pruner import Pruner, PrunerError


class PrunerCallback(Callback):
    def __init__(self, pruner: Pruner):
        if pruner.shrink:
            raise PrunerError("PrunerCallback: the trainer's optimiser cannot follow a pruner with shrink")
        self.pruner = pruner
        self.small: Any = None

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        if trainer.global_step > self.pruner.done:  # not in the middle of an accumulated batch
            self.pruner.step()

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self.pruner.done == self.pruner.steps:
            self.small = self.pruner.finish()

    def state_dict(self) -> dict[str, Any]:
        return self.pruner.state_dict(model=False)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pruner.load_state_dict(state)
