"""The unit that submitit runs: one training run, or several short ones after one another. It may be stopped, requeued
and started again at any time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hiap.files import file_lock, write_json
from hiap.train.config import Config
from hiap.train.record import Folders, read_status, write_status
from hiap.train.rendezvous import join_slurm
from hiap.train.warm import Warm
from slurm.jobs import checkpoint_of

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

FRUITLESS = 5  # attempts in a row that reached no checkpoint of their own, after which another would not either
STOPPED = 128 + signal.SIGTERM  # exit status of a run that was told to stop
IMPORTED = "hiap.train.everything"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class _Again:
    """Base of what submitit submits again, as it is, after a time-out or a pre-emption: runs resume by themselves."""

    def checkpoint(self: Any) -> DelayedSubmission:
        """Return what submitit is to submit."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class Job(_Again):
    """Job of one run: ``Job(config)()`` trains ``config``. ``gpus`` becomes CUDA_VISIBLE_DEVICES; None leaves it as it
    is. ``folder`` is where relative paths begin; None: where the job starts. Variables in ``data.root`` are those of
    the job's node, whose own disk may hold the data."""

    def __init__(self, config: Config, gpus: str | None = None, folder: Path | None = None):
        self.config, self.gpus, self.folder = config, gpus, folder

    def __call__(self) -> None:
        if self.folder is not None:
            os.chdir(self.folder)
        if self.gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus
        rank, folders = _join(), Folders.of(self.config)
        data = self.config.data.model_copy(update={"root": os.path.expandvars(self.config.data.root)})
        with _stop_signals(folders, rank) as requeue, file_lock(folders.work / f"lock.{rank}"):
            # After the environment is as it should be: torch reads it when imported.
            from hiap.train.run import Interrupted, run

            try:
                run(self.config.model_copy(update={"data": data}))
            except Interrupted:
                requeue()
                if rank == 0:  # which has asked for the requeue; an error of any other would end the job before that
                    raise


class Pack(_Again):
    """Job of several runs: ``Pack(configs)()`` trains one after the other, each in a process forked from one that has
    imported everything: short runs cost a queue and the imports once. A run that fails does not keep the next from its
    turn; told to stop, the pack is requeued as a run is, and goes on with what is not finished."""

    def __init__(self, configs: list[Config], folder: Path):
        self.configs, self.folder = configs, folder

    def __call__(self) -> None:
        warm, lost = Warm(IMPORTED), []
        with _Warned() as warned:
            for config in self.configs:
                if not warned.by and not (self.folder / Folders.of(config).record).exists():
                    # Started before the folder is left in which the job's own copy of the code lies.
                    task = warm.start(partial(apart, Job(config, folder=self.folder), packed=True))
                    warned.tells(partial(warm.signal, task, _warning()))
                    if (code := warm.join(task)) and code != STOPPED:
                        lost.append(f"{config.run.label} ({code})")
            if warned.by:
                warned.requeue()
                raise SystemExit(STOPPED)
        if lost:
            raise RuntimeError(f"{len(lost)} of {len(self.configs)} runs failed, with exit status: {', '.join(lost)}")


class _Warned:
    """Context in which the queue's warning and SIGTERM are told, once, to the run that is training, as a warning;
    between two runs they keep the next from starting."""

    def __init__(self) -> None:
        self.by: list[int] = []
        self.tell: Callable[[], None] | None = None

    def __enter__(self) -> _Warned:
        self.before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, _warning())}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def tells(self, tell: Callable[[], None]) -> None:
        self.tell = tell
        if self.by:  # since the task was started
            tell()

    def _note(self, number: int, frame: Any) -> None:
        self.by.append(number)
        if len(self.by) == 1 and self.tell:
            self.tell()

    def requeue(self) -> None:
        handler = self.before[_warning()]
        if _warning() in self.by and callable(handler):
            _requeue(handler)


def apart(job: Job, packed: bool = False) -> None:
    """Run the job in a process of its own (``hiap.train.warm``), whose exit status says whether it was told to stop.
    ``packed``: it is one of several of a queue's job, and that job asks to be requeued."""
    if packed:
        signal.signal(_warning(), _left_to_the_pack)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {_warning()})
    try:
        job()
    except Exception as error:
        from hiap.train.run import Interrupted

        if not isinstance(error, Interrupted):
            raise
        print(error, file=sys.stderr)
        sys.exit(STOPPED)


