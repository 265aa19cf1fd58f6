"""Gates over epochs and what is left of each block, as seaborn's heat maps and as bars (the form of Fig. 3)."""

from __future__ import annotations

import textwrap
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from analysis.figures.style import STYLE, Ink, narrow, styled, wide
from analysis.findings.costs import DEIT_SMALL
from analysis.records import names, published
from analysis.records.results import block_units, dense_units, topology
from analysis.studies.calibrate import BLOCKS, COLUMNS, FULL
from hiap.train.record import Record

SMALLEST = 5.0  # points; numbers that would have to be smaller are left out
MOST_TICKS = 12  # along a map or its scale
DOTTED: dict[str, Any] = {
    "color": "none",
    "edgecolor": Ink.GREY,
    "linewidth": 0.6,
    "linestyle": ":",
}


QUANTITIES = {  # column: title, unit
    "heads": ("Active heads", "heads per block"),
    "neurons": ("Active FFN neurons", "neurons per block"),
    "mean_dims": ("Value dimensions kept", "dimensions per active head, mean"),
}


def gate_heatmaps(gates: pd.DataFrame, full: dict[str, int], title: str = "") -> Figure:
    """Figs. 5-9: block x epoch, one map each for heads, neurons and, where known, value dimensions per head.

    ``gates`` is a ``gate_trajectory``; ``full`` (``dense_units``) gives each map's value in the dense network: the end
    of its colour scale, so that maps of one network can be compared. Numbers stand where a value changes if they are
    legible there, else the last epoch's stand at the right."""
    shown = [column for column in QUANTITIES if column in gates and gates[column].notna().any()]
    fig, axes = wide(1.15 + 0.115 * max(gates["block"].nunique(), 8), 1, len(shown), squeeze=False)
    fig.suptitle(title, fontsize=STYLE["axes.titlesize"])
    for ax, column in zip(axes[0], shown, strict=True):
        grid, most = gates.pivot(index="block", columns="epoch", values=column), full[column]
        named, unit = QUANTITIES[column]
        image = heat_map(ax, grid, most, "{:.0f}", width=5.6 / len(shown), changes=True)
        ax.set(title=named, xlabel="Epoch", ylabel="")
        colour_bar(image, [ax], most, unit, location="bottom", aspect=30)
    axes[0, 0].set_ylabel("Block")
    return fig


def heat_map(
    ax: Axes, grid: pd.DataFrame, full: float, form: str = "", width: float = 1.0, changes: bool = False
) -> QuadMesh:
    """seaborn's map of ``grid``, coloured from 0 to ``full``; missing values are white. With a ``form``, the values
    stand in the cells of a map ``width`` inches wide (``changes``: only where one changes along its row), or, where
    cells are too narrow, each row's last value beside it."""
    values = grid.to_numpy(dtype=float)
    words = np.array([[form.format(v) if np.isfinite(v) else "" for v in row] for row in values])
    size = min(72 * width / values.shape[1] / (0.68 * max(len(form.format(full)), 1)), 6.5)
    if form and size < SMALLEST:
        for row, word in enumerate(words[:, -1]):
            ax.text(1.01, row + 0.5, word, va="center", fontsize=5.5, transform=ax.get_yaxis_transform())
    elif changes:
        words[:, 1:][words[:, 1:] == words[:, :-1]] = ""
    step = next((step for step in (1, 2, 5, 10, 20, 50) if values.shape[1] <= MOST_TICKS * step), 100)
    written: Any = words if form and size >= SMALLEST else None
    style = {"vmin": 0, "vmax": full, "cmap": "cividis", "cbar": False, "rasterized": True}  # else a PDF shows seams
    labels = {"fmt": "", "annot_kws": {"fontsize": size}, "xticklabels": step, "yticklabels": True}
    sns.heatmap(grid.astype(float), ax=ax, annot=written, **style, **labels)
    ax.hlines(range(1, len(values)), 0, values.shape[1], color="white", linewidth=0.4)
    ax.tick_params(length=2, rotation=0)
    ax.tick_params(axis="y", length=0)  # a tick before a number reads as a minus sign
    for text in ax.texts:
        if text.get_transform() == ax.transData:  # in a cell
            column, row = map(int, text.get_position())
            text.set_color("white" if values[row, column] < 0.55 * full else "black")
            text.set_in_layout(False)  # takes no room, so the layout is found in half the time
    return ax.collections[0]  # type: ignore[return-value]


