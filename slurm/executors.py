"""Where runs execute: in this process, in processes of this machine, or on SLURM; three classes with one interface,
``Executor``. Whether a run succeeded is never asked here: its record says so."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Protocol

import submitit

from hiap.options import one_line
from hiap.train.config import ConfigError
from hiap.train.device import visible_gpus
from hiap.train.record import read_status, write_status
from hiap.train.warm import Warm
from slurm import submission
from slurm.grid import Run
from slurm.job import IMPORTED, Job, Pack, apart
from slurm.jobs import Jobs, Queued, answer, packs_of, queue
from slurm.site import Site

# What sbatch says where an association, a quality of service or the controller takes no more jobs of this user.
FULL = r"Submit\w*Limit|MaxJobCount|temporarily unable to accept job"
# A limit on what one job asks for, which does not pass as others end, and what names no limit but the kinds.
TOO_LARGE = r"(Assoc|QOS)(?!\w*Submit)\w+"
EITHER = r"job submit limit, user's\s+size and/or time limits"
MOST_REQUEUES = 1000  # by time-outs, a run of hours in slices of minutes has many
DEFAULTS = Site()
MPS = "nvidia-cuda-mps-control"


class NoRoom(ConfigError):  # noqa: N818
    """Refusal of a controller that takes no more jobs of this user for now."""


class Executor(Protocol):
    """Interface of all executors. ``slots``: runs at once; None if a queue decides, which then takes all runs with
    their dependencies."""

    slots: int | None

    def followed(self, runs: list[Run]) -> AbstractContextManager[None]:
        """Keep other launchers away from these runs, within."""

    def submit(self, runs: list[Run]) -> list[Run]:
        """Start or queue runs; return those for which that was not possible for now."""

    def alive(self, run: Run) -> bool:
        """Tell whether a run's job is still there."""

    def reason(self, run: Run) -> str:
        """Return why it is not there: the end of its log."""

    def again(self, run: Run) -> bool:
        """Tell whether a job that died without a record is worth another."""

    def cancelled(self, run: Run) -> bool:
        """Tell whether nobody wants the run any more."""

    def wait(self) -> None:
        """Pass the time until it is worth while to ask again."""

    def stop(self, seconds: float = ...) -> str:
        """End, in so many seconds, what must not outlive the launcher; return what becomes of the rest."""


class _Here:
    """Base of the executors without a queue."""

    def followed(self, runs: list[Run]) -> AbstractContextManager[None]:
        return nullcontext()

    def again(self, run: Run) -> bool:
        return False

    def cancelled(self, run: Run) -> bool:
        return False

    def wait(self) -> None:
        pass

    def stop(self, seconds: float = 0.0) -> str:
        return "finished runs are kept, the others resume when launched again"


class Debug(_Here):
    """Executor that makes each run in this process, one after the other: for debuggers and tests."""

    slots: int | None = 1

    def __init__(self) -> None:
        self.errors: dict[Run, str] = {}

    def submit(self, runs: list[Run]) -> list[Run]:
        for run in runs:
            try:
                Job(run.config)()
            except SystemExit as stop:  # told to stop before it trained
                raise KeyboardInterrupt(stop.code) from None
            except Exception as error:
                from hiap.train.run import Interrupted  # with torch, which the other executors leave to their children

                if isinstance(error, Interrupted):
                    raise KeyboardInterrupt from None
                traceback.print_exc()
                self.errors[run] = one_line(f"{type(error).__name__}: {error}", None)
        return []

    def alive(self, run: Run) -> bool:
        return False

    def reason(self, run: Run) -> str:
        return self.errors.get(run, "")


