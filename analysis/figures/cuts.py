"""Rankings right after their cut: accuracy against what is left, and against what it cost to get there."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.style import DASHED, Look, entry, look, styled, wide

LOOKS = {
    "obs_qk": Look("#004D4D", "*"),
    "obs": look("obs"),
    "taylor": look("taylor"),
    "group_taylor": look("peer"),
    "uniform": look("uniform"),
    "l1": look("l1"),
    "random": look("random"),
}


ENOUGH = 3  # networks for an interval: of two it says nothing
PANELS = ((True, "with least squares"), (False, "the cut alone"))


def by_share(found: pd.DataFrame, dense: float) -> Figure:
    """``cuts.accuracies``: top-1 against the share of the MACs, on the left corrected by least squares, on the right
    the cut alone where there is one, with intervals of 95 % of three networks or more; dashed: the dense network."""
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
        ax.set_title(words)
        ax.set_xlabel("MACs left, % of dense")
    axes[0, 0].set_ylabel("top-1 (%)")
    shown = [name for name in LOOKS if name in set(found["ranking"])]
    titles = found.drop_duplicates("ranking").set_index("ranking")["title"]
    marks = [entry(LOOKS[name].colour, LOOKS[name].marker, linestyle="-", markersize=3.5) for name in shown]
    marks.append(entry("black", linestyle="--"))
    fig.legend(marks, [*(titles[name] for name in shown), "dense"], loc="outside right center", frameon=False)
    return fig


styled(globals())
