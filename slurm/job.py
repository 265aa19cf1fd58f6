"""The unit that submitit runs: one training run, which may be stopped, requeued and started again at any time."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hiap.config import Config
from hiap.record import Folders

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Job:
    """``Job(config)()`` trains ``config``. ``gpus`` becomes CUDA_VISIBLE_DEVICES; None leaves it as it is."""

    def __init__(self, config: Config, gpus: str | None = None):
        self.config, self.gpus = config, gpus

    def __call__(self) -> None:
        if self.gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.gpus
        with _stop_on_sigterm(), _alone(Folders.of(self.config).work / "lock"):
            from hiap.train import run  # after the environment is as it should be: torch reads it when imported

            run(self.config)

    def checkpoint(self) -> DelayedSubmission:
        """What submitit submits again after a time-out or a pre-emption: the same; the run resumes by itself."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@contextmanager
def _stop_on_sigterm() -> Iterator[None]:
    """End on SIGTERM, which submitit ignores, until training starts and answers it with a checkpoint."""

    def stop(number: int, frame: Any) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process has this run: one that a killed launcher left behind must not be trained twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # given back by the kernel, however the process ends
        yield
