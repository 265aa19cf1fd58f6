"""transformers: ``Trainer(callbacks=[PrunerCallback(pruner)], optimizers=(optimizer, None), ...)``.

The trainer's model calls ``pruner.model`` and adds ``pruner.penalty()`` to the loss that it returns; the optimiser is
made from ``pruner.param_groups(...)``. The callback steps the pruner with the optimiser, keeps its state in the
trainer's checkpoints, takes it from there when the trainer resumes, and leaves the smaller network in ``small``.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from hiap.integrations.follower import Follower
from hiap.pruner import PrunerError


class PrunerCallback(Follower, TrainerCallback, ExportableState):
    """Callback of transformers' ``Trainer`` that steps the pruner with the optimiser; the smaller network is then in
    ``small``."""

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        _check(args)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        _check(args)
        if state.global_step:
            self._resume(state)
        optimizer = kwargs.get("optimizer")
        self.begin([] if optimizer is None else [optimizer], state.max_steps - state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.pruner.step()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.end()

    def state(self) -> dict[str, Any]:
        """Return what the trainer writes into ``trainer_state.json`` of each checkpoint."""
        found = self.pruner.state_dict(model=False)
        if "budget" in found:
            found["budget"] = {name: value.tolist() for name, value in found["budget"].items()}
        return {"args": {}, "attributes": found}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Any:
        raise PrunerError(
            "PrunerCallback: a pruner cannot be made from a checkpoint; leave restore_callback_states_from_checkpoint "
            "unset and give the trainer the callback, which takes its state from there by itself"
        )

    def _resume(self, state: TrainerState) -> None:
        kept: Any = state.stateful_callbacks or {}
        found = kept.get(type(self).__name__)
        if not isinstance(found, dict) or "steps" not in found.get("attributes", {}):
            raise PrunerError("PrunerCallback: the checkpoint holds no state of a pruner; it was trained without")
        pruner = dict(found["attributes"])
        if "budget" in pruner:
            pruner["budget"] = {name: torch.tensor(value) for name, value in pruner["budget"].items()}
        self.pruner.load_state_dict(pruner)


def _check(args: TrainingArguments) -> None:
    if args.load_best_model_at_end:
        raise PrunerError(
            "PrunerCallback: load_best_model_at_end would put back weights and gates from the midst of the annealing; "
            "set it to False, and measure callback.small after training"
        )
