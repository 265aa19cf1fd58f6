"""The paper's rule at equal MACs: its strengths are scanned, and accuracy is read between two of them.

results/PROTOCOL.md, second part: per seed linear in MACs between the two neighbouring strengths, no number outside the
range. Labels are 'faithful-x<factor>'; a factor of 1 is the strengths of Fig. 5.
"""

from __future__ import annotations

import textwrap
from collections.abc import Hashable
from typing import Any

import numpy as np
import pandas as pd

from analysis.records import names
from analysis.records.results import Results
from analysis.stats.seeds import mean
from analysis.studies import cuts, epochs, paired

GRID = epochs.GRID
PREFIX = "faithful-x"
MACRO, MICRO = 0.9, 0.45  # strengths at a factor of 1
TARGETS = (0.67, 0.5, 0.35)
LOWEST, HIGHEST = 0.35, 0.67  # shares of dense that a scan has to pass
COLUMNS = ("target", "n", "top1", "low", "high", "difference", "difference_low", "difference_high")


def curve(runs: pd.DataFrame) -> pd.DataFrame:
    """The networks of the scan, a row each, by seed and strength: ``factor``, ``seed``, ``macs_share``, ``top1``,
    ``heads``, ``neurons``, ``train_macs``."""
    columns = ["factor", "seed", "macs_share", "top1", "heads", "neurons", "train_macs"]
    return _scanned(runs)[columns].sort_values(["seed", "factor"]).reset_index(drop=True)


def _scanned(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of the scan, with the ``factor`` that their labels name."""
    own = runs[runs["label"].astype(str).str.startswith(PREFIX)]
    return own.assign(factor=own["label"].str.removeprefix(PREFIX).astype(float))


def beside(results: Results, grid: str = GRID) -> pd.DataFrame:
    """The scan and, of the same dense networks, everything with a target: ``ranking`` ('rule', or as in ``epochs``),
    ``title``, ``epochs``, ``seed``, ``factor``, ``macs_share``, ``top1``, ``train_macs``."""
    own = _scanned(paired.load(results, grid)).assign(ranking="rule", title=names.RULE)
    others = epochs.load(results, grid, everywhere=True)
    rows = pd.concat([own, others[others["seed"].isin(own["seed"])]])
    columns = ["ranking", "title", "epochs", "seed", "factor", "macs_share", "top1", "train_macs"]
    return rows[columns].sort_values(["ranking", "epochs", "seed", "macs_share"], ignore_index=True)


def table(results: Results, grid: str = GRID) -> str:
    """Markdown: what each strength leaves, then the rule at equal MACs beside HiAP with a target."""
    runs = paired.load(results, grid)
    points = curve(runs)
    if points.empty:
        return names.nothing(grid)
    lines = [
        "| strengths, macro and micro | MACs left, % | heads | neurons | top-1, % | TMACs |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for left in points.groupby("factor", as_index=False).mean().to_dict("records"):
        lines.append(
            f"| {MACRO * left['factor']:g}, {MICRO * left['factor']:g} | {100 * left['macs_share']:.0f} "
            f"| {left['heads']:.0f} | {left['neurons']:,.0f} | {left['top1']:.1f} | {left['train_macs'] / 1e12:.1f} |"
        )
    return "\n".join([*lines, "", _note(results, runs, points, grid)])


def _note(results: Results, runs: pd.DataFrame, points: pd.DataFrame, grid: str) -> str:
    seeds = sorted(points["seed"].unique())
    networks = "One network" if len(seeds) == 1 else f"{len(seeds)} networks, means"
    read = [_at_one(row) for row in at_targets(runs).to_dict("records")]
    text = (
        f"{networks}, dense {cuts.dense(results, grid, seeds):.1f} %, {runs['test_images'].iloc[0]:,.0f} test images, "
        f"{points['factor'].size} runs. " + (f"Read between two strengths, {names.listed(read)}." if read else "")
    )
    return textwrap.fill(text.strip(), width=125)


def _at_one(row: dict[Hashable, Any]) -> str:
    words = f"{row['top1']:.1f} % at {100 * row['target']:.0f} % of the MACs"
    if pd.isna(row["difference"]):
        return words
    ends = "" if pd.isna(row["difference_low"]) else f" [{row['difference_low']:+.1f}, {row['difference_high']:+.1f}]"
    return f"{words} ({row['difference']:+.1f}{ends} against {names.TARGETED})"


def at(points: pd.DataFrame, target: float) -> pd.Series:
    """Top-1 at this share of the MACs by seed; only seeds whose strengths end on both sides of it."""
    found = {}
    for seed, group in points.groupby("seed"):
        group = group.sort_values("macs_share")
        shares = group["macs_share"].to_numpy()
        if shares.min() <= target <= shares.max():
            found[seed] = float(np.interp(target, shares, group["top1"].to_numpy()))
    return pd.Series(found, dtype=float, name="top1")


def at_targets(runs: pd.DataFrame, against: str = "hiap") -> pd.DataFrame:
    """``COLUMNS``: the rule at each target, its mean over ``n`` seeds, and minus the label ``<against>-<cut>`` on the
    same seeds. Interpolated accuracies have no single images, so intervals are over seeds alone."""
    points, rows = curve(runs), []
    for target in TARGETS:
        own = at(points, target)
        other = runs[runs["label"] == f"{against}-{100 * (1 - target):.0f}"].set_index("seed")["top1"]
        gain = (own - other).dropna()
        top1, gap = (mean(v) if len(v) else None for v in (own, gain))
        if top1 is not None:
            ends = (gap.mean, gap.low, gap.high) if gap else (np.nan,) * 3
            rows.append((target, top1.n, top1.mean, top1.low, top1.high, *ends))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def to_add(points: pd.DataFrame) -> list[float]:
    """Factors that the protocol adds to a scan whose ends do not pass ``LOWEST`` and ``HIGHEST``."""
    if points.empty:
        return []
    means = points.groupby("factor")["macs_share"].mean()
    beyond = [2 * means.index.max()] if means.min() >= LOWEST else []
    return beyond + ([means.index.min() / 2] if means.max() <= HIGHEST else [])
