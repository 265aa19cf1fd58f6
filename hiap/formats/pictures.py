"""Some hundred images of a folder, with labels or without, as a network takes them.

The folder holds images, in any folders below it; if each lies in one of several folders, these are its classes,
numbered as the network names them, or by name. Or it holds ``train`` and ``val``, in any layout of
``data.name=folder``.
"""

from __future__ import annotations

import hashlib
import os
import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hiap.backbones.families import pretrained
from hiap.cost import image_of
from hiap.data import choice, layouts, loader
from hiap.data.config import DataConfig
from hiap.data.decode import photograph
from hiap.options import ConfigError

BATCH = 64
COPIES = "all other images are copies of such as the network is pruned by"
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
    return (path for path in _files(root) if layouts.is_image(path.name))


def _files(root: Path) -> Iterator[Path]:
    """Yield the files of a folder and of those below it, linked ones too, but for what a system left behind."""
    seen = set[str]()
    for folder, below, files in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # a link back up
            below.clear()
            continue
        seen.add(real)
        below[:] = [name for name in below if not layouts.hidden(name)]
        yield from (Path(folder, name) for name in files if not layouts.hidden(name))


def read(
    folder: str, model: Any, wanted: int | None, most: int, measured: int, seed: int = 0, class_order: str = "auto"
) -> Pictures:
    """Read ``wanted`` images of ``folder`` (None: up to ``most``) and up to ``measured`` others. A class has the number
    that the network gives its name, where it says so, else its place in ``class_order`` (as ``data.class_order``).
    Raises ``ConfigError`` (one line), also if there are fewer than are wanted; warns of a network that does not say how
    its images are normalised."""
    channels, height, width = image_of(model)
    if channels != 3 or height != width:
        raise ConfigError(f"the network takes {channels} x {height} x {width}: expected square images of 3 channels")
    require(folder)
    root = Path(folder)
    if not (pretrained(model).get("mean") and pretrained(model).get("std")):
        warnings.warn(
            "the network does not say how its images are normalised: ImageNet's mean and deviation are taken; "
            "in Python hiap.prune takes images that you prepare",
            stacklevel=2,
        )
    try:
        return (_of_splits if _is_split(root) else _of_files)(root, model, wanted, most, measured, seed, class_order)
    except ConfigError as error:
        raise ConfigError(str(error).replace("data.class_order", "--class-order")) from None


def _count(wanted: int | None, most: int, there: int, what: str) -> int:
    """Return how many of the images that are ``there`` to prune by."""
    if wanted is not None and wanted > there:
        raise ConfigError(f"--images {wanted}: {what}; without --images all of them are used, up to {most}")
    return min(wanted or most, there)


def _of_splits(
    root: Path, model: Any, wanted: int | None, most: int, measured: int, seed: int, class_order: Any
) -> Pictures:
    side = image_of(model)[1]
    data = DataConfig(name="folder", root=str(root), class_order=class_order)
    data = data.model_copy(update=loader.pixels(data, pretrained(model)))
    loader.check(data, side)
    found = loader.info(data, side)
    left = found.train - choice.apart(found.train)  # a subset is never of those that validate
    what = f"there are {left} training images in {root}, beside the fifth that is set apart for validation"
    count = _count(wanted, most, left, what)
    known = data.model_copy(update={"train_size": count, "seed": seed, "test_size": min(measured, found.test)})
    batches = list(loader.in_order(known, side, BATCH))
    if found.classes != model.num_classes:
        return Pictures(batches, why=_mismatch(found.classes, model))
    try:
        own = layouts.numbers_for(loader.class_names(data), pretrained(model), found.classes)
    except ConfigError as error:
        return Pictures(batches, why=str(error))
    if own is not None and own != sorted(own):
        return Pictures(batches, why="the network names its classes in another order than the folders have")
    others = _unseen_batches(batches, loader.test_batches(known, side, batch_size=BATCH))
    if not others:
        return Pictures(batches, why=COPIES)
    return Pictures(batches, others)


def _unseen_batches(calibration: list[Any], held_out: Iterator[Any]) -> list[Any]:
    """Return the batches that are ``held_out``, without images that ``calibration`` has too, pixel by pixel."""
    seen = {_digest(x) for images, _ in calibration for x in images}
    batches, copies = [], 0
    for images, labels in held_out:
        own = torch.tensor([_digest(x) not in seen for x in images], dtype=torch.bool)
        copies += int((~own).sum())
        batches += [(images[own], labels[own])] if own.any() else []
    _tell_copies(copies)
    return batches


