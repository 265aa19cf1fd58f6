"""Where runs execute: in this process, in processes of this machine, or on SLURM; three classes with one interface.

``submit(runs)`` starts or queues them, ``alive(run)`` tells whether a run's job is still there, ``reason(run)`` why it
is not (the last line of its log), ``again(run)`` whether a job that died without a record is worth another, ``stop()``
ends what must not outlive the launcher and says what becomes of the rest.
Whether a run succeeded is never asked here: its record says so.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import submitit

from hiap.config import ConfigError
from hiap.record import write_json
from slurm import submission
from slurm.grid import Run
from slurm.job import Job
from slurm.site import Site

MONTH_MIN = 30 * 24 * 60
DEFAULTS = Site()


class Executor(Protocol):
    """``slots``: runs at once; None if a queue decides, which then takes all runs with their dependencies."""

    slots: int | None
    poll_s: float

    def submit(self, runs: list[Run]) -> None: ...
    def alive(self, run: Run) -> bool: ...
    def reason(self, run: Run) -> str: ...
    def again(self, run: Run) -> bool: ...
    def stop(self) -> str: ...


class Debug:
    """Each run in this process, one after the other: for debuggers and tests."""

    slots: int | None = 1
    poll_s = 0.0

    def __init__(self) -> None:
        self.errors: dict[Run, str] = {}

    def submit(self, runs: list[Run]) -> None:
        for run in runs:
            try:
                Job(run.config)()
            except Exception as error:
                from hiap.train import Interrupted  # with torch, which the other executors leave to their children

                if isinstance(error, Interrupted):
                    raise KeyboardInterrupt from None
                traceback.print_exc()
                self.errors[run] = one_line(f"{type(error).__name__}: {error}")

    def alive(self, run: Run) -> bool:
        return False

    def reason(self, run: Run) -> str:
        return self.errors.get(run, "")

    def again(self, run: Run) -> bool:
        return False

    def stop(self) -> str:
        return "finished runs are kept, the others resume when launched again"


class Local:
    """Processes of this machine through submitit, ``slots`` at once, each with one of the GPUs if there are any."""

    poll_s = 0.3

    def __init__(self, logs: Path, slots: int):
        self.slots: int | None = slots
        self.executor = submitit.LocalExecutor(logs)
        self.executor.update_parameters(timeout_min=MONTH_MIN)
        self.jobs: dict[Run, submitit.Job[None]] = {}
        self.gpus = visible_gpus()

    def submit(self, runs: list[Run]) -> None:
        for run in runs:
            gpu = self.gpus[len(self.jobs) % len(self.gpus)] if self.gpus else ""
            with _signals_held({signal.SIGINT}):
                self.jobs[run] = self.executor.submit(Job(run.config, gpu))

    def alive(self, run: Run) -> bool:
        return run in self.jobs and not self.jobs[run].done()

    def reason(self, run: Run) -> str:
        return last_line(self.jobs[run].paths.stderr)

    def again(self, run: Run) -> bool:
        return False

    def stop(self) -> str:
        """SIGTERM, which a run answers with a checkpoint at its next step; a second one, after a while or when the user
        asks again, ends it at once."""
        for patience_s in (30, 5):
            with suppress(KeyboardInterrupt):
                running = [job for run, job in self.jobs.items() if self.alive(run)]
                for job in running:
                    os.kill(int(job.job_id), signal.SIGTERM)  # submitit's controller, which passes it on
                end = time.monotonic() + patience_s
                while time.monotonic() < end and not all(job.done() for job in running):
                    time.sleep(0.1)
        return "finished runs are kept, the others resume when launched again"


class Slurm:
    """One job array per stage, or several where the site caps their size, started after the arrays that its runs need.
    Which jobs a run had is kept in a file, so that a launcher started again follows the jobs of the one before and
    submits nothing twice. Needs sbatch and squeue, not sacct. Jobs run a copy of the code: what is edited while they
    queue does not reach them."""

    slots: int | None = None
    poll_s = 5.0
    grace_s = 20.0  # between a job's leaving the queue and its record's being seen on a shared file system

    def __init__(self, logs: Path, at_once: int | None, site: Site = DEFAULTS, processes: int = 1):
        self.logs, self.at_once, self.site, self.file = logs.absolute(), at_once, site, logs / "jobs.json"
        self.processes = processes
        self.jobs: dict[str, list[str]] = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.tries: Counter[Run] = Counter()
        self.listed: set[str] | None = None
        self.listed_at = float("-inf")
        self.seen: dict[str, float] = {}

    def submit(self, runs: list[Run]) -> None:
        if not runs:
            return
        submission.check_resources(runs, self.site, self.processes)
        size = self.site.max_array or submission.largest_array()
        for stage in sorted({run.stage for run in runs}):
            whole = [run for run in runs if run.stage == stage]
            parts = [whole[i : i + size] for i in range(0, len(whole), size)]
            for part in parts:
                with _signals_held({signal.SIGINT, signal.SIGTERM}):  # a submission that is not noted is lost
                    self._submit(part, at_once=max(1, (self.at_once or len(whole)) // len(parts)))
            self.listed_at = float("-inf")  # the next stage must see these jobs

    def alive(self, run: Run) -> bool:
        if run.run_id not in self.jobs:
            return False
        job, now = self.jobs[run.run_id][-1], time.monotonic()
        queue = self._queue()
        if queue is None or job in queue:
            self.seen[job] = now
        return now - self.seen.get(job, float("-inf")) < self.grace_s

    def reason(self, run: Run) -> str:
        """Of the first process that says something: one that fails takes the others with it, silently."""
        told = [last_line(log) for log in sorted(self.logs.glob(f"{self.jobs[run.run_id][-1]}_*_log.err"))]
        return next((line for line in told if not line.startswith("see ")), "no log")

    def again(self, run: Run) -> bool:
        self.tries[run] += 1
        if self.tries[run] <= self.site.retries:
            return True
        from hiap.train import record_lost  # with torch, which only this rare case needs

        record_lost(run.config, f"gave up after {self.tries[run]} jobs without a record; the last: {self.reason(run)}")
        return False

    def stop(self) -> str:
        return "jobs stay in the queue; launch again to follow them, or cancel them with --cancel"

    def cancel(self, runs: list[Run]) -> int:
        """Take the jobs of these runs out of the queue; returns how many there were."""
        queue = self._queue()
        if queue is None:
            raise ConfigError("--cancel: squeue does not answer; expected a SLURM controller")
        ours = sorted(queue & {self.jobs[run.run_id][-1] for run in runs if run.run_id in self.jobs})
        if ours:
            subprocess.run(["scancel", *ours], check=True)
        return len(ours)

    def _submit(self, array: list[Run], at_once: int) -> None:
        here = Path.cwd()
        try:
            jobs = self._executor(array, at_once).submit_array([Job(run.config, folder=here) for run in array])
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError, OSError) as error:
            raise ConfigError(f"sbatch refused {array[0].label} and {len(array) - 1} more: {one_line(error)}") from None
        for run, job in zip(array, jobs, strict=True):
            self.jobs.setdefault(run.run_id, []).append(job.job_id)
        write_json(self.file, self.jobs)

    def _executor(self, array: list[Run], at_once: int) -> submitit.SlurmExecutor:
        needs = {self.jobs[n.run_id][-1].split("_")[0] for run in array for n in run.needs if self.alive(n)}
        executor = submitit.SlurmExecutor(self.logs, max_num_timeout=100, python=self.site.python or None)
        code = submission.snapshot(self.logs)
        executor.update_parameters(**submission.parameters(array, self.site, self.processes, at_once, needs, code))
        return executor

    def _queue(self) -> set[str] | None:
        """Ids of this user's jobs; None if the controller does not answer."""
        if time.monotonic() - self.listed_at >= self.poll_s:
            listing = subprocess.run(["squeue", "--me", "-r", "-h", "-o", "%i"], capture_output=True, text=True)
            self.listed = set(listing.stdout.split()) if listing.returncode == 0 else None
            self.listed_at = time.monotonic()
        return self.listed


def slurm_answers() -> bool:
    """Whether a SLURM controller can be reached from here."""
    if shutil.which("sbatch") is None or shutil.which("scontrol") is None:
        return False
    try:
        ping = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return False
    return ping.returncode == 0 and "UP" in ping.stdout


def visible_gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES says, else all that this machine has."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [gpu for gpu in chosen.split(",") if gpu]
    return [str(i) for i, _ in enumerate(sorted(Path("/dev").glob("nvidia[0-9]*")))]


def last_line(log: Path) -> str:
    """What a log ends with: the exception, if the job died of one."""
    try:
        lines = [
            line
            for line in log.read_text(errors="replace").splitlines()
            if line.strip() and not line.startswith(("srun: ", "slurmstepd: "))
        ]
    except OSError:
        return "no log"
    # A configuration problem speaks for itself; of other exceptions the class says what they are.
    return one_line(re.sub(r"^hiap\.config\.ConfigError: ", "", lines[-1])) if lines else f"see {log}"


def one_line(text: object) -> str:
    return " ".join(str(text).split())


@contextmanager
def _signals_held(which: set[signal.Signals]) -> Iterator[None]:
    """Signals wait for the end. Children started within never see Ctrl-C, which a terminal sends to all."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, which)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
