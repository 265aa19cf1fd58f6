"""A digest of what a data set's files hold, so that two folders of the same names are not taken for one.

Reading all files costs seconds, so the digest is kept in the folder of downloads and believed while sizes and times of
change of the files are as they were. Needs no torch: the launcher asks too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hiap.data import downloads
from hiap.data.image_index import Indexed
from hiap.files import atomic_write


def of_classes(names: Iterable[str]) -> str:
    """Return the SHA-256 of the names of classes, in the order of their numbers (``record.Images``)."""
    return hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()


VERSION = 1
WHOLE = 4 * 2**30  # bytes of images that are read whole; of more, so many images, evenly spaced
SAMPLE = 4096
COMPARED = 20_000  # test images that are all compared with the training images; of more a sample
LOOKED_AT = 250_000  # files whose times are looked at one by one; of more, those of their folders


@dataclass(frozen=True)
class Contents:
    """Contents of a data set's files. ``digest``: SHA-256; ``whole``: of every byte, not only of names, labels, sizes
    and a sample; ``where``: a digest of the place and of its files' times."""

    digest: str
    whole: bool
    where: str


def of_files(files: Iterable[Path]) -> Contents:
    """Return the contents of files in this order, whatever they are called."""
    files = list(files)
    where = _digest([str(files[0].absolute()), *map(_times, files)])

    def read() -> str:
        whole = hashlib.sha256()
        for file in files:
            whole.update(file.read_bytes())
        return whole.hexdigest()

    return Contents(_kept(where, read), True, where)


def of_index(images: Indexed) -> Contents:
    """Return the contents of photographs: names below the folder or tar, labels, and the bytes of the files."""
    where = _digest([str(images.place.path.absolute()), *_stamps(images)])

    def read() -> str:
        sizes = _sizes(images)
        whole = sum(sizes) <= WHOLE
        step = 1 if whole else -(-len(images) // SAMPLE)
        found = hashlib.sha256(json.dumps([list(images.names), images.labels.tolist(), list(images.classes)]).encode())
        found.update(json.dumps(sizes).encode())
        for index in range(0, len(images), step):
            found.update(hashlib.sha256(images.read(index)).digest())
        return f"{found.hexdigest()} {'whole' if whole else 'sample'}"

    digest, _, how = _kept(where, read).partition(" ")
    return Contents(digest, how == "whole", where)


def copies(train: Indexed, test: Indexed) -> tuple[int, int, str]:
    """Return how many test images are, byte by byte, a training image, of how many that were looked at, and the name of
    one; of parquet files, and of folders that are too large to look at, none."""
    if any(images.place.kind == "parquet" or _too_many(images) for images in (train, test)):
        return 0, 0, ""
    where = _digest(
        ["copies", *(line for one in (train, test) for line in [str(one.place.path.absolute()), *_stamps(one)])]
    )

    def read() -> str:
        by_size: dict[int, list[int]] = {}
        for index, size in enumerate(_sizes(train)):
            by_size.setdefault(size, []).append(index)
        digest = cache(lambda index: hashlib.sha256(train.read(index)).digest())
        looked, sizes = range(0, len(test), -(-len(test) // SAMPLE) if len(test) > COMPARED else 1), _sizes(test)
        found = [
            index
            for index in looked
            if sizes[index] in by_size
            and hashlib.sha256(test.read(index)).digest() in set(map(digest, by_size[sizes[index]]))
        ]
        return f"{where} {len(found)} {len(looked)} {test.names[found[0]] if found else ''}"

    _, count, looked, name = _kept(where, read).split(" ", 3)
    return int(count), int(looked), name


def _too_many(images: Indexed) -> bool:
    return images.place.kind == "folder" and len(images) > LOOKED_AT


def _stamps(images: Indexed) -> list[str]:
    place = images.place
    if place.kind != "folder":
        return [_times(file) for file in place.files]
    if len(images) > LOOKED_AT:
        return [_times(place.path / name) for name in images.classes]
    return [_times(place.path / name) for name in (*images.classes, *images.names)]


def _sizes(images: Indexed) -> list[int]:
    """Return the bytes of each image, or of what holds them; for a folder with too many to look at each, one number
    beyond what is read whole."""
    if images.place.kind == "tar" and images.spots is not None:
        return images.spots[:, 2].tolist()
    if images.place.kind == "parquet":
        return [file.stat().st_size for file in images.place.files]
    if len(images) > LOOKED_AT:
        return [WHOLE + 1]
    return [os.stat(images.place.path / name).st_size for name in images.names]


def _times(file: Path) -> str:
    """Return a line that changes whenever the file is written or replaced: the time of change, unlike that of
    modification, cannot be copied along."""
    found = file.stat()
    return f"{file.name} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _kept(where: str, read: Callable[[], str]) -> str:
    """Return what ``read`` gives, which is called once per state of the files."""
    file = downloads.folder() / "contents" / f"{_digest([str(VERSION), where])[:20]}.txt"
    try:
        if len(found := file.read_text(encoding="utf-8")) >= 64:
            return found
    except (OSError, ValueError):
        pass
    found = read()
    with suppress(OSError):  # else it is read again the next time
        atomic_write(file, found.encode())
    return found
