"""Records on disk to data frames: the only way that our results enter a table or a figure.

Columns mean what ``results/dictionary.yaml`` says of them. Nothing here needs torch. Records are validated by
``hiap.train.record.read``, which raises ``ConfigError`` (one line) for a file that is not one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from hiap.budget.sizes import share
from hiap.ledger import Dims, dense_macs
from hiap.train.config import ConfigError
from hiap.train.record import Folders, Record, Size, read
from slurm import estimate
from slurm.grid import dotted

REPOSITORY = Path(__file__).resolve().parents[2]

RUN_COLUMNS = (
    "grid", "run_id", "label", "method", "seed", "data", "measure", "test_images", "start", "top1", "top1_dense",
    "top1_soft", "top1_hardened", "gap", "target", "budget", "macs", "macs_dense", "macs_share", "params",
    "params_dense", "heads", "value_dims", "neurons", "epochs", "steps", "images", "seconds", "train_macs",
    "pruning_seconds", "device", "device_name", "commit", "dirty", "status", "finished",
)  # fmt: skip
AS = "as "  # of ``budget``: as much as another run, by its label
SUMS = ("epochs", "steps", "images", "seconds", "train_macs")  # over the stages of a run
STAGE_COLUMNS = ("grid", "run_id", "label", "method", "seed", "stage", *SUMS, "inherited")
FAILURE_COLUMNS = ("grid", "run_id", "label", "method", "seed", "error", "finished")
MACS_COLUMNS = ("run_id", "label", "seed", "epoch", "expected", "hardened", "strength")
GATE_COLUMNS = ("epoch", "block", "heads", "neurons", "mean_dims")
SHAPE_COLUMNS = ("block", "heads", "head_dims", "neurons")


class Results:
    """A results root; by default ``$HIAP_RESULTS``, or the repository's ``results``. A record is read once, when it is
    first asked for, so a notebook or command makes one of these and hands it on. ``grid`` None is every grid."""

    def __init__(self, root: str | Path | None = None):
        self.root = Path(root or os.environ.get("HIAP_RESULTS") or REPOSITORY / "results")
        self._records: dict[Path, Record] = {}
        self._runs: dict[str | None, pd.DataFrame] = {}

    def records(self, grid: str | None = None) -> list[Record]:
        """Finished and failed, in the order of their file names."""
        return [self._record(path) for path in sorted(self.root.glob(f"runs/{grid or '*'}/*.json"))]

    def finished(self, grid: str | None = None) -> list[Record]:
        return [record for record in self.records(grid) if record.status == "finished"]

    def gated(self, grid: str | None = None) -> list[Record]:
        """Finished runs that had gates."""
        return [record for record in self.finished(grid) if any(log.heads for log in record.epochs)]

    def runs(self, grid: str | None = None) -> pd.DataFrame:
        """One row per finished run. No run: an empty frame with the same columns. Raises ``ConfigError`` as
        ``require_one_each`` where a grid is asked for, and where runs of one label differ in more than their seed."""
        if grid not in self._runs:
            found = pd.DataFrame(map(self._row, self.finished(grid)), columns=list(RUN_COLUMNS))
            if grid is not None:
                require_one_each(found)
                self._require_alike(grid)
            self._runs[grid] = found
        return self._runs[grid].copy()

    def _require_alike(self, grid: str) -> None:
        """Raise ``ConfigError`` where a label's seeds have different settings, which no mean may mix: a grid's file was
        edited between them, say. Precision may differ, by a grid's ``by_seed``; what records do not say does not."""
        first: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {}
        for record in self.finished(grid):
            own = self._settings(record)
            run_id, other = first.setdefault(
                (record.config.data.name, record.label or record.config.name), (record.run_id, own)
            )
            if key := next((key for key in {**own, **other} if own.get(key) != other.get(key)), None):
                raise ConfigError(
                    f"label '{record.label}' names runs of different {key}: {other.get(key)!r} in {run_id}, "
                    f"{own.get(key)!r} in {record.run_id}; give each a run.label, or move away what no longer counts"
                )

    def _settings(self, record: Record) -> dict[str, Any]:
        """Settings that all seeds of a label have, by dotted key; another run is named by its label."""
        found = dotted(record.config.model_dump(mode="json", exclude={"seed": True, "run": True, "data": {"root"}}))
        found.pop("optim.precision")
        for key, value in found.items():
            if isinstance(value, str) and value.startswith("run:"):
                other = self._referred(record, value)
                found[key] = f"run:{other.label or other.config.name}" if other else "run:"
        return found

    def failures(self, grid: str | None = None) -> pd.DataFrame:
        """One row per failed attempt, with its ``error`` in one line."""
        failed = [record for record in self.records(grid) if record.status == "failed"]
        rows = [{**_name(r), "error": r.error, "finished": r.finished} for r in failed]
        return pd.DataFrame(rows, columns=list(FAILURE_COLUMNS))

    def stages(self, grid: str | None = None) -> pd.DataFrame:
        """One row per training stage of each finished run, after those of the run it started from (``inherited``)."""
        rows = [{**_name(record), **stage} for record in self.finished(grid) for stage in self._stages(record)]
        return pd.DataFrame(rows, columns=list(STAGE_COLUMNS))

    def _record(self, path: Path) -> Record:
        if path not in self._records:
            self._records[path] = read(path)
        return self._records[path]

    def _referred(self, record: Record, value: object) -> Record | None:
        """The record behind a setting 'run:<run_id>'; None for any other, or if it was not kept."""
        there = Folders(self.root, record.grid, record.run_id).behind(str(value))
        return self._record(there.record) if there else None

    def _row(self, record: Record) -> dict[str, Any]:
        other = self._referred(record, record.config.budget.target_macs)
        return {**_row(record, self._first(record)), "budget": _budget(record, other)}

    def _first(self, record: Record) -> Record:
        """The run whose network all that led to this one began with, for images of the same size: the dense one."""
        while start := self._referred(record, record.config.model.weights):
            if start.config.model.img_size != record.config.model.img_size:
                break
            record = start
        return record

    def _stages(self, record: Record) -> Iterator[dict[str, Any]]:
        """Everything that was trained to get this run's model."""
        if start := self._referred(record, record.config.model.weights):  # else its own stages are still known
            yield from ({**stage, "inherited": True} for stage in self._stages(start))
        for own in record.stages:
            yield {"stage": own.name, **{name: getattr(own, name) for name in SUMS}, "inherited": False}


