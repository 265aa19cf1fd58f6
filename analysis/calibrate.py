"""Grids calibrate and imagenet_calibrate: how far each reading of A3, A6 and A12 is from the gates of Figs. 5-9."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import collect, findings, speed_limit
from analysis.plots import PAGE, colour_bar, heat_map
from hiap.train.record import EpochLog, GateLog, Record

GRID, IMAGENET = "calibrate", "imagenet_calibrate"
TAKEN, BEFORE = "m0.2-s3-t6-total-no-t2", "s3-t6-total-t2"  # 'calibrated' and 'near-open' in slurm/readings.yaml
FULL = findings.WHOLE  # of the dense network, the paper's and ours
BLOCKS = findings.DEIT_SMALL.depth
COLUMNS = speed_limit.FIGURES.epochs  # in the figures, and looks at the gates in a run


def curves(root: str | Path) -> pd.DataFrame:
    """``reading`` ('paper' for the digitised figures), ``figure``, ``share`` of the training done, and the shares of
    ``heads`` and ``neurons`` that are open."""
    rows = []
    for record in collect.records(root, GRID):
        reading, number = _place(record)
        rows += [
            {"reading": reading, "figure": number, "share": round(look.step / look.steps, 4), **_open(look)}
            for look in record.gates
        ]
    return pd.concat([_paper(), pd.DataFrame(rows)], ignore_index=True)


def first_columns(root: str | Path) -> pd.DataFrame:
    """Of the one-epoch runs on the paper's data, per reading, nearest first: open ``heads`` and ``neurons`` of each
    figure, as ours/the paper's, and the ``distance`` (root mean square of the open shares' differences)."""
    whole = _paper()
    paper = whole[whole["share"] == 1 / COLUMNS].set_index("figure")[list(FULL)]
    rows: dict[str, dict[int, dict[str, float]]] = {}
    for record in collect.records(root, IMAGENET):
        reading, number = _place(record)
        rows.setdefault(reading, {})[number] = _open(record.epochs[-1])
    table = []
    for reading, found in rows.items():
        ours = pd.DataFrame(found).T.sort_index()
        theirs = paper.loc[ours.index]
        counts = {
            f"fig{number} {kind}": f"{ours[kind][number] * full:.0f}/{theirs[kind][number] * full:.0f}"
            for number in ours.index
            for kind, full in FULL.items()
        }
        distance = float(np.sqrt(((ours - theirs) ** 2).to_numpy().mean()))
        table.append({"reading": reading, **counts, "distance": round(distance, 4), "figures": len(ours)})
    return pd.DataFrame(table).sort_values("distance", ignore_index=True) if table else pd.DataFrame()


def taken(root: str | Path) -> dict[int, Record]:
    """The finished runs of the reading that the paper's grids take, by the figure whose strengths they have."""
    places = {_place(record): record for record in collect.records(root, GRID)}
    return {number: record for (reading, number), record in places.items() if reading == TAKEN}


def _place(record: Record) -> tuple[str, int]:
    """Reading and figure, as a label names them; the dense start has neither."""
    reading, _, number = record.label.rpartition("-fig")
    return reading, int(number) if reading else 0


def _open(log: GateLog | EpochLog) -> dict[str, float]:
    """The open shares."""
    return {kind: sum(getattr(log, kind)) / full for kind, full in FULL.items()}


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
    fig = Figure(figsize=(7.0, 3.1), layout="constrained")
    axes = fig.subplots(2, 5, sharex=True, sharey=True)
    styles = ["-", "--", "-.", ":"]
    for column, number in enumerate(sorted(lines["figure"].unique())):
        for row, kind in enumerate(FULL):
            ax = axes[row, column]
            for i, (reading, name) in enumerate({"paper": "paper, digitised", **shown}.items()):
                own = lines[(lines["reading"] == reading) & (lines["figure"] == number)]
                colour = "black" if i == 0 else matplotlib.colormaps["viridis"]((i - 1) / max(1, len(shown) - 1) * 0.85)
                ax.plot(100 * own["share"], 100 * own[kind], styles[i % 4], color=colour, label=name, lw=1.3)
            ax.set_title(f"Fig. {number}" if row == 0 else "", fontsize=8)
            ax.tick_params(labelsize=7)
        axes[0, 0].set_ylabel("open heads (%)", fontsize=7)
        axes[1, 0].set_ylabel("open neurons (%)", fontsize=7)
    fig.supxlabel("share of the training done (%)", fontsize=7)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=7, frameon=False)
    return fig


def maps(root: str | Path) -> pd.DataFrame:
    """Figs. 5-9 and the taken reading's runs at their strengths: ``network`` ('paper', 'here'), ``figure``, ``share``
    of the training done, ``block``, and its open ``heads`` and ``neurons``."""
    published = {number: collect.published_heatmap(number) for number in sorted(taken(root))}
    frames = [
        gates.assign(network="paper", figure=number, share=(gates["epoch"] + 1) / COLUMNS)
        for number, gates in published.items()
    ]
    ours = [
        {"network": "here", "figure": number, "share": look.step / look.steps, "block": block,
         "heads": look.heads[block], "neurons": look.neurons[block]}
        for number, record in sorted(taken(root).items())
        for look in record.gates
        for block in range(BLOCKS)
    ]  # fmt: skip
    columns = ["network", "figure", "share", "block", "heads", "neurons"]
    return pd.concat([*frames, pd.DataFrame(ours, columns=columns)], ignore_index=True)[columns].round({"share": 4})


def heatmaps(cells: pd.DataFrame) -> Figure:
    """``maps``: a column per figure; above the paper's and our open heads, below the neurons, with one colour scale for
    each unit. Block 0 is the first."""
    numbers = sorted(cells["figure"].unique())
    fig = Figure(figsize=(PAGE, 4.6), layout="constrained")
    axes = fig.subplots(4, len(numbers), sharex=True, sharey=True)
    for first, (kind, full) in zip((0, 2), FULL.items(), strict=True):
        for row, network in enumerate(("paper", "here"), start=first):
            for column, number in enumerate(numbers):
                chosen = cells[(cells["network"] == network) & (cells["figure"] == number)]
                image = heat_map(
                    axes[row, column], chosen.pivot(index="block", columns="share", values=kind), full / BLOCKS
                )
                axes[row, column].set(title=f"strengths of Fig. {number}" if row == 0 else "", xlabel="", ylabel="")
            axes[row, 0].set_ylabel(f"{network}: block")
        colour_bar(image, axes[first : first + 2].flat, full // BLOCKS, f"open {kind} per block", aspect=25)
    axes[0, 0].set_yticks([0.5, 5.5, 11.5], ["0", "5", "11"])
    axes[0, 0].set_xticks([0, COLUMNS / 2, COLUMNS], ["0", "50", "100"])
    fig.supxlabel("share of the training done (%)", fontsize=8)
    return fig
