"""One's own grid in pictures, ``hiap plot GRID``: top-1 against MACs, differences from a reference, gates over epochs.

A grid is given by its name, by the file that it was launched from, or by the folder of its records. Pictures are drawn
in the reader's own style of matplotlib, as PNG and PDF with the plotted numbers as CSV. Where there are few seeds each
run is a point of its own: an interval from three of them would say more about three than about the method.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.style import LOOKS
from analysis.records import names
from analysis.records.results import AS, REPOSITORY, Results, dense_units, gate_trajectory
from analysis.stats import seeds
from analysis.studies import paired
from analysis.tables.render import save_frame
from hiap.cli import parsers
from hiap.train.arguments import one_line_errors
from hiap.train.config import ConfigError, did_you_mean
from hiap.train.record import Record
from slurm import grid as grids

MANY = 5  # seeds from which on an interval is drawn
MARKERS = "osD^vP<>Xd"


def find(grid: str, root: Path | None) -> tuple[Results, str]:
    """The results that hold a grid, and its name. Raises ``ConfigError`` where no record of it is found."""
    folder = Path(grid)
    if folder.is_dir() and any(folder.glob("*.json")):
        return Results(folder.absolute().parents[1]), folder.absolute().name
    name = grids.load(grids.find(grid)).name if grid.endswith((".yaml", ".yml")) else grid
    roots = [root] if root else [Path("results/local"), Path("results"), REPOSITORY / "results"]
    for place in roots:
        if any((place / "runs" / name).glob("*.json")):
            return Results(place), name
    known = sorted({path.name for place in roots for path in (place / "runs").glob("*")})
    raise ConfigError(f"no records of grid '{name}' in {' or '.join(map(str, roots))}{did_you_mean(name, known)}")


def looks(runs: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Colour and marker of each label: the method's own, and for a method that has none one of the reader's cycle."""
    cycle = mpl.rcParams["axes.prop_cycle"].by_key().get("color", ["C0"])
    methods = list(dict.fromkeys(runs["method"]))
    own = [method for method in methods if method not in LOOKS]
    marks = {m: {"color": LOOKS[m].colour, "marker": LOOKS[m].marker} for m in methods if m in LOOKS}
    marks |= {m: {"color": cycle[i % len(cycle)], "marker": MARKERS[i % len(MARKERS)]} for i, m in enumerate(own)}
    return {label: marks[method] for label, method in zip(runs["label"], runs["method"], strict=True)}


def summary(values: pd.Series) -> dict[str, float]:
    """Mean, number, and the ends of Student's 95 % interval where there are seeds enough; else NaN."""
    middle, half = float(values.mean()), seeds.half_width(values) if len(values) >= MANY else np.nan
    return {"mean": middle, "low": middle - half, "high": middle + half, "n": len(values)}


