"""Tables of ``paper/paper.tex`` whose cells are sentences with numbers: findings, open points, commands, as TeX."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from analysis import collect, findings, findings_runs, open_points, speed_limit
from analysis.paper_numbers import fixed
from slurm import grid


def tabular(columns: str, header: list[str], *groups: list[list[str]]) -> str:
    """A booktabs table of TeX cells, with a rule above each group of rows."""
    lines = [f"\\begin{{tabular}}{{{columns}}}", "\\toprule", " & ".join(header) + " \\\\"]
    for rows in groups:
        lines += ["\\midrule", *(" & ".join(row) + " \\\\" for row in rows)]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def escape(text: str) -> str:
    return re.sub(r"([%&#_])", r"\\\1", text)


# Findings

Row = tuple[int, str, str]


def finding_rows() -> list[list[str]]:
    """All fourteen findings, one line each: number, what the paper says, what follows."""
    rows = sorted([*_costs(), *_hardening(), *_figures(), *_table2(), _speed_limit()], key=lambda row: row[0])
    return [[str(number), said, found] for number, said, found in rows]


def _costs() -> list[Row]:
    units, value, parts = findings.units(), findings.value_dimension(), findings.cost_parts()
    eq5, prunable = f"{units.paper / 1e9:.3f} G", f"{units.prunable_macs / 1e9:.3f} G"
    share, of = f"{100 * value.share:.0f}\\,\\%", f"{fixed(value.credited, 0)} of {fixed(value.saved, 0)}"
    true, attention, thop = (
        f"{count / 1e6:.1f} M" for count in (sum(parts.values()), parts["attention"], findings.thop_count())
    )
    counted = f"{true} ({attention} of them attention's products), {thop} to a profiler that does not see these"
    return [
        (1, "Eq. 5 counts MACs", f"it counts {units.ratio:.0f} operations each: {eq5} where {prunable} can be pruned"),
        (
            2,
            "a value dimension is credited with what it costs",
            f"with {share} of that, {of} MACs: V is the head's bill",
        ),
        (3, "4.6 G and 174.0 M are counted alike", f"the CIFAR-10 network has {counted}; 4.6 G includes them"),
    ]


def _hardening() -> list[Row]:
    one, two = (findings.hardening_gap(0.1, 10, gates) for gates in (1, 2))  # type: ignore[arg-type]
    costs = f"{one.expected:.2f} expected, {one.hardened:.0f} hardened; behind two gates {two.expected:.2f} expected"
    undecided = f"{100 * findings.undecided_share(0.5):.0f}\\,\\%"
    return [
        (4, "hardening meets the expected cost as $\\tau$ falls", f"ten units at logit 0.1, at any $\\tau$: {costs}"),
        (
            5,
            "$\\tau$ falls to a minimum near zero, in experiments 0.5",
            f"there {undecided} of the samples at logit 0 lie in (0.05, 0.95)",
        ),
    ]


def _figures() -> list[Row]:
    reach, ffn = findings_runs.macro_only_reach(), findings_runs.last_ffn()
    most, beyond = f"{reach['largest'].iloc[0] / 1e9:.3f} G", reach.loc[~reach["reached"], "point"] / 1e9
    pairs = findings_runs.contradictions(findings_runs.head_pressure())
    wrong = ", ".join(f"it is higher in Fig. {more} than in Fig. {less}, and more heads stay" for more, less in pairs)
    ahead = findings_runs.against_two_to_one().query("ratio == '1.5:1' and ahead > 0")

    places = " and ".join(f"{row['ahead']:.1f} points at {row['gflops']} G" for row in ahead.to_dict("records"))
    stays = " and ".join(str(figure) for figure in ffn.loc[ffn["neurons"] > 0, "figure"])
    missed = ", ".join(f"{point:.1f} G" for point in beyond)
    return [
        (6, "Fig. 8 is the macro-only run of Fig. 4", f"it ends at {most} at most, below the point at {missed}"),
        (7, "Eq. 7 puts a price on a head", f"{wrong}: a normalisation is unstated"),
        (9, "2:1 is the best ratio", f"1.5:1 is above its line by {places}"),
        (10, "the last FFN is always removed", f"it stays in Figs. {stays}"),
    ]


def _table2() -> list[Row]:
    v, qkv = (findings_runs.fewest_value_dims(3.1, 15.0, cut) for cut in ("v", "qkv"))  # type: ignore[arg-type]
    training, better = findings_runs.rows_with_training(), findings_runs.better_and_no_larger()
    slim, first = findings_runs.vit_slim_rows().iloc[0], better[better["hiap_gmacs"] == 3.1]
    impossible = findings_runs.table2_check().query("not possible").to_dict("records")
    names = ", ".join(f"{row['method']}'s at {row['gmacs']} G" for row in impossible)
    needs = f"if heads keep {v:.1f} of 64 dims in the mean (Q, K and V cut: {qkv:.1f})"
    return [
        (8, "3.1 G and 15.0 M are the described network's", f"{needs}; no network has both sizes of {names}"),
        (11, "training budgets are critical", f"{training['state'].sum()} of {training['rows'].sum()} rows state one"),
        (12, "ViT-Slim's 15.6 M row costs 3.1 G", f"{slim['formula']:.2f} G by its own formula"),
        (13, "Table 2 compares HiAP with others", f"{len(first)} rows beat its 3.1 G at no more MACs, by up to"
         f" {first['ahead'].max():.2f}"),
    ]  # fmt: skip


def _speed_limit() -> Row:
    epoch, cifar = speed_limit.reach(speed_limit.FIGURES, full=True)[0], speed_limit.reach(speed_limit.CIFAR)[-1]
    closed = speed_limit.first_columns()["heads_closed"]
    moves = f"it moves a logit by {epoch:.2f} in an epoch of ImageNet, by {cifar:.2f} in all of Table 3's training"
    shown = f"Figs. 5 to 9 have {closed.min()} to {closed.max()} of 72 heads closed after their first epoch"
    return 14, "one rate is stated, $5\\cdot10^{-5}$", f"{moves}; {shown}"


def finding_table() -> str:
    return tabular("rp{0.32\\linewidth}p{0.56\\linewidth}", ["", "The paper", "What follows"], finding_rows())


# Open points


def open_table(root: Path) -> str:
    """Every open point with the default and why, and what the other readings did."""
    found = open_points.measured(root)
    rows = []
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


# Commands

SHOWS = {
    "laptop": "Table 3's shape, one seed",
    "study": "HiAP and baselines at equal MACs",
    "study_long": "the same with longer recipes",
    "ratios": "Fig. 4's shape",
    "sensitivity": "open points A1 to A7, A12",
    "calibrate": "readings of A3, A6, A12 against Figs. 5-9",
    "imagenet_calibrate": "the same after one epoch of the paper's data",
    "tune": "the settings of grid evidence",
    "evidence": "methods at the paper's shape",
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


def command_table(root: Path) -> str:
    """What each command and grid shows; how many runs of a grid are committed, and their hours of training steps."""
    commands = [
        [f"\\texttt{{{command}}}", f"\\multicolumn{{4}}{{l}}{{{shows}}}"] for command, shows in COMMANDS.items()
    ]
    grids = []
    for name, shows in SHOWS.items():
        runs, planned = collect.load(root, name), grid.load(grid.find(name))
        all_ = sum(len(values.get("seeds", planned.seeds)) for values in planned.runs.values())
        device = collect.machines(runs["device_name"]) or "not run here"
        hours = f"{runs['seconds'].sum() / 3600:.1f}" if len(runs) else "--"
        count = f"{len(runs)} of {all_}"
        grids.append([f"\\texttt{{{escape(name)}}}", shows, count, hours, escape(device)])
    return tabular("llrrl", ["Command or grid", "What it shows", "Runs", "Hours", "Where"], commands, grids)
