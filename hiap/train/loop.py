"""The one training loop of the project: one stage of a run, step after step.

A run that was killed anywhere continues from its last checkpoint and ends with the weights that it would have had (bit
for bit on a CPU): batches, gate noise and dropout are functions of the position in the run (``seeds``), so position,
network and optimiser are all there is to restore.
"""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from hiap import cost, gated_vit
from hiap.data import loader as data
from hiap.data.loader import Info
from hiap.objective import distillation_loss
from hiap.train import checkpoint
from hiap.train.config import ON_DISK, Config, DataConfig
from hiap.train.device import autocast
from hiap.train.distributed import World
from hiap.train.hidden import HiddenMatch
from hiap.train.journal import Journal
from hiap.train.measure import Measure
from hiap.train.phase import Phase
from hiap.train.reach import learning_rate
from hiap.train.record import Folders
from hiap.train.seeds import derive
from hiap.train.stages import Context, Stage
from hiap.train.stopping import Interrupted
from hiap.train.teachers import Lessons

CHECK_EVERY = 50  # steps between looks at the loss (a look waits for the device)


@dataclass
class Loop:
    """What the training of a stage needs around it; ``run.Run`` makes it. ``data`` as the run's network takes them;
    ``begun``: whether a step may have been made."""

    config: Config
    data: DataConfig
    folders: Folders
    world: World
    device: torch.device
    info: Info
    stopping: Callable[[], bool]
    stages: list[Stage]
    context: Context
    lessons: Lessons
    journal: Journal
    measure: Measure
    begun: bool = False

    def train(self, index: int, stage: Stage, model: Any, state: dict[str, Any] | None) -> None:
        """One stage, from its start or from a checkpoint's ``state``."""
        config = stage.recipe(self.config)
        match = HiddenMatch(model, self.lessons.plain()) if config.distill.hidden else None
        phase = Phase(index, stage, config, model, self.context.steps_per_epoch, match)
        if state:
            phase.restore(state, self.device)
        self.begun = True
        self.journal.status(state="starting")
        forward = self._wrapped(model)
        shown = config.run.progress and self.world.first and sys.stderr.isatty()
        bar = tqdm(total=phase.total, initial=phase.step, desc=f"{config.run.label or config.run_id} {stage.name}",
                   leave=False, disable=not shown)  # fmt: skip
        model.train()
        while phase.step < phase.total:
            for images, targets, taught in self._rest_of_epoch(phase):
                phase.rate = learning_rate(config, phase.scheduled, phase.per_epoch, phase.schedule)
                phase.tau = stage.anneal(model, phase.step / phase.total)
                phase.add(self._step(phase, forward, images, targets, taught))
                bar.update()
                self._after_step(phase, bar)
            if phase.since == phase.step:  # cut just now
                forward = None
                gc.collect()  # what averaged gradients would wait for those that are gone
                forward = self._wrapped(model)
        if not phase.total:
            self._bill(phase)
        bar.close()
        if phase.ema:
            phase.ema.put(model)
        if phase.match:
            phase.match.close()

    def _wrapped(self, model: Any) -> Any:
        """``model`` as it is called."""
        forward = self.world.wrap(model, self.device)
        return torch.compile(forward) if self.config.run.compile else forward

    def _rest_of_epoch(self, phase: Phase) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Images, targets, and what the teacher says of them where it was asked beforehand."""
        config = self.config
        epoch, position = divmod(phase.step, phase.per_epoch)
        place: dict[str, Any] = {
            "batch_size": config.optim.batch_size,
            "seed": derive(config.seed, "data", phase.index),
            "epoch": epoch,
            "start": position,
            "share": (self.world.rank, self.world.size),
        }
        batches = data.train_batches(self.data, config.model.img_size, workers=config.run.workers, **place)
        if (logits := self.lessons.logits) is None:
            return ((images, targets, None) for images, targets in batches)
        chosen = data.train_indices(self.info.train, **place)
        return ((*batch, logits[indices]) for batch, indices in zip(batches, chosen, strict=True))

    def _step(
        self, phase: Phase, forward: Any, images: Tensor, targets: Tensor, taught: Tensor | None
    ) -> dict[str, Tensor]:
        """Forward, backward, update; the loss and its terms, detached: their means over the processes are the batch's.

        This process's share of the batch goes through in ``run.accumulate`` parts."""
        config, parts = phase.config, phase.config.run.accumulate
        images = images.to(self.device, non_blocking=True)
        targets = targets.to(self.device, non_blocking=True)
        phase.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for i in range(parts):
            chosen = slice(None) if parts == 1 else data.part(np.arange(len(images)), i, parts)
            waits = nullcontext() if i == parts - 1 or self.world.size == 1 else forward.no_sync()
            self._seed_noise(phase, self.world.rank * parts + i)
            with waits:
                known = None if taught is None else taught[chosen]
                values = self._part(phase, forward, images[chosen], targets[chosen], known)
                phase.scaler.scale(values["loss"]).backward()
            for name, value in values.items():
                sums[name] = sums[name] + value.detach() if name in sums else value.detach()
        if phase.match:
            phase.match.average(self.world)
        if config.optim.clip_norm:
            phase.scaler.unscale_(phase.optimizer)
            nn.utils.clip_grad_norm_(phase.model.parameters(), config.optim.clip_norm)
        for group in phase.optimizer.param_groups:
            group["lr"] = phase.rate * group["lr_scale"]
        phase.scaler.step(phase.optimizer)
        phase.scaler.update()
        if phase.ema:
            phase.ema.update(phase.model)
        return sums

    def _part(
        self, phase: Phase, forward: Any, images: Tensor, targets: Tensor, taught: Tensor | None
    ) -> dict[str, Tensor]:
        """Loss and terms of one part of the batch, weighted such that parts add up and processes average."""
        config, match = phase.config, phase.match
        with autocast(self.device, config.optim.precision):
            if self.lessons.network and taught is None:
                with torch.no_grad(), match.teacher.seen() if match else nullcontext():
                    taught = self.lessons.network(images)
            with match.student.seen() if match else nullcontext():
                logits = forward(images)
        task = distillation_loss(
            logits,
            targets,
            taught,
            **config.distill.model_dump(include={"alpha", "temperature", "t_squared"}),
            label_smoothing=config.optim.label_smoothing,
        )
        means = {"task": task, **({"hidden": config.distill.hidden * match.loss()} if match else {})}
        terms = phase.stage.terms(phase.model)
        if config.run.accumulate * self.world.size > 1:
            share = len(images) * self.world.size / min(config.optim.batch_size, self.info.train)
            means = {name: mean * share for name, mean in means.items()}
            terms = {name: term / config.run.accumulate for name, term in terms.items()}
        return {"loss": torch.stack([*means.values(), *terms.values()]).sum(), **means, **terms}

    def _seed_noise(self, phase: Phase, part: int) -> None:
        """Gate noise, dropout and drop path follow from the step, and from the part of the batch unless A10 says so."""
        place: tuple[int, ...] = (phase.index, phase.step)
        if part and self.config.gates.noise == "own":
            place += (part,)
        torch.manual_seed(derive(self.config.seed, "step", *place))

    def _after_step(self, phase: Phase, bar: Any) -> None:
        """Look at the loss, close the epoch, checkpoint, stop if asked to."""
        ended = phase.step % phase.per_epoch == 0
        every = self.config.run.gate_log
        if every and phase.step % every == 0 and gated_vit.is_gated(phase.model):
            self.journal.log_gates(phase)
        if ended or phase.step % CHECK_EVERY == 0:
            self._look(phase, bar)
        if ended:
            self._end_epoch(phase)
        if phase.step == phase.total:
            self._bill(phase)
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

    def _look(self, phase: Phase, bar: Any) -> None:
        """Stop on a loss that is not finite, or on too many corrupt images; tell the progress bar and status.json."""
        phase.average(self.world)
        self.corrupt()
        mean = float(phase.sums["loss"]) / ((phase.step - 1) % phase.per_epoch + 1)
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"loss is {mean} by step {phase.step} of stage {phase.stage.name}; a lower optim.lr may help"
            )
        bar.set_postfix(loss=f"{mean:.3f}")
        self.journal.running(phase, self.stages, mean)

    def _end_epoch(self, phase: Phase) -> None:
        log = self.journal.epoch_log(phase)
        every = self.config.run.evaluate_every
        if every and (log.epoch + 1) % every == 0:
            log.top1 = self._top1(phase)
        self.journal.add(log)
        if phase.step < phase.total:
            phase.cut(self._macs)

    def _macs(self, model: Any) -> int:
        return cost.macs(model, self.info.image(self.config.model.img_size))

    def _top1(self, phase: Phase) -> float:
        """Of the network as it is now, by its hardened gates. Not billed; a wish to stop waits until it is done, since
        the checkpoint of this epoch comes after it."""
        begun = time.perf_counter()
        with phase.ema.shown(phase.model) if phase.ema else nullcontext():
            top1 = self.measure.score(phase.model, stoppable=False).top1
        phase.model.train()
        phase.clock += time.perf_counter() - begun
        return top1

    def corrupt(self) -> set[int]:
        """Training images that no process could read, so far. Raises ``ConfigError`` in all if they are too many."""
        found = self.world.union(data.corrupt(self.data)) if self.data.name in ON_DISK else set[int]()
        data.set_corrupt(self.data, found)
        data.check_corrupt(self.data)
        return found

    def _bill(self, phase: Phase) -> None:
        batch = min(self.config.optim.batch_size, self.info.train)
        per_image = self.lessons.macs_per_image
        if phase.match:
            per_image += 3 * phase.match.macs()
        once = 0 if phase.index else self.lessons.macs_once  # for all stages
        images = phase.total * batch
        macs = 3 * batch * phase.trained_macs(self._macs) + per_image * images + once
        self.journal.bill(phase, images, macs)
        self.journal.bill_scored(self.context)

    def _checkpoint(self, phase: Phase) -> None:
        phase.average(self.world)
        corrupt = self.corrupt()
        if not self.world.first:
            return
        run = {"corrupt": sorted(corrupt), **self.journal.state()}
        checkpoint.save(self.folders.checkpoints, phase.index, phase.step, {**phase.state(), **run})
