"""The one training loop of the project: ``python -m hiap.train key=value ...``.

A run starts from a network (random, pretrained or another run's), passes it through the stages of its method, measures
the result on the extracted network and writes one record. A run that was killed anywhere continues from its last
checkpoint and ends with the weights that it would have had (bit for bit on a CPU): batches, gate noise and dropout are
functions of the position in the run (``seeds``), so position, network and optimiser are all there is to restore.
"""

from __future__ import annotations

import copy
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from hiap import cost, gated_vit
from hiap.data import loader as data
from hiap.formats import store
from hiap.ledger import PICOSECONDS, LatencyTable, read_latency
from hiap.objective import distillation_loss
from hiap.pruned_vit import LAYOUTS, set_layout
from hiap.pruner import param_groups
from hiap.selection import Target, target_of
from hiap.train import card, checkpoint, teachers
from hiap.train.average import Average
from hiap.train.config import ON_DISK, Config, ConfigError, check_needs, check_table, from_dict, parse_overrides
from hiap.train.device import autocast, check_precision, pick_device
from hiap.train.distributed import ALONE, World, joined, lost_another
from hiap.train.evaluate import evaluate
from hiap.train.hidden import HiddenMatch, check_fits
from hiap.train.reach import check_reach, gate_scale, learning_rate
from hiap.train.record import (
    BlockShape,
    EpochLog,
    Folders,
    GateLog,
    Latency,
    Metrics,
    Record,
    Score,
    Size,
    StageBill,
    environment,
    now,
    read,
    require_writable,
    wanted,
    write,
    write_status,
)
from hiap.train.seeds import derive
from hiap.train.stages import Context, Stage, stages
from hiap.train.start import Start, build, published_top1, set_drop_path, weights_sha256

CHECK_EVERY = 50  # steps between looks at the loss (a look waits for the device)
STATUS_SECONDS = 2.0
MEASURED_AT_ONCE = (
    250  # images, where the training batch is smaller: without gradients there is room, and more is faster
)


class TrainingFailedError(RuntimeError):
    """The run cannot go on (a loss that is not finite, say); a failed record was written."""


class Interrupted(Exception):  # noqa: N818
    """Asked to stop (SIGTERM, SIGINT); a checkpoint was written and the run can be resumed."""


def run(config: Config) -> Record:
    """Train, prune, measure; resume if a checkpoint is there; return the record (the old one if the run is finished).

    Raises ``ConfigError`` before anything is written if the run cannot start, ``TrainingFailedError`` after a failed
    record was written, and ``Interrupted`` after a checkpoint was written. Under ``torchrun`` or ``srun`` several
    processes share the run (``distributed``).
    """
    folders = Folders.of(config)
    if folders.record.exists():
        return read(folders.record)
    _preflight(config, folders)
    started, device = now(), pick_device(config.run.device)
    check_precision(config.optim.precision, device)
    with joined(device) as world:
        try:
            with _stop_signals() as stopping:
                record = Run(config, folders, stopping, world).execute(started)
        except (ConfigError, Interrupted):
            raise
        except KeyboardInterrupt:
            raise Interrupted(f"{config.run_id}: interrupted") from None
        except Exception as error:
            if lost_another(error, world):
                raise Interrupted(f"{config.run_id}: another process has gone; run again to resume") from error
            raise TrainingFailedError(_record_failure(config, folders, started, error, world)) from error
        if world.first:
            write(record, folders)
            write_status(folders, state="finished")
    return record


def record_lost(config: Config, error: str) -> Path:
    """The failed record of a run whose job died without one (out of memory, a lost node), as its launcher saw it."""
    cpu = config.model_copy(update={"run": config.run.model_copy(update={"device": "cpu"})})  # the launcher's machine
    write_status(Folders.of(config), state="failed", error=error)
    return write(_record(cpu, now(), status="failed", error=error), Folders.of(config))


def _record_failure(config: Config, folders: Folders, started: str, error: Exception, world: World) -> str:
    """Write the failed record; what to tell."""
    kind = "" if isinstance(error, TrainingFailedError) else f"{type(error).__name__}: "
    line = f"{kind}{error}".splitlines()[0]
    if not world.first:  # all may fail of the same: one record
        return f"{config.run_id}: {line} (process {world.rank})"
    try:
        path = write(_record(config, started, status="failed", error=line), folders)
        write_status(folders, state="failed", error=line)
    except OSError as full:
        return f"{config.run_id}: {line} (not recorded: {full.strerror})"
    return f"{config.run_id}: {line} (recorded in {path})"


