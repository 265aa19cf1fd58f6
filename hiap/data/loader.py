"""Images in batches: two embedded digit sets, Fashion-MNIST, CIFAR-10, and ImageNet or any other set of photographs.

Which images are trained on and measured: ``choice``. Without augmentation, or with one of whole batches (``on_batch``),
they come from memory, photographs from a cache of decoded images (``pixel_cache``) where it has room for them, on a GPU
from its own memory where they fit; else each is decoded every time.

Batch k of epoch e is a pure function of the configuration, the run's seed, e and k: the order comes from (seed, e), the
augmentation of an image from (seed, e, its index and copy), mixing from (seed, e, k). A run that is resumed at step k
therefore reads on exactly where it stopped, with any number of workers, and stores no loader state.

Torch, torchvision, timm and scikit-learn are imported where they are used: ``check`` serves the launcher, which must
start at once.
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hiap.data import choice, cifar10, contents, decode, fashion_mnist, image_index, layouts, pixel_cache
from hiap.data.config import CLASS_FOLDERS, IN_MEMORY, ON_DISK, SIZES, DataConfig
from hiap.options import ConfigError

if TYPE_CHECKING:
    import torch
    from PIL import Image

    Device = torch.device | None

Split = layouts.Split
Batch = tuple["torch.Tensor", "torch.Tensor"]
Indices = Sequence[np.ndarray]  # of the images of each batch
Stream = tuple[int, int]  # seed and epoch, which augmentation follows from
Transform = Callable[["Image.Image"], "torch.Tensor"]

DIGIT_SETS = ("digits", "affine-digits")
SMALLEST = {"digits": 8, "affine-digits": 16, "fashion-mnist": 8, "cifar10": 8, "imagenet": 32, "folder": 8}

# Mean and standard deviation per channel of the training images in [0, 1]. ImageNet's are timm's constants.
NORMALISATION: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "digits": ((0.305,), (0.376,)),
    "affine-digits": ((0.22,), (0.157,)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
}

PIXELS = {"mean", "std", "interpolation", "crop_pct", "crop_mode"}  # of DataConfig and, under the same names, of timm

ON_GPU = 0.25  # share of a GPU's free memory that a split's images may take, to stay there

DECODER = 2  # of ``hiap.data.decode``: what an older one decoded is decoded anew
DECODED_AT_ONCE = 256  # images that are decoded for the cache between two looks at what could not be read

# Names for the independent streams of random numbers.
ORDER, AUGMENT, MIX = 0, 1, 2


@dataclass(frozen=True)
class Info:
    """Numbers of a data set. ``size``: side of the images as they are stored or drawn, None where it varies; ``train``,
    ``test``: images."""

    channels: int
    classes: int
    size: int | None
    train: int
    test: int

    def image(self, img_size: int) -> tuple[int, int, int]:
        """Return (channels, height, width) as a network of that size is shown it."""
        return (self.channels, img_size, img_size)


def published_size(data: DataConfig) -> Info:
    """Return what a run sees of the data set as it was published, without reading it: for bills and for checks before
    submission. A folder that only the nodes have counts as one of ``train_size`` and ``test_size`` images (or 20,000
    and 10,000) in 1,000 classes."""
    if data.name in SIZES:
        return Info(1, 10, None, data.train_size, data.test_size)  # type: ignore[arg-type]
    if data.name == "folder":
        there = data.root and Path(data.root).is_dir()
        assumed = Info(3, 1000, None, data.train_size or 20_000, data.test_size or 10_000)
        return info(data, SMALLEST["folder"]) if there else assumed
    whole = {
        "digits": Info(1, 10, 8, 1_352, 445),
        "cifar10": Info(3, 10, 32, 50_000, 10_000),
        "imagenet": Info(3, 1000, None, 1_281_167, 50_000),
    }[data.name]
    return _of_whole(data, whole)


def info(data: DataConfig, img_size: int) -> Info:
    """Return what a run sees of the data set. Draws and decodes nothing, but reads CIFAR-10's files and lists
    ImageNet's, once. Raises ``ConfigError`` if there are not as many images as it is to use."""
    _check_place(data, img_size)
    if data.name == "affine-digits":
        return Info(1, 10, img_size, data.train_size, data.test_size)  # type: ignore[arg-type]
    if data.name == "fashion-mnist":
        return Info(1, fashion_mnist.CLASSES, fashion_mnist.SIDE, data.train_size, data.test_size)  # type: ignore[arg-type]
    if data.name == "digits":
        from hiap.data.affine_digits import original_indices

        return _of_whole(data, Info(1, 10, 8, len(original_indices("train")), len(original_indices("test"))))
    splits = {split: _published(data, split) for split in layouts.FOLDERS}
    train, test = (len(source) for source in splits.values())
    if data.name == "cifar10":
        return _of_whole(data, Info(3, 10, 32, train, test))
    layouts.check_same_classes(*(source.index for source in splits.values() if isinstance(source, _Images)))
    if (classes := len(splits["train"].classes)) < 2:
        raise ConfigError(f"data.root {data.root}: one class, {splits['train'].classes[0]!r}; expected two or more")
    return _of_whole(data, Info(3, classes, None, train, test))


