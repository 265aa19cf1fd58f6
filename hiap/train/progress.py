"""How far a run is, for whoever watches it: a bar on a terminal; a line an epoch where there is none (in a log of nohup
or a queue, behind ``tee``, in a notebook)."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from tqdm import tqdm

LINE_SECONDS = 300.0  # an epoch that takes longer gets a line now and then


def stream() -> TextIO:
    """Return where lines go: standard error, or standard output if only that one goes to a file or a pipe."""
    return sys.stdout if sys.stderr.isatty() and not sys.stdout.isatty() else sys.stderr


class Progress:
    """Progress of one run, called ``name``; ``shown`` False keeps quiet."""

    def __init__(self, name: str, shown: bool = True):
        self.name, self.shown = name, shown
        self.lines = not (sys.stderr.isatty() and sys.stdout.isatty())
        self._bar: tqdm | None = None  # type: ignore[type-arg]
        self._last = time.monotonic()

    def say(self, text: str) -> None:
        """Say one line, on a terminal too."""
        if self.shown:
            print(f"{self.name}: {text}", file=stream(), flush=True)

    def begin(self, stage: str, total: int, done: int) -> None:
        """Begin a stage of ``total`` steps, ``done`` of which another try has made."""
        self._last = time.monotonic()
        if self.shown and not self.lines:
            self._bar = tqdm(total=total, initial=done, desc=f"{self.name} {stage}", leave=False)

    def step(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def show(self, loss: float, text: str, ended: bool) -> None:
        """Show the mean ``loss`` of the epoch so far, and ``text``, all that there is to say, as a line if one is
        due."""
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{loss:.3f}")
        elif self.lines and (ended or time.monotonic() - self._last > LINE_SECONDS):
            self._last = time.monotonic()
            self.say(text)

    def end(self) -> None:
        """End the stage."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