class Local(_Here):
    """Executor by processes of this machine, ``slots`` at once, forked from one that has imported what a run needs
    (``hiap.train.warm``). Where there are GPUs, each gets the one that fewest runs are on."""

    poll_s = 2.0  # between two looks at how far they are; the end of one is told

    def __init__(self, logs: Path, slots: int):
        self.slots: int | None = slots
        self.logs = logs.absolute()
        self.gpus = visible_gpus()
        self.warm = Warm(IMPORTED)
        self.tasks: dict[Run, int] = {}
        self.on: dict[Run, str] = {}

    @contextmanager
    def followed(self, runs: list[Run]) -> Iterator[None]:
        with mps() if 0 < len(self.gpus) < (self.slots or 1) else nullcontext():
            yield

    def submit(self, runs: list[Run]) -> list[Run]:
        for run in runs:
            self.on[run] = self._gpu()
            job = partial(apart, Job(run.config, self.on[run]))
            self.tasks[run] = self.warm.start(job, self._log(run))
        return []

    def _gpu(self) -> str:
        """Return the GPU that fewest runs are on; '' where there is none."""
        if len(self.gpus) < 2:
            return "".join(self.gpus)
        busy = Counter(self.on[other] for other in self.tasks if self.alive(other))
        return min(self.gpus, key=busy.__getitem__)

    def wait(self) -> None:
        self.warm.wait(self.poll_s)

    def alive(self, run: Run) -> bool:
        return run in self.tasks and self.warm.code(self.tasks[run]) is None

    def reason(self, run: Run) -> str:
        code = self.warm.code(self.tasks[run]) or 0
        if code < 0:  # of which the log cannot tell
            return f"its process was ended by {signal.Signals(-code).name}"
        return last_line(self._log(run).with_suffix(".err"))

    def stop(self, seconds: float = 40.0) -> str:
        """Send SIGTERM, which a run answers with a checkpoint at its next step; then, or when the user asks again, a
        second one, which ends it at its last checkpoint, and SIGKILL. All within so many seconds."""
        for number, share in ((signal.SIGTERM, 0.75), (signal.SIGTERM, 0.15), (signal.SIGKILL, 0.1)):
            with suppress(KeyboardInterrupt):
                running = [task for run, task in self.tasks.items() if self.alive(run)]
                for task in running:
                    self.warm.signal(task, number)
                end = time.monotonic() + share * seconds
                for task in running:
                    self.warm.join(task, end - time.monotonic())
        return super().stop()

    def _log(self, run: Run) -> Path:
        return self.logs / run.run_id


