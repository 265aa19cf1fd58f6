"""Grids calibrate, calibrate_end, imagenet_calibrate: how far readings of what is left open are from Figs. 5-9."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.findings.costs import DEIT_SMALL
from analysis.findings.costs import WHOLE as FULL  # of the dense network, the paper's and ours
from analysis.records import names, published
from analysis.records.results import Results
from hiap.train.record import EpochLog, GateLog, Record

GRID, END, IMAGENET = "calibrate", "calibrate_end", "imagenet_calibrate"
TAKEN, BEFORE = "m0.2-s3-t6-total-no-t2", "s3-t6-total-t2"  # 'calibrated' and 'near-open' in slurm/readings.yaml
BLOCKS, COLUMNS = DEIT_SMALL.depth, published.EPOCHS  # in the figures, and looks at the gates in a run
UNITS = list(FULL)
WITH_HEADS = (5, 6, 7, 8)  # figures whose networks end with heads in every block


def curves(results: Results) -> pd.DataFrame:
    """``reading`` ('paper' for the digitised figures), ``figure``, ``share`` of the training done, and the shares of
    ``heads`` and ``neurons`` that are open."""
    rows = [
        (*_place(record), round(look.step / look.steps, 4), *_open(look))
        for record in results.finished(GRID)
        for look in record.gates
    ]
    ours = pd.DataFrame(rows, columns=["reading", "figure", "share", *UNITS])
    return pd.concat([_paper(), ours], ignore_index=True) if rows else _paper()


def first_columns(results: Results) -> pd.DataFrame:
    """Of the one-epoch runs on the paper's data, per reading, nearest first: open ``heads`` and ``neurons`` of each
    figure, as ours/the paper's, and the ``distance`` (root mean square of the open shares' differences)."""
    paper = _paper().query(f"share == {1 / COLUMNS}").set_index("figure")[UNITS]
    rows = [(*_place(record), *_open(record.epochs[-1])) for record in results.finished(IMAGENET)]
    table = []
    for reading, ours in pd.DataFrame(rows, columns=["reading", "figure", *UNITS]).groupby("reading"):
        ours = ours.set_index("figure")[UNITS].sort_index()
        theirs = paper.loc[ours.index]
        counts = {
            f"fig{number} {unit}": f"{ours[unit][number] * full:.0f}/{theirs[unit][number] * full:.0f}"
            for number in ours.index
            for unit, full in FULL.items()
        }
        table.append({"reading": reading, **counts, "distance": round(_root(ours - theirs), 4), "figures": len(ours)})
    return pd.DataFrame(table).sort_values("distance", ignore_index=True) if table else pd.DataFrame()


def taken(results: Results) -> dict[int, Record]:
    """The finished runs of the reading that the paper's grids take, by the figure whose strengths they have."""
    places = {_place(record): record for record in results.finished(GRID)}
    return {number: record for (reading, number), record in places.items() if reading == TAKEN}


def ends(results: Results) -> pd.DataFrame:
    """The networks that readings end with, against the last epoch of Figs. 5-9; best first by the rule of
    results/PROTOCOL.md (second part, "The reading of the paper's rule"): fewest blocks ``without_heads`` in Figs. 5-8,
    then the ``measure``, a mean over figures of the blocks' summed differences in heads and in neurons, each a share
    of the network's. ``heads``, ``neurons``: the two parts; ``fig5`` to ``fig9``: heads / neurons left in all."""
    theirs = {figure: published.last_state(figure).set_index("block")[UNITS] for figure in published.HEAT_MAPS}
    rows = []
    for grid in (GRID, END):
        for reading, runs in _by_reading(results, grid).items():
            if set(runs) != set(theirs):
                continue  # a measure of other figures is another measure
            last = {figure: _last(runs[figure]) for figure in theirs}
            apart = pd.DataFrame({f: (last[f] - theirs[f]).abs().sum() for f in theirs}).T / pd.Series(FULL)
            headless = sum(int((last[figure]["heads"] == 0).sum()) for figure in WITH_HEADS)
            left = {f"fig{f}": f"{own['heads'].sum():.0f} / {own['neurons'].sum():,.0f}" for f, own in last.items()}
            own = {"reading": reading, "grid": grid, "measure": apart.sum(axis=1).mean(), "without_heads": headless}
            rows.append({**own, **apart.mean(), **left})
    if not rows:
        return pd.DataFrame()
    return pd.DataFrame(rows).sort_values(["without_heads", "measure"], ignore_index=True).round(4)


def table(results: Results) -> str:
    """Markdown: the paper's figures, and of ``ends`` the reading that the protocol's rule takes, the nearest by the
    measure, the one with the fewest heads, and that of the earlier grids, with who uses them."""
    found = ends(results)
    if found.empty:
        return names.nothing(END)
    at = {f: published.last_state(f)[UNITS].sum() for f in published.HEAT_MAPS}
    figures = {f"fig{f}": f"{left['heads']:.0f} / {left['neurons']:,.0f}" for f, left in at.items()}
    fewest = found[[*figures]].map(_heads).sum(axis=1).to_numpy().argmin()
    chosen = {
        found["reading"].iloc[0]: "the rule of PROTOCOL.md; grid `cifar10_first`",
        found["reading"].iloc[found["measure"].to_numpy().argmin()]: "nothing: the nearest by the measure alone",
        found["reading"].iloc[fewest]: "nothing: the fewest heads",
        TAKEN: "grids `evidence`, `imagenet_*`, `cifar10_table3` (`slurm/readings.yaml`), chosen by whole curves",
    }
    lines = [("reading", *(f"Fig. {f}" for f in at), "blocks without heads, Figs. 5-8", "measure", "who takes it")]
    lines += [(":---", *["---:"] * (len(at) + 2), ":---"), ("the paper", *figures.values(), "0", "0", "")]
    for row in found[found["reading"].isin(list(chosen))].to_dict("records"):
        label = str(row["reading"])
        counts = [str(row[figure]) for figure in figures]
        lines.append((words(label), *counts, str(row["without_heads"]), f"{row['measure']:.2f}", chosen[label]))
    return names.table(lines)