class Run:
    """One run in progress: what it is made of, and how far it has come."""

    def __init__(self, config: Config, folders: Folders, stopping: Callable[[], bool], world: World = ALONE):
        self.config, self.folders, self.stopping, self.world = config, folders, stopping, world
        if config.run.threads:
            torch.set_num_threads(config.run.threads)
        self.device = pick_device(config.run.device)
        self.info = info = data.info(config.data, config.model.img_size)
        self.image = (info.channels, config.model.img_size, config.model.img_size)
        parts, batch = world.size * config.run.accumulate, min(config.optim.batch_size, info.train)
        if 1 < parts > batch // 2:
            raise ConfigError(
                f"optim.batch_size {batch}: too small for {parts} parts (processes x run.accumulate) of a pair or more"
            )
        start = self._start()
        self.start, self.adapted = start.model, start.adapted
        compared = config.data.name == "imagenet" and not start.new_head
        self.published = published_top1(config.model) if compared else None
        self.data = config.data.model_copy(update=self._pixels())
        self.stages = stages(config)
        try:
            self.dense_macs = self._macs(self.start)
        except ValueError as error:
            raise ConfigError(f"model.name '{config.model.name}': {error}") from None
        self.latency = _latency_table(config, self.start)
        target = _target(config, folders, self.start, self.latency)
        self.context = Context(config.model_copy(update={"data": self.data}), target, self._steps_per_epoch())
        self.teacher_macs = self.dense_macs
        self.teacher = self._teacher()
        if config.distill.hidden:
            self._plain_teacher()
        self.taught: Tensor | None = None  # the teacher's logits of all training images, where they are computed once
        self.bills: list[StageBill] = []
        self.epochs: list[EpochLog] = []
        self.gates: list[GateLog] = []
        self.resumed, self.begun = 0, False
        self._last_status = 0.0
        self.writer: Any = None

    def _start(self) -> Start:
        """The network that the run starts from, fitted to the images and classes."""
        config, info = self.config, self.info
        start = build(config.model, info.channels, info.classes, self.folders, derive(config.seed, "weights"))
        if start.new_head and config.method != "dense":
            raise ConfigError(
                f"model.weights '{config.model.weights}': {start.adapted[-1]}, from which nothing can be learned yet: "
                "train it with method=dense, then set model.weights=run:<run_id>"
            )
        if start.adapted and self.world.first:
            print(f"{config.run_id}: {'; '.join(start.adapted)}", file=sys.stderr)
        return start

    def _pixels(self) -> dict[str, Any]:
        """How images become pixels in this run; the network keeps it, and hands it on to runs that start from it."""
        known = getattr(self.start, "pretrained_cfg", None) or {}
        found = data.pixels(self.config.data, known if self.config.model.weights else None)
        self.start.pretrained_cfg = {**known, **found}
        return found if self.config.data.name in ON_DISK else {}

    def execute(self, started: str) -> Record:
        try:
            return self._execute(started)
        except ConfigError as error:
            if self.begun:  # data that prove unreadable, say: the run has cost something, and leaves a record
                raise TrainingFailedError(str(error)) from None
            raise

    def _execute(self, started: str) -> Record:
        config = self.config
        metrics = Metrics(dense=self._dense_score() if config.model.weights else None)
        self._check_start(metrics.dense)
        state = checkpoint.load(self.folders.checkpoints, self.world)
        self.world.barrier()  # before the first process writes the next one
        first = self._resume(state)
        if self.teacher and config.distill.precompute:
            self.taught = self._taught()
        model = self.start if first == 0 else store.load(self._stage_folder(first - 1))
        for index in range(first, len(self.stages)):
            stage = self.stages[index]
            model = stage.prepare(model, self.context).to(self.device)
            set_drop_path(model, config.model.drop_path)
            self._train(index, stage, model, state if index == first else None)
            stage.harden(model)
            # A search's gates are a means; what counts is what the stages after it make of them.
            if gated_vit.is_gated(model) and index + 1 == len(self.stages):
                metrics.soft, metrics.hardened = self._soft_score(model), _without_hits(self._score(model))
            model = stage.finish(model)
            self._bill_scored()
            if index + 1 < len(self.stages) and self.world.first:
                store.save(model, self._stage_folder(index))
        metrics.extracted = self._score(model)
        record = self._finished(started, metrics, model)
        if self.world.first:
            set_layout(model, LAYOUTS[0])  # what runs fastest; training ran what it is billed for
            store.save(model, self.folders.model, card=card.of_record(record, self.folders, self.start))
        return record

    def _finished(self, started: str, metrics: Metrics, model: Any) -> Record:
        return _record(
            self.config,
            started,
            self.world.size,
            status="finished",
            metrics=metrics,
            gap=metrics.gap,
            size=Size(
                dense_macs=self.dense_macs,
                dense_params=cost.params(self.start),
                macs=self._macs(model),
                params=cost.params(model),
            ),
            latency=_predicted(model, self.latency),
            stages=self.bills,
            epochs=self.epochs,
            shape=shape_of(model),
            gates=self.gates,
            weights_sha256=weights_sha256(self.config.model, self.folders),
            adapted=self.adapted,
            corrupt_images=len(self._corrupt()),
            resumed=self.resumed,
        )

    def _resume(self, state: dict[str, Any] | None) -> int:
        """Take over what a checkpoint says of the run as a whole; returns the stage that it was written in."""
        data.set_corrupt(self.data, set(state.get("corrupt", [])) if state else set())
        if state is None:
            return 0
        self.resumed = state["resumed"] + 1
        self.bills = [StageBill(**b) for b in state["bills"]]
        self.epochs = [EpochLog(**e) for e in state["epochs"]]
        self.gates = [GateLog(**g) for g in state.get("gates", [])]
        return state["stage"]

    def _train(self, index: int, stage: Stage, model: Any, state: dict[str, Any] | None) -> None:
        """One stage, from its start or from a checkpoint's ``state``."""
        config = stage.recipe(self.config)
        match = HiddenMatch(model, self._plain_teacher()) if config.distill.hidden else None
        phase = Phase(index, stage, config, model, self._steps_per_epoch(), match)
        if state:
            phase.restore(state, self.device)
        self.begun = True
        self._status(state="starting")
        forward = self.world.wrap(model, self.device)
        forward = torch.compile(forward) if config.run.compile else forward
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
        if not phase.total:
            self._bill(phase)
        bar.close()
        if phase.ema:
            phase.ema.put(model)
        if phase.match:
            phase.match.close()

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
        if self.taught is None:
            return ((images, targets, None) for images, targets in batches)
        chosen = data.train_indices(self.info.train, **place)
        return ((*batch, self.taught[indices]) for batch, indices in zip(batches, chosen, strict=True))

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
            if self.teacher and taught is None:
                with torch.no_grad(), match.teacher.seen() if match else nullcontext():
                    taught = self.teacher(images)
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
            self._log_gates(phase)
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
            self._status(state="stopped")
            self.world.barrier()
            raise Interrupted(
                f"{self.config.run_id}: stopped at step {phase.step} of {phase.total}; run again to resume"
            )

    def _look(self, phase: Phase, bar: Any) -> None:
        """Stop on a loss that is not finite, or on too many corrupt images; tell the progress bar and status.json."""
        phase.average(self.world)
        self._corrupt()
        mean = float(phase.sums["loss"]) / ((phase.step - 1) % phase.per_epoch + 1)
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"loss is {mean} by step {phase.step} of stage {phase.stage.name}; a lower optim.lr may help"
            )
        bar.set_postfix(loss=f"{mean:.3f}")
        if time.monotonic() - self._last_status > STATUS_SECONDS or phase.step == phase.total:
            self._last_status = time.monotonic()
            before, epochs = (sum(s.epochs for s in part) for part in (self.stages[: phase.index], self.stages))
            macs = self.epochs[-1].macs if self.epochs else None
            self._status(
                state="running",
                stage=phase.stage.name,
                epoch=before + phase.step // phase.per_epoch,
                epochs=epochs,
                loss=mean,
                share=macs and macs / self.dense_macs,
                # Later stages as if their steps took as long.
                eta_s=phase.elapsed() / phase.step * ((epochs - before) * phase.per_epoch - phase.step),
            )

    def _end_epoch(self, phase: Phase) -> None:
        means = {k: float(v) / phase.per_epoch for k, v in phase.sums.items()}
        phase.sums = {}
        log = EpochLog(
            stage=phase.stage.name,
            epoch=phase.step // phase.per_epoch - 1,
            loss=means.pop("loss"),
            terms=means,
            lr=phase.rate,
            tau=phase.tau,
        )
        if gated_vit.is_gated(phase.model):
            kept = gated_vit.masks(phase.model)
            log.head_dims = [m.head_widths() for m in kept]
            log.heads = [len(block) for block in log.head_dims]
            log.neurons = [m.neuron_count() for m in kept]
            log.macs = cost.hardened_macs(phase.model)
            if not any(log.heads):
                print(
                    f"{self.config.run_id}: after epoch {log.epoch + 1} every head is closed; unless one opens again "
                    "there will be nothing to extract (gates.keep_head keeps the best one)",
                    file=sys.stderr,
                )
        log.state = phase.stage.log(phase.model)
        every = self.config.run.evaluate_every
        if every and (log.epoch + 1) % every == 0:
            log.top1 = self._top1(phase)
        self.epochs.append(log)
        self._tensorboard(log)

    @torch.no_grad()
    def _log_gates(self, phase: Phase) -> None:
        model = phase.model
        kept = gated_vit.masks(model)
        self.gates.append(
            GateLog(
                step=phase.step,
                steps=phase.total,
                heads=[len(m.head_widths()) for m in kept],
                neurons=[m.neuron_count() for m in kept],
                macs=cost.hardened_macs(model),
                expected_macs=round(float(cost.expected_cost(model).macs)),
            )
        )

    def _corrupt(self) -> set[int]:
        """Training images that no process could read, so far. Raises ``ConfigError`` in all if they are too many."""
        found = self.world.union(data.corrupt(self.data)) if self.data.name in ON_DISK else set[int]()
        data.set_corrupt(self.data, found)
        data.check_corrupt(self.data)
        return found

    def _status(self, **fields: Any) -> None:
        if self.world.first:
            write_status(self.folders, resumed=self.resumed, **fields)

    def _tensorboard(self, log: EpochLog) -> None:
        if not (self.config.run.tensorboard and self.world.first):
            return
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self.writer = SummaryWriter(self.folders.work / "tensorboard", purge_step=len(self.epochs) - 1)
        scalars = {"loss": log.loss, "lr": log.lr, "tau": log.tau, "macs": log.macs, "top1": log.top1}
        scalars |= {**log.terms, **log.state}
        if log.heads is not None and log.neurons is not None:
            scalars |= {"heads": sum(log.heads), "neurons": sum(log.neurons)}
        for name, value in scalars.items():
            if value is not None:
                self.writer.add_scalar(f"{log.stage}/{name}", value, len(self.epochs) - 1)
        self.writer.flush()

    def _bill(self, phase: Phase) -> None:
        images = phase.total * min(self.config.optim.batch_size, self.info.train)
        taught = self.teacher_macs
        per_image = 3 * self._macs(phase.model) + (taught if self.teacher and self.taught is None else 0)
        if phase.match:
            per_image += 3 * phase.match.macs()
        asked = 0 if self.taught is None or phase.index else len(self.taught)  # once, for all stages
        self.bills.append(
            StageBill(
                name=phase.stage.name,
                epochs=phase.stage.epochs,
                steps=phase.total,
                images=images,
                seconds=round(phase.elapsed(), 2),
                train_macs=float(per_image * images + taught * asked),
            )
        )
        self._bill_scored()

    def _bill_scored(self) -> None:
        """Images that the stage looked at before or after it trained."""
        bill, scored = self.bills[-1], self.context.scored
        bill.images, bill.train_macs = bill.images + scored, bill.train_macs + float(3 * self.dense_macs * scored)
        self.context.scored = 0

    def _checkpoint(self, phase: Phase) -> None:
        phase.average(self.world)
        corrupt = self._corrupt()
        if not self.world.first:
            return
        run = {
            "resumed": self.resumed,
            "corrupt": sorted(corrupt),
            "bills": [b.model_dump() for b in self.bills],
            "epochs": [e.model_dump() for e in self.epochs],
            "gates": [g.model_dump() for g in self.gates],
        }
        checkpoint.save(self.folders.checkpoints, phase.index, phase.step, {**phase.state(), **run})

    def _teacher(self) -> Any:
        """The network that the run starts from, frozen (paper, section 5), or another that was asked for; None for
        dense runs and at alpha 0."""
        config = self.config
        if config.distill.teacher:
            seen = data.pixels(self.data)
            found = teachers.teacher(config, seen, self.info.channels, self.info.classes, self.folders)
            if found.adapted and self.world.first:
                print(f"{config.run_id}: teacher: {'; '.join(found.adapted)}", file=sys.stderr)
            self.teacher_macs = found.macs(self.image)
            return found.to(self.device)
        if config.method == "dense" or config.distill.alpha == 0:
            return None
        return copy.deepcopy(self.start).eval().requires_grad_(False).to(self.device)

    def _plain_teacher(self) -> Any:
        """The network within ``teacher`` that has blocks. Raises ``ConfigError`` if they are not like the start's."""
        found = getattr(self.teacher, "model", self.teacher)
        check_fits(self.start, found)
        return found

    @torch.no_grad()
    def _taught(self) -> Tensor:
        """The teacher's logits of every training image, float32 (n, classes)."""
        size = max(self.config.optim.batch_size, MEASURED_AT_ONCE)
        found = []
        for images, _ in data.in_order(self.data, self.config.model.img_size, size):
            with autocast(self.device, self.config.optim.precision):
                found.append(self.teacher(images.to(self.device)).float())
        return torch.cat(found)

    def _dense_score(self) -> Score:
        """Of the network that the run starts from. What another run has left was measured at its end: that counts, if
        it was with the same images, precision, libraries and kind of machine."""
        config = self.config
        if config.model.weights.startswith("run:"):
            other = read(self.folders.referred(config.model.weights).record)
            here = environment(self.device, "")
            same = (
                other.config.data.model_dump(exclude={"root"}) == config.data.model_dump(exclude={"root"})
                and other.config.optim.precision == config.optim.precision
                and (other.environment.device_name, other.environment.threads) == (here.device_name, here.threads)
                and other.environment.libraries == here.libraries
            )
            if same and other.metrics.extracted:
                return _without_hits(other.metrics.extracted)
        return _without_hits(self._score(self.start))

    def _check_start(self, score: Score | None) -> None:
        """A start far below its published accuracy was loaded or is shown images in another way than it was trained."""
        config, published = self.config, self.published
        if score and published and score.top1 < published - config.run.max_drop:
            raise ConfigError(
                f"model.weights '{config.model.weights}' start at {score.top1:.2f} % where timm publishes "
                f"{published:.2f} % for {config.model.name}: order of classes, data.mean, data.crop_pct or images are "
                f"not as it was trained; run.max_drop={published - score.top1:.0f} or more goes on all the same"
            )

    def _score(self, model: Any, soft: bool = False, stoppable: bool = True) -> Score:
        config = self.config
        size = max(config.optim.batch_size, MEASURED_AT_ONCE)
        batches = data.test_batches(
            self.data,
            config.model.img_size,
            batch_size=size,
            workers=config.run.workers,
            share=(self.world.rank, self.world.size),
        )
        batches = self._until_stopped(batches) if stoppable else batches
        return evaluate(model.to(self.device), batches, self.device, config.optim.precision, soft, self.world)

    def _top1(self, phase: Phase) -> float:
        """Of the network as it is now, by its hardened gates. Not billed; a wish to stop waits until it is done, since
        the checkpoint of this epoch comes after it."""
        begun = time.perf_counter()
        with phase.ema.shown(phase.model) if phase.ema else nullcontext():
            top1 = self._score(phase.model, stoppable=False).top1
        phase.model.train()
        phase.clock += time.perf_counter() - begun
        return top1

    def _until_stopped(self, batches: Iterator[data.Batch]) -> Iterator[data.Batch]:
        """Nothing is lost by leaving a measurement: the checkpoint before it is there."""
        for batch in batches:
            if self.stopping():
                self._status(state="stopped")
                raise Interrupted(f"{self.config.run_id}: stopped while measuring; run again to resume")
            yield batch

    def _soft_score(self, model: Any) -> Score:
        """The network as it was trained: gates sampled at the final temperature, one draw per batch."""
        gated_vit.set_temperature(model, self.config.gates.tau_end)
        torch.manual_seed(derive(self.config.seed, "soft"))
        return _without_hits(self._score(model, soft=True))

    def _macs(self, model: Any) -> int:
        return cost.macs(model, self.image)

    def _steps_per_epoch(self) -> int:
        return data.steps_per_epoch(self.data, self.config.model.img_size, self.config.optim.batch_size)

    def _stage_folder(self, index: int) -> Path:
        return self.folders.work / f"stage-{index}"


