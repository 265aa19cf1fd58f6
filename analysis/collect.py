"""Records on disk to data frames: the only way that results enter a table or a figure.

Nothing here needs torch. Records are validated by ``hiap.train.record.read``, which raises ``ConfigError`` (one line)
for a file that is not one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from hiap.ledger import Dims, share
from hiap.train.config import ConfigError
from hiap.train.record import Folders, Record, read
from slurm import estimate

REPOSITORY = Path(__file__).resolve().parents[1]
PUBLISHED = REPOSITORY / "results" / "published"

# Methods under the names that tables and legends have.
METHODS = {
    "dense": "Dense",
    "hiap": "HiAP",
    "uniform": "Uniform",
    "l1": "l1 FFN",
    "taylor": "Taylor",
    "magnitude": "Head magnitude",
    "vit_slim": "ViT-Slim",
    "cofi": "CoFi",
    "random": "Random",
    "peer": "Torch-Pruning",
}

# Data dictionary of ``load``: column -> meaning and unit.
COLUMNS = {
    "grid": "grid that the run belongs to",
    "run_id": "method and a hash of everything that decides the result",
    "label": "name in its grid, shared by the seeds of one configuration; the method where the run has none",
    "method": "dense, hiap or a baseline's name",
    "seed": "seed of initialisation, gates and data order",
    "data": "data set",
    "test_images": "images that the accuracies were measured on",
    "start": "run_id of the run whose model this one started from; empty: none of this project's",
    "top1": "top-1 of the final model (extracted, where anything was removed), per cent",
    "top1_dense": "top-1 of the model that the run started from, per cent",
    "top1_soft": "top-1 with sampled gates at the final temperature, per cent",
    "top1_hardened": "top-1 with thresholded gates and nothing removed, per cent",
    "gap": "top1 minus top1_soft, points",
    "target": "budget.target_macs as a share of the dense model; missing: none, or what another run left",
    "macs": "multiply-adds of one image through the final model, counted",
    "macs_dense": "multiply-adds of one image through the dense model",
    "macs_share": "macs / macs_dense",
    "params": "parameters of the final model",
    "params_dense": "parameters of the dense model",
    "heads": "heads left in all blocks",
    "value_dims": "value dimensions left in all heads",
    "neurons": "FFN neurons left in all blocks",
    "epochs": "training epochs of this run, all stages; training of the start not included",
    "images": "images trained on, all stages",
    "seconds": "wall time of the training steps, all stages",
    "train_macs": "multiply-adds of all training steps: forward, backward and teacher",
    "device": "cpu or cuda",
    "device_name": "processor or GPU",
    "commit": "commit of the code",
    "dirty": "whether tracked files differed from that commit",
    "status": "finished",
    "finished": "UTC time of the record",
}

STAGE_COLUMNS = {
    "grid": "grid that the run belongs to",
    "run_id": "run that is billed",
    "label": "as in the runs' table",
    "method": "as in the runs' table",
    "seed": "as in the runs' table",
    "stage": "stage of the run",
    "epochs": "epochs of the stage",
    "images": "images trained on",
    "seconds": "wall time of the training steps",
    "train_macs": "multiply-adds of the training steps",
    "inherited": "true: spent by the run that this one started from, so paid once for all that share it",
}

FAILURE_COLUMNS = {
    "grid": "grid that the run belongs to",
    "run_id": "run that failed",
    "label": "as in the runs' table",
    "seed": "as in the runs' table",
    "error": "why, one line",
    "finished": "UTC time of the record",
}

MACS_COLUMNS = {
    "run_id": "run",
    "label": "as in the runs' table",
    "seed": "as in the runs' table",
    "epoch": "epochs with gates, from 1, at whose end the numbers were taken",
    "expected": "expected MACs under the gates' probabilities, as a share of dense; missing where not logged",
    "hardened": "MACs left by the threshold of 1/2 at that moment, as a share of dense",
    "strength": "multiplier of the penalties; missing for a run without a target",
}

GATE_COLUMNS = {
    "epoch": "epochs with gates, from 0, across stages",
    "block": "block, 0 next to the input",
    "heads": "open heads",
    "neurons": "open FFN neurons (0: the FFN block is closed)",
    "mean_dims": "value dimensions per open head, mean; missing where no head is open",
}

SHAPE_COLUMNS = {
    "block": "block, 0 next to the input",
    "heads": "heads left",
    "head_dims": "value dimensions of each head left, largest first",
    "neurons": "FFN neurons left (0: the FFN is gone)",
}


def results_root() -> Path:
    """``$HIAP_RESULTS``, or the repository's ``results``."""
    return Path(os.environ.get("HIAP_RESULTS") or REPOSITORY / "results")