def colour_bar(image: QuadMesh, ax: Any, full: int, label: str, ends: bool = False, **where: Any) -> None:
    """The scale of a ``heat_map``, named at every unit if they are few, at quarters, or at its ``ends``."""
    ticks = [0, full] if ends else range(full + 1) if full <= MOST_TICKS else np.linspace(0, full, 5)
    bar = ax[0].figure.colorbar(image, ax=list(ax), pad=0.02, ticks=ticks, **where)
    bar.outline.set_visible(False)
    bar.set_label(label, fontsize=STYLE["ytick.labelsize"])


def widths(shape: pd.DataFrame, full: dict[str, int], title: str = "") -> Figure:
    """Fig. 3: what is left of each block. Above, heads (largest first) with the value dimensions each keeps; below, FFN
    neurons, the dense network's outlined. ``shape`` is a ``topology``; ``full`` as in ``gate_heatmaps``."""
    heads = full["heads"]
    kept = {block: pd.Series(dims, dtype=float) for block, dims in zip(shape["block"], shape["head_dims"], strict=True)}
    dims = pd.DataFrame(kept).reindex(range(heads)).set_axis(range(1, heads + 1))
    ratios = [0.17 * heads + 0.1, 0.9]
    fig, (top, bottom) = narrow(1.6 + 0.17 * heads, 2, 1, sharex=True, height_ratios=ratios)
    image = heat_map(top, dims, full["mean_dims"], "{:.0f}", width=2.5)
    fig.suptitle(textwrap.fill(title, 44), fontsize=STYLE["axes.titlesize"])
    top.set(xlabel="", ylabel="Head,\nby size")
    top.tick_params(length=0)
    colour_bar(image, [top], full["mean_dims"], "dims kept", ends=True, aspect=8)
    centres = shape["block"] + 0.5
    bottom.bar(centres, full["neurons"], **DOTTED)
    bottom.bar_label(bottom.bar(centres, shape["neurons"], color=Ink.BLUE), fontsize=6, padding=1)
    bottom.set(ylim=(0, 1.2 * full["neurons"]), ylabel="FFN neurons", xlabel="Block")
    bottom.set_xticks(centres, shape["block"])
    return fig


def blocks(rows: pd.DataFrame, heads: int = DEIT_SMALL.heads, neurons: int = DEIT_SMALL.hidden) -> Figure:
    """Heads and neurons left per block (``evidence.blocks``), a thin row per seed, seeds of one network together: ours
    above, the paper's figures below. No mean over seeds: an FFN that is gone in one and whole in another has none."""
    keys = rows[["network", "seed"]].drop_duplicates()
    fig, axes = wide(1.1 + 0.115 * len(keys), 1, 2, sharey=True)
    for ax, column, full in zip(axes, ("heads", "neurons"), (heads, neurons), strict=True):
        grid = rows.pivot(index=["network", "seed"], columns="block", values=column)
        image = heat_map(ax, grid.loc[list(keys.itertuples(index=False, name=None))], full)
        ax.set(title=f"{column} per block, of {full:,}", xlabel="block", ylabel="")
        colour_bar(image, [ax], full, f"{column} left", location="bottom", aspect=30)
    sizes = keys.groupby("network", sort=False).size()
    ends = sizes.cumsum()
    for ax in axes:
        ax.hlines(ends[:-1], 0, rows["block"].max() + 1, color="black", linewidth=0.8)
        ax.tick_params(left=False)
    labels = [str(name) if str(name).startswith("Fig.") else f"{name}, n = {n}" for name, n in sizes.items()]
    axes[0].set_yticks(ends - sizes / 2, labels)
    return fig


