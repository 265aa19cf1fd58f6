"""How a run ends before its end: asked to stop, or failed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class TrainingFailedError(RuntimeError):
    """Failure of a run that cannot go on (a loss that is not finite, say); a failed record was written."""


class Interrupted(Exception):  # noqa: N818
    """Stop that was asked for (SIGTERM, SIGINT); a checkpoint was written and the run can be resumed."""


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Let SIGTERM and SIGINT ask the loop to checkpoint and stop at the next step; the same again stops at once. A
    queue's warning, which ``slurm.job`` passes on under its own number, is followed by a SIGTERM that must not."""
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if number in asked:
            raise KeyboardInterrupt
        asked.append(number)

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield lambda: False
        return
    old = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
