"""Some hundred images of a folder, with labels or without, as a network takes them.

The folder holds images, in any folders below it; if each lies in one of several folders, these are its classes, sorted
by name as bytes. Or it holds ``train`` and ``val``, in any layout of ``data.name=folder``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hiap.cost import image_of
from hiap.data import choice, layouts, loader
from hiap.data.config import DataConfig
from hiap.data.decode import photograph
from hiap.options import ConfigError

BATCH = 64
Batch = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class Pictures:
    """Images of a folder. ``calibration``: batches to prune by; ``held_out``: others, with labels, to measure on, ()
    where there are none; ``why``: why not, in words."""

    calibration: Sequence[Batch]
    held_out: Sequence[Batch] = ()
    why: str = ""


def require(folder: str) -> None:
    """Raise ``ConfigError`` (one line) if ``folder`` holds no images; cheap, to be asked before a network is loaded."""
    root = Path(folder)
    if not root.is_dir():
        raise ConfigError(f"--data {folder}: no such folder")
    if not _is_split(root) and not any(_images(root)):
        raise ConfigError(f"--data {root}: holds no images ({', '.join(layouts.ENDINGS)})")


def _is_split(root: Path) -> bool:
    return any((root / name).exists() for name in ("train", "train.tar")) or any(root.glob("*.parquet"))


def _images(root: Path) -> Iterator[Path]:
    return (path for path in root.rglob("*") if path.suffix.lower() in layouts.ENDINGS and path.is_file())


def read(folder: str, model: Any, wanted: int | None, most: int, measured: int, seed: int = 0) -> Pictures:
    """Read ``wanted`` images of ``folder`` (None: up to ``most``) and up to ``measured`` others. Raises ``ConfigError``
    (one line), also if there are fewer than are wanted."""
    channels, height, width = image_of(model)
    if channels != 3 or height != width:
        raise ConfigError(f"the network takes {channels} x {height} x {width}: expected square images of 3 channels")
    require(folder)
    root = Path(folder)
    return (_of_splits if _is_split(root) else _of_files)(root, model, wanted, most, measured, seed)


def _count(wanted: int | None, most: int, there: int, what: str) -> int:
    """Return how many of the images that are ``there`` to prune by."""
    if wanted is not None and wanted > there:
        raise ConfigError(f"--images {wanted}: {what}; without --images all of them are used, up to {most}")
    return min(wanted or most, there)


def _of_splits(root: Path, model: Any, wanted: int | None, most: int, measured: int, seed: int) -> Pictures:
    side = image_of(model)[1]
    data = DataConfig(name="folder", root=str(root))
    data = data.model_copy(update=loader.pixels(data, getattr(model, "pretrained_cfg", None)))
    loader.check(data, side)
    found = loader.info(data, side)
    left = found.train - choice.apart(found.train)  # a subset is never of those that validate
    what = f"there are {left} training images in {root}, beside the fifth that is set apart for validation"
    count = _count(wanted, most, left, what)
    known = data.model_copy(update={"train_size": count, "seed": seed, "test_size": min(measured, found.test)})
    batches = list(loader.in_order(known, side, BATCH))
    if found.classes != model.num_classes:
        return Pictures(batches, why=_mismatch(found.classes, model))
    return Pictures(batches, list(loader.test_batches(known, side, batch_size=BATCH)))


def _mismatch(classes: int, model: Any) -> str:
    return f"the folder has {classes} classes and the network answers with {model.num_classes}"


def _of_files(root: Path, model: Any, wanted: int | None, most: int, measured: int, seed: int) -> Pictures:
    files = sorted(_images(root), key=lambda path: path.relative_to(root).as_posix().encode())
    parts = [path.relative_to(root).parts for path in files]
    names = sorted({p[0] for p in parts}, key=str.encode) if all(len(p) > 1 for p in parts) else []
    labels = [names.index(p[0]) for p in parts] if len(names) > 1 else None
    order = list(range(len(files)))
    random.Random(seed).shuffle(order)
    labelled = labels is not None and len(names) == model.num_classes
    # Where there are few, half of them are kept to measure on.
    there = max(1, len(files) // 2) if labelled else len(files)
    what = f"of {len(files)} images in {root} half are kept to measure on" if labelled else f"{root} holds {there}"
    count = _count(wanted, most, there, what)
    chosen, others = order[:count], order[count : count + measured]
    calibration = _batches(files, labels, chosen, model)
    if not labelled:
        why = "the images come without classes" if labels is None else _mismatch(len(names), model)
        return Pictures(calibration, why=why)
    return Pictures(calibration, _batches(files, labels, others, model))


def _batches(files: list[Path], labels: list[int] | None, chosen: list[int], model: Any) -> list[Batch]:
    from timm.data import create_transform

    side = image_of(model)[1]
    how = loader.pixels(DataConfig(name="folder"), getattr(model, "pretrained_cfg", None))
    transform: Any = create_transform(input_size=(3, side, side), **how)
    batches: list[Batch] = []
    for first in range(0, len(chosen), BATCH):
        some = chosen[first : first + BATCH]
        images = torch.stack([transform(photograph(files[i].read_bytes, str(files[i]))) for i in some])
        batches.append((images, None if labels is None else torch.tensor([labels[i] for i in some])))
    return batches
