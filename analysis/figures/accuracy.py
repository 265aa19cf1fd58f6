"""Top-1 against cost: of our runs, of the paper's, and of both in one picture."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression

from analysis.figures.intervals import span, write_below
from analysis.figures.style import DASHED, DASHES, EDGED, LOOKS, RATIOS, Ink, entry, look, narrow, styled, wide
from analysis.records.names import METHODS, count


def pareto(rows: pd.DataFrame) -> Figure:
    """Top-1 against MMACs, one mark per row of ``comparisons.summary``; coloured bars are 95 % intervals over seeds
    where a row has several; thin grey ones what the finite test set alone leaves open where it has one."""
    fig, ax = narrow(2.5)
    handles = []
    for method, group in rows.groupby("method", sort=False):
        style, group = look(str(method)), group.sort_values("macs")
        place, size = (group["macs"] / 1e6, group["top1"]), 8 if method == "dense" else None
        if method == "dense":
            for top1 in group["top1"]:
                ax.axhline(top1, **DASHED, zorder=1)
        else:
            ax.plot(*place, color=style.colour, linewidth=0.6, alpha=0.5, zorder=2)
        marks = {"fmt": style.marker, "color": style.colour, "markersize": size, **EDGED}
        ax.errorbar(*place, yerr=group.get("interval"), capsize=2, zorder=3, **marks)
        if "sampling" in group:
            bars = group["sampling"].where(group["n"] == 1)
            ax.errorbar(*place, yerr=bars, fmt="none", ecolor=Ink.GREY, elinewidth=0.5, zorder=1)
        n = f" (n = {count(group['n'])})" if "n" in group else ""
        handles.append(entry(*style, label=METHODS.get(str(method), str(method)) + n))
    ax.set(xlabel="MMACs per image", ylabel=f"Top-1 on {rows['data'].iloc[0]} (%)")
    ax.margins(0.08, 0.12)
    ax.grid(True)
    if "sampling" in rows and (rows["n"] == 1).any():
        handles.append(entry(Ink.GREY, linestyle="-", linewidth=0.5, label="95 %, test sampling"))
    fig.legend(handles=handles, loc="outside upper center", ncols=2, columnspacing=1.2, handletextpad=0.3)
    return fig


def study_pareto(rows: pd.DataFrame) -> Figure:
    """Top-1 against MACs of the rows of ``comparisons.study``, a line per variant; hollow: another form of it. Broken
    lines: controls, with no price on any unit. What lies below ``span`` is written at the edge."""
    fig, ax = wide(2.9)
    aimed, handles = rows.dropna(subset="target"), []
    for title, group in aimed.groupby("title", sort=False):
        group, style = group.sort_values("macs"), look(group["method"].iloc[0])
        face = style.colour if group["variant"].iloc[0] == group["method"].iloc[0] else "white"
        x, thick = 100 - group["reduction"], 1.6 if group["variant"].iloc[0] == "hiap" else 0.6
        bars = [group["top1"] - group["low"], group["high"] - group["top1"]]
        ax.errorbar(x, group["top1"], yerr=bars, color=style.colour, linewidth=thick, elinewidth=0.5, zorder=2)
        ax.plot(x, group["top1"], style.marker, color=style.colour, mfc=face, markersize=4, zorder=3)
        handles.append(entry(*style, linestyle="-", mfc=face, markersize=4, label=title))
    for dash, row in zip(DASHES, rows[rows["variant"].str.startswith("dense")].to_dict("records"), strict=False):
        broken = {**DASHED, "linestyle": dash}
        ax.axhline(row["top1"], **broken, zorder=1)
        handles.append(entry(broken.pop("color"), **broken, label=row["title"]))
    ends = span(rows)
    for row in aimed[aimed["top1"] < ends[0]].to_dict("records"):
        write_below(ax, row, 100 - row["reduction"])
    ax.set(ylim=ends, xlabel="MACs of the extracted network (% of dense)")
    ax.set_ylabel(f"top-1 on {rows['data'].iloc[0]} (%), n = {rows['n'].max():.0f} seeds")
    ax.grid(True)
    fig.legend(handles=handles, loc="outside right center")
    return fig


def top1_and_training(studies: dict[str, pd.DataFrame]) -> Figure:
    """Top-1 against MACs with what training took as the mark's area, one panel per study (``comparisons.study``).
    Methods stand side by side at each target; hollow marks: pruned in rounds. What lies below ``span`` is written at
    the edge, its mean over the seeds."""
    aimed = pd.concat(studies.values()).dropna(subset="target")
    ends = span(aimed)
    fig, axes = wide(2.9, 1, len(studies), sharey=True, squeeze=False)
    area = 40 / max(rows["train_macs"].max() for rows in studies.values())
    handles: dict[str, Any] = {}
    for ax, (title, rows) in zip(axes[0], studies.items(), strict=True):
        rows = rows[rows["method"] != "dense"].dropna(subset="target")
        variants = list(dict.fromkeys(rows["title"]))
        for row in rows.to_dict("records"):
            style = look(row["method"])
            x = 100 * row["target"] + 0.75 * (variants.index(row["title"]) - (len(variants) - 1) / 2)
            face = "white" if "round" in row["variant"] else style.colour
            marks = {"marker": style.marker, "facecolor": face, "edgecolor": style.colour, "lw": 0.7}
            ax.vlines(x, row["low"], row["high"], color=style.colour, linewidth=0.7, zorder=1)
            ax.scatter(x, row["top1"], s=area * row["train_macs"], **marks)
            if row["top1"] < ends[0]:
                write_below(ax, row, x)
            handles[row["title"]] = entry(*style, markerfacecolor=face, label=row["title"])
        ax.set(title=title, xticks=sorted(100 * rows["target"].unique()), xlabel="target, % of the dense MACs")
        ax.grid(True, axis="y")
    first = axes[0, 0]
    first.set(ylim=ends, ylabel=f"top-1 on {aimed['data'].iloc[0]} (%), n = {count(aimed['n'])}")
    for tmacs in (0.25, 0.5, 1):
        label = f"{tmacs:g} TMACs of training"
        handles[label] = first.scatter([], [], s=area * tmacs * 1e12, color=Ink.GREY, label=label)
    fig.legend(handles=list(handles.values()), loc="outside right center", handletextpad=0.3)
    return fig


def at_papers_shape(rows: pd.DataFrame) -> Figure:
    """Top-1 against the target (``evidence.accuracies``) with two-way intervals, methods side by side, and where there
    is no target against MACs. A line per variant, hollow where it is not the plain method; broken lines for networks
    with no price on any unit."""
    variants = list(dict.fromkeys(rows["variant"]))
    fig, ax = wide(max(2.9, 0.3 + 0.165 * len(variants)))
    handles: list[Any] = []
    dashes = itertools.cycle(DASHES[1:])
    for (variant, title), group in rows.groupby(["variant", "title"], sort=False):
        if str(variant).startswith("dense"):
            broken = {**DASHED, "linestyle": next(dashes)}
            handles.append(ax.axhline(group["top1"].iloc[0], **broken, zorder=1, label=title))
        else:
            aside = 0.3 * (variants.index(variant) - len(variants) / 2)
            handles.append(_series(ax, group.sort_values("macs_share"), aside, f"{title}, n = {count(group['n'])}"))
    ax.set_xticks([*sorted(100 * rows["target"].dropna().unique()), 100])
    ax.set(xlabel="target, % of the dense network's MACs", ylabel="top-1 (%); bars: seeds and test images")
    ax.grid(True, axis="y")
    fig.legend(handles=handles, loc="outside right center")
    return fig


def _series(ax: Axes, group: pd.DataFrame, aside: float, label: str) -> Any:
    style, first = look(group["method"].iloc[0]), group.iloc[0]
    x = 100 * group["target"].fillna(group["macs_share"]) + aside
    errors = np.nan_to_num([group["top1"] - group["low"], group["high"] - group["top1"]])
    face = style.colour if first["variant"] == first["method"] else "white"
    marks: dict[str, Any] = {"color": style.colour, "markerfacecolor": face, "markersize": 4, "elinewidth": 0.8}
    return ax.errorbar(x, group["top1"], yerr=errors, fmt=f"{style.marker}-", linewidth=0.6, label=label, **marks)


def fig4(lines: pd.DataFrame, xlabel: str, ylabel: str, points: pd.DataFrame | None = None) -> Figure:
    """Fig. 4: top-1 against compute, one line per ``series`` (of ``RATIOS``) through ``x``, ``top1``; ``points``:
    single seeds, drawn small."""
    fig, ax = narrow(2.5)
    for name in sorted(lines["series"].unique(), key=list(RATIOS).index):
        (colour, marker), group = RATIOS[name], lines[lines["series"] == name].sort_values("x")
        if points is not None:
            seeds = points[points["series"] == name]
            ax.plot(seeds["x"], seeds["top1"], marker, color=colour, markersize=2.5, alpha=0.45, mew=0)
        marks = {"color": colour, "marker": marker, "markersize": 4.5, **EDGED}
        ax.plot(group["x"], group["top1"], linewidth=0.8, label=name, **marks)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.grid(True)
    title = r"$\lambda_\mathrm{macro} : \lambda_\mathrm{micro}$"
    fig.legend(loc="outside upper center", ncols=5, columnspacing=0.8, handletextpad=0.3, handlelength=1.4, title=title)
    return fig


def ahead(rows: pd.DataFrame) -> Figure:
    """Finding 9: ``heat_maps.against_two_to_one``, points of top-1 above the 2:1 line, with the reading's error; a tick
    shows the same against a monotone curve."""
    fig, ax = narrow(2.0)
    ax.axhline(0, color=RATIOS["2:1"].colour, linewidth=0.9)
    for name, group in rows.groupby("ratio", sort=False):
        colour, marker = RATIOS[str(name)]
        marks = {"color": colour, "markersize": 4.5, "elinewidth": 0.8}
        ax.errorbar(group["gflops"], group["ahead"], yerr=0.1, fmt=marker, label=name, **marks)
        ax.plot(group["gflops"], group["ahead_smooth"], "_", color=colour, markersize=9)
    ax.set(xlabel="GFLOPs, as printed", ylabel="top-1 above the 2:1 line (points)")
    ax.grid(True)
    fig.legend(loc="outside upper center", ncols=4, columnspacing=1.0, handletextpad=0.3)
    return fig


# Table 2

SOURCES: dict[str, dict[str, Any]] = {
    "HiAP": {"marker": "o", "color": LOOKS["hiap"].colour, "markersize": 6, "label": "HiAP, Table 2"},
    "table": {"marker": "s", "color": "#333333", "markersize": 4, "label": "others, Table 2"},
    "related": {"marker": "D", "color": Ink.BLUE, "markersize": 4, "mfc": "white", "label": "reported elsewhere"},
    "ours": {"marker": "*", "color": Ink.GREEN, "markersize": 8, "label": "this repository"},
}


def table2(rows: pd.DataFrame) -> Figure:
    """Top-1 against GMACs of pruned DeiT-Small (``table2.reports``). Names stand beside the picture, each tied to its
    mark; dashed: the dense network."""
    fig, ax = wide(3.6)
    dense = rows.loc[rows["kind"] == "dense", "top1"].item()
    left, right = 2.2, 3.3  # where the names stand
    ax.plot([left, right], [dense, dense], **DASHED, zorder=1)
    shown = rows[rows["kind"] != "dense"]
    for source, group in shown.groupby("kind", sort=False):
        ax.plot(group["gmacs"], group["top1"], linestyle="", zorder=3, **SOURCES[str(source)])
    small = shown["gmacs"] < 2.9
    for side, edge, align in ((shown[small], left, "right"), (shown[~small], right, "left")):
        for row, height in zip(side.to_dict("records"), spaced(side["top1"].to_numpy(), 0.115), strict=True):
            colour = SOURCES[row["kind"]]["color"]
            ax.plot([row["gmacs"], edge], [row["top1"], height], color="#bbbbbb", linewidth=0.4, zorder=2)
            ax.text(edge, height, f" {row['name']} ", ha=align, va="center", fontsize=6, color=colour)
    ax.set(xlim=(1.75, 3.6), xticks=np.arange(2.2, 3.3, 0.2), xlabel="MACs of one image (G), as reported")
    ax.set_ylabel("top-1 on ImageNet-1K (%), as reported")
    handles = [entry(style.pop("color"), **style) for style in ({**SOURCES[k]} for k in shown["kind"].unique())]
    handles.append(entry("black", linewidth=0.7, linestyle="--", label=f"dense, {dense:.2f} % at 4.6 G"))
    fig.legend(handles=handles, loc="outside upper center", ncols=5, columnspacing=1.2)
    return fig


def spaced(values: np.ndarray, distance: float) -> np.ndarray:
    """The nearest places for labels of these heights, in the same order, that keep ``distance``."""
    order = np.argsort(values, kind="stable")
    index = np.arange(len(values)) * distance
    free = isotonic_regression(values[order] - index).x
    placed = np.empty(len(values))
    placed[order] = free + index
    return placed


styled(globals())