class Slurm:
    """Executor by SLURM: one job array per stage, or several where the site caps their size, started after the arrays
    that its runs need. An element of it is a run, or ``pack`` runs after one another. Which jobs a run had is kept in a
    file (``slurm.jobs``), so that a launcher started again follows the jobs of the one before and submits nothing
    twice. Needs sbatch and squeue, not sacct. Jobs run a copy of the code: what is edited while they queue does not
    reach them."""

    slots: int | None = None
    poll_s = 5.0
    grace_s = 20.0  # between a job's leaving the queue and its record's being seen on a shared file system
    settle_s = 60.0  # in which an sbatch that outlived its launcher has got through, or given up
    patience_s = 900.0  # with a controller that has taken jobs before and refuses them now
    ask_again_s = 60.0  # whether a limit that the controller has named still stands

    def __init__(
        self, logs: Path, at_once: int | None, site: Site = DEFAULTS, processes: int = 1, pack: int = 1
    ) -> None:
        self.logs, self.at_once, self.site, self.processes = logs.absolute(), at_once, site, processes
        self.pack = pack  # runs in a job
        self.jobs = Jobs(self.logs)
        self.listed: dict[str, Queued] | None = None
        self.unwanted: set[str] = set()
        self.listed_at = float("-inf")
        self.seen: dict[str, float] = {}
        self.accepted = False
        self.refused_since: float | None = None
        self.stages: dict[int, int] = {}  # stage -> its runs
        self.largest: int | None = None  # array that the controller takes
        self.chunk: int | None = None  # array that it may take now, after it refused one twice as large
        self.limit: int | None = None  # jobs of ours that it takes at once
        self.full_at = float("-inf")

    @contextmanager
    def followed(self, runs: list[Run]) -> Iterator[None]:
        with self.jobs.followed():
            self._recover(runs)
            self.jobs.uncancel(runs)
            yield

    def submit(self, runs: list[Run]) -> list[Run]:
        """Submit runs; return those that were not taken, for which the controller has no room yet among them."""
        if not runs or self._room() == 0:
            return runs
        submission.check_resources(runs, self.site, self.processes)
        for stage, count in Counter(run.stage for run in runs).items():
            self.stages[stage] = max(count, self.stages.get(stage, 0))
        left = list(runs)
        try:
            left = self._recover(left)
        except ConfigError as error:
            self._raise_or_retry(error)
            return left
        while left:
            array, at_once = self._array(left)
            if not array:
                return left
            try:
                # A submission that is not noted is lost.
                with _signals_held({signal.SIGINT, signal.SIGTERM}), self.jobs.turn(), submission.as_from_a_shell():
                    self._submit(array, at_once)
            except NoRoom as error:
                if self._wait_for_room(array, error):
                    return left
                continue
            except ConfigError as error:
                self._raise_or_retry(error)
                return left  # with the later stages, which could not wait for this one
            self.accepted, self.refused_since = True, None
            left = [run for run in left if run not in array]
            self.listed_at = float("-inf")  # the next stage must see these jobs
            if self.limit is not None and len(self._queue() or ()) > self.limit:  # it has been lifted
                self.limit = None
        return []

    def alive(self, run: Run) -> bool:
        if not (job := self.jobs.newest(run)):
            return False
        now, listed = time.monotonic(), self._queue()
        if listed is None or job in listed:
            self.seen[job] = now
        return now - self.seen.get(job, float("-inf")) < self.grace_s

    def reason(self, run: Run) -> str:
        """Return why a run's job is gone, in the words of the first process that says something: one that fails takes
        the others with it, silently."""
        last_lines = [last_line(log) for log in sorted(self.logs.glob(f"{self.jobs.newest(run)}_*_log.err"))]
        return next((line for line in last_lines if not line.startswith("see ")), "no log")

    def again(self, run: Run) -> bool:
        tries = self.jobs.count_try(run)
        if tries <= self.site.retries:
            return True
        from hiap.train.run import record_lost  # with torch, which only this rare case needs

        record_lost(run.config, f"gave up after {tries} jobs without a record; the last: {self.reason(run)}")
        self.jobs.forget_tries(run)
        return False

    def cancelled(self, run: Run) -> bool:
        self._queue()
        return run.run_id in self.unwanted

    def wait(self) -> None:
        time.sleep(self.poll_s)

    def stop(self, seconds: float = 0.0) -> str:
        return "jobs stay in the queue; launch again to follow them, or cancel them with --cancel"

    def cancel(self, runs: list[Run]) -> int:
        """Take the jobs of these runs out of the queue, and from a launcher that would submit them again; returns how
        many there were."""
        with self.jobs.turn():
            self.jobs.reload()
            if (listed := queue()) is None:
                raise ConfigError("--cancel: squeue does not answer; expected a SLURM controller")
            self.jobs.cancel(runs)
            ours = sorted(set(listed) & self.jobs.alone(runs))
            if ours:
                subprocess.run(["scancel", *ours], check=True)
        return len(ours)

    def _array(self, runs: list[Run]) -> tuple[list[Run], int]:
        """Return what to submit next, of the earliest stage, and how many of it may run at once."""
        first = min(run.stage for run in runs)
        stage = [run for run in runs if run.stage == first]
        sizes = [self.site.max_array or self.largest or submission.largest_array(), self.chunk, self._room()]
        self.largest = self.largest or sizes[0]
        array = stage[: self.pack * min(size for size in sizes if size is not None)]
        jobs = -(-len(array) // self.pack)
        return array, max(1, self.at_once * len(array) // self.stages[first] if self.at_once else jobs)

    def _room(self) -> int | None:
        """Return for how many more jobs there is room; None if nobody has set a limit."""
        limit = self.site.max_jobs or self.limit
        if limit is None:
            return None
        room = max(0, limit - len(self._queue() or ()))
        # A limit that was found out may be lifted, or another's: one job tries, now and then.
        due = not self.site.max_jobs and time.monotonic() - self.full_at > self.ask_again_s
        return 1 if due and not room else room

    def _wait_for_room(self, array: list[Run], error: NoRoom) -> bool:
        """Choose, after a refusal, smaller arrays until one fits, or (True) nothing until a job has ended."""
        if len(array) > self.pack:
            self.chunk = max(1, len(array) // self.pack // 2)
            return False
        self.chunk, self.full_at, self.listed_at = None, time.monotonic(), float("-inf")
        before, self.limit = self.limit, len(self._queue() or ())
        if not self.limit:
            raise error
        if before is None:
            print(f"{error}; going on as jobs end", file=sys.stderr, flush=True)
        return True

    def _raise_or_retry(self, error: ConfigError) -> None:
        """Raise after a refused submission if none was ever accepted, or none for ``patience_s``; until then the caller
        retries, and the first refusal is printed."""
        if not self.accepted:
            raise error
        now = time.monotonic()
        if self.refused_since is None:
            self.refused_since = now
            print(f"{error}; trying again for {self.patience_s / 60:.0f} minutes", file=sys.stderr, flush=True)
        if now - self.refused_since > self.patience_s:
            raise error

    def _submit(self, array: list[Run], at_once: int) -> None:
        unwanted = self.jobs.cancelled()
        array = [run for run in array if run.run_id not in unwanted]
        if not array:
            return
        name = f"hiap-{array[0].config.run.grid}-{uuid.uuid4().hex[:8]}"
        for run in array:  # before a job can say more
            write_status(run.folders, **{**read_status(run.folders), "state": "queued", "node": "", "error": ""})
        self.jobs.intend(name, array, self.pack)
        packs = [array[i : i + self.pack] for i in range(0, len(array), self.pack)]
        try:
            jobs = self._executor(array, at_once, name).submit_array([self._job(pack) for pack in packs])
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            refusal = f"sbatch refused {array[0].label} and {len(array) - 1} more: {one_line(error, None)}"
            if self._full(str(error), array):
                self.jobs.note(name, [])
                for run in array:
                    write_status(run.folders, **{**read_status(run.folders), "state": "waiting"})
                raise NoRoom(refusal) from None
            self.jobs.recheck(name)  # a controller that answers too late may have accepted the jobs
            raise ConfigError(refusal) from None
        self.jobs.note(name, [job.job_id for job in jobs])
        self.seen |= dict.fromkeys((job.job_id for job in jobs), time.monotonic())

    def _full(self, refusal: str, array: list[Run]) -> bool:
        """Tell whether a submission was refused for the number of jobs, not for what one job asks for. Where the words
        leave that open, it is the number if jobs like these were taken before; else smaller arrays are tried."""
        if re.search(FULL, refusal):
            return True
        if re.search(TOO_LARGE, refusal) or not re.search(EITHER, refusal):
            return False
        return len(array) > 1 or self.accepted or bool(self.jobs.ids)

    def _executor(self, array: list[Run], at_once: int, name: str) -> submitit.SlurmExecutor:
        unfinished = {need for run in array for need in run.needs if not need.finished}
        needs = {self.jobs.newest(need).split("_")[0] for need in unfinished if self.alive(need)}
        executor = submitit.SlurmExecutor(self.logs, max_num_timeout=MOST_REQUEUES, python=self.site.python or None)
        code = submission.snapshot(self.logs)
        parameters = submission.parameters(array, self.site, self.processes, at_once, needs, code)
        executor.update_parameters(**{**parameters, "job_name": name})
        return executor

    def _recover(self, runs: list[Run]) -> list[Run]:
        """Note the jobs of submissions that were interrupted before their ids were noted; returns the runs without such
        a job. If the queue has none of that name, sbatch took none, or they have ended and left status files."""
        known = {run.run_id: run for run in runs}
        for intent in list(self.jobs.intents):
            packs = packs_of(intent)
            ids = self._named(intent["name"], len(packs), until=intent["time"] + self.settle_s)
            for pack, job in zip(packs, ids, strict=False):
                if found := [known.pop(run_id) for run_id in pack if run_id in known]:
                    self._write_payload(job, found)
            self.jobs.note(intent["name"], ids)
        return list(known.values())

    def _named(self, name: str, count: int, until: float) -> list[str]:
        """Return the ids of the ``count`` jobs of this name, looked for until that time, and once at least."""
        while True:
            if (listed := queue()) is None:
                raise ConfigError("squeue does not answer; an interrupted submission cannot be looked for")
            if found := [job for job, line in listed.items() if line.name == name]:
                array, _, element = found[0].partition("_")
                return [f"{array}_{i}" for i in range(count)] if element else [array]
            if time.time() >= until:
                return []
            time.sleep(1)

    def _write_payload(self, job: str, runs: list[Run]) -> None:
        """Write the pickle that the job waits for and reads what to run from; an interrupted submission may lack it."""
        path = submitit.core.utils.JobPaths(self.logs, job_id=job).submitted_pickle
        if not path.exists():
            submitted = submitit.core.utils.DelayedSubmission(self._job(runs))
            submitted.set_timeout(self.site.time_min, MOST_REQUEUES)
            submitted.dump(path)

    def _job(self, runs: list[Run]) -> Job | Pack:
        if self.pack == 1:
            return Job(runs[0].config, folder=Path.cwd())
        return Pack([run.config for run in runs], Path.cwd())

    def _queue(self) -> dict[str, Queued] | None:
        """Return this user's jobs; None if the controller does not answer."""
        if time.monotonic() - self.listed_at >= self.poll_s:
            self.listed, self.unwanted = queue(), self.jobs.cancelled()
            self.listed_at = time.monotonic()
        return self.listed


def slurm_answers() -> bool:
    """Tell whether a SLURM controller can be reached from here."""
    if shutil.which("sbatch") is None:
        return False
    if shutil.which("scontrol") is None:  # some nodes that can submit lack it
        return queue() is not None
    return "UP" in (answer("scontrol", "ping", seconds=20) or "")


def last_line(log: Path) -> str:
    """Return what a log ends with: the exception, if the job died of one."""
    try:
        lines = [
            line
            for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
            if line.strip() and not line.startswith(("srun: ", "slurmstepd: "))
        ]
    except OSError:
        return "no log"
    # A configuration problem speaks for itself; of other exceptions the class says what they are.
    return one_line(re.sub(r"^[\w.]*ConfigError: ", "", lines[-1]), None) if lines else f"see {log}"


@contextmanager
def _signals_held(which: set[signal.Signals]) -> Iterator[None]:
    """Let signals wait for the end. Children started meanwhile never see Ctrl-C, which a terminal sends to all."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, which)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def mps() -> Iterator[None]:
    """Let several processes of this machine compute side by side on one GPU, by NVIDIA's MPS, where it is installed;
    without it they take turns."""
    if shutil.which(MPS) is None or "CUDA_MPS_PIPE_DIRECTORY" in os.environ:  # a daemon of the user's own
        yield
        return
    with tempfile.TemporaryDirectory(prefix="mps-", ignore_cleanup_errors=True) as folder:  # a socket's path is short
        variables = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        with submitit.helpers.environment_variables(**variables):
            started = subprocess.run([MPS, "-d"], capture_output=True, encoding="utf-8")
        if started.returncode:
            print(f"{MPS}: {one_line(started.stderr or started.stdout, None)}; runs take turns", file=sys.stderr)
            yield
            return
        with submitit.helpers.environment_variables(**variables):
            try:
                yield
            finally:
                subprocess.run([MPS], input="quit\n", capture_output=True, encoding="utf-8")
