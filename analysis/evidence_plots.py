"""Figures of the study at the paper's shape, from the frames of ``analysis.evidence``."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.plots import COLUMN, PAGE, STYLE, count, heat_map, look
from analysis.study_plots import MARGIN, Dots, dots, near


def forest(compared: pd.DataFrame) -> Figure:
    """HiAP minus every method at the same target (``evidence.against``). Filled: a primary test that is decided after
    Holm's correction; hollow: one that is not; pale: exploratory."""
    panels = []
    for target in sorted(map(float, compared["target"].unique()), reverse=True):
        rows = compared[compared["target"] == target].rename(columns={"difference": "middle"})
        rows = rows.assign(decided=[bool(d) or not p for d, p in zip(rows["decided"], rows["primary"], strict=True)])
        rows = rows.assign(holm=rows["primary"].astype(bool))
        panels.append(Dots(f"{100 * target:.0f} % of the MACs", "HiAP minus method", rows, line=0.0))
    order = compared.groupby("title")["difference"].mean().sort_values()
    shown = near(compared)
    fig = dots(panels, list(order.index), (shown["low"].min() - MARGIN, shown["high"].max() + MARGIN))
    seeds = f"Points of top-1, n = {count(compared['n'])} seeds"
    words = f"{seeds}; filled: decided by a primary test; hollow: not decided; pale: exploratory"
    fig.suptitle(words, fontsize=STYLE["axes.titlesize"])
    return fig


def accuracy(rows: pd.DataFrame) -> Figure:
    """Top-1 against the target (``evidence.accuracies``) with two-way intervals, methods side by side, and where there
    is no target against MACs. A line per variant, hollow where it is not the plain method; broken lines for networks
    from which nothing was removed."""
    variants = list(dict.fromkeys(rows["variant"]))
    fig = Figure(figsize=(PAGE, max(2.9, 0.3 + 0.165 * len(variants))), layout="constrained")
    ax = fig.add_subplot()
    handles: list[Any] = []
    dashes: Any = itertools.cycle(["--", ":", "-.", (0, (1, 3))])
    for (variant, title), group in rows.groupby(["variant", "title"], sort=False):
        if str(variant).startswith("dense"):
            line = ax.axhline(group["top1"].iloc[0], color="black", linewidth=0.7, linestyle=next(dashes), zorder=1)
            line.set_label(title)
            handles.append(line)
        else:
            aside = 0.4 * (variants.index(variant) - len(variants) / 2)
            handles.append(_series(ax, group.sort_values("macs_share"), aside, f"{title}, n = {count(group['n'])}"))
    ax.set_xticks([*sorted(100 * rows["target"].dropna().unique()), 100])
    ax.set_xlabel("target, % of the dense network's MACs")
    ax.set_ylabel("top-1 (%); bars: seeds and test images")
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


def blocks(rows: pd.DataFrame, heads: int = 6, neurons: int = 1536) -> Figure:
    """Heads and neurons left per block (``evidence.blocks``), a line per network: ours above, the paper's below."""
    networks = list(dict.fromkeys(rows["network"]))
    fig = Figure(figsize=(PAGE, 0.9 + 0.17 * len(networks)), layout="constrained")
    maps = (("heads", heads, "heads per block", "{:.1f}"), ("neurons", neurons, "neurons per block", "{:.0f}"))
    for ax, (column, full, title, form) in zip(fig.subplots(1, 2, sharey=True), maps, strict=True):
        grid = rows.pivot(index="network", columns="block", values=column).loc[networks]
        heat_map(ax, grid, full, form, width=COLUMN - 0.6)
        ax.set(title=f"{title}, of {full:,}", xlabel="block", ylabel="")
    n = rows.groupby("network")["n"].first()
    names = [name if name.startswith("Fig.") else f"{name} (n = {n[name]:.0f})" for name in networks]
    fig.axes[0].set_yticklabels(names)
    return fig
