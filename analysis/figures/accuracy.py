"""Top-1 against cost, as the paper draws it: Fig. 4, and Table 2 with other reports."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression

from analysis.figures.style import DASHED, EDGED, LOOKS, RATIOS, Ink, entry, look, narrow, styled, wide


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
    """Finding 9: ``heat_maps.against_two_to_one``, points of top-1 above the 2:1 line, with the reading's error; ticks
    show the same against curves through its points, from the lowest to the highest."""
    fig, ax = narrow(2.0)
    ax.axhline(0, color=RATIOS["2:1"].colour, linewidth=0.9)
    for name, group in rows.groupby("ratio", sort=False):
        colour, marker = RATIOS[str(name)]
        marks = {"color": colour, "markersize": 4.5, "elinewidth": 0.8}
        ax.errorbar(group["gflops"], group["ahead"], yerr=0.1, fmt=marker, label=name, **marks)
        for curve in ("ahead_smooth", "ahead_quadratic", "ahead_cubic"):
            ax.plot(group["gflops"], group[curve], "_", color=colour, markersize=9)
    ax.set(xlabel="GFLOPs, as printed", ylabel="top-1 above the 2:1 line (points)")
    ax.grid(True)
    fig.legend(loc="outside upper center", ncols=4, columnspacing=1.0, handletextpad=0.3)
    return fig


def after_cut(rows: pd.DataFrame, dense: float) -> Figure:
    """Top-1 right after a cut, alone (hollow) and with the maps behind it corrected (filled): a line per method, a
    panel per target. ``rows``: ``target``, ``title``, ``method``, ``after`` ("cut" or "corrected"), ``top1``,
    ``test_images``; ``dense``: top-1 of the network that was cut."""
    targets = sorted(rows["target"].unique(), reverse=True)
    corrected = rows[rows["after"] == "corrected"]
    order = list(corrected.groupby("title")["top1"].mean().sort_values(ascending=False).index)
    fig, axes = wide(0.95 + 0.17 * len(order), 1, len(targets), sharey=True, sharex=True, squeeze=False)
    for ax, target in zip(axes[0], targets, strict=True):
        ax.axvline(dense, **DASHED, zorder=1)
        for (title, method), pair in rows[rows["target"] == target].groupby(["title", "method"]):
            (colour, marker), place = look(str(method)), order.index(title)
            ends = pair.set_index("after")["top1"]
            ax.plot(ends, [place] * len(ends), color=colour, linewidth=0.8, zorder=1)
            for after, top1 in ends.items():
                ax.plot(top1, place, marker, color=colour, mfc="white" if after == "cut" else colour, markersize=4.5)
        ax.set(title=f"{100 * target:.0f} % of the MACs", xlim=(0, 100))
        ax.grid(True, axis="x")
    axes[0, 0].set_yticks(range(len(order)), order)
    axes[0, 0].set_ylim(len(order) - 0.5, -0.5)
    fig.supxlabel(f"top-1 on {rows['test_images'].max():,} validation images (%)", fontsize=7)
    kinds = [entry(Ink.GREY, "o", mfc="white", label="cut"), entry(Ink.GREY, "o", label="cut and corrected")]
    kinds.append(entry("black", linewidth=0.7, linestyle="--", label=f"dense, {dense:.2f} %"))
    fig.legend(handles=kinds, loc="outside upper center", ncols=3)
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
