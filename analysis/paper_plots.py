"""The paper's Figs. 2 to 4 and what the findings and section 4 look like; style and ``save`` are those of
``analysis.plots``."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Polygon, Rectangle

from analysis import collect, findings, findings_runs, theory
from analysis.plots import COLUMN, GREY, LOOKS, PAGE, Look
from hiap.train.record import Record

BLUE, ORANGE, GREEN, RED, PINK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
SERIES = (Look(RED, "o"), Look(BLUE, "s"), Look(GREEN, "^"), Look(ORANGE, "D"), Look(PINK, "v"))
DASHES: tuple[Any, ...] = ("-", "--", "-.", ":")
RATIOS = dict(zip(("2:1", "5:1", "1.5:1", "macro-only", "micro-only"), SERIES, strict=True))  # of Fig. 4
TEMPERATURES = (2.0, 1.0, 0.5, 0.1)  # of Fig. 2
ANNEALED = (2.0, 0.5)  # from, to (section 5.1)


# Fig. 2


def densities(logit: float = 0.0, points: int = 2000) -> pd.DataFrame:
    """Exact density of a sample at Fig. 2's temperatures: ``tau``, ``z``, ``density``."""
    z = (np.arange(points) + 0.5) / points
    frames = [pd.DataFrame({"tau": t, "z": z, "density": findings.sample_density(z, t, logit)}) for t in TEMPERATURES]
    return pd.concat(frames, ignore_index=True)


def fig2(rows: pd.DataFrame) -> Figure:
    """Fig. 2 as in the paper: ``densities``. What lies above the frame is cut off; at temperatures below 1 the density
    grows without bound towards 0 and 1."""
    fig = Figure(figsize=(COLUMN, 2.2), layout="constrained")
    ax = fig.add_subplot()
    for (tau, group), look, dash in zip(rows.groupby("tau", sort=False), SERIES, DASHES, strict=False):
        ax.plot(group["z"], group["density"], color=look.colour, linestyle=dash, label=rf"$\tau = {tau:g}$")
    ax.set_ylim(0, 4)
    ax.set_xlim(0, 1)
    ax.set_xlabel(r"gate sample $z$ at logit $\alpha = 0$")
    ax.set_ylabel("probability density")
    fig.legend(loc="outside upper center", ncols=4, columnspacing=1.0, handlelength=1.8)
    return fig


def undecided(logits: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0), points: int = 61) -> pd.DataFrame:
    """What Fig. 2 does not show: ``undecided``, share of samples in (0.05, 0.95), and ``variance`` of a sample, against
    temperature; ``bernoulli``: the variance that remains at temperature 0."""
    rows = []
    for logit in logits:
        open_ = float(findings.sigmoid(logit))
        for tau in np.geomspace(0.02, 4, points):
            rows.append(
                {
                    "logit": logit,
                    "open": open_,
                    "tau": tau,
                    "undecided": findings.undecided_share(tau, logit),
                    "variance": findings.sample_variance(tau, logit, points=20_001),
                    "bernoulli": open_ * (1 - open_),
                }
            )
    return pd.DataFrame(rows)


