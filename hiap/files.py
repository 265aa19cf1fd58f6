"""Files that are there whole or not at all, and locks on them."""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What a file system without locks answers.
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


def write_json(path: Path, value: Any) -> None:
    """Atomically: a reader, or a kill, sees the old file or the new one, never a part."""
    atomic_write(path, (json.dumps(value, indent=1) + "\n").encode())


def atomic_write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):  # which names no file if it comes from writing
            error.filename = str(path)
        raise


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Within, no other process has this lock; waits for it. The kernel gives it back, however the process ends. Where
    there are no locks it says so and goes on: two processes would then write the same files twice, each whole."""
    import fcntl  # not on every system that can load a network

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            print(f"{path}: this file system has no locks; going on without", file=sys.stderr)
        yield
