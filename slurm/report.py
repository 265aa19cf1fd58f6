"""What the launcher shows: the list of a dry run, progress while runs execute, the table at the end."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal, TextIO

from hiap.data.loader import published_size
from hiap.train.config import ConfigError
from hiap.train.record import Folders, Summary, now, read, read_status, summary
from slurm import estimate
from slurm.grid import Run
from slurm.jobs import Jobs, Queued, checkpoint_of

State = Literal["waiting", "running", "finished", "failed", "not run"]
STALE_SECONDS = 900.0  # without a word; a look at the loss, every 50 steps, or a measurement may take minutes
PLAIN_SECONDS = 30.0  # between two looks at running runs where lines cannot be updated in place


@dataclass
class Progress:
    """Progress of a run. ``note``: why it failed, or which run it lacks."""

    run: Run
    state: State
    note: str = ""


class Screen:
    """Screen of the launcher: one line per run, updated in place on a terminal; elsewhere a line per event, and some as
    time passes."""

    def __init__(self, stream: TextIO):
        self.stream, self.live = stream, stream.isatty()
        self.since = now()
        self.drawn = 0
        self.printed: dict[Run, tuple[State, float]] = {}

    def show(self, progress: list[Progress]) -> None:
        if self.live:
            self._redraw(progress)
        else:
            self._print_changes(progress)

    def _redraw(self, progress: list[Progress]) -> None:
        width, height = shutil.get_terminal_size()
        room = max(1, height - 2)
        if len(progress) > room:  # what moves, or went wrong, is what one wants to see
            rank = {"running": 0, "failed": 1, "not run": 2, "waiting": 3, "finished": 4}
            progress = sorted(progress, key=lambda p: rank[p.state])[:room]
        longest = max(len(name(p.run)) for p in progress)
        lines = [self._line(p, longest)[: width - 1] for p in progress]
        up = f"\x1b[{self.drawn}A" if self.drawn else ""
        self.stream.write(up + "".join(f"\x1b[2K{line}\n" for line in lines))
        self.stream.flush()
        self.drawn = len(lines)

    def _print_changes(self, progress: list[Progress]) -> None:
        due = []
        for p in progress:
            state, at = self.printed.get(p.run, ("waiting", 0.0))
            if p.state != state or (p.state == "running" and time.monotonic() - at > PLAIN_SECONDS):
                self.printed[p.run] = (p.state, time.monotonic())
                due.append(p)
        width = max(len(name(p.run)) for p in progress)
        for p in due:
            print(self._line(p, width), file=self.stream, flush=True)

    def _line(self, p: Progress, width: int) -> str:
        return f"{name(p.run):<{width}}  {p.state:<8}  {self._detail(p)}".rstrip()

    def _detail(self, p: Progress) -> str:
        if p.state == "finished":
            return _summary(p.run.folders.record)
        if p.state == "waiting":
            return lacking(p.run)
        if p.state != "running":
            return p.note
        status = read_status(p.run.folders)
        if status.get("state") != "running" or status.get("updated", "") < self.since:
            return "no epoch yet"
        if status["epoch"] == status["epochs"]:
            return f"epoch {status['epoch']}/{status['epochs']}  measuring"
        return (
            f"epoch {status['epoch']}/{status['epochs']}  loss {status['loss']:.3f}  {duration(status['eta_s'])} to go"
        )


def lacking(run: Run) -> str:
    """Return 'needs dense, hiap', the runs that this one still waits for; '' if it waits for none."""
    labels = ", ".join(need.label for need in run.needs if not need.finished)
    return labels and f"needs {labels}"


def name(run: Run) -> str:
    """Return the label of a run, with its seed unless that is 0."""
    return run.label if run.config.seed == 0 else f"{run.label}/{run.config.seed}"


def dry_run(runs: list[Run], bench: Path) -> str:
    """Return a table of the runs in the order in which they would start, and the cost of those that are not finished;
    GPU-hours from what was measured in the folder ``bench``."""
    rows, todo = [], []
    for run in runs:
        if run.done is None:
            todo.append(run)
        macs = estimate.train_macs(run.config)
        rows.append(
            [
                run.label,
                str(run.config.seed),
                run.run_id,
                _outlook(run),
                ", ".join(need.label for need in run.needs) or "-",
                str(run.config.optim.trained),
                f"{published_size(run.config.data).train:,}",
                "unknown" if macs is None else f"{macs / 1e12:,.1f}",
            ]
        )
    header = ["label", "seed", "run id", "state", "needs", "epochs", "images", "TMACs"]
    gpu = [_gpu_cost(todo, bench)] if any(run.config.run.device == "cuda" for run in todo) else []
    return "\n".join([table(header, rows, left=(0, 2, 3, 4)), "", _cost(todo), *gpu])


def _outlook(run: Run) -> str:
    """Return what a launch would make of a run."""
    if run.finished:
        return "finished"
    if done := run.done:
        return f"finished in {done.grid}"
    return "would resume" if checkpoint_of(run.folders) else "would run"


def _gpu_cost(todo: list[Run], bench: Path) -> str:
    """Return the GPU-hours of the runs whose network was timed, and how to measure what the others need."""
    hours, devices, unknown = 0.0, set[str](), dict[str, int]()
    for run in todo:
        found = estimate.gpu_hours(run.config, bench)
        if found is None:
            hint = estimate.bench_hint(run.config)
            unknown[hint] = unknown.get(hint, 0) + 1
        else:
            hours += found[0]
            devices.add(found[1])
    known = len(todo) - sum(unknown.values())
    lines = [f"About {hours:,.0f} GPU-hours on {', '.join(sorted(devices))}, from the step times in results/bench"]
    lines = [f"{lines[0]}, for {known} of {len(todo)} runs."] if known else []
    for hint, count in unknown.items():
        lines.append(
            f"GPU-hours of {count} runs are not known, as no training step of their network was timed on a GPU. {hint}"
        )
    return "\n".join(lines)


def _cost(todo: list[Run]) -> str:
    macs = [estimate.train_macs(run.config) for run in todo]
    sizes = [size for run in todo if (size := estimate.disk_bytes(run.config))]
    total = sum(m for m in macs if m is not None)
    kept, most = sum(size for size, _ in sizes), max((size for _, size in sizes), default=0)
    cost = f"{total / 1e15:,.2f} PMACs" if total >= 1e15 else f"{total / 1e12:,.1f} TMACs"
    unknown = f", {macs.count(None)} of unknown cost" if None in macs else ""
    return (
        f"{len(todo)} of them to do{unknown}: about {cost} of training, {kept / 1e6:,.0f} MB on disk, and\n"
        f"{most / 1e6:,.0f} MB for each of those that train at once.\n"
        "Counted: forward, backward (twice the forward) and the teacher's forward (once an image where\n"
        "distill.precompute); a network that is to be pruned to what another run leaves counts as dense until\n"
        "that run is finished."
    )


def results(runs: list[Run], published: Path | None) -> str:
    """Return a table of the finished runs; beside them the accuracy that the results root ``published``, if any, has
    for the same run."""
    rows = []
    for run in runs:
        if not run.finished:
            continue
        row = _result_row(run, finished_summary(run.folders.record))
        there = Folders(published, run.folders.grid, run.run_id).record if published else None
        row.append(summary(there).top1 if there and there.exists() else "")
        rows.append(row)
    header = ["run", "seed", "top-1 %", "soft", "hardened", "MACs M", "of start", "params", "epochs", "s", "published"]
    if not any(row[-1] for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    return table(header, rows, left=(0,))


def _result_row(run: Run, record: Summary) -> list[str]:
    scores = (record.metrics.extracted, record.metrics.soft, record.metrics.hardened)
    top1, soft, hardened = ("" if score is None else f"{score.top1:.2f}" for score in scores)
    size = record.size
    cost = (
        [f"{size.macs / 1e6:,.2f}", f"{size.macs / size.dense_macs:.1%}", f"{size.params / 1e6:,.3f} M"]
        if size
        else [""] * 3
    )
    epochs, seconds = sum(s.epochs for s in record.stages), sum(s.seconds for s in record.stages)
    return [run.label, str(run.config.seed), top1, soft, hardened, *cost, str(epochs), f"{seconds:,.0f}"]


def status(runs: list[Run], jobs: Jobs, listed: dict[str, Queued] | None) -> str:
    """Return a table of where every run stands, by records, by the status files that runs keep, and by the queue
    ``listed`` where there is one, which alone knows whether a job still lives."""
    rows, counts, cancelled = [], Counter[str](), jobs.cancelled()
    for run in runs:
        job = jobs.newest(run)
        state = "cancelled" if run.run_id in cancelled and job not in (listed or ()) else None
        row = _finished_row(run) or _status_row(run, state, job, listed)
        counts[row[2]] += 1
        rows.append(row)
    header = ["run", "seed", "state", "epoch", "top-1 % / loss", "MACs", "to go", "node", "restarts", "why"]
    return f"{table(header, rows, left=(0, 2, 7, 9))}\n\n{', '.join(f'{n} {state}' for state, n in counts.items())}"


def _finished_row(run: Run) -> list[str]:
    """Return the row of a finished run; [] if neither this grid nor another has the record."""
    if (done := run.done) is None:
        return []
    found = summary(done.record)
    epochs = str(sum(stage.epochs for stage in found.stages))
    where = "" if done == run.folders else f"in grid {done.grid}"
    row = [run.label, str(run.config.seed), "finished", epochs, found.top1, found.share]
    return [*row, "", "", str(found.resumed), where]


def _status_row(run: Run, known: str | None, job: str, listed: dict[str, Queued] | None) -> list[str]:
    found = read_status(run.folders)
    state = known or _state(found, job, listed)
    if state == "waiting":
        return [run.label, str(run.config.seed), state, *[""] * 6, lacking(run)]
    return [
        run.label,
        str(run.config.seed),
        state,
        f"{found['epoch']}/{found['epochs']}" if "epoch" in found else "",
        f"{found['loss']:.3f}" if "loss" in found else "",
        f"{found['share']:.1%}" if found.get("share") else "",
        duration(found["eta_s"]) if state == "running" and "eta_s" in found else "",
        found.get("node", ""),
        str(max(found.get("resumed", 0), found.get("restarts", 0)) or ""),
        found.get("error", ""),
    ]


def _state(found: dict[str, Any], job: str, listed: dict[str, Queued] | None) -> str:
    """Return what a status file says, as far as it can be true: 'lost' is a run whose job has left the queue without a
    word, 'stale' one that has said nothing for long where no queue can be asked."""
    state = found.get("state", "waiting")
    live = state in ("running", "starting")
    if job and listed is not None:
        if job in listed:
            return "queued" if listed[job].state == "PENDING" else state if live else "starting"
        return "lost" if live or state == "queued" else state
    return "stale" if live and _age(found) > STALE_SECONDS else state


def _age(found: dict[str, Any]) -> float:
    """Return the seconds since a status file was written."""
    return time.time() - datetime.fromisoformat(found["updated"]).timestamp() if found.get("updated") else 0.0


def table(header: list[str], rows: list[list[str]], left: tuple[int, ...]) -> str:
    """Return columns two spaces apart; those in ``left`` aligned left, numbers right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(row: list[str]) -> str:
        cells = [c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        return "  ".join(cells).rstrip()

    return "\n".join([line(header), "  ".join("-" * w for w in widths), *map(line, rows)])


def duration(seconds: float) -> str:
    """Return so many seconds in words."""
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {s:02} s" if minutes else f"{s} s"


def finished_summary(record: Path) -> Summary:
    """Read the summary of a finished record, once as long as it is the same file: a rerun leaves another."""
    return _read_once(record, record.stat().st_mtime_ns)


@cache
def _read_once(record: Path, _: int) -> Summary:
    return summary(record)


def _summary(record: Path) -> str:
    found = finished_summary(record)
    return f"top-1 {found.top1} % in {duration(sum(stage.seconds for stage in found.stages))}"


def recorded_failure(run: Run, since: float) -> str | None:
    """Return what a run's newest failed record says, if it was written after ``since`` (unix time)."""
    attempts = sorted(run.folders.failed_records(), key=lambda path: path.stat().st_mtime)
    if not attempts or attempts[-1].stat().st_mtime < since:
        return None
    try:
        return read(attempts[-1]).error
    except ConfigError as error:
        return str(error)
