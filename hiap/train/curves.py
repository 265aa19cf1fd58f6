"""What a run shows of its epochs while it trains: ``curves.csv``, TensorBoard's files and, where it is asked for, a run
on Weights & Biases. All hold the same numbers by the same names."""

from __future__ import annotations

import csv
import io
from importlib.util import find_spec
from typing import Any

from hiap.files import atomic_write
from hiap.train.config import Config, ConfigError
from hiap.train.record import EpochLog, Folders

FIRST = ("epoch", "stage", "loss", "lr")  # columns of curves.csv that every row fills


def check(config: Config) -> None:
    """Raise ``ConfigError`` if a run asks for what is not installed."""
    if config.run.wandb and find_spec("wandb") is None:
        raise ConfigError(
            f"run.wandb '{config.run.wandb}': wandb is not installed; install the extra 'wandb' or leave run.wandb out"
        )


class Curves:
    """Curves of one run. The CSV is written whole after each epoch: it never holds an epoch that the run has not
    reached, nor one twice, wherever it was killed and resumed."""

    def __init__(self, config: Config, folders: Folders):
        self.config, self.folders = config, folders
        self._board: Any = None
        self._online: Any = None

    def add(self, epochs: list[EpochLog]) -> None:
        """Show the last of the run's ``epochs`` so far."""
        _write(self.folders, epochs)
        number, values = len(epochs) - 1, numbers(epochs[-1])
        if self.config.run.tensorboard and find_spec("tensorboard"):
            self._tensorboard(epochs[-1].stage, number, values)
        if self.config.run.wandb:
            self._wandb().log({f"{epochs[-1].stage}/{name}": value for name, value in values.items()}, step=number)

    def close(self) -> None:
        """Close what was opened, after the last epoch."""
        if self._board is not None:
            self._board.close()
        if self._online is not None:
            self._online.finish()

    def _tensorboard(self, stage: str, number: int, values: dict[str, float]) -> None:
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self._board = SummaryWriter(self.folders.work / "tensorboard", purge_step=number)
        for name, value in values.items():
            self._board.add_scalar(f"{stage}/{name}", value, number)
        self._board.flush()

    def _wandb(self) -> Any:
        """Return the run there. A resumed run goes on with it; epochs that it trains again are known there, and
        equal."""
        if self._online is None:
            import wandb

            config = self.config
            self._online = wandb.init(
                project=config.run.wandb,
                id=f"{config.run.grid}-{config.run_id}",
                name=config.run.label or config.run_id,
                group=config.run.grid,
                config=config.model_dump(mode="json", exclude={"run"}),
                dir=str(self.folders.work),
                resume="allow",
            )
        return self._online


def numbers(log: EpochLog) -> dict[str, float]:
    """Return what there is to draw of an epoch: heads and neurons are those of all blocks."""
    known: dict[str, float | None] = {name: getattr(log, name) for name in ("loss", "lr", "tau", "macs", "top1")}
    if log.heads is not None and log.neurons is not None:
        known |= {"heads": sum(log.heads), "neurons": sum(log.neurons)}
    return {name: value for name, value in {**known, **log.terms, **log.state}.items() if value is not None}


def _write(folders: Folders, epochs: list[EpochLog]) -> None:
    """Write a row per epoch, counted over all stages from 1; what a stage does not have stays empty."""
    rows = [{"epoch": i, "stage": log.stage, **numbers(log)} for i, log in enumerate(epochs, 1)]
    columns = dict.fromkeys(FIRST) | dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(folders.curves, text.getvalue().encode())
