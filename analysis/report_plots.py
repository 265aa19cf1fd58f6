"""Figs. 4 to 9 in forms that show more than the paper's own, and the study and its bill in one picture each; style and
``save`` are those of ``analysis.plots``."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import collect, findings
from analysis.paper_plots import DASHES, RATIOS
from analysis.plots import COLUMN, GREY, PAGE, look
from analysis.study_plots import span, write_below

# Ratio of Fig. 4 at the strengths of each of Figs. 5-9.
FIGURE_RATIOS = dict(zip(findings.FIGURES, ("2:1", "5:1", "1.5:1", "macro-only", "micro-only"), strict=True))


def reach_data() -> pd.DataFrame:
    """Fig. 4's points (``kind`` 'point') and the most that the last states of Figs. 5-9 can cost ('at most'), by
    ``series`` (ratio), in G (``x``)."""
    points = collect.published("fig4_penalty_ratios").rename(columns={"ratio": "series", "gflops": "x"})
    sizes = findings.final_sizes()
    ends = {"series": sizes["figure"].map(FIGURE_RATIOS), "x": sizes["macs"] / 1e9, "figure": sizes["figure"]}
    return pd.concat([points.assign(kind="point"), pd.DataFrame(ends).assign(kind="at most")], ignore_index=True)


def reach(rows: pd.DataFrame) -> Figure:
    """Finding 6: ``reach_data``, one line per ratio. The digitised run can be a point on or left of its bar's end."""
    fig = Figure(figsize=(COLUMN, 2.0), layout="constrained")
    ax = fig.add_subplot()
    for place, (name, style) in enumerate(RATIOS.items()):
        mine = rows[rows["series"] == name]
        end = mine[mine["kind"] == "at most"].iloc[0]
        ax.barh(place, end["x"] - 1, left=1, height=0.5, color=style.colour, alpha=0.25, linewidth=0)
        ax.text(1.03, place, f"Fig. {end['figure']:.0f}", va="center", fontsize=6)
        points = mine.loc[mine["kind"] == "point", "x"]
        ax.plot(points, [place] * len(points), style.marker, color=style.colour, mec="white", mew=0.4)
    ax.set_yticks(range(len(RATIOS)), list(RATIOS))
    ax.invert_yaxis()
    ax.set_xlim(1, 4)
    ax.set_xlabel("GMACs")
    ax.grid(True, axis="x")
    marks = [
        Line2D([], [], color=GREY, marker="o", linestyle="", label="points of Fig. 4"),
        Line2D([], [], color=GREY, alpha=0.4, linewidth=5, label="last state of Figs. 5 to 9, at most"),
    ]
    fig.legend(handles=marks, loc="outside upper center", ncols=2, columnspacing=1.2)
    return fig


def ahead(rows: pd.DataFrame) -> Figure:
    """Finding 9: ``findings_runs.against_two_to_one``, points of top-1 above the 2:1 line, with the reading's error; a
    tick shows the same against a monotone curve."""
    fig = Figure(figsize=(COLUMN, 2.0), layout="constrained")
    ax = fig.add_subplot()
    ax.axhline(0, color=RATIOS["2:1"].colour, linewidth=0.9)
    for name, group in rows.groupby("ratio", sort=False):
        style = RATIOS[str(name)]
        marks = {"color": style.colour, "markersize": 4.5, "elinewidth": 0.8}
        ax.errorbar(group["gflops"], group["ahead"], yerr=0.1, fmt=style.marker, label=name, **marks)  # type: ignore[arg-type]
        ax.plot(group["gflops"], group["ahead_smooth"], "_", color=style.colour, markersize=9)
    ax.set_xlabel("GFLOPs, as printed")
    ax.set_ylabel("top-1 above the 2:1 line (points)")
    ax.grid(True)
    fig.legend(loc="outside upper center", ncols=4, columnspacing=1.0, handletextpad=0.3)
    return fig


def gate_totals_data() -> pd.DataFrame:
    """Heads and neurons of the whole network over the epochs of Figs. 5-9: ``figure``, ``epoch``, ``heads``,
    ``neurons``."""
    frames = [collect.published_heatmap(f).groupby("epoch")[["heads", "neurons"]].sum() for f in findings.FIGURES]
    return pd.concat(dict(zip(findings.FIGURES, frames, strict=True)), names=["figure"]).reset_index()