def calibrated(cells: pd.DataFrame) -> Figure:
    """``calibrate.maps``: a column per figure; above the paper's and our open heads, below the neurons, with one colour
    scale for each unit. Block 0 is the first."""
    numbers = sorted(cells["figure"].unique())
    fig, axes = wide(4.6, 4, len(numbers), sharex=True, sharey=True)
    for first, (unit, full) in zip((0, 2), FULL.items(), strict=True):
        for row, network in enumerate(("paper", "here"), start=first):
            for ax, number in zip(axes[row], numbers, strict=True):
                chosen = cells[(cells["network"] == network) & (cells["figure"] == number)]
                image = heat_map(ax, chosen.pivot(index="block", columns="share", values=unit), full / BLOCKS)
                ax.set(title=f"strengths of Fig. {number}" if row == 0 else "", xlabel="", ylabel="")
            axes[row, 0].set_ylabel(f"{network}: block")
        colour_bar(image, axes[first : first + 2].flat, full // BLOCKS, f"open {unit} per block", aspect=25)
    axes[0, 0].set_yticks([0.5, 5.5, 11.5], ["0", "5", "11"])
    axes[0, 0].set_xticks([0, COLUMNS / 2, COLUMNS], ["0", "50", "100"])
    fig.supxlabel("share of the training done (%)", fontsize=8)
    return fig


# Fig. 3's own form


class Topology(NamedTuple):
    """One network for ``fig3``: ``shape`` has ``block``, ``heads``, ``neurons`` and, where known, ``head_dims`` (a list
    per block); ``full`` as ``dense_units``."""

    title: str
    shape: pd.DataFrame
    full: dict[str, int]


BARS = {
    "heads": ("heads", Ink.BLUE),
    "mean_dims": ("value dims\nper head", Ink.ORANGE),
    "neurons": ("FFN neurons", Ink.GREEN),
}


def published_topology(figure: int) -> Topology:
    """The last state of one of Figs. 5-9; value dimensions are not known."""
    return Topology(f"Fig. {figure} of the paper", published.last_state(figure), block_units(DEIT_SMALL))


def run_topology(record: Record) -> Topology:
    return Topology(names.run_title(record), topology(record), dense_units(record))


def topologies(networks: list[Topology]) -> pd.DataFrame:
    """All shapes in one frame, with their ``title``."""
    return pd.concat([network.shape.assign(title=network.title) for network in networks], ignore_index=True)


def fig3(networks: list[Topology]) -> Figure:
    """Fig. 3's form: heads, value dimensions per head (mean; whiskers: fewest and most) and neurons of each block, one
    column per network; the dense network is dotted. Where dimensions are not known the panel says so."""
    fig, axes = wide(3.0, 3, len(networks), sharex="col", squeeze=False)
    for column, network in zip(axes.T, networks, strict=True):
        column[0].set_title(textwrap.fill(network.title, 36))
        column[-1].set_xlabel("block")
        for ax, (quantity, (_, colour)) in zip(column, BARS.items(), strict=True):
            full = network.full[quantity]
            ax.set(ylim=(0, 1.25 * full), yticks=[0, full // 2, full], xticks=network.shape["block"])
            if quantity == "mean_dims" and "head_dims" not in network.shape:
                ax.text(0.5, 0.5, "not published", ha="center", va="center", transform=ax.transAxes, color=Ink.GREY)
            else:
                ax.bar(network.shape["block"], full, **DOTTED)
                _kept(ax, network.shape, quantity, colour)
    for ax, (name, _) in zip(axes[:, 0], BARS.values(), strict=True):
        ax.set_ylabel(name)
    fig.align_ylabels(axes[:, 0])
    return fig


def _kept(ax: Axes, shape: pd.DataFrame, quantity: str, colour: str) -> None:
    """One bar per block with its number, upright in the bar where four digits are wider than it."""
    heights = _mean_dims(ax, shape) if quantity == "mean_dims" else shape[quantity]
    bars = ax.bar(shape["block"], heights, color=colour, zorder=1)
    if quantity != "neurons" or len(shape) <= 6:
        ax.bar_label(bars, fmt="%.0f", fontsize=5.5, padding=1)
        return
    for block, height in zip(shape["block"], heights, strict=True):
        upright: dict[str, Any] = {"rotation": 90, "color": "white", "va": "center"} if height else {"va": "bottom"}
        ax.text(block, height / 2, f"{height:.0f}", ha="center", fontsize=5.5, **upright)


def _mean_dims(ax: Axes, shape: pd.DataFrame) -> list[float]:
    """Means per block; draws whiskers from the smallest to the largest head."""
    for block, kept in zip(shape["block"], shape["head_dims"], strict=True):
        if kept:
            ax.vlines(block, min(kept), max(kept), color="black", linewidth=0.8, zorder=2)
    return [float(np.mean(kept)) if kept else 0.0 for kept in shape["head_dims"]]


styled(globals())
