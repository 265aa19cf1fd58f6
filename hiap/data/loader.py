"""Images in batches: two embedded digit sets, Fashion-MNIST, CIFAR-10, and ImageNet or any other set of photographs.

Batch k of epoch e is a pure function of the configuration, the run's seed, e and k: the order comes from (seed, e), the
augmentation of an image from (seed, e, its index and copy), mixing from (seed, e, k). A run that is resumed at step k
therefore reads on exactly where it stopped, with any number of workers, and stores no loader state.

Torch, torchvision, timm and scikit-learn are imported where they are used: ``check`` serves the launcher, which must
start at once.
"""

from __future__ import annotations

import pickle
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hiap.data import decode, fashion_mnist, image_index, layouts
from hiap.train.config import CLASS_FOLDERS, IN_MEMORY, ON_DISK, ConfigError, DataConfig

if TYPE_CHECKING:
    import torch
    from PIL import Image

Split = layouts.Split
Batch = tuple["torch.Tensor", "torch.Tensor"]
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

PIXELS = {"mean", "std", "interpolation", "crop_pct"}  # of DataConfig and, under the same names, of timm

CIFAR_PICKLES = "cifar-10-batches-py"
CIFAR_BINARIES = "cifar-10-batches-bin"
CIFAR_FILES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}

# Names for the independent streams of random numbers.
ORDER, AUGMENT, MIX = 0, 1, 2


@dataclass(frozen=True)
class Info:
    """``size``: side of the images as they are stored or drawn, None where it varies; ``train``, ``test``: images."""

    channels: int
    classes: int
    size: int | None
    train: int
    test: int

    def image(self, img_size: int) -> tuple[int, int, int]:
        """(channels, height, width) as a network of that size is shown it."""
        return (self.channels, img_size, img_size)


def published_size(data: DataConfig) -> Info:
    """What the data set is as it was published, without reading it: for bills and for checks before submission. A
    folder that only the nodes have counts as one of ``train_size`` and ``test_size`` images in 1,000 classes."""
    if data.name in ("affine-digits", "fashion-mnist"):
        return Info(1, 10, None, data.train_size, data.test_size)
    if data.name == "folder":
        there = data.root and Path(data.root).is_dir()
        return info(data, SMALLEST["folder"]) if there else Info(3, 1000, None, data.train_size, data.test_size)
    return {
        "digits": Info(1, 10, 8, 1_352, 445),
        "cifar10": Info(3, 10, 32, 50_000, 10_000),
        "imagenet": Info(3, 1000, None, 1_281_167, 50_000),
    }[data.name]


def info(data: DataConfig, img_size: int) -> Info:
    """What the data set is; draws and decodes nothing, but reads CIFAR-10's files and lists ImageNet's, once."""
    if data.name == "affine-digits":
        return Info(1, 10, img_size, data.train_size, data.test_size)
    if data.name == "digits":
        from hiap.data.affine_digits import original_indices

        return Info(1, 10, 8, len(original_indices("train")), len(original_indices("test")))
    if data.name == "fashion-mnist":
        return Info(1, fashion_mnist.CLASSES, fashion_mnist.SIDE, data.train_size, data.test_size)
    if data.name == "cifar10":
        train, test = (len(_cifar(data.root, split)) for split in ("train", "test"))
        return Info(3, 10, 32, train, test)
    check(data, img_size)
    splits: dict[Split, _Images] = {split: _imagenet(data.root, split, data.class_order) for split in layouts.FOLDERS}
    layouts.check_same_classes(*(images.index for images in splits.values()))
    return Info(3, len(splits["train"].index.classes), None, *(len(images) for images in splits.values()))


def check(data: DataConfig, img_size: int) -> None:
    """Raise ``ConfigError`` (one line) if the data cannot serve a run; quick, reads no image and imports no torch."""
    if img_size < SMALLEST[data.name]:
        raise ConfigError(f"model.img_size {img_size}: data.name '{data.name}' needs at least {SMALLEST[data.name]}")
    if data.name in IN_MEMORY and data.augment != "none":
        raise ConfigError(f"data.augment '{data.augment}': data.name '{data.name}' takes only 'none'")
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
        _cifar_files(data.root)
    else:
        layouts.check(Path(data.root), data.class_order)


