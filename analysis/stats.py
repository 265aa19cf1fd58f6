"""Statistics over seeds: means with intervals, paired differences, probability of improvement.

The only randomness is the bootstrap's, from ``SEED``. A percentile bootstrap of few seeds is too narrow (at n = 5 it
covers some 84 % of normal means instead of 95 %; a test measures it), so nothing is called better or worse unless
Student's interval excludes zero as well. A study makes dozens of such comparisons: ``holm`` says which of them stand
when all are counted. Seeds alone vary here; ``analysis.inference`` draws the test images too, where records name them.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from analysis import collect, inference, tables

SEED, RESAMPLES, LEVEL = 0, 10_000, 0.95
DIGITS = 12  # of an interval's ends: one that is zero but for rounding must decide nothing
REFERENCE = "hiap"  # the variant that all others are compared with


class Interval(NamedTuple):
    """Mean of ``n`` values and its bootstrap interval; no interval (NaN) for a single value."""

    mean: float
    low: float
    high: float
    n: int


class Comparison(NamedTuple):
    """``difference``: method minus reference, paired by seed. ``improvement``: probability that a seed of the method
    beats a seed of the reference, over all pairs, ties counting one half. ``decided``: both intervals exclude zero.
    ``p``: of Student's test, two-sided."""

    difference: Interval
    improvement: float
    decided: bool
    p: float


def mean(values: pd.Series | np.ndarray) -> Interval:
    """Percentile bootstrap of the mean."""
    data = np.asarray(values, dtype=float)
    if len(data) < 2:
        return Interval(float(data.mean()), float("nan"), float("nan"), len(data))
    found = stats.bootstrap(
        (data,), np.mean, n_resamples=RESAMPLES, confidence_level=LEVEL, method="percentile", rng=SEED
    ).confidence_interval
    low, high = np.round([found.low, found.high], DIGITS) + 0.0  # no -0.0
    return Interval(float(data.mean()), float(low), float(high), len(data))


def compare(method: pd.Series, reference: pd.Series) -> Comparison:
    """Two series of scores indexed by seed; only seeds that both have are compared. No common seed: NaN, n = 0."""
    both = pd.concat([method, reference], axis=1, join="inner").to_numpy(dtype=float)
    if not len(both):
        nan = float("nan")
        return Comparison(Interval(nan, nan, nan, 0), nan, False, nan)
    gain = both[:, 0] - both[:, 1]
    difference = mean(gain)
    above = both[:, 0][:, None] - both[:, 1][None, :]
    improvement = float((above > 0).mean() + 0.5 * (above == 0).mean())
    student = tables.half_width(pd.Series(gain))
    decided = len(gain) > 1 and abs(difference.mean) > student and (difference.low > 0 or difference.high < 0)
    return Comparison(difference, improvement, bool(decided), inference.student_p(gain))


def variant(label: str, target: float | None) -> str:
    """A label without its budget: 'taylor-rounds-20' at a target of 0.8 is 'taylor-rounds'."""
    return label if pd.isna(target) else label.removesuffix(f"-{100 * (1 - target):.0f}")


def study(runs: pd.DataFrame) -> pd.DataFrame:
    """``tables.summary`` with one row per target and variant, and against the reference at the same target: columns
    ``low``, ``high``, ``difference``, ``difference_low``, ``difference_high``, ``improvement``, ``decided``; ``p`` and
    ``p_holm``, of Student's test before and after correction for all these comparisons; ``holm``: whether it is decided
    after it."""
    runs = runs.drop_duplicates("run_id").assign(variant=list(map(variant, runs["label"], runs["target"])))
    rows = tables.summary(runs)
    rows["variant"] = list(map(variant, rows["label"], rows["target"]))
    rows["title"] = list(map(collect.title, rows["variant"], rows["method"]))
    scores = {label: group.set_index("seed")["top1"] for label, group in runs.groupby("label")}
    reference = rows[rows["variant"] == REFERENCE].set_index("target")["label"]
    found = []
    for row in rows.to_dict("records"):
        own = mean(scores[row["label"]])
        new = {"low": own.low, "high": own.high}
        if row["target"] in reference.index and row["variant"] != REFERENCE:
            against = compare(scores[row["label"]], scores[reference[row["target"]]])
            new |= {
                "difference": against.difference.mean,
                "difference_low": against.difference.low,
                "difference_high": against.difference.high,
                "improvement": against.improvement,
                "decided": against.decided,
                "p": against.p,
            }
        found.append(new)
    wanted = ["low", "high", "difference", "difference_low", "difference_high", "improvement", "decided", "p"]
    return _corrected(rows.join(pd.DataFrame(found, index=rows.index).reindex(columns=wanted)))


