"""Images decoded and resized once, for all runs and processes: in the folder of downloads, one folder of two files for
each choice of images at each size, named by a digest of both.

``images.npy`` (uint8, n x C x H x W) is mapped into memory, so that processes share it and only what is looked at is
read; ``about.json`` holds labels, the images that could not be read, and a digest of it all. A folder appears whole or
not at all, and may be removed at any time. Nothing in it is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hiap.data import downloads
from hiap.files import atomic_folder, file_lock, write_json

VERSION = 1  # of what is written
MOST = 16 * 2**30  # bytes of one folder: larger sets are decoded image by image, every time
WORTH_A_WORD = 2_000  # images: fewer are decoded within seconds
SPARE = 2**30  # bytes that must be left free on the disk

Made = Iterable[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Pixels:
    """Images of the cache: ``images`` uint8 (n, C, H, W), mapped; ``labels`` int64 (n,); ``corrupt``: those of the
    source's images that could not be read and that others stand for; ``digest`` of images and labels."""

    images: np.ndarray
    labels: np.ndarray
    corrupt: list[int]
    digest: str


def digest(images: np.ndarray, labels: np.ndarray) -> str:
    """Return the SHA-256 of images (n, C, H, W) and labels (n,)."""
    whole = hashlib.sha256(np.ascontiguousarray(images).data)
    whole.update(labels.astype("<i8").tobytes())
    return whole.hexdigest()


def load_or_decode(
    key: dict[str, Any], shape: tuple[int, ...], make: Callable[[], Made], corrupt: Callable[[], list[int]], what: str
) -> Pixels | None:
    """Return the images that ``key`` names, as they are kept, else as ``make`` brings them in batches (images, labels),
    which are kept from then on; ``corrupt`` tells afterwards which could not be read. Processes that ask at the same
    time wait for the first of them. None if there is no room for so many, or no folder to keep them in."""
    name = hashlib.sha256(json.dumps([VERSION, key], sort_keys=True).encode()).hexdigest()[:20]
    folder = downloads.folder() / "pixels" / name
    if (kept := _load(folder, shape)) is not None:
        return kept
    lock = folder.with_suffix(".lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
        if reason := _no_room(shape, folder.parent):
            _tell(folder.parent, reason)
            return None
    except OSError as error:
        _tell(folder.parent, str(error.strerror))
        return None
    with file_lock(lock):
        if (kept := _load(folder, shape)) is not None:  # another process was first
            return kept
        if shape[0] >= WORTH_A_WORD:
            print(f"decoding {shape[0]:,} images of {what} once, into {folder}", file=sys.stderr, flush=True)
        try:
            _write(folder, shape, make, corrupt)
        except OSError as error:
            _tell(folder.parent, str(error.strerror))
            return None
    return _load(folder, shape)


def _load(folder: Path, shape: tuple[int, ...]) -> Pixels | None:
    """Load a folder; None if there is nothing whole."""
    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        # Copy on write: torch takes no array that cannot be written. Nobody writes.
        images = np.load(folder / "images.npy", mmap_mode="c")
        labels = np.array(about["labels"], dtype=np.int64)
        whole = (images.shape, images.dtype, labels.shape) == (shape, np.uint8, shape[:1])
        return Pixels(images, labels, list(about["corrupt"]), str(about["digest"])) if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(folder: Path, shape: tuple[int, ...], make: Callable[[], Made], corrupt: Callable[[], list[int]]) -> None:
    for dead in folder.parent.glob(f".{folder.name}.*"):  # of a process that was killed: the lock is ours
        shutil.rmtree(dead, ignore_errors=True)
    with atomic_folder(folder) as temporary:
        whole, labels = hashlib.sha256(), list[np.ndarray]()
        with (temporary / "images.npy").open("wb") as file:  # not through a map: a full disk would kill the process
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for images, targets in make():
                whole.update(np.ascontiguousarray(images).data)
                file.write(np.ascontiguousarray(images).data)
                labels.append(targets)
            file.flush()
            os.fsync(file.fileno())
        targets = np.concatenate(labels)
        whole.update(targets.astype("<i8").tobytes())
        about = {"labels": targets.tolist(), "corrupt": corrupt(), "digest": whole.hexdigest()}
        write_json(temporary / "about.json", about)


def _no_room(shape: tuple[int, ...], folder: Path) -> str:
    size = int(np.prod(shape))
    if size > MOST:
        return f"{shape[0]:,} images of {shape[-1]} pixels take {size / 2**30:.0f} GiB"
    if size + SPARE > (free := shutil.disk_usage(folder).free):
        return f"{size / 2**30:.1f} GiB of decoded images and only {free / 2**30:.1f} GiB free"
    return ""


@cache
def _tell(folder: Path, reason: str) -> None:
    """Tell, once per process, that images cannot be kept."""
    print(f"{folder}: decoded images cannot be kept there ({reason}); they are decoded each time", file=sys.stderr)
