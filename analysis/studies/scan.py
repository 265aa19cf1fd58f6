"""The paper's rule at equal MACs: its strengths are scanned, and accuracy is read between two of them.

results/PROTOCOL.md, second part: per seed linear in MACs between the two neighbouring strengths, no number outside the
range. Labels are 'faithful-x<factor>'.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.stats.seeds import mean, widened

PREFIX = "faithful-x"
TARGETS = (0.67, 0.5, 0.35)
LOWEST, HIGHEST = 0.35, 0.67  # shares of dense that a scan has to pass
COLUMNS = ("target", "n", "top1", "low", "high", "difference", "difference_low", "difference_high")


def curve(runs: pd.DataFrame, prefix: str = PREFIX) -> pd.DataFrame:
    """The networks of the scan, a row each: ``factor``, ``seed``, ``macs_share``, ``top1``, by falling MACs."""
    own = runs[runs["label"].astype(str).str.startswith(prefix)]
    rows = own.assign(factor=own["label"].str.removeprefix(prefix).astype(float))
    return rows[["factor", "seed", "macs_share", "top1"]].sort_values(["seed", "factor"]).reset_index(drop=True)


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
        top1, gap = (widened(mean(v), v) if len(v) else None for v in (own, gain))
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