def _of_whole(data: DataConfig, whole: Info) -> Info:
    """Return what a run sees of a set of so many images."""
    train, test = choice.counts(data, whole.train, whole.test)
    return replace(whole, train=train, test=test)


def check(data: DataConfig, img_size: int) -> None:
    """Raise ``ConfigError`` (one line) if the data cannot serve a run; quick, decodes no image and imports no torch."""
    _check_place(data, img_size)
    if data.name not in SIZES and (data.train_size, data.test_size, data.seed, data.measure) != (None, None, 0, "test"):
        info(data, img_size)


def _check_place(data: DataConfig, img_size: int) -> None:
    """Raise as ``check`` does, but not for how many images there are."""
    if img_size < SMALLEST[data.name]:
        raise ConfigError(f"model.img_size {img_size}: data.name '{data.name}' needs at least {SMALLEST[data.name]}")
    fits = ("none", "batch") if data.name == "fashion-mnist" else ("none",)  # digits must not be flipped
    if data.name in IN_MEMORY and data.augment not in fits:
        allowed = " or ".join(map(repr, fits))
        raise ConfigError(f"data.augment '{data.augment}': data.name '{data.name}' takes only {allowed}")
    if data.repeats > 1 and data.augment == "none":
        raise ConfigError(f"data.repeats {data.repeats}: copies of an image differ by data.augment, which is 'none'")
    if data.name in IN_MEMORY and (given := data.model_dump(include=PIXELS, exclude_none=True)):
        raise ConfigError(f"data.{next(iter(given))} is for photographs; data.name '{data.name}' has its own")
    if data.name not in CLASS_FOLDERS and data.class_order != "auto":
        raise ConfigError(
            f"data.class_order '{data.class_order}': data.name '{data.name}' has no class folders to sort"
        )
    if data.name == "fashion-mnist":
        _check_fashion(data)
        return
    if data.name in DIGIT_SETS:
        if find_spec("sklearn") is None:
            raise ConfigError(f"data.name '{data.name}' needs scikit-learn, which is not installed")
        return
    if not data.root:
        raise ConfigError(f"data.root is empty: data.name '{data.name}' needs {_expected(data.name)}")
    if not Path(data.root).is_dir():
        raise ConfigError(f"data.root {data.root!r} is not a folder; expected {_expected(data.name)}")
    if data.name == "cifar10":
        cifar10.check(data.root)
    else:
        layouts.check(Path(data.root), data.class_order)


def identity(data: DataConfig, img_size: int, workers: int = 0) -> dict[str, str]:
    """Return what ``record.Images`` holds: digests of the files, the classes, and the pixels and labels of both
    splits."""
    return {
        "files": files_digest(data),
        "classes": contents.of_classes(class_names(data)),
        "trained": _dataset(data, img_size, "train", workers).digest,
        "measured": _dataset(data, img_size, "test", workers).digest,
    }


def files_digest(data: DataConfig) -> str:
    """Return the SHA-256 of what the files hold that the data set is read from; '' for the embedded ones."""
    if data.name in DIGIT_SETS:
        return ""
    if data.name == "fashion-mnist":
        return contents.of_files(fashion_mnist.files(data.root)).digest
    both = [_published(data, split).contents().digest for split in layouts.FOLDERS]
    return hashlib.sha256("\n".join(both).encode()).hexdigest()


def class_names(data: DataConfig) -> list[str]:
    """Return the names of the classes, in the order of their numbers; the numbers where files say no names."""
    if data.name not in ON_DISK:
        return [str(number) for number in range(10)]
    return list(_published(data, "train").classes)


