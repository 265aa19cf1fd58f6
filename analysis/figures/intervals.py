"""Means and differences with their intervals, and how far an axis of top-1 reaches."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures.style import DASHED, Ink, entry, narrow, styled, wide
from analysis.records.names import TARGETED, count, reading

FAR = 3.0  # points of top-1: a method this far from HiAP at the same target would hide the others
MARGIN = 0.2  # points of top-1 around what an axis shows
BESIDE = 1.07  # where a bill stands, in widths of its axes
OWN = f"{TARGETED}, its TMACs"  # the line of what all are compared with
ROOM = 1.15  # of an axis, for what is written off its scale beside zero


class Dots(NamedTuple):
    """One panel of ``dots``: ``rows`` has ``title`` (the line it stands on), ``middle``, ``low``, ``high``."""

    title: str
    unit: str
    rows: pd.DataFrame
    line: float | None = None  # a vertical line, what the dots are compared with


def dots(panels: list[Dots], lines: list[str]) -> Figure:
    """Means with intervals, one line per title and one panel per quantity; a line without a row stays empty."""
    fig, axes = wide(0.75 + 0.165 * len(lines), 1, len(panels), sharey=True, squeeze=False)
    place = {title: position for position, title in enumerate(lines)}
    for ax, panel in zip(axes[0], panels, strict=True):
        if panel.line is not None:
            ax.axvline(panel.line, **DASHED, zorder=1)
        for row in panel.rows.to_dict("records"):
            _mark(ax, row, place[row["title"]], Mark(Ink.BLUE, "o", Ink.BLUE))
        ax.set(title=panel.title, xlabel=panel.unit)
        ax.grid(True, axis="x")
        ax.xaxis.set_major_locator(MaxNLocator(5))
    axes[0, 0].set_yticks(range(len(lines)), lines)
    axes[0, 0].set_ylim(len(lines) - 0.5, -0.5)
    return fig


class Mark(NamedTuple):
    colour: str
    marker: str
    face: str


DECIDED, OPEN, EXPLORED = Mark("black", "s", "black"), Mark("black", "s", "white"), Mark(Ink.BLUE, "o", Ink.BLUE)
LEGEND = {
    "tested and decided (Holm)": DECIDED, "tested, not decided": OPEN, "not tested: the interval alone": EXPLORED,
}  # fmt: skip


def _mark(ax: Axes, row: dict[Any, Any], y: float, look: Mark) -> None:
    """A mean with its interval; without an interval the mark alone."""
    middle = row["middle"]
    bars = None if pd.isna(row["low"]) else [[middle - row["low"]], [row["high"] - middle]]
    marks: dict[str, Any] = {"fmt": look.marker, "color": look.colour, "markerfacecolor": look.face, "markersize": 3.5}
    ax.errorbar(middle, y, xerr=bars, elinewidth=0.9, zorder=2, **marks)


def sensitivity(spread: pd.DataFrame, quantities: dict[str, str]) -> Figure:
    """``seeds.mean_per_label``: a line per label, a panel per quantity (column to its unit); dashed: the default."""
    panels: list[Dots] = []
    for column, unit in quantities.items():
        ends = {column: "middle", f"{column}_low": "low", f"{column}_high": "high"}
        rows = spread.rename(columns={"label": "title", **ends})
        default = rows.loc[rows["title"] == "default", "middle"]
        panels.append(Dots("", unit, rows, line=default.iloc[0] if len(default) else None))
    lines = sorted(spread["label"], key=lambda label: [int(number) for number in re.findall(r"A(\d+)", label)])
    fig = dots(panels, lines)  # the default first, A12 last
    fig.axes[0].set_yticklabels(map(reading, lines))
    fig.supxlabel(f"95 % over n = {count(spread['n'])} seeds; dashed: the default", fontsize=6.5)
    return fig


def forest(rows: pd.DataFrame, data: str = "") -> Figure:
    """HiAP with a target minus every method at the same target, a line per method and a panel per target, from
    ``comparisons.from_reference`` or ``evidence.drawn``: right of zero HiAP with a target has more. What each took to
    train stands at the right of its line; what lies far from the others of its panel is written with its interval;
    ``data`` above all."""
    lines = [("", OWN), *_lines(rows)]
    targets = sorted(map(float, rows["target"].unique()), reverse=True)
    fig, axes = wide(1.0 + 0.165 * len(lines), 1, len(targets), sharey=True, squeeze=False)
    place = {line: y for y, line in enumerate(lines)}
    for ax, target in zip(axes[0], targets, strict=True):
        mine = rows[rows["target"] == target].rename(columns={"difference": "middle"})
        limits = reach(mine["middle"], mine["low"], mine["high"])
        ax.axvline(0, **DASHED, zorder=1)
        for row in mine.to_dict("records"):
            _line(ax, row, place[row["group"], row["title"]], limits)
        _beside(ax, place["", OWN], mine["reference_train_macs"].iloc[0])
        ax.text(BESIDE, -0.6, "TMACs", transform=ax.get_yaxis_transform(), fontsize=5.5, color=Ink.DARK, va="center")
        ax.set(xlim=limits)
        ax.set_title(f"{100 * target:.0f} % of the MACs", fontsize=6.5, loc="left")
        ax.grid(True, axis="x")
        ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes[0, 0].set_yticks(range(len(lines)), [title for _, title in lines])
    for label, (group, title) in zip(axes[0, 0].get_yticklabels(), lines, strict=True):
        if group and group == title:
            label.set(style="italic", color=Ink.DARK)
    axes[0, 0].set_ylim(len(lines) - 0.5, -0.5)
    seeds = f"95 %, {count(rows['n'])} seeds"
    minus = f"{TARGETED} minus the method, points of top-1 ({seeds})"
    fig.supxlabel(f"← method has more    {minus}    method has less →", fontsize=7)
    used = {text: look for text, look in LEGEND.items() if look in set(map(_look_of, rows.to_dict("records")))}
    marks = [entry(look.colour, look.marker, mfc=look.face, markersize=3.5, label=text) for text, look in used.items()]
    fig.legend(handles=marks, loc="outside upper center", ncols=len(marks), handletextpad=0.2, title=data or None)
    return fig


def _lines(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """(group, title) of each line, the group without a name first, the others as they come, within one by the mean
    difference; a group with a name has it on a line of its own."""
    lines: list[tuple[str, str]] = []
    for group, mine in sorted(rows.groupby("group", sort=False), key=lambda one: one[0] != ""):
        order = mine.groupby("title")["difference"].mean().sort_values()
        lines += [*([(str(group), str(group))] if group else []), *((str(group), str(title)) for title in order.index)]
    return lines


def _line(ax: Axes, row: dict[Any, Any], y: int, limits: tuple[float, float]) -> None:
    look = _look_of(row)
    if limits[0] < row["middle"] < limits[1]:
        _mark(ax, row, y, look)
    else:
        left = row["middle"] <= limits[0]
        ends = "" if pd.isna(row["low"]) else f" [{row['low']:.1f}, {row['high']:.1f}]"
        text = f"{'← ' if left else ''}{row['middle']:+.1f}{ends}{'' if left else ' →'}"
        x, side, step = (limits[0], "left", 1) if left else (limits[1], "right", -1)
        inset = step * 0.05 * (limits[1] - limits[0])
        marks: dict[str, Any] = {"markerfacecolor": look.face, "markersize": 3.5, "clip_on": False, "zorder": 4}
        ax.plot(x + 0.4 * inset, y, look.marker, color=look.colour, **marks)
        ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.0}
        ax.text(x + 1.3 * inset, y, text, ha=side, va="center", fontsize=5.2, color=look.colour, bbox=ground)
    _beside(ax, y, row["train_macs"])


def _beside(ax: Axes, y: int, macs: float) -> None:
    """A bill in TMACs at the right of a line."""
    bill = f"{macs / 1e12:.{1 if macs >= 1e13 else 2}f}"
    ax.text(BESIDE, y, bill, transform=ax.get_yaxis_transform(), fontsize=5.5, color=Ink.DARK, va="center")


def _look_of(row: dict[Any, Any]) -> Mark:
    if not row["judged"]:
        return EXPLORED
    return DECIDED if row["decided"] is True else OPEN


def reach(middle: pd.Series, low: pd.Series, high: pd.Series) -> tuple[float, float]:
    """Ends of an axis of differences: zero and all that lie within ``FAR`` of their median, with their intervals, and
    whatever then lies within; and room, on its side, for what is written because it does not."""
    low, high = low.fillna(middle), high.fillna(middle)
    shown = (middle - middle.median()).abs() < FAR
    while True:
        ends = min(0.0, low[shown].min()) - MARGIN, max(0.0, high[shown].max()) + MARGIN
        inside = middle.between(*ends)
        if inside.sum() <= shown.sum():
            break
        shown = inside
    room = ROOM * (ends[1] - ends[0])
    beyond = (middle < ends[0]).any(), (middle > ends[1]).any()
    return min(ends[0], -room) if beyond[0] else ends[0], max(ends[1], room) if beyond[1] else ends[1]


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
