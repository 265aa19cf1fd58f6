"""Tables: one definition (columns, panels of rows), rendered as plain text, Markdown, LaTeX (booktabs) and CSV.

Every number is formatted once, so the renderings agree to the last digit. ``python -m analysis.tables [--results DIR]
[--grid NAME]`` prints the table of a grid.
"""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from pandas.api.types import is_numeric_dtype
from scipy.special import stdtrit  # Student's quantile

from analysis import collect
from hiap.files import atomic_write
from hiap.train.arguments import Parser, results_root, told
from hiap.train.config import ConfigError

TEXT_WIDTH = 100
MISSING = "-"


@dataclass(frozen=True)
class Column:
    """``show`` turns a row's value of ``key`` into a cell; a missing value becomes a dash."""

    key: str
    header: str
    show: Callable[[object], str] = str
    left: bool = False

    def cell(self, row: pd.Series) -> str:
        value = row.get(self.key)
        return MISSING if value is None or (isinstance(value, float) and math.isnan(value)) else self.show(value)


@dataclass(frozen=True)
class Panel:
    """Rows measured under one setting, which ``heading`` states."""

    heading: str
    rows: pd.DataFrame


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[Column, ...]
    panels: tuple[Panel, ...]
    notes: tuple[str, ...] = ()

    def cells(self, panel: Panel) -> list[list[str]]:
        return [[column.cell(row) for column in self.columns] for _, row in panel.rows.iterrows()]


def number(digits: int, scale: float = 1.0) -> Callable[[object], str]:
    """Formatter: ``value / scale`` with this many decimals."""
    return lambda value: f"{float(value) / scale:.{digits}f}"  # type: ignore[arg-type]


def signed(digits: int) -> Callable[[object], str]:
    """Formatter that writes the sign always."""
    return lambda value: f"{float(value):+.{digits}f}"  # type: ignore[arg-type]


# Table 3's columns, and what a reader needs to judge them.
COLUMNS = (
    Column("title", "Method", left=True),
    Column("macs", "MMACs", number(2, 1e6)),
    Column("reduction", "Red. %", number(1)),
    Column("params", "Params (M)", number(3, 1e6)),
    Column("top1", "Top-1 %", number(2)),
    Column("interval", "± 95 %", number(2)),
    Column("n", "n", number(0)),
    Column("epochs", "Epochs", number(0)),
    Column("train_macs", "Train TMACs", number(2, 1e12)),
    Column("seconds", "Train min", number(1, 60)),
)


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per data set and label: means over seeds, ``n`` of them, and for n > 1 the half width of Student's 95 %
    interval of the mean top-1; ``sampling`` is the half width that the finite test set alone gives one accuracy.
    Dense first, then by falling MACs. Raises ``ConfigError`` if a label is used twice."""
    runs = runs.drop_duplicates("run_id")
    if (twice := runs.duplicated(["data", "label", "seed"], keep=False)).any():
        label, ids = runs.loc[twice, "label"].iloc[0], ", ".join(runs.loc[twice, "run_id"].head(2))
        raise ConfigError(f"label '{label}' names different runs of one seed ({ids}); choose a grid or rename one")
    keys = ["data", "label", "method"]
    means = ["macs", "macs_dense", "params", "top1", "top1_soft", "top1_hardened", "epochs", "train_macs", "seconds"]
    groups = runs.astype(dict.fromkeys([*means, "target"], float)).groupby(keys, sort=False)
    table = groups[means].mean()
    table["target"] = groups["target"].first()
    table["n"] = groups.size()
    table["interval"] = groups["top1"].agg(half_width)
    table["test_images"] = groups["test_images"].first()
    table["sampling"] = 1.96 * (table["top1"] * (100 - table["top1"]) / table["test_images"]) ** 0.5
    table["reduction"] = 100 * (1 - table["macs"] / table["macs_dense"])
    found = table.reset_index()
    found["title"] = list(map(collect.title, found["label"], found["method"]))
    found["pruned"] = found["method"] != "dense"
    order = found.sort_values(["pruned", "macs", "label"], ascending=[True, False, True], ignore_index=True)
    return order.drop(columns="pruned")


def half_width(values: pd.Series) -> float:
    """Half width of Student's 95 % confidence interval of the mean; NaN for one value."""
    n = len(values)
    return float("nan") if n < 2 else float(stdtrit(n - 1, 0.975) * values.std(ddof=1) / math.sqrt(n))


STUDY_COLUMNS = (
    Column("title", "Method", left=True),
    Column("share", "MACs %", number(2)),
    Column("top1", "Top-1 %", number(2)),
    Column("low", "low", number(2)),
    Column("high", "high", number(2)),
    Column("difference", "- HiAP", signed(2)),
    Column("difference_low", "low", signed(2)),
    Column("difference_high", "high", signed(2)),
    Column("improvement", "P", number(2)),
    Column("verdict", "", left=True),
    Column("n", "n", number(0)),
    Column("train_macs", "TMACs", number(2, 1e12)),
)