def require_one_each(runs: pd.DataFrame) -> pd.DataFrame:
    """``runs``. Raises ``ConfigError`` where a label names two runs of one seed, which no mean may mix: of a grid whose
    file was edited, say, or of runs that were given no label."""
    if (twice := runs.duplicated(["data", "label", "seed"], keep=False)).any():
        label, ids = runs.loc[twice, "label"].iloc[0], ", ".join(runs.loc[twice, "run_id"].head(2))
        raise ConfigError(
            f"label '{label}' names different runs of one seed ({ids}); give each a run.label, or move the record away "
            "that no longer counts"
        )
    return runs


def _row(record: Record, first: Record) -> dict[str, Any]:
    scores, size, config, shape = record.metrics, record.size, record.config, record.shape or []
    sizes = size.model_dump() if size else {}
    dense = first.size or size  # of a network that was pruned before, its own start is no dense one
    return {
        **_name(record),
        "data": config.data.name,
        "measure": config.data.measure,
        "test_images": scores.extracted.n if scores.extracted else None,
        "start": _start(record),
        "top1": scores.extracted.top1 if scores.extracted else None,
        **{f"top1_{at}": getattr(getattr(scores, at), "top1", None) for at in ("dense", "soft", "hardened")},
        "gap": scores.gap,
        "target": _target(record, dense),
        "macs": sizes.get("macs"),
        "macs_dense": dense.dense_macs if dense else None,
        "macs_share": size.macs / dense.dense_macs if size and dense else None,
        "params": sizes.get("params"),
        "params_dense": dense.dense_params if dense else None,
        "heads": sum(len(block.head_dims) for block in shape),
        "value_dims": sum(sum(block.head_dims) for block in shape),
        "neurons": sum(block.neurons for block in shape),
        **{name: sum(getattr(stage, name) for stage in record.stages) for name in SUMS},
        "pruning_seconds": _pruning_seconds(record),
        **{key: getattr(record.environment, key) for key in ("device", "device_name", "commit", "dirty")},
        "status": record.status,
        "finished": record.finished,
    }


