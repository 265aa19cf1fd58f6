"""Data sets fetched from where their authors keep them: ``python -m hiap.data.originals cifar10`` (`make cifar10`), or
``imagenette``. torchvision downloads and compares checksums; nothing is fetched twice."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hiap.data import downloads
from hiap.options import ConfigError, one_line

# Name here: torchvision's class, what it takes for each split, the folder that data.root must name, what reads it.
ORIGINALS: dict[str, tuple[str, list[dict[str, Any]], str, str]] = {
    "cifar10": ("CIFAR10", [{"train": True}, {"train": False}], "", "data.name=cifar10"),
    "imagenette": (
        "Imagenette",
        [{"split": "train", "size": "320px"}, {"split": "val", "size": "320px"}],
        "imagenette2-320",
        "data.name=folder",
    ),
}
ELSEWHERE = {
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar.html (Python or binary version)",
    "imagenette": "https://github.com/fastai/imagenette (320 px)",
}


def fetch(name: str) -> Path:
    """Return the folder for ``data.root``, downloaded if it is not here. Raises ``ConfigError`` without a network."""
    from torchvision import datasets

    kind, splits, inner, _ = ORIGINALS[name]
    place = downloads.folder() / name
    if name == "imagenette" and (place / inner).is_dir():  # torchvision would refuse to unpack it again
        return place / inner
    place.mkdir(parents=True, exist_ok=True)
    try:
        for split in splits:
            getattr(datasets, kind)(str(place), download=True, **split)
    except Exception as error:  # urllib's errors, RuntimeError of torchvision
        raise ConfigError(
            f"{name} cannot be fetched ({type(error).__name__}: {one_line(error, 80)}): where there is a network, get "
            f"it from {ELSEWHERE[name]}, unpack it, and set data.root to the folder that holds it"
        ) from None
    return place / inner


def main(arguments: list[str] | None = None) -> int:
    """Fetch what is named, and tell where it lies, or in one line why not. Returns the exit status."""
    names = sys.argv[1:] if arguments is None else arguments
    if len(names) != 1 or names[0] not in ORIGINALS:
        print(f"error: expected one of {', '.join(ORIGINALS)}", file=sys.stderr)
        return 2
    status = downloads.fetched(lambda: fetch(names[0]))
    if not status:
        print(f"read it by {ORIGINALS[names[0]][3]} data.root=<that folder>")
    return status


if __name__ == "__main__":
    sys.exit(main())
