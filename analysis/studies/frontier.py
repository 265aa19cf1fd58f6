"""What to use: accuracy against the training that it takes, per budget, from none to ten epochs.

Every network of a pair at one target is a candidate, whatever made it; on the frontier is whoever nobody beats with
less training.
"""

from __future__ import annotations

import pandas as pd

from analysis.studies import paired

COLUMNS = ("target", "label", "title", "n", "epochs", "train_macs", "top1", "low", "high", "frontier")


def candidates(runs: pd.DataFrame, least: int = 1) -> pd.DataFrame:
    """``COLUMNS``: each label with a target, means over its seeds (``least`` or more of them), by target and cost.
    ``runs``: ``evidence.load`` of a pair's grids, trained and untrained, with ``title``."""
    rows = []
    for (target, label, title), group in runs.dropna(subset="target").groupby(["target", "label", "title"], sort=False):
        if len(group) < least:
            continue
        found = paired.accuracy(group)
        rows.append((target, label, title, len(group), group["epochs"].mean(), group["train_macs"].mean(), *found[:3]))
    numbers = dict.fromkeys(("target", "epochs", "train_macs", "top1", "low", "high"), float)
    table = pd.DataFrame(rows, columns=list(COLUMNS[:-1])).astype(numbers)
    table = table.sort_values(["target", "train_macs", "top1"], ascending=[False, True, False], kind="stable")
    best = table.groupby("target")["top1"].cummax().groupby(table["target"]).shift(fill_value=float("-inf"))
    return table.assign(frontier=table["top1"] > best).reset_index(drop=True)


def recommended(table: pd.DataFrame, tmacs: float) -> pd.DataFrame:
    """Of each target the best candidate that takes at most so many TMACs of training."""
    within = table[table["train_macs"] <= tmacs * 1e12]
    return within.loc[within.groupby("target")["top1"].idxmax()].sort_values("target", ascending=False)
