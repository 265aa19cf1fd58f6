"""Means and differences with their intervals, and how far an axis of top-1 reaches."""

from __future__ import annotations

from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures.style import DASHED, STYLE, Ink, look, narrow, styled, wide
from analysis.records.names import count

FAR = 4.0  # points of top-1: a method this far from HiAP at the same target would hide the others
MARGIN = 0.2  # points of top-1 around what an axis shows
PALE = 0.35  # how much of its colour a mark keeps that nothing judges


class Dots(NamedTuple):
    """One panel of ``dots``: ``rows`` has ``title`` (the line it stands on), ``middle``, ``low``, ``high``, and may
    have ``method`` (its colour), ``decided`` (filled or hollow) and ``pale``."""

    title: str
    unit: str
    rows: pd.DataFrame
    line: float | None = None  # a vertical line, what the dots are compared with


def dots(panels: list[Dots], lines: list[str], limits: tuple[float, float] | None = None) -> Figure:
    """Means with intervals, one line per title and one panel per quantity; a line without a row stays empty. With
    ``limits`` all panels have one scale, and what lies beyond is written at the edge."""
    fig, axes = wide(0.75 + 0.165 * len(lines), 1, len(panels), sharey=True, squeeze=False)
    place = {title: position for position, title in enumerate(lines)}
    for ax, panel in zip(axes[0], panels, strict=True):
        if panel.line is not None:
            ax.axvline(panel.line, **DASHED, zorder=1)
        for row in panel.rows.to_dict("records"):
            style, y, middle = look(row.get("method", "hiap")), place[row["title"]], row["middle"]
            if limits and not limits[0] < middle < limits[1]:
                left = middle < limits[0]
                words = f" ← {middle:.1f}" if left else f"{middle:.1f} → "
                at = {"x": limits[0], "ha": "left"} if left else {"x": limits[1], "ha": "right"}
                ax.text(y=y, s=words, va="center", color=style.colour, fontsize=6.5, **at)
                continue
            bars = [[middle - row["low"]], [row["high"] - middle]]
            marks = {"fmt": style.marker, "color": style.colour, "markerfacecolor": _face(row, style.colour)}
            ax.errorbar(middle, y, xerr=bars, markersize=4, elinewidth=0.9, zorder=2, **marks)
        ax.set(title=panel.title, xlabel=panel.unit)
        ax.grid(True, axis="x")
        ax.xaxis.set_major_locator(MaxNLocator(5))
        if limits:
            ax.set_xlim(limits)
    axes[0, 0].set_yticks(range(len(lines)), lines)
    axes[0, 0].set_ylim(len(lines) - 0.5, -0.5)
    return fig


def _face(row: dict[Any, Any], colour: str) -> str | tuple[float, ...]:
    if not row.get("decided", True):
        return "white"
    return tuple(1 - PALE * (1 - part) for part in to_rgb(colour)) if row.get("pale") else colour


def sensitivity(spread: pd.DataFrame, quantities: dict[str, str]) -> Figure:
    """``seeds.mean_per_label``: a line per label, a panel per quantity (column to its unit); dashed: the default."""
    panels: list[Dots] = []
    for column, unit in quantities.items():
        ends = {column: "middle", f"{column}_low": "low", f"{column}_high": "high"}
        rows = spread.rename(columns={"label": "title", **ends})
        default = rows.loc[rows["title"] == "default", "middle"]
        title = "" if panels else f"n = {count(spread['n'])}"
        panels.append(Dots(title, unit, rows, line=default.iloc[0] if len(default) else None))
    return dots(panels, list(spread["label"]))


def forest(rows: pd.DataFrame) -> Figure:
    """Top-1 against HiAP at the same target, one panel per target, from ``comparisons.study``; hollow where not
    decided after Holm's correction for all that is shown."""
    compared = rows.dropna(subset="difference").drop(columns=["low", "high"])
    compared = compared.rename(columns={"difference_low": "low", "difference_high": "high"})
    compared = compared.fillna(dict.fromkeys(("low", "high"), compared["difference"]))  # one seed has no interval
    order = compared.groupby("title")["difference"].mean().sort_values(ascending=False)
    low, high = _reach(compared)
    if (compared["difference"] < low).any():  # their numbers stand left of the line
        low = min(low, -0.5 * high)
    words = f"n = {count(compared['n'])} seeds; filled: decided after Holm's correction; hollow: not decided"
    return _forest(compared, list(order.index), "points against HiAP", words, (low, high))