def _corrected(rows: pd.DataFrame) -> pd.DataFrame:
    """With ``p_holm`` and ``holm``: all rows that have a ``p`` are one family."""
    p = inference.holm(rows["p"].to_numpy(dtype=float))
    stands = (rows["decided"] == True) & (p < 1 - LEVEL)  # noqa: E712  (a column of objects)
    return rows.assign(p_holm=p, holm=stands.astype(object).where(rows["decided"].notna()))


def against(runs: pd.DataFrame, controls: list[str]) -> pd.DataFrame:
    """The reference at each target minus each control, paired by seed: columns ``target``, ``against``, ``n``,
    ``difference``, ``low``, ``high``, ``decided``."""
    scores = {label: group.set_index("seed")["top1"] for label, group in runs.groupby("label")}
    reference = _references(runs).drop_duplicates("label").sort_values("target", ascending=False)
    rows = []
    for label, target in zip(reference["label"], reference["target"], strict=True):
        for control in (name for name in controls if name in scores):
            found = compare(scores[label], scores[control])
            ends = found.difference
            row = {"target": target, "against": control, "n": ends.n, "difference": ends.mean}
            rows.append({**row, "low": ends.low, "high": ends.high, "decided": found.decided})
    return pd.DataFrame(rows)


def against_single_phase(longer: pd.DataFrame, short: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``study`` for methods that train ``longer``, compared with the reference of the ``short`` study."""
    runs = pd.concat([_references(short), longer[longer["method"] != REFERENCE]])
    rows = study(runs).dropna(subset="difference")
    columns = ["title", "target", "n", "epochs", "top1", "difference", "difference_low", "difference_high", "decided"]
    return rows[columns].sort_values(["target", "difference"], ascending=False, ignore_index=True)


def _references(runs: pd.DataFrame) -> pd.DataFrame:
    aimed = runs.dropna(subset="target")
    named = [variant(*row) == REFERENCE for row in zip(aimed["label"], aimed["target"], strict=True)]
    return aimed[named]


def mean_per_label(runs: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Per label the mean of each column over the seeds that have all of them, with its interval in ``<column>_low`` and
    ``<column>_high``, and ``n``."""
    rows = []
    for (label, method), group in (
        runs.drop_duplicates("run_id").dropna(subset=columns).groupby(["label", "method"], sort=False)
    ):
        row: dict[str, object] = {"label": label, "method": method, "n": len(group)}
        for column in columns:
            found = mean(group[column])
            row |= {column: found.mean, f"{column}_low": found.low, f"{column}_high": found.high}
        rows.append(row)
    ends = [f"{column}{end}" for column in columns for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["label", "method", "n", *ends])


def landings(runs: pd.DataFrame) -> pd.DataFrame:
    """Where runs with a target ended: per label the target, the largest overshoot and the largest shortfall over seeds
    (both in per cent of dense; an overshoot below zero means that every seed ended below its target)."""
    aimed = runs.drop_duplicates("run_id").dropna(subset="target")
    miss = 100 * (aimed["macs_share"] - aimed["target"])
    groups = aimed.assign(miss=miss).groupby(["label", "method"], sort=False)
    frame = groups.agg(target=("target", "first"), n=("miss", "size"), overshoot=("miss", "max"), worst=("miss", "min"))
    return frame.assign(shortfall=-frame.pop("worst")).reset_index()


def rule_misses(root: str | Path, grid: str) -> pd.Series:
    """Extracted minus expected MACs, in per cent of dense, of every run of a grid that follows the paper's rule."""
    runs = collect.load(root, grid)
    ruled = runs[runs["target"].isna() & (runs["method"] == "hiap")]
    paths = collect.macs_trajectory(collect.gated_records(root, grid)).sort_values("epoch")
    expected = paths.groupby("run_id")["expected"].last()
    return 100 * (ruled["macs_share"] - ruled["run_id"].map(expected)).astype(float)


def by_hand(ruled: pd.DataFrame, targets: list[float]) -> pd.DataFrame:
    """The paper's rule used to meet a target: the label whose first seed ends nearest to it (``tuned``: its miss), and
    the smallest and largest miss of the other seeds (``low``, ``high``). Per cent of dense; above 0: too many MACs.
    ``within``: whether the target lies between the ends of that seed's ladder of strengths, so that a finer one could
    meet it; ``n``: the other seeds."""
    first = ruled[ruled["seed"] == ruled["seed"].min()].set_index("label")["macs_share"]
    others = ruled[ruled["seed"] != ruled["seed"].min()].groupby("label")["macs_share"]
    rows = []
    for target in targets:
        label = (first - target).abs().idxmin()
        rest = 100 * (others.get_group(label) - target)
        tuned = 100 * (first[label] - target)
        row = {"target": target, "label": label, "within": bool(first.min() <= target <= first.max()), "tuned": tuned}
        rows.append({**row, "low": rest.min(), "high": rest.max(), "n": len(rest)})
    return pd.DataFrame(rows)
