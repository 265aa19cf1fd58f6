"""Figures of the multi-seed studies; style and ``save`` are those of ``analysis.plots``."""

from __future__ import annotations

from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.plots import COLUMN, GREY, PAGE, STYLE, count, look

FAR = 4.0  # points of top-1: a method this far from HiAP at the same target would hide the others
MARGIN = 0.2  # points of top-1 around what an axis shows
PALE = 0.35  # how much of its colour a mark keeps that Holm's correction leaves undecided


class Dots(NamedTuple):
    """One panel of ``dots``: ``rows`` has ``title`` (the line it stands on), ``middle``, ``low``, ``high``, and may
    have ``method`` (its colour), ``decided`` (filled or hollow) and ``holm`` (False: pale)."""

    title: str
    unit: str
    rows: pd.DataFrame
    line: float | None = None  # a vertical line, what the dots are compared with


def dots(panels: list[Dots], lines: list[str], limits: tuple[float, float] | None = None) -> Figure:
    """Means with intervals, one line per title and one panel per quantity; a line without a row stays empty. With
    ``limits`` all panels have one scale, and what lies beyond is written at the edge."""
    fig = Figure(figsize=(PAGE, 0.75 + 0.165 * len(lines)), layout="constrained")
    place = {title: position for position, title in enumerate(lines)}
    for ax, panel in zip(fig.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
        if panel.line is not None:
            ax.axvline(panel.line, color="black", linewidth=0.7, linestyle="--", zorder=1)
        for row in panel.rows.to_dict("records"):
            style = look(row.get("method", "hiap"))
            if limits and not limits[0] < row["middle"] < limits[1]:
                left = row["middle"] < limits[0]
                words = f" ← {row['middle']:.1f}" if left else f"{row['middle']:.1f} → "
                at = {"x": limits[0], "ha": "left"} if left else {"x": limits[1], "ha": "right"}
                ax.text(y=place[row["title"]], s=words, va="center", color=style.colour, fontsize=6.5, **at)
                continue
            ax.errorbar(
                row["middle"],
                place[row["title"]],
                xerr=[[row["middle"] - row["low"]], [row["high"] - row["middle"]]],
                fmt=style.marker,
                color=style.colour,
                markerfacecolor=_face(row, style.colour),
                markersize=4,
                elinewidth=0.9,
                zorder=2,
            )
        ax.set_title(panel.title)
        ax.set_xlabel(panel.unit)
        ax.grid(True, axis="x")
        ax.xaxis.set_major_locator(MaxNLocator(5))
        if limits:
            ax.set_xlim(limits)
    fig.axes[0].set_yticks(range(len(lines)), lines)
    fig.axes[0].set_ylim(len(lines) - 0.5, -0.5)
    return fig


def _face(row: dict[Any, Any], colour: str) -> str | tuple[float, ...]:
    if not row.get("decided", True):
        return "white"
    return colour if row.get("holm", True) else tuple(1 - PALE * (1 - part) for part in to_rgb(colour))


def near(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``stats.study`` that decide how far an axis reaches: HiAP's, and those less than ``FAR`` from it."""
    return rows[~(rows["difference"].abs() >= FAR)]


def span(rows: pd.DataFrame) -> tuple[float, float]:
    """Ends of an axis of top-1: all ``near`` rows with their intervals."""
    ends = near(rows)[["top1", "low", "high"]]
    return float(ends.min().min()) - MARGIN, float(ends.max().max()) + MARGIN


def write_below(ax: Axes, row: dict[Any, Any], x: float) -> None:
    """Title and top-1 of a row below the axis, at its lower edge left of ``x``; several stand on one another."""
    words, up = f"{row['title']} {row['top1']:.1f} ↓", (0, 2 + 8 * len(ax.texts))
    style: dict[str, Any] = {
        "xycoords": ax.get_xaxis_transform(),
        "textcoords": "offset points",
        "ha": "right",
        "fontsize": 6.5,
    }
    ax.annotate(words, (x, 0), up, color=look(row["method"]).colour, **style)


def forest(rows: pd.DataFrame) -> Figure:
    """Top-1 against HiAP at the same target, one panel per target, from ``stats.study``; hollow where not decided, pale
    where not after Holm's correction for all that is shown."""
    compared = rows.dropna(subset="difference")
    panels = []
    for target in sorted(map(float, compared["target"].unique()), reverse=True):
        named = (
            compared[compared["target"] == target]
            .rename(columns={"difference": "middle"})
            .drop(columns=["low", "high"])
        )
        named = named.rename(columns={"difference_low": "low", "difference_high": "high"})
        panels.append(Dots(f"{100 * target:.0f} % of the MACs", "points against HiAP", named, line=0.0))
    order = compared.groupby("title")["difference"].mean().sort_values(ascending=False)
    shown = near(compared)
    low, high = shown["difference_low"].min() - MARGIN, shown["difference_high"].max() + MARGIN
    if len(shown) < len(compared):  # their numbers stand left of the line
        low = min(low, -0.5 * high)
    fig = dots(panels, list(order.index), limits=(low, high))
    fig.suptitle(
        f"n = {count(compared['n'])} seeds; filled: the intervals exclude zero; pale: not after Holm's correction",
        fontsize=STYLE["axes.titlesize"],
    )
    return fig


def top1_and_training(studies: dict[str, pd.DataFrame]) -> Figure:
    """Top-1 against MACs with the training bill as the mark's area, one panel per study (``stats.study``). Methods
    stand side by side at each target; hollow marks: pruned in rounds. What lies below ``span`` is written at the
    edge, its mean over the seeds."""
    aimed = pd.concat(studies.values()).dropna(subset="target")
    ends = span(aimed)
    fig = Figure(figsize=(PAGE, 2.9), layout="constrained")
    axes = fig.subplots(1, len(studies), sharey=True, squeeze=False)[0]
    area = 40 / max(rows["train_macs"].max() for rows in studies.values())
    handles: dict[str, Line2D] = {}
    for ax, (title, rows) in zip(axes, studies.items(), strict=True):
        rows = rows[rows["method"] != "dense"].dropna(subset="target")
        variants = list(dict.fromkeys(rows["title"]))
        for row in rows.to_dict("records"):
            style, hollow = look(row["method"]), "round" in row["variant"]
            x = 100 * row["target"] + 0.75 * (variants.index(row["title"]) - (len(variants) - 1) / 2)
            face = "white" if hollow else style.colour
            size = area * row["train_macs"]
            ax.vlines(x, row["low"], row["high"], color=style.colour, linewidth=0.7, zorder=1)
            ax.scatter(x, row["top1"], s=size, marker=style.marker, facecolor=face, edgecolor=style.colour, lw=0.7)
            if row["top1"] < ends[0]:
                write_below(ax, row, x)
            handles[row["title"]] = Line2D(
                [], [], color=style.colour, marker=style.marker, markerfacecolor=face, linestyle="", label=row["title"]
            )
        ax.set_title(title)
        ax.set_xticks(sorted(100 * rows["target"].unique()))
        ax.set_xlabel("target, % of the dense MACs")
        ax.grid(True, axis="y")
    axes[0].set_ylim(ends)
    axes[0].set_ylabel(f"top-1 on {aimed['data'].iloc[0]} (%), n = {count(aimed['n'])}")
    sizes = [
        axes[0].scatter([], [], s=area * t * 1e12, color=GREY, label=f"{t:g} TMACs of training") for t in (0.25, 0.5, 1)
    ]
    fig.legend(handles=[*handles.values(), *sizes], loc="outside right center", handletextpad=0.3)
    return fig


def budget_paths(paths: pd.DataFrame, ends: pd.DataFrame, labels: list[str]) -> Figure:
    """Expected MACs (solid) and what the threshold of 1/2 would leave (dashed) over training, one colour per label, all
    seeds; dotted: the target, diamonds: the extracted network. ``paths`` is a ``collect.macs_trajectory``, ``ends`` the
    runs of ``collect.load``."""
    fig = Figure(figsize=(COLUMN, 2.5), layout="constrained")
    ax = fig.add_subplot()
    for colour, label in zip(("#0072B2", "#D55E00", "#009E73"), labels, strict=False):
        for _, run in paths[paths["label"] == label].groupby("run_id", sort=False):
            ax.plot(run["epoch"], 100 * run["expected"], color=colour)
            ax.plot(run["epoch"], 100 * run["hardened"], color=colour, linestyle="--")
        final = ends[ends["label"] == label]
        last = paths["epoch"].max()
        ax.axhline(100 * final["target"].iloc[0], color=colour, linestyle=":", linewidth=0.7)
        ax.plot([last + 0.3] * len(final), 100 * final["macs_share"], "D", color=colour, markersize=3)
    ax.set_xlabel("epoch")
    ax.set_ylabel(f"MACs, % of dense (n = {count(ends[ends['label'].isin(labels)].groupby('label').size())} seeds)")
    ax.set_ylim(0, 103)
    black: dict[str, Any] = {"color": "black"}
    kinds: list[tuple[Any, str]] = [("-", "expected"), ("--", "by the threshold ½"), (":", "target")]
    marks = [Line2D([], [], linestyle=style, label=name, **black) for style, name in kinds]
    marks.append(Line2D([], [], linestyle="", marker="D", markersize=3, label="extracted", **black))
    fig.legend(handles=marks, loc="outside upper center", ncols=2)
    return fig


def misses(aimed: pd.DataFrame, ruled: pd.DataFrame) -> Figure:
    """Where runs end, in per cent of dense: with a target, extracted minus target (``aimed``: ``target``,
    ``macs_share``); by the paper's rule, extracted minus expected MACs (``ruled``: ``expected``, ``macs_share``)."""
    fig = Figure(figsize=(COLUMN, 2.3), layout="constrained")
    ax = fig.add_subplot()
    ax.axhline(0, color="black", linewidth=0.7, linestyle="--")
    ax.plot(
        100 * ruled["expected"],
        100 * (ruled["macs_share"] - ruled["expected"]),
        "s",
        color="#0072B2",
        markersize=3.5,
        label=f"threshold ½: extracted - expected, n = {len(ruled)} runs",
    )
    ax.plot(
        100 * aimed["target"],
        100 * (aimed["macs_share"] - aimed["target"]),
        "o",
        color="#D55E00",
        markersize=3.5,
        label=f"with a target: extracted - target, n = {len(aimed)} runs",
    )
    ax.set_xlabel("expected, or target (% of the dense MACs)")
    ax.set_ylabel("miss (% of the dense MACs)")
    ax.grid(True)
    fig.legend(loc="outside upper center")
    return fig
