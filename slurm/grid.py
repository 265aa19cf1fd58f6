"""A grid file becomes runs: read, checked, references between runs resolved, in an order that can be executed.

A grid file is YAML::

    name: laptop                 # results go to runs/laptop/
    extends: study               # another grid of slurm/grids, over whose keys these lie
    about: what it reproduces, on which data
    published: where the paper's numbers are, in words or claim ids
    seeds: [0, 3]                # every run is made once per seed
    jobs: 2                      # runs at once on one machine, and CPU threads of each: hints,
    threads: 1                   # not part of what a run is
    processes: 1                 # that share one run on SLURM; a hint as well
    pack: 1                      # short runs that share one job of SLURM, one after the other; a hint as well
    reading: calibrated          # of slurm/readings.yaml: Config keys over base
    closes_by: 1                 # what the grid is to show needs gates that can close within so many epochs
    base: {optim.epochs: 10}     # Config keys of all runs, nested or dotted
    shared:                      # Config keys under a name, for several runs: what was tuned stands in one place
      tuned: {gates.lr: 0.05}
    by_seed:                     # Config keys of all runs of a seed: what one machine cannot do and another can
      3: {optim.precision: fp32}
    runs:
      dense: {method: dense}     # label: Config keys over base
      hiap: {method: hiap, model.weights: run:dense, like: tuned}
      slow: {method: hiap, model.weights: run:dense, like: [tuned], optim.epochs: 20, seeds: [0]}

``run:<label>`` names another run of the grid, with the same seed; it is replaced by ``run:<run_id>``. ``like`` lays the
keys of ``shared`` over base, and the run's own keys over them. ``seeds`` of a run: some of the grid's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, StrictInt, model_validator

from hiap.train.config import ON_DISK, Config, ConfigError, from_dict, merge, unknown_key
from hiap.train.record import Folders
from slurm import settings_file

GRIDS = Path(__file__).parent / "grids"
READINGS = Path(__file__).parent / "readings.yaml"
REFERENCE = "run:"
SET_BY_LAUNCHER = ("seed", "run.grid", "run.label", "run.results", "run.threads")


class Grid(BaseModel):
    """Grid file as written (see the module docstring)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^\w[\w.-]*$")
    extends: str = ""
    about: str
    published: str = ""
    seeds: list[StrictInt] = Field([0], min_length=1)
    jobs: int = Field(1, ge=1)
    threads: int | None = Field(None, ge=1)
    processes: int = Field(1, ge=1)
    pack: int = Field(1, ge=1)
    reading: str = ""
    closes_by: int | None = Field(None, ge=1)
    base: dict[str, Any] = {}
    shared: dict[str, dict[str, Any]] = {}
    by_seed: dict[int, dict[str, Any]] = {}
    runs: dict[str, dict[str, Any]] = Field(min_length=1)

    @model_validator(mode="after")
    def _packed_alone(self) -> Grid:
        if self.pack > 1 and self.processes > 1:
            raise ValueError(f"pack {self.pack}: for runs of one process each, not of {self.processes}")
        return self


@dataclass(frozen=True, eq=False)
class Run:
    """Run of a grid, with the runs whose results it starts from."""

    label: str
    config: Config
    needs: tuple[Run, ...]

    @cached_property
    def run_id(self) -> str:
        return self.config.run_id

    @cached_property
    def folders(self) -> Folders:
        return Folders.of(self.config)

    @property
    def finished(self) -> bool:
        return self.folders.record.exists()

    @property
    def network_lost(self) -> bool:
        """State of a run that is finished, here or in another grid, and whose network is not here: records travel with
        the repository, networks do not."""
        return self.done is not None and not self.folders.sibling(self.run_id).model.exists()

    @property
    def start(self) -> Run | None:
        """Run whose network this one starts from."""
        return next((need for need in self.needs if self.config.model.weights == REFERENCE + need.run_id), None)

    @property
    def done(self) -> Folders | None:
        """Files of the run where it is finished: of this grid, else of another; None where it is not."""
        return self.folders if self.finished else next(iter(self.folders.twins()), None)

    @cached_property
    def stage(self) -> int:
        """Number of the stage: 0 for a run that needs no other, else one more than the latest of its needs."""
        return 1 + max((need.stage for need in self.needs), default=-1)


