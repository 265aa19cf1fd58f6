"""Tables of our own runs: Table 3's shape, the studies, their training, the readings of the open points."""

from __future__ import annotations

from collections.abc import Iterator
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
        images = f"{int(rows['test_images'].iloc[0]):,} {rows['measure'].iloc[0]} images"
        sampling = f"± {rows['sampling'].max():.1f} by sampling"
        other = "" if data == "cifar10" else " Not CIFAR-10."
        panels.append(Panel(f"This repository: {data}, {images} ({sampling}).{other}", rows))
    title = "Accuracy and cost at matched MACs (the shape of the paper's Table 3)"
    return Table(title, TABLE3_COLUMNS, tuple(panels), TABLE3_NOTES)


OURS = names.TARGETED


def _compared(share: int) -> tuple[Column, ...]:
    """Accuracies with their intervals, what HiAP with a target has more, and the bill; MACs to ``share`` decimals."""
    return (
        words("title", "Method"),
        Column("share", "MACs %", number(share)),
        Column("train_macs", "TMACs", number(2 if share > 1 else 1, 1e12)),
        Column("top1", "Top-1 %", number(2)),
        Column("low", "low", number(2)),
        Column("high", "high", number(2)),
        Column("difference", "H+T -", signed(2)),
        Column("difference_low", "low", signed(2)),
        Column("difference_high", "high", signed(2)),
        Column("improvement", "P", number(2)),
        words("verdict", ""),
        Column("n", "n", number(0)),
    )


SIGN = (
    f"H+T -: {OURS} minus the method, at the same target, on the same seeds and images; P: probability that it wins on "
    "a seed."
)
BILL = "TMACs: multiply-adds of training after the dense model, all stages. Equal epochs are not equal training."
STUDY_NOTES = (
    "low, high: 95 %, by a bootstrap over seeds and test images, those of one original drawn together; fewer than five "
    "seeds: at least Student's. " + SIGN,
    f"above, below: {OURS}, decided after Holm's correction for all comparisons of this table. =: equivalent within "
    "0.3 points.",
    BILL,
)


def study(rows: pd.DataFrame) -> Table:
    """The rows of ``comparisons.study``: one panel per target, and one for what has none."""
    data, images = rows["data"].iloc[0], int(rows["test_images"].iloc[0])
    own = comparisons.from_reference(rows)
    ends = {"difference_low": own["low"], "difference_high": own["high"]}
    verdicts = pd.Series({i: _marked(_verdict(row), row["equivalent"]) for i, row in own.iterrows()}, dtype=object)
    new = {"difference": own["difference"], "improvement": own["improvement"], **ends, "verdict": verdicts}
    rows = rows.drop(columns=[*new, "improvement"], errors="ignore").assign(share=100 - rows["reduction"], **new)
    rows = rows.assign(verdict=rows["verdict"].fillna(""))
    title = f"Single-phase and multi-stage pruning on {data} ({images:,} {rows['measure'].iloc[0]} images)"
    return Table(title, _compared(2), per_target(rows, "top1"), STUDY_NOTES)


def compact(rows: pd.DataFrame) -> Table:
    """``comparisons.study`` as a grid: methods down, targets across, mean top-1 with ↑ or ↓ where it is decided; what
    the training took, over the targets, stands behind."""
    aimed = rows.dropna(subset="target")
    marks = {"below": " ↑", "above": " ↓", "": ""}
    flipped = comparisons.from_reference(rows)
    verdicts = {i: _verdict(row) for i, row in flipped.iterrows()}
    cells = [f"{row['top1']:.2f}{marks[verdicts.get(i, '')]}" for i, row in aimed.iterrows()]
    grid = aimed.assign(cell=cells).pivot(index="title", columns="target", values="cell")
    means = aimed.groupby("title")["top1"].mean()
    targets = sorted(grid.columns, reverse=True)
    # Those that reach every target first, by their mean over targets.
    order = pd.DataFrame({"lacks": grid.isna().sum(axis=1), "mean": -means}).sort_values(["lacks", "mean"]).index
    grid.columns = [f"t{target}" for target in grid.columns]
    bills = aimed.groupby("title")["train_macs"].agg(["min", "max"]) / 1e12
    grid["bill"] = [f"{low:.2f} to {high:.2f}" for low, high in bills.loc[grid.index].to_numpy()]
    columns = words("title", "Method"), *(words(f"t{target}", f"{100 * target:.0f} %") for target in targets)
    heading = f"Share of the dense MACs; n = {names.count(aimed['n'])} seeds"
    panel = Panel(heading, grid.loc[order].reset_index())
    return Table("Top-1 (%) at equal MACs", (*columns, words("bill", "Training, TMACs")), (panel,))


