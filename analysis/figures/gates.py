"""Gates: their samples (Fig. 2), how far they travel, and what they cost over training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analysis.figures.style import DASHED, DASHES, RATIOS, SERIES, STYLE, Ink, entry, narrow, styled, wide
from analysis.findings.costs import DEIT_SMALL, WHOLE
from analysis.findings.gates import ANNEALED
from analysis.findings.heat_maps import FIGURE_RATIOS
from analysis.records.names import count

# Fig. 2


def fig2(rows: pd.DataFrame) -> Figure:
    """Fig. 2 as in the paper: ``gates.densities``. What lies above the frame is cut off; at temperatures below 1 the
    density grows without bound towards 0 and 1."""
    fig, ax = narrow(2.2)
    for (tau, group), look, dash in zip(rows.groupby("tau", sort=False), SERIES, DASHES, strict=False):
        ax.plot(group["z"], group["density"], color=look.colour, linestyle=dash, label=rf"$\tau = {tau:g}$")
    ax.set(ylim=(0, 4), xlim=(0, 1), xlabel=r"gate sample $z$ at logit $\alpha = 0$", ylabel="probability density")
    fig.legend(loc="outside upper center", ncols=4, columnspacing=1.0, handlelength=1.8)
    return fig


def undecided(rows: pd.DataFrame) -> Figure:
    """``gates.undecided``: left, the share of undecided samples, right the variance, both against temperature; the
    range that the paper anneals over is shaded, dashes at the left edge mark the Bernoulli variance."""
    fig, (left, right) = wide(2.3, 1, 2)
    for (logit, group), look, dash in zip(rows.groupby("logit", sort=False), SERIES, DASHES, strict=False):
        style: dict[str, Any] = {"color": look.colour, "linestyle": dash}
        name = rf"$\alpha = {logit:g}$, $\sigma(\alpha) = {group['open'].iloc[0]:.2f}$"
        left.plot(group["tau"], 100 * group["undecided"], label=name, **style)
        right.plot(group["tau"], group["variance"], **style)
        right.plot(group["tau"].min(), group["bernoulli"].iloc[0], ">", color=look.colour, markersize=4, clip_on=False)
    for ax in (left, right):
        ax.axvspan(*sorted(ANNEALED), color="#eeeeee", zorder=0, linewidth=0)
        ax.set(xscale="log", xlim=(rows["tau"].min(), rows["tau"].max()), xlabel=r"temperature $\tau$")
        ax.set_xticks([0.02, 0.1, 0.5, 1, 2, 4], ["0.02", "0.1", "0.5", "1", "2", "4"])
        ax.minorticks_off()
        ax.set_ylim(0, None)
    left.set_ylabel("samples in (0.05, 0.95), %")
    right.set_ylabel("variance of a sample")
    limit = entry("black", ">", markersize=4, label=r"limit $\sigma(\alpha)\sigma(-\alpha)$")
    handles = [*left.get_legend_handles_labels()[0], limit, Patch(color="#eeeeee", label="range of annealing")]
    fig.legend(handles=handles, loc="outside right center")
    return fig


# Figs. 5 to 9


def totals(rows: pd.DataFrame) -> Figure:
    """``published.totals`` in one picture, per cent of the dense network's units."""
    fig, axes = wide(2.0, 1, 2, sharey=True)
    for ax, (unit, whole) in zip(axes, WHOLE.items(), strict=True):
        for dash, (figure, name) in zip(DASHES, FIGURE_RATIOS.items(), strict=True):
            run, style = rows[rows["figure"] == figure], {"linestyle": dash, "color": RATIOS[name].colour}
            ax.plot(run["epoch"], 100 * run[unit] / whole, label=f"Fig. {figure} ({name})", **style)
        ax.set(xlabel="epoch", title=f"{unit}, of {whole:,}", ylim=(0, 103))
        ax.grid(True, axis="y")
    axes[0].set_ylabel("open, % of dense")
    fig.legend(handles=axes[0].get_legend_handles_labels()[0], loc="outside right center")
    return fig


RATE_LOOKS = (("o", "#000000"), ("s", Ink.BLUE), ("^", Ink.RED))  # of ``speed_limit.RATES``