def study(rows: pd.DataFrame) -> Table:
    """The rows of ``stats.study``: one panel per target, and one for what has none."""
    data, images = rows["data"].iloc[0], int(rows["test_images"].iloc[0])
    rows = rows.assign(share=100 - rows["reduction"], verdict=[_corrected(row) for _, row in rows.iterrows()])
    free = rows[rows["target"].isna()]
    panels = [Panel("No target", free)] if len(free) else []
    for target in sorted(map(float, rows["target"].dropna().unique()), reverse=True):
        ordered = rows[rows["target"] == target].sort_values("top1", ascending=False)
        panels.append(Panel(f"Target {100 * target:.0f} % of the dense MACs", ordered))
    return Table(
        f"Single-phase and multi-stage pruning on {data} ({images:,} test images)",
        STUDY_COLUMNS,
        tuple(panels),
        STUDY_NOTES,
    )


def compact(rows: pd.DataFrame) -> Table:
    """``stats.study`` as a grid: methods down, targets across, mean top-1 with ↑ or ↓ where it is decided."""
    aimed = rows.dropna(subset="target")
    marks = {"better": " ↑", "worse": " ↓", "": ""}
    cells = [f"{row['top1']:.2f}{marks[_verdict(row)]}" for _, row in aimed.iterrows()]
    grid = aimed.assign(cell=cells).pivot(index="title", columns="target", values="cell")
    means = aimed.groupby("title")["top1"].mean()
    targets = sorted(grid.columns, reverse=True)
    # Those that reach every target first, by their mean over targets.
    order = pd.DataFrame({"lacks": grid.isna().sum(axis=1), "mean": -means}).sort_values(["lacks", "mean"]).index
    grid.columns = [f"t{target}" for target in grid.columns]
    columns = [Column("title", "Method", left=True)]
    columns += [Column(f"t{target}", f"{100 * target:.0f} %", left=True) for target in targets]
    n = f"{int(aimed['n'].min())}" if aimed["n"].nunique() == 1 else f"{aimed['n'].min():.0f} to {aimed['n'].max():.0f}"
    heading = f"Share of the dense MACs; n = {n} seeds"
    return Table("Top-1 (%) at equal MACs", tuple(columns), (Panel(heading, grid.loc[order].reset_index()),))


def listing(frame: pd.DataFrame, title: str) -> Table:
    """Any frame as it is, a column each."""
    columns = tuple(
        Column(str(key), str(key).replace("_", " "), left=not is_numeric_dtype(frame[key])) for key in frame
    )
    return Table(title, columns, (Panel(f"{len(frame)} rows", frame),))


def _verdict(row: pd.Series) -> str:
    return "" if row["decided"] is not True else "better" if row["difference"] > 0 else "worse"


def _corrected(row: pd.Series) -> str:
    """The verdict, in brackets where it does not stand among all comparisons of its study."""
    verdict = _verdict(row)
    return verdict if row["holm"] is True or not verdict else f"({verdict})"


STUDY_NOTES = (
    "Top-1: extracted model, mean over n seeds; low, high: its bootstrap 95 % interval.",
    "- HiAP: difference to HiAP with the same target, paired by seed; P: probability that a seed beats a seed of HiAP.",
    "better, worse: than HiAP, where the bootstrap's and Student's 95 % interval of the difference exclude zero; in "
    "brackets: not after Holm's correction for all comparisons of this table.",
    "TMACs: multiply-adds of training after the dense model.",
)


def published_table3() -> pd.DataFrame:
    """Table 3 as printed, in the columns of ``summary``; reductions computed from the printed MACs."""
    rows = collect.published("table3_cifar10_vit_tiny")
    methods = {"Dense": "dense", "Uniform": "uniform", "l1": "l1", "HiAP": "hiap"}
    return pd.DataFrame(
        {
            "title": rows["method"],
            "label": rows["method"],
            "method": [
                next(m for prefix, m in methods.items() if label.startswith(prefix)) for label in rows["method"]
            ],
            "macs": rows["mmacs"] * 1e6,
            "macs_dense": rows["mmacs"].max() * 1e6,
            "reduction": 100 * (1 - rows["mmacs"] / rows["mmacs"].max()),
            "top1": rows["final_acc"],
            "data": "CIFAR-10, as published",
        }
    )


def table3(runs: pd.DataFrame) -> Table:
    """Table 3's shape: the paper's rows, and ours below, one panel per data set so that none is taken for another."""
    panels = [Panel("As published (arXiv 2603.12222 v1, Table 3): CIFAR-10. Not rerun here.", published_table3())]
    for data, rows in summary(runs).groupby("data", sort=True):
        images = int(rows["test_images"].iloc[0])
        sampling = f"± {rows['sampling'].max():.1f} by sampling"
        panels.append(Panel(f"This repository: {data}, {images:,} test images ({sampling}). Not CIFAR-10.", rows))
    return Table("Accuracy and cost at matched MACs (the shape of the paper's Table 3)", COLUMNS, tuple(panels), NOTES)