@dataclass
class Phase:
    """A stage in progress. ``step`` counts finished steps; ``sums`` adds up the loss terms of the current epoch."""

    index: int
    stage: Stage
    config: Config
    model: Any
    per_epoch: int
    match: HiddenMatch | None = None
    step: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    clock: float = field(default_factory=time.perf_counter)
    rate: float = 0.0
    tau: float | None = None
    ema: Average | None = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = make_optimizer(self.model, self.config, gate_scale(self.config, self.per_epoch, self.schedule))
        if self.match:
            self.optimizer.add_param_group(self.match.group(self.config.optim.lr))
        self.ema = Average(self.model, self.config.optim.ema) if self.config.optim.ema else None
        device = next(self.model.parameters()).device.type
        self.scaler = torch.amp.GradScaler(device, enabled=self.config.optim.precision == "fp16")

    @property
    def total(self) -> int:
        return self.stage.epochs * self.per_epoch

    @property
    def schedule(self) -> int:
        """Steps of the schedule of rates, which stages may share."""
        return (self.stage.before + self.stage.epochs + self.stage.after) * self.per_epoch

    @property
    def scheduled(self) -> int:
        """Where in that schedule the next step is."""
        return self.stage.before * self.per_epoch + self.step

    def elapsed(self) -> float:
        """Seconds spent in this stage, earlier tries included."""
        return self.seconds + time.perf_counter() - self.clock

    def add(self, terms: dict[str, Tensor]) -> None:
        for name, value in terms.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.step += 1

    def average(self, world: World) -> None:
        """Let ``sums`` be the mean over the processes, in all of them."""
        if world.size > 1 and self.sums:
            means = world.sum(torch.stack(list(self.sums.values()))) / world.size
            self.sums = dict(zip(self.sums, means, strict=True))

    def state(self) -> dict[str, Any]:
        return {
            "stage": self.index,
            "step": self.step,
            "model": self.model.state_dict(),
            "stage_state": self.stage.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "sums": self.sums,
            "seconds": self.elapsed(),
            **({"ema": self.ema.state_dict()} if self.ema else {}),
            **({"map": self.match.map.detach()} if self.match else {}),
        }

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        try:
            self.model.load_state_dict(state["model"])
            self.stage.load_state_dict(state["stage_state"])
            self.optimizer.load_state_dict(state["optimizer"])
            if state.get("scaler"):  # not in older checkpoints, empty without fp16
                self.scaler.load_state_dict(state["scaler"])
            if self.ema:
                self.ema.load_state_dict(state["ema"])
            if self.match:
                self.match.map.data.copy_(state["map"])
        except (RuntimeError, ValueError, KeyError) as error:
            first = str(error).split("\n")[0]
            raise ConfigError(
                f"the checkpoint of stage {self.stage.name} does not fit ({first}): other code wrote it; "
                "remove the run's work folder to start it afresh"
            ) from None
        self.step, self.seconds = state["step"], state["seconds"]
        self.sums = {k: v.to(device) for k, v in state["sums"].items()}


