"""Run a grid: ``python slurm/launch_grid.py [--grid laptop] [--cluster auto] [--only LABEL ...] [--dry-run]``.

Everything is checked before anything starts. Finished runs are skipped and interrupted ones resumed, so the same
command can be given again at any time. A run starts when the runs that it needs are finished; when one fails, those
that need it are reported as not run and all others go on. What another grid of the same results has finished is copied,
not run again. Exit status: 0 all finished, 1 some failed, 2 nothing could be started, 130 or 143 stopped, 124 stopped
because the time of --budget was over.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # the checkout that this file is of, whichever one the environment has installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import os
import signal
import tempfile
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

from hiap.cli import parsers
from hiap.data import loader as data
from hiap.train import identity
from hiap.train.config import ON_DISK, ConfigError, check_needs, check_table
from hiap.train.reach import check_reach
from hiap.train.record import Record, read, read_briefly, write
from slurm import estimate, report
from slurm import grid as grids
from slurm import site as sites
from slurm.doctor import diagnose
from slurm.grid import Grid, Run
from slurm.job import THREAD_VARIABLES
from slurm.jobs import Jobs, queue
from slurm.page import Page
from slurm.prefetch import prefetch
from slurm.report import Progress, Screen
from slurm.site import Site

if TYPE_CHECKING:
    from slurm.executors import Executor

ROOM = 2**20  # bytes that must be free
OVER = 124  # as of timeout(1)
LOST = "its record is here, its network is not: it is made again for runs that start from it"
PUBLISHED = Path(__file__).resolve().parents[1] / "results"


def main(arguments: list[str] | None = None) -> int:
    """Launch, or look at, a grid; return the exit status (see the module docstring)."""
    begin = time.monotonic()
    signal.signal(signal.SIGTERM, _stop_asked)
    try:
        args = _arguments(arguments)
        path = grids.find(args.grid)
        grid = grids.load(path)
        jobs = args.jobs or grid.jobs
        site = sites.load(args.site)
        looks = args.dry_run or args.status or args.collect or args.prefetch
        cluster = args.cluster if looks else _cluster("slurm" if args.cancel or args.doctor else args.cluster)
        threads = grid.threads or (1 if cluster == "slurm" or args.dry_run else max(1, _cores() // jobs))
        if args.budget is not None and cluster == "slurm":
            raise ConfigError("--budget: for runs of this machine; on SLURM, time_min of site.yaml limits a job")
        results = Path(args.results or site.results or "results/local")
        settings = {"results": str(results), "threads": threads, "progress": cluster == "debug"}
        runs = grids.expand(grid, path, settings, site.data_root, site.precision)
        runs = grids.select(runs, args.only, args.seeds)
        if args.resubmit:
            runs = _failed(runs)
        if args.status or args.collect:
            print(_status(runs) if args.status else _results(runs))
            return 0
        if args.cancel:
            print(f"cancelled {_executor('slurm', runs, None, site, grid).cancel(runs)} jobs")
            return 0
        if args.doctor:
            found = diagnose(runs, site, grid.processes, _logs(runs).absolute())
            print(found)
            return 1 if found.wrong else 0
        if args.prefetch or (cluster == "slurm" and site.prefetch and not args.dry_run):
            fetched = prefetch(runs, site)
            if args.prefetch:
                print("\n".join(fetched) or "These runs download nothing, or are finished.")
                return 0
        on_nodes = site.data_on_nodes and cluster not in ("local", "debug")
        if not args.dry_run:
            stale = _stale(runs, path, on_nodes, args.rerun)
            _check(runs, results, path, grid.closes_by, on_nodes)
        print(_title(grid, path))
        if args.dry_run:  # the cost is shown also where the data are not
            print("".join(f"{report.name(run)}: {LOST}\n" for run in grids.lost(runs)), end="")
            print(f"{report.dry_run(runs, PUBLISHED / 'bench')}\n\n{_script(runs, args.site, grid.processes)}")
            _stale(runs, path, on_nodes, args.rerun)
            _check(runs, results, path, grid.closes_by, on_nodes)
            return 0
        executor = _executor(cluster, runs, jobs if cluster != "slurm" else args.jobs, site, grid)
        with _threads(threads), Budget(args.budget, begin) as budget:
            return _launch(runs, executor, budget, stale)
    except (ConfigError, OSError) as error:
        return _refused(error)


def _refused(error: Exception) -> int:
    """Tell in one line what is wrong; return the exit status."""
    if isinstance(error, BrokenPipeError):
        raise error
    if isinstance(error, OSError):  # a disk that is full, say: of that the jobs tell their own story
        what = f"{error.filename}: {error.strerror}" if error.filename else error
        line = f"error: {what}; finished results are kept, and jobs go on. Launch again when it is mended"
        print(line, file=sys.stderr)
        return 1
    print(f"error: {error}", file=sys.stderr)
    return 2


class Budget:
    """Context in which the launcher is told to stop in time to be gone ``seconds`` after ``begin``
    (``time.monotonic``): by SIGALRM, and then as by SIGTERM. A fifth of the time, and at most half a minute, is for the
    stopping."""

    def __init__(self, seconds: float | None, begin: float):
        self.seconds, self.over = seconds, False
        self.end = begin + (seconds or 0)
        self.reserve = min(30.0, (seconds or 0) / 5)

    def __enter__(self) -> Budget:
        if self.seconds is not None:
            self.before = signal.signal(signal.SIGALRM, self._tell)
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, self.end - self.reserve - time.monotonic()))
        return self

    def __exit__(self, *_: object) -> None:
        if self.seconds is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self.before)

    def _tell(self, number: int, frame: Any) -> None:
        self.over = True
        signal.raise_signal(signal.SIGTERM)  # to whoever listens now: a run in this process, or the launcher

    def left(self) -> float:
        """Return the seconds for the stopping."""
        return max(1.0, self.end - time.monotonic()) if self.over else 40.0


def _launch(runs: list[Run], executor: Any, budget: Budget, stale: Sequence[Run] = ()) -> int:
    try:
        with executor.followed(runs), _ended(executor, budget):
            for run in stale:
                run.folders.set_aside()
                print(f"{report.name(run)}: runs again")
            _take_over(runs)
            _make_again(runs)
            page = Page(_logs(runs).parent / "status.html", runs[0].folders.grid)
            print(f"status page: {page.file}\n")
            progress = execute(runs, executor, Screen(sys.stdout), page)
    except KeyboardInterrupt as stop:
        if budget.over:
            done = sum(run.finished for run in runs)
            print(f"--budget {budget.seconds:g}: {done} of {len(runs)} runs are finished; launch again to go on")
            return OVER
        return stop.args[0] if stop.args else 130
    print(f"\n{_results(runs)}")
    _compare_again(runs)
    for p in progress:
        if p.state in ("failed", "not run"):
            print(f"{report.name(p.run)}: {p.state} ({p.note})")
    print(f"\nrecords: {runs[0].folders.runs}")
    return 0 if all(p.state == "finished" for p in progress) else 1


@contextmanager
def _ended(executor: Any, budget: Budget) -> Iterator[None]:
    """See to it, if the launcher is told to stop, that no run goes on that must not, and that the user is told."""
    try:
        yield
    except KeyboardInterrupt:
        print("stopping ...", flush=True)
        print(executor.stop(budget.left()))
        raise


def execute(runs: list[Run], executor: Executor, *screens: Screen | Page) -> list[Progress]:
    """Bring every run to an end: finished, failed, or not run because one that it needs failed."""
    since = time.time()
    progress = {run: Progress(run, "finished" if run.finished else "waiting") for run in runs}
    for p in progress.values():
        if p.state == "waiting" and executor.alive(p.run):  # a job of an earlier launcher
            p.state = "running"
    while any(p.state in ("waiting", "running") for p in progress.values()):
        for p in progress.values():
            _look(p, any(progress[need].state in ("failed", "not run") for need in p.run.needs), executor, since)
        start = _startable(list(progress.values()), executor)
        for p in start:
            p.state = "running"
        for screen in screens:
            screen.show(list(progress.values()))
        refused = executor.submit([p.run for p in start])
        for run in refused:
            progress[run].state = "waiting"
        executor.wait()
    for screen in screens:
        screen.show(list(progress.values()))
    return list(progress.values())


def _look(p: Progress, lost_need: bool, executor: Executor, since: float) -> None:
    """Look what has become of a run since the last look."""
    if p.state not in ("waiting", "running"):
        return
    if p.state == "running" and p.run.finished:
        p.state = "finished"
    elif executor.cancelled(p.run):
        p.state, p.note = "not run", "cancelled"
    elif p.state == "running" and not executor.alive(p.run):
        _settle(p, lost_need, executor, since)
    elif p.state == "waiting" and lost_need:
        _lacks_need(p)


def _settle(p: Progress, lost_need: bool, executor: Executor, since: float) -> None:
    """Set the next state of a run whose job has ended, with or without a record."""
    if p.run.finished:
        p.state = "finished"
    elif lost_need:
        _lacks_need(p)
    elif not all(need.finished for need in p.run.needs):  # the job of one has died, and that one may get another
        p.state, p.note = "waiting", ""
    elif (error := report.recorded_failure(p.run, since)) is None and executor.again(p.run):
        p.state, p.note = "waiting", "again: its job died"
    else:
        p.state, p.note = "failed", error or executor.reason(p.run) or "ended without a record"


def _take_over(runs: list[Run]) -> None:
    """Copy records from other grids, since a grid's folder holds those of all its runs, and give its own label to one
    that the grid had by another: analyses go by labels. The command in a copy says which grid made it."""
    for run in runs:
        if run.finished:
            label, told = read_briefly(run.folders.record).label, "was labelled '{}' here; its record is relabelled"
            if label != run.label:
                _write_own(run, read(run.folders.record), told.format(label))
        elif there := run.done:
            _write_own(run, read(there.record), f"finished in grid {there.grid}; its record is copied")


def _write_own(run: Run, record: Record, told: str) -> None:
    own = {"grid": run.folders.grid, "label": run.label}
    config = record.config.model_copy(update={"run": record.config.run.model_copy(update=own)})
    write(record.model_copy(update={**own, "config": config}), run.folders)
    print(f"{report.name(run)}: {told}")


def _make_again(runs: list[Run]) -> None:
    """Prepare runs to be made again: in a fresh clone one may be needed whose record came along and whose network did
    not."""
    for run in grids.lost(runs):
        run.folders.work.mkdir(parents=True, exist_ok=True)
        run.folders.record.replace(run.folders.earlier)
        print(f"{report.name(run)}: {LOST}")


def _compare_again(runs: list[Run]) -> None:
    """Tell where a run that was made again did not come out as recorded, as on another type of CPU."""
    for run in runs:
        if not (run.finished and run.folders.earlier.exists()):
            continue
        new, old = read(run.folders.record), read(run.folders.earlier)
        if new.metrics != old.metrics:
            kinds = [
                f"{r.metrics.extracted and r.metrics.extracted.top1} % ({r.environment.device_name})"
                for r in (old, new)
            ]
            print(
                f"{report.name(run)}: recorded {kinds[0]}, now {kinds[1]}; runs from before belong to the earlier one"
            )
        run.folders.earlier.unlink()


def _stale(runs: list[Run], source: Path, on_nodes: bool, rerun: bool) -> list[Run]:
    """Return finished runs that are not what their configuration would give now, and those that start from them: to be
    run again if ``rerun``, else refused. ``on_nodes``: photographs cannot be looked at here. Raises ``ConfigError``."""
    known, stale, records = identity.Known(), dict[Run, str](), list[Record]()
    for run in runs:
        if (folders := run.done) is None:
            continue
        record, config = read_briefly(folders.record), run.config
        if on_nodes and config.data.name in ON_DISK:
            record = record.model_copy(update={"images": None})
        records.append(record)
        try:
            found = identity.differences(record, config, folders, known)
        except ConfigError as error:
            raise ConfigError(f"{source}: run '{run.label}': {error}") from None
        if found and not run.finished:
            raise ConfigError(
                f"grid {folders.grid}: {identity.in_one_line(record, found)}; --results names another folder"
            )
        if found:
            stale[run] = identity.in_one_line(record, found)
        elif run.finished and (need := next((need for need in run.needs if need in stale), None)):
            stale[run] = f"{run.run_id} started from {need.run_id}"
    if doubt := identity.doubts(records):
        print(doubt, file=sys.stderr)
    if stale and not rerun:
        first, more = next(iter(stale)), f" (and {len(stale) - 1} more)" if len(stale) > 1 else ""
        raise ConfigError(f"{source}: run '{first.label}'{more}: {stale[first]}; --rerun trains it again")
    return list(stale)


def _failed(runs: list[Run]) -> list[Run]:
    """Return runs that have failed and not finished since, with what they need. Raises ``ConfigError`` if there is
    none."""
    failed = [run for run in runs if not run.finished and run.folders.failed_records()]
    if not failed:
        raise ConfigError("--resubmit failed: no run of this grid has failed without finishing since")
    wanted = {id(need) for run in failed for need in grids.with_needs(run)}
    return [run for run in runs if id(run) in wanted]


def _lacks_need(p: Progress) -> None:
    p.state, p.note = "not run", report.lacking(p.run)


def _startable(progress: list[Progress], executor: Executor) -> list[Progress]:
    """Return the waiting runs to submit now. A queue takes all of them, since it knows what waits for what."""
    waiting = [p for p in progress if p.state == "waiting"]
    if executor.slots is None:
        return waiting
    free = executor.slots - sum(p.state == "running" for p in progress)
    ready = (p for p in waiting if all(need.finished for need in p.run.needs))
    return list(islice(ready, max(0, free)))  # no more of hundreds are looked at than can start


def _check(runs: list[Run], results: Path, source: Path, closes_by: int | None, on_nodes: bool) -> None:
    """Refuse everything that is wrong and can be known now, before anything is written. ``on_nodes``: photographs lie
    where the jobs run, and only there. Raises ``ConfigError``."""
    for run in runs:
        try:
            check_needs(run.config)
            check_table(run.config)
            warning = check_reach(run.config, estimate.steps_per_epoch(run.config), closes_by)
            if not (on_nodes and run.config.data.name in ON_DISK and run.config.data.root):
                data.check(run.config.data, run.config.model.img_size)
        except ConfigError as error:
            raise ConfigError(f"{source}: run '{run.label}': {error}") from None
        if warning and not run.finished and run.config.seed == runs[0].config.seed:  # seeds do not differ in it
            print(f"{source}: run '{run.label}': {warning}", file=sys.stderr)
        if run.finished:
            report.finished_summary(run.folders.record)
    todo = [run.folders.work for run in runs if not run.finished]
    for folder in dict.fromkeys(map(_there, (results, runs[0].folders.runs, _logs(runs), *todo))):
        try:
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(bytes(ROOM))  # an empty file fits on a full disk
        except OSError as error:  # one of them may be another user's
            raise ConfigError(f"--results {results}: cannot write in {folder} ({error.strerror})") from None


def _there(folder: Path) -> Path:
    """Return the folder, or where it is not there yet, that in which it would be made."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    args = parsers.launch().parse_args(arguments)
    if args.jobs is not None and args.jobs < 1:
        raise ConfigError(f"--jobs: expected at least 1, not {args.jobs}")
    if args.budget is not None and not 1 <= args.budget < float("inf"):
        raise ConfigError(f"--budget: expected at least 1 second, not {args.budget:g}")
    return args