def find(name: str) -> Path:
    """Return the file of a grid given by name (``slurm/grids/<name>.yaml``) or by path. Raises ``ConfigError`` if there
    is none."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else GRIDS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in GRIDS.glob("*.yaml")))
        raise ConfigError(f"no grid '{name}': expected a .yaml file, or one of {known}")
    return path


def load(path: Path, extended_by: tuple[Path, ...] = ()) -> Grid:
    """Load a grid, over the one that it extends. Raises ``ConfigError`` (one line with file and key) for anything that
    is none."""
    values, chain = settings_file.read(path, Grid), (*extended_by, path.resolve())
    if parent := values.get("extends"):
        above = find(str(parent))
        if above.resolve() in chain:
            raise ConfigError(f"{path}: extends: {parent} extends this grid itself")
        parent_grid = load(above, chain)
        if values.get("name", parent_grid.name) == parent_grid.name:
            raise ConfigError(
                f"{path}: name: expected one of its own: other runs than those of grid {parent_grid.name}"
            )
        values = _over(parent_grid, values)
    return settings_file.checked(path, values, Grid)


def _over(parent: Grid, values: dict[str, Any]) -> dict[str, Any]:
    """Lay a grid's keys over those of the one that it extends; Config keys over Config keys, however they are
    written."""
    merged = {**parent.model_dump(exclude_unset=True), **values}
    for key in ("base", "shared", "runs", "by_seed"):
        if isinstance(own := values.get(key, {}), dict):  # else the check of the grid says what was expected
            nest = _nested if key == "base" else _nested_by_name
            merged[key] = merge(nest(getattr(parent, key)), nest(own))
    return merged


def _nested_by_name(named: dict[Any, Any]) -> dict[Any, Any]:
    """Nest what names hold; in names of runs and of what they share a dot is a dot."""
    return {name: _nested(keys) if isinstance(keys, dict) else keys for name, keys in named.items()}


def expand(
    grid: Grid, source: str | Path, settings: dict[str, Any], data_root: str = "", precision: str = ""
) -> list[Run]:
    """Return every run of ``grid`` for every one of its seeds, each after what it needs, else in the order of the file.

    ``settings`` go into the ``run`` section of all (results, threads, ...); ``data_root`` is for runs whose data set
    needs a folder and that name none, ``precision`` for those that want bf16, which then are other runs. Raises
    ``ConfigError`` naming ``source``.
    """
    seeds = {label: _seeds(grid, label, source) for label in grid.runs}
    for seed, keys in grid.by_seed.items():
        if seed not in grid.seeds:
            raise ConfigError(f"{source}: by_seed: {seed} is none of the seeds {grid.seeds}")
        _refuse_launcher_keys(_nested(keys), f"{source}: by_seed: {seed}")
        if named := _references(_nested(keys)):
            raise ConfigError(f"{source}: by_seed: {seed}: {REFERENCE}{named[0]}: name other runs in 'base' or 'runs'")
    reading = _reading(grid.reading, source)
    values = {label: _values(grid, label, reading, source) for label in grid.runs}
    for label, nested in values.items():
        _refuse_launcher_keys(nested, f"{source}: run '{label}'")
    runs: list[Run] = []
    for seed in dict.fromkeys(grid.seeds):
        made: dict[str, Run] = {}
        for label, needs in _ordered(values, source):
            if seed not in seeds[label]:
                continue
            for need in (need for need in needs if need not in made):
                raise ConfigError(f"{source}: run '{label}' needs '{need}', which has no seed {seed}")
            own = _map_references(values[label], lambda other, made=made: made[other].run_id)  # type: ignore[misc]
            merge(own, _nested(grid.by_seed.get(seed, {})))
            own["seed"] = seed
            merge(own, {"run": {**settings, "grid": grid.name, "label": label}})
            config = from_dict(own, f"{source}: run '{label}'")
            if config.data.name in ON_DISK and not config.data.root:
                data = config.data.model_copy(update={"root": data_root})
                config = config.model_copy(update={"data": data})
            if precision and config.optim.precision == "bf16":
                optim = config.optim.model_copy(update={"precision": precision})
                config = config.model_copy(update={"optim": optim})
            made[label] = Run(label, config, tuple(made[need] for need in needs))
        runs += made.values()
    _refuse_twins(runs, source)
    labels = list(values)
    return sorted(runs, key=lambda run: (run.stage, labels.index(run.label)))


def select(runs: list[Run], labels: list[str], seeds: Sequence[int] = ()) -> list[Run]:
    """Return the runs with these labels (all without labels), of these seeds (likewise), and what they need; same
    order. Raises ``ConfigError`` for a label or a seed that the grid lacks."""
    known = {run.label for run in runs}
    for label in labels:
        if label not in known:
            raise ConfigError(f"--only: {unknown_key(label, sorted(known), 'label')}")
    if unknown := set(seeds) - {run.config.seed for run in runs}:
        raise ConfigError(f"--seeds: the grid has no seed {min(unknown)}")
    wanted: dict[Run, None] = {}
    for run in runs:
        if (not labels or run.label in labels) and (not seeds or run.config.seed in seeds):
            wanted |= dict.fromkeys(with_needs(run))
    if runs and not wanted:
        raise ConfigError(f"--only {' '.join(labels)}: these runs have none of the seeds {', '.join(map(str, seeds))}")
    return [run for run in runs if run in wanted]


def with_needs(run: Run) -> Iterator[Run]:
    """Yield a run and all that it needs."""
    yield run
    for need in run.needs:
        yield from with_needs(need)


def lost(runs: list[Run]) -> list[Run]:
    """Return finished runs whose networks are not here, although runs that are still to do start from them."""
    todo = {run for run in runs if run.done is None}
    for run in reversed(runs):  # each comes before what it needs, which may need another
        if run in todo and run.start and run.start.network_lost:
            todo.add(run.start)
    return [run for run in runs if run in todo and run.network_lost]


class Reading(BaseModel):
    """Reading of the paper, an entry of ``slurm/readings.yaml``: ``why``, and Config keys for runs of HiAP and for runs
    of every method."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    why: str
    hiap: dict[str, Any] = {}
    all: dict[str, Any] = {}


