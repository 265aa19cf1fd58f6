"""What a run tells of itself: status.json, TensorBoard, the logs of epochs and gates, bills, and its record."""

from __future__ import annotations

import sys
import time
from importlib.util import find_spec
from typing import Any

import torch

from hiap import cost, gated_vit
from hiap.train.config import Config
from hiap.train.device import pick_device
from hiap.train.distributed import World
from hiap.train.phase import Phase
from hiap.train.record import EpochLog, Folders, GateLog, Record, StageBill, environment, now, write_status
from hiap.train.stages import Context, Stage

STATUS_SECONDS = 2.0


class Journal:
    """Of one run, from its first try on: a resumed run goes on with the logs and bills of the tries before it."""

    def __init__(self, config: Config, folders: Folders, world: World, dense_macs: int):
        self.config, self.folders, self.world, self.dense_macs = config, folders, world, dense_macs
        self.bills: list[StageBill] = []
        self.epochs: list[EpochLog] = []
        self.gates: list[GateLog] = []
        self.resumed = 0
        self._last_status = 0.0
        self.writer: Any = None

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {
            "resumed": self.resumed,
            "bills": [b.model_dump() for b in self.bills],
            "epochs": [e.model_dump() for e in self.epochs],
            "gates": [g.model_dump() for g in self.gates],
        }

    def resume(self, state: dict[str, Any]) -> None:
        self.resumed = state["resumed"] + 1
        self.bills = [StageBill(**b) for b in state["bills"]]
        self.epochs = [EpochLog(**e) for e in state["epochs"]]
        self.gates = [GateLog(**g) for g in state.get("gates", [])]

    def status(self, **fields: Any) -> None:
        if self.world.first:
            write_status(self.folders, resumed=self.resumed, **fields)

    def running(self, phase: Phase, stages: list[Stage], mean: float) -> None:
        """Tell status.json, now and then, how far it is and what the loss is."""
        if time.monotonic() - self._last_status > STATUS_SECONDS or phase.step == phase.total:
            self._last_status = time.monotonic()
            before, epochs = (sum(s.epochs for s in part) for part in (stages[: phase.index], stages))
            macs = self.epochs[-1].macs if self.epochs else None
            self.status(
                state="running",
                stage=phase.stage.name,
                epoch=before + phase.step // phase.per_epoch,
                epochs=epochs,
                loss=mean,
                share=macs and macs / self.dense_macs,
                # Later stages as if their steps took as long.
                eta_s=phase.elapsed() / phase.step * ((epochs - before) * phase.per_epoch - phase.step),
            )

    def epoch_log(self, phase: Phase) -> EpochLog:
        """Of the epoch that has just ended, whose sums are let go."""
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
        return log

    def add(self, log: EpochLog) -> None:
        self.epochs.append(log)
        self._tensorboard(log)

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
                macs=cost.hardened_macs(model),
                expected_macs=round(float(cost.expected_cost(model).macs)),
            )
        )

    def _tensorboard(self, log: EpochLog) -> None:
        if not (self.config.run.tensorboard and self.world.first and find_spec("tensorboard")):
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

    def bill(self, phase: Phase, images: int, macs: int) -> None:
        """A stage that has ended, after so many ``images`` and multiply-adds."""
        self.bills.append(
            StageBill(
                name=phase.stage.name,
                epochs=phase.stage.epochs,
                steps=phase.total,
                images=images,
                seconds=round(phase.elapsed(), 2),
                train_macs=float(macs),
            )
        )

    def bill_scored(self, context: Context) -> None:
        """Images that the stage looked at before or after it trained."""
        bill, scored = self.bills[-1], context.scored
        bill.images, bill.train_macs = bill.images + scored, bill.train_macs + float(3 * self.dense_macs * scored)
        context.scored = 0


def record_of(config: Config, started: str, processes: int = 1, **fields: Any) -> Record:
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
    """What to type to get this run again."""
    if config.run.grid != "manual":
        return f"python slurm/launch_grid.py --grid {config.run.grid} --only {config.run.label}"
    chosen = config.model_dump(mode="json", exclude_defaults=True, exclude={"run"})
    flat = {k: v for k, v in chosen.items() if not isinstance(v, dict)}
    flat |= {f"{s}.{k}": v for s, part in chosen.items() if isinstance(part, dict) for k, v in part.items()}
    return " ".join(["python -m hiap.train", *(f"{k}={v}" for k, v in flat.items())])