def _cluster(asked: str) -> str:
    from slurm.executors import slurm_answers

    if asked == "auto":
        return "slurm" if slurm_answers() else "local"
    if asked == "slurm" and not slurm_answers():
        raise ConfigError("--cluster slurm: no SLURM controller answers here; expected 'scontrol ping' to succeed")
    return asked


def _executor(cluster: str, runs: list[Run], jobs: int | None, site: Site, grid: Grid) -> Any:
    from slurm.executors import Debug, Local, Slurm

    logs = _logs(runs)
    if cluster == "slurm":
        return Slurm(logs, jobs, site, grid.processes, grid.pack)
    return Local(logs, jobs or 1) if cluster == "local" else Debug()


def _script(runs: list[Run], file: Path | None, processes: int) -> str:
    """Return the sbatch script of the first array that would be submitted."""
    from slurm.submission import script

    todo = [run for run in runs if run.done is None]
    if not todo:
        return "Nothing would be submitted."
    first = min(run.stage for run in todo)
    array = [run for run in todo if run.stage == first]
    known = file or sites.FILE.exists()
    text = script(array, sites.load(file if known else sites.EXAMPLE), processes, _logs(runs).absolute())
    example = "" if known else f", with the settings of {_short(sites.EXAMPLE)} as there is no {_short(sites.FILE)}"
    return f"On SLURM, the first array, {len(array)} of {len(todo)} runs{example}:\n\n{text}"


