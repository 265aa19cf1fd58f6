"""One's own method beside all others, ``hiap join path/to/mine.py``: tuned, run, controlled, compared.

The grid ``join`` (or another, ``--grid``) says on which data and network, what is tried, and at which budgets: its runs
``tune-*`` are measured on validation images and the best of them fills ``shared: tuned``; runs ``mine-*`` then prune
every seed's dense network. The table has the method's rows among those of the grid whose dense networks these are,
with intervals, training bills, and verdicts after Holm's correction for all its comparisons.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

from analysis.records import names
from analysis.records.results import REPOSITORY, Results
from analysis.stats.seeds import LEVEL, holm, mean_on_common
from analysis.studies import evidence, paired
from analysis.tables.render import Column, Panel, Table, number, per_target, save, signed, text, words
from hiap.cli import parsers
from hiap.files import atomic_write
from hiap.train import methods
from hiap.train.arguments import one_line_errors
from hiap.train.config import ConfigError
from slurm import grid as grids
from slurm import launch_grid
from slurm.grid import Grid, dotted

MINE, TUNED, TUNING = "mine", "tuned", "tune-"
START = "dense"  # labels of what methods start from: on the test images, and for tuning
COLUMNS = (
    words("title", "Method"),
    Column("share", "MACs %", number(1)),
    Column("train_macs", "TMACs", number(1, 1e12)),
    Column("top1", "Top-1 %", number(2)),
    Column("low", "low", number(2)),
    Column("high", "high", number(2)),
    Column("difference", "yours -", signed(2)),
    Column("difference_low", "low", signed(2)),
    Column("difference_high", "high", signed(2)),
    words("verdict", ""),
    Column("n", "n", number(0)),
)
NOTES = (
    "yours -: your method minus the row's, at the same target, on the seeds that both have and the same test images; "
    "low, high: 95 %, by a bootstrap over seeds and images, with fewer than five seeds at least Student's.",
    "ahead, behind: your method, after Holm's correction for all comparisons of this table; undecided: all others. "
    "TMACs: multiply-adds of training after the dense network.",
)


class Place(NamedTuple):
    """Where a method is set beside others: its ``name``, its grid's ``file`` with the records in ``own``, and the
    ``pair`` with those of the others in ``beside``."""

    name: str
    file: Path
    own: Results
    pair: evidence.Pair
    beside: Results


def filled(template: Grid, method: str, name: str, tuned: dict[str, Any] | None = None) -> Grid:
    """``template`` with the method's file, labels that name it, and, where it is known, what was ``tuned``. Raises
    ``ConfigError`` where the template lacks something."""
    for key in (MINE, TUNED):
        if key not in template.shared:
            raise ConfigError(f"--grid {template.name}: expected '{key}' in its section shared, as grid join has it")
    shared = {**template.shared, MINE: {**template.shared[MINE], "method": method}}
    if tuned is not None:
        shared[TUNED] = tuned
    runs = {_named(label, name): _named(keys, name) for label, keys in template.runs.items()}
    return template.model_copy(update={"name": f"join-{name}", "extends": "", "shared": shared, "runs": runs})


def _named(value: Any, name: str) -> Any:
    """Labels 'mine-50', and what refers to them, with the method's name for 'mine'."""
    if isinstance(value, dict):
        return {key: _named(item, name) for key, item in value.items()}
    if isinstance(value, str) and value.removeprefix("run:").startswith(f"{MINE}-"):
        return value.replace(MINE, name, 1)
    return value


def chosen(grid: Grid, own: Results) -> tuple[str, dict[str, Any], list[str]]:
    """Of the runs ``tune-*`` the label of the best, what it was given beside what all have, and which of that ends its
    range. Raises ``ConfigError`` if none has finished."""
    runs, keys = own.runs(grid.name), tried(grid)
    means = mean_on_common(runs[runs["label"].isin(keys)], "label").dropna()
    if means.empty:
        raise ConfigError(
            f"grid {grid.name}: no run {TUNING}* has finished, or no seed of all, so nothing can be chosen"
        )
    best = str(means.idxmax())
    edges = []
    for key, value in keys[best].items():
        values = sorted({given[key] for given in keys.values() if type(given.get(key)) in (int, float)})
        if len(values) > 1 and value in (values[0], values[-1]):
            edges.append(f"{key} {value:g}, the {'lowest' if value == values[0] else 'highest'} of {len(values)}")
    return best, keys[best], edges