def doubts(data: DataConfig, img_size: int) -> str:
    """What is odd about the data and yet may be meant, in one line; '' if nothing is."""
    if data.name == "imagenet" and (found := info(data, img_size).classes) != 1000:
        return (
            f"data.name 'imagenet': {data.root} has {found:,} classes, not 1,000; 'folder' is the name for other sets"
        )
    return ""


def _check_fashion(data: DataConfig) -> None:
    fashion_mnist.find(data.root)
    for name, most in (("train_size", fashion_mnist.TRAIN), ("test_size", fashion_mnist.TEST)):
        if getattr(data, name) > most:
            raise ConfigError(f"data.{name} {getattr(data, name)}: fashion-mnist has {most:,} such images")


def corrupt(data: DataConfig) -> set[int]:
    """Indices of training images that are known to be unreadable, in this process."""
    return set(_source(data, "train").corrupt) if data.name in ON_DISK else set()


def set_corrupt(data: DataConfig, indices: set[int]) -> None:
    """Take over the indices that a checkpoint or other ranks know of: they are not reported or counted again."""
    if data.name in ON_DISK:
        source = _source(data, "train")
        source.corrupt = {**dict.fromkeys(i for i in source.corrupt if i in indices), **dict.fromkeys(sorted(indices))}


def check_corrupt(data: DataConfig) -> None:
    """Raise ``ConfigError`` if more training images are known to be unreadable than ``max_corrupt``."""
    known = list(_source(data, "train").corrupt) if data.name in ON_DISK else []
    if len(known) > data.max_corrupt:
        raise ConfigError(
            f"{len(known)} training images cannot be read, the last is {_source(data, 'train').name(known[-1])}; "
            f"data.max_corrupt allows {data.max_corrupt}"
        )