def gate_totals(rows: pd.DataFrame) -> Figure:
    """``gate_totals_data`` in one picture, per cent of the dense network's units."""
    fig = Figure(figsize=(PAGE, 2.0), layout="constrained")
    axes = fig.subplots(1, 2, sharey=True)
    for ax, (unit, whole) in zip(axes, findings.WHOLE.items(), strict=True):
        for dash, (figure, name) in zip((*DASHES, (0, (1, 3))), FIGURE_RATIOS.items(), strict=True):
            run = rows[rows["figure"] == figure]
            label = f"Fig. {figure} ({name})"
            ax.plot(run["epoch"], 100 * run[unit] / whole, linestyle=dash, color=RATIOS[name].colour, label=label)
        ax.set_xlabel("epoch")
        ax.set_title(f"{unit}, of {whole:,}")
        ax.grid(True, axis="y")
        ax.set_ylim(0, 103)
    axes[0].set_ylabel("open, % of dense")
    handles, _ = axes[0].get_legend_handles_labels()
    fig.legend(handles=handles, loc="outside right center")
    return fig


def speed_limit_data(totals: pd.DataFrame, first: pd.DataFrame) -> pd.DataFrame:
    """What ``speed_limit`` shows, as one frame."""
    return pd.concat([totals.assign(panel="Figs. 5-9"), first.assign(panel="first reach")], ignore_index=True)


RATE_LOOKS = (("o", "#000000"), ("s", "#0072B2"), ("^", "#D55E00"))  # of ``speed_limit.RATES``


def speed_limit(totals: pd.DataFrame, first: pd.DataFrame) -> Figure:
    """Finding 14: above, the heads and neurons of Figs. 5-9 (``gate_totals_data``); below, after how many epochs a gate
    can be closed at the earliest (``speed_limit.first_reach``), by its start and rate."""
    fig = Figure(figsize=(COLUMN, 4.4), layout="constrained")
    axes = fig.subplots(3, 1, sharex=True, height_ratios=(1, 1, 1.7))
    _open_units(axes, totals)
    ax, starts = axes[2], sorted(first["start"].unique())
    for shift, (_, group), (marker, colour) in zip((-0.27, 0, 0.27), first.groupby("rate"), RATE_LOOKS, strict=True):
        for row in group.to_dict("records"):
            place = starts.index(row["start"]) + shift
            ax.plot([row["full"], row["scheduled"]], [place, place], color=colour, linewidth=0.8, zorder=1)
            ax.plot(row["scheduled"], place, marker, color=colour, mfc="white", markersize=4)
            ax.plot(row["full"], place, marker, color=colour, markersize=4)
    ax.set_yticks(range(len(starts)), [f"{start:g}" for start in starts])
    ax.set_ylim(-0.6, len(starts) - 0.4)
    ax.set_ylabel(r"start $\alpha_0$")
    ax.set_title("a gate can first be closed, by a steady gradient", loc="left")
    ax.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
    ax.set_xlabel("epochs trained (logarithmic)")
    for axis in axes:
        axis.grid(True, axis="x")
    handles = [
        Line2D([], [], marker=marker, color=colour, linestyle="", markersize=4, label=f"rate {_power(rate)}")
        for rate, (marker, colour) in zip(sorted(first["rate"].unique()), RATE_LOOKS, strict=True)
    ]
    for face, name in ((GREY, "full rate at every step"), ("white", "warm-up and cosine")):
        handles.append(Line2D([], [], marker="o", color=GREY, mfc=face, linestyle="", markersize=4, label=name))
    ax.legend(handles=handles, loc="lower right", handlelength=1.2, borderaxespad=0.1)
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, columnspacing=1.0)
    return fig