def forget_images() -> None:
    """Forget what photographs there are: a process that lives for several runs must see a folder that has changed."""
    for kept in (_imagenet, _copies_of_cifar, _kept, cifar10.published, layouts.check):
        kept.cache_clear()


def doubts(data: DataConfig, img_size: int) -> str:
    """Return what is odd about the data and yet may be meant, in one line; '' if nothing is."""
    if data.name == "imagenet" and (found := info(data, img_size).classes) != 1000:
        return (
            f"data.name 'imagenet': {data.root} has {found:,} classes, not 1,000; 'folder' is the name for other sets"
        )
    if data.name in ON_DISK and data.measure == "test":
        parts = [_published(data, split) for split in layouts.FOLDERS]
        if len({part.contents().digest for part in parts}) == 1:
            return f"data.root {data.root}: training and validation images are the same, so accuracy is one of memory"
        if all(isinstance(part, _Images) for part in parts):
            count, looked, name = contents.copies(*(part.index for part in parts))  # type: ignore[union-attr]
            if count:
                return (
                    f"data.root {data.root}: {count:,} of {looked:,} validation images are training images too, {name} "
                    "for example: accuracy is in part one of memory"
                )
    return ""


def _check_fashion(data: DataConfig) -> None:
    fashion_mnist.find(data.root)
    for name, most in (("train_size", fashion_mnist.TRAIN), ("test_size", fashion_mnist.TEST)):
        if (getattr(data, name) or 0) > most:
            raise ConfigError(f"data.{name} {getattr(data, name)}: fashion-mnist has {most:,} such images")


def corrupt(data: DataConfig) -> set[int]:
    """Return the indices of training images that are known to be unreadable, in this process."""
    return set(_published(data, "train").corrupt) if data.name in ON_DISK else set()


def set_corrupt(data: DataConfig, indices: set[int]) -> None:
    """Take over the indices that a checkpoint or other ranks know of: they are not reported or counted again."""
    if data.name in ON_DISK:
        source = _published(data, "train")
        source.corrupt = {**dict.fromkeys(i for i in source.corrupt if i in indices), **dict.fromkeys(sorted(indices))}


def check_corrupt(data: DataConfig) -> None:
    """Raise ``ConfigError`` if more training images are known to be unreadable than ``max_corrupt``."""
    known = list(_published(data, "train").corrupt) if data.name in ON_DISK else []
    if len(known) > data.max_corrupt:
        raise ConfigError(
            f"{len(known)} training images cannot be read, the last is {_published(data, 'train').name(known[-1])}; "
            f"data.max_corrupt allows {data.max_corrupt}"
        )


def steps_per_epoch(data: DataConfig, img_size: int, batch_size: int) -> int:
    """Count the training batches of one epoch. An incomplete last one is left out, unless it would be the only one."""
    return max(1, info(data, img_size).train // batch_size)


def train_batches(
    data: DataConfig,
    img_size: int,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    start: int = 0,
    workers: int = 0,
    share: tuple[int, int] = (0, 1),
    device: Device = None,
) -> Iterator[Batch]:
    """Yield batches ``start``, ``start + 1``, ... of one epoch: images float32 (B, C, H, W), normalised, and labels
    int64 (B,) or, with mixup or cutmix, class probabilities float32 (B, classes). Leaves the global random state alone.

    Args:
        data, img_size: which images, and the side that they are resized to.
        batch_size: images of a batch, over all processes.
        seed, epoch, start: the run's seed, the epoch, and its first batch that is wanted.
        workers: processes that decode.
        share: (i, n), of each batch only the i-th of n parts, which is what it is in the whole batch.
        device: where batches are wanted; images that fit lie there, and their batches do, others come from the CPU.
    """
    dataset = _dataset(data, img_size, "train", workers)
    check_mixing(data, min(batch_size, len(dataset)))
    mixing = data.mixup > 0 or data.cutmix > 0
    place: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "epoch": epoch, "start": start, "share": share}
    batches = train_indices(len(dataset), repeats=data.repeats, **place)
    mix = _mixer(data, img_size) if mixing else None
    for k, (images, targets) in enumerate(dataset.load(batches, (seed, epoch), workers, device), start):
        if share[1] == 1:  # several processes add up what they know, and stop together
            check_corrupt(data)
        if mix is not None:
            with _global_randomness_kept():
                _seed(seed, epoch, k, MIX)
                images, targets = mix(images, targets)
        yield images, targets


