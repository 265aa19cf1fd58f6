"""One style, one way to save, and marks that several pictures share.

Widths are those of a two-column paper. Colours are Okabe and Ito's, which the colour-blind can tell apart (but for
two that are too pale on white, or one too many); methods differ in their markers too.
"""

from __future__ import annotations

import inspect
import io
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import pandas as pd
from IPython.display import Image
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.tables.render import save_frame
from hiap.files import atomic_write

COLUMN, PAGE = 3.3, 6.8  # inches
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so figures do not depend on the machine's fonts
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.5,
    "legend.fontsize": 6.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.linewidth": 0.4,
    "grid.color": "#dddddd",
    "hatch.linewidth": 0.5,
    "legend.frameon": False,
    "lines.linewidth": 1.0,
    "lines.markersize": 5,
    "pdf.fonttype": 42,
}


def styled(room: dict[str, Any]) -> None:
    """Make every function of a module (its ``globals()``) that returns a figure draw it in ``STYLE``, and leave the
    reader's own settings as they are."""
    for name, draw in list(room.items()):
        if (
            inspect.isfunction(draw)
            and draw.__module__ == room["__name__"]
            and "Figure" in str(draw.__annotations__.get("return"))
        ):
            room[name] = matplotlib.rc_context(STYLE)(draw)


class Ink:
    """Colours that are not a method's."""

    BLUE, ORANGE, GREEN, RED, PINK, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#8c8c8c"
    DARK = "#444444"  # of numbers beside a picture


class Look(NamedTuple):
    colour: str
    marker: str


LOOKS = {
    "dense": Look("#000000", "*"),
    "hiap": Look(Ink.RED, "o"),
    "uniform": Look(Ink.BLUE, "s"),
    "l1": Look(Ink.GREEN, "^"),
    "taylor": Look(Ink.ORANGE, "D"),
    "obs": Look("#00A6A6", "p"),
    "magnitude": Look(Ink.PINK, "v"),
    "vit_slim": Look("#56B4E9", "P"),
    "cofi": Look("#6A51A3", "X"),
    "random": Look(Ink.GREY, "d"),
    "peer": Look("#8B4513", "<"),
    "amp": Look("#B8860B", ">"),
    "snapvit": Look("#556B2F", "H"),
}


def look(method: str) -> Look:
    """A method without an entry is grey."""
    return LOOKS.get(method, Look(Ink.GREY, "h"))


SERIES = (Look(Ink.RED, "o"), Look(Ink.BLUE, "s"), Look(Ink.GREEN, "^"), Look(Ink.ORANGE, "D"), Look(Ink.PINK, "v"))
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (1, 3)))
RATIOS = dict(zip(("2:1", "5:1", "1.5:1", "macro-only", "micro-only"), SERIES, strict=True))  # of Fig. 4
EDGED: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.4}
DASHED: dict[str, Any] = {"color": "black", "linewidth": 0.7, "linestyle": "--"}


def narrow(height: float, *panels: int, **how: Any) -> tuple[Figure, Any]:
    """A figure as wide as one column and its axes, as ``Figure.subplots`` gives them; inches."""
    fig = Figure(figsize=(COLUMN, height), layout="constrained")
    return fig, fig.subplots(*panels, **how)


def wide(height: float, *panels: int, **how: Any) -> tuple[Figure, Any]:
    """The same over both columns."""
    fig, axes = narrow(height, *panels, **how)
    fig.set_figwidth(PAGE)
    return fig, axes


def entry(colour: str, marker: str = "", **style: Any) -> Line2D:
    """A legend's entry: a mark, or a line where ``linestyle`` says so."""
    return Line2D([], [], color=colour, marker=marker, **{"linestyle": "", **style})


@matplotlib.rc_context(STYLE)
def save(fig: Figure, name: str, data: pd.DataFrame, root: str | Path) -> Image:
    """Write ``<root>/figures/<name>.pdf``, ``.png`` and ``.csv`` (what was plotted); equal input gives equal bytes.
    Returns the PNG for a notebook to show."""
    fig.draw_without_rendering()
    fig.set_layout_engine("none")  # one layout for both files
    path = save_frame(data, name, root, "figures")
    for suffix, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
        buffer = io.BytesIO()
        fig.savefig(buffer, format=suffix, dpi=200, metadata=metadata)
        atomic_write(path.with_suffix(f".{suffix}"), buffer.getvalue())
    return Image(buffer.getvalue(), width=round(130 * fig.get_figwidth()))
