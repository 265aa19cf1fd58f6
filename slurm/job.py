"""The unit that submitit runs: one training run, which may be stopped, requeued and started again at any time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hiap.files import alone, write_json
from hiap.train.config import Config
from hiap.train.record import Folders, read_status, write_status
from hiap.train.rendezvous import join_slurm
from slurm.jobs import checkpoint_of

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

FRUITLESS = 5  # attempts in a row that reached no checkpoint of their own, after which another would not either
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Job:
    """``Job(config)()`` trains ``config``. ``gpus`` becomes CUDA_VISIBLE_DEVICES; None leaves it as it is. ``folder``
    is where relative paths begin; None: where the job starts. Variables in ``data.root`` are those of the job's node,
    whose own disk may hold the data."""

    def __init__(self, config: Config, gpus: str | None = None, folder: Path | None = None):
        self.config, self.gpus, self.folder = config, gpus, folder

    def __call__(self) -> None:
        if self.folder is not None:
            os.chdir(self.folder)
        if self.gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus
        rank, folders = _join(), Folders.of(self.config)
        data = self.config.data.model_copy(update={"root": os.path.expandvars(self.config.data.root)})
        with _stop_signals(folders, rank) as requeue, alone(folders.work / f"lock.{rank}"):
            # After the environment is as it should be: torch reads it when imported.
            from hiap.train.run import Interrupted, run

            try:
                run(self.config.model_copy(update={"data": data}))
            except Interrupted:
                requeue()
                if rank == 0:  # which has asked for the requeue; an error of any other would end the job before that
                    raise

    def checkpoint(self) -> DelayedSubmission:
        """What submitit submits again after a time-out or a pre-emption: the same; the run resumes by itself."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _join() -> int:
    """This process's rank in its job; where there are several, sets what ``hiap.train.distributed`` reads."""
    if "SUBMITIT_EXECUTOR" not in os.environ:  # not a job
        return 0
    join_slurm()
    return int(os.environ.get("RANK", "0"))


@contextmanager
def _stop_signals(folders: Folders, rank: int) -> Iterator[Callable[[], None]]:
    """Within, the queue's warning (time-out, pre-emption) becomes a SIGTERM, which training answers with a checkpoint
    at its next step; the function that is given then lets submitit requeue the job, if the queue had warned it.

    submitit itself would requeue from within the signal's handler, with what the last epoch left on disk. Before
    training starts, SIGTERM, which submitit ignores, ends the process. Where a warning and then a SIGTERM come, as some
    queues do it, they are one request."""
    from submitit.core.job_environment import JobEnvironment

    number = getattr(signal, f"SIG{JobEnvironment.USR_SIG}")
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
        try:
            submitit_requeues(number, None)
        except (OSError, subprocess.SubprocessError) as error:
            _tell(folders, rank, "stopped")  # of which a launcher makes a new job, if the script cannot requeue either
            leave_word(Path(os.environ["SUBMITIT_FOLDER"]), os.environ["SLURM_JOB_ID"])
            print(f"cannot requeue from here ({error}); the batch script or the launcher will", file=sys.stderr)

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
    """The checkpoint that this attempt begins with, and how many attempts in a row, this one included, began so."""
    file, start = folders.work / "attempts.json", checkpoint_of(folders)
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    count = before["count"] + 1 if before.get("start") == start else 1
    write_json(file, {"start": start, "count": count})
    return start, count


def word(logs: Path, job: str) -> Path:
    """A file that asks the batch script of ``job`` to requeue it: python may run where there is no scontrol."""
    return logs / f"requeue-{job}"


def leave_word(logs: Path, job: str) -> None:
    word(logs, job).touch()
