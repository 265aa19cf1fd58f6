"""Tables that ``paper/paper.tex`` includes and whose cells are sentences with numbers, as TeX."""

from __future__ import annotations

import re

import pandas as pd

from analysis.findings.registry import findings
from analysis.records import names
from analysis.records.results import Results
from analysis.report.numbers import Answers
from analysis.studies import open_points
from analysis.tables.render import escape, tabular
from slurm import grid


def finding_table() -> str:
    """All fourteen findings, one line each: number, what the paper says, what follows."""
    rows = [[str(number), finding.said, finding.found] for number, finding in findings().items()]
    return tabular("rp{0.32\\linewidth}p{0.56\\linewidth}", ["", "The paper", "What follows"], rows)


def open_table(answers: Answers) -> str:
    """Every open point with the default and why, and what the other readings did."""
    found, rows = answers.readings, []
    for row in open_points.summary(found).to_dict("records"):
        mine = found[found["point"] == row["point"]]
        outcome = escape(f"not measured: {row['reason']}") if mine.empty else _outcome(mine)
        default = escape(row["default"]).replace("'straight-through'", "``straight-through''")
        rows.append([row["point"], f"\\emph{{{escape(row['what'])}}}: {default}", outcome])
    return tabular(
        "lp{0.42\\linewidth}p{0.46\\linewidth}",
        ["", "Open point: default, and why", "Other readings"],
        rows,
        [["", f"\\emph{{{escape(c.what)}}}: {escape(c.choice)}", escape(c.reason)] for c in open_points.CHOICES],
    )


def _outcome(rows: pd.DataFrame) -> str:
    """Each reading with its MACs and its top-1 against the default; readings that changed nothing together."""
    same = rows[(rows["difference_low"] == 0) & (rows["difference_high"] == 0)]
    parts = [
        f"{escape(_short(row['label']))} ${row['difference']:+.2f}$ at {row['macs_percent']:.0f}\\,\\%"
        for row in rows.drop(same.index).to_dict("records")
    ]
    if len(same):
        parts.append(f"{', '.join(escape(_short(label)) for label in same['label'])}: the default's networks")
    return "; ".join(parts)


def _short(label: str) -> str:
    return re.sub(r"^(A\d+-)+", "", label)


SHOWS = {
    "laptop": "Table 3's shape, one seed",
    "study": "HiAP + target and baselines at equal MACs",
    "study_long": "the same with longer recipes",
    "ratios": "Fig. 4's shape",
    "sensitivity": "open points A1 to A7, A12",
    "calibrate": "readings of A3, A6, A12 against Figs. 5-9",
    "calibrate_end": "the same, by the end of the training alone",
    "imagenet_calibrate": "the same after one epoch of the paper's data",
    "tune": "the settings of grid evidence",
    "join": "a method of one's own beside grid evidence",
    "join_digits": "the same beside grid study, in minutes",
    "after_cut": "right after a cut, corrected or not",
    "cifar10_tune": "the settings of grid cifar10",
    "imagenette_tune": "the weights' rates of grid imagenette",
    "cifar10_ranked": "HiAP from the order of structured OBS",
    "cifar10": "methods and controls on CIFAR-10, as far as they were run",
    "table3": "Table 3's network from scratch, on a CPU",
    "cifar10_cut": "the same right after a cut, corrected or not",
    "cifar10_first": "a first look at it, untuned, in fp32",
    "imagenette_cut": "the same on ImageNet photographs, in fp32",
    "imagenette": "methods and controls on photographs (Imagenette)",
    "shrink": "the bill of a phase that shrinks",
    "latency": "time against MACs as the price of a unit",
    "evidence": "methods at the widths and depth of DeiT-Small",
    "evidence_gpu": "the same, 50,000 images at 112 pixels",
    "a4": "value dimensions (A4)",
    "budget": "where runs with and without a target end",
    "study_full": "the study with Table 3's network",
    "cifar10_table3": "Table 3",
    "imagenet_table2": "Table 2",
    "imagenet_fig4": "Fig. 4",
    "imagenet_topology": "Figs. 5 to 9",
    "imagenet_deit_base": "version 3's abstract",
}
COMMANDS = {
    "make reproduce": "sets up, runs grid laptop, executes all notebooks",
    "make test": "style, types, quick tests; test-slow: the long ones",
    "make slurm-test": "the launcher on a SLURM that the tests start",
    "make verify": "every CSV and TeX file once more, compared with what is committed",
    "make paper": "this report; make report: the notebooks as one page",
    "python -m analysis.claims": "the ledger of claims",
    "python -m analysis.cite ID": "what stands behind a row or a claim; ID@COMMIT is its permalink",
}


def command_table(results: Results) -> str:
    """What each command and grid shows; how many runs of a grid are committed, and their hours of training steps."""
    commands = [
        [f"\\texttt{{{command}}}", f"\\multicolumn{{4}}{{l}}{{{shows}}}"] for command, shows in COMMANDS.items()
    ]
    grids = []
    for name, shows in SHOWS.items():
        runs, planned = results.runs(name), grid.load(grid.find(name))
        every = sum(len(values.get("seeds", planned.seeds)) for values in planned.runs.values())
        device = names.machines(runs["device_name"]) or "not run here"
        hours = f"{runs['seconds'].sum() / 3600:.1f}" if len(runs) else "--"
        grids.append([f"\\texttt{{{escape(name)}}}", shows, f"{len(runs)} of {every}", hours, escape(device)])
    return tabular("llrrl", ["Command or grid", "What it shows", "Runs", "Hours", "Where"], commands, grids)
