"""CIFAR-10: 60,000 colour photographs of 32 x 32 pixels, ten classes (Krizhevsky, 2009).

Read from either of the two published layouts, Python's pickles or binary records. Copies as class folders or tars are
read as any other photographs (``layouts``).
"""

from __future__ import annotations

import pickle
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hiap.data import contents, layouts
from hiap.options import ConfigError

if TYPE_CHECKING:
    from PIL import Image

PICKLES, BINARIES = "cifar-10-batches-py", "cifar-10-batches-bin"
FILES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
CLASSES, SIDE = 10, 32
EXPECTED = (
    f"a folder with '{PICKLES}/' or '{BINARIES}/' in it (CIFAR-10, Python or binary version), or with ten class "
    "folders in 'train/' and 'val/' (or train.tar and val.tar)"
)


class Published:
    """Split of CIFAR-10 in memory: ``pixels`` uint8 (n, 32, 32, 3), ``labels`` int64 (n,)."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, files: list[Path]):
        self.pixels, self.labels, self.files = pixels, labels, files
        self.classes, self.place = [str(number) for number in range(CLASSES)], str(files[0].parent)
        self.corrupt: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"image {index}"

    def contents(self) -> contents.Contents:
        return contents.of_files(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        from PIL import Image

        return Image.fromarray(self.pixels[index]), int(self.labels[index])


@lru_cache(maxsize=2)
def published(root: str, split: layouts.Split) -> Published:
    """Read the images of a split from one of the published layouts. Raises ``ConfigError`` for files that hold anything
    else."""
    found = files(root)[split]
    parts = [_read_pickle(file) if file.suffix == "" else _read_binary(file) for file in found]
    pixels, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    # Stored as planes, red first; PIL wants channels last.
    return Published(np.ascontiguousarray(pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)), labels, found)


def is_published(root: str) -> bool:
    """Tell whether one of the two published layouts is there."""
    return any((Path(root) / name).is_dir() for name in (PICKLES, BINARIES))


def files(root: str) -> dict[layouts.Split, list[Path]]:
    """Return the files of whichever of the two published layouts is there. Raises ``ConfigError`` if a file is
    missing."""
    name, ending = (PICKLES, "") if (Path(root) / PICKLES).is_dir() else (BINARIES, ".bin")
    folder = Path(root) / name
    found = {split: [folder / (name + ending) for name in names] for split, names in FILES.items()}
    if missing := [str(file) for of_split in found.values() for file in of_split if not file.is_file()]:
        raise ConfigError(f"{missing[0]} is missing; data.root must hold {EXPECTED}")
    return found  # type: ignore[return-value]


def check(root: str) -> None:
    """Raise ``ConfigError`` for what a look at the names tells."""
    if is_published(root):
        files(root)
        return
    folder = Path(root)
    if not any((folder / name).exists() for name in ("train", "train.tar")):
        raise ConfigError(f"data.root {root!r} holds neither; expected {EXPECTED}")
    layouts.check(folder)
    train = layouts.find(folder)["train"]
    if train.kind == "folder" and (found := len(layouts.class_folders(train.path))) != CLASSES:
        raise _not_cifar(f"{train.path} has {found} classes")


def check_copies(classes: int, first: Image.Image, name: str) -> None:
    """Raise ``ConfigError`` unless class folders or tars hold what CIFAR-10 is."""
    if classes != CLASSES:
        raise _not_cifar(f"{name} is of {classes} classes")
    if first.size != (SIDE, SIDE):
        raise _not_cifar(f"{name} has {first.size[0]} x {first.size[1]} pixels")


def _not_cifar(found: str) -> ConfigError:
    return ConfigError(f"data.name 'cifar10': {found}, not {SIDE} x {SIDE} pixels in ten classes; 'folder' is the name "
                       "for other sets")  # fmt: skip


def _read_pickle(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a batch of the Python layout: pixels uint8 (n, 3072) and labels (n,)."""
    try:
        with file.open("rb") as stream:
            entry = _Unpickler(stream, encoding="latin1").load()
        pixels, labels = np.asarray(entry["data"]), np.asarray(entry["labels"])
        good = (
            pixels.dtype == np.uint8 and pixels.shape == (len(labels), 3072) and set(labels.tolist()) <= set(range(10))
        )
    except Exception as error:  # a wrong pickle can raise anything
        raise ConfigError(
            f"{file}: not a CIFAR-10 batch ({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from None
    if not good:
        raise ConfigError(f"{file}: not a CIFAR-10 batch (expected n x 3072 bytes and n labels of 0 to 9)")
    return pixels, labels.astype(np.int64)


class _Unpickler(pickle.Unpickler):
    """Unpickler for numpy arrays alone: a pickle may name any function to call, and this one calls no other."""

    allowed = frozenset({("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")})

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy.core.multiarray", "_reconstruct"):
            return np.empty(0).__reduce__()[0]  # numpy 2 moved it; this is where it lives now
        if (module, name) in self.allowed:
            return getattr(np, name)
        raise pickle.UnpicklingError(f"refused to load {module}.{name}")


def _read_binary(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a batch of the binary layout: records of 1 label byte and 3072 pixel bytes."""
    content = np.fromfile(file, dtype=np.uint8)
    if not len(content) or len(content) % 3073 or content[::3073].max() > 9:
        raise ConfigError(f"{file}: not a CIFAR-10 batch (expected records of 3073 bytes that start with a label)")
    records = content.reshape(-1, 3073)
    return records[:, 1:], records[:, 0].astype(np.int64)