def speed_limit(totals: pd.DataFrame, first: pd.DataFrame) -> Figure:
    """Finding 14: above, the heads and neurons of Figs. 5-9 (``published.totals``); below, after how many epochs a gate
    can be closed at the earliest (``speed_limit.first_reach``), by its start and rate."""
    fig, axes = narrow(4.4, 3, 1, sharex=True, height_ratios=(1, 1, 1.7))
    _open_units(axes, totals)
    ax, starts = axes[2], sorted(first["start"].unique())
    for shift, (_, group), (marker, colour) in zip((-0.27, 0, 0.27), first.groupby("rate"), RATE_LOOKS, strict=True):
        for row in group.to_dict("records"):
            place = starts.index(row["start"]) + shift
            ax.plot([row["full"], row["scheduled"]], [place, place], color=colour, linewidth=0.8, zorder=1)
            ax.plot(row["scheduled"], place, marker, color=colour, mfc="white", markersize=4)
            ax.plot(row["full"], place, marker, color=colour, markersize=4)
    ax.set_yticks(range(len(starts)), [f"{start:g}" for start in starts])
    ax.set(ylim=(-0.6, len(starts) - 0.4), ylabel=r"start $\alpha_0$", xlabel="epochs trained (logarithmic)")
    ax.set_title("a gate can first be closed, by a steady gradient", loc="left")
    ax.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
    for axis in axes:
        axis.grid(True, axis="x")
    handles = [
        entry(colour, marker, markersize=4, label=f"rate {_power(rate)}")
        for rate, (marker, colour) in zip(sorted(first["rate"].unique()), RATE_LOOKS, strict=True)
    ]
    for face, name in ((Ink.GREY, "full rate at every step"), ("white", "warm-up and cosine")):
        handles.append(entry(Ink.GREY, "o", mfc=face, markersize=4, label=name))
    ax.legend(handles=handles, loc="lower right", handlelength=1.2, borderaxespad=0.1)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, columnspacing=1.0)
    return fig


def _open_units(axes: Sequence[Axes], totals: pd.DataFrame) -> None:
    """Open heads and neurons of Figs. 5-9 after each epoch, from 1, the first one marked."""
    for ax, (unit, whole) in zip(axes, WHOLE.items(), strict=False):
        for dash, (figure, name) in zip(DASHES, FIGURE_RATIOS.items(), strict=True):
            run, (colour, marker) = totals[totals["figure"] == figure], RATIOS[name]
            share = 100 * run[unit].to_numpy() / whole
            style: dict[str, Any] = {"color": colour, "markersize": 4}
            ax.plot(run["epoch"] + 1, share, linestyle=dash, color=colour)
            ax.plot(1, share[0], marker, **style)
            ax.plot([], [], marker, linestyle=dash, label=f"Fig. {figure}", **style)
        ax.set(xscale="log", xlim=(0.88, 52), ylim=(0, 103), ylabel="open, %")
        ax.set_title(f"{unit} of the paper's Figs. 5 to 9, of {whole:,}", loc="left")
        ax.minorticks_off()


def _power(rate: float) -> str:
    """1e-05 as TeX."""
    digits, _, power = f"{rate:.0e}".partition("e")
    return rf"${digits} \cdot 10^{{{int(power)}}}$"


def calibrated(lines: pd.DataFrame, shown: dict[str, str]) -> Figure:
    """``calibrate.curves``: heads above, neurons below, a column per figure; ``shown``: readings and their names."""
    fig, axes = wide(3.1, 2, 5, sharex=True, sharey=True)
    fig.set_figwidth(7.0)
    for column, number in enumerate(sorted(lines["figure"].unique())):
        for ax, unit in zip(axes[:, column], WHOLE, strict=True):
            for i, (reading, name) in enumerate({"paper": "paper, digitised", **shown}.items()):
                own = lines[(lines["reading"] == reading) & (lines["figure"] == number)]
                colour = "black" if i == 0 else matplotlib.colormaps["viridis"]((i - 1) / max(1, len(shown) - 1) * 0.85)
                ax.plot(100 * own["share"], 100 * own[unit], DASHES[i % 4], color=colour, label=name, lw=1.3)
            ax.tick_params(labelsize=7)
        axes[0, column].set_title(f"Fig. {number}", fontsize=8)
    for ax, unit in zip(axes[:, 0], WHOLE, strict=True):
        ax.set_ylabel(f"open {unit} (%)", fontsize=7)
    fig.supxlabel("share of the training done (%)", fontsize=7)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=7, frameon=False)
    return fig


def ends(rows: pd.DataFrame, shown: dict[str, str]) -> Figure:
    """``calibrate.ends_by_block``: heads above and neurons below that are left of each block, a column per figure of
    the paper; ``shown``: readings and their names."""
    fig, axes = wide(3.0, 2, 5, sharex=True, sharey="row")
    looks = [("black", "-", 1.8), (Ink.RED, "-", 1.1), (Ink.GREEN, "-.", 1.1), (Ink.BLUE, "--", 1.1)]
    for column, number in enumerate(sorted(rows["figure"].unique())):
        for ax, (unit, whole) in zip(axes[:, column], WHOLE.items(), strict=True):
            for (network, name), (colour, dash, width) in zip(
                {"paper": "paper, last epoch", **shown}.items(), looks, strict=False
            ):
                own = rows[(rows["network"] == network) & (rows["figure"] == number)]
                ax.step(own["block"], own[unit], where="mid", color=colour, linestyle=dash, linewidth=width, label=name)
            ax.set_ylim(-0.04 * whole / DEIT_SMALL.depth, 1.04 * whole / DEIT_SMALL.depth)
            ax.grid(True, axis="y")
        axes[0, column].set_title(f"Fig. {number}")
    axes[0, 0].set_ylabel("heads left")
    axes[1, 0].set_ylabel("neurons left")
    fig.supxlabel("block", fontsize=STYLE["axes.labelsize"])
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return fig