def _status(runs: list[Run]) -> str:
    jobs = Jobs(_logs(runs))
    return report.status(runs, jobs, queue() if jobs.ids else None)


def _results(runs: list[Run]) -> str:
    return report.results(runs, _published(runs[0].folders.root))


def _logs(runs: list[Run]) -> Path:
    return runs[0].folders.root / "work" / runs[0].folders.grid / "_submitit"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Set the number of threads, which jobs inherit and which must be known before torch is imported."""
    from submitit.helpers import environment_variables

    with environment_variables(**dict.fromkeys(THREAD_VARIABLES, count)):
        yield


def _published(root: Path) -> Path | None:
    return None if root.resolve() == PUBLISHED else PUBLISHED


def _title(grid: Grid, path: Path) -> str:
    paragraphs = [f"Grid {grid.name} ({_short(path)}). {grid.about.strip()}"]
    if grid.published:
        paragraphs.append(f"Published: {grid.published.strip()}")
    return "\n".join(textwrap.fill(p, 98) for p in paragraphs) + "\n"


def _short(path: Path) -> Path:
    """Return the path relative to the current folder if it is below."""
    path, here = path.resolve(), Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _stop_asked(number: int, frame: Any) -> None:
    raise KeyboardInterrupt(128 + number)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # '... | head' has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
