"""What one extracted network of each method took to train, all stages, and what its start took."""

from __future__ import annotations

import pandas as pd

from analysis.records import names
from analysis.records.results import Results
from hiap.train.record import Record

SUMS = ("epochs", "images", "train_macs", "seconds")
KEYS = ["title", "variant", "label", "method", "target", "stages", "teacher"]


def totals(results: Results, grid: str) -> pd.DataFrame:
    """One row per label, means over its ``n`` seeds: ``epochs``, ``images``, ``train_macs`` and ``seconds`` of its own
    stages, the same of what it started from (``start_epochs``, ...), the ``stages`` in words, the ``device``, and
    whether a ``teacher``'s forward passes are among them."""
    runs = results.runs(grid).drop_duplicates("run_id")
    if runs.empty:
        return pd.DataFrame()
    stages = results.stages(grid)
    own, start = (stages[stages["inherited"] == old] for old in (False, True))
    sums = start.groupby("run_id")[list(SUMS)].sum().add_prefix("start_")
    rows = runs.set_index("run_id").join(sums).fillna(dict.fromkeys(sums, 0)).reset_index()
    in_words = own.groupby("run_id", sort=False)["stage"].agg(", ".join)
    taught = {record.run_id: _taught(record) for record in results.records(grid)}
    rows = rows.assign(stages=rows["run_id"].map(in_words).fillna("-"), teacher=rows["run_id"].map(taught))
    groups = names.with_variants(rows).groupby(KEYS, sort=False, dropna=False)
    means = groups[[*SUMS, *sums]].mean()
    devices = groups["device_name"].agg(lambda names: ", ".join(sorted(set(names))))
    return means.assign(n=groups.size(), device=devices).reset_index()


def _taught(record: Record) -> bool:
    return record.config.method != "dense" and record.config.distill.alpha > 0
