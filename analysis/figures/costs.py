"""Costs: what a unit is worth, what networks can cost, what training took, what the clock says."""

from __future__ import annotations

import textwrap
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Polygon, Rectangle

from analysis.figures.style import DASHED, DASHES, EDGED, LOOKS, RATIOS, Ink, Look, entry, look, narrow, styled, wide
from analysis.findings.costs import DEIT_SMALL
from analysis.findings.table2 import CUTS, Described, width
from analysis.records import names
from analysis.records.names import RUNTIMES

UNITS = {"head": "head", "value_dim": "value dimension", "neuron": "FFN neuron"}
COLOURS = {"head": Ink.BLUE, "value_dim": Ink.ORANGE, "neuron": "#999999"}
ON = {"head": "white", "value_dim": "black", "neuron": "black"}  # text upon these
LEDGERS = ("Eq. 5", "true")
INHERITED: dict[str, Any] = {"facecolor": "#e5e5e5", "edgecolor": Ink.GREY, "hatch": "////"}


def prices(rows: pd.DataFrame) -> Figure:
    """By Eq. 5 (FLOPs halved to MACs) and in truth: what one unit is credited with (left), and to which units the cost
    of a block is billed (right). ``rows``: ``costs.price_list``."""
    fig, (left, right) = wide(1.9, 1, 2, width_ratios=[1, 1.25])
    paper, true = (rows[rows["ledger"] == name].set_index("unit") for name in LEDGERS)
    for place, unit in enumerate(UNITS):
        one, other = paper["macs"][unit], true["macs"][unit]
        share = 100 * one / other
        left.barh(place, share, height=0.6, color=COLOURS[unit])
        left.text(share, place, f" {share:.0f} %", va="center")
        left.text(3, place, f"{one:,} : {other:,}", va="center", fontsize=5.5, color=ON[unit])
    left.axvline(100, **DASHED)
    left.set_yticks(range(len(UNITS)), [f"one {name}" for name in UNITS.values()])
    for place, ledger in enumerate((paper, true)):
        start = 0.0
        for unit in UNITS:
            value = ledger["macs_per_block"][unit] / 1e6
            right.barh(place, value, left=start, height=0.6, color=COLOURS[unit], edgecolor="white")
            right.text(start + value / 2, place, f"{value:.1f}", ha="center", va="center", color=ON[unit])
            start += value
        right.text(start, place, f" {start:.1f}", va="center")
    right.set_yticks(range(2), LEDGERS)
    for ax, margin in ((left, 0.15), (right, 0.12)):
        ax.invert_yaxis()
        ax.margins(x=margin)
    left.set_xlabel("Price in Eq. 5, % of the saved MACs")
    right.set_xlabel("MMACs of one block, by what they are billed to")
    handles = [Patch(color=COLOURS[unit], label=f"{name}s") for unit, name in UNITS.items()]
    right.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return fig


def conventions(counts: pd.DataFrame, printed: float) -> Figure:
    """One network counted in several ways (columns ``counted``, ``macs``) against the number that was printed."""
    fig, ax = narrow(0.75 + 0.22 * len(counts))
    ax.axvline(printed / 1e6, color=Ink.RED, linewidth=0.9)
    ax.scatter(counts["macs"] / 1e6, counts["counted"], color="black", s=14, zorder=3)
    for row, macs in enumerate(counts["macs"]):
        ax.text(1.02, row, f"{macs / 1e6:.2f}", va="center", transform=ax.get_yaxis_transform())
    ax.invert_yaxis()
    ax.margins(0.08, 0.15)
    ax.grid(True, axis="y")
    ax.set_xlabel("MMACs per image")
    line = entry(Ink.RED, linestyle="-", label=f"printed in Table 3: {printed / 1e6:.1f}")
    fig.legend(handles=[line], loc="outside upper right")
    return fig


def feasible(corners: dict[str, pd.DataFrame], ends: pd.DataFrame, text: Described) -> Figure:
    """Parallelograms of ``table2.feasible_region`` by name, what the text describes (boxes, for both readings of A4),
    and the last states of Figs. 5-9 (``heat_maps.final_widths``) with all value dimensions kept, so that they lie there
    or to the left."""
    fig, ax = narrow(2.9)
    for (name, region), colour in zip(corners.items(), (Ink.RED, Ink.BLUE), strict=True):
        ax.add_patch(Polygon(region[["width", "neurons"]].to_numpy(), facecolor=colour, label=name))
    low, high = text.neurons
    for (label, cut), colour, dash in zip(CUTS.items(), (Ink.GREEN, Ink.ORANGE), DASHES, strict=False):
        first, last = (width(heads, text.value_dims, cut) for heads in text.heads)
        style: dict[str, Any] = {"facecolor": (colour, 0.15), "edgecolor": colour, "linestyle": dash}
        ax.add_patch(Rectangle((first, low), last - first, high - low, label=f"text, {label}", **style))
    ax.plot(ends["width"], ends["neurons"], "k.", markersize=5, label="ends of Figs. 5 to 9, at most")
    for row in ends.to_dict("records"):
        place = (row["width"], row["neurons"])
        ax.annotate(f"Fig. {row['figure']} ", place, (-2, 0), textcoords="offset points", ha="right", va="top", size=6)
    ax.axhline(DEIT_SMALL.hidden, color="black", linewidth=0.6, linestyle=":")
    ax.text(398, DEIT_SMALL.hidden + 8, "dense", ha="right", fontsize=6)
    ax.set(xlim=(0, 400), ylim=(500, 1600), xlabel="attention dims per block (mean of Q/K and V)")
    ax.set_ylabel("neurons per live FFN")
    fig.legend(loc="outside upper center", ncols=2, columnspacing=1.0, handletextpad=0.5)
    return fig


