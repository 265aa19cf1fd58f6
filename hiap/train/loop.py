"""The one training loop of the project: one stage of a run, step after step.

A run that was killed anywhere continues from its last checkpoint and ends with the weights that it would have had (bit
for bit on a CPU): batches, gate noise and dropout are functions of the position in the run
(``hiap.backbones.seeds``), so position, network and optimiser are all there is to restore.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hiap import cost, gated_vit
from hiap.backbones.seeds import derive
from hiap.data import loader as data
from hiap.data.loader import Info
from hiap.train import checkpoint
from hiap.train.config import ON_DISK, Config, DataConfig
from hiap.train.distributed import World
from hiap.train.journal import Journal
from hiap.train.measure import Measure
from hiap.train.phase import Phase
from hiap.train.reach import learning_rate
from hiap.train.record import Folders
from hiap.train.stages import Context, Stage
from hiap.train.step import Step
from hiap.train.stopping import Interrupted
from hiap.train.teachers import Distillation

CHECK_EVERY = 50  # steps between looks at the loss (a look waits for the device)


@dataclass
class Loop:
    """Loop that trains the stages of a run; ``run.Run`` makes it. ``data`` as the run's network takes them; ``begun``:
    whether a step may have been made."""

    config: Config
    data: DataConfig
    folders: Folders
    world: World
    device: torch.device
    info: Info
    stopping: Callable[[], bool]
    stages: list[Stage]
    context: Context
    distillation: Distillation
    journal: Journal
    measure: Measure
    begun: bool = False

    def __post_init__(self) -> None:
        self.step = Step(self.config, self.world, self.device, self.info.train, self.distillation.network)

    def train(self, index: int, stage: Stage, model: Any, state: dict[str, Any] | None) -> None:
        """Train one stage, from its start or from a checkpoint's ``state``."""
        config = stage.recipe(self.config)
        phase = Phase(index, stage, config, model, self.context.steps_per_epoch)
        if state:
            phase.restore(state, self.device)
        self.begun = True
        self.journal.status(state="starting")
        if state:
            self.journal.progress.say(f"resumed at step {phase.step} of {phase.total} of stage {stage.name}")
        self.journal.progress.begin(stage.name, phase.total, phase.step)
        forward = self.step.wrapped(model)
        model.train()
        while phase.step < phase.total:
            for images, targets, taught in self._rest_of_epoch(phase):
                phase.rate = learning_rate(config, phase.scheduled, phase.per_epoch, phase.schedule)
                phase.tau = stage.anneal(model, phase.step / phase.total)
                phase.add(self._step(phase, forward, images, targets, taught))
                self.journal.progress.step()
                self._after_step(phase)
            if phase.since == phase.step:  # cut just now
                forward = None
                gc.collect()  # what averaged gradients would wait for those that are gone
                forward = self.step.wrapped(model)
        if not phase.total:
            self._add_cost(phase)
        self.journal.progress.end()
        if phase.ema:
            phase.ema.put(model)

    def _rest_of_epoch(self, phase: Phase) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Return images, targets, and what the teacher says of them where it was asked beforehand."""
        config = self.config
        epoch, position = divmod(phase.step, phase.per_epoch)
        place: dict[str, Any] = {
            "batch_size": config.optim.batch_size,
            "seed": derive(config.seed, "data", phase.index),
            "epoch": epoch,
            "start": position,
            "share": (self.world.rank, self.world.size),
        }
        batches = data.train_batches(
            self.data, config.model.img_size, workers=config.run.workers, device=self.device, **place
        )
        if (logits := self.distillation.logits) is None:
            return ((images, targets, None) for images, targets in batches)
        chosen = data.train_indices(self.info.train, **place)
        return ((*batch, logits[indices]) for batch, indices in zip(batches, chosen, strict=True))

    def _step(
        self, phase: Phase, forward: Any, images: Tensor, targets: Tensor, taught: Tensor | None
    ) -> dict[str, Tensor]:
        """See ``hiap.train.step``."""
        return self.step(phase, forward, images, targets, taught)

    def _after_step(self, phase: Phase) -> None:
        """Look at the loss, close the epoch, checkpoint, stop if asked to."""
        ended = phase.step % phase.per_epoch == 0
        every = self.config.run.gate_log
        if every and phase.step % every == 0 and gated_vit.is_gated(phase.model):
            self.journal.log_gates(phase)
        if ended or phase.step % CHECK_EVERY == 0:
            self._look(phase, ended)
        if ended:
            self._end_epoch(phase)
        if phase.step == phase.total:
            self._add_cost(phase)
        every = self.config.run.checkpoint_steps
        stop = self.world.any(self.stopping()) and phase.step < phase.total
        if ended or stop or (every and phase.step % every == 0):
            self._checkpoint(phase)
        if stop:
            self.journal.status(state="stopped")
            self.world.barrier()
            raise Interrupted(
                f"{self.config.run_id}: stopped at step {phase.step} of {phase.total}; run again to resume"
            )

    def _look(self, phase: Phase, ended: bool) -> None:
        """Stop on a loss that is not finite, or on too many corrupt images; tell who watches and status.json."""
        phase.average(self.world)
        self.corrupt()
        mean = float(phase.sums["loss"]) / ((phase.step - 1) % phase.per_epoch + 1)
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"loss is {mean} by step {phase.step} of stage {phase.stage.name}; a lower optim.lr may help"
            )
        self.journal.update_status(phase, self.stages, mean)
        if not ended:
            self.journal.show_progress(phase, self.stages, mean)

    def _end_epoch(self, phase: Phase) -> None:
        log = self.journal.epoch_log(phase)
        every = self.config.run.evaluate_every
        if every and (log.epoch + 1) % every == 0:
            log.top1 = self._top1(phase)
        self.journal.add(log)
        self.journal.show_progress(phase, self.stages, log.loss)
        if phase.step < phase.total:
            phase.cut(self._macs)

    def _macs(self, model: Any) -> int:
        return cost.macs(model, self.info.image(self.config.model.img_size))

    def _top1(self, phase: Phase) -> float:
        """Measure the network as it is now, by its hardened gates. This is no training cost. A wish to stop waits until
        it is done, since the checkpoint of this epoch comes after it."""
        begun = time.perf_counter()
        with phase.ema.shown(phase.model) if phase.ema else nullcontext():
            top1 = self.measure.score(phase.model, stoppable=False).top1
        phase.model.train()
        phase.clock += time.perf_counter() - begun
        return top1

    def corrupt(self) -> set[int]:
        """Return the training images that no process could read, so far. Raises ``ConfigError`` in all processes if
        they are too many."""
        found = self.world.union(data.corrupt(self.data)) if self.data.name in ON_DISK else set[int]()
        data.set_corrupt(self.data, found)
        data.check_corrupt(self.data)
        return found

    def _add_cost(self, phase: Phase) -> None:
        batch = min(self.config.optim.batch_size, self.info.train)
        per_image = self.distillation.macs_per_image
        once = 0 if phase.index else self.distillation.macs_once  # for all stages
        images = phase.total * batch
        macs = 3 * batch * phase.trained_macs(self._macs) + per_image * images + once
        self.journal.add_cost(phase, images, macs)
        self.journal.add_pruning(self.context)

    def _checkpoint(self, phase: Phase) -> None:
        phase.average(self.world)
        corrupt = self.corrupt()
        if not self.world.first:
            return
        run = {"corrupt": sorted(corrupt), **self.journal.state()}
        checkpoint.save(self.folders.checkpoints, phase.index, phase.step, {**phase.state(), **run})
