"""What finished runs and benchmark reports say about a claim of ``results/published/claims.csv``.

A claim's ``answer`` names a grid and label, ``grid/label`` (``label*``: all that begin so) or ``python -m hiap.train``
with ``run.grid`` and ``run.label``, or a report: ``python -m hiap.bench`` with the settings that it must have been made
with, whatever its name. ``{grid/label}`` stands for the folder of that run's extracted network.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.findings.table2 import Described
from analysis.records import bench
from analysis.records.results import Results, dense_units
from analysis.studies import budget
from hiap.data import contents
from hiap.train.config import ConfigError, parse_overrides
from hiap.train.record import Record
from slurm import grid

TRAIN, BENCH = "python -m hiap.train ", "python -m hiap.bench speed "
LAUNCH = "python slurm/launch_grid.py --grid "
ANY_GPU = "a GPU"
PUBLISHED = {"cifar10": 10_000, "imagenet": 50_000}  # test images
# Of CIFAR-10 as its authors publish it, whose classes are numbers (record.Images)
CIFAR_CLASSES = contents.of_classes(str(number) for number in range(10))


class Scores(NamedTuple):
    """A claim's metric: one value per run or seed, the ``runs`` behind it (``run_id``, ``commit``), and why it cannot
    count for the paper's number, if so (``other``)."""

    values: pd.Series
    runs: pd.DataFrame
    other: str = ""


class Timing(NamedTuple):
    """A benchmark's ``found`` with its range over networks or rounds, on how many of them (``n``)."""

    found: float
    low: float
    high: float
    n: int
    device: str
    kind: str  # cpu or cuda
    report: str
    commit: str


def selector(answer: str) -> tuple[str, str] | None:
    """The grid and label that answer; None where none does."""
    if answer.startswith(TRAIN):
        run = parse_overrides(answer.removeprefix(TRAIN).split())["run"]
        return run["grid"], run["label"]
    name, _, label = answer.partition("/")
    return None if answer.startswith("python") or not label else (name, label)


def scores(claim: Mapping[Any, Any], results: Results) -> Scores | None:
    """From finished runs of the claim's grid and label on its data; None if there is none."""
    chosen = selector(claim["answer"])
    if chosen is None:
        return None
    name, label = chosen
    runs = results.runs(name)
    runs = runs[runs["data"] == claim["dataset"]]
    labels = claim["argument"].split() if claim["metric"] == "top1 difference" else [label]
    mine = runs[pd.Series([any(named(own, wanted) for wanted in labels) for own in runs["label"]], runs.index, bool)]
    if claim["metric"] == "top1 difference":
        values = _difference(mine, labels)
    elif label.endswith("*"):
        values = _at(mine, claim["argument"])
    else:
        values = METRICS[claim["metric"]](results, name, mine).set_axis(mine["run_id"]).astype(float).dropna()
    ours = ((mine["method"] == "hiap") & mine["target"].notna()).any()
    known = {record.run_id: record for record in results.finished(name)}
    others = ["a budget rule of ours, not the paper's"] * bool(ours)
    others += filter(None, dict.fromkeys(_other_images(known[run_id]) for run_id in mine["run_id"]))
    others += ["other settings than those of its grid"] * bool(_beside_the_grid(name, mine))
    return Scores(values, mine, "; ".join(others)) if len(values) else None


def _beside_the_grid(name: str, runs: pd.DataFrame) -> set[str]:
    """Runs that the grid's file does not make, by their id: of fewer epochs, say. Without a file there are none."""
    try:
        return set(runs["run_id"]) - {run.run_id for run in planned(name)}
    except ConfigError:
        return set()


def _other_images(record: Record) -> str:
    """Why a run's images are not those of which the paper's numbers are; '' where they are."""
    data, images = record.config.data, record.images
    if data.measure != "test":
        return "validation images, not the test images"
    if data.train_size or data.test_size:
        return "a part of the images, not all of them"
    published, found = PUBLISHED.get(data.name), record.metrics.extracted
    if published and found and found.n != published:
        return f"{found.n:,} images, not the {published:,} of the published test set"
    if data.name == "cifar10" and images and images.classes != CIFAR_CLASSES:
        return "copies of the images in class folders, not the published files"
    return ""


def named(label: str, wanted: str) -> bool:
    return label.startswith(wanted[:-1]) if wanted.endswith("*") else label == wanted


@cache
def planned(name: str) -> list[grid.Run]:
    """The runs of a grid of this repository."""
    path = grid.find(name)
    return grid.expand(grid.load(path), path, {})


def _at(runs: pd.DataFrame, wanted: str) -> pd.Series:
    """Top-1 between a curve's runs, per seed, at these MACs: '3.1' in G, or '66.9%' of the dense network's."""
    share = wanted.endswith("%")
    place = 100 * runs["macs_share"] if share else runs["macs"] / 1e9
    return _between(runs.assign(place=place), dict.fromkeys(runs["seed"], float(wanted.removesuffix("%"))))


def _between(runs: pd.DataFrame, wanted: Mapping[int, float]) -> pd.Series:
    """Top-1 of each seed's curve at its ``wanted`` ``place``, by seed, where the curve reaches it on both sides."""
    found = {}
    for seed, group in runs.sort_values("place").groupby("seed"):
        place, at = group["place"].to_numpy(dtype=float), wanted.get(int(str(seed)), np.nan)
        if len(group) > 1 and place[0] <= at <= place[-1]:
            found[f"seed {seed}"] = np.interp(at, place, group["top1"])
    return pd.Series(found, dtype=float)


