"""Rankings right after their cut: accuracy against what is left, and against what it cost to get there; and after
training."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.style import DASHED, Look, entry, look, narrow, styled, wide
from analysis.records import names

LOOKS = {
    "obs_qk": Look("#004D4D", "*"),
    "obs_qk_16": Look("#4D8080", "s"),
    "obs": look("obs"),
    "taylor": look("taylor"),
    "group_taylor": look("peer"),
    "uniform": look("uniform"),
    "l1": look("l1"),
    "random": look("random"),
    "amp": look("amp"),
    "snapvit": look("snapvit"),
    "obs_labels": Look("#7FD1D1", "p"),
    "hiap": look("hiap"),
    "vit_slim": look("vit_slim"),
}


RULE = Look("#000000", "o")  # the paper's, its strengths scanned
ENOUGH = 3  # networks for an interval: of two it says nothing
LINE = 3  # budgets that make a line
PANELS = ((True, "with least squares"), (False, "the cut alone"))


def by_share(found: pd.DataFrame, dense: float, data: str = "") -> Figure:
    """``cuts.accuracies``: top-1 against the share of the MACs, on the left corrected by least squares, on the right
    the cut alone where there is one, with intervals of 95 % of three networks or more; dashed: the dense network;
    ``data`` above the legend. A ranking of fewer budgets than ``LINE``, which others have, is in the table alone."""
    counts = found.groupby("ranking")["target"].nunique()
    found = found[found["ranking"].isin(counts.index[counts >= min(LINE, counts.max())])]
    panels = [panel for panel in PANELS if (found["corrected"] == panel[0]).any()]
    fig, axes = wide(2.4, 1, len(panels), sharey=True, squeeze=False)
    for ax, (corrected, words) in zip(axes[0], panels, strict=True):
        rows = found[found["corrected"] == corrected]
        for ranking, mark in LOOKS.items():
            own = rows[rows["ranking"] == ranking].sort_values("target")
            ax.plot(100 * own["target"], own["top1"], color=mark.colour, marker=mark.marker, markersize=3.5)
            sure = own[own["n"] >= ENOUGH]
            ax.vlines(100 * sure["target"], sure["low"], sure["high"], color=mark.colour, linewidth=0.8)
        ax.axhline(dense, **DASHED)
        ax.set_title(f"{words}, n = {names.count(rows['n'])}")
        ax.set_xlabel("MACs left, % of dense")
    axes[0, 0].set_ylabel("top-1 (%)")
    fig.legend(*_legend(found, linestyle="-"), loc="outside right center", frameon=False, title=data or None)
    return fig


def by_seconds(found: pd.DataFrame, dense: float) -> Figure:
    """``cuts.seconds``: top-1 against the seconds of pruning, a panel per budget; the line from the least to the most
    of its networks; dashed: the dense network."""
    targets = sorted(found["target"].unique(), reverse=True)
    fig, axes = wide(2.2, 1, len(targets), sharey=True, sharex=True, squeeze=False)
    for ax, target in zip(axes[0], targets, strict=True):
        rows = found[found["target"] == target].set_index("ranking")
        for ranking, mark in LOOKS.items():
            if ranking in rows.index:
                own = rows.loc[ranking]
                ax.hlines(own["top1"], own["least"], own["most"], color=mark.colour, linewidth=0.8)
                ax.plot(own["seconds"], own["top1"], color=mark.colour, marker=mark.marker, markersize=4.5)
        ax.axhline(dense, **DASHED)
        ax.set_xlim(0, 1.1 * found["most"].max())
        ax.set_title(f"{100 * target:.0f} % of the MACs")
        ax.set_xlabel("seconds of pruning, one core")
    axes[0, 0].set_ylabel("top-1 (%)")
    fig.legend(*_legend(found, linestyle=""), loc="outside right center", frameon=False)
    return fig


def by_training(found: pd.DataFrame, dense: float) -> Figure:
    """``epochs.accuracies``: top-1 against what training took, from none on, with intervals of 95 % of three networks
    or more; dashed: the dense network."""
    fig, ax = narrow(2.6)
    for ranking, mark in LOOKS.items():
        own = found[found["ranking"] == ranking].sort_values("train_macs")
        ax.plot(own["train_macs"] / 1e12, own["top1"], color=mark.colour, marker=mark.marker, markersize=4)
        sure = own[own["n"] >= ENOUGH]
        ax.vlines(sure["train_macs"] / 1e12, sure["low"], sure["high"], color=mark.colour, linewidth=0.8)
    ax.axhline(dense, **DASHED)
    ax.set_title(f"{100 * found['target'].max():.0f} % of the MACs, n = {found['n'].max()} networks")
    ax.set_xlim(left=0)
    ax.set_xlabel("training, search and teacher, TMACs")
    ax.set_ylabel("top-1 (%)")
    fig.legend(*_legend(found, linestyle="-"), loc="outside upper left", frameon=False)
    return fig


def by_budget(found: pd.DataFrame, dense: float, data: str = "") -> Figure:
    """``frontier.by_budget``: top-1 against the share of the MACs with intervals of 95 %, trained filled, without
    training open, HiAP with least squares behind its cut dashed; dashed and level: the dense network; ``data`` above
    the legend. Methods stand side by side at each budget, else their intervals would hide each other."""
    fig, ax = wide(2.4)
    handles, lines = [], found.groupby(["ranking", "epochs"], sort=False)
    for place, ((ranking, epochs), own) in enumerate(lines):
        name, _, form = str(ranking).partition("-")
        mark, trained = LOOKS[name], float(str(epochs)) > 0
        style: dict[str, Any] = {"marker": mark.marker, "linestyle": "--" if form else "-", "markersize": 4}
        style |= {"markerfacecolor": mark.colour if trained else "white", "linewidth": 1.0 if trained else 0.6}
        own = own.sort_values("target")
        x = 100 * own["target"] + 0.4 * (place - (len(lines) - 1) / 2)
        ax.plot(x, own["top1"], color=mark.colour, **style)
        sure = own["n"] >= ENOUGH
        ax.vlines(x[sure], own.loc[sure, "low"], own.loc[sure, "high"], color=mark.colour, linewidth=0.7)
        title = own["title"].iloc[0] + ("" if trained else ", untrained")
        handles.append((entry(mark.colour, **style), f"{title}, n = {names.count(own['n'])}"))
    ax.axhline(dense, **DASHED)
    ax.set_xlabel("MACs left, % of dense")
    ax.set_ylabel("top-1 (%)")
    marks, titles = [one[0] for one in handles], [one[1] for one in handles]
    _beside(fig, marks, titles, data)
    return fig


def by_rule(found: pd.DataFrame, dense: float, data: str = "") -> Figure:
    """``scan.beside``: top-1 against the share of the MACs, the paper's rule as a line through its strengths (the
    factor beside each), cuts without training thin and open, what was trained filled; dashed: the dense network;
    ``data`` above the legend."""
    fig, ax = wide(2.4)
    handles = []
    for (ranking, epochs), own in found.groupby(["ranking", "epochs"]):
        mark = {"rule": RULE, **LOOKS}[str(ranking)]
        trained = float(str(epochs)) > 0
        style: dict[str, Any] = {"linestyle": "-", "linewidth": 1.3 if ranking == "rule" else 0.7}
        style |= {"markerfacecolor": mark.colour if trained else "white", "markersize": 4.5 if trained else 3.5}
        for _, one in own.groupby("seed"):
            above = 2 + (ranking == "hiap")  # the one that the rule is compared with is never hidden
            ax.plot(100 * one["macs_share"], one["top1"], color=mark.colour, marker=mark.marker, zorder=above, **style)
        title = own["title"].iloc[0] + (f", {epochs} epochs" if trained else ", untrained")
        handles.append((trained, ranking != "rule", title, entry(mark.colour, mark.marker, **style)))
    rule = found[found["ranking"] == "rule"]
    for row in rule.to_dict("records"):
        place = {"xytext": (3, -8), "textcoords": "offset points", "fontsize": 6, "annotation_clip": False}
        ax.annotate(rf"$\times${row['factor']:g}", (100 * row["macs_share"], row["top1"]), **place)
    ax.axhline(dense, **DASHED)
    ax.set_xlabel("MACs left, % of dense")
    ax.set_ylabel("top-1 (%)")
    networks = "one network" if found["seed"].nunique() == 1 else f"n = {found['seed'].nunique()} networks"
    ax.margins(y=0.1)
    ax.set_title(rf"{networks}; $\times$: multiples of Fig. 5's strengths")
    handles.sort(key=lambda one: (not one[0], one[1], one[2]))
    marks, titles = [one[3] for one in handles], [one[2] for one in handles]
    _beside(fig, marks, titles, data)
    return fig


def _legend(found: pd.DataFrame, linestyle: str) -> tuple[list[Any], list[str]]:
    shown = [name for name in LOOKS if name in set(found["ranking"])]
    titles = found.drop_duplicates("ranking").set_index("ranking")["title"]
    marks = [entry(LOOKS[name].colour, LOOKS[name].marker, linestyle=linestyle, markersize=3.5) for name in shown]
    return [*marks, entry("black", linestyle="--")], [*(titles[name] for name in shown), "dense"]


def _beside(fig: Figure, marks: list[Any], titles: list[str], data: str) -> None:
    """A legend at the right of a picture, the dense network's line last, ``data`` above it."""
    marks, titles = [*marks, entry("black", linestyle="--")], [*titles, "dense"]
    fig.legend(marks, titles, loc="outside right center", title=data or None)


styled(globals())