def reach(rows: pd.DataFrame) -> Figure:
    """Finding 6: ``heat_maps.reach``, a line per ratio. The digitised run can be a point up to its bar's end."""
    fig, ax = narrow(2.0)
    for place, (name, (colour, marker)) in enumerate(RATIOS.items()):
        mine = rows[rows["series"] == name]
        end, points = mine[mine["kind"] == "at most"].iloc[0], mine.loc[mine["kind"] == "point", "x"]
        ax.barh(place, end["x"] - 1, left=1, height=0.5, color=colour, alpha=0.25, linewidth=0)
        ax.text(1.03, place, f"Fig. {end['figure']:.0f}", va="center", fontsize=6)
        ax.plot(points, [place] * len(points), marker, color=colour, **EDGED)
    ax.set_yticks(range(len(RATIOS)), list(RATIOS))
    ax.invert_yaxis()
    ax.set(xlim=(1, 4), xlabel="GMACs")
    ax.grid(True, axis="x")
    most = entry(Ink.GREY, linestyle="-", alpha=0.4, linewidth=5, label="last state of Figs. 5 to 9, at most")
    marks = [entry(Ink.GREY, "o", label="points of Fig. 4"), most]
    fig.legend(handles=marks, loc="outside upper center", ncols=2, columnspacing=1.2)
    return fig


def training_per_target(rows: pd.DataFrame) -> Figure:
    """What one network of each variant took to train (``training.totals``), a panel per target."""
    rows = rows.dropna(subset="target")
    targets = sorted(rows["target"].unique(), reverse=True)
    variants = list(dict.fromkeys(rows.sort_values("train_macs")["title"]))
    size = 0.9 + 0.15 * len(variants)
    fig, axes = wide(size, 1, max(1, len(targets)), sharey=True, sharex=True, squeeze=False)
    for ax, target in zip(axes[0], targets, strict=False):
        for row in rows[rows["target"] == target].to_dict("records"):
            place, start = variants.index(row["title"]), row["start_train_macs"] / 1e12
            ax.barh(place, start, **INHERITED, linewidth=0.3)
            ax.barh(place, row["train_macs"] / 1e12, left=start, color=look(row["method"]).colour)
        ax.set(title=f"{100 * target:.0f} % of the MACs", xlabel="TMACs of training")
        ax.grid(True, axis="x")
    axes[0, 0].set_yticks(range(len(variants)), variants)
    axes[0, 0].invert_yaxis()
    kinds = [Patch(**INHERITED, linewidth=0.3, label="the dense network that it starts from")]
    kinds.append(Patch(color=Ink.GREY, label="the method itself"))
    fig.legend(handles=kinds, loc="outside upper center", ncols=2)
    return fig


def speed(rows: pd.DataFrame) -> Figure:
    """Which share of the removed MACs is time saved (1: all), one mark per extracted network of ``bench.load`` with the
    quartiles of its rounds, against what was removed; a panel per CPU, precision and batch, a series per kind of
    network and layout."""
    rows = rows[rows["cut"] > 0]
    places = list(dict.fromkeys(rows.sort_values(["precision", "batch"], ascending=False)["place"]))
    fig, axes = wide(2.3, 1, len(places), sharey=True, sharex=True, squeeze=False)
    looks = dict(zip(dict.fromkeys(rows["kind"]), list(LOOKS.values())[1:], strict=False))
    for (place, kind), group in rows.groupby(["place", "kind"], sort=False):
        ax, style, cut = axes[0, places.index(place)], looks[kind], group["cut"]
        ends = [(1 - group[ratio]) / cut for ratio in ("ratio_high", "ratio_low")]
        errors = [group["share"] - ends[0], ends[1] - group["share"]]
        marks = {"fmt": style.marker, "color": style.colour, "markersize": 3.5, "elinewidth": 0.7, **EDGED}
        ax.errorbar(100 * cut, group["share"], yerr=errors, label=kind, **marks)
    for ax, place in zip(axes[0], places, strict=True):
        ax.axhline(1, **DASHED)
        ax.axhline(0.9, color=Ink.GREY, linewidth=0.7, linestyle=":")
        ax.set_title(place.replace(", ", "\n", 1), fontsize=6.5)
        ax.grid(True)
    axes[0, 0].set(ylabel="share of the removed MACs\nthat is time saved", ylim=(0, None))
    fig.supxlabel("MACs removed (%); dotted: 90 % of them", fontsize=7)
    handles = [entry(*style, markersize=3.5, label=kind) for kind, style in looks.items()]
    fig.legend(handles=handles, loc="outside upper center", ncols=3, handletextpad=0.2)
    return fig


