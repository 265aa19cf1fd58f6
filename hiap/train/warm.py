"""Processes that begin with everything imported: forked from a server that has imported it once.

Importing PyTorch and what comes with it costs more than many a short run. ``Warm`` starts one server, which imports
the modules that are named and then does nothing but fork: each task gets a process of its own, as clean as if it had
been started alone, in milliseconds. What a task leaves behind (memory, a crash, a changed setting) goes with its
process. The server computes nothing and uses no GPU, so that a fork of it is safe.
"""

from __future__ import annotations

import gc
import importlib
import itertools
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

LOST = -int(signal.SIGKILL)  # exit status of a task whose server was killed with it


class Warm:
    """A server and its tasks, each known by a number. Tasks outlive this process if it is killed, as any child does;
    the server ends when they have ended and nobody asks it for more."""

    def __init__(self, *modules: str):
        self.modules = modules
        self.numbers = itertools.count()
        self.codes: dict[int, int | None] = {}
        self.words: Connection | None = None
        self.ended = False  # a task, since ``wait`` was asked last

    def start(self, call: Callable[[], object], log: Path | None = None) -> int:
        """Run ``call``, which must pickle, in a process of its own; returns the number of the task. Its output goes to
        ``log`` with ``.out`` and ``.err`` at the end, or where this process's goes. SIGUSR2, by which queues warn,
        waits until the task unblocks it."""
        self._listen()
        if self.words is None:  # not yet, or no longer: it can be killed, as any process
            self.words = self._server()
        task = next(self.numbers)
        self.words.send((task, pickle.dumps(call), str(log or "")))
        self.codes[task] = None
        return task

    def code(self, task: int) -> int | None:
        """Return the exit status of the task (negative: the signal that ended it), None while it runs."""
        self._listen()
        return self.codes[task]

    def signal(self, task: int, number: int) -> None:
        """Send the task a signal, as soon as it has a process; nothing if it has ended."""
        with suppress(OSError):
            if self.words is not None:
                self.words.send((task, int(number), ""))

    def join(self, task: int, seconds: float = float("inf")) -> int | None:
        """Wait for the task's exit status; None if it is still running after ``seconds``."""
        end = time.monotonic() + seconds
        while self.code(task) is None and self.words is not None and (left := end - time.monotonic()) > 0:
            wait([self.words], min(left, 1.0))  # where a signal of ours wakes another thread, it is answered then
        return self.codes[task]

    def wait(self, seconds: float) -> None:
        """Wait until a task ends, or return at once if one did since this was asked last; for ``seconds`` at most."""
        self._listen()
        if self.words is None:  # nothing runs that could tell
            time.sleep(min(seconds, 0.05))
        elif not self.ended:
            wait([self.words], seconds)
            self._listen()
        self.ended = False

    def _server(self) -> Connection:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "hiap.train.warm", str(theirs.fileno()), *self.modules]
            # In a session of its own: a terminal sends Ctrl-C to all that are in its own, and what becomes of a task
            # is for the launcher to say.
            subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True, stdin=subprocess.DEVNULL)
        return Connection(ours.detach())

    def _listen(self) -> None:
        """Note what has ended. The connection closes only when server and tasks are all gone: a task inherits it."""
        try:
            while self.words is not None and self.words.poll():
                task, code = self.words.recv()
                self.codes[task], self.ended = code, True
        except (EOFError, OSError):
            self.words = None
            self.codes = {task: LOST if code is None else code for task, code in self.codes.items()}


def serve(words: Connection, modules: list[str]) -> None:
    """Fork a process for every call that comes, until nobody is there to ask."""
    # A queue signals all processes of a job; what is for the tasks must not end the server. Blocked, not ignored, so
    # that a signal to a task that has just been forked waits until it listens.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR2})
    for name in modules:
        importlib.import_module(name)
    # What is there stays: else every process would look through all of it for garbage, and copy it by doing so.
    gc.collect()
    gc.freeze()
    running: dict[int, BaseProcess] = {}
    while True:
        sentinels = {process.sentinel: task for task, process in running.items()}
        for ready in wait([words, *sentinels]):
            if ready is not words:
                task = sentinels[ready]  # type: ignore[index]
                process = running.pop(task)
                process.join()
                with suppress(OSError):
                    words.send((task, process.exitcode))
                continue
            try:
                task, what, log = words.recv()
            except (EOFError, OSError):
                return  # multiprocessing waits for the tasks before this process ends
            if isinstance(what, int):
                _signal(running.get(task), what)
            else:
                running[task] = _fork(what, log)


def _signal(process: BaseProcess | None, number: int) -> None:
    if process is not None and process.is_alive() and process.pid is not None:
        os.kill(process.pid, number)


def _fork(call: bytes, log: str) -> BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=_work, args=(call, log))
    process.start()
    return process


def _work(call: bytes, log: str) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    if log:
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        for stream, end in ((1, "out"), (2, "err")):
            file = os.open(f"{log}.{end}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(file, stream)
            os.close(file)
    task: Callable[[], Any] = pickle.loads(call)  # from the process that started the server, by its own socket
    task()


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])), sys.argv[2:])
