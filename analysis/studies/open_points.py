"""What the paper leaves open (A1 to A12): which readings were measured, where, with what outcome, and why not the rest.

A reading is measured where a grid holds runs of it beside runs of another that differ in nothing else."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from analysis.findings.gates import sample_mean, sigmoid
from analysis.records.results import Results
from analysis.stats import seeds
from hiap.train.config import GateConfig

START = GateConfig().init_logit
OPEN = (
    f"start at {START:g} (open with probability {sigmoid(START):.2f}: near the dense network), the weights' rate, no "
    "decay; at the stated rate Figs. 5 to 9 exclude that start (finding 14)"
)


class Point(NamedTuple):
    """``default``: our reading and why. ``grid`` and ``prefix``: whose labels measure others; else ``reason`` why none
    is measured."""

    id: str
    what: str
    default: str
    grid: str = ""
    prefix: str = ""
    reason: str = ""


POINTS = (
    Point("A1", "forward pass", "hard samples, soft gradient: what 'straight-through' means elsewhere",
          "sensitivity", "A1-"),
    Point("A2", "expectation in the penalty", "closed form: no variance, and the mean of thresholded samples",
          "sensitivity", "A2-"),
    Point("A3", "scale of the penalties", "both over the dense total of Eq. 5: keeps its relative prices",
          "sensitivity", "A3-"),
    Point("A4", "dimensions that a value gate removes", "V only: removing what was not gated changes the function",
          "a4", ""),
    Point("A5", "hardening", "probability: deterministic given the weights", "sensitivity", "A5-"),
    Point("A6", "start, rate, decay of logits", OPEN, "sensitivity", "A6-"),
    Point("A7", "floors and strengths of Eq. 8", "one head, small strengths: the figures show empty layers",
          "sensitivity", "A7-"),
    Point("A8", "augmentation and schedule", "DeiT's recipe; none on digits",
          reason="DeiT's recipe is one for photographs; it matters for runs on the paper's data"),
    Point("A9", "biases of gated units", "go with the unit, so that a closed layer is the identity",
          reason="matters only where a layer loses all of its heads"),
    Point("A10", "noise of several processes", "each draws its own; shared on request",
          reason="one process has nothing to share; with shared noise the result is that of one process (tested)"),
    Point("A11", "the CIFAR-10 network", "patch and MLP ratio that give the printed MACs",
          reason="follows from the printed MACs (finding 3), nothing to choose"),
    Point("A12", "scale of the distilled loss", "times the temperature's square: keeps its gradient's size",
          "sensitivity", "A12-"),
)  # fmt: skip


class Choice(NamedTuple):
    """What we chose without an option, or offer and do not run: ``choice`` and ``reason``."""

    what: str
    choice: str
    reason: str


SOFT = GateConfig().tau_start
CHOICES = (
    Choice("draws of gates", "one in each forward pass, for all images that a process has in it",
           "gates are folded into the weights, which all images share; a draw for each image would forbid that"),
    Choice("Eqs. 5 and 6 to the letter", "soft samples, and their expectation, are options; A1 has a row for both",
           f"the closed form is not a soft sample's mean: {sigmoid(START):.3f} against {sample_mean(SOFT, START):.3f} "
           f"at logit {START:g} and temperature {SOFT:g}"),
    Choice("fixed price of a head", "C1, as in Eq. 5",
           "a review of version 1 says that Appendix B prices attention without it, as a sum over w g d; that text is "
           "not at hand, so this could not be checked"),
)  # fmt: skip


def base(label: str, grid: str) -> str:
    """The label that a reading is paired with: in grid ``a4`` 'v' with the same ending, else 'default'."""
    if grid != "a4":
        return "default"
    name, _, ending = label.rpartition("-")
    return f"v-{ending}" if name and ending not in ("qkv",) else "v"


def measured(results: Results) -> pd.DataFrame:
    """One row per reading that was measured: ``point``, ``grid``, ``label``, ``n`` seeds that it shares with its base,
    ``macs_percent``, ``top1``, and top-1 against the base, paired by seed (``difference``, ``difference_low``,
    ``difference_high``, ``decided``)."""
    rows = []
    for point in (point for point in POINTS if point.grid):
        runs = results.runs(point.grid).query("method == 'hiap'")
        scores = seeds.scores_per_label(runs)
        for label, group in runs[runs["label"].str.startswith(point.prefix)].groupby("label", sort=False):
            default = base(str(label), point.grid)
            if label == default or default not in scores:
                continue
            found = seeds.compare(scores[str(label)], scores[default])
            ends = found.difference
            row = {"point": point.id, "grid": point.grid, "label": label, "n": ends.n}
            means = {"macs_percent": 100 * group["macs_share"].mean(), "top1": group["top1"].mean()}
            rows.append({**row, **means, **ends.columns("difference"), "decided": found.decided})
    columns = ["point", "grid", "label", "n", "macs_percent", "top1", "difference", "difference_low"]
    return pd.DataFrame(rows, columns=[*columns, "difference_high", "decided"])


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """One row per open point: ``point``, ``what``, ``default``, how many ``readings`` were measured, in which grid
    (``where``), from which to which share of the dense MACs they lead (``macs_low``, ``macs_high``), and the ``reason``
    if none was."""
    rows = []
    for point in POINTS:
        mine = found[found["point"] == point.id]
        reason = point.reason or ("" if len(mine) else f"not run: python slurm/launch_grid.py --grid {point.grid}")
        row = {"point": point.id, "what": point.what, "default": point.default, "readings": len(mine)}
        ends = {"macs_low": mine["macs_percent"].min(), "macs_high": mine["macs_percent"].max()}
        rows.append({**row, "where": point.grid if len(mine) else "", **ends, "reason": reason})
    return pd.DataFrame(rows)


def emptied_layers(results: Results, grid: str = "sensitivity") -> tuple[int, int]:
    """Of the finished runs of a grid with gates, in how many a layer lost all of its heads; and how many there are."""
    runs = results.gated(grid)
    return sum(any(not block.head_dims for block in record.shape or []) for record in runs), len(runs)
