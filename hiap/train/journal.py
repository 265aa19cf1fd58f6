"""What a run tells of itself: status.json, progress, curves, the logs of epochs and gates, bills, and its record."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch

from hiap import cost, gated_vit
from hiap.budget.prices import hardened_macs
from hiap.train.config import Config
from hiap.train.curves import Curves
from hiap.train.device import pick_device
from hiap.train.distributed import World
from hiap.train.phase import Phase
from hiap.train.progress import Progress
from hiap.train.record import EpochLog, Folders, GateLog, Record, Score, StageCost, environment, now, write_status
from hiap.train.stages import Context, Stage

STATUS_SECONDS = 2.0


class Journal:
    """Journal of one run, from its first try on: a resumed run goes on with the logs and costs of the tries before
    it."""

    def __init__(self, config: Config, folders: Folders, world: World, dense_macs: int):
        self.config, self.folders, self.world, self.dense_macs = config, folders, world, dense_macs
        self.costs: list[StageCost] = []
        self.epochs: list[EpochLog] = []
        self.gates: list[GateLog] = []
        self.resumed = 0
        self.dense: Score | None = None
        self.probe: Score | None = None
        self.made_of: dict[str, str] = {}  # digests of images, files and code, which a resumed run must have too
        self.made_on: dict[str, str] = {}  # code that all share, device and libraries: a resumed run may have others
        self.begun_with: dict[str, str] = {}  # what of it was another before
        self._last_status = 0.0
        self.pruned = 0.0
        self.progress = Progress(config.run.label or config.run_id, config.run.progress and world.first)
        self.curves = Curves(config, folders)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the journal."""
        return {
            "resumed": self.resumed,
            "dense": self.dense and self.dense.model_dump(),
            "probe": self.probe and self.probe.model_dump(),
            "made_of": self.made_of,
            "made_on": self.made_on,
            "begun_with": self.begun_with,
            "bills": [b.model_dump() for b in self.costs],
            "epochs": [e.model_dump() for e in self.epochs],
            "gates": [g.model_dump() for g in self.gates],
        }

    def resume(self, state: dict[str, Any]) -> None:
        self.resumed = state["resumed"] + 1
        other = {what: was for what, was in state.get("made_on", {}).items() if was != self.made_on.get(what)}
        self.begun_with = {**other, **state.get("begun_with", {})}
        if other and self.world.first:
            told = ", ".join(f"{what} {was} then, {self.made_on.get(what)} now" for what, was in other.items())
            print(f"{self.config.run_id}: begun on other ground: {told}", file=sys.stderr)
        self.dense, self.probe = (Score(**state[name]) if state.get(name) else None for name in ("dense", "probe"))
        self.costs = [StageCost(**b) for b in state["bills"]]
        self.epochs = [EpochLog(**e) for e in state["epochs"]]
        self.gates = [GateLog(**g) for g in state.get("gates", [])]

    def status(self, **fields: Any) -> None:
        if self.world.first:
            write_status(self.folders, resumed=self.resumed, **fields)

    def update_status(self, phase: Phase, stages: list[Stage], mean: float) -> None:
        """Tell status.json, now and then, how far the run is and what the loss is."""
        if time.monotonic() - self._last_status > STATUS_SECONDS or phase.step == phase.total:
            self._last_status = time.monotonic()
            before, epochs = _epochs(phase, stages)
            macs = self.epochs[-1].macs if self.epochs else None
            self.status(
                state="running",
                stage=phase.stage.name,
                epoch=before + phase.step // phase.per_epoch,
                epochs=epochs,
                loss=mean,
                share=macs and macs / self.dense_macs,
                eta_s=_to_go(phase, stages),
            )

    def show_progress(self, phase: Phase, stages: list[Stage], loss: float) -> None:
        """Tell whoever watches how far the run is; ``loss``: the mean over the epoch so far."""
        ended, (before, epochs) = phase.step % phase.per_epoch == 0, _epochs(phase, stages)
        part = "" if ended else f" ({phase.step % phase.per_epoch / phase.per_epoch:.0%} of it)"
        said = [f"epoch {before + -(-phase.step // phase.per_epoch)} of {epochs}{part}", f"loss {loss:.4f}"]
        log = self.epochs[-1] if ended else None
        if log and log.macs:
            said.append(f"{log.macs / self.dense_macs:.1%} of the MACs")
        if log and log.top1 is not None:
            said.append(f"top-1 {log.top1:.2f} %")
        said.append(f"{phase.elapsed() / phase.step * phase.per_epoch:.3g} s an epoch")
        said.append(f"{timedelta(seconds=round(_to_go(phase, stages)))} to go")
        self.progress.show(loss, ", ".join(said), ended)

    def epoch_log(self, phase: Phase) -> EpochLog:
        """Return the log of the epoch that has just ended, whose sums are let go."""
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
            log.macs = hardened_macs(phase.model)
            if not any(log.heads):
                print(
                    f"{self.config.run_id}: after epoch {log.epoch + 1} every head is closed; unless one opens again "
                    "there will be nothing to extract (gates.keep_head keeps the best one)",
                    file=sys.stderr,
                )
        log.state = phase.stage.log(phase.model)
        return log

    def add(self, log: EpochLog) -> None:
        self.epochs.append(log)
        if self.world.first:
            self.curves.add(self.epochs)

    @torch.no_grad()
    def log_gates(self, phase: Phase) -> None:
        model = phase.model
        kept = gated_vit.masks(model)
        self.gates.append(
            GateLog(
                step=phase.step,
                steps=phase.total,
                heads=[len(m.head_widths()) for m in kept],
                neurons=[m.neuron_count() for m in kept],
                macs=hardened_macs(model),
                expected_macs=round(float(cost.expected_cost(model).macs)),
            )
        )

    def add_cost(self, phase: Phase, images: int, macs: int) -> None:
        """Note the training cost of a stage that has ended, after so many ``images`` and multiply-adds."""
        self.costs.append(
            StageCost(
                name=phase.stage.name,
                epochs=phase.stage.epochs,
                steps=phase.total,
                images=images,
                seconds=round(phase.elapsed(), 2),
                train_macs=float(macs),
                pruning_seconds=0.0,
            )
        )

    @contextmanager
    def pruning(self, device: torch.device) -> Iterator[None]:
        """Count the seconds within as ones of ranking, cutting and correcting."""
        clock = time.process_time if device.type == "cpu" else time.perf_counter
        begun = clock()
        yield
        self.pruned += clock() - begun

    def add_pruning(self, context: Context) -> None:
        """Add to it the images that the stage looked at before or after it trained, and the seconds of that."""
        last = self.costs[-1]
        last.pruning_seconds = round((last.pruning_seconds or 0.0) + self.pruned, 2)
        self.pruned = 0.0
        last.images += context.scored
        last.train_macs += float(3 * self.dense_macs * context.scored)
        context.scored = 0

    def forget_pruning(self, context: Context) -> None:
        """Leave out of the bill what a resumed run has looked at a second time."""
        context.scored, self.pruned = 0, 0.0