def _require_validation(grid: Grid, file: Path) -> None:
    """Raise ``ConfigError`` if what chooses is measured on the images that the study is judged by."""
    trials = tried(grid)
    for run in grids.expand(grid, file, {"results": "", "threads": 1}) if len(trials) > 1 else ():
        if run.label in trials and run.config.data.measure != "validation":
            raise ConfigError(f"{file}: run '{run.label}' chooses: expected data.measure=validation")


def tried(grid: Grid) -> dict[str, dict[str, Any]]:
    """What tells the runs ``tune-*`` apart, by label: the keys that not all of them have with the same value."""
    keys: dict[str, dict[str, Any]] = {}
    for label in (name for name in grid.runs if name.startswith(TUNING) and name != TUNING + START):
        likes = grid.runs[label].get("like", [])
        for name in [likes] if isinstance(likes, str) else likes:
            keys.setdefault(label, {}).update(dotted(grid.shared[name]))
        own = {key: value for key, value in grid.runs[label].items() if key not in ("like", "seeds")}
        keys.setdefault(label, {}).update(dotted(own))
    same = set.intersection(*({(k, str(v)) for k, v in given.items()} for given in keys.values())) if keys else set()
    return {
        label: {k: float(v) if _number(v) else v for k, v in given.items() if (k, str(v)) not in same}
        for label, given in keys.items()
    }


def _number(value: Any) -> bool:
    """YAML reads '5e-5' as a word; a whole number stays one."""
    try:
        return not isinstance(value, bool | int) and math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def others(own: Results, grid: str) -> tuple[evidence.Pair, Results]:
    """The grid, committed or in the same results, whose dense networks are those that the method started from, by their
    run ids. Raises ``ConfigError`` if there is none, or if its images were others."""
    starts = {record.run_id: record for record in own.finished(grid) if record.label == START}
    known = {pair.grid: pair for pair in evidence.PAIRS}
    for results in (own, Results(REPOSITORY / "results")):
        for record in (r for name in [*known, *_grids(results)] for r in results.finished(name)):
            if record.run_id not in starts or record.grid == grid or record.grid.startswith("join"):
                continue
            mine = starts[record.run_id].images
            if record.images and mine and record.images != mine:
                raise ConfigError(f"grid {record.grid} saw other images of {record.config.data.name} than {grid}")
            title = f"{record.config.data.name}, {record.config.data.train_size} images"
            pair = known.get(record.grid) or evidence.Pair(record.grid, title, record.config.model.name)
            return pair, results
    raise ConfigError(f"grid {grid}: no other grid starts from its dense networks, so there is nothing to compare with")


def _grids(results: Results) -> list[str]:
    return sorted(path.name for path in (results.root / "runs").glob("*") if path.is_dir())


def compared(mine: pd.DataFrame, runs: pd.DataFrame, variant: str) -> pd.DataFrame:
    """``variant`` minus every other variant at the same target: ``target``, ``variant``, ``difference``,
    ``difference_low``, ``difference_high``, ``verdict``. Holm's family is all of them."""
    rows = []
    for target, group in runs.dropna(subset="target").groupby("target"):
        own = mine[(mine["target"] == target) & (mine["variant"] == variant)]
        for other, theirs in group.groupby("variant", sort=False):
            if other != variant and (found := paired.compare(own, theirs)):
                ends = found.difference
                row = {"difference": ends.mean, "difference_low": ends.low, "difference_high": ends.high, "p": found.p}
                rows.append({"target": target, "variant": other, **row})
    table = pd.DataFrame(rows, columns=["target", "variant", "difference", "difference_low", "difference_high", "p"])
    decided = holm(table["p"].to_numpy(dtype=float)) < 1 - LEVEL
    sides = ["ahead" if gain > 0 else "behind" for gain in table["difference"]]
    return table.assign(verdict=[side if sure else "undecided" for side, sure in zip(sides, decided, strict=True)])