def _heads(left: str) -> int:
    return int(left.partition(" / ")[0])


def ends_by_block(results: Results, readings: list[str]) -> pd.DataFrame:
    """``network`` ('paper' or a reading), ``figure``, ``block``, and the ``heads`` and ``neurons`` at the end."""
    frames = [published.last_state(f).assign(network="paper", figure=f) for f in published.HEAT_MAPS]
    found = _by_reading(results, GRID) | _by_reading(results, END)
    for reading in readings:
        runs = found[reading]
        frames += [_last(runs[f]).reset_index().assign(network=reading, figure=f) for f in sorted(runs)]
    return pd.concat(frames, ignore_index=True)[["network", "figure", "block", *UNITS]]


def _by_reading(results: Results, grid: str) -> dict[str, dict[int, Record]]:
    """A grid's finished runs by reading and figure."""
    found: dict[str, dict[int, Record]] = {}
    for record in results.finished(grid):
        reading, figure = _place(record)
        if figure and record.gates:
            found.setdefault(reading, {})[figure] = record
    return found


def _last(record: Record) -> pd.DataFrame:
    """Open heads and neurons by block at a run's last look."""
    look = record.gates[-1]
    frame = pd.DataFrame({unit: getattr(look, unit) for unit in UNITS})
    return frame.rename_axis("block")


def words(reading: str) -> str:
    """A reading's label spelt out: 'm0.2-s3-t6-total-no-t2' is 'start 3 (macro 0.2), travel 6, scale total, no T²'."""
    free = reading.removesuffix("-floor")
    label, squared = free.removesuffix("-no-t2").removesuffix("-t2"), not free.endswith("-no-t2")
    *marks, scale = label.split("-")
    found = {mark[0]: mark[1:] for mark in marks}
    macro = f" (macro {found['m']})" if "m" in found else ""
    return f"start {found['s']}{macro}, travel {found['t']}, scale {scale}, {'T²' if squared else 'no T²'}" + (
        ", binding floor" if free != reading else ""
    )


def _place(record: Record) -> tuple[str, int]:
    """Reading and figure, as a label names them; the dense start has neither."""
    reading, _, number = record.label.rpartition("-fig")
    return reading, int(number) if reading else 0


def _open(log: GateLog | EpochLog) -> list[float]:
    """The open shares, of ``UNITS``."""
    return [sum(getattr(log, unit)) / full for unit, full in FULL.items()]


def _root(apart: pd.DataFrame | pd.Series) -> float:
    """The root of the mean square."""
    return float(np.sqrt((apart**2).to_numpy().mean()))


def _paper() -> pd.DataFrame:
    rows = published.totals()
    shares = {unit: rows[unit] / full for unit, full in FULL.items()}
    share = ((rows["epoch"] + 1) / COLUMNS).round(4)
    return pd.DataFrame({"reading": "paper", "figure": rows["figure"], "share": share, **shares})


def distances(lines: pd.DataFrame) -> pd.DataFrame:
    """Per reading, nearest first: root mean squares, over the five figures and over the training, of what the open
    shares of heads and neurons differ by from the paper's (0 to 1); ``distance`` of both, ``first`` of both in the
    first column alone."""
    paper = lines[lines["reading"] == "paper"].set_index(["figure", "share"])[UNITS]
    rows = []
    for reading, own in lines[lines["reading"] != "paper"].groupby("reading"):
        apart = (own.set_index(["figure", "share"])[UNITS] - paper).dropna()
        first = apart[apart.index.get_level_values("share") == 1 / COLUMNS]
        row = {"reading": reading, **{unit: _root(apart[unit]) for unit in UNITS}}
        rows.append({**row, "distance": _root(apart), "first": _root(first), "figures": own["figure"].nunique()})
    return pd.DataFrame(rows).sort_values("distance", ignore_index=True).round(4)


def maps(results: Results) -> pd.DataFrame:
    """Figs. 5-9 and the taken reading's runs at their strengths: ``network`` ('paper', 'here'), ``figure``, ``share``
    of the training done, ``block``, and its open ``heads`` and ``neurons``."""
    found = sorted(taken(results).items())
    theirs = [published.heat_map(figure).assign(network="paper", figure=figure) for figure, _ in found]
    frames = [gates.assign(share=(gates["epoch"] + 1) / COLUMNS) for gates in theirs]
    ours = [
        ("here", number, look.step / look.steps, block, look.heads[block], look.neurons[block])
        for number, record in found
        for look in record.gates
        for block in range(BLOCKS)
    ]
    columns = ["network", "figure", "share", "block", *UNITS]
    return pd.concat([*frames, pd.DataFrame(ours, columns=columns)], ignore_index=True)[columns].round({"share": 4})