def at_papers_shape(compared: pd.DataFrame) -> Figure:
    """HiAP minus every method at the same target (``evidence.against``). Filled: a primary test that is decided after
    Holm's correction; hollow: one that is not; pale: exploratory."""
    primary = compared["primary"].astype(bool)
    rows = compared.assign(decided=[bool(d) or not p for d, p in zip(compared["decided"], primary, strict=True)])
    order = compared.groupby("title")["difference"].mean().sort_values()
    seeds = f"Points of top-1, n = {count(compared['n'])} seeds"
    words = f"{seeds}; filled: decided by a primary test; hollow: not decided; pale: exploratory"
    return _forest(rows.assign(pale=~primary), list(order.index), "HiAP minus method", words, _reach(compared))


def _reach(compared: pd.DataFrame) -> tuple[float, float]:
    """Ends of an axis of differences: all ``near`` rows with their intervals, and those of whatever comes to lie within
    that."""
    shown = near(compared)
    while True:
        low, high = shown["low"].min() - MARGIN, shown["high"].max() + MARGIN
        inside = compared[compared["difference"].between(low, high)]
        if len(inside) <= len(shown):
            return float(low), float(high)
        shown = inside


def _forest(rows: pd.DataFrame, order: list[str], unit: str, words: str, limits: tuple[float, float]) -> Figure:
    """One panel per target, the highest first."""
    rows = rows.rename(columns={"difference": "middle"})
    targets = sorted(map(float, rows["target"].unique()), reverse=True)
    titles = {target: f"{100 * target:.0f} % of the MACs" for target in targets}
    panels = [Dots(title, unit, rows[rows["target"] == target], line=0.0) for target, title in titles.items()]
    fig = dots(panels, order, limits)
    fig.suptitle(words, fontsize=STYLE["axes.titlesize"])
    return fig


def near(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``comparisons.study`` that decide how far an axis reaches: HiAP's, and those within ``FAR`` of it."""
    return rows[~(rows["difference"].abs() >= FAR)]


def span(rows: pd.DataFrame) -> tuple[float, float]:
    """Ends of an axis of top-1: all ``near`` rows with their intervals."""
    ends = near(rows)[["top1", "low", "high"]]
    return float(ends.min().min()) - MARGIN, float(ends.max().max()) + MARGIN


def write_below(ax: Axes, row: dict[Any, Any], x: float) -> None:
    """Title and top-1 of a row below the axis, at its lower edge left of ``x``; several stand on one another."""
    words, up = f"{row['title']} {row['top1']:.1f} ↓", (0, 2 + 8 * len(ax.texts))
    style: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "fontsize": 6.5}
    colour = look(row["method"]).colour
    ax.annotate(words, (x, 0), up, color=colour, xycoords=ax.get_xaxis_transform(), **style)


PULLS = {"task": ("task alone", "o", Ink.BLUE), "both": ("task and price", "s", Ink.RED)}


def pulls(rows: pd.DataFrame) -> Figure:
    """Per network and kind of gate the pull (``pull.load``): median, and 10th to 90th percentile of the gates."""
    networks = list(rows["network"].unique())
    fig, axes = narrow(0.5 + 1.35 * len(networks), len(networks), 1, sharex=True, squeeze=False)
    for ax, name in zip(axes[:, 0], networks, strict=True):
        mine = rows[rows["network"] == name].reset_index(drop=True)
        for shift, (column, (label, marker, colour)) in zip((-0.16, 0.16), PULLS.items(), strict=True):
            place = mine.index.to_numpy() + shift
            ax.hlines(place, mine[f"{column}_low"], mine[f"{column}_high"], color=colour, linewidth=1.2)
            ax.plot(mine[f"{column}_middle"], place, marker, color=colour, markersize=4, label=label)
        ax.axvline(0, color=Ink.GREY, linewidth=0.7)
        ax.set_yticks(mine.index, [f"{row.kind} ({row.gates:,})" for row in mine.itertuples()])
        ax.set(ylim=(len(mine) - 0.5, -0.5), xlim=(-1.05, 1.05))
        ax.set_title(name, loc="left")
        ax.grid(True, axis="x")
    axes[-1, 0].set_xlabel("pull: mean over r.m.s. of the gradient\n(-1 opens, 1 closes, at the whole rate)")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return fig


styled(globals())
