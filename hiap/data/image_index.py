"""Which images a folder of class folders, or a tar of them, holds: written down once in the folder of downloads, so
that not every process of every run walks through a million files, or through a tar of 150 GB. An index is of use only
while the folder, or the tar, is as it was; nothing in it is unpickled."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from hiap.data import downloads
from hiap.files import atomic_write


class Indexed:
    """A reader as timm's are. ``places``: (first byte, bytes) of each image in the tar; None for files."""

    def __init__(
        self,
        path: Path,
        names: Sequence[str],
        labels: Sequence[int],
        places: Sequence[tuple[int, int]] | None,
        classes: Sequence[str],
    ):
        self.path, self.names, self.labels, self.places = path, names, labels, places
        self.class_name_to_idx = {name: i for i, name in enumerate(classes)}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[IO[bytes], int]:
        if self.places is None:
            return open(self.path / self.names[index], "rb"), self.labels[index]
        first, size = self.places[index]
        with self.path.open("rb") as file:  # anew each time, since worker processes must not share a file's position
            file.seek(first)
            return io.BytesIO(file.read(size)), self.labels[index]

    def filename(self, index: int, absolute: bool = False) -> str:
        return str(self.path / self.names[index]) if absolute and self.places is None else self.names[index]


def file_of(path: Path) -> Path:
    return downloads.folder() / "index" / f"{hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:16]}.json"


def load(path: Path) -> Indexed | None:
    """The reader of a folder or tar whose index is here and not out of date."""
    try:
        found = json.loads(file_of(path).read_text())
        if found["stamp"] != _stamp(path):
            return None
        return Indexed(path, *(found[key] for key in ("names", "labels", "places", "classes")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save(reader: Indexed) -> Path:
    found: dict[str, Any] = {"stamp": _stamp(reader.path), "classes": list(reader.class_name_to_idx)}
    found |= {"names": reader.names, "labels": reader.labels, "places": reader.places}
    atomic_write(file_of(reader.path), json.dumps(found).encode())
    return file_of(reader.path)


def _stamp(path: Path) -> str:
    """Changes when an image is added or taken away, or the tar is another."""
    if path.is_file():
        parts = [f"{path.stat().st_size} {path.stat().st_mtime_ns}"]
    else:
        folders = [entry for entry in os.scandir(path) if entry.is_dir()]
        parts = sorted(f"{entry.name} {os.stat(entry.path).st_mtime_ns}" for entry in folders)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