def pareto(runs: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Top-1 against MACs, a mark per label, and, where seeds are few, a dot per run."""
    figure, marks, rows = Figure(layout="constrained"), looks(runs), []
    ax = figure.subplots()
    for label, group in runs.groupby("label", sort=False):
        row: dict[str, Any] = {"label": label, "macs": group["macs"].mean(), **summary(group["top1"])}
        rows.append(row)
        look, x = marks[str(label)], row["macs"] / 1e6
        title = names.titles(group.head(1))[0]
        ax.plot(x, row["mean"], linestyle="", label=f"{title} (n = {row['n']})", **look)
        if row["n"] >= MANY:
            ax.vlines(x, row["low"], row["high"], color=look["color"])
        else:
            ax.plot(group["macs"] / 1e6, group["top1"], ".", color=look["color"], alpha=0.5)
    ax.set(xlabel="MMACs per image", ylabel=f"top-1 on {runs['data'].iloc[0]}, {runs['measure'].iloc[0]} images (%)")
    figure.legend(loc="outside right upper", fontsize="small")
    return figure, pd.DataFrame(rows)


def forest(runs: pd.DataFrame, against: str | None) -> tuple[Figure, pd.DataFrame] | None:
    """Top-1 minus the reference's, seed by seed: of ``against``, else of the one label of method hiap with the same
    budget. None where nothing can be compared."""
    rows = [row for label in dict.fromkeys(runs["label"]) for row in _differences(runs, str(label), against)]
    if not rows:
        return None
    found, marks = pd.DataFrame(rows), looks(runs)
    labels = list(dict.fromkeys(found["label"]))
    figure = Figure(figsize=(6.4, 1.2 + 0.28 * len(labels)), layout="constrained")
    ax = figure.subplots()
    ax.axvline(0, color="black", linewidth=0.8, linestyle="--")
    table = []
    for place, label in enumerate(labels):
        own = found[found["label"] == label]
        row = {"label": label, "against": own["against"].iloc[0], **summary(own["difference"])}
        table.append(row)
        ax.plot(row["mean"], place, linestyle="", **marks[label])
        if row["n"] >= MANY:
            ax.hlines(place, row["low"], row["high"], color=marks[label]["color"])
        else:
            ax.plot(own["difference"], [place] * len(own), ".", color=marks[label]["color"], alpha=0.5)
    ax.set_yticks(range(len(labels)), labels)
    ax.invert_yaxis()
    ax.set_xlabel(f"points of top-1 against {against or 'hiap'}; lines: 95 % over {MANY} seeds or more; dots: seeds")
    return figure, pd.DataFrame(table)


def _differences(runs: pd.DataFrame, label: str, against: str | None) -> list[dict[str, Any]]:
    own = runs[runs["label"] == label]
    if against:
        other = runs[runs["label"] == against]
    else:
        budget = own["budget"].iloc[0]
        alike = runs["label"] == budget.removeprefix(AS) if budget.startswith(AS) else runs["budget"] == budget
        other = runs[(runs["method"] == "hiap") & alike]
        if other["label"].nunique() > 1:  # which of them is meant, only --against can say
            return []
    if other.empty or label in set(other["label"]) or (own["method"] == "dense").all():
        return []
    pairs = own.set_index("seed")["top1"] - other.drop_duplicates("seed").set_index("seed")["top1"]
    name = other["label"].iloc[0]
    return [{"label": label, "against": name, "seed": s, "difference": d} for s, d in pairs.dropna().items()]


def gates(record: Record) -> tuple[Figure, pd.DataFrame]:
    """Open heads and neurons per block (across) and epoch (down) of one run."""
    rows, full = gate_trajectory(record), dense_units(record)
    figure = Figure(figsize=(6.4, 2.8), layout="constrained")
    for ax, quantity in zip(figure.subplots(1, 2), ("heads", "neurons"), strict=True):
        grid = rows.pivot(index="epoch", columns="block", values=quantity).to_numpy(dtype=float)
        image = ax.imshow(grid, aspect="auto", vmin=0, vmax=full[quantity], interpolation="nearest")
        ax.set(title=quantity, xlabel="block", ylabel="epoch")
        figure.colorbar(image, ax=ax)
    figure.suptitle(names.run_title(record), fontsize="medium")
    return figure, rows


def write(figure: Figure, data: pd.DataFrame, name: str, out: Path) -> list[Path]:
    """``<out>/<name>`` as .png, .pdf and .csv."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{name}.{kind}" for kind in ("png", "pdf")]
    for path in paths:
        figure.savefig(path, dpi=200)
    return [*paths, save_frame(data, name, out, ".")]


def draw(results: Results, name: str, out: Path, against: str | None = None) -> list[Path]:
    """All pictures of a grid; the files that were written. Raises ``ConfigError`` where no run has finished."""
    runs = paired.load(results, name)
    if runs.empty:
        raise ConfigError(f"grid '{name}': no finished run in {results.root}")
    runs = _of_one_kind(runs, name)
    if against is not None and against not in set(runs["label"]):
        raise ConfigError(f"--against {against}: no such label{did_you_mean(against, sorted(set(runs['label'])))}")
    written = write(*pareto(runs), "pareto", out)
    if compared := forest(runs, against):
        written += write(*compared, "forest", out)
    shown: set[str] = set()
    for record in results.gated(name):
        if record.label not in shown:  # the first seed of each label
            shown.add(record.label)
            written += write(*gates(record), f"gates_{record.run_id}", out)
    return written


def _of_one_kind(runs: pd.DataFrame, name: str) -> pd.DataFrame:
    """``runs`` that were measured on test images, where a grid was tuned on others. Raises ``ConfigError`` where they
    are of several data sets, or of one seed on different images, whose accuracies are no one axis."""
    if runs["data"].nunique() > 1:
        found = ", ".join(sorted(set(runs["data"])))
        raise ConfigError(f"grid '{name}' holds runs on {found}: expected one data set; give each its own run.grid")
    tested = runs[runs["measure"] == "test"]
    if 0 < len(tested) < len(runs):
        print(f"grid '{name}': {len(runs) - len(tested)} runs were measured on validation images, and are not drawn")
        runs = tested
    for _, group in runs.groupby("seed"):
        paired.require_same_images(group)
    return runs


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    given = parsers.plot().parse_args(arguments)
    results, name = find(given.grid, given.results)
    try:
        with mpl.rc_context(), mpl.style.context(given.style or []):
            written = draw(results, name, given.out or results.root / "figures" / name, given.against)
    except OSError as error:
        if given.style and error.filename is None:
            raise ConfigError(f"--style {given.style}: no such style of matplotlib") from None
        raise
    print("\n".join(map(str, written)))


if __name__ == "__main__":
    sys.exit(main())