def _name(record: Record) -> dict[str, Any]:
    label, method = record.label or record.config.name, record.config.name
    return {"grid": record.grid, "run_id": record.run_id, "label": label, "method": method, "seed": record.seed}


def _target(record: Record, dense: Size | None = None) -> float | None:
    """The share of its start's MACs, or of the ``dense`` network's, that a run was told to keep."""
    wanted, size = record.config.budget.target_macs, record.size
    if wanted is None or isinstance(wanted, str):
        return None
    own = share(wanted, size.dense_macs) if size else wanted
    return own * (size.dense_macs / dense.dense_macs) if size and dense else own


def _budget(record: Record, other: Record | None) -> str:
    """What a run was told to keep: '', 'macs 0.5', 'params 0.5', 'latency 2', or 'as hiap-50', as the run of that label
    (``other``) left."""
    budget, share_ = record.config.budget, _target(record)
    if share_ is not None:
        return f"macs {share_:.6g}"
    if budget.target_macs is not None:
        return f"{AS}{(other.label or other.config.name) if other else str(budget.target_macs).removeprefix('run:')}"
    kinds = (("params", budget.target_params), ("latency", budget.target_latency))
    return next((f"{kind} {value}" for kind, value in kinds if value is not None), "")


def _pruning_seconds(record: Record) -> float | None:
    """None if not all stages were timed."""
    seconds = [stage.pruning_seconds for stage in record.stages]
    return None if None in seconds else sum(s for s in seconds if s is not None)


def _start(record: Record) -> str:
    """The run that this one started from; '': none of this project's."""
    source, _, run_id = record.config.model.weights.partition(":")
    return run_id if source == "run" else ""


# One record


def gate_trajectory(record: Record) -> pd.DataFrame:
    """Open gates per epoch and block (``mean_dims``: value dimensions per open head). Empty for a run without gates."""
    rows = []
    for epoch, log in enumerate(log for log in record.epochs if log.heads is not None):
        for block, heads in enumerate(log.heads or []):
            open_dims = [d for d in (log.head_dims[block] if log.head_dims else []) if d]
            mean_dims = sum(open_dims) / len(open_dims) if heads and open_dims else None
            rows.append((epoch, block, heads, log.neurons[block] if log.neurons else None, mean_dims))
    return pd.DataFrame(rows, columns=list(GATE_COLUMNS))


def macs_trajectory(records: list[Record]) -> pd.DataFrame:
    """Per epoch of runs with gates, from 1: ``expected`` MACs under the gates' probabilities and those that the
    threshold of 1/2 would leave at its end (``hardened``), as shares of dense; ``strength`` of the penalties."""
    rows: list[tuple[Any, ...]] = []
    for record in (record for record in records if record.size):
        dense = record.size.dense_macs  # type: ignore[union-attr]
        for epoch, log in enumerate((log for log in record.epochs if log.macs is not None), start=1):
            expected = log.state.get("expected_macs")
            shares = None if expected is None else expected / dense, log.macs / dense  # type: ignore[operator]
            rows.append((record.run_id, record.label, record.seed, epoch, *shares, log.state.get("strength")))
    return pd.DataFrame(rows, columns=list(MACS_COLUMNS))


def topology(record: Record) -> pd.DataFrame:
    """What is left of each block at the end; ``head_dims``: value dimensions of each head left, largest first."""
    rows = [
        (i, len(block.head_dims), sorted(block.head_dims, reverse=True), block.neurons)
        for i, block in enumerate(record.shape or [])
    ]
    return pd.DataFrame(rows, columns=list(SHAPE_COLUMNS))


def dense_units(record: Record) -> dict[str, int]:
    """``block_units`` of the network that a run began with."""
    dims, size, name = estimate.dims(record.config), record.size, record.config.model.name
    # One that was pruned before has fewer MACs than its sizes say; more has another network, that weights brought.
    brought = dims and size and name == "vit" and size.dense_macs > 1.01 * dense_macs(dims)
    if dims and not brought:
        return block_units(dims)
    raise ConfigError(f"{record.run_id}: the sizes of model '{name}' are not known (hiap/budget/sizes.py)")


def block_units(dims: Dims) -> dict[str, int]:
    """What one block of the dense network has: ``heads``, ``mean_dims`` per head, ``neurons``."""
    return {"heads": dims.heads, "mean_dims": dims.head_dim, "neurons": dims.hidden}
