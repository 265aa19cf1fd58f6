"""The unit that submitit runs: one training run, which may be stopped, requeued and started again at any time."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hiap.train.config import Config
from hiap.train.record import Folders, read_status, write_status

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Job:
    """``Job(config)()`` trains ``config``. ``gpus`` becomes CUDA_VISIBLE_DEVICES; None leaves it as it is. ``folder``
    is where relative paths begin; None: where the job starts."""

    def __init__(self, config: Config, gpus: str | None = None, folder: Path | None = None):
        self.config, self.gpus, self.folder = config, gpus, folder

    def __call__(self) -> None:
        if self.folder is not None:
            os.chdir(self.folder)
        if self.gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus
        rank, folders = _join(), Folders.of(self.config)
        with _stop_signals(folders, rank) as requeue, _alone(folders.work / f"lock.{rank}"):
            # After the environment is as it should be: torch reads it when imported.
            from hiap.train.run import Interrupted, run

            try:
                run(self.config)
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
    from submitit.core.job_environment import JobEnvironment
    from submitit.helpers import TorchDistributedEnvironment

    job = JobEnvironment()
    if job.num_tasks == 1:
        return 0
    os.environ["MASTER_PORT"] = str(port(int(job.raw_job_id), int(os.environ.get("SLURM_RESTART_COUNT", "0"))))
    TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    return job.global_rank


def port(job: int, restarts: int) -> int:
    """Where the processes of a job meet: below the ports that the kernel gives to whoever asks, another one for each
    job, and for each of its attempts."""
    return 20_000 + (job + 1_009 * restarts) % 12_000


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

    def warn(number: int, frame: Any) -> None:
        warned.append(number)
        terminate = signal.getsignal(signal.SIGTERM)
        if len(warned) == 1 and callable(terminate):
            terminate(number, frame)

    def requeue() -> None:
        if warned and callable(submitit_requeues):
            _tell(folders, rank, "queued")
            submitit_requeues(number, None)

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


def _tell(folders: Folders, rank: int, state: str) -> None:
    if rank == 0:
        with suppress(OSError):  # no reason not to stop
            write_status(folders, **{**read_status(folders), "state": state})


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process has this run: one that a killed launcher left behind must not be trained twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # given back by the kernel, however the process ends
        yield
