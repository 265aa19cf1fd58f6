"""Figures: functions from data frames to ``Figure``, in one style, and one ``save``.

Widths are those of a two-column paper. Colours are Okabe and Ito's, which the colour-blind can tell apart (but for
two that are too pale on white, or one too many); methods differ in their markers too.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Image
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis import collect
from analysis.tables import save_frame
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
matplotlib.rcParams.update(STYLE)

SMALLEST = 5.0  # points; numbers that would have to be smaller are left out
MOST_TICKS = 12  # along a map or its scale
GREY = "#8c8c8c"
SEQUENTIAL = "cividis"


class Look(NamedTuple):
    colour: str
    marker: str


LOOKS = {
    "dense": Look("#000000", "*"),
    "hiap": Look("#D55E00", "o"),
    "uniform": Look("#0072B2", "s"),
    "l1": Look("#009E73", "^"),
    "taylor": Look("#E69F00", "D"),
    "magnitude": Look("#CC79A7", "v"),
    "vit_slim": Look("#56B4E9", "P"),
    "cofi": Look("#6A51A3", "X"),
    "random": Look(GREY, "d"),
    "peer": Look("#8B4513", "<"),
}


def look(method: str) -> Look:
    """A method without an entry is grey."""
    return LOOKS.get(method, Look(GREY, "h"))


def pareto(rows: pd.DataFrame) -> Figure:
    """Top-1 against MMACs, one mark per row of ``tables.summary``; coloured bars are 95 % intervals over seeds
    where a row has several; thin grey ones what the finite test set alone leaves open where it has one."""
    fig = Figure(figsize=(COLUMN, 2.5), layout="constrained")
    ax = fig.add_subplot()
    handles = []
    for method, group in rows.groupby("method", sort=False):
        style, group = look(str(method)), group.sort_values("macs")
        if method == "dense":
            for top1 in group["top1"]:
                ax.axhline(top1, color=style.colour, linestyle="--", linewidth=0.7, zorder=1)
        else:
            ax.plot(group["macs"] / 1e6, group["top1"], color=style.colour, linewidth=0.6, alpha=0.5, zorder=2)
        ax.errorbar(
            group["macs"] / 1e6,
            group["top1"],
            yerr=group.get("interval"),
            fmt=style.marker,
            color=style.colour,
            markersize=8 if method == "dense" else None,
            markeredgecolor="white",
            markeredgewidth=0.4,
            capsize=2,
            zorder=3,
        )
        if "sampling" in group:
            bars = group["sampling"].where(group["n"] == 1)
            ax.errorbar(
                group["macs"] / 1e6, group["top1"], yerr=bars, fmt="none", ecolor=GREY, elinewidth=0.5, zorder=1
            )
        name = collect.METHODS.get(str(method), str(method)) + _n(group)
        handles.append(Line2D([], [], color=style.colour, marker=style.marker, linestyle="", label=name))
    ax.set_xlabel("MMACs per image")
    ax.set_ylabel(f"Top-1 on {rows['data'].iloc[0]} (%)")
    ax.margins(0.08, 0.12)
    ax.grid(True)
    if "sampling" in rows and (rows["n"] == 1).any():
        handles.append(Line2D([], [], color=GREY, linewidth=0.5, label="95 %, test sampling"))
    fig.legend(handles=handles, loc="outside upper center", ncols=2, columnspacing=1.2, handletextpad=0.3)
    return fig


def count(n: pd.Series) -> str:
    """'5', or '3 to 5' where rows differ."""
    return " to ".join(str(int(end)) for end in sorted({n.min(), n.max()}))


def _n(group: pd.DataFrame) -> str:
    if "n" not in group:
        return ""
    return f" (n = {count(group['n'])})"


class Quantity(NamedTuple):
    column: str
    title: str
    unit: str
    number: str


QUANTITIES = (
    Quantity("heads", "Active heads", "heads per block", "{:.0f}"),
    Quantity("neurons", "Active FFN neurons", "neurons per block", "{:.0f}"),
    Quantity("mean_dims", "Value dimensions kept", "dimensions per active head, mean", "{:.0f}"),
)


def gate_heatmaps(gates: pd.DataFrame, full: dict[str, int], title: str = "") -> Figure:
    """Figs. 5-9: block x epoch, one map each for heads, neurons and, where known, value dimensions per head.

    ``gates`` is a ``collect.gate_trajectory``; ``full`` (``collect.dense_units``) gives each map's value in the dense
    network: the end of its colour scale, so that maps of one network can be compared. Numbers stand where a
    value changes if they are legible there, else the last epoch's stand at the right."""
    shown = [q for q in QUANTITIES if q.column in gates and gates[q.column].notna().any()]
    blocks = gates["block"].nunique()
    fig = Figure(figsize=(PAGE, 1.15 + 0.115 * max(blocks, 8)), layout="constrained")
    fig.suptitle(title, fontsize=STYLE["axes.titlesize"])
    for ax, quantity in zip(fig.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        grid, most = gates.pivot(index="block", columns="epoch", values=quantity.column), full[quantity.column]
        image = heat_map(ax, grid, most, quantity.number, width=5.6 / len(shown), changes=True)
        ax.set(title=quantity.title, xlabel="Epoch", ylabel="")
        colour_bar(image, [ax], most, quantity.unit, location="bottom", aspect=30)
    fig.axes[0].set_ylabel("Block")
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
        same = words[:, 1:] == words[:, :-1]
        words[:, 1:][same] = ""
    step = next((step for step in (1, 2, 5, 10, 20, 50) if values.shape[1] <= MOST_TICKS * step), 100)
    sns.heatmap(
        grid.astype(float),
        ax=ax,
        vmin=0,
        vmax=full,
        cmap=SEQUENTIAL,
        cbar=False,
        annot=words if form and size >= SMALLEST else None,
        fmt="",
        annot_kws={"fontsize": size},
        xticklabels=step,
        yticklabels=True,
        rasterized=True,  # or a viewer of the PDF shows the seams between cells
    )
    ax.hlines(range(1, len(values)), 0, values.shape[1], color="white", linewidth=0.4)
    ax.tick_params(length=2, rotation=0)
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


def topology(shape: pd.DataFrame, full: dict[str, int], title: str = "") -> Figure:
    """Fig. 3: what is left of each block. Above, heads (largest first) with the value dimensions each keeps; below, FFN
    neurons, the dense network's outlined. ``shape`` is a ``collect.topology``; ``full`` as in ``gate_heatmaps``."""
    heads = full["heads"]
    kept = {block: pd.Series(dims, dtype=float) for block, dims in zip(shape["block"], shape["head_dims"], strict=True)}
    dims = pd.DataFrame(kept).reindex(range(heads))
    fig = Figure(figsize=(COLUMN, 1.6 + 0.17 * heads), layout="constrained")
    top, bottom = fig.subplots(2, 1, sharex=True, height_ratios=[0.17 * heads + 0.1, 0.9])
    image = heat_map(top, dims.set_axis(range(1, heads + 1)), full["mean_dims"], "{:.0f}", width=2.5)
    top.set(title=title, xlabel="", ylabel="Head,\nby size")
    top.tick_params(length=0)
    colour_bar(image, [top], full["mean_dims"], "dims kept", ends=True, aspect=8)
    centres = shape["block"] + 0.5
    bottom.bar(centres, full["neurons"], color="none", edgecolor=GREY, linewidth=0.6, linestyle=":")
    bars = bottom.bar(centres, shape["neurons"], color="#0072B2")
    bottom.bar_label(bars, fontsize=6, padding=1)
    bottom.set_ylim(0, 1.2 * full["neurons"])
    bottom.set_ylabel("FFN neurons")
    bottom.set_xlabel("Block")
    bottom.set_xticks(centres, shape["block"])
    return fig


INHERITED: dict[str, Any] = {"facecolor": "#e5e5e5", "edgecolor": GREY, "hatch": "////"}


def training_cost(bills: pd.DataFrame) -> Figure:
    """Training bill per label, stacked by stage, means over seeds; what a run inherited from the run that it started
    from is hatched. ``bills`` is a ``collect.stages``."""
    bars = bill_per_label(bills)
    labels = list(dict.fromkeys(bars["title"]))
    n = bills.groupby("label")["seed"].nunique()
    fig = Figure(figsize=(COLUMN, 0.9 + 0.24 * len(labels)), layout="constrained")
    ax = fig.add_subplot()
    left = dict.fromkeys(labels, 0.0)
    for bar in bars.to_dict("records"):
        label, width = bar["title"], bar["train_macs"] / 1e12
        style = {**INHERITED} if bar["inherited"] else {"facecolor": look(bar["method"]).colour, "edgecolor": "white"}
        ax.barh(label, width, left=left[label], height=0.65, linewidth=0.4, **style)
        left[label] += width
    for label in labels:
        rows = bars[bars["title"] == label]
        ax.text(left[label], label, f" {rows['epochs'].sum():.0f} ep., {_minutes(rows['seconds'].sum())}", va="center")
    ax.set_xlim(0, 1.6 * max(left.values()))
    ax.invert_yaxis()
    ax.set_xlabel(f"Training cost (TMACs), mean of n = {count(n)}")
    if bars["inherited"].any():
        shared = Patch(
            facecolor="#e5e5e5", hatch="////", edgecolor=GREY, linewidth=0.4, label="training of the dense start"
        )
        fig.legend(handles=[shared], loc="outside upper center")
    return fig


def bill_per_label(bills: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds of each stage's epochs, seconds and MACs, dense first, stages in the order in which they ran."""
    keys = ["label", "method", "inherited", "stage"]
    sums = bills.groupby([*keys, "seed"], sort=False)[["epochs", "seconds", "train_macs"]].sum()
    rows = sums.groupby(keys, sort=False).mean().reset_index()
    rows["title"] = list(map(collect.title, rows["label"], rows["method"]))
    rows["pruned"] = rows["method"] != "dense"
    return rows.sort_values(["pruned", "title"], kind="stable", ignore_index=True).drop(columns="pruned")


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


UNITS = {"head": "head", "value_dim": "value dimension", "neuron": "FFN neuron"}
UNIT_COLOURS = {"head": "#0072B2", "value_dim": "#E69F00", "neuron": "#999999"}
LEDGERS = ("Eq. 5", "true")


def _on(unit: str) -> str:
    """Colour of text upon a unit's colour."""
    return "white" if unit == "head" else "black"


def cost_ledger(prices: pd.DataFrame) -> Figure:
    """By Eq. 5 (FLOPs halved to MACs) and in truth: what one unit is credited with (left), and to which units the cost
    of a block is billed (right). ``prices`` is a ``findings.price_list``."""
    fig = Figure(figsize=(PAGE, 1.9), layout="constrained")
    left, right = fig.subplots(1, 2, width_ratios=[1, 1.25])
    paper, true = (prices[prices["ledger"] == name].set_index("unit")["macs"] for name in LEDGERS)
    for position, unit in enumerate(UNITS):
        share = 100 * paper[unit] / true[unit]
        left.barh(position, share, height=0.6, color=UNIT_COLOURS[unit])
        left.text(share, position, f" {share:.0f} %", va="center")
        left.text(3, position, f"{paper[unit]:,} : {true[unit]:,}", va="center", fontsize=5.5, color=_on(unit))
    left.axvline(100, color="black", linewidth=0.7, linestyle="--")
    left.set_yticks(range(len(UNITS)), [f"one {name}" for name in UNITS.values()])
    left.invert_yaxis()
    left.margins(x=0.15)
    left.set_xlabel("Price in Eq. 5, % of the saved MACs")
    for position, ledger in enumerate(LEDGERS):
        start = 0.0
        for unit in UNITS:
            row = prices[(prices["ledger"] == ledger) & (prices["unit"] == unit)].iloc[0]
            value = row["macs_per_block"] / 1e6
            right.barh(position, value, left=start, height=0.6, color=UNIT_COLOURS[unit], edgecolor="white")
            right.text(start + value / 2, position, f"{value:.1f}", ha="center", va="center", color=_on(unit))
            start += value
        right.text(start, position, f" {start:.1f}", va="center")
    right.set_yticks(range(2), LEDGERS)
    right.invert_yaxis()
    right.margins(x=0.12)
    right.set_xlabel("MMACs of one block, by what they are billed to")
    right.legend(
        handles=[Patch(color=UNIT_COLOURS[u], label=f"{name}s") for u, name in UNITS.items()],
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=3,
    )
    return fig


def conventions(counts: pd.DataFrame, printed: float) -> Figure:
    """One network counted in several ways (columns ``counted``, ``macs``) against the number that was printed."""
    fig = Figure(figsize=(COLUMN, 0.75 + 0.22 * len(counts)), layout="constrained")
    ax = fig.add_subplot()
    ax.axvline(printed / 1e6, color=LOOKS["hiap"].colour, linewidth=0.9)
    ax.scatter(counts["macs"] / 1e6, counts["counted"], color="black", s=14, zorder=3)
    for row, macs in enumerate(counts["macs"]):
        ax.text(1.02, row, f"{macs / 1e6:.2f}", va="center", transform=ax.get_yaxis_transform())
    ax.invert_yaxis()
    ax.margins(0.08, 0.15)
    ax.grid(True, axis="y")
    ax.set_xlabel("MMACs per image")
    fig.legend(
        handles=[Line2D([], [], color=LOOKS["hiap"].colour, label=f"printed in Table 3: {printed / 1e6:.1f}")],
        loc="outside upper right",
    )
    return fig


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


def speed(rows: pd.DataFrame) -> Figure:
    """Time saved against MACs saved, one mark per extracted network of ``bench.load``, one series per layout and way to
    run; on the line every MAC that goes is time that goes. Bars are the quartiles."""
    fig = Figure(figsize=(COLUMN, 3.0), layout="constrained")
    ax = fig.add_subplot()
    rows = rows[rows["cut"] > 0]
    top = 105 * max(rows["cut"].max(), (1 - rows["ratio_low"]).max())
    ax.plot([0, top], [0, top], color="black", linewidth=0.7, linestyle="--", label="all of the cut")
    ax.plot([0, top], [0, 0.9 * top], color=GREY, linewidth=0.7, linestyle=":", label="90 % of it")
    series = rows.groupby(["layout", "precision", "run", "batch"], sort=False)
    for ((layout, precision, run, batch), group), style in zip(series, list(LOOKS.values())[1:], strict=False):
        saved = 100 * (1 - group["ratio"])
        errors = [100 * (group["ratio_high"] - group["ratio"]), 100 * (group["ratio"] - group["ratio_low"])]
        ax.errorbar(
            100 * group["cut"],
            saved,
            yerr=errors,
            fmt=style.marker,
            color=style.colour,
            markersize=4,
            markeredgecolor="white",
            markeredgewidth=0.4,
            elinewidth=0.5,
            label=f"{layout}, {precision}, {run}, batch {batch} (n = {len(group)})",
        )
    ax.set_xlabel("MACs removed (%)")
    ax.set_ylabel("time saved (%)")
    ax.set_xlim(0, None)
    ax.grid(True)
    fig.legend(loc="outside upper center", ncols=1, handletextpad=0.5)
    return fig
