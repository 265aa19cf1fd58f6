"""Files and folders that are there whole or not at all, and locks on them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import sys
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

# What a disk answers that is in trouble. Whatever else flock is answered with means that the file system has no locks:
# each says so in its own way (ENOSYS, EOPNOTSUPP, ENOLCK, EINVAL, EBADF, EPERM, and 524 on Cray's DVS, which has no
# name).
TROUBLE = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE, errno.EINTR, errno.EDEADLK, errno.ENOMEM)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, atomically: a reader, or a kill, sees the old file or the new one, never a part."""
    atomic_write(path, (json.dumps(value, indent=1) + "\n").encode())


def atomic_write(path: Path, data: bytes) -> None:
    """Write the file whole or not at all. A new one has the mode that the user's umask leaves, one that is replaced
    keeps its own: where a group shares a folder, its other members can go on writing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _take_mode(temporary, path)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):  # which names no file, or the temporary one
            error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder to fill, which at the end takes the place of ``folder``, with its mode. An error leaves all
    as it was. Raises ``PermissionError``, before anything is made, if ``folder`` may not be replaced by this user."""
    folder = Path(os.path.realpath(folder))  # a link stays one
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists() and not _may_replace(folder):
        raise PermissionError(errno.EACCES, "another user's, who does not let you replace it", str(folder))
    temporary, old = _beside(folder), _beside(folder)
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.iterdir():
            path.chmod(temporary.stat().st_mode & 0o666)  # safetensors writes for its user alone, whatever the umask
            _take_mode(path, folder / path.name)
        _take_mode(temporary, folder)
        if folder.exists():  # a folder cannot be replaced in one step: set the old one aside first
            os.replace(folder, old)
        try:
            os.replace(temporary, folder)
        except BaseException:
            if old.exists():
                os.replace(old, folder)
            raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    if old.exists():  # a file that someone has open, on NFS
        warnings.warn(f"{old}: what {folder} was before cannot be removed; remove it by hand", stacklevel=3)


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold a lock that no other process has meanwhile; wait for it first. The kernel gives it back, however the process
    ends. Where the file system has no locks, say so and go on: two processes may then write the same files twice, each
    whole."""
    with open_lock(path) as file:
        if not take_lock(file, wait=True):
            print(f"{path}: this file system has no locks; going on without", file=sys.stderr)
        yield


def open_lock(path: Path) -> IO[str]:
    """Open the file of a lock, and make it if need be; for reading alone where it is another user's, which is enough
    for flock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return path.open("a+", encoding="utf-8")
    except PermissionError:
        if not path.exists():
            raise
        return path.open(encoding="utf-8")


def take_lock(file: IO[str], wait: bool) -> bool:
    """Lock ``file``; False where the file system has no locks. Without ``wait``, raises ``BlockingIOError`` if another
    process has it."""
    import fcntl  # not on every system that can load a network

    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in TROUBLE:
            raise
        return False
    return True


def _beside(path: Path) -> Path:
    """Return a new name in the same folder, and so on the same disk."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")


def _take_mode(path: Path, like: Path) -> None:
    """Give ``path`` the mode of ``like`` and, where this user may, its group; nothing if that is not there."""
    with suppress(FileNotFoundError):
        found = like.stat()
        with suppress(PermissionError):
            os.chown(path, -1, found.st_gid)
        os.chmod(path, stat.S_IMODE(found.st_mode))


def _may_replace(folder: Path) -> bool:
    """Tell whether this user may put another folder in this one's place: rename it, and empty it afterwards."""
    parent, user = folder.parent.stat(), os.geteuid()
    sticky = parent.st_mode & stat.S_ISVTX and user not in (0, parent.st_uid, folder.stat().st_uid)
    wanted = os.R_OK | os.W_OK | os.X_OK
    return not sticky and all(os.access(path, wanted, effective_ids=True) for path in (folder.parent, folder))
