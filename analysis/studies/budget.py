"""Where runs end: with a target, by the paper's rule, and by a strength that was tuned by hand."""

from __future__ import annotations

import pandas as pd

from analysis.records.results import Results, macs_trajectory


def ruled(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that follow the paper's rule: strengths and no target."""
    return runs[runs["target"].isna() & (runs["method"] == "hiap")]


def with_expected(results: Results, grid: str) -> pd.DataFrame:
    """``ruled`` with the MACs that the gates' probabilities ``expected`` at the end, as a share of dense."""
    runs, paths = ruled(results.runs(grid)), macs_trajectory(results.gated(grid)).sort_values("epoch")
    return runs.assign(expected=runs["run_id"].map(paths.groupby("run_id")["expected"].last()))


def rule_misses(results: Results, grid: str) -> pd.Series:
    """Extracted minus expected MACs, in per cent of dense, of every run of a grid that follows the paper's rule."""
    rows = with_expected(results, grid)
    return 100 * (rows["macs_share"] - rows["expected"]).astype(float)


def landings(runs: pd.DataFrame) -> pd.DataFrame:
    """Where runs with a target ended: per label the target, the largest overshoot and the largest shortfall over seeds
    (both in per cent of dense; an overshoot below zero means that every seed ended below its target)."""
    aimed = runs.drop_duplicates("run_id").dropna(subset="target")
    miss = 100 * (aimed["macs_share"] - aimed["target"])
    groups = aimed.assign(miss=miss).groupby(["label", "method"], sort=False)
    frame = groups.agg(target=("target", "first"), n=("miss", "size"), overshoot=("miss", "max"), worst=("miss", "min"))
    return frame.assign(shortfall=-frame.pop("worst")).reset_index()


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