def deploy(rows: pd.DataFrame) -> Figure:
    """Speed over the dense network's in fp32 in its fastest runtime: a line per runtime and precision, on it a mark per
    network of ``bench.deploy``, one below the other, a row of panels per report and one panel per batch size. Bars are
    the quartiles."""
    reports, batches, networks = (list(dict.fromkeys(rows[key])) for key in ("report", "batch", "network"))
    rows = rows.assign(line=rows["runtime"].replace(RUNTIMES) + " " + rows["precision"])
    of = {report: rows[rows["report"] == report] for report in reports}
    lines, beside = ({r: list(dict.fromkeys(of[r][key])) for r in reports} for key in ("line", "network"))
    heights = [0.4 + (0.1 + 0.04 * len(beside[report])) * len(lines[report]) for report in reports]
    shape = {"nrows": len(reports), "ncols": len(batches), "sharey": "row", "squeeze": False, "height_ratios": heights}
    fig, axes = wide(0.5 + sum(heights), **shape)
    for (report, batch, network), group in rows.groupby(["report", "batch", "network"], sort=False):
        ax, style = axes[reports.index(report), batches.index(batch)], _look_of(str(network), networks)
        here = beside[str(report)]
        lower = 0.8 * ((here.index(network) + 0.5) / len(here) - 0.5)
        places = [lines[str(report)].index(line) + lower for line in group["line"]]
        errors = [group["best"] - group["best_low"], group["best_high"] - group["best"]]
        size = 6 if style.marker == "*" else 3.5  # a star has little ink
        marks = {"fmt": style.marker, "color": style.colour, "markersize": size, "elinewidth": 0.5, **EDGED}
        ax.errorbar(group["best"], places, xerr=errors, label=names.network(str(network)), **marks)
        title = f"{group['subject'].iloc[0]}, batch {batch}"
        ax.set_title(textwrap.fill(title, 120 // len(batches)), fontsize=6.5)  # a processor's name may be long
    for ax in axes.flat:
        ax.axvline(1, **DASHED)
        ax.grid(True)
        ax.set_xlim(left=0)  # last: it ends autoscaling
    for report, row in zip(reports, axes, strict=True):
        row[0].set_yticks(range(len(lines[report])), lines[report])
        row[0].invert_yaxis()
    fig.supxlabel("times the dense network in fp32, in its fastest runtime", fontsize="medium")
    known: dict[Any, Any] = {}
    for ax in axes.flat:
        known |= dict(zip(*ax.get_legend_handles_labels()[::-1], strict=True))
    fig.legend(known.values(), known.keys(), loc="outside upper center", ncols=len(networks))
    return fig


def _look_of(network: str, networks: list[str]) -> Look:
    """That of the method it is named after, else one that no method has here."""
    free = [style for name, style in LOOKS.items() if name not in networks]
    return LOOKS.get(network) or free[networks.index(network)]


def merging(rows: pd.DataFrame) -> Figure:
    """Top-1 against speed over the dense network, a line per network of ``bench.deploy``'s reports that merge tokens
    and a panel per report; the numbers at the marks: pairs of tokens merged in a block. Bars are the quartiles."""
    reports, networks = (list(dict.fromkeys(rows[key])) for key in ("report", "network"))
    fig, axes = wide(2.2, 1, len(reports), squeeze=False)
    for (report, network), group in rows.sort_values("merged").groupby(["report", "network"], sort=False):
        ax, style = axes[0, reports.index(report)], _look_of(str(network), networks)
        errors = [group["best"] - group["best_low"], group["best_high"] - group["best"]]
        marks = {"marker": style.marker, "color": style.colour, "markersize": 4, "elinewidth": 0.5}
        marks |= {"label": names.network(str(network)), "linewidth": 0.8}
        ax.errorbar(group["best"], group["top1"], xerr=errors, **marks)
        for row in group.to_dict("records"):
            ax.annotate(
                f"{row['merged']:g}", (row["best"], row["top1"]), (3, 3), textcoords="offset points", fontsize=6
            )
        where = f"{RUNTIMES[row['runtime']]}, {row['precision']}, batch {row['batch']}"
        ax.set(title=f"{group['subject'].iloc[0]}; {where}", xlabel="times the dense network", ylabel="top-1 (%)")
        ax.grid(True)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(networks))
    return fig


styled(globals())