def table(place: Place) -> Table:
    """Every method at the budgets of ``place``'s, its own rows among them, a panel per target."""
    own = evidence.load(place.own, place.file.stem)
    mine = own[~own["label"].str.startswith(TUNING) & (own["label"] != START)]
    if mine.empty:
        raise ConfigError(f"grid {place.file.stem}: no run of your method has finished yet")
    theirs = evidence.load(place.beside, place.pair.grid)
    # A control takes its sizes from a run, and that run's target is what it is compared at.
    aimed = mine["label"].str.extract(r"-(\d+)$")[0].astype(float).map(lambda cut: 1 - cut / 100)
    mine = mine.assign(target=mine["target"].fillna(aimed))
    mine = mine.assign(variant=list(map(names.variant, mine["label"], mine["target"])))
    mine["title"] = [_title(str(variant), place.name) for variant in mine["variant"]]
    theirs = theirs[theirs["target"].isin(mine["target"]) & ~evidence.aside(theirs["variant"])]
    runs = pd.concat([mine, theirs], ignore_index=True)
    rows = evidence.accuracies(runs).merge(compared(mine, runs, place.name), how="left", on=["target", "variant"])
    rows = rows.assign(share=100 * rows["macs_share"], verdict=rows["verdict"].fillna(""))
    panels: tuple[Panel, ...] = per_target(rows, "top1")
    return Table(f"{place.name} beside grid {place.pair.grid}: {place.pair.data}", COLUMNS, panels, NOTES)


def _title(variant: str, name: str) -> str:
    return f"* {name} (yours)" if variant == name else f"Same sizes, random units ({names.CONTROL})"


def starts(place: Place) -> str:
    """Whether both sides pruned the same dense networks: a run is bit-identical on machines of one type alone."""
    here, there = place.own.runs(place.file.stem), place.beside.runs(place.pair.grid)
    both = here[here["label"] == START].merge(there, on="run_id", suffixes=("", "_there"))
    if (both["top1"] == both["top1_there"]).all():
        return f"Both started from the same dense networks ({len(both)} seeds)."
    own = f"{both['top1'].mean():.2f} % here ({names.machines(both['device_name'])})"
    other = f"{both['top1_there'].mean():.2f} % there ({names.machines(both['device_name_there'])})"
    return (
        f"The dense networks have {own} and {other}: same seeds and recipe, another machine. The differences below "
        f"contain that; hiap launch --grid {place.pair.grid} makes the others' runs here."
    )


@one_line_errors
def main(arguments: list[str] | None = None) -> int:
    given = parsers.join().parse_args(arguments)
    name = methods.name_of(given.method)
    if not methods.is_path(given.method) or name in {*methods.known(), START, MINE}:
        raise ConfigError(f"'{given.method}': expected the path of a .py file with a name of its own (docs/join.md)")
    methods.find(given.method)
    template = grids.load(grids.find(given.grid))
    root = Path(given.results)
    file = root / "grids" / f"join-{name}.yaml"
    flags = ["--grid", str(file), "--results", str(root), "--cluster", given.cluster]
    flags += ["--jobs", str(given.jobs)] if given.jobs else []
    flags += [flag for flag in ("--dry-run", "--rerun") if getattr(given, flag[2:].replace("-", "_"))]
    grid = _written(filled(template, given.method, name), file)
    _require_validation(grid, file)
    tune = [label for label in grid.runs if label.startswith(TUNING)]
    if status := launch_grid.main([*flags, "--only", *tune]) if tune else 0:
        return status
    said = ""
    if len(tried(grid)) > 1 and not given.dry_run:
        best, tuned, edges = chosen(grid, Results(root))
        grid = _written(filled(template, given.method, name, tuned), file)
        said = f"Chosen on validation images: {best}" + (f" (edge of its range: {'; '.join(edges)})" if edges else "")
    rest = [label for label in grid.runs if label not in tune]
    seeds = ["--seeds", *map(str, given.seeds)] if given.seeds else []
    status = launch_grid.main([*flags, "--only", *rest, *seeds])
    if given.dry_run or status == 2:
        return status
    pair, beside = others(own := Results(root), grid.name)
    place = Place(name, file, own, pair, beside)
    shown = table(place)
    save(shown, grid.name, root)
    print("\n".join(filter(None, ["", said, starts(place), "", text(shown), f"written: {root}/tables/{grid.name}.*"])))
    return status


def _written(grid: Grid, file: Path) -> Grid:
    """The grid as a file that ``hiap launch`` and ``hiap plot`` take too."""
    atomic_write(file, yaml.safe_dump(grid.model_dump(exclude_unset=True), sort_keys=False).encode())
    return grid


if __name__ == "__main__":
    sys.exit(main())