def records(root: str | Path, grid: str | None = None) -> Iterator[Record]:
    """All records below ``root/runs`` (of one grid), finished and failed, in the order of their file names. A file is
    read once, and again when it has changed."""
    for path in sorted(Path(root).glob(f"runs/{grid or '*'}/*.json")):
        yield _read(path)


def _read(path: Path) -> Record:
    found = path.stat()
    return _read_version(path.absolute(), (found.st_ino, found.st_size, found.st_mtime_ns))


@lru_cache(maxsize=4096)
def _read_version(path: Path, version: tuple[int, ...]) -> Record:
    """``version``: records are written whole, as a new file."""
    return read(path)


def load(root: str | Path, grid: str | None = None) -> pd.DataFrame:
    """One row per finished run; columns as in ``COLUMNS``. No run: an empty frame with the same columns."""
    finished = (r for r in records(root, grid) if r.status == "finished")
    return pd.DataFrame([_row(r) for r in finished], columns=list(COLUMNS))


def machines(names: pd.Series) -> str:
    """Each once, without trade marks."""
    return ", ".join(sorted({name.replace("(R)", "").removesuffix(" Processor") for name in names}))


def gated_records(root: str | Path, grid: str | None = None) -> list[Record]:
    """Finished runs that had gates."""
    return [r for r in records(root, grid) if r.status == "finished" and any(log.heads for log in r.epochs)]


def failures(root: str | Path, grid: str | None = None) -> pd.DataFrame:
    """One row per failed attempt; columns as in ``FAILURE_COLUMNS``."""
    failed = [r for r in records(root, grid) if r.status == "failed"]
    rows = [{**_name(r), "error": r.error, "finished": r.finished} for r in failed]
    return pd.DataFrame(rows, columns=list(FAILURE_COLUMNS))


def stages(root: str | Path, grid: str | None = None) -> pd.DataFrame:
    """One row per training stage of each finished run, preceded by the stages of the run it started from."""
    rows = []
    for record in records(root, grid):
        if record.status == "finished":
            rows += [{**_name(record), **bill, "inherited": old} for bill, old in _bills(root, record)]
    return pd.DataFrame(rows, columns=list(STAGE_COLUMNS))


def gate_trajectory(record: Record) -> pd.DataFrame:
    """Open gates per epoch and block; columns as in ``GATE_COLUMNS``. Empty for a run without gates."""
    gated = [log for log in record.epochs if log.heads is not None]
    rows = []
    for epoch, log in enumerate(gated):
        for block, heads in enumerate(log.heads or []):
            open_dims = [d for d in (log.head_dims[block] if log.head_dims else []) if d]
            rows.append(
                {
                    "epoch": epoch,
                    "block": block,
                    "heads": heads,
                    "neurons": log.neurons[block] if log.neurons else None,
                    "mean_dims": sum(open_dims) / len(open_dims) if heads and open_dims else None,
                }
            )
    return pd.DataFrame(rows, columns=list(GATE_COLUMNS))


def macs_trajectory(records: list[Record]) -> pd.DataFrame:
    """Expected and hardened MACs per epoch of runs with gates; columns as in ``MACS_COLUMNS``."""
    rows = []
    for record in records:
        dense = record.size.dense_macs if record.size else None
        for epoch, log in enumerate([log for log in record.epochs if log.macs is not None and dense], start=1):
            expected = log.state.get("expected_macs")
            rows.append(
                {
                    "run_id": record.run_id,
                    "label": record.label,
                    "seed": record.seed,
                    "epoch": epoch,
                    "expected": None if expected is None else expected / dense,  # type: ignore[operator]
                    "hardened": log.macs / dense,  # type: ignore[operator]
                    "strength": log.state.get("strength"),
                }
            )
    return pd.DataFrame(rows, columns=list(MACS_COLUMNS))


def topology(record: Record) -> pd.DataFrame:
    """What is left of each block at the end; columns as in ``SHAPE_COLUMNS``."""
    rows = [
        {
            "block": i,
            "heads": len(block.head_dims),
            "head_dims": sorted(block.head_dims, reverse=True),
            "neurons": block.neurons,
        }
        for i, block in enumerate(record.shape or [])
    ]
    return pd.DataFrame(rows, columns=list(SHAPE_COLUMNS))


def dense_units(record: Record) -> dict[str, int]:
    """``block_units`` of the network that a run began with."""
    if dims := estimate.dims(record.config):
        return block_units(dims)
    name = record.config.model.name
    raise ConfigError(f"{record.run_id}: hiap.ledger.known_dims does not know the sizes of model '{name}'")


