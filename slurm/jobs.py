"""Which SLURM jobs each run of a grid has had: a file beside their logs, so that launchers after one another submit
nothing twice, and the little that several commands on one grid must tell each other.

``jobs.json``::

    jobs      run id -> job ids, the newest last
    tries     run id -> jobs that died without a record and without having come any further
    reached   run id -> its newest checkpoint when its newest job was submitted
    intents   submissions that were begun and not noted yet: job name, run ids, how many to a job, time
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hiap.files import write_json
from hiap.train.record import Folders, read_status
from slurm.grid import Run
from slurm.locks import locked


class Jobs:
    """Jobs of a grid's runs, by ``jobs.json`` of the folder ``logs``."""

    def __init__(self, logs: Path):
        self.logs, self.file = logs, logs / "jobs.json"
        self.reload()

    def reload(self) -> None:
        empty: dict[str, Any] = {"jobs": {}, "tries": {}, "reached": {}, "intents": []}
        found = {**empty, **(json.loads(self.file.read_text(encoding="utf-8")) if self.file.exists() else {})}
        self.ids: dict[str, list[str]] = found["jobs"]
        self.tries: dict[str, int] = found["tries"]
        self.reached: dict[str, str] = found["reached"]
        self.intents: list[dict[str, Any]] = found["intents"]

    def save(self) -> None:
        kept = {"jobs": self.ids, "tries": self.tries, "reached": self.reached, "intents": self.intents}
        write_json(self.file, kept)

    def newest(self, run: Run) -> str:
        """Return the newest job of a run; '' if it has had none."""
        return self.ids.get(run.run_id, [""])[-1]

    def intend(self, name: str, runs: list[Run], pack: int = 1) -> None:
        """Note a submission before sbatch: should this process die with it, the jobs can be found by their name."""
        ids = [run.run_id for run in runs]
        self.intents.append({"name": name, "runs": ids, "pack": pack, "time": time.time()})
        self.reached |= {run.run_id: checkpoint_of(run.folders) for run in runs}
        self.save()

    def note(self, name: str, ids: list[str]) -> None:
        """Note the jobs after sbatch; ``ids`` in the order of the packs, none if there are no such jobs."""
        (intent,) = [intent for intent in self.intents if intent["name"] == name]
        self.intents.remove(intent)
        for pack, job in zip(packs_of(intent), ids, strict=False):
            for run_id in pack:
                self.ids.setdefault(run_id, []).append(job)
        self.save()

    def recheck(self, name: str) -> None:
        """Have the queue asked before the next submission whether it took these jobs all the same: sbatch has
        failed."""
        next(intent for intent in self.intents if intent["name"] == name)["time"] = 0
        self.save()

    def count_try(self, run: Run) -> int:
        """Count the jobs of a run, the one that has just died included, that brought it no further; one that was told
        to stop, or that got to a newer checkpoint, is no sign of an error."""
        healthy = read_status(run.folders).get("state") == "stopped"
        if not healthy and checkpoint_of(run.folders) <= self.reached.get(run.run_id, ""):
            self.tries[run.run_id] = self.tries.get(run.run_id, 0) + 1
            self.save()
        return self.tries.get(run.run_id, 0)

    def forget_tries(self, run: Run) -> None:
        self.tries.pop(run.run_id, None)
        self.save()

    def alone(self, runs: list[Run]) -> set[str]:
        """Return the newest jobs of these runs that are no other run's newest job too."""
        ids = {run.run_id for run in runs}
        others = {jobs[-1] for run_id, jobs in self.ids.items() if jobs and run_id not in ids}
        return {job for run in runs if (job := self.newest(run))} - others

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Keep other launchers from following this grid. Raises ``ConfigError`` if one does."""
        with locked(self.logs / "launcher.lock", wait=False):
            self.reload()
            yield

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Keep other commands on this grid from submitting or cancelling."""
        with locked(self.logs / "jobs.lock", wait=True):
            yield

    def cancelled(self) -> set[str]:
        """Return the ids of runs that ``--cancel`` has taken away from whichever launcher follows them."""
        file = self.logs / "cancelled.json"
        return set(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else set()

    def cancel(self, runs: list[Run]) -> None:
        write_json(self.logs / "cancelled.json", sorted(self.cancelled() | {run.run_id for run in runs}))

    def uncancel(self, runs: list[Run]) -> None:
        """Forget that these runs were cancelled: launched again, they are wanted again."""
        if left := self.cancelled():
            write_json(self.logs / "cancelled.json", sorted(left - {run.run_id for run in runs}))


@dataclass(frozen=True)
class Queued:
    """Line of squeue."""

    state: str
    name: str


def answer(*command: str, seconds: float = 60) -> str | None:
    """Return what a command of SLURM's prints; None if it is not there, fails, or says nothing in time: one whose
    controller is away asks it for a minute and more."""
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=seconds)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout


def queue() -> dict[str, Queued] | None:
    """Return this user's jobs; None if no controller answers."""
    listing = answer("squeue", "--me", "-r", "-h", "-o", "%i|%T|%j")
    if listing is None:
        return None
    lines = [[*line.split("|", 2), "", ""] for line in listing.split("\n") if line]
    return {line[0]: Queued(line[1], line[2]) for line in lines}


def packs_of(intent: dict[str, Any]) -> list[list[str]]:
    """Return the run ids by job."""
    runs, pack = intent["runs"], intent.get("pack", 1)
    return [runs[i : i + pack] for i in range(0, len(runs), pack)]


def checkpoint_of(folders: Folders) -> str:
    """Return stage and step of the newest checkpoint, as text that sorts; '' without one."""
    names = [path.name.rsplit("-", 1)[0] for path in folders.checkpoints.glob("[0-9]*.pt")]
    return max(names, default="")