def _reading(name: str, source: str | Path) -> Reading:
    if not name:
        return Reading(why="")
    known = yaml.load(READINGS.read_text(encoding="utf-8"), settings_file.StrictLoader)
    if name not in known:
        raise ConfigError(f"{source}: reading: {unknown_key(name, list(known), 'reading')}")
    return Reading.model_validate(known[name])


def _seeds(grid: Grid, label: str, source: str | Path) -> list[int]:
    own = grid.runs[label].get("seeds", grid.seeds)
    if not isinstance(own, list) or not own or any(seed not in grid.seeds for seed in own):
        raise ConfigError(f"{source}: run '{label}': seeds must be a list of some of {grid.seeds}, not {own!r}")
    return own


def _values(grid: Grid, label: str, reading: Reading, source: str | Path) -> dict[str, Any]:
    """Return the nested Config keys of a run: base, the reading, what it is ``like``, its own."""
    own = {key: value for key, value in grid.runs[label].items() if key not in ("like", "seeds")}
    names = grid.runs[label].get("like", [])
    above: list[dict[str, Any]] = []
    for name in names if isinstance(names, list) else [names]:
        if not isinstance(name, str) or name not in grid.shared:
            hint = unknown_key(str(name), list(grid.shared), "name") if grid.shared else "no 'shared'"
            raise ConfigError(f"{source}: run '{label}': like: {hint}")
        above.append(_nested(grid.shared[name]))
    above.append(_nested(own))
    merged = merge(_nested(grid.base), _nested(reading.all))
    method = next((part["method"] for part in reversed([merged, *above]) if "method" in part), "hiap")
    for part in [*([_nested(reading.hiap)] if method == "hiap" else []), *above]:
        merge(merged, part)
    return merged


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    """Turn ``{'optim.epochs': 5}`` into ``{'optim': {'epochs': 5}}``: a grid may use the dotted keys of the command
    line."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        value = _nested(value) if isinstance(value, dict) else value
        for part in reversed(str(key).split(".")):
            value = {part: value}
        if twice := set(dotted(nested)) & set(dotted(value)):
            raise ConfigError(f"key '{min(twice)}' is given twice, with a dot and in a section")
        merge(nested, value)
    return nested


def dotted(values: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Turn sections into dotted keys: ``{'optim': {'epochs': 5}}`` into ``{'optim.epochs': 5}``."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= dotted(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return found


def _refuse_launcher_keys(values: dict[str, Any], where: str) -> None:
    section = values.get("run")
    given = {*values, *(f"run.{key}" for key in section)} if isinstance(section, dict) else set(values)
    for key in SET_BY_LAUNCHER:
        if key in given:
            hint = "use the grid's 'seeds'" if key == "seed" else "the launcher sets it"
            raise ConfigError(f"{where}: {key} cannot be set in a grid; {hint}")


def _ordered(values: dict[str, dict[str, Any]], source: str | Path) -> Iterator[tuple[str, list[str]]]:
    """Yield labels with the labels that they refer to, needs first. Raises ``ConfigError`` for unknown labels and
    circles."""
    needs = {label: _references(nested) for label, nested in values.items()}
    for label, others in needs.items():
        for other in others:
            if other not in values:
                near = unknown_key(other, list(values), "label")
                raise ConfigError(f"{source}: run '{label}': {REFERENCE}{other}: {near}")
    try:
        for label in TopologicalSorter(needs).static_order():
            yield label, needs[label]
    except CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        raise ConfigError(f"{source}: runs need each other in a circle: {circle}") from None


def _references(value: Any) -> list[str]:
    """Return <x> of every 'run:<x>' in nested ``value``."""
    if isinstance(value, dict):
        return [other for item in value.values() for other in _references(item)]
    return [value.removeprefix(REFERENCE)] if isinstance(value, str) and value.startswith(REFERENCE) else []


def _map_references(value: Any, replace: Callable[[str], str]) -> Any:
    """Return a copy of nested ``value`` in which every 'run:<x>' is 'run:<replace(x)>'."""
    if isinstance(value, dict):
        return {key: _map_references(item, replace) for key, item in value.items()}
    if isinstance(value, str) and value.startswith(REFERENCE):
        return REFERENCE + replace(value.removeprefix(REFERENCE))
    return value


def _refuse_twins(runs: list[Run], source: str | Path) -> None:
    first: dict[str, str] = {}
    for run in runs:
        if run.run_id in first:
            raise ConfigError(f"{source}: runs '{first[run.run_id]}' and '{run.label}' are the same configuration")
        first[run.run_id] = run.label