# Expected and hardened MACs


def hardening(curves: pd.DataFrame, paths: dict[str, pd.DataFrame]) -> Figure:
    """Left, ``theory.gaps``: by how much the hardened cost of a unit exceeds the expected one. Right: the same for
    whole networks over training, one thin line per run of each ``macs_trajectory`` in ``paths``."""
    fig, (left, right) = wide(2.4, 1, 2)
    for (gates, name), colour, dash in zip(
        {1: "one gate", 2: r"macro $\times$ micro"}.items(), (Ink.BLUE, Ink.RED), DASHES, strict=False
    ):
        group = curves[curves["gates"] == gates]
        for above, side in group.groupby(group["logit"] > 0, sort=False):
            left.plot(side["logit"], side["gap"], color=colour, linestyle=dash, label=name if above else None)
    for (name, runs), colour, dash in zip(paths.items(), (Ink.RED, Ink.BLUE), DASHES, strict=False):
        style: dict[str, Any] = {"color": colour, "linestyle": dash}
        for _, run in runs.groupby("run_id", sort=False):
            right.plot(run["epoch"], 100 * (run["hardened"] - run["expected"]), linewidth=0.6, alpha=0.55, **style)
        right.plot([], [], label=f"{name}, n = {runs['run_id'].nunique()} runs", **style)
    left.set(xlabel=r"logit $\alpha$ of every gate", ylabel="hardened - expected (units)")
    right.set(xlabel="epoch", ylabel="hardened - expected (% of dense)")
    for ax, place in ((left, "lower right"), (right, "upper right")):
        ax.axhline(0, color="black", linewidth=0.5)
        ax.grid(True)
        ax.legend(loc=place, handlelength=1.8)
    return fig


def budget_paths(paths: pd.DataFrame, ends: pd.DataFrame, labels: list[str]) -> Figure:
    """Expected MACs (solid) and what the threshold of 1/2 would leave (dashed) over training, one colour per label, all
    seeds; dotted: the target, diamonds: the extracted network. ``paths``: a ``macs_trajectory``, ``ends``: the runs."""
    fig, ax = narrow(2.5)
    for colour, label in zip((Ink.BLUE, Ink.RED, Ink.GREEN), labels, strict=False):
        for _, run in paths[paths["label"] == label].groupby("run_id", sort=False):
            ax.plot(run["epoch"], 100 * run["expected"], color=colour)
            ax.plot(run["epoch"], 100 * run["hardened"], color=colour, linestyle="--")
        final, last = ends[ends["label"] == label], paths["epoch"].max() + 0.3
        ax.axhline(100 * final["target"].iloc[0], color=colour, linestyle=":", linewidth=0.7)
        ax.plot([last] * len(final), 100 * final["macs_share"], "D", color=colour, markersize=3)
    n = count(ends[ends["label"].isin(labels)].groupby("label").size())
    ax.set(xlabel="epoch", ylabel=f"MACs, % of dense (n = {n} seeds)", ylim=(0, 103))
    kinds = {"-": "expected", "--": "by the threshold ½", ":": "target"}
    marks = [entry("black", linestyle=dash, label=name) for dash, name in kinds.items()]
    fig.legend(
        handles=[*marks, entry("black", "D", markersize=3, label="extracted")], loc="outside upper center", ncols=2
    )
    return fig


def misses(aimed: pd.DataFrame, ruled: pd.DataFrame) -> Figure:
    """Where runs end, in per cent of dense: with a target, extracted minus target (``aimed``: ``target``,
    ``macs_share``); by the paper's rule, extracted minus expected MACs (``ruled``: ``expected``, ``macs_share``)."""
    fig, ax = narrow(2.3)
    ax.axhline(0, **DASHED)
    for rows, wanted, marker, colour, name in (
        (ruled, "expected", "s", Ink.BLUE, "threshold ½: extracted - expected"),
        (aimed, "target", "o", Ink.RED, "with a target: extracted - target"),
    ):
        miss = 100 * (rows["macs_share"] - rows[wanted])
        label = f"{name}, n = {len(rows)} runs"
        ax.plot(100 * rows[wanted], miss, marker, color=colour, markersize=3.5, label=label)
    ax.set(xlabel="expected, or target (% of the dense MACs)", ylabel="miss (% of the dense MACs)")
    ax.grid(True)
    fig.legend(loc="outside upper center")
    return fig


styled(globals())
