"""Tables of our own runs: Table 3's shape, the studies, their training, the readings of the open points."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis.records import names
from analysis.studies import comparisons, evidence, open_points
from analysis.tables.render import Column, Panel, Table, number, per_target, signed, words, yes_no
from analysis.tables.theirs import table3 as published_table3

# Table 3's columns, and what a reader needs to judge them.
TABLE3_COLUMNS = (
    words("title", "Method"),
    Column("macs", "MMACs", number(2, 1e6)),
    Column("reduction", "Red. %", number(1)),
    Column("params", "Params (M)", number(3, 1e6)),
    Column("top1", "Top-1 %", number(2)),
    Column("interval", "± 95 %", number(2)),
    Column("n", "n", number(0)),
    Column("epochs", "Epochs", number(0)),
    Column("train_macs", "Train TMACs", number(2, 1e12)),
    Column("seconds", "Train min", number(1, 60)),
)
TABLE3_NOTES = (
    "MACs: multiply-adds of one image through the extracted model, counted (published: as printed).",
    "Top-1: extracted model, mean over n seeds; ±: half of Student's 95 % interval of that mean.",
    "Epochs and training cost are the run's own; the dense start that pruned runs share is its own row.",
)


def table3(runs: pd.DataFrame) -> Table:
    """Table 3's shape: the paper's rows, and ours below, one panel per data set so that none is taken for another."""
    heading = "As published (arXiv 2603.12222 v1, Table 3): CIFAR-10. Not rerun here."
    panels = [Panel(heading, published_table3())]
    for data, rows in comparisons.summary(runs).groupby("data", sort=True):
        images = int(rows["test_images"].iloc[0])
        sampling = f"± {rows['sampling'].max():.1f} by sampling"
        panels.append(Panel(f"This repository: {data}, {images:,} test images ({sampling}). Not CIFAR-10.", rows))
    title = "Accuracy and cost at matched MACs (the shape of the paper's Table 3)"
    return Table(title, TABLE3_COLUMNS, tuple(panels), TABLE3_NOTES)


def _compared(share: int, against: str, *last: Column) -> tuple[Column, ...]:
    """Accuracies with their intervals, and differences with theirs; MACs to ``share`` decimals."""
    return (
        words("title", "Method"),
        Column("share", "MACs %", number(share)),
        Column("top1", "Top-1 %", number(2)),
        Column("low", "low", number(2)),
        Column("high", "high", number(2)),
        Column("difference", against, signed(2)),
        Column("difference_low", "low", signed(2)),
        Column("difference_high", "high", signed(2)),
        Column("improvement", "P", number(2)),
        words("verdict", ""),
        Column("n", "n", number(0)),
        *last,
    )


STUDY_NOTES = (
    "low, high: 95 %, by a bootstrap over seeds and test images, those of one original drawn together. - HiAP: minus "
    "HiAP with the same target, on the same seeds and images; P: probability that the method wins on a seed.",
    "better, worse: than HiAP, decided after Holm's correction for all comparisons of this table. =: equivalent within "
    "0.3 points.",
    "TMACs: multiply-adds of training after the dense model.",
)


def study(rows: pd.DataFrame) -> Table:
    """The rows of ``comparisons.study``: one panel per target, and one for what has none."""
    data, images = rows["data"].iloc[0], int(rows["test_images"].iloc[0])
    rows = rows.assign(
        share=100 - rows["reduction"], verdict=[_marked(_verdict(row), row["equivalent"]) for _, row in rows.iterrows()]
    )
    columns = _compared(2, "- HiAP", Column("train_macs", "TMACs", number(2, 1e12)))
    title = f"Single-phase and multi-stage pruning on {data} ({images:,} test images)"
    return Table(title, columns, per_target(rows, "top1"), STUDY_NOTES)


def compact(rows: pd.DataFrame) -> Table:
    """``comparisons.study`` as a grid: methods down, targets across, mean top-1 with ↑ or ↓ where it is decided."""
    aimed = rows.dropna(subset="target")
    marks = {"better": " ↑", "worse": " ↓", "": ""}
    cells = [f"{row['top1']:.2f}{marks[_verdict(row)]}" for _, row in aimed.iterrows()]
    grid = aimed.assign(cell=cells).pivot(index="title", columns="target", values="cell")
    means = aimed.groupby("title")["top1"].mean()
    targets = sorted(grid.columns, reverse=True)
    # Those that reach every target first, by their mean over targets.
    order = pd.DataFrame({"lacks": grid.isna().sum(axis=1), "mean": -means}).sort_values(["lacks", "mean"]).index
    grid.columns = [f"t{target}" for target in grid.columns]
    columns = words("title", "Method"), *(words(f"t{target}", f"{100 * target:.0f} %") for target in targets)
    heading = f"Share of the dense MACs; n = {names.count(aimed['n'])} seeds"
    return Table("Top-1 (%) at equal MACs", columns, (Panel(heading, grid.loc[order].reset_index()),))


def _verdict(row: pd.Series) -> str:
    return "" if row["decided"] is not True else "better" if row["difference"] > 0 else "worse"


def _marked(verdict: str, equivalent: object) -> str:
    """A verdict, and behind it whether the two are equivalent, which is missing where nothing could be compared."""
    return " ".join(filter(None, (verdict, "=" if equivalent is True else "")))


EVIDENCE_NOTES = (
    "low, high: 95 %, by a bootstrap over seeds and test images. HiAP -: HiAP minus the method, on the same seeds and "
    "images; P: probability that HiAP wins on a seed.",
    "above, below: HiAP, decided by a primary test after Holm's correction for six; undecided: a primary test that is "
    "not; all others are exploratory. =: equivalent within 0.3 points.",
    "settled: gates frozen after a share of the phase; noise: under gate noise, with no price; long: twice the epochs; "
    "other: at once and not in rounds; lower-rate: weights at the rate that Taylor and Uniform chose.",
)


def at_papers_shape(runs: pd.DataFrame) -> Table:
    """``evidence.accuracies`` with ``evidence.against``, one panel per target; ``evidence.finetuning`` shows the
    networks that it left out."""
    ends = {"difference_low": "low", "difference_high": "high"}
    compared = evidence.against(runs)
    compared["verdict"] = [_primary(row) for row in compared.to_dict("records")]
    compared = compared.assign(**{new: compared[old] for new, old in ends.items()})
    wanted = ["target", "variant", "difference", *ends, "improvement", "verdict"]
    rows = evidence.accuracies(runs).merge(compared[wanted], how="left", on=["target", "variant"])
    rows = rows[~rows["label"].str.contains(evidence.FINETUNED)].sort_values("top1", ascending=False)
    rows = rows.assign(share=100 * rows["macs_share"], verdict=rows["verdict"].astype(object).fillna(""))
    title = "Pruning a pretrained ViT-S on Fashion-MNIST"
    return Table(title, _compared(1, "HiAP -"), per_target(rows, "top1"), EVIDENCE_NOTES)


def _primary(row: dict[Any, Any]) -> str:
    side = "above" if row["difference"] > 0 else "below"
    verdict = (side if row["decided"] else "undecided") if row["primary"] else ""
    return _marked(verdict, row["equivalent"])


TRAINING_COLUMNS = (
    words("title", "Method"),
    words("stages", "Stages"),
    Column("epochs", "Epochs", number(0)),
    Column("images", "Images (k)", number(0, 1e3)),
    Column("train_macs", "TMACs", number(3, 1e12)),
    Column("seconds", "s", number(0)),
    Column("start_train_macs", "Start TMACs", number(3, 1e12)),
    Column("teacher", "Teacher", yes_no),
    Column("n", "n", number(0)),
)


def training(rows: pd.DataFrame, grid: str) -> Table:
    """``training.totals``, one panel per target."""
    devices = ", ".join(sorted(set(rows["device"])))
    notes = (
        "Means over n seeds. Own stages; start: training of the dense network, paid once for all that share it.",
        "TMACs: multiply-adds of training steps, forward, backward and, where it says so, the teacher's forward.",
        f"s: wall time of training steps on {devices}, one of several runs of a machine.",
    )
    panels = per_target(rows, "train_macs", ascending=True)
    return Table(f"Training bill of grid {grid}", TRAINING_COLUMNS, panels, notes)


READING_COLUMNS = (
    words("label", "Reading"),
    Column("n", "n", number(0)),
    Column("macs_percent", "MACs %", number(1)),
    Column("top1", "Top-1 %", number(2)),
    Column("difference", "- default", signed(2)),
    Column("difference_low", "low", signed(2)),
    Column("difference_high", "high", signed(2)),
)


def readings(found: pd.DataFrame) -> Table:
    """``open_points.measured``, one panel per open point."""
    panels = (
        Panel(f"{point.id}: {point.what} (grid {point.grid})", rows)
        for point in open_points.POINTS
        if len(rows := found[found["point"] == point.id])
    )
    return Table("Other readings of what the paper leaves open", READING_COLUMNS, tuple(panels))