def _epochs(phase: Phase, stages: list[Stage]) -> tuple[int, int]:
    """Return the epochs of the stages before this one, and of all."""
    before, every = (sum(s.epochs for s in part) for part in (stages[: phase.index], stages))
    return before, every


def _to_go(phase: Phase, stages: list[Stage]) -> float:
    """Return the seconds that are left, if steps of later stages take as long."""
    before, epochs = _epochs(phase, stages)
    return phase.elapsed() / phase.step * ((epochs - before) * phase.per_epoch - phase.step)


def record_of(config: Config, started: str, processes: int = 1, **fields: Any) -> Record:
    """Return the record of a run, with ``fields`` beside what follows from its configuration and this machine."""
    return Record(
        run_id=config.run_id,
        grid=config.run.grid,
        label=config.run.label or config.name,
        # Where the files lie says nothing about the result and does not travel.
        config=config.model_copy(update={"run": config.run.model_copy(update={"results": ""})}),
        seed=config.seed,
        environment=environment(pick_device(config.run.device), command_of(config), processes),
        started=started,
        finished=now(),
        **fields,
    )


def command_of(config: Config) -> str:
    """Return what to type to get this run again."""
    if config.run.grid != "manual":
        return f"python slurm/launch_grid.py --grid {config.run.grid} --only {config.run.label}"
    chosen = config.model_dump(mode="json", exclude_defaults=True, exclude={"run"})
    flat = {k: v for k, v in chosen.items() if not isinstance(v, dict)}
    flat |= {f"{s}.{k}": v for s, part in chosen.items() if isinstance(part, dict) for k, v in part.items()}
    return " ".join(["python -m hiap.train", *(f"{k}={v}" for k, v in flat.items())])
