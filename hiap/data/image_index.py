"""Where each image of a split lies: made once, kept in the folder of downloads, and read by every process of every run,
so that not each of them walks through a million files, a tar of 150 GB or a thousand shards. An index is of use only
while the files are as they were; nothing in it is unpickled."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hiap.data import downloads, parquet
from hiap.files import atomic_write, file_lock

VERSION = 2  # of what is written
# Folders of fewer images are walked in no more time than an index takes to read.
WORTH_KEEPING = 10_000
Kind = Literal["folder", "tar", "parquet"]


@dataclass(frozen=True)
class Place:
    """Place of a split on the disk: ``path`` names it, ``files`` hold it (a folder, tars or parquet files)."""

    kind: Kind
    path: Path
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Indexed:
    """Index of one split's images. ``names`` are paths below the folder, the tar or the parquet file; ``labels`` (n,)
    are places in ``classes``, which are sorted as bytes, or what the files say where they are ``numbered``; ``spots``
    (n, 3): number of the file, then first byte and bytes in a tar, row group and row in parquet."""

    place: Place
    names: Sequence[str]
    labels: np.ndarray
    classes: Sequence[str]
    numbered: bool = False
    spots: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        """Read an image's file, opened anew each time, since worker processes must not share a file's position."""
        if self.spots is None:
            return (self.place.path / self.names[index]).read_bytes()
        number, first, second = self.spots[index].tolist()
        if self.place.kind == "parquet":
            return parquet.read(self.place.files[number], first, second)
        with self.place.files[number].open("rb") as file:
            file.seek(first)
            return file.read(second)

    def name(self, index: int) -> str:
        holder = self.place.path if self.spots is None else self.place.files[self.spots[index, 0]]
        return str(holder / self.names[index])


def file_of(path: Path) -> Path:
    """Return the file that keeps the index of a split."""
    return downloads.folder() / "index" / f"{hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:16]}.json"


def load(place: Place) -> Indexed | None:
    """Load the index that is kept of these files; None if there is none, or it is out of date."""
    try:
        found = json.loads(file_of(place.path).read_text(encoding="utf-8"))
        if (found["version"], found["stamp"]) != (VERSION, _stamp(place)):
            return None
        spots = None if found["spots"] is None else np.array(found["spots"], dtype=np.int64).reshape(-1, 3)
        labels = np.array(found["labels"], dtype=np.int64)
        return Indexed(place, found["names"], labels, found["classes"], found["numbered"], spots)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def load_or_scan(place: Place, scan: Callable[[Place], Indexed], always: bool = False) -> Indexed:
    """Return the index of these files: the one that is kept, else what ``scan`` finds, which is kept from then on (of
    small folders only ``always``). Processes that ask at the same time wait for the first of them."""
    if (kept := load(place)) is not None:
        return kept
    if place.kind == "folder" and not always:
        found = scan(place)
        return found if len(found) < WORTH_KEEPING else _keep(place, lambda _: found)
    return _keep(place, scan)


def _keep(place: Place, scan: Callable[[Place], Indexed]) -> Indexed:
    file, lock = file_of(place.path), file_of(place.path).with_suffix(".lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        _tell_unkept(file, error)
        return scan(place)
    with file_lock(lock):
        if (kept := load(place)) is not None:  # another process was first
            return kept
        stamp, found = _stamp(place), scan(place)
        try:
            atomic_write(file, json.dumps(_values(found, stamp)).encode())
        except OSError as error:
            _tell_unkept(file, error)
        return found


def _tell_unkept(file: Path, error: OSError) -> None:
    print(f"{file.parent}: no index of images can be kept there ({error.strerror}); set HIAP_CACHE", file=sys.stderr)


def _values(found: Indexed, stamp: str) -> dict[str, Any]:
    return {
        "version": VERSION,
        "stamp": stamp,
        "names": list(found.names),
        "labels": found.labels.tolist(),
        "classes": list(found.classes),
        "numbered": found.numbered,
        "spots": None if found.spots is None else found.spots.tolist(),
    }


def _stamp(place: Place) -> str:
    """Return a digest that changes when an image is added to a folder or taken away, or a file is another."""
    if place.kind == "folder":
        folders = [entry for entry in os.scandir(place.path) if entry.is_dir()]
        parts = sorted(f"{entry.name} {os.stat(entry.path).st_mtime_ns}" for entry in folders)
    else:
        stats = [(file.name, file.stat()) for file in place.files]
        parts = [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
