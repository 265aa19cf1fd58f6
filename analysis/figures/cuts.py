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


def by_share(found: pd.DataFrame, dense: float) -> Figure:
    """``cuts.accuracies``: top-1 against the share of the MACs, on the left corrected by least squares, on the right
    the cut alone, with intervals of 95 % where there are several networks; dashed: the dense network."""
    fig, (left, right) = wide(2.6, 1, 2, sharey=True)
    for ax, corrected, words in ((left, True, "with least squares"), (right, False, "the cut alone")):
        rows = found[found["corrected"] == corrected]
        for ranking, mark in LOOKS.items():
            own = rows[rows["ranking"] == ranking].sort_values("target")
            ax.plot(100 * own["target"], own["top1"], color=mark.colour, marker=mark.marker, markersize=3.5)
            ax.vlines(100 * own["target"], own["low"], own["high"], color=mark.colour, linewidth=0.8)
        ax.axhline(dense, **DASHED)
        ax.set_title(words)
        ax.set_xlabel("MACs left, % of dense")
    left.set_ylabel("top-1 (%)")
    shown = [name for name in LOOKS if name in set(found["ranking"])]
    titles = found.drop_duplicates("ranking").set_index("ranking")["title"]
    marks = [entry(LOOKS[name].colour, LOOKS[name].marker, linestyle="-") for name in shown]
    fig.legend(marks, [titles[name] for name in shown], loc="outside right center", frameon=False)
    return fig


styled(globals())