def _open_units(axes: Sequence[Axes], totals: pd.DataFrame) -> None:
    """Open heads and neurons of Figs. 5-9 after each epoch, from 1, the first one marked."""
    for ax, (unit, whole) in zip(axes, findings.WHOLE.items(), strict=False):
        for dash, (figure, name) in zip((*DASHES, (0, (1, 3))), FIGURE_RATIOS.items(), strict=True):
            run, style = totals[totals["figure"] == figure], RATIOS[name]
            share = 100 * run[unit].to_numpy() / whole
            ax.plot(run["epoch"] + 1, share, linestyle=dash, color=style.colour)
            ax.plot(1, share[0], style.marker, color=style.colour, markersize=4)
            ax.plot([], [], style.marker, linestyle=dash, color=style.colour, markersize=4, label=f"Fig. {figure}")
        ax.set_xscale("log")
        ax.set_xlim(0.88, 52)
        ax.set_ylim(0, 103)
        ax.set_ylabel("open, %")
        ax.set_title(f"{unit} of the paper's Figs. 5 to 9, of {whole:,}", loc="left")
        ax.minorticks_off()


def _power(rate: float) -> str:
    """1e-05 as TeX."""
    digits, _, power = f"{rate:.0e}".partition("e")
    return rf"${digits} \cdot 10^{{{int(power)}}}$"


def study_pareto(rows: pd.DataFrame) -> Figure:
    """Top-1 against MACs of the rows of ``stats.study``, a line per variant; hollow: pruned in rounds. Broken
    lines: networks from which nothing was removed. What lies below ``span`` is written at the edge."""
    fig = Figure(figsize=(PAGE, 2.9), layout="constrained")
    ax = fig.add_subplot()
    aimed, handles = rows.dropna(subset="target"), []
    for title, group in aimed.groupby("title", sort=False):
        group, style = group.sort_values("macs"), look(group["method"].iloc[0])
        face = "white" if "round" in group["variant"].iloc[0] else style.colour
        x, thick = 100 - group["reduction"], 1.6 if group["variant"].iloc[0] == "hiap" else 0.6
        bars = [group["top1"] - group["low"], group["high"] - group["top1"]]
        ax.errorbar(x, group["top1"], yerr=bars, color=style.colour, linewidth=thick, elinewidth=0.5, zorder=2)
        ax.plot(x, group["top1"], style.marker, color=style.colour, mfc=face, markersize=4, zorder=3)
        handles.append(Line2D([], [], color=style.colour, marker=style.marker, mfc=face, markersize=4, label=title))
    for dash, row in zip(DASHES, rows[rows["variant"].str.startswith("dense")].to_dict("records"), strict=False):
        ax.axhline(row["top1"], color="black", linewidth=0.7, linestyle=dash, zorder=1)
        handles.append(Line2D([], [], color="black", linewidth=0.7, linestyle=dash, label=row["title"]))
    ends = span(rows)
    for row in aimed[aimed["top1"] < ends[0]].to_dict("records"):
        write_below(ax, row, 100 - row["reduction"])
    ax.set_ylim(ends)
    ax.set_xlabel("MACs of the extracted network (% of dense)")
    ax.set_ylabel(f"top-1 on {rows['data'].iloc[0]} (%), n = {rows['n'].max():.0f} seeds")
    ax.grid(True)
    fig.legend(handles=handles, loc="outside right center")
    return fig


def bill(rows: pd.DataFrame) -> Figure:
    """What one network of each variant took to train (``bills.totals``), the teacher's training hatched, one
    panel per target."""
    rows = rows.dropna(subset="target")
    targets = sorted(rows["target"].unique(), reverse=True)
    variants = list(dict.fromkeys(rows.sort_values("train_macs")["title"]))
    fig = Figure(figsize=(PAGE, 0.7 + 0.15 * len(variants)), layout="constrained")
    place = {title: i for i, title in enumerate(variants)}
    axes = fig.subplots(1, max(1, len(targets)), sharey=True, sharex=True, squeeze=False)[0]
    for ax, target in zip(axes, targets, strict=False):
        for row in rows[rows["target"] == target].to_dict("records"):
            style, start = look(row["method"]), row["start_train_macs"] / 1e12
            ax.barh(place[row["title"]], start, color="#e5e5e5", edgecolor=GREY, hatch="////", linewidth=0.3)
            ax.barh(place[row["title"]], row["train_macs"] / 1e12, left=start, color=style.colour)
        ax.set_title(f"{100 * target:.0f} % of the MACs")
        ax.grid(True, axis="x")
        ax.set_xlabel("TMACs of training")
    axes[0].set_yticks(range(len(variants)), variants)
    axes[0].invert_yaxis()
    return fig