def _verdict(row: pd.Series) -> str:
    """Where HiAP with a target stands."""
    return "" if row["decided"] is not True else "above" if row["difference"] > 0 else "below"


def _marked(verdict: str, equivalent: object) -> str:
    """A verdict, and behind it whether the two are equivalent, which is missing where nothing could be compared."""
    return " ".join(filter(None, (verdict, "=" if equivalent is True else "")))


EVIDENCE_NOTES = (
    "low, high: 95 %, by a bootstrap over seeds and test images (of five seeds it covers some 92 %); fewer than five: "
    "at least Student's. A difference is over the seeds that both rows have, a mean over all of its own. " + SIGN,
    f"above, below: {OURS}, decided by a primary test after Holm's correction for all of them; undecided: a primary "
    "test that is not; all others are exploratory. =: equivalent within 0.3 points.",
    "settled: gates frozen after a share of the phase; control: no price on any unit, nothing that one would choose. "
    "Twice the epochs are compared with each other elsewhere, here with the plain phase.",
    BILL,
)
UNTRAINED = "Right after the cut, untrained: {cut:.0f} % of the MACs; {images:,.0f} validation images"
UNTRAINED_NOTE = (
    "Least squares: output maps behind the cut corrected on 512 unlabelled training images (ours). Untrained rows: one "
    "network, other images than the rows above; low, high: what those images leave open."
)


def at_papers_shape(
    runs: pd.DataFrame, pair: evidence.Pair = evidence.FIRST, cuts: pd.DataFrame | None = None
) -> Table:
    """``evidence.accuracies`` with ``evidence.against``, one panel per target, then ``cuts`` (``evidence.untrained``);
    ``evidence.finetuning`` shows the networks that it left out."""
    ends = {"difference_low": "low", "difference_high": "high"}
    compared = evidence.against(runs, pair)
    compared["verdict"] = [_primary(row) for row in compared.to_dict("records")]
    compared = compared.assign(**{new: compared[old] for new, old in ends.items()})
    wanted = ["target", "variant", "difference", *ends, "improvement", "verdict"]
    rows = evidence.accuracies(runs).merge(compared[wanted], how="left", on=["target", "variant"])
    rows = rows[~rows["label"].str.contains(evidence.FINETUNED)].sort_values("top1", ascending=False)
    rows = rows.assign(share=100 * rows["macs_share"], verdict=rows["verdict"].astype(object).fillna(""))
    panels: tuple[Panel, ...] = per_target(rows, "top1")
    notes: tuple[str, ...] = EVIDENCE_NOTES
    if cuts is not None and len(cuts):
        panels, notes = (*panels, *_untrained(cuts)), (*notes, UNTRAINED_NOTE)
    return Table(f"Pruning a pretrained {pair.network} on {pair.data}", _compared(1), panels, notes)


def _untrained(cuts: pd.DataFrame) -> Iterator[Panel]:
    for target in sorted(cuts["target"].unique(), reverse=True):
        mine = cuts[cuts["target"] == target].sort_values("top1", ascending=False)
        heading = UNTRAINED.format(cut=100 * target, images=mine["test_images"].max())
        yield Panel(heading, mine.assign(share=100 * mine["macs_share"], verdict=""))


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