def fig2_better(rows: pd.DataFrame) -> Figure:
    """``undecided``: left, the share of undecided samples, right the variance, both against temperature; the range that
    the paper anneals over is shaded, dashes at the left edge mark the Bernoulli variance."""
    fig = Figure(figsize=(PAGE, 2.3), layout="constrained")
    left, right = fig.subplots(1, 2)
    for (logit, group), look, dash in zip(rows.groupby("logit", sort=False), SERIES, DASHES, strict=False):
        style: dict[str, Any] = {"color": look.colour, "linestyle": dash}
        name = rf"$\alpha = {logit:g}$, $\sigma(\alpha) = {group['open'].iloc[0]:.2f}$"
        left.plot(group["tau"], 100 * group["undecided"], label=name, **style)
        right.plot(group["tau"], group["variance"], **style)
        right.plot(group["tau"].min(), group["bernoulli"].iloc[0], ">", color=look.colour, markersize=4, clip_on=False)
    for ax in (left, right):
        ax.axvspan(*sorted(ANNEALED), color="#eeeeee", zorder=0, linewidth=0)
        ax.set_xscale("log")
        ax.set_xlim(rows["tau"].min(), rows["tau"].max())
        ax.set_xticks([0.02, 0.1, 0.5, 1, 2, 4], ["0.02", "0.1", "0.5", "1", "2", "4"])
        ax.minorticks_off()
        ax.set_xlabel(r"temperature $\tau$")
        ax.set_ylim(0, None)
    left.set_ylabel("samples in (0.05, 0.95), %")
    right.set_ylabel("variance of a sample")
    handles, _ = left.get_legend_handles_labels()
    marks = [
        Line2D(
            [],
            [],
            linestyle="",
            marker=">",
            color="black",
            markersize=4,
            label=r"limit $\sigma(\alpha)\sigma(-\alpha)$",
        ),
        Patch(color="#eeeeee", label="range of annealing"),
    ]
    fig.legend(handles=[*handles, *marks], loc="outside right center")
    return fig


# Fig. 3


class Topology(NamedTuple):
    """One network for ``fig3``: ``shape`` has ``block``, ``heads``, ``neurons`` and, where known, ``head_dims`` (a list
    per block); ``full`` as ``collect.dense_units``."""

    title: str
    shape: pd.DataFrame
    full: dict[str, int]


ROWS = {"heads": ("heads", BLUE), "mean_dims": ("value dims\nper head", ORANGE), "neurons": ("FFN neurons", GREEN)}


def last_state(figure: int) -> pd.DataFrame:
    """Heads and neurons per block at the last epoch of one of Figs. 5-9."""
    return collect.published_heatmap(figure).query("epoch == epoch.max()")


def published_topology(figure: int) -> Topology:
    """The last state of one of Figs. 5-9; value dimensions are not known."""
    return Topology(f"Fig. {figure} of the paper", last_state(figure), collect.block_units(findings.DEIT_SMALL))


def nearest_run(records: list[Record]) -> Record | None:
    """Of the runs of seed 0 without a target, the one whose share of the dense MACs is nearest to that of HiAP's larger
    row in Table 2; None if there is none."""
    table = collect.published("table2_deit_small")
    share = table.loc[table["method"] == "HiAP", "gmacs"].max() / table["gmacs"].max()
    ruled = [r for r in records if r.seed == 0 and r.config.budget.target_macs is None and r.size]
    return min(ruled, key=lambda r: abs(r.size.macs / r.size.dense_macs - share), default=None)  # type: ignore[union-attr]


def topologies(networks: list[Topology]) -> pd.DataFrame:
    """All shapes in one frame, with their ``title``."""
    return pd.concat([network.shape.assign(title=network.title) for network in networks], ignore_index=True)


