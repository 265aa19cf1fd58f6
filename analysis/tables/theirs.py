"""Tables 1 to 3 of arXiv 2603.12222 version 1, with what this repository adds to them."""

from __future__ import annotations

import pandas as pd

from analysis.findings import table2 as checks
from analysis.records import published
from analysis.records.names import METHODS
from analysis.tables.render import Column, Panel, Table, number, signed, words, yes_no

TABLE1_COLUMNS = (
    words("method", "Framework"),
    words("macro", "Macro"),
    words("micro", "Micro"),
    words("search_and_budget", "Search and budget"),
    words("here", "Here"),
    Column("runs", "Runs", number(0)),
)


def table1(runs: pd.DataFrame) -> Table:
    """Table 1, and for each framework the method by which this repository runs it (``METHODS`` names it alike) and how
    many of ``runs`` are of it."""
    rows = published.table("table1_frameworks")
    here = rows["method"].map({title: method for method, title in METHODS.items()})
    counts = here.map(runs["method"].value_counts()).fillna(0).where(here.notna())
    heading = "As published (arXiv 2603.12222 v1, Table 1); the last two columns are ours"
    panel = Panel(heading, rows.assign(here=here, runs=counts))
    return Table("What pruning frameworks remove", TABLE1_COLUMNS, (panel,))


def other_methods(runs: pd.DataFrame) -> pd.DataFrame:
    """What this repository runs besides Table 1's frameworks: ``method`` and the number of finished ``runs``."""
    named = set(published.table("table1_frameworks")["method"])
    counts = runs["method"].value_counts()
    rows = [(title, int(counts.get(method, 0))) for method, title in METHODS.items() if title not in named]
    return pd.DataFrame(rows, columns=["method", "runs"])


TABLE2_COLUMNS = (
    words("method", "Method"),
    Column("params_m", "Params (M)", number(1)),
    Column("gmacs", "GMACs", number(1)),
    Column("reduction", "Red. %", number(1)),
    Column("top1", "Top-1 %", number(2)),
    Column("change", "Change, printed", signed(2)),
    Column("recomputed", "recomputed", signed(2)),
    Column("possible", "Possible", yes_no),
)
TABLE2_NOTES = (
    "Red., recomputed: from the printed MACs and accuracies.",
    "Possible: some choice of heads, dimensions and neurons of DeiT-Small has both printed sizes.",
)


def table2() -> Table:
    """Table 2 with the columns of its check."""
    panel = Panel("As published (arXiv 2603.12222 v1, Table 2): ImageNet-1K. Not rerun here.", checks.table2_check())
    return Table("DeiT-Small pruned by several methods", TABLE2_COLUMNS, (panel,), TABLE2_NOTES)


def table3() -> pd.DataFrame:
    """Table 3 as printed, in the columns of ``comparisons.summary``; reductions computed from the printed MACs."""
    rows = published.table(published.TABLE3)
    methods = {"Dense": "dense", "Uniform": "uniform", "l1": "l1", "HiAP": "hiap"}
    label, macs = rows["method"], rows["mmacs"]
    return pd.DataFrame(
        {
            "title": label,
            "label": label,
            "method": [next(m for prefix, m in methods.items() if name.startswith(prefix)) for name in label],
            "macs": macs * 1e6,
            "macs_dense": macs.max() * 1e6,
            "reduction": 100 * (1 - macs / macs.max()),
            "top1": rows["final_acc"],
            "data": "CIFAR-10, as published",
        }
    )