def make_optimizer(model: Any, config: Config, gate_scale: float) -> torch.optim.Optimizer:
    """AdamW; the gates' rate is ``gate_scale`` times the weights' (A6)."""
    optim = config.optim
    return torch.optim.AdamW(param_groups(model, optim.lr, optim.weight_decay, config.gates, gate_scale), fused=True)


def _without_hits(score: Score) -> Score:
    """Which images were right is kept of the extracted network alone."""
    return score.model_copy(update={"correct": ""})


def _target(config: Config, folders: Folders, start: Any, latency: LatencyTable | None) -> Target | None:
    """What the run must reach: ``budget.target_macs`` or ``.target_params``, of ``start`` or as another run has it, or
    ``.target_latency``."""
    of_size = wanted(config, folders, "macs"), wanted(config, folders, "params")
    return target_of(start, *of_size, config.budget.target_latency, latency)


def _latency_table(config: Config, start: Any) -> LatencyTable | None:
    """The table of times that the run is given, if any. Raises ``ConfigError`` unless it is of ``start``'s sizes."""
    if not config.penalty.latency_table:
        return None
    table = read_latency(config.penalty.latency_table)
    table.require_fits(cost.dims_of(start))
    return table


def _predicted(model: Any, table: LatencyTable | None) -> Latency | None:
    if table is None:
        return None
    return Latency(
        predicted=cost.priced(model, table.prices, table.dims.head_dim) / PICOSECONDS,
        dense=Target(table.dims, table.prices, 0).dense / PICOSECONDS,
        table_sha256=table.sha256,
    )