def fig3(networks: list[Topology]) -> Figure:
    """Fig. 3's form: heads, value dimensions per head (mean; whiskers: fewest and most) and neurons of each block, one
    column per network; the dense network is dotted. Where dimensions are not known the panel says so."""
    fig = Figure(figsize=(PAGE, 3.0), layout="constrained")
    axes = fig.subplots(3, len(networks), sharex="col", squeeze=False)
    for column, network in zip(axes.T, networks, strict=True):
        column[0].set_title(network.title)
        column[-1].set_xlabel("block")
        for ax, (quantity, (_, colour)) in zip(column, ROWS.items(), strict=True):
            full = network.full[quantity]
            ax.set_ylim(0, 1.25 * full)
            ax.set_yticks([0, full // 2, full])
            ax.set_xticks(network.shape["block"])
            if quantity == "mean_dims" and "head_dims" not in network.shape:
                ax.text(0.5, 0.5, "not published", ha="center", va="center", transform=ax.transAxes, color=GREY)
            else:
                ax.bar(network.shape["block"], full, color="none", edgecolor=GREY, linewidth=0.6, linestyle=":")
                _kept(ax, network.shape, quantity, colour)
    for ax, (name, _) in zip(axes[:, 0], ROWS.values(), strict=True):
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


# Fig. 4


def fig4(lines: pd.DataFrame, xlabel: str, ylabel: str, points: pd.DataFrame | None = None) -> Figure:
    """Top-1 against compute, one line per ``series`` (of ``RATIOS``) through ``x``, ``top1``; ``points``: single seeds,
    drawn small."""
    fig = Figure(figsize=(COLUMN, 2.5), layout="constrained")
    ax = fig.add_subplot()
    for name in sorted(lines["series"].unique(), key=list(RATIOS).index):
        look, group = RATIOS[name], lines[lines["series"] == name].sort_values("x")
        if points is not None:
            seeds = points[points["series"] == name]
            ax.plot(seeds["x"], seeds["top1"], look.marker, color=look.colour, markersize=2.5, alpha=0.45, mew=0)
        ax.plot(
            group["x"],
            group["top1"],
            color=look.colour,
            marker=look.marker,
            linewidth=0.8,
            markersize=4.5,
            markeredgecolor="white",
            markeredgewidth=0.4,
            label=name,
        )
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.grid(True)
    title = r"$\lambda_\mathrm{macro} : \lambda_\mathrm{micro}$"
    fig.legend(loc="outside upper center", ncols=5, columnspacing=0.8, handletextpad=0.3, handlelength=1.4, title=title)
    return fig


def ratio_runs(runs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(means over seeds, seeds) of the grid ``ratios`` for ``fig4``: ``series``, ``label``, ``x`` (% of the dense MACs)
    and ``top1``. A label is the ratio, then the strength: '1.5to1-0.9'."""
    seeds = runs[runs["method"] == "hiap"].assign(x=100 * runs["macs_share"])
    seeds["series"] = [label.rpartition("-")[0].replace("to1", ":1") for label in seeds["label"]]
    means = seeds.groupby(["series", "label"], sort=False)[["x", "top1"]].mean().reset_index()
    return means, seeds[["series", "label", "seed", "x", "top1"]]


# Finding 4


def gaps(points: int = 401) -> pd.DataFrame:
    """``theory.gap`` over logits from -6 to 6 for one and for two gates."""
    logits = np.linspace(-6, 6, points)
    return pd.concat([theory.gap(logits, 1), theory.gap(logits, 2)], ignore_index=True)


def gap_data(curves: pd.DataFrame, paths: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """What ``hardening`` shows, as one frame; ``panel`` is 'unit' or the name in ``paths``."""
    frames = [curves.assign(panel="unit"), *(runs.assign(panel=name) for name, runs in paths.items() if len(runs))]
    return pd.concat(frames, ignore_index=True)


def hardening(curves: pd.DataFrame, paths: dict[str, pd.DataFrame]) -> Figure:
    """Left, ``gaps``: by how much the hardened cost of a unit exceeds the expected one. Right: the same for whole
    networks over training, one thin line per run of each ``collect.macs_trajectory`` in ``paths``."""
    fig = Figure(figsize=(PAGE, 2.4), layout="constrained")
    left, right = fig.subplots(1, 2)
    names = {1: "one gate", 2: r"macro $\times$ micro"}
    for (gates, name), colour, dash in zip(names.items(), (BLUE, RED), DASHES, strict=False):
        group = curves[curves["gates"] == gates]
        for _, side in group.groupby(group["logit"] > 0, sort=False):
            label = name if side["logit"].iloc[0] > 0 else None
            left.plot(side["logit"], side["gap"], color=colour, linestyle=dash, label=label)
    left.axhline(0, color="black", linewidth=0.5)
    left.set_xlabel(r"logit $\alpha$ of every gate")
    left.set_ylabel("hardened - expected (units)")
    left.grid(True)
    left.legend(loc="lower right", handlelength=1.8)
    for (name, runs), colour, dash in zip(paths.items(), (RED, BLUE), DASHES, strict=False):
        for _, run in runs.groupby("run_id", sort=False):
            right.plot(
                run["epoch"],
                100 * (run["hardened"] - run["expected"]),
                color=colour,
                linewidth=0.6,
                alpha=0.55,
                linestyle=dash,
            )
        right.plot([], [], color=colour, linestyle=dash, label=f"{name}, n = {runs['run_id'].nunique()} runs")
    right.axhline(0, color="black", linewidth=0.5)
    right.set_xlabel("epoch")
    right.set_ylabel("hardened - expected (% of dense)")
    right.grid(True)
    right.legend(loc="upper right", handlelength=1.8)
    return fig


# Finding 8


def feasible(corners: dict[str, pd.DataFrame], runs: pd.DataFrame, text: findings_runs.Described) -> Figure:
    """Parallelograms of ``findings_runs.feasible_region`` by name, what the text describes (boxes, for both readings of
    A4), and the last states of Figs. 5-9 (``runs``: ``figure``, ``width``, ``neurons`` per live FFN) with all value
    dimensions kept, so that they lie there or to the left."""
    fig = Figure(figsize=(COLUMN, 2.9), layout="constrained")
    ax = fig.add_subplot()
    for (name, region), colour in zip(corners.items(), (RED, BLUE), strict=True):
        ax.add_patch(Polygon(region[["width", "neurons"]].to_numpy(), facecolor=colour, label=name))
    low, high = text.neurons
    for (label, cut), colour, dash in zip(findings_runs.CUTS.items(), (GREEN, ORANGE), DASHES, strict=False):
        ends = [findings_runs.width(heads, text.value_dims, cut) for heads in text.heads]
        ax.add_patch(
            Rectangle(
                (ends[0], low),
                ends[1] - ends[0],
                high - low,
                facecolor=(colour, 0.15),
                edgecolor=colour,
                linestyle=dash,
                label=f"text, {label}",
            )
        )
    ax.plot(runs["width"], runs["neurons"], "k.", markersize=5, label="ends of Figs. 5 to 9, at most")
    for row in runs.to_dict("records"):
        place = (row["width"], row["neurons"])
        ax.annotate(f"Fig. {row['figure']} ", place, (-2, 0), textcoords="offset points", ha="right", va="top", size=6)
    ax.set_xlim(0, 400)
    ax.set_ylim(500, 1600)
    ax.axhline(findings.DEIT_SMALL.hidden, color="black", linewidth=0.6, linestyle=":")
    ax.text(398, findings.DEIT_SMALL.hidden + 8, "dense", ha="right", fontsize=6)
    ax.set_xlabel("attention dims per block (mean of Q/K and V)")
    ax.set_ylabel("neurons per live FFN")
    fig.legend(loc="outside upper center", ncols=2, columnspacing=1.0, handletextpad=0.5)
    return fig


def final_widths() -> pd.DataFrame:
    """Last states of Figs. 5-9 in the axes of ``feasible``: ``figure``, ``width`` with all dimensions kept, ``neurons``
    per live FFN."""
    dims, rows = findings.DEIT_SMALL, []
    for figure in findings.FIGURES:
        last = last_state(figure)
        live = last.loc[last["neurons"] > 0, "neurons"]
        rows.append({"figure": figure, "width": last["heads"].mean() * dims.head_dim, "neurons": live.mean()})
    return pd.DataFrame(rows)


# Table 2


def spaced(values: np.ndarray, distance: float) -> np.ndarray:
    """The nearest places for labels of these heights, in the same order, that keep ``distance``."""
    order = np.argsort(values, kind="stable")
    index = np.arange(len(values)) * distance
    free = values[order] - index
    for end in range(1, len(free)):  # pool adjacent violators: isotonic regression of what is left
        start = end
        while start > 0 and free[start - 1] > free[end]:
            start -= 1
            free[start : end + 1] = free[start : end + 1].mean()
    placed = np.empty(len(values))
    placed[order] = free + index
    return placed


def table2(rows: pd.DataFrame) -> Figure:
    """Top-1 against GMACs of pruned DeiT-Small: ``name``, ``gmacs``, ``top1`` and ``kind`` (a key of ``KINDS``). Names
    stand beside the picture, each tied to its mark; dashed: the dense network."""
    fig = Figure(figsize=(PAGE, 3.6), layout="constrained")
    ax = fig.add_subplot()
    dense = rows.loc[rows["kind"] == "dense", "top1"].item()
    left, right = 2.2, 3.3  # where the names stand
    ax.plot([left, right], [dense, dense], color="black", linewidth=0.7, linestyle="--", zorder=1)
    shown = rows[rows["kind"] != "dense"]
    for kind, group in shown.groupby("kind", sort=False):
        ax.plot(group["gmacs"], group["top1"], linestyle="", zorder=3, **KINDS[str(kind)])
    small = shown["gmacs"] < 2.9
    for side, edge, align in ((shown[small], left, "right"), (shown[~small], right, "left")):
        heights = spaced(side["top1"].to_numpy(), 0.115)
        for row, height in zip(side.to_dict("records"), heights, strict=True):
            style = KINDS[row["kind"]]
            ax.plot([row["gmacs"], edge], [row["top1"], height], color="#bbbbbb", linewidth=0.4, zorder=2)
            ax.text(edge, height, f" {row['name']} ", ha=align, va="center", fontsize=6, color=style["color"])
    ax.set_xlim(1.75, 3.6)
    ax.set_xticks(np.arange(2.2, 3.3, 0.2))
    ax.set_xlabel("MACs of one image (G), as reported")
    ax.set_ylabel("top-1 on ImageNet-1K (%), as reported")
    handles = [Line2D([], [], linestyle="", **KINDS[str(kind)]) for kind in shown["kind"].unique()]
    handles.append(Line2D([], [], color="black", linewidth=0.7, linestyle="--", label=f"dense, {dense:.2f} % at 4.6 G"))
    fig.legend(handles=handles, loc="outside upper center", ncols=5, columnspacing=1.2)
    return fig


KINDS: dict[str, dict[str, Any]] = {
    "HiAP": {"marker": "o", "color": LOOKS["hiap"].colour, "markersize": 6, "label": "HiAP, Table 2"},
    "table": {"marker": "s", "color": "#333333", "markersize": 4, "label": "others, Table 2"},
    "related": {"marker": "D", "color": BLUE, "markersize": 4, "mfc": "white", "label": "reported elsewhere"},
    "ours": {"marker": "*", "color": GREEN, "markersize": 8, "label": "this repository"},
}


def table2_rows(ours: pd.DataFrame) -> pd.DataFrame:
    """Rows for ``table2``: Table 2 as printed, DeiT-Small's other reports that are not quotes of these, and ``ours``
    (``name``, ``gmacs``, ``top1``; empty where nothing has run). Epochs follow the name where the source has them."""
    printed = collect.published("table2_deit_small")
    kinds = printed["method"].map({"Dense Baseline": "dense", "HiAP": "HiAP"}).fillna("table")
    table = printed.assign(kind=kinds, name=printed["method"])[["name", "gmacs", "top1", "kind"]]
    other = collect.published("related_results").query("backbone == 'DeiT-S'")
    pairs = set(zip(table["gmacs"], table["top1"], strict=True))
    fresh = [pair not in pairs for pair in zip(other["gmacs"], other["top1"], strict=True)]
    epochs = findings_runs.epochs(other["epochs_and_notes"])
    names = [f"{m}, {e} ep." if e else m for m, e in zip(other["method"], epochs, strict=True)]
    related = other.assign(name=names, kind="related")[fresh][["name", "gmacs", "top1", "kind"]]
    return pd.concat([frame for frame in (table, related, ours.assign(kind="ours")) if len(frame)], ignore_index=True)
