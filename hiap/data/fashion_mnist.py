"""Fashion-MNIST: 70,000 grey photographs of clothing, 28 x 28 pixels, ten classes (Xiao, Rasul and Vollgraf, 2017).

Read from four IDX files, plain or gzipped, as torchvision and Debian's package ``dataset-fashion-mnist`` lay them.
``python -m hiap.data.fashion_mnist`` (`make fashion`) fetches them by whichever way is open. The published training
images are split into 50,000 to train on and the last 10,000 to validate on; the test images are the published 10,000.
"""

from __future__ import annotations

import gzip
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from hiap.data import downloads
from hiap.options import ConfigError

if TYPE_CHECKING:
    import torch

Part = Literal["train", "validation", "test"]

TRAIN, VALIDATION, TEST, SIDE, CLASSES = 50_000, 10_000, 10_000, 28, 10
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
PACKAGE = "dataset-fashion-mnist"
FILES = {"train": "train", "validation": "train", "test": "t10k"}
EXPECTED = (
    "a folder with the four IDX files of Fashion-MNIST, plain or gzipped (also in FashionMNIST/raw, torchvision's "
    "layout); `make fashion` fetches them"
)
CHUNK = 1000  # images that are resized at once


def find(root: str = "") -> Path:
    """Return the folder that holds the four files: ``root``, or where `make fashion` or Debian put them. Raises
    ``ConfigError`` if there is none."""
    places = [Path(root)] if root else [downloads.folder() / "fashion-mnist", DEBIAN]
    for place in places:
        for folder in (place, place / "FashionMNIST" / "raw"):
            if all(_file(folder, name) for name in _names()):
                return folder
    if root:
        raise ConfigError(f"data.root {root!r} must be {EXPECTED}")
    raise ConfigError(f"fashion-mnist is not here: run `make fashion`, or set data.root to {EXPECTED}")


def files(root: str = "") -> list[Path]:
    """Return the four files."""
    folder = find(root)
    return [path for name in _names() if (path := _file(folder, name)) is not None]


def images(root: str, part: Part, size: int, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``count`` images uint8 (count, 1, size, size), resized bilinearly, and labels int64 (count,). ``seed``
    chooses among the training images; of the others the first are taken. Raises ``ConfigError`` for files that hold
    anything else."""
    import torch
    import torch.nn.functional as F

    pixels, labels = _published(str(find(root)), FILES[part])
    chosen = _chosen(part, count, seed)
    stored = torch.from_numpy(pixels[chosen])[:, None]
    if size != SIDE:
        resized = [
            F.interpolate(chunk.float(), size=(size, size), mode="bilinear", antialias=True)
            for chunk in stored.split(CHUNK)
        ]
        stored = torch.cat([chunk.round().clamp(0, 255).to(torch.uint8) for chunk in resized])
    return stored, torch.from_numpy(labels[chosen])


def _chosen(part: Part, count: int, seed: int) -> np.ndarray:
    if part == "train":
        return np.random.Generator(np.random.PCG64([seed])).permutation(TRAIN)[:count]
    first = TRAIN if part == "validation" else 0
    return np.arange(first, first + count)


@lru_cache(maxsize=2)
def _published(folder: str, which: str) -> tuple[np.ndarray, np.ndarray]:
    pixels = _idx(Path(folder), f"{which}-images-idx3-ubyte", (SIDE, SIDE))
    labels = _idx(Path(folder), f"{which}-labels-idx1-ubyte", ())
    count = TRAIN + VALIDATION if which == "train" else TEST
    if len(pixels) != count or len(labels) != count or labels.max() >= CLASSES:
        raise ConfigError(f"{folder}: {len(pixels):,} images and {len(labels):,} labels; expected {count:,} of each")
    return pixels, labels.astype(np.int64)


def _idx(folder: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Read an IDX file of bytes: 0, 0, 8 (uint8), number of dimensions, their sizes as big-endian int32, the values."""
    path = _file(folder, name)
    assert path is not None
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    head = 4 + 4 * (1 + len(shape))
    sizes = tuple(int(n) for n in np.frombuffer(content[4:head], dtype=">i4")) if len(content) >= head else ()
    if content[:4] != bytes([0, 0, 8, 1 + len(shape)]) or sizes[1:] != shape or len(content) - head != np.prod(sizes):
        raise ConfigError(f"{path}: not an IDX file of n {'x '.join(map(str, shape)) or 'labels'} bytes")
    return np.frombuffer(content, dtype=np.uint8, offset=head).reshape(sizes).copy()


def _names() -> list[str]:
    return [f"{which}-{kind}" for which in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]


def _file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def fetch() -> Path:
    """Return the folder of the files, fetched if they are not here: Debian's package, else torchvision's download.
    Raises ``ConfigError`` if neither can be had."""
    try:
        return find()
    except ConfigError:
        pass
    if shutil.which("apt-get") and not _apt() and DEBIAN.is_dir():
        return find()
    from torchvision.datasets import FashionMNIST

    place = downloads.folder() / "fashion-mnist"
    try:
        for train in (True, False):
            FashionMNIST(str(place), train=train, download=True)
    except Exception as error:  # urllib's errors, RuntimeError of torchvision
        raise ConfigError(
            f"Fashion-MNIST cannot be fetched ({type(error).__name__}): install Debian's {PACKAGE}, or set data.root "
            f"to {EXPECTED}"
        ) from None
    return find()


def _apt() -> int:
    """Install Debian's package, which needs root; where that is missing it fails quietly, and the download is tried."""
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", PACKAGE]
    for step in (["apt-get", "update", "-qq"], command):
        status = subprocess.run(step, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
    return status


if __name__ == "__main__":
    sys.exit(downloads.fetched(fetch))