def shape_of(model: Any) -> list[BlockShape]:
    """What is left of each block of a dense or extracted network."""
    return [BlockShape(head_dims=list(block.dims), neurons=block.neurons) for block in cost.left(model)]


def _preflight(config: Config, folders: Folders) -> None:
    """Everything that can be known to be wrong before the run writes anything."""
    data.check(config.data, config.model.img_size)
    check_needs(config)
    check_table(config)
    per_epoch = data.steps_per_epoch(config.data, config.model.img_size, config.optim.batch_size)
    for warning in filter(None, (check_reach(config, per_epoch), data.doubts(config.data, config.model.img_size))):
        print(f"{config.run_id}: {warning}", file=sys.stderr)
    for folder in (folders.runs, folders.work):
        require_writable(folder, f"run.results '{config.run.results}'")


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Within, SIGTERM and SIGINT ask the loop to checkpoint and stop at the next step; the same again stops at once.
    A queue's warning, which ``slurm.job`` passes on under its own number, is followed by a SIGTERM that must not."""
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if number in asked:
            raise KeyboardInterrupt
        asked.append(number)

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield lambda: False
        return
    old = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _record(config: Config, started: str, processes: int = 1, **fields: Any) -> Record:
    return Record(
        run_id=config.run_id,
        grid=config.run.grid,
        label=config.run.label or config.method,
        # Where the files lie says nothing about the result and does not travel.
        config=config.model_copy(update={"run": config.run.model_copy(update={"results": ""})}),
        seed=config.seed,
        environment=environment(pick_device(config.run.device), command_of(config), processes),
        started=started,
        finished=now(),
        **fields,
    )


