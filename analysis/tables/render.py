"""Tables: one definition (columns, panels of rows), rendered as plain text, Markdown, LaTeX (booktabs) and CSV.

Every number is formatted once, so the renderings agree to the last digit.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from pandas.api.types import is_numeric_dtype

from hiap.files import atomic_write

TEXT_WIDTH = 120
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


def words(key: str, header: str) -> Column:
    return Column(key, header, left=True)


def number(digits: int, scale: float = 1.0) -> Callable[[object], str]:
    """Formatter: ``value / scale`` with this many decimals."""
    return lambda value: f"{float(value) / scale:.{digits}f}"  # type: ignore[arg-type]


def signed(digits: int) -> Callable[[object], str]:
    """Formatter that writes the sign always; zero has none below it."""
    return lambda value: f"{round(float(value), digits) + 0.0:+.{digits}f}"  # type: ignore[arg-type]


def yes_no(value: object) -> str:
    return "yes" if value else "no"


def per_target(rows: pd.DataFrame, by: str, ascending: bool = False) -> tuple[Panel, ...]:
    """One panel for what has no target, if anything, and one per target, the highest first, sorted ``by`` a column."""
    panels = [Panel("No target", free)] if len(free := rows[rows["target"].isna()]) else []
    for target in sorted(map(float, rows["target"].dropna().unique()), reverse=True):
        mine = rows[rows["target"] == target].sort_values(by, ascending=ascending)
        panels.append(Panel(f"Target {100 * target:.0f} % of the dense MACs", mine))
    return tuple(panels)


def listing(frame: pd.DataFrame, title: str) -> Table:
    """Any frame as it is, a column each."""
    columns = tuple(
        Column(str(key), str(key).replace("_", " "), left=not is_numeric_dtype(frame[key])) for key in frame
    )
    return Table(title, columns, (Panel(f"{len(frame)} rows", frame),))


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
    groups = []
    for panel in table.panels:
        heading = f"\\multicolumn{{{len(table.columns)}}}{{l}}{{\\emph{{{escape(panel.heading)}}}}}"
        groups.append([[heading], *([escape(cell) for cell in cells] for cells in table.cells(panel))])
    columns = "".join("l" if column.left else "r" for column in table.columns)
    return tabular(columns, [escape(column.header) for column in table.columns], *groups)


def tabular(columns: str, header: list[str], *groups: Iterable[list[str]]) -> str:
    """A booktabs table of TeX cells, with a rule above each group of rows."""
    lines = [f"\\begin{{tabular}}{{{columns}}}", "\\toprule", " & ".join(header) + " \\\\"]
    for rows in groups:
        lines += ["\\midrule", *(" & ".join(row) + " \\\\" for row in rows)]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def escape(value: str) -> str:
    """Plain text as TeX shows it."""
    for plain, escaped in TEX:
        value = value.replace(plain, escaped)
    return value


TEX = (("\\", "\\textbackslash{}"), ("±", "$\\pm$"), ("λ", "$\\lambda$"), ("↑", "$\\uparrow$"), ("↓", "$\\downarrow$"),
       *((character, f"\\{character}") for character in "&%#_"))  # fmt: skip


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