def check_mixing(data: DataConfig, batch: int) -> None:
    """Raise ``ConfigError`` if images are to be paired, and a ``batch`` of so many leaves one over."""
    if (data.mixup > 0 or data.cutmix > 0) and batch % 2:
        raise ConfigError(f"data.mixup and data.cutmix pair images: a batch must hold an even number, not {batch}")


def train_indices(
    count: int,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    start: int = 0,
    share: tuple[int, int] = (0, 1),
    repeats: int = 1,
) -> list[np.ndarray]:
    """Return which of ``count`` training images ``train_batches`` brings in batches ``start``, ``start + 1``, ... Of
    ``repeats`` copies the r-th of image i is the number ``r * count + i``; an epoch is as long as without."""
    size, steps = min(batch_size, count), max(1, count // batch_size)
    order = np.random.Generator(np.random.PCG64([seed, epoch, ORDER])).permutation(count)
    if repeats > 1:
        order = (order[:, None] + count * np.arange(repeats)).flatten()
    return [share_of(batch, *share) for batch in order[: steps * size].reshape(steps, size)[start:]]


def unaugmented(data: DataConfig) -> DataConfig:
    """Return the same images, none augmented or mixed."""
    return data.model_copy(update={"augment": "none", "repeats": 1, "mixup": 0.0, "cutmix": 0.0})


def in_order(data: DataConfig, img_size: int, batch_size: int, workers: int = 0) -> Iterator[Batch]:
    """Yield every training image once, in the order of ``train_indices``' numbers, batched as by ``train_batches``."""
    dataset = _dataset(data, img_size, "train", workers)
    yield from dataset.load(np.array_split(np.arange(len(dataset)), -(-len(dataset) // batch_size)), (0, 0), workers)


def spaced_indices(count: int, wanted: int) -> np.ndarray:
    """Return ``wanted`` of ``count`` places, evenly spaced: of images sorted by class, each class's share."""
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).round().astype(np.int64))


def evenly_spaced(
    data: DataConfig, img_size: int, split: Split, wanted: int | None, batch_size: int, workers: int = 0
) -> Iterator[Batch]:
    """Yield ``wanted`` images (None: all) of those that are trained on or measured, evenly spaced, none augmented, in
    batches."""
    augmented = split == "train" and data.augment not in ("none", "batch")
    plain = unaugmented(data)
    if augmented and data.name in ON_DISK:  # not worth keeping: the run decodes them anew each time
        transform = _transform(plain, img_size, split)
        dataset: _Dataset = _photographs(_source(data, split), plain, split, transform)
    else:
        dataset = _dataset(plain, img_size, split, workers)
    chosen = spaced_indices(len(dataset), wanted or len(dataset))
    yield from dataset.load(np.array_split(chosen, -(-len(chosen) // batch_size)), (0, 0), workers)


def test_batches(
    data: DataConfig,
    img_size: int,
    *,
    batch_size: int,
    workers: int = 0,  # noqa: PT028
    share: tuple[int, int] = (0, 1),  # noqa: PT028
    device: Device = None,  # noqa: PT028
) -> Iterator[Batch]:
    """Yield every test image once, in order, in batches as of ``train_batches``; the last batch may be smaller.
    ``share`` (i, n): every n-th batch from the i-th on, so that n processes see every image once."""
    dataset = _dataset(data, img_size, "test", workers)
    batches = [np.arange(first, min(first + batch_size, len(dataset))) for first in range(0, len(dataset), batch_size)]
    first, step = share
    yield from dataset.load(batches[first::step], (0, 0), workers, device)


def share_of(batch: np.ndarray, index: int, count: int) -> np.ndarray:
    """Return part ``index`` of ``count`` of a batch (n,). Image i goes with image n - 1 - i, which timm's mixup pairs
    it with: a part that is mixed by itself is what it would be in the whole batch."""
    if count == 1:
        return batch
    pairs, n = np.array_split(np.arange(len(batch) // 2), count)[index], len(batch)
    alone = np.arange(n // 2, n - n // 2) if index == count - 1 else pairs[:0]  # the middle of an odd batch
    return batch[np.concatenate([pairs, alone, n - 1 - pairs[::-1]])]


class _Dataset(Protocol):
    @property
    def digest(self) -> str:
        """Return the SHA-256 of the pixels and labels; '' of images that are decoded anew each time."""

    def __len__(self) -> int: ...

    def load(self, batches: Indices, stream: Stream, workers: int, device: Device = None) -> Iterator[Batch]:
        """Yield one (images, labels) per array of indices; ``stream`` (seed, epoch) feeds the augmentation."""


class _InMemory:
    """Images that are batched by indexing one tensor, which costs a tiny network next to nothing. ``mean``, ``std``: of
    the only channel, in [0, 1]."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, mean: float, std: float):
        self.images, self.labels = images, labels
        self.mean, self.std = mean, std

    @cached_property
    def digest(self) -> str:
        return pixel_cache.digest(self.images.numpy(), self.labels.numpy())

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, batches: Indices, stream: Stream, workers: int, device: Device = None) -> Iterator[Batch]:
        for images, labels in self.raw(batches, workers, device):
            yield self.normalised(images.float()), labels

    def raw(self, batches: Indices, workers: int, device: Device) -> Iterator[Batch]:
        """Yield batches as they are stored, uint8 (B, C, H, W)."""
        import torch

        images, labels = self._placed(device)
        for batch in batches:
            chosen = torch.from_numpy(batch).to(images.device)
            yield images[chosen], labels[chosen]

    def _placed(self, device: Device) -> Batch:
        """Return all images and labels, on a GPU where they fit, else where they are."""
        if device is None or device.type != "cuda":
            return self.images, self.labels
        if not hasattr(self, "_there"):
            fit = self.images.nbytes <= ON_GPU * _free(device)
            self._there = (self.images.to(device), self.labels.to(device)) if fit else (self.images, self.labels)
        return self._there

    def normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.sub_(255 * self.mean).mul_(1 / (255 * self.std))


def _free(device: torch.device) -> int:
    """Count the bytes of a GPU's memory that nobody has."""
    import torch

    return int(torch.cuda.mem_get_info(device)[0])


class _Coloured(_InMemory):
    """Photographs, of which ``mean`` and ``std`` hold three channels, and which are normalised as timm does."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, mean: Sequence[float], std: Sequence[float]):
        import torch

        self.images, self.labels = images, labels
        self.colours = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)

    def normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        mean, std = (colour.to(pixels.device) for colour in self.colours)
        return pixels.div_(255).sub_(mean).div_(std)


class _Kept(_Coloured):
    """Photographs that were decoded once."""

    def __init__(self, kept: pixel_cache.Pixels, mean: Sequence[float], std: Sequence[float]):
        import torch

        super().__init__(torch.from_numpy(kept.images), torch.from_numpy(kept.labels), mean, std)
        self.digest, self.corrupt = kept.digest, kept.corrupt


class _Decoded(_Coloured):
    """Photographs that are decoded and resized one by one each time, since the cache has no room for them."""

    digest = ""

    def __init__(self, whole: _Photographs, mean: Sequence[float], std: Sequence[float]):
        import torch

        super().__init__(torch.empty(0), torch.empty(0), mean, std)
        self.whole = whole

    def __len__(self) -> int:
        return len(self.whole)

    def raw(self, batches: Indices, workers: int, device: Device) -> Iterator[Batch]:
        for images, labels in self.whole.load(batches, (0, 0), workers):
            yield images if device is None else images.to(device), labels


class _Varied:
    """Images of another set, each batch augmented as a whole (``on_batch``); ``copies`` of each in an epoch."""

    def __init__(self, plain: _InMemory, copies: int):
        self.plain, self.copies = plain, copies

    @property
    def digest(self) -> str:
        return self.plain.digest

    def __len__(self) -> int:
        return len(self.plain)

    def load(self, batches: Indices, stream: Stream, workers: int, device: Device = None) -> Iterator[Batch]:
        from hiap.data import on_batch

        count = len(self)
        drawn = on_batch.draws(count * self.copies, *stream, AUGMENT)
        raw = self.plain.raw([batch % count for batch in batches], workers, device)
        for batch, (images, labels) in zip(batches, raw, strict=True):
            at = on_batch.places(drawn[batch], *images.shape[2:]).to(images.device)
            shown = self.plain.normalised(on_batch.moved(images, at).float())
            yield on_batch.erased(shown, at), labels


class _Photographs:
    """Images that are decoded and augmented one by one, in worker processes. ``chosen`` (n,): which of the source's;
    ``tolerant``: a corrupt one is replaced by the next."""

    def __init__(self, source: Source, chosen: np.ndarray, transform: Transform, tolerant: bool = False):
        self.source, self.chosen, self.transform, self.tolerant = source, chosen, transform, tolerant
        self.digest = ""

    def __len__(self) -> int:
        return len(self.chosen)

    def load(self, batches: Indices, stream: Stream, workers: int, device: Device = None) -> Iterator[Batch]:
        import torch
        from torch.utils.data import DataLoader

        loader: DataLoader[Any] = DataLoader(
            _Augmented(self.source, self.chosen, self.transform, stream, self.tolerant),  # type: ignore[arg-type]
            batch_sampler=[batch.tolist() for batch in batches],
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else it would draw from the global one, as often as a run is resumed
        )
        try:
            for images, labels, corrupt in loader:
                for index in corrupt[corrupt >= 0].tolist():
                    _note(self.source, index)
                yield images, labels
            return
        except ConfigError as error:  # a worker's error comes inside the text of its traceback
            message = str(error).strip().splitlines()[-1].split("ConfigError: ")[-1]
            error.__traceback__ = None  # it would keep the workers alive
        raise ConfigError(message)


def _note(source: Source, index: int) -> None:
    """Tell of a corrupt image once."""
    if index not in source.corrupt:
        source.corrupt[index] = None
        name = source.name(index)
        print(f"{name}: not a readable image; the next one takes its place", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class _Augmented:
    """Data set that a ``DataLoader`` reads: image, label, and the index itself if that image was corrupt and the next
    one stands for it (else -1). The transform's random numbers depend on (seed, epoch, index, copy) alone."""

    source: Source
    chosen: np.ndarray
    transform: Transform
    stream: tuple[int, int]
    tolerant: bool

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitems__(self, indices: list[int]) -> list[tuple[torch.Tensor, int, int]]:
        """Return a batch at once, as ``DataLoader`` asks for it where it can: the global state is kept once, not per
        image."""
        with _global_randomness_kept():
            return [self[index] for index in indices]

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int, int]:
        """Return the image of one of ``train_indices``' numbers."""
        copy, wanted = divmod(number, len(self.chosen))
        index = int(self.chosen[wanted])
        place = (index, AUGMENT, copy) if copy else (index, AUGMENT)
        if not self.tolerant:
            return *self._read(index, place), -1
        for offset in range(len(self.chosen)):
            try:
                other = int(self.chosen[(wanted + offset) % len(self.chosen)])
                return *self._read(other, place), index if offset else -1
            except ConfigError:
                continue
        raise ConfigError("no training image can be read")

    def _read(self, index: int, place: tuple[int, ...]) -> tuple[torch.Tensor, int]:
        """Read image ``index`` with the random numbers of ``place``."""
        image, label = self.source[index]
        _seed(*self.stream, *place)
        try:
            return self.transform(image), label
        except Exception as error:  # Pillow looks at some parts of a file, and at its size, only now
            raise decode.unreadable(self.source.name(index), f"{type(error).__name__}: {error}") from None


def _dataset(data: DataConfig, img_size: int, split: Split, workers: int = 0) -> _Dataset:
    """Return the images that are trained on or measured; ``workers`` decode those that are decoded once."""
    check(data, img_size)
    if split == "train" and data.augment == "batch":
        return _Varied(_tensors(unaugmented(data), img_size, split, workers), data.repeats)
    if data.name in ON_DISK and split == "train" and data.augment != "none":
        return _photographs(_source(data, split), data, split, _transform(data, img_size, split))
    return _tensors(data, img_size, split, workers)


def _tensors(data: DataConfig, img_size: int, split: Split, workers: int) -> _InMemory:
    """Return images that nothing changes, by batches of bytes."""
    if data.name in DIGIT_SETS:
        return _digits(data, split, img_size)
    if data.name == "fashion-mnist":
        part_of: fashion_mnist.Part = "train" if split == "train" else data.measure
        count = data.train_size if split == "train" else data.test_size
        return _fashion(data.root, part_of, img_size, count, data.seed)  # type: ignore[arg-type]
    source = _source(data, split)
    kept = _kept(source, data, img_size, split, workers)
    if kept is None:
        shown = pixels(data)
        return _Decoded(_as_bytes(source, data, img_size, split), shown["mean"], shown["std"])
    for index in kept.corrupt:
        _note(source, index)
    return kept


def _as_bytes(source: Source, data: DataConfig, img_size: int, split: Split) -> _Photographs:
    """Return photographs decoded and resized, uint8."""
    return _photographs(source, data, split, _transform(data, img_size, split, pixels_only=True))


def _source(data: DataConfig, split: Split) -> Source:
    """Return the images that those of ``split`` are chosen from."""
    return _published(data, "train" if data.measure == "validation" else split)


def _published(data: DataConfig, split: Split) -> Source:
    if data.name == "cifar10":
        if cifar10.is_published(data.root):
            return cifar10.published(data.root, split)
        return _copies_of_cifar(data.root, split)
    return _imagenet(data.root, split, data.class_order)


def _photographs(source: Source, data: DataConfig, split: Split, transform: Transform) -> _Photographs:
    tolerant = split == "train" and data.max_corrupt > 0
    return _Photographs(source, choice.chosen(data, split, source.labels), transform, tolerant)


@lru_cache(maxsize=4)
def _kept(source: Source, data: DataConfig, img_size: int, split: Split, workers: int) -> _Kept | None:
    """Return the images decoded and resized, mapped from the cache; None where they cannot be kept there."""
    whole = _as_bytes(source, data, img_size, split)
    found, shown, shape = source.contents(), pixels(data), (len(whole), 3, img_size, img_size)

    def make() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        batches = np.array_split(np.arange(len(whole)), -(-len(whole) // DECODED_AT_ONCE))
        for images, labels in whole.load(batches, (0, 0), workers):
            check_corrupt(data)
            yield images.numpy(), labels.numpy()

    chosen = np.stack([whole.chosen, source.labels[whole.chosen]])
    key = {
        "contents": [found.digest, "" if found.whole else found.where],
        "chosen": hashlib.sha256(chosen.astype("<i8").tobytes()).hexdigest(),
        "size": img_size,
        "resized": [shown["interpolation"], shown["crop_pct"], shown["crop_mode"], version("pillow"), DECODER],
        "tolerant": whole.tolerant,
    }

    def corrupt() -> list[int]:
        return [index for index in source.corrupt if index in whole.chosen]

    kept = pixel_cache.load_or_decode(key, shape, make, corrupt, source.place)
    if kept is None:
        return None
    return _Kept(kept, shown["mean"], shown["std"])


@lru_cache(maxsize=8)
def _digits(data: DataConfig, split: Split, img_size: int) -> _InMemory:
    """Return the embedded images, kept so that epochs do not draw them again."""
    from hiap.data import affine_digits

    (mean,), (std,) = NORMALISATION[data.name]
    if data.name == "affine-digits":
        count = data.train_size if split == "train" else data.test_size
        assert count is not None
        part_of = affine_digits.part_of(split, data.measure == "validation")
        return _InMemory(*affine_digits.canvases(part_of, count, img_size, data.seed), mean, std)
    images, labels = affine_digits.resized("train" if data.measure == "validation" else split, img_size)
    chosen = choice.chosen(data, split, labels.numpy())
    return _InMemory(images[chosen], labels[chosen], mean, std)


@lru_cache(maxsize=4)
def _fashion(root: str, which: fashion_mnist.Part, img_size: int, count: int, seed: int) -> _InMemory:
    mean, std = NORMALISATION["fashion-mnist"]
    return _InMemory(*fashion_mnist.images(root, which, img_size, count, seed), mean[0], std[0])


def _transform(data: DataConfig, img_size: int, split: Split, pixels_only: bool = False) -> Transform:
    """Return timm's transforms. 'deit' is DeiT's recipe; CIFAR-10, whose photographs are small and centred, is cropped
    after padding by an eighth instead of by random resizing, as DeiT does for it. ``pixels`` says how they are resized,
    cropped and normalised. ``pixels_only``: not augmented and not normalised, uint8 (3, H, W)."""
    from timm.data import create_transform
    from torchvision import transforms

    cifar, common = data.name == "cifar10", pixels(data)
    common["input_size"], crop_pct = (3, img_size, img_size), common.pop("crop_pct")
    if pixels_only:
        return create_transform(**common, crop_pct=crop_pct, use_prefetcher=True)
    if split == "test" or data.augment == "none":
        return create_transform(**common, crop_pct=crop_pct)
    recipe: dict[str, Any] = {"color_jitter": None}
    if data.augment == "deit":
        recipe = {"color_jitter": 0.3, "auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25, "re_mode": "pixel"}
    pipeline = create_transform(**common, is_training=True, **recipe)
    if cifar:
        crop = [transforms.RandomCrop(img_size, padding=img_size // 8)]
        if img_size != 32:
            crop.insert(0, transforms.Resize(img_size, transforms.InterpolationMode(common["interpolation"])))
        pipeline.transforms[:1] = crop
    return pipeline


def pixels(data: DataConfig, network: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return how images become what a network expects, by timm's names, ``PIXELS``. Of photographs as ``data`` says,
    else as ``network`` (timm's ``pretrained_cfg``) was trained, else the data set's own; the sets in memory are always
    normalised by their own."""
    from timm.data import constants

    mean, std = NORMALISATION.get(data.name, (constants.IMAGENET_DEFAULT_MEAN, constants.IMAGENET_DEFAULT_STD))
    whole = data.name not in CLASS_FOLDERS  # small, centred images are not cropped
    own: dict[str, Any] = {
        "mean": mean,
        "std": std,
        "interpolation": "bicubic",
        "crop_pct": 1.0 if whole else constants.DEFAULT_CROP_PCT,
        "crop_mode": "center",
    }
    if data.name in IN_MEMORY:
        return own
    theirs = {name: value for name in own if (value := (network or {}).get(name)) is not None}
    if whole:
        theirs = {name: value for name, value in theirs.items() if not name.startswith("crop")}
    return {**own, **theirs, **data.model_dump(include=PIXELS, exclude_none=True)}


def _mixer(data: DataConfig, img_size: int) -> Callable[..., Batch]:
    """Return timm's mixer. Label smoothing is left to the loss, so that it means the same with and without mixing."""
    from timm.data import Mixup

    classes = info(data, img_size).classes
    return Mixup(mixup_alpha=data.mixup, cutmix_alpha=data.cutmix, label_smoothing=0.0, num_classes=classes)


def _seed(*key: int) -> None:
    """Let Python's, numpy's and torch's CPU random numbers follow from ``key`` from here on.

    Torch's is seeded through its generator: ``torch.manual_seed`` would also reset the GPU's.
    """
    import torch

    words = np.random.SeedSequence(key).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.default_generator.manual_seed(int(words[2]))


@contextmanager
def _global_randomness_kept() -> Iterator[None]:
    """Let random numbers go on outside as if nothing had been drawn inside."""
    import torch

    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


class _Images:
    """Photographs of an index. ``numbers``: the number of each of its classes. ``corrupt``: indices that were found
    unreadable, in that order."""

    def __init__(self, index: image_index.Indexed, numbers: np.ndarray):
        self.index, self.numbers = index, numbers
        self.corrupt: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self.index)

    @property
    def classes(self) -> Sequence[str]:
        """Return the names in the order of their numbers."""
        return [self.index.classes[i] for i in np.argsort(self.numbers)]

    @property
    def place(self) -> str:
        return str(self.index.place.path)

    @cached_property
    def labels(self) -> np.ndarray:
        return self.numbers[self.index.labels]

    def contents(self) -> contents.Contents:
        return contents.of_index(self.index)

    def name(self, index: int) -> str:
        return self.index.name(index)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image = decode.photograph(lambda: self.index.read(index), self.name(index))
        return image, int(self.labels[index])


Source = cifar10.Published | _Images


@lru_cache(maxsize=8)
def _imagenet(root: str, split: Split, class_order: str = "auto") -> _Images:
    found = image_index.load_or_scan(layouts.find(Path(root))[split], layouts.scan)
    return _Images(found, layouts.class_numbers(found, class_order))


@lru_cache(maxsize=4)
def _copies_of_cifar(root: str, split: Split) -> _Images:
    """Return CIFAR-10 as class folders or tars: sorted, its classes' names are in their published order."""
    found = _imagenet(root, split)
    cifar10.check_copies(len(found.classes), found[0][0], found.place)
    return found


def make_index(root: str) -> list[Path]:
    """Write down which images there are at ``root``, where that is not known yet; return the files that tell."""
    places = layouts.find(Path(root)).values()
    for place in places:
        image_index.load_or_scan(place, layouts.scan, always=True)
    return [image_index.file_of(place.path) for place in places]


def _expected(name: str) -> str:
    return cifar10.EXPECTED if name == "cifar10" else layouts.EXPECTED.removeprefix("data.root must hold ")
