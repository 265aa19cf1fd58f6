"""Statistics over seeds: means with intervals, paired differences.

The only randomness is the bootstrap's, from ``SEED``. A percentile bootstrap of few seeds is too narrow (at n = 5 it
covers some 84 % of normal means instead of 95 %; a test measures it), so nothing is called better or worse unless
Student's interval excludes zero as well. A study makes dozens of such comparisons: ``holm`` says which of them stand
when all are counted. Seeds alone vary here; ``stats.images`` draws the test images too, where records name them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import special, stats

SEED, RESAMPLES, LEVEL = 0, 10_000, 0.95
ENOUGH = (
    5  # seeds whose bootstrap interval stands by itself: with three and a large spread it covers 77 % instead of 95 %
)
DIGITS = 12  # of a difference or an interval's end: one that is zero but for rounding must decide nothing


class Interval(NamedTuple):
    """Mean of ``n`` values and its 95 % interval; no interval (NaN) for a single value."""

    mean: float
    low: float
    high: float
    n: int

    def columns(self, name: str) -> dict[str, float]:
        """As ``<name>``, ``<name>_low`` and ``<name>_high``."""
        return {name: self.mean, f"{name}_low": self.low, f"{name}_high": self.high}


class Comparison(NamedTuple):
    """``difference``: method minus reference, paired by seed. ``decided``: both intervals exclude zero."""

    difference: Interval
    decided: bool


def mean(values: pd.Series | np.ndarray) -> Interval:
    """Percentile bootstrap of the mean; of fewer than ``ENOUGH`` seeds at least as wide as Student's."""
    data = np.asarray(values, dtype=float)
    if len(data) < 2:
        return Interval(float(data.mean()), float("nan"), float("nan"), len(data))
    found = stats.bootstrap(
        (data,), np.mean, n_resamples=RESAMPLES, confidence_level=LEVEL, method="percentile", rng=SEED
    ).confidence_interval
    low, high = np.round([found.low, found.high], DIGITS) + 0.0  # no -0.0
    return widened(Interval(float(data.mean()), float(low), float(high), len(data)), data)


def compare(method: pd.Series, reference: pd.Series) -> Comparison:
    """Two series of scores indexed by seed; only seeds that both have are compared. No common seed: NaN, n = 0."""
    both = pd.concat([method, reference], axis=1, join="inner").to_numpy(dtype=float)
    if not len(both):
        nan = float("nan")
        return Comparison(Interval(nan, nan, nan, 0), False)
    gain = both[:, 0] - both[:, 1]
    difference = mean(gain)
    excluded = abs(difference.mean) > half_width(gain) and (difference.low > 0 or difference.high < 0)
    return Comparison(difference, bool(len(gain) > 1 and excluded))


def mean_per_label(runs: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Per label the mean of each column over the seeds that have all of them, with its interval in ``<column>_low`` and
    ``<column>_high``, and ``n``."""
    whole = runs.drop_duplicates("run_id").dropna(subset=columns)
    rows = []
    for (label, method), group in whole.groupby(["label", "method"], sort=False):
        row: dict[str, object] = {"label": label, "method": method, "n": len(group)}
        for column in columns:
            row |= mean(group[column]).columns(column)
        rows.append(row)
    ends = [f"{column}{end}" for column in columns for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["label", "method", "n", *ends])


def scores_per_label(runs: pd.DataFrame) -> dict[str, pd.Series]:
    """Top-1 by seed, what ``compare`` takes, of every label."""
    return {str(label): group.set_index("seed")["top1"] for label, group in runs.groupby("label")}


def mean_on_common(runs: pd.DataFrame, column: str) -> pd.Series:
    """Mean ``top1`` of each value in ``column``, over the seeds that all of them have: another seed is worth as much as
    many a knob. NaN where they share none."""
    tops = runs.pivot_table(index=column, columns="seed", values="top1")
    return tops.loc[:, tops.notna().all()].mean(axis=1)


# Student, and Holm


def half_width(values: ArrayLike) -> float:
    """Half width of Student's 95 % confidence interval of the mean; NaN for one value."""
    data = np.asarray(values, dtype=float)
    n = len(data)
    return float("nan") if n < 2 else float(special.stdtrit(n - 1, 0.975) * data.std(ddof=1) / math.sqrt(n))


def widened(found: Interval, values: ArrayLike) -> Interval:
    """An interval of fewer than ``ENOUGH`` seeds as wide as Student's of their ``values``, where that is wider."""
    half = half_width(values)
    if found.n >= ENOUGH or math.isnan(half):
        return found
    low, high = (round(found.mean + end, DIGITS) for end in (-half, half))
    return found._replace(low=min(found.low, low), high=max(found.high, high))


def student_p(gain: ArrayLike) -> float:
    """Two-sided p-value of Student's test that paired differences have mean zero; NaN for one difference."""
    gain = np.asarray(gain, dtype=float).round(DIGITS)
    if len(gain) < 2:
        return float("nan")
    if np.ptp(gain) == 0:
        return float(gain[0] == 0)
    return float(stats.ttest_1samp(gain, 0).pvalue)


def holm(p: ArrayLike) -> np.ndarray:
    """Holm's step-down: p-values that may be held against a level as they are, whatever the number of tests and however
    they depend on each other. The family is all of ``p`` that is not NaN, which stays NaN."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p, kind="stable")  # NaN comes last
    order = order[: np.isfinite(p).sum()]
    adjusted = np.full(len(p), np.nan)
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * p[order]), 1.0)
    return adjusted
