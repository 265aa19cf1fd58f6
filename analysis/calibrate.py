"""Grid calibrate: how far each reading of A3, A6 and A12 is from the gates of the paper's Figs. 5-9."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import collect

GRID = "calibrate"
FULL = {"heads": 72, "neurons": 18_432}  # of the dense network, the paper's and ours
COLUMNS = 50  # epochs in the figures, looks at the gates in a run


def curves(root: str | Path) -> pd.DataFrame:
    """``reading`` ('paper' for the digitised figures), ``figure``, ``share`` of the training done, and the shares of
    ``heads`` and ``neurons`` that are open."""
    rows = [
        {
            "reading": record.label.rsplit("-fig", 1)[0],
            "figure": int(record.label[-1]),
            "share": round(look.step / look.steps, 4),
            **{kind: sum(getattr(look, kind)) / full for kind, full in FULL.items()},
        }
        for record in collect.records(root, GRID)
        for look in record.gates
    ]
    return pd.concat([_paper(), pd.DataFrame(rows)], ignore_index=True)


def _paper() -> pd.DataFrame:
    open_units = collect.published("fig5_9_gate_heatmaps").groupby(["figure", "epoch"], as_index=False).sum()
    return pd.DataFrame(
        {
            "reading": "paper",
            "figure": open_units["figure"],
            "share": ((open_units["epoch"] + 1) / COLUMNS).round(4),
            "heads": open_units["active_heads"] / FULL["heads"],
            "neurons": open_units["active_neurons"] / FULL["neurons"],
        }
    )


def distances(lines: pd.DataFrame) -> pd.DataFrame:
    """Per reading, nearest first: root mean squares, over the five figures and over the training, of what the open
    shares of heads and neurons differ by from the paper's (0 to 1); ``distance`` of both, ``first`` of both in the
    first column alone."""
    paper = lines[lines["reading"] == "paper"].set_index(["figure", "share"])[list(FULL)]
    rows = []
    for reading, own in lines[lines["reading"] != "paper"].groupby("reading"):
        apart = (own.set_index(["figure", "share"])[list(FULL)] - paper).dropna() ** 2
        first = apart[apart.index.get_level_values("share") == 1 / COLUMNS]
        row = {kind: np.sqrt(apart[kind].mean()) for kind in FULL}
        whole, start = (float(np.sqrt(part.to_numpy().mean())) for part in (apart, first))
        figures = own["figure"].nunique()
        rows.append({"reading": reading, **row, "distance": whole, "first": start, "figures": figures})
    return pd.DataFrame(rows).sort_values("distance", ignore_index=True).round(4)


def figure(lines: pd.DataFrame, shown: dict[str, str]) -> Figure:
    """Heads above, neurons below, a column per figure; ``shown``: reading to its name in the legend."""
    fig, axes = plt.subplots(2, 5, figsize=(7.0, 3.1), sharex=True, sharey=True, layout="constrained")
    styles = ["-", "--", "-.", ":"]
    for column, number in enumerate(sorted(lines["figure"].unique())):
        for row, kind in enumerate(FULL):
            ax = axes[row, column]
            for i, (reading, name) in enumerate({"paper": "paper, digitised", **shown}.items()):
                own = lines[(lines["reading"] == reading) & (lines["figure"] == number)]
                colour = "black" if i == 0 else plt.get_cmap("viridis")((i - 1) / max(1, len(shown) - 1) * 0.85)
                ax.plot(100 * own["share"], 100 * own[kind], styles[i % 4], color=colour, label=name, lw=1.3)
            ax.set_title(f"Fig. {number}" if row == 0 else "", fontsize=8)
            ax.tick_params(labelsize=7)
        axes[0, 0].set_ylabel("open heads (%)", fontsize=7)
        axes[1, 0].set_ylabel("open neurons (%)", fontsize=7)
    fig.supxlabel("share of the training done (%)", fontsize=7)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=7, frameon=False)
    return fig