def _digest(image: Tensor) -> bytes:
    return hashlib.sha256(image.contiguous().numpy().tobytes()).digest()


def _tell_copies(count: int) -> None:
    if count:
        what = f"{count:,} images are copies of such as the network is pruned by"
        warnings.warn(f"{what}, and are not measured on", stacklevel=5)


def _mismatch(classes: int, model: Any) -> str:
    return f"the folder has {classes} classes and the network answers with {model.num_classes}"


def _of_files(
    root: Path, model: Any, wanted: int | None, most: int, measured: int, seed: int, class_order: str
) -> Pictures:
    every = sorted(_files(root), key=lambda path: path.relative_to(root).as_posix().encode())
    files = [path for path in every if layouts.is_image(path.name)]
    if strange := [path.relative_to(root) for path in every if not layouts.is_image(path.name)]:
        what = f"{len(strange):,} files in {root} are no images ({', '.join(layouts.ENDINGS)}) and left out"
        warnings.warn(f"{what}, {strange[0]} for example", stacklevel=3)
    parts = [path.relative_to(root).parts for path in files]
    names = layouts.class_folders(root) if all(len(p) > 1 for p in parts) else []
    if layouts.are_splits(names):
        raise ConfigError(f"--data {root}: {' and '.join(names[:2])} are no classes; call the folders train and val")
    number, why = _numbers(names, {p[0] for p in parts}, model, class_order)
    labels = [number[p[0]] for p in parts] if number else None
    order = list(range(len(files)))
    random.Random(seed).shuffle(order)
    # Where there are few, half of them are kept to measure on.
    there = max(1, len(files) // 2) if labels else len(files)
    what = f"of {len(files)} images in {root} half are kept to measure on" if labels else f"{root} holds {there}"
    count = _count(wanted, most, there, what)
    chosen = order[:count]
    calibration = _batches(files, labels, chosen, model)
    if labels is None:
        return Pictures(calibration, why=why)
    others = _unseen(files, chosen, order[count:], measured)
    if not others:
        return Pictures(calibration, why=COPIES)
    return Pictures(calibration, _batches(files, labels, others, model))


def _unseen(files: list[Path], chosen: list[int], rest: list[int], measured: int) -> list[int]:
    """Return so many of ``rest``, without copies of those that are ``chosen``."""
    seen = {hashlib.sha256(files[i].read_bytes()).digest() for i in chosen}
    taken = rest[:measured]
    own = [i for i in taken if hashlib.sha256(files[i].read_bytes()).digest() not in seen]
    _tell_copies(len(taken) - len(own))
    return own


def _numbers(names: list[str], filled: set[str], model: Any, class_order: str) -> tuple[dict[str, int], str]:
    """Return the number of each class, {} with the reason where images cannot be measured by their folders."""
    if len(names) < 2:
        return {}, "the images come without classes"
    classes = model.num_classes
    try:
        known = layouts.numbers_for(names, pretrained(model), classes)
    except ConfigError as error:
        return {}, str(error)
    if known is not None:
        return dict(zip(names, known, strict=True)), ""
    if len(names) != classes:
        return {}, _mismatch(len(names), model)
    if empty := [name for name in names if name not in filled]:
        return {}, f"class folder {empty[0]!r} holds no image"
    return dict(zip(names, map(int, layouts.numbers(names, class_order)), strict=True)), ""


def _batches(files: list[Path], labels: list[int] | None, chosen: list[int], model: Any) -> list[Batch]:
    from timm.data import create_transform

    side = image_of(model)[1]
    how = loader.pixels(DataConfig(name="folder"), pretrained(model))
    transform: Any = create_transform(input_size=(3, side, side), **how)
    batches: list[Batch] = []
    for first in range(0, len(chosen), BATCH):
        some = chosen[first : first + BATCH]
        images = torch.stack([transform(photograph(files[i].read_bytes, str(files[i]))) for i in some])
        batches.append((images, None if labels is None else torch.tensor([labels[i] for i in some])))
    return batches