def block_units(dims: Dims) -> dict[str, int]:
    """What one block of the dense network has: ``heads``, ``mean_dims`` per head, ``neurons``."""
    return {"heads": dims.heads, "mean_dims": dims.head_dim, "neurons": dims.hidden}


def title(label: str, method: str) -> str:
    """A label as a reader sees it: 'hiap-moderate' is 'HiAP (moderate)'. Controls are named for what they are, not for
    what runs them: 'dense-noise' of method hiap is 'Dense (noise)'."""
    for key in (method, "dense"):
        if label == key:
            return METHODS.get(key, key)
        if label.startswith(f"{key}-"):
            return f"{METHODS.get(key, key)} ({label[len(key) + 1 :]})"
    return label


def run_title(record: Record) -> str:
    """What one run's figure is headed with: name, seed and data."""
    return f"{title(record.label, record.config.method)}, seed {record.seed}, {record.config.data.name}"


def nothing(grid: str) -> str:
    """What to say in place of a picture."""
    return f"No finished run of grid '{grid}' yet; `python slurm/launch_grid.py --grid {grid}` makes them."


def published(name: str) -> pd.DataFrame:
    """``results/published/<name>.csv``; its README is the data dictionary."""
    path = PUBLISHED / f"{name}.csv"
    if not path.exists():
        raise ConfigError(f"{name}: not a published table; there are {sorted(p.stem for p in PUBLISHED.glob('*.csv'))}")
    return pd.read_csv(path, keep_default_na=False, na_values=[""])  # 'None' is a value in Table 1


def published_heatmap(figure: int) -> pd.DataFrame:
    """Figs. 5-9 as digitised, with the columns of ``GATE_COLUMNS`` that they have."""
    rows = published("fig5_9_gate_heatmaps").query("figure == @figure")
    names = {"active_heads": "heads", "active_neurons": "neurons"}
    return rows.rename(columns=names)[["epoch", "block", "heads", "neurons"]].reset_index(drop=True)


def _row(record: Record) -> dict[str, Any]:
    scores, size, config, shape = record.metrics, record.size, record.config, record.shape or []
    top1 = {name: getattr(getattr(scores, name), "top1", None) for name in ("dense", "soft", "hardened")}
    return {
        **_name(record),
        "data": config.data.name,
        "test_images": scores.extracted.n if scores.extracted else None,
        "start": _start(record),
        "top1": scores.extracted.top1 if scores.extracted else None,
        **{f"top1_{name}": value for name, value in top1.items()},
        "gap": scores.gap,
        "target": _target(record),
        "macs": size.macs if size else None,
        "macs_dense": size.dense_macs if size else None,
        "macs_share": size.macs / size.dense_macs if size else None,
        "params": size.params if size else None,
        "params_dense": size.dense_params if size else None,
        "heads": sum(len(block.head_dims) for block in shape),
        "value_dims": sum(sum(block.head_dims) for block in shape),
        "neurons": sum(block.neurons for block in shape),
        **{
            name: sum(getattr(s, name) for s in record.stages) for name in ("epochs", "images", "seconds", "train_macs")
        },
        "device": record.environment.device,
        "device_name": record.environment.device_name,
        "commit": record.environment.commit,
        "dirty": record.environment.dirty,
        "status": record.status,
        "finished": record.finished,
    }


def _name(record: Record) -> dict[str, Any]:
    return {
        "grid": record.grid,
        "run_id": record.run_id,
        "label": record.label or record.config.method,
        "method": record.config.method,
        "seed": record.seed,
    }


def _target(record: Record) -> float | None:
    wanted = record.config.budget.target_macs
    if wanted is None or isinstance(wanted, str):
        return None
    return share(wanted, record.size.dense_macs) if record.size else wanted


def _start(record: Record) -> str:
    kind, _, run_id = record.config.model.weights.partition(":")
    return run_id if kind == "run" else ""


def _bills(root: str | Path, record: Record) -> Iterator[tuple[dict[str, Any], bool]]:
    """(stage, inherited) of everything that was trained to get this run's model."""
    if path := _start_record(root, record):
        yield from ((bill, True) for bill, _ in _bills(root, _read(path)))
    for stage in record.stages:
        bill = stage.model_dump(exclude={"steps"})
        yield {"stage": bill.pop("name"), **bill}, False


def _start_record(root: str | Path, record: Record) -> Path | None:
    if not (start := _start(record)):
        return None
    try:
        return Folders(root, record.grid, record.run_id).sibling(start).record
    except ConfigError:  # the start's record was not kept; this run's own bill is still known
        return None
