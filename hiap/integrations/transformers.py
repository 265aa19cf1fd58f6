"""transformers: ``Trainer(callbacks=[PrunerCallback(pruner)], optimizers=(optimizer, None), ...)``.

The trainer's model calls ``pruner.model`` and adds ``pruner.penalty()`` to the loss that it returns; the optimiser is
made from ``pruner.param_groups(...)``. The callback steps the pruner with the optimiser, writes its state beside the
trainer's checkpoints, reads it when the trainer resumes, and leaves the smaller network in ``small``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hiap.files import write_json
from hiap.pruner import Pruner, PrunerError

STATE = "hiap_pruner.json"


class PrunerCallback(TrainerCallback):
    def __init__(self, pruner: Pruner):
        if pruner.shrink:
            raise PrunerError("PrunerCallback: the trainer's optimiser cannot follow a pruner with shrink")
        self.pruner = pruner
        self.small: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == self.pruner.done:
            return
        path = _path(args, state)
        if not path.is_file():
            raise PrunerError(f"{path}: expected the pruner's state, which this callback saves with each checkpoint")
        found = json.loads(path.read_text())
        if "budget" in found:
            found["budget"] = {name: torch.tensor(value) for name, value in found["budget"].items()}
        self.pruner.load_state_dict(found)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.pruner.step()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            found = self.pruner.state_dict(model=False)
            if "budget" in found:
                found["budget"] = {name: value.tolist() for name, value in found["budget"].items()}
            write_json(_path(args, state), found)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.pruner.done == self.pruner.steps:
            self.small = self.pruner.finish()


def _path(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / STATE
