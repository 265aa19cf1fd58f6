"""Tables 1 and 2 of arXiv 2603.12222 version 1 as ``analysis.tables``, with what this repository adds to them."""

from __future__ import annotations

import pandas as pd

from analysis import collect, findings_runs
from analysis.tables import Column, Panel, Table, number, signed

TABLE1_COLUMNS = (
    Column("method", "Framework", left=True),
    Column("macro", "Macro", left=True),
    Column("micro", "Micro", left=True),
    Column("search_and_budget", "Search and budget", left=True),
    Column("here", "Here", left=True),
    Column("runs", "Runs", number(0)),
)


def table1(runs: pd.DataFrame) -> Table:
    """Table 1, and for each framework the method by which this repository runs it (``collect.METHODS`` names it alike)
    and how many of ``runs`` are of it."""
    rows = collect.published("table1_frameworks")
    methods = {title: method for method, title in collect.METHODS.items()}
    here = rows["method"].map(methods)
    counts = here.map(runs["method"].value_counts()).fillna(0).where(here.notna())
    rows = rows.assign(here=here, runs=counts)
    panel = Panel("As published (arXiv 2603.12222 v1, Table 1); the last two columns are ours", rows)
    return Table("What pruning frameworks remove", TABLE1_COLUMNS, (panel,))


def other_rungs(runs: pd.DataFrame) -> pd.DataFrame:
    """What this repository runs besides Table 1's frameworks: ``method`` and the number of finished ``runs``."""
    named = set(collect.published("table1_frameworks")["method"])
    counts = runs["method"].value_counts()
    rows = [(title, int(counts.get(method, 0))) for method, title in collect.METHODS.items() if title not in named]
    return pd.DataFrame(rows, columns=["method", "runs"])


TABLE2_COLUMNS = (
    Column("method", "Method", left=True),
    Column("params_m", "Params (M)", number(1)),
    Column("gmacs", "GMACs", number(1)),
    Column("reduction", "Red. %", number(1)),
    Column("top1", "Top-1 %", number(2)),
    Column("change", "Change, printed", signed(2)),
    Column("recomputed", "recomputed", signed(2)),
    Column("possible", "Possible", lambda value: "yes" if value else "no"),
)


def table2() -> Table:
    """Table 2 with ``findings_runs.table2_check``'s columns."""
    panel = Panel(
        "As published (arXiv 2603.12222 v1, Table 2): ImageNet-1K. Not rerun here.", findings_runs.table2_check()
    )
    notes = (
        "Red., recomputed: from the printed MACs and accuracies.",
        "Possible: some choice of heads, dimensions and neurons of DeiT-Small has both printed sizes.",
    )
    return Table("DeiT-Small pruned by several methods", TABLE2_COLUMNS, (panel,), notes)


def on_imagenet(runs: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds of pruned ImageNet ``runs``, in the columns that ``paper_plots.table2_rows`` takes: ``name``,
    ``gmacs``, ``top1``."""
    groups = (
        runs[runs["method"] != "dense"].groupby(["label", "method"], sort=False)[["macs", "top1"]].mean().reset_index()
    )
    names = [collect.title(label, method) for label, method in zip(groups["label"], groups["method"], strict=True)]
    return pd.DataFrame({"name": names, "gmacs": groups["macs"] / 1e9, "top1": groups["top1"]})