NOTES = (
    "MACs: multiply-adds of one image through the extracted model, counted (published: as printed).",
    "Top-1: extracted model, mean over n seeds; ±: half of Student's 95 % interval of that mean.",
    "Epochs and training cost are the run's own; the dense start that pruned runs share is its own row.",
)


def text(table: Table) -> str:
    """Plain text, at most ``TEXT_WIDTH`` columns wide."""
    grids = [table.cells(panel) for panel in table.panels]
    headers = [column.header for column in table.columns]
    widths = [max(map(len, cells)) for cells in zip(headers, *(row for grid in grids for row in grid), strict=True)]
    widths[0] = max(8, min(widths[0], TEXT_WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1)))

    def line(cells: list[str]) -> str:
        parts = zip(table.columns, cells, widths, strict=True)
        return "  ".join(_clip(c, w).ljust(w) if col.left else c.rjust(w) for col, c, w in parts).rstrip()

    rule = "-" * len(line([h.ljust(w) for h, w in zip(headers, widths, strict=True)]))
    lines = [table.title, rule, line(headers), rule]
    for panel, grid in zip(table.panels, grids, strict=True):
        lines += [panel.heading, *map(line, grid), rule]
    return "\n".join([*lines, *(textwrap.fill(note, TEXT_WIDTH) for note in table.notes)]) + "\n"


def markdown(table: Table) -> str:
    """GitHub's Markdown: one table per panel, the heading above it."""
    head = "| " + " | ".join(column.header for column in table.columns) + " |"
    align = "|" + "|".join(":---" if column.left else "---:" for column in table.columns) + "|"
    parts = [f"**{table.title}**"]
    for panel in table.panels:
        rows = ["| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |" for cells in table.cells(panel)]
        parts.append("\n".join([f"{panel.heading}\n", head, align, *rows]))
    return "\n\n".join([*parts, *table.notes]) + "\n"


def latex(table: Table) -> str:
    """A booktabs ``tabular`` with a full-width line above each panel; needs ``\\usepackage{booktabs}``."""
    columns = "".join("l" if column.left else "r" for column in table.columns)
    lines = [f"\\begin{{tabular}}{{{columns}}}", "\\toprule", _latex_row([c.header for c in table.columns])]
    for panel in table.panels:
        heading = f"\\multicolumn{{{len(table.columns)}}}{{l}}{{\\emph{{{_latex(panel.heading)}}}}} \\\\"
        lines += ["\\midrule", heading, *(_latex_row(cells) for cells in table.cells(panel))]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def values(table: Table) -> pd.DataFrame:
    """The unrounded values of all panels, with the panel's heading in a column of its own."""
    keys = [column.key for column in table.columns]
    frames = [panel.rows.reindex(columns=keys).assign(panel=panel.heading) for panel in table.panels]
    return pd.DataFrame([row for frame in frames for row in frame.to_dict("records")], columns=["panel", *keys])


def save(table: Table, name: str, root: str | Path) -> None:
    """Write ``<root>/tables/<name>.txt``, ``.md``, ``.tex`` and ``.csv``."""
    for suffix, render in (("txt", text), ("md", markdown), ("tex", latex)):
        atomic_write(Path(root) / "tables" / f"{name}.{suffix}", render(table).encode())
    save_frame(values(table), name, root)


def save_frame(frame: pd.DataFrame, name: str, root: str | Path, folder: str = "tables") -> Path:
    """Write ``<root>/<folder>/<name>.csv``; numbers to ten digits, so that equal input gives equal bytes."""
    path = Path(root) / folder / f"{name}.csv"
    atomic_write(path, frame.to_csv(index=False, float_format="%.10g", lineterminator="\n").encode())
    return path


def _clip(cell: str, width: int) -> str:
    return cell if len(cell) <= width else cell[: width - 1] + "…"


def _latex_row(cells: list[str]) -> str:
    return " & ".join(_latex(cell) for cell in cells) + " \\\\"


ARROWS = (("↑", "$\\uparrow$"), ("↓", "$\\downarrow$"))


def _latex(value: str) -> str:
    for plain, escaped in (("\\", "\\textbackslash{}"), ("±", "$\\pm$"), ("λ", "$\\lambda$"), *ARROWS):
        value = value.replace(plain, escaped)
    for character in "&%#_":
        value = value.replace(character, f"\\{character}")
    return value


def main(arguments: list[str] | None = None) -> int:
    return told(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int | None:
    parser = Parser(prog="python -m analysis.tables", description="Print the table of a grid.")
    parser.add_argument(
        "--results", type=results_root, default=None, help="results root (default: $HIAP_RESULTS or results/)"
    )
    parser.add_argument("--grid", default=None, help="grid (default: all)")
    options = parser.parse_args(arguments)
    root = options.results or collect.results_root()
    runs = collect.load(root, options.grid)
    if runs.empty:
        raise ConfigError(f"no finished run below {root / 'runs' / (options.grid or '')}")
    print(text(table3(runs)), end="")
    return None


if __name__ == "__main__":
    sys.exit(main())
