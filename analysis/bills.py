"""The training bill: what one extracted network of each method took to train, all stages, and what its start took."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis import collect, stats
from analysis.tables import Column, Panel, Table, number

SUMS = ("epochs", "images", "train_macs", "seconds")


def totals(root: str | Path, grid: str) -> pd.DataFrame:
    """One row per label, means over its ``n`` seeds: ``epochs``, ``images``, ``train_macs`` and ``seconds`` of its own
    stages, the same of what it started from (``start_epochs``, ...), the ``stages`` in words, the ``device``, and
    whether a ``teacher``'s forward passes are in the bill."""
    runs = collect.load(root, grid).drop_duplicates("run_id")
    if runs.empty:
        return pd.DataFrame()
    bills = collect.stages(root, grid).drop_duplicates(["run_id", "stage", "inherited"])
    own, start = (bills[bills["inherited"] == old] for old in (False, True))
    taught = {r.run_id: _taught(r) for r in collect.records(root, grid)}
    sums = start.groupby("run_id")[list(SUMS)].sum().add_prefix("start_")
    rows = runs.set_index("run_id").join(sums).fillna(dict.fromkeys(sums, 0)).reset_index()
    names = own.groupby("run_id", sort=False)["stage"].agg(", ".join)
    rows = rows.assign(
        stages=rows["run_id"].map(names).fillna("-"),
        teacher=rows["run_id"].map(taught),
        variant=list(map(stats.variant, rows["label"], rows["target"])),
    )
    rows["title"] = list(map(collect.title, rows["variant"], rows["method"]))
    keys = ["title", "variant", "label", "method", "target", "stages", "teacher"]
    groups = rows.groupby(keys, sort=False, dropna=False)
    means = groups[[*SUMS, *(f"start_{name}" for name in SUMS)]].mean()
    words = groups["device_name"].agg(lambda names: ", ".join(sorted(set(names))))
    return means.assign(n=groups.size(), device=words).reset_index()


def _taught(record: collect.Record) -> bool:
    return record.config.method != "dense" and record.config.distill.alpha > 0


def table(rows: pd.DataFrame, name: str) -> Table:
    """``totals`` for print, one panel per target."""
    columns = (
        Column("title", "Method", left=True),
        Column("stages", "Stages", left=True),
        Column("epochs", "Epochs", number(0)),
        Column("images", "Images (k)", number(0, 1e3)),
        Column("train_macs", "TMACs", number(3, 1e12)),
        Column("seconds", "s", number(0)),
        Column("start_train_macs", "Start TMACs", number(3, 1e12)),
        Column("teacher", "Teacher", lambda value: "yes" if value else "no"),
        Column("n", "n", number(0)),
    )
    free = rows[rows["target"].isna()]
    panels = [Panel("No target", free)] if len(free) else []
    for target in sorted(rows["target"].dropna().unique(), reverse=True):
        mine = rows[rows["target"] == target].sort_values("train_macs")
        panels.append(Panel(f"Target {100 * target:.0f} % of the dense MACs", mine))
    devices = ", ".join(sorted(set(rows["device"])))
    notes = (
        "Means over n seeds. Own stages; start: training of the dense network, paid once for all that share it.",
        "TMACs: multiply-adds of training steps, forward, backward and, where it says so, the teacher's forward.",
        f"s: wall time of training steps on {devices}, one of several runs of a machine.",
    )
    return Table(f"Training bill of grid {name}", columns, tuple(panels), notes)