def command_of(config: Config) -> str:
    """What to type to get this run again."""
    if config.run.grid != "manual":
        return f"python slurm/launch_grid.py --grid {config.run.grid} --only {config.run.label}"
    chosen = config.model_dump(mode="json", exclude_defaults=True, exclude={"run"})
    flat = {k: v for k, v in chosen.items() if not isinstance(v, dict)}
    flat |= {f"{s}.{k}": v for s, part in chosen.items() if isinstance(part, dict) for k, v in part.items()}
    return " ".join(["python -m hiap.train", *(f"{k}={v}" for k, v in flat.items())])


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 finished, 1 the run failed (and left a record), 2 bad configuration, 143 stopped, resumable."""
    try:
        config = from_dict(parse_overrides(sys.argv[1:] if arguments is None else arguments), "arguments")
        record = run(config)
    except (ConfigError, gated_vit.UnsupportedModelError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Interrupted as error:
        print(error, file=sys.stderr)
        return 143
    assert record.size is not None
    assert record.metrics.extracted is not None
    share, batch = record.size.macs / record.size.dense_macs, record.latency
    predicted = f", {batch.predicted:.0f} µs predicted ({batch.predicted / batch.dense:.1%})" if batch else ""
    print(
        f"{record.run_id}: top-1 {record.metrics.extracted.top1:.2f} %, {record.size.macs / 1e6:.2f} M MACs "
        f"({share:.1%} of dense), {record.size.params / 1e6:.3f} M parameters{predicted}\n{Folders.of(config).record}"
    )
    return 0
