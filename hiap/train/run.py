"""A run from its start to its record: ``python -m hiap.train key=value ...``.

A run starts from a network (random, pretrained or another run's), passes it through the stages of its method, measures
the result on the extracted network and writes one record (``journal``). Stages are trained by ``loop``.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from hiap import cost, gated_vit
from hiap.backbones.evening import alike
from hiap.backbones.families import pretrained
from hiap.backbones.pruned import LAYOUTS, set_layout
from hiap.backbones.seeds import derive
from hiap.budget.latency import PICOSECONDS, LatencyTable
from hiap.budget.prices import latency_table, priced
from hiap.budget.selection import Target, target_of
from hiap.budget.summary import block_shapes
from hiap.data import loader as data
from hiap.formats import store
from hiap.train import card, checkpoint, compilation, curves, identity, iterative, probe
from hiap.train.config import ON_DISK, Config, ConfigError, check_needs, check_table, from_dict, parse_overrides
from hiap.train.device import check_precision, pick_device
from hiap.train.distributed import ALONE, World, joined, lost_another
from hiap.train.journal import Journal, record_of
from hiap.train.loop import Loop
from hiap.train.measure import Measure, without_hits
from hiap.train.reach import GATED, check_reach, few_steps, short_for_its_schedule
from hiap.train.record import (
    BlockShape,
    Folders,
    Images,
    Latency,
    Metrics,
    Record,
    Size,
    environment,
    now,
    read,
    require_writable,
    target_value,
    write,
    write_status,
)
from hiap.train.stages import Context, stages
from hiap.train.start import Start, build, published_top1, require_history, require_same_classes, set_drop_path
from hiap.train.stopping import Interrupted, TrainingFailedError, stop_signals
from hiap.train.teachers import Distillation

RERUN = "--rerun"


def run(config: Config, rerun: bool = False) -> Record:
    """Train, prune, measure; resume if a checkpoint is there; return the record (the old one if the run is finished,
    with the same images, weights and code). ``rerun``: train again from the start, whatever is there but for what an
    interrupted rerun of the same images, files and code has left, which goes on.

    Raises ``ConfigError`` before anything is written if the run cannot start, ``TrainingFailedError`` after a failed
    record was written, and ``Interrupted`` after a checkpoint was written. Under ``torchrun`` or ``srun`` several
    processes share the run (``distributed``).
    """
    folders = Folders.of(config)
    data.forget_images()
    if folders.record.exists() and not rerun:
        record = read(folders.record)
        identity.require_same(record, config, folders)
        if doubt := identity.doubts([record]):
            print(doubt, file=sys.stderr)
        then, now_ = (one.run.accumulate for one in (record.config, config))
        if then != now_ and config.method in GATED and config.gates.noise != "shared":
            print(
                f"{config.run_id}: finished with run.accumulate {then}; in {now_} parts gates would draw other noise; "
                "--rerun trains it again",
                file=sys.stderr,
            )
        return record
    _preflight(config, folders)
    started, device = now(), pick_device(config.run.device)
    check_precision(config.optim.precision, device)
    if config.run.compile:
        compilation.check(device)
    with joined(device) as world:
        try:
            with stop_signals() as stopping:
                record = Run(config, folders, stopping, world, rerun).execute(started)
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
            _delete_checkpoints(folders)
            if rerun:
                folders.earlier.unlink(missing_ok=True)
                folders.again.unlink(missing_ok=True)
    return record


def _delete_checkpoints(folders: Folders) -> None:
    """Delete what a finished run would have resumed from: several times its network's size, and there may be
    hundreds."""
    for folder in folders.needed_to_resume():
        shutil.rmtree(folder, ignore_errors=True)


def record_lost(config: Config, error: str) -> Path:
    """Write the failed record of a run whose job died without one (out of memory, a lost node), as its launcher saw
    it."""
    cpu = config.model_copy(update={"run": config.run.model_copy(update={"device": "cpu"})})  # the launcher's machine
    write_status(Folders.of(config), state="failed", error=error)
    return write(record_of(cpu, now(), status="failed", error=error), Folders.of(config))


def _record_failure(config: Config, folders: Folders, started: str, error: Exception, world: World) -> str:
    """Write the failed record; return what to tell."""
    kind = "" if isinstance(error, TrainingFailedError) else f"{type(error).__name__}: "
    line = f"{kind}{error}".splitlines()[0]
    if not world.first:  # all may fail of the same: one record
        return f"{config.run_id}: {line} (process {world.rank})"
    try:
        path = write(record_of(config, started, status="failed", error=line), folders)
        folders.again.unlink(missing_ok=True)
        write_status(folders, state="failed", error=line)
    except OSError as full:
        return f"{config.run_id}: {line} (not recorded: {full.strerror})"
    return f"{config.run_id}: {line} (recorded in {path})"


class Run:
    """Run in progress: what it is made of, and how far it has come."""

    def __init__(
        self,
        config: Config,
        folders: Folders,
        stopping: Callable[[], bool],
        world: World = ALONE,
        rerun: bool = False,
    ):
        self.config, self.folders, self.stopping, self.world, self.rerun = config, folders, stopping, world, rerun
        if config.run.threads:
            torch.set_num_threads(config.run.threads)
        identity.require_loaded()
        self.code, self.core = identity.code_digest(config.method), identity.core_digest()  # of what runs now
        self.device = pick_device(config.run.device)
        self.info = info = data.info(config.data, config.model.img_size)
        parts, batch = world.size * config.run.accumulate, min(config.optim.batch_size, info.train)
        if 1 < parts > batch // 2:
            raise ConfigError(
                f"optim.batch_size {batch}: too small for {parts} parts (processes x run.accumulate) of a pair or more"
            )
        data.check_mixing(config.data, batch)
        start = self._start()
        self.start, self.adapted, self.new_head = start.model, start.adapted, start.new_head
        compared = config.data.name == "imagenet" and not start.new_head
        self.published = published_top1(config.model) if compared else None
        self.data = config.data.model_copy(update=self._pixels())
        self.stages = stages(config)
        try:
            self.dense_macs = self._macs(self.start)
        except ValueError as error:
            raise ConfigError(f"model.name '{config.model.name}': {error}") from None
        self.whole = iterative.evened(self.start, config)
        path = config.penalty.latency_table
        self.latency = latency_table(self.start, path) if path else None
        target = _target(config, folders, self.start, self.whole, self.latency)
        self.context = Context(config.model_copy(update={"data": self.data}), target, self._steps_per_epoch())
        distillation = Distillation(self.context.config, self.start, self.dense_macs, info, folders, self.device)
        if distillation.adapted and world.first:
            print(f"{config.run_id}: teacher: {'; '.join(distillation.adapted)}", file=sys.stderr)
        if config.method != "dense" and config.model.weights.startswith("run:"):
            self._tell_behind(read(folders.referred(config.model.weights).record))
        self.journal = Journal(config, folders, world, self.dense_macs)
        self.journal.made_of = {
            "images": data.files_digest(config.data),
            f"code of method {config.method}": self.code,
            **{f"file of {key}": sha256 for key, sha256 in identity.files_behind(config, folders).items()},
        }
        here = environment(self.device, "")
        self.journal.made_on = {
            "modules of hiap/": self.core[: identity.SHOWN],
            **({"parts of a batch": str(parts)} if config.method in GATED and config.gates.noise != "shared" else {}),
            "device": here.device_name,
            **here.libraries,
        }
        self.measure = Measure(config, self.data, folders, world, self.device, stopping, self.journal, info)
        self.loop = Loop(
            config, self.data, folders, world, self.device, info, stopping, self.stages, self.context, distillation,
            self.journal, self.measure,
        )  # fmt: skip
        for doubt in _doubts(config) if world.first else ():
            print(f"{config.run_id}: {doubt}", file=sys.stderr)

    def _start(self) -> Start:
        """Return the network that the run starts from, fitted to the images and classes."""
        config, info = self.config, self.info
        require_history(config, self.folders)
        start = build(config.model, info.channels, info.classes, self.folders, derive(config.seed, "weights"))
        if start.new_head and config.method != "dense":
            raise ConfigError(
                f"model.weights '{config.model.weights}': {start.adapted[-1]}, from which nothing can be learned yet: "
                "train it with method=dense, then set model.weights=run:<run_id>"
            )
        if config.model.probe and not start.new_head:
            weights = config.model.weights
            raise ConfigError(
                f"model.probe: model.weights '{weights}' have a classifier of these {info.classes} classes"
            )
        if config.model.weights and not start.new_head:
            key = f"model.weights '{config.model.weights}'"
            require_same_classes(start.model, config.data, info.classes, key)
        if start.adapted and self.world.first:
            print(f"{config.run_id}: {'; '.join(start.adapted)}", file=sys.stderr)
        return start

    def _pixels(self) -> dict[str, Any]:
        """Return how images become pixels in this run; the network keeps it, with the names of its classes, and hands
        it on to runs that start from it."""
        known, here = pretrained(self.start), self.config.data
        found = data.pixels(here, known if self.config.model.weights else None)
        self.start.pretrained_cfg = {**known, **found}
        told = known.get("label_names") or ()
        if here.name in ON_DISK and (self.new_head or len(told) != self.info.classes):
            names = data.class_names(here)
            self.start.pretrained_cfg["label_names"] = None if all(map(str.isdecimal, names)) else names
        return found if here.name in ON_DISK else {}

    def execute(self, started: str) -> Record:
        """Train, measure and return the record."""
        try:
            return self._execute(started)
        except ConfigError as error:
            if self.loop.begun:  # data that prove unreadable, say: the run has cost something, and leaves a record
                raise TrainingFailedError(str(error)) from None
            raise
        finally:
            self.journal.curves.close()

    def _execute(self, started: str) -> Record:
        config, journal = self.config, self.journal
        if self.rerun:
            if self.world.first:
                self.folders.begin_again({**journal.made_of, "core": self.core})
            self.world.barrier()
        state = checkpoint.load(self.folders.checkpoints, self.world)
        self.world.barrier()  # before the first process writes the next one
        first = self._resume(state)
        given = config.model.weights and not config.model.scratch
        if given and (journal.dense, journal.probe) == (None, None):
            self._measure_start()
        elif first == 0 and state is None:
            self.measure.require_readable()  # else the first look would be after all of the training
        if given:
            self.start.to(self.device).eval()  # as measuring leaves it, in a resumed run too
        metrics = Metrics(dense=journal.dense, probe=journal.probe)
        self.loop.distillation.precompute()
        model = self._begin() if first == 0 else self._handed_on(first - 1)
        for index in range(first, len(self.stages)):
            stage = self.stages[index]
            with journal.pruning(self.device):
                model = self._lean(stage.prepare(model, self.context)).to(self.device)
            if len(journal.costs) > index:  # stopped behind this stage's training, whose bill has that already
                journal.forget_pruning(self.context)
            set_drop_path(model, config.model.drop_path)
            self.loop.train(index, stage, model, state if index == first else None)
            stage.harden(model)
            # A search's gates are a means; what counts is what the stages after it make of them.
            if gated_vit.is_gated(model) and index + 1 == len(self.stages):
                metrics.soft = self.measure.soft_score(model)
                metrics.hardened = without_hits(self.measure.score(model, "the gated network"))
            with journal.pruning(self.device):
                model = self._lean(stage.finish(model))
            journal.add_pruning(self.context)
            if index + 1 < len(self.stages) and self.world.first:
                store.save(model, self.folders.stage(index))
        metrics.extracted = self.measure.score(model, "the network that is left")
        record = self._finished(started, metrics, model)
        self._tell_behind(record)
        if self.world.first:
            set_layout(model, LAYOUTS[0])  # what runs fastest; training ran what it is billed for
            store.save(model, self.folders.model, card=card.of_record(record, self.folders, self.start))
        return record

    def _tell_behind(self, record: Record) -> None:
        """Say if a dense network is behind the features that it began with."""
        if self.world.first and (line := probe.behind(record)):
            print(f"{record.run_id}: {line}", file=sys.stderr)

    def _measure_start(self) -> None:
        """Tell the journal how good the network is that the run starts from. A classifier that was drawn at random is
        not measured: a probe says what its features are worth."""
        config, journal = self.config, self.journal
        if config.model.probe:
            probe.start_from(self.start, config, self.data, self.info.classes, self.device)
        elif self.new_head:
            journal.probe = probe.quick_score(self.start, config, self.data, self.info, self.device)
            return
        journal.dense = self.measure.dense_score(self.start)
        journal.probe = journal.dense if config.model.probe else None
        if not config.model.probe and journal.dense.top1 <= 100 / self.info.classes:
            found = f"the start has top-1 {journal.dense.top1:.2f} %, no better than chance"
            journal.progress.say(f"{found}: was it trained on these {self.info.classes} classes, in this order?")
        self.measure.check_start(journal.dense, self.published)

    def _begin(self) -> Any:
        """Return what the first stage prepares: HiAP's pruner evens a network by itself, and closes the gates of
        zeros."""
        return self.start if self.config.method in GATED else self.whole

    def _handed_on(self, index: int) -> Any:
        """Return the network that a stage has left, with what is known of one that was pruned before."""
        model = store.load(self.folders.stage(index))
        if self.whole is not self.start and alike(model.blocks):
            model.given = self.whole.given
        return model

    def _lean(self, model: Any) -> Any:
        """Remove the zeros that a network which was pruned before has been filled up with."""
        return model if self.whole is self.start else iterative.without_zeros(model)

    def _finished(self, started: str, metrics: Metrics, model: Any) -> Record:
        files = identity.files_behind(self.config, self.folders)
        return record_of(
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
            stages=self.journal.costs,
            epochs=self.journal.epochs,
            shape=shape_of(model),
            gates=self.journal.gates,
            weights_sha256="" if self.config.model.scratch else files.get("model.weights", ""),
            adapted=self.adapted,
            files=files,
            code=self.code,
            core=self.core,
            images=Images(**data.identity(self.data, self.config.model.img_size, self.config.run.workers)),
            corrupt_images=len(self.loop.corrupt()),
            resumed=self.journal.resumed,
            begun_with=self.journal.begun_with,
        )

    def _resume(self, state: dict[str, Any] | None) -> int:
        """Take over what a checkpoint says of the run as a whole; returns the stage that it was written in."""
        data.set_corrupt(self.data, set(state.get("corrupt", [])) if state else set())
        if state is None:
            return 0
        now = self.journal.made_of
        if different := [name for name, digest in state.get("made_of", now).items() if digest != now.get(name, "")]:
            raise ConfigError(
                f"{self.config.run_id}: begun with other {' and '.join(different)} (see the work folder "
                f"{self.folders.work}); --rerun starts it afresh"
            )
        self.journal.resume(state)
        return state["stage"]

    def _macs(self, model: Any) -> int:
        return cost.macs(model, self.info.image(self.config.model.img_size))

    def _steps_per_epoch(self) -> int:
        return data.steps_per_epoch(self.data, self.config.model.img_size, self.config.optim.batch_size)


def _target(config: Config, folders: Folders, start: Any, whole: Any, latency: LatencyTable | None) -> Target | None:
    """Return what the run must reach: ``budget.target_macs`` or ``.target_params``, of ``start`` or as another run has
    it, or ``.target_latency``. ``whole``: ``start`` with zeros where it was pruned before."""
    of_size = target_value(config, folders, "macs"), target_value(config, folders, "params")
    if whole is not start:
        return iterative.target(whole, *of_size, config.budget.multiple)
    return target_of(start, *of_size, config.budget.target_latency, latency, config.budget.multiple)


def _predicted(model: Any, table: LatencyTable | None) -> Latency | None:
    if table is None:
        return None
    return Latency(
        predicted=priced(model, table.prices, table.dims.head_dim) / PICOSECONDS,
        dense=Target(table.dims, table.prices, 0).dense / PICOSECONDS,
        table_sha256=table.sha256,
    )


def shape_of(model: Any) -> list[BlockShape]:
    """Return what is left of each block of a dense or extracted network."""
    return [BlockShape(head_dims=block.head_dims, neurons=block.neurons) for block in block_shapes(model)]


def _preflight(config: Config, folders: Folders) -> None:
    """Raise ``ConfigError`` for everything that can be known to be wrong before the run writes anything."""
    data.check(config.data, config.model.img_size)
    check_needs(config)
    check_table(config)
    curves.check(config)
    check_reach(config, data.steps_per_epoch(config.data, config.model.img_size, config.optim.batch_size))
    for folder in (folders.runs, folders.work):
        require_writable(folder, f"run.results '{config.run.results}'")


def _doubts(config: Config) -> Iterator[str]:
    """Yield what is odd about a run that can start."""
    per_epoch = data.steps_per_epoch(config.data, config.model.img_size, config.optim.batch_size)
    of_data = data.doubts(config.data, config.model.img_size)
    of_gates = check_reach(config, per_epoch), few_steps(config, per_epoch)
    yield from filter(None, (*of_gates, short_for_its_schedule(config, per_epoch), of_data))


def main(arguments: list[str] | None = None) -> int:
    """Run; return the exit status: 0 finished, 1 the run failed (and left a record), 2 bad configuration, 143 stopped,
    resumable."""
    try:
        given = sys.argv[1:] if arguments is None else arguments
        config = from_dict(parse_overrides([word for word in given if word != RERUN]), "arguments")
        record = run(config, rerun=RERUN in given)
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
    dense = record.metrics.dense
    before = f" (it started from {dense.top1:.2f} %)" if dense else ""
    print(
        f"{record.run_id}: top-1 {record.metrics.extracted.top1:.2f} %{before}, {record.size.macs / 1e6:.2f} M MACs "
        f"({share:.1%} of start), {record.size.params / 1e6:.3f} M parameters{predicted}\n{Folders.of(config).record}"
    )
    return 0