def _difference(runs: pd.DataFrame, labels: list[str]) -> pd.Series:
    """Top-1 of the first label minus the second's, by seed; a curve ('hiap-rule-*') is taken at the second's MACs."""
    first, second = (runs.loc[[named(own, wanted) for own in runs["label"]]] for wanted in labels)
    other = second.set_index("seed")
    if labels[0].endswith("*"):
        ours = _between(
            first.assign(place=first["macs_share"]),
            {int(str(seed)): share for seed, share in other["macs_share"].items()},
        )
        return (ours - other["top1"].rename(index="seed {}".format)).dropna()
    return (first.set_index("seed")["top1"] - other["top1"]).dropna().rename(index="seed {}".format)


# Metrics: one value per row of ``runs``, in the same order

Metric = Callable[[Results, str, pd.DataFrame], pd.Series]


def of_record(measure: Callable[[Record], float]) -> Metric:
    """A metric of the whole record of a run that left a network."""

    def metric(results: Results, grid_name: str, runs: pd.DataFrame) -> pd.Series:
        known = {record.run_id: record for record in results.records(grid_name) if record.shape}
        return pd.Series([measure(known[run_id]) for run_id in runs["run_id"]], runs.index, dtype=float)

    return metric


def narrow_share(record: Record) -> float:
    """Share of the heads left that keep at most half of their value dimensions."""
    widths = [width for block in record.shape or [] for width in block.head_dims]
    return float(np.mean([width <= dense_units(record)["mean_dims"] / 2 for width in widths]))


def _half(record: Record, deep: bool) -> float:
    """Mean neurons of the FFNs left in the first or second half of the blocks."""
    neurons = [block.neurons for block in record.shape or []]
    half = neurons[len(neurons) // 2 :] if deep else neurons[: len(neurons) // 2]
    return float(np.mean([count for count in half if count] or [0]))


def _heads_outside(record: Record) -> float:
    """Blocks with fewer or more heads than the paper describes."""
    low, high = Described().heads
    return sum(not low <= len(block.head_dims) <= high for block in record.shape or [])


def _column(name: str) -> Metric:
    return lambda results, grid, runs: runs[name]


METRICS: dict[str, Metric] = {
    **{name: _column(name) for name in ("top1", "top1_dense", "gap", "heads", "neurons")},
    "miss": lambda _, grid, runs: (100 * (runs["macs_share"] - runs["target"])).abs(),  # % of dense, as the next
    "hardened - expected": lambda results, grid, runs: budget.rule_misses(results, grid).reindex(runs.index).abs(),
    "blocks outside": of_record(_heads_outside),
    "share of narrow heads": of_record(narrow_share),
    "neurons, first half": of_record(lambda record: _half(record, deep=False)),
    "neurons, second half": of_record(lambda record: _half(record, deep=True)),
}


# Benchmark reports

FOLDER = re.compile(r"{([^/}]+)/([^}]+)}")


def needs(answer: str) -> str:
    """The command that makes the networks that an answer names, in front of it; '' if it names none."""
    wanted = FOLDER.findall(answer)
    labels = " ".join(label for _, label in wanted)
    return f"{LAUNCH}{wanted[0][0]} --only {labels} && " if wanted else ""


def command(answer: str) -> str:
    """An answer with the folders of the runs that it names."""

    def folder(found: re.Match[str]) -> str:
        return str(next(run for run in planned(found[1]) if run.label == found[2]).folders.model)

    return FOLDER.sub(folder, answer)


def timing(claim: Mapping[Any, Any], results: Results) -> Timing | None:
    """From a report with the claim's settings; one made on its device if there is one, else any other."""
    if not claim["answer"].startswith(BENCH):
        return None
    wanted = parse_overrides(command(claim["answer"]).removeprefix(BENCH).split())
    found = []
    for path in sorted((results.root / "bench").glob("*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        if report["mode"] == "speed" and _as_wanted(report["settings"], wanted):
            found.append(_timing(claim, path, report, bench.load(results), wanted))
    return min(found, key=lambda one: not on_device(claim, one), default=None)


def on_device(claim: Mapping[Any, Any], timing: Timing) -> bool:
    """Whether a report is from what the claim speaks of: the device that it names, or any GPU where it names none."""
    return timing.kind == "cuda" if claim["dataset"] == ANY_GPU else claim["dataset"] in timing.device


def _as_wanted(settings: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a report has these settings; its lists may be longer. How long was measured does not matter."""
    for key in wanted.keys() - {"name", "rounds"}:
        value = wanted[key]
        same = set(value) <= set(settings[key]) if isinstance(value, list) else settings[key] == value
        if not same:
            return False
    return True


def _timing(claim: Mapping[Any, Any], path: Path, report: Any, rows: pd.DataFrame, wanted: Mapping[str, Any]) -> Timing:
    rows = rows[(rows["report"] == path.stem) & rows["batch"].isin(wanted["batches"])]
    dense = rows["name"] == "dense"
    pruned = rows[~dense & rows["name"].map(lambda name: any(str(name).startswith(t) for t in wanted["topologies"]))]
    metric, device = claim["metric"], report["environment"]["device_name"]
    if metric == "realised share":
        low, middle, high = (float(pruned["share"].quantile(q)) for q in (0, 0.5, 1))
        n = len(pruned)
    else:
        row = (rows[dense] if claim["argument"] == "dense" else pruned).iloc[0]
        # The clock's quartiles are kept of ratios only; a latency has the spread of its ratio.
        ratios = row["ratio_low"], row["ratio"], row["ratio_high"]
        low, middle, high = sorted(1 / r if metric == "speed-up" else row["ms"] * r / row["ratio"] for r in ratios)
        n = report["settings"]["rounds"] * report["settings"].get("processes", 1)
    kind = report["environment"]["device"]
    return Timing(middle, low, high, n, device, kind, f"results/bench/{path.name}", report["environment"]["commit"])