def _left_to_the_pack(number: int, frame: Any) -> None:
    """End the run at a warning that comes before it listens, where submitit's handler, which requeues, would stand;
    called by the run itself, there is nothing to do."""
    if frame is not None:
        sys.exit(STOPPED)


def _warning() -> int:
    """Return the signal by which submitit has the queue warn of the end."""
    from submitit.core.job_environment import JobEnvironment

    return int(getattr(signal, f"SIG{JobEnvironment.USR_SIG}"))


def _requeue(submitit_requeues: Callable[[int, Any], Any]) -> bool:
    """Have submitit's handler of the warning requeue this job; False if that cannot be asked for from here."""
    try:
        submitit_requeues(_warning(), None)
    except (OSError, subprocess.SubprocessError) as error:
        ask_for_requeue(Path(os.environ["SUBMITIT_FOLDER"]), os.environ["SLURM_JOB_ID"])
        print(f"cannot requeue from here ({error}); the batch script or the launcher will", file=sys.stderr)
        return False
    return True


def _join() -> int:
    """Return this process's rank in its job; where there are several, set what ``hiap.train.distributed`` reads."""
    if "SUBMITIT_EXECUTOR" not in os.environ:  # not a job
        return 0
    join_slurm()
    return int(os.environ.get("RANK", "0"))


@contextmanager
def _stop_signals(folders: Folders, rank: int) -> Iterator[Callable[[], None]]:
    """Turn the queue's warning (time-out, pre-emption) into a SIGTERM, which training answers with a checkpoint at its
    next step; the function that is given then lets submitit requeue the job, if the queue had warned it.

    submitit itself would requeue from within the signal's handler, with what the last epoch left on disk. Before
    training starts, SIGTERM, which submitit ignores, ends the process. Where a warning and then a SIGTERM come, as some
    queues do it, they are one request.
    """
    number = _warning()
    submitit_requeues, before = signal.getsignal(number), signal.getsignal(signal.SIGTERM)
    warned: list[int] = []
    start, fruitless = _attempts(folders) if rank == 0 and callable(submitit_requeues) else ("", 0)

    def warn(number: int, frame: Any) -> None:
        warned.append(number)
        terminate = signal.getsignal(signal.SIGTERM)
        if len(warned) == 1 and callable(terminate):
            terminate(number, frame)

    def requeue() -> None:
        if not warned or not callable(submitit_requeues):
            return
        if rank == 0 and fruitless >= FRUITLESS and checkpoint_of(folders) == start:
            error = f"{fruitless} attempts in a row ended before their first checkpoint; time_min must be longer"
            _tell(folders, rank, "failed", error)
            raise RuntimeError(error)
        _tell(folders, rank, "queued")
        if not _requeue(submitit_requeues):
            _tell(folders, rank, "stopped")  # of which a launcher makes a new job, if the script cannot requeue either

    def stop(number: int, frame: Any) -> None:
        _tell(folders, rank, "stopped")
        requeue()
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, stop)
    if callable(submitit_requeues):
        signal.signal(number, warn)
    try:
        yield requeue
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(number, submitit_requeues)


def _tell(folders: Folders, rank: int, state: str, error: str = "") -> None:
    if rank == 0:
        with suppress(OSError):  # no reason not to stop
            write_status(folders, **{**read_status(folders), "state": state, "error": error})


def _attempts(folders: Folders) -> tuple[str, int]:
    """Return the checkpoint that this attempt begins with, and how many attempts in a row, this one included, began
    so."""
    file, start = folders.work / "attempts.json", checkpoint_of(folders)
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    count = before["count"] + 1 if before.get("start") == start else 1
    write_json(file, {"start": start, "count": count})
    return start, count


def requeue_request(logs: Path, job: str) -> Path:
    """Return the file that asks the batch script of ``job`` to requeue it: python may run where there is no
    scontrol."""
    return logs / f"requeue-{job}"


def ask_for_requeue(logs: Path, job: str) -> None:
    requeue_request(logs, job).touch()