def steps_per_epoch(data: DataConfig, img_size: int, batch_size: int) -> int:
    """Training batches of one epoch. An incomplete last batch is left out, unless it would be the only one."""
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
) -> Iterator[Batch]:
    """Batches ``start``, ``start + 1``, ... of one epoch: images float32 (B, C, H, W), normalised, and labels int64
    (B,) or, with mixup or cutmix, class probabilities float32 (B, classes). Leaves the global random state alone.
    ``share`` (i, n): of each batch only the i-th of n parts, which is what it is in the whole batch."""
    dataset = _dataset(data, img_size, "train")
    mixing = data.mixup > 0 or data.cutmix > 0
    if mixing and min(batch_size, len(dataset)) % 2:
        raise ConfigError(f"data.mixup and data.cutmix pair images: a batch must hold an even number, not {batch_size}")
    place: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "epoch": epoch, "start": start, "share": share}
    batches = train_indices(len(dataset), repeats=data.repeats, **place)
    mix = _mixer(data, img_size) if mixing else None
    for k, (images, targets) in enumerate(dataset.load(batches, (seed, epoch), workers), start):
        if share[1] == 1:  # several processes add up what they know, and stop together
            check_corrupt(data)
        if mix is not None:
            with _global_randomness_kept():
                _seed(seed, epoch, k, MIX)
                images, targets = mix(images, targets)
        yield images, targets


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
    """Which of ``count`` training images ``train_batches`` brings in batches ``start``, ``start + 1``, ... Of
    ``repeats`` copies the r-th of image i is the number ``r * count + i``; an epoch is as long as without."""
    size, steps = min(batch_size, count), max(1, count // batch_size)
    order = np.random.Generator(np.random.PCG64([seed, epoch, ORDER])).permutation(count)
    if repeats > 1:
        order = (order[:, None] + count * np.arange(repeats)).flatten()
    return [part(batch, *share) for batch in order[: steps * size].reshape(steps, size)[start:]]


def in_order(data: DataConfig, img_size: int, batch_size: int) -> Iterator[Batch]:
    """Every training image once, in the order of ``train_indices``' numbers, as ``train_batches`` gives them."""
    dataset = _dataset(data, img_size, "train")
    yield from dataset.load(np.array_split(np.arange(len(dataset)), -(-len(dataset) // batch_size)), (0, 0), 0)


def test_batches(
    data: DataConfig,
    img_size: int,
    *,
    batch_size: int,
    workers: int = 0,  # noqa: PT028
    share: tuple[int, int] = (0, 1),  # noqa: PT028
) -> Iterator[Batch]:
    """Every test image once, in order, as ``train_batches`` gives them; the last batch may be smaller. ``share``
    (i, n): every n-th batch from the i-th on, so that n processes see every image once."""
    dataset = _dataset(data, img_size, "test")
    batches = [np.arange(first, min(first + batch_size, len(dataset))) for first in range(0, len(dataset), batch_size)]
    first, step = share
    yield from dataset.load(batches[first::step], (0, 0), workers)


def part(batch: np.ndarray, index: int, count: int) -> np.ndarray:
    """Part ``index`` of ``count`` of a batch (n,). Image i goes with image n - 1 - i, which timm's mixup pairs it with:
    a part that is mixed by itself is what it would be in the whole batch."""
    if count == 1:
        return batch
    pairs, n = np.array_split(np.arange(len(batch) // 2), count)[index], len(batch)
    alone = np.arange(n // 2, n - n // 2) if index == count - 1 else pairs[:0]  # the middle of an odd batch
    return batch[np.concatenate([pairs, alone, n - 1 - pairs[::-1]])]


class _Dataset(Protocol):
    def __len__(self) -> int: ...

    def load(self, batches: Sequence[np.ndarray], stream: tuple[int, int], workers: int) -> Iterator[Batch]:
        """One (images, labels) per array of indices; ``stream`` (seed, epoch) feeds the augmentation."""


class _InMemory:
    """Images that are batched by indexing one tensor, which costs a tiny network next to nothing."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, mean: float, std: float):
        self.images, self.labels = images, labels
        self.mean, self.std = mean, std

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, batches: Sequence[np.ndarray], stream: tuple[int, int], workers: int) -> Iterator[Batch]:
        import torch

        for batch in batches:
            chosen = torch.from_numpy(batch)
            pixels = self.images[chosen].float()
            yield pixels.sub_(255 * self.mean).mul_(1 / (255 * self.std)), self.labels[chosen]


class _Photographs:
    """Images that are decoded and augmented one by one, in worker processes; ``tolerant``: a corrupt one is replaced by
    its neighbour."""

    def __init__(self, source: _Cifar | _Images, transform: Transform, tolerant: bool = False):
        self.source, self.transform, self.tolerant = source, transform, tolerant

    def __len__(self) -> int:
        return len(self.source)

    def load(self, batches: Sequence[np.ndarray], stream: tuple[int, int], workers: int) -> Iterator[Batch]:
        import torch
        from torch.utils.data import DataLoader

        loader: DataLoader[Any] = DataLoader(
            _Augmented(self.source, self.transform, stream, self.tolerant),  # type: ignore[arg-type]
            batch_sampler=[batch.tolist() for batch in batches],
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else it would draw from the global one, as often as a run is resumed
        )
        try:
            for images, labels, corrupt in loader:
                for index in corrupt[corrupt >= 0].tolist():
                    self._note(index)
                yield images, labels
            return
        except ConfigError as error:  # a worker's error comes inside the text of its traceback
            message = str(error).strip().splitlines()[-1].split("ConfigError: ")[-1]
            error.__traceback__ = None  # it would keep the workers alive
        raise ConfigError(message)

    def _note(self, index: int) -> None:
        """Tell of a corrupt image once."""
        if index not in self.source.corrupt:
            self.source.corrupt[index] = None
            name = self.source.name(index)
            print(f"{name}: not a readable image; the next one takes its place", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class _Augmented:
    """What a ``DataLoader`` reads: image, label, and the index itself if that image was corrupt and the next one stands
    for it (else -1). The transform's random numbers depend on (seed, epoch, index, copy) alone."""

    source: _Cifar | _Images
    transform: Transform
    stream: tuple[int, int]
    tolerant: bool

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, indices: list[int]) -> list[tuple[torch.Tensor, int, int]]:
        """A batch at once, as ``DataLoader`` asks for it where it can: the global state is kept once, not per image."""
        with _global_randomness_kept():
            return [self[index] for index in indices]

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int, int]:
        """By the numbers of ``train_indices``."""
        copy, index = divmod(number, len(self.source))
        place = (index, AUGMENT, copy) if copy else (index, AUGMENT)
        if not self.tolerant:
            return *self._read(index, place), -1
        for offset in range(len(self.source)):
            try:
                return *self._read((index + offset) % len(self.source), place), index if offset else -1
            except ConfigError:
                continue
        raise ConfigError("no training image can be read")

    def _read(self, index: int, place: tuple[int, ...]) -> tuple[torch.Tensor, int]:
        """Image ``index`` with the random numbers of ``place``."""
        image, label = self.source[index]
        _seed(*self.stream, *place)
        try:
            return self.transform(image), label
        except Exception as error:  # Pillow looks at some parts of a file, and at its size, only now
            raise decode.unreadable(self.source.name(index), f"{type(error).__name__}: {error}") from None


def _dataset(data: DataConfig, img_size: int, split: Split) -> _Dataset:
    check(data, img_size)
    if data.name == "affine-digits":
        count = data.train_size if split == "train" else data.test_size
        return _digits(split, img_size, count, data.seed)
    if data.name == "digits":
        return _digits(split, img_size)
    if data.name == "fashion-mnist":
        part_of: fashion_mnist.Part = "train" if split == "train" else data.measure
        return _fashion(
            data.root, part_of, img_size, data.train_size if split == "train" else data.test_size, data.seed
        )
    return _Photographs(
        _source(data, split), _transform(data, img_size, split), split == "train" and data.max_corrupt > 0
    )


def _source(data: DataConfig, split: Split) -> _Cifar | _Images:
    return _cifar(data.root, split) if data.name == "cifar10" else _imagenet(data.root, split, data.class_order)


@lru_cache(maxsize=8)
def _digits(split: Split, img_size: int, count: int | None = None, seed: int = 0) -> _InMemory:
    """Affine canvases if ``count`` is given, else the originals. Kept, so that epochs do not draw them again."""
    from hiap.data import affine_digits

    if count is None:
        images, labels = affine_digits.resized(split, img_size)
    else:
        images, labels = affine_digits.canvases(split, count, img_size, seed)
    mean, std = NORMALISATION["digits" if count is None else "affine-digits"]
    return _InMemory(images, labels, mean[0], std[0])


@lru_cache(maxsize=4)
def _fashion(root: str, which: fashion_mnist.Part, img_size: int, count: int, seed: int) -> _InMemory:
    mean, std = NORMALISATION["fashion-mnist"]
    return _InMemory(*fashion_mnist.images(root, which, img_size, count, seed), mean[0], std[0])


def _transform(data: DataConfig, img_size: int, split: Split) -> Transform:
    """timm's transforms. 'deit' is DeiT's recipe; CIFAR-10, whose photographs are small and centred, is cropped after
    padding by an eighth instead of by random resizing, as DeiT does for it. ``pixels`` says how they are
    resized, cropped and normalised."""
    from timm.data import create_transform
    from torchvision import transforms

    cifar, common = data.name == "cifar10", pixels(data)
    common["input_size"], crop_pct = (3, img_size, img_size), common.pop("crop_pct")
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
    """How images become what a network expects, by timm's names: ``mean``, ``std``, ``interpolation``, ``crop_pct``.
    Of photographs as ``data`` says, else as ``network`` (timm's ``pretrained_cfg``) was trained, else the data set's
    own; the sets in memory are always normalised by their own."""
    from timm.data import constants

    mean, std = NORMALISATION.get(data.name, (constants.IMAGENET_DEFAULT_MEAN, constants.IMAGENET_DEFAULT_STD))
    whole = data.name not in CLASS_FOLDERS  # small, centred images are not cropped
    own: dict[str, Any] = {
        "mean": mean,
        "std": std,
        "interpolation": "bicubic",
        "crop_pct": 1.0 if whole else constants.DEFAULT_CROP_PCT,
    }
    if data.name in IN_MEMORY:
        return own
    theirs = {name: value for name in own if (value := (network or {}).get(name)) is not None}
    if whole:
        theirs.pop("crop_pct", None)
    return {**own, **theirs, **data.model_dump(include=PIXELS, exclude_none=True)}


def _mixer(data: DataConfig, img_size: int) -> Callable[..., Batch]:
    """Label smoothing is left to the loss, so that it means the same with and without mixing."""
    from timm.data import Mixup

    classes = info(data, img_size).classes
    return Mixup(mixup_alpha=data.mixup, cutmix_alpha=data.cutmix, label_smoothing=0.0, num_classes=classes)


def _seed(*key: int) -> None:
    """Python's, numpy's and torch's CPU random numbers follow from ``key`` from here on.

    Torch's is seeded through its generator: ``torch.manual_seed`` would also reset the GPU's."""
    import torch

    words = np.random.SeedSequence(key).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.default_generator.manual_seed(int(words[2]))


@contextmanager
def _global_randomness_kept() -> Iterator[None]:
    """Outside, random numbers go on as if nothing had been drawn inside."""
    import torch

    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


class _Cifar:
    """CIFAR-10 in memory: ``pixels`` uint8 (n, 32, 32, 3), ``labels`` (n,)."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray):
        self.pixels, self.labels = pixels, labels
        self.corrupt: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"image {index}"

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        from PIL import Image

        return Image.fromarray(self.pixels[index]), int(self.labels[index])


@lru_cache(maxsize=2)
def _cifar(root: str, split: Split) -> _Cifar:
    parts = [_read_pickle(file) if file.suffix == "" else _read_binary(file) for file in _cifar_files(root)[split]]
    pixels, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    # Stored as planes, red first; PIL wants channels last.
    return _Cifar(np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels)


def _cifar_files(root: str) -> dict[Split, list[Path]]:
    """The files of whichever of the two published layouts is there; ``ConfigError`` if none is, or a file lacks."""
    for name, ending in ((CIFAR_PICKLES, ""), (CIFAR_BINARIES, ".bin")):
        folder = Path(root) / name
        if folder.is_dir():
            files = {split: [folder / (name + ending) for name in names] for split, names in CIFAR_FILES.items()}
            if missing := [str(file) for files_of in files.values() for file in files_of if not file.is_file()]:
                raise ConfigError(f"{missing[0]} is missing; data.root must hold {_expected('cifar10')}")
            return files  # type: ignore[return-value]
    raise ConfigError(f"data.root {root!r} holds neither; expected {_expected('cifar10')}")


def _read_pickle(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """One batch of the Python layout: pixels uint8 (n, 3072) and labels (n,)."""
    try:
        with file.open("rb") as stream:
            entry = _CifarUnpickler(stream, encoding="latin1").load()
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


class _CifarUnpickler(pickle.Unpickler):
    """A pickle may name any function to call; this one may name only what a numpy array is made of."""

    allowed = frozenset({("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")})

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy.core.multiarray", "_reconstruct"):
            return np.empty(0).__reduce__()[0]  # numpy 2 moved it; this is where it lives now
        if (module, name) in self.allowed:
            return getattr(np, name)
        raise pickle.UnpicklingError(f"refused to load {module}.{name}")


def _read_binary(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """One batch of the binary layout: records of 1 label byte and 3072 pixel bytes."""
    content = np.fromfile(file, dtype=np.uint8)
    if not len(content) or len(content) % 3073 or content[::3073].max() > 9:
        raise ConfigError(f"{file}: not a CIFAR-10 batch (expected records of 3073 bytes that start with a label)")
    records = content.reshape(-1, 3073)
    return records[:, 1:], records[:, 0].astype(np.int64)


class _Images:
    """The photographs of an index. ``numbers``: the number of each of its classes. ``corrupt``: indices that were found
    unreadable, in that order."""

    def __init__(self, index: image_index.Indexed, numbers: np.ndarray):
        self.index, self.numbers = index, numbers
        self.corrupt: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self.index)

    def name(self, index: int) -> str:
        return self.index.name(index)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image = decode.photograph(lambda: self.index.read(index), self.name(index))
        return image, int(self.numbers[self.index.labels[index]])


@lru_cache(maxsize=8)
def _imagenet(root: str, split: Split, class_order: str = "auto") -> _Images:
    found = image_index.opened(layouts.find(Path(root))[split], layouts.scan)
    return _Images(found, layouts.class_numbers(found, class_order))


def make_index(root: str) -> list[Path]:
    """Write down which images there are at ``root``, where that is not known yet; the files that tell."""
    places = layouts.find(Path(root)).values()
    for place in places:
        image_index.opened(place, layouts.scan, always=True)
    return [image_index.file_of(place.path) for place in places]


def _expected(name: str) -> str:
    if name == "cifar10":
        return f"a folder with '{CIFAR_PICKLES}/' or '{CIFAR_BINARIES}/' in it (CIFAR-10, Python or binary version)"
    return layouts.EXPECTED.removeprefix("data.root must hold ")
