"""Locks on files: the kernel's where the file system has them, and something of our own where it has not, as Lustre
mounted with ``noflock``."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from hiap.files import open_lock, take_lock
from hiap.train.config import ConfigError


@contextmanager
def locked(path: Path, wait: bool) -> Iterator[None]:
    """Hold a lock that no other process has meanwhile. The kernel gives it back, however the process ends. Without
    ``wait``, raises ``ConfigError`` if another has it."""
    with open_lock(path) as file:
        try:
            held = take_lock(file, wait)
        except BlockingIOError:
            file.seek(0)
            raise _taken(file.read()) from None
        if held:
            _sign(file)
            yield
        else:
            with _made(path.with_suffix(".held"), wait):
                yield


@contextmanager
def _made(path: Path, wait: bool) -> Iterator[None]:
    """Hold a file that only one process can make. It stays if that process is killed; then it is taken over on the
    machine that made it, and elsewhere a person must remove it."""
    while True:
        try:
            with path.open("x", encoding="utf-8") as file:
                _sign(file)
            break
        except FileExistsError:
            holder = _read(path)
            if _is_gone(holder):
                path.unlink(missing_ok=True)
            elif not wait:
                raise _taken(f"{holder}; this file system has no locks, so remove {path} if it has gone") from None
            else:
                time.sleep(0.2)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _sign(file: IO[str]) -> None:
    if not file.writable():  # another user's
        return
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}")
    file.flush()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _is_gone(holder: str) -> bool:
    """Tell whether the process of this machine that signed is no more."""
    words = holder.split()
    return len(words) == 4 and words[3] == platform.node() and not Path(f"/proc/{words[1]}").exists()


def _taken(holder: str) -> ConfigError:
    return ConfigError(f"another launcher follows this grid ({holder}); see it with --status")
