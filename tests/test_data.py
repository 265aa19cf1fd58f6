"""Data: what a batch holds, that it follows from the configuration, seed and position alone, and what is refused."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import random
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from hiap.data import affine_digits, cifar10, fashion_mnist, layouts
from hiap.data import loader as data
from hiap.data.decode import photograph
from hiap.train.config import ConfigError, DataConfig

SMALL = DataConfig(train_size=600, test_size=300)
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("HIAP_CACHE", str(tmp_path_factory.mktemp("cache")))


def batches(config: DataConfig, size: int = 32, **kwargs) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(data.train_batches(config, size, **{"batch_size": 4, "seed": 1, "epoch": 0, **kwargs}))


def equal(left, right) -> bool:
    return len(left) == len(right) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(left, right, strict=True)
    )


# --- embedded digits ---------------------------------------------------------------------------------------------


def test_originals_are_split_in_two_disjoint_stratified_parts():
    train, test = affine_digits.original_indices("train"), affine_digits.original_indices("test")
    assert sorted([*train, *test]) == list(range(1797))
    for split, share in (("train", 0.75), ("test", 0.25)):
        images, labels = affine_digits.originals(split)
        assert images.shape[1:] == (1, 8, 8)
        assert images.max() == 1
        counts = torch.bincount(labels, minlength=10)
        assert counts.min() > 0.95 * share * 174
        assert counts.max() < 1.05 * share * 183


def test_it_is_known_which_original_a_canvas_shows():
    which = affine_digits.shown("test", 300, 3)
    assert which.shape == (300,)
    labels = affine_digits.originals("test")[1].numpy()
    assert (labels[which] == affine_digits.canvases("test", 300, 16, 3)[1].numpy()).all()
    assert (affine_digits.shown("test", 40, 3) == which[:40]).all()
    assert len(np.unique(affine_digits.shown("test", 5000, 0))) == 445


def test_canvases_come_from_their_own_split_only(monkeypatch):
    """With the other split's originals blanked, a split's canvases stay the same; with its own blanked they change."""
    whole = {split: affine_digits.canvases(split, 100, 32, 0)[0] for split in ("train", "test")}
    images, labels = affine_digits._load_digits()
    for blanked, other in (("train", "test"), ("test", "train")):
        changed = images.copy()
        changed[affine_digits.original_indices(blanked)] = 0
        monkeypatch.setattr(affine_digits, "_load_digits", lambda changed=changed: (changed, labels))
        assert torch.equal(affine_digits.canvases(other, 100, 32, 0)[0], whole[other])
        assert not torch.equal(affine_digits.canvases(blanked, 100, 32, 0)[0], whole[blanked])


def test_canvases_repeat_for_any_number_of_threads_and_in_another_process():
    """A process that is given two threads, and keeps them, draws what this one draws with one."""
    code = (
        "import hashlib, torch; from hiap.data.affine_digits import canvases; torch.set_num_threads(2);"
        "print(hashlib.sha256(canvases('train', 600, 32, 3)[0].numpy().tobytes()).hexdigest(), torch.get_num_threads())"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    here = affine_digits.canvases("train", 600, 32, 3)[0]
    torch.set_num_threads(threads)
    assert there == [hashlib.sha256(here.numpy().tobytes()).hexdigest(), "2"]


def test_canvases_depend_on_seed_and_split_and_a_small_set_starts_a_large_one():
    pixels, labels = affine_digits.canvases("train", 300, 32, 0)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (300, 1, 32, 32)
    assert torch.equal(affine_digits.canvases("train", 40, 32, 0)[0], pixels[:40])
    assert not torch.equal(affine_digits.canvases("train", 40, 32, 1)[0], pixels[:40])
    assert not torch.equal(affine_digits.canvases("test", 40, 32, 0)[0], pixels[:40])
    assert torch.bincount(labels, minlength=10).min() > 10
    assert len({tuple(image.flatten().tolist()) for image in pixels}) == 300


def test_the_affine_map_places_ink_where_it_should():
    """Half width, full height, a quarter turn, moved right: source (u, v) lands at (0.5 - v, u / 2)."""
    source = torch.zeros(1, 1, 40, 40)
    source[0, 0, 20:24, 32:36] = 1  # centre (u, v) = (0.7, 0.1)
    one = torch.ones(1)
    maps = affine_digits._inverse_maps(one / 2, one, one * torch.pi / 2, one * 0, one / 2, one * 0)
    y, x = torch.nonzero(affine_digits._warp(source, maps, 40)[0, 0] > 0.5).float().mean(0)
    assert (x + 0.5) / 20 - 1 == pytest.approx(0.5 - 0.1, abs=0.05)
    assert (y + 0.5) / 20 - 1 == pytest.approx(0.7 / 2, abs=0.05)


@pytest.mark.parametrize(("config", "size"), [(DataConfig(name="digits"), 8), (DataConfig(), 32)])
def test_normalised_training_images_have_mean_0_and_deviation_1(config, size):
    pixels = torch.cat([images for images, _ in batches(config, size, batch_size=500)])
    assert pixels.dtype == torch.float32
    assert pixels.mean().item() == pytest.approx(0, abs=0.03)
    assert pixels.std().item() == pytest.approx(1, abs=0.02)


def test_digits_are_the_originals_enlarged():
    config = DataConfig(name="digits")
    images, labels = next(data.test_batches(config, 8, batch_size=500))
    truth, true_labels = affine_digits.originals("test")
    mean, std = (values[0] for values in data.NORMALISATION["digits"])
    assert torch.allclose(images * std + mean, truth, atol=0.5 / 255 + 1e-6)
    assert torch.equal(labels, true_labels)
    large = next(data.test_batches(config, 32, batch_size=500))[0]
    assert (torch.nn.functional.avg_pool2d(large, 4) - images).abs().mean() < 0.25
    assert data.info(config, 32) == data.Info(1, 10, 8, 1352, 445)


# --- order, resumption, mixing -----------------------------------------------------------------------------------


def test_an_epoch_holds_each_image_once_and_epochs_and_seeds_differ():
    assert data.steps_per_epoch(SMALL, 32, 64) == 9
    whole = batches(SMALL, batch_size=200)
    assert len({image.numpy().tobytes() for images, _ in whole for image in images}) == 600
    assert equal(whole, batches(SMALL, batch_size=200))
    assert not equal(whole, batches(SMALL, batch_size=200, epoch=1))
    assert not equal(whole, batches(SMALL, batch_size=200, seed=2))


def test_a_set_smaller_than_a_batch_is_one_batch():
    assert data.steps_per_epoch(SMALL, 32, 1000) == 1
    assert [len(y) for _, y in batches(SMALL, batch_size=1000)] == [600]


def test_test_batches_hold_each_image_once_in_order():
    parts = list(data.test_batches(SMALL, 32, batch_size=77))
    assert [len(y) for _, y in parts] == [77, 77, 77, 69]
    assert torch.equal(torch.cat([y for _, y in parts]), affine_digits.canvases("test", 300, 32, 0)[1])


@pytest.mark.parametrize("mixing", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_mixed_targets_are_probabilities_and_resume(mixing):
    config = SMALL.model_copy(update=mixing)
    whole = batches(config, batch_size=100)
    for images, targets in whole:
        assert images.shape == (100, 1, 32, 32)
        assert targets.shape == (100, 10)
        assert torch.allclose(targets.sum(1), torch.ones(100))
    assert any(((targets > 0.01) & (targets < 0.99)).any() for _, targets in whole)
    assert equal(whole[4:], batches(config, batch_size=100, start=4))


def test_mixing_refuses_an_odd_batch():
    with pytest.raises(ConfigError, match="even number, not 5"):
        batches(SMALL.model_copy(update={"mixup": 0.8}), batch_size=5)


# --- CIFAR-10 ----------------------------------------------------------------------------------------------------


class Python2Pickler(pickle._Pickler):
    """Writes what Python 2's numpy wrote in the published files: protocol 2, byte strings, numpy.core's old name."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_bytes(self, value):
        raw = value.encode() if isinstance(value, str) else value
        self.write(pickle.BINSTRING + len(raw).to_bytes(4, "little") + raw)  # type: ignore[attr-defined]
        self.memoize(value)  # type: ignore[attr-defined]

    dispatch[bytes] = dispatch[str] = save_bytes

    def save_global(self, value, name=None):
        module = "numpy.core.multiarray" if value.__name__ == "_reconstruct" else value.__module__
        self.write(pickle.GLOBAL + f"{module}\n{value.__name__}\n".encode())  # type: ignore[attr-defined]
        self.memoize(value)  # type: ignore[attr-defined]

    dispatch[type] = dispatch[type(len)] = dispatch[type(pickle.dumps)] = save_global


def write_cifar(root: Path, layout: str, per_file: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """A tiny CIFAR-10 in one of the published layouts; returns training planes (n, 3, 32, 32) and labels."""
    folder = root / {"python": cifar10.PICKLES, "binary": cifar10.BINARIES}[layout]
    folder.mkdir(parents=True)
    planes = RNG.integers(0, 256, (6 * per_file, 3072), dtype=np.uint8)
    labels = RNG.integers(0, 10, 6 * per_file)
    for i, name in enumerate([*cifar10.FILES["train"], *cifar10.FILES["test"]]):
        part = slice(i * per_file, (i + 1) * per_file)
        if layout == "binary":
            np.hstack([labels[part, None].astype(np.uint8), planes[part]]).tofile(folder / f"{name}.bin")
            continue
        files = [f"{label}_{k}.png" for k, label in enumerate(labels[part])]
        entry = {"batch_label": name, "labels": labels[part].tolist(), "data": planes[part], "filenames": files}
        with (folder / name).open("wb") as stream:
            Python2Pickler(stream, protocol=2).dump(entry)
    return planes.reshape(-1, 3, 32, 32), labels


@pytest.mark.parametrize("layout", ["python", "binary"])
def test_cifar_is_read_with_its_pixels_and_labels(tmp_path, layout):
    planes, labels = write_cifar(tmp_path, layout)
    config = DataConfig(name="cifar10", root=str(tmp_path))
    assert data.info(config, 32) == data.Info(3, 10, 32, 20, 4)
    images, targets = next(data.test_batches(config, 32, batch_size=10))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in data.NORMALISATION["cifar10"])
    assert torch.equal((images * std + mean).mul(255).round(), torch.from_numpy(planes[20:]).float())
    assert targets.tolist() == labels[20:].tolist()
    [(images, targets)] = batches(config, batch_size=20)
    shuffled = (images * std + mean).mul(255).round().to(torch.uint8).numpy()
    ours = {(image.tobytes(), int(label)) for image, label in zip(shuffled, targets, strict=True)}
    assert ours == {(image.tobytes(), int(label)) for image, label in zip(planes[:20], labels[:20], strict=True)}
    assert next(data.test_batches(config, 64, batch_size=10))[0].shape == (4, 3, 64, 64)


def test_torchvision_reads_the_same_python_files(tmp_path, monkeypatch):
    """The layout that the tests write is torchvision's: its own reader (checksums aside) agrees with ours."""
    from torchvision.datasets import CIFAR10, cifar

    write_cifar(tmp_path, "python")
    with (tmp_path / cifar10.PICKLES / "batches.meta").open("wb") as stream:
        Python2Pickler(stream, protocol=2).dump({"label_names": list("abcdefghij")})
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(cifar, "check_integrity", lambda *_: True)
    theirs = CIFAR10(str(tmp_path), train=True)
    ours = cifar10.published(str(tmp_path), "train")
    assert np.array_equal(theirs.data, ours.pixels)
    assert theirs.targets == ours.labels.tolist()


class Evil:
    """Unpickled without care, it makes a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: {"data": evil, "labels": [0]}])
def test_the_unpickler_calls_nothing_but_numpy(tmp_path, wrap):
    write_cifar(tmp_path, "python")
    harm = tmp_path / "harm"
    content = pickle.dumps(wrap(Evil(harm)), protocol=2)
    (tmp_path / cifar10.PICKLES / "data_batch_3").write_bytes(content)
    with pytest.raises(ConfigError, match=r"data_batch_3: not a CIFAR-10 batch .*refused to load") as caught:
        data.info(DataConfig(name="cifar10", root=str(tmp_path)), 32)
    assert "\n" not in str(caught.value)
    assert not harm.exists()
    pickle.loads(content)
    assert harm.exists()


@pytest.mark.parametrize(
    "entry",
    [b"not a pickle", pickle.dumps([1]), pickle.dumps({"labels": [1, 2], "data": [[1] * 3072] * 2}), b""],
)
def test_a_damaged_cifar_pickle_is_one_clear_line(tmp_path, entry):
    write_cifar(tmp_path, "python")
    (tmp_path / cifar10.PICKLES / "test_batch").write_bytes(entry)
    with pytest.raises(ConfigError, match="test_batch: not a CIFAR-10 batch") as caught:
        data.info(DataConfig(name="cifar10", root=str(tmp_path)), 32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x00" * 3072, b"\x0a" + b"\x00" * 3072])
def test_a_damaged_cifar_binary_is_one_clear_line(tmp_path, content):
    write_cifar(tmp_path, "binary")
    (tmp_path / cifar10.BINARIES / "test_batch.bin").write_bytes(content)
    with pytest.raises(ConfigError, match=r"test_batch\.bin: not a CIFAR-10 batch"):
        data.info(DataConfig(name="cifar10", root=str(tmp_path)), 32)


# --- ImageNet ----------------------------------------------------------------------------------------------------

CLASSES = {"n01440764": (200, 30, 30), "n01443537": (30, 200, 30), "n02102040": (30, 30, 200)}


def write_imagenet(root: Path, train: int = 4, val: int = 2) -> Path:
    """Class folders of JPEGs, each class of its own colour, of various sizes and one in greyscale."""
    for split, count in (("train", train), ("val", val)):
        for name, colour in CLASSES.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                image = Image.new("RGB", (70 + 10 * i, 90 - 10 * i), colour)
                image.save(root / split / name / f"{name}_{i}.JPEG", quality=95)
    Image.new("L", (80, 60), 120).save(root / "train" / "n01440764" / "n01440764_0.JPEG")
    return root


def test_imagenet_is_read_with_its_pixels_and_labels(tmp_path):
    config = DataConfig(name="imagenet", root=str(write_imagenet(tmp_path)))
    assert data.info(config, 64) == data.Info(3, 3, None, 12, 6)
    images, labels = next(data.test_batches(config, 64, batch_size=10))
    assert images.shape == (6, 3, 64, 64)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    mean = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
    std = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    colours = torch.tensor(list(CLASSES.values()))[labels].view(6, 3, 1, 1)
    assert (images.mul(std).add(mean).mul(255) - colours).abs().max() < 6


@pytest.mark.parametrize("augment", ["none", "basic", "deit", "batch"])
@pytest.mark.parametrize("name", ["imagenet", "cifar10"])
def test_augmented_batches_resume_with_any_number_of_workers(tmp_path, name, augment):
    if name == "imagenet":
        write_imagenet(tmp_path)
    else:
        write_cifar(tmp_path, "binary")
    config = DataConfig(name=name, root=str(tmp_path), augment=augment, mixup=0.8, cutmix=1.0)
    whole = batches(config, epoch=2)
    assert len(whole) == {"imagenet": 3, "cifar10": 5}[name]
    assert equal(whole[1:], batches(config, epoch=2, start=1))
    if augment == "deit":
        assert equal(whole[1:], batches(config, epoch=2, start=1, workers=2))
    other = batches(config, epoch=3)
    assert not equal(whole, other)


def test_augmentation_differs_between_epochs(tmp_path):
    write_cifar(tmp_path, "binary")
    config = DataConfig(name="cifar10", root=str(tmp_path), augment="basic")
    dataset = data._dataset(config, 32, "train")
    order = [np.arange(20)]
    first, second = (next(dataset.load(order, (1, epoch), 0))[0] for epoch in (0, 1))
    assert sum(not torch.equal(a, b) for a, b in zip(first, second, strict=True)) > 15


@pytest.mark.parametrize("name", ["cifar10", "imagenet"])
def test_repeated_augmentation_brings_each_image_augmented_anew_and_resumes(tmp_path, name):
    if name == "imagenet":
        write_imagenet(tmp_path)
    else:
        write_cifar(tmp_path, "binary")
    once = DataConfig(name=name, root=str(tmp_path), augment="deit")
    thrice = once.model_copy(update={"repeats": 3})
    count = data.info(once, 32).train
    chosen = np.concatenate(data.train_indices(count, batch_size=4, seed=1, epoch=0, repeats=3))
    plain = np.concatenate(data.train_indices(count, batch_size=4, seed=1, epoch=0))
    assert len(chosen) == len(plain), "an epoch is as long"
    assert (chosen % count == np.repeat(plain, 3)[: len(chosen)]).all()
    assert (chosen // count == np.arange(len(chosen)) % 3).all()
    whole = batches(thrice)
    seen, original = (torch.cat([images for images, _ in part]) for part in (whole, batches(once)))
    assert torch.equal(seen[::3], original[: len(seen[::3])]), "the first copy is the image as it comes without"
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])
    assert equal(batches(thrice, start=1, workers=2), whole[1:])
    halves = [batches(thrice, share=(i, 2)) for i in range(2)]
    together = torch.cat([images for part in halves for images, _ in part]).flatten(1)
    assert {x.numpy().tobytes() for x in together} == {x.numpy().tobytes() for x in seen.flatten(1)}


def test_batches_leave_the_global_random_state_alone(tmp_path):
    write_cifar(tmp_path, "binary")
    config = DataConfig(name="cifar10", root=str(tmp_path), augment="deit", mixup=0.8)
    for workers in (0, 1):
        states = []
        for use in (False, True):
            random.seed(0), np.random.seed(0), torch.manual_seed(0)
            if use:
                batches(config, workers=workers)
            states.append((random.random(), np.random.rand(), torch.rand(1).item()))
        assert states[0] == states[1]


def break_images(root: Path, count: int) -> list[Path]:
    """Truncate so many training images, each the last of its class, so that the next one has another colour."""
    broken = sorted((root / "train").rglob("*.JPEG"))[3::4][:count]
    for path in broken:
        path.write_bytes(path.read_bytes()[:200])
    return broken


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_training_images_are_named_once_and_replaced_by_the_next(tmp_path, capsys, workers):
    good = batches(DataConfig(name="imagenet", root=str(write_imagenet(tmp_path / "good"))))
    broken = break_images(write_imagenet(tmp_path / "bad"), 2)
    config = DataConfig(name="imagenet", root=str(tmp_path / "bad"), max_corrupt=2)
    first = batches(config, workers=workers)
    assert equal(first, batches(config, workers=workers)), "the same images stand in each time"
    assert len(first) == len(good)
    assert not equal(first, good)
    told = capsys.readouterr().err.splitlines()
    assert sorted(told) == [f"{path}: not a readable image; the next one takes its place" for path in broken]
    assert len(data.corrupt(config)) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_more_corrupt_images_than_allowed_are_an_error(tmp_path, workers):
    break_images(write_imagenet(tmp_path), 3)
    config = DataConfig(name="imagenet", root=str(tmp_path), max_corrupt=2)
    with pytest.raises(
        ConfigError, match=r"3 training images cannot be read, the last is .*data\.max_corrupt allows 2"
    ):
        batches(config, workers=workers)
    with pytest.raises(ConfigError, match="not a readable image"):
        batches(config.model_copy(update={"max_corrupt": 0}), workers=workers)


def pack(root: Path) -> Path:
    """The same images in train.tar and val.tar."""
    for split in ("train", "val"):
        with tarfile.open(root / f"{split}.tar", "w") as tar:
            for path in sorted((root / split).rglob("*.JPEG"), reverse=True):
                tar.add(path, path.relative_to(root / split))
        shutil.rmtree(root / split)
    return root


def test_a_tar_gives_what_its_folders_give(tmp_path):
    folders = DataConfig(name="imagenet", root=str(write_imagenet(tmp_path / "a")), augment="deit", mixup=0.8)
    tars = folders.model_copy(update={"root": str(pack(write_imagenet(tmp_path / "b")))})
    assert data.info(tars, 64) == data.info(folders, 64)
    expected = batches(folders, epoch=1)
    assert equal(batches(tars, epoch=1), expected)
    assert equal(batches(tars, epoch=1, start=1, workers=2), expected[1:])
    assert not list((tmp_path / "b").glob("*.pickle")), "no index is left behind"


def test_a_broken_image_in_a_tar_is_named(tmp_path, capsys):
    broken = break_images(write_imagenet(tmp_path), 1)
    config = DataConfig(name="imagenet", root=str(pack(tmp_path)))
    batches(config)
    assert f"{broken[0].name}: not a readable image" in capsys.readouterr().err


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_a_tar_that_was_cut_short_is_one_line(tmp_path, share):
    config = DataConfig(name="imagenet", root=str(pack(write_imagenet(tmp_path))))
    whole = (tmp_path / "train.tar").read_bytes()
    for size in (int(share * len(whole)), int(share * len(whole)) // 512 * 512):  # within a block, and between two
        (tmp_path / "train.tar").write_bytes(whole[:size])
        with pytest.raises(ConfigError, match=r"train\.tar: not a whole tar of images") as caught:
            data.info(config, 64)
        assert "\n" not in str(caught.value)


def test_what_is_no_tar_or_lacks_a_class_or_a_split_is_one_line(tmp_path):
    config = DataConfig(name="imagenet", root=str(pack(write_imagenet(tmp_path))))
    with tarfile.open(tmp_path / "val.tar", "w") as tar:
        tar.add(Path(__file__), "n01440764/a.JPEG")
    with pytest.raises(ConfigError, match=r"class 'n01443537' is in only one of .*train\.tar and .*val\.tar"):
        data.info(config, 64)
    layouts.check.cache_clear()
    (tmp_path / "val.tar").write_bytes(b"x" * 2000)
    with pytest.raises(ConfigError, match=r"val\.tar is not a tar"):
        data.check(config, 64)
    (tmp_path / "val.tar").rename(tmp_path / "imagenet-train-000012.tar")
    with pytest.raises(ConfigError, match=r"000012\.tar: shards of train alone"):
        data.check(config, 64)


def test_wide_pixels_keep_their_brightness_or_are_refused(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64)
    for name, pixels in (("a.png", ramp.astype(np.uint16)), ("a.tif", ramp.astype(np.uint16))):
        Image.fromarray(pixels).save(tmp_path / name)
        seen = np.asarray(photograph((tmp_path / name).read_bytes, name))
        assert abs(seen[..., 0] - ramp / 257).max() <= 1, name
    Image.fromarray((ramp / 16).astype(np.uint16)).save(tmp_path / "twelve.png")
    with pytest.warns(UserWarning, match="images of 16 bits with values up to 4095 are nearly black"):
        photograph((tmp_path / "twelve.png").read_bytes, "twelve.png")
    for name, pixels in (("f.tif", ramp.astype(np.float32) / 65535), ("i.tif", ramp.astype(np.int32))):
        Image.fromarray(pixels).save(tmp_path / name)
        with pytest.raises(ConfigError, match=f"{name}: not a readable image .*expected 8 or 16 bits"):
            photograph((tmp_path / name).read_bytes, name)


def test_what_lies_beside_the_images_of_a_class_is_told(tmp_path):
    write_imagenet(tmp_path)
    (tmp_path / "train" / "n01440764" / "deeper").mkdir()
    (tmp_path / "train" / "n01440764" / "b.ppm").write_bytes(b"P6")
    with pytest.warns(UserWarning, match="2 files and folders in the class folders of .*train are no images"):
        data.info(DataConfig(name="imagenet", root=str(tmp_path)), 64)


def test_a_broken_photograph_is_an_error_that_names_it(tmp_path):
    write_imagenet(tmp_path)
    broken = tmp_path / "val" / "n01443537" / "n01443537_1.JPEG"
    broken.write_bytes(broken.read_bytes()[:200])
    config = DataConfig(name="imagenet", root=str(tmp_path))
    for workers in (0, 1):
        with pytest.raises(ConfigError, match=r"n01443537_1\.JPEG: not a readable image") as caught:
            list(data.test_batches(config, 64, batch_size=4, workers=workers))
        assert "\n" not in str(caught.value)


# --- check -------------------------------------------------------------------------------------------------------


def prepare(root: Path, problem: str) -> Path:
    """A data folder with one thing wrong."""
    if problem == "file":
        (root / "file").write_text("")
        return root / "file"
    if problem in ("train only", "val class", "no image", "no class"):
        write_imagenet(root)
    if problem == "train only":
        (root / "val").rename(root / "valid")
    if problem == "val class":
        (root / "val" / "n02102040").rename(root / "val" / "spaniel")
    if problem == "no image":
        for file in (root / "val" / "n02102040").iterdir():
            file.rename(file.with_suffix(".txt"))
    if problem == "no class":
        (root / "train").rename(root / "old")
        (root / "train").mkdir()
    if problem == "cifar file":
        write_cifar(root, "python")
        (root / cifar10.PICKLES / "data_batch_4").unlink()
    return root


@pytest.mark.parametrize(
    ("name", "problem", "message"),
    [
        ("cifar10", "file", "file' is not a folder; expected a folder with 'cifar-10-batches-py/'"),
        ("cifar10", "empty", "holds neither; expected a folder with 'cifar-10-batches-py/'"),
        ("cifar10", "cifar file", "data_batch_4 is missing"),
        ("imagenet", "empty", "train is missing; data.root must hold"),
        ("imagenet", "train only", "val is missing; data.root must hold"),
        ("imagenet", "no class", "train has no class folders"),
        ("imagenet", "val class", "class folder 'n02102040' is in .*train but not in .*val"),
        ("imagenet", "no image", "n02102040 holds no image"),
    ],
)
def test_wrong_folders_are_one_line_before_anything_is_read(tmp_path, name, problem, message):
    root = prepare(tmp_path, problem)
    with pytest.raises(ConfigError, match=message) as caught:
        data.check(DataConfig(name=name, root=str(root)), 32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "size", "message"),
    [
        ({"name": "cifar10"}, 32, "data.root is empty"),
        ({"name": "imagenet", "root": "/does/not/exist"}, 224, "'/does/not/exist' is not a folder; expected .*train/"),
        ({"name": "affine-digits"}, 8, "model.img_size 8: data.name 'affine-digits' needs at least 16"),
        ({"name": "cifar10", "repeats": 3}, 32, "data.repeats 3: copies of an image differ by data.augment"),
        ({"name": "digits", "augment": "deit"}, 32, "data.augment 'deit': .* takes only 'none'"),
    ],
)
def test_impossible_settings_are_one_line(fields, size, message):
    with pytest.raises(ConfigError, match=message) as caught:
        data.check(DataConfig(**fields), size)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError):
        batches(DataConfig(**fields), size)


def test_missing_scikit_learn_is_one_line(monkeypatch):
    monkeypatch.setattr(data, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs scikit-learn"):
        data.check(DataConfig(), 32)


def test_good_folders_pass_and_endings_are_timms_and_more(tmp_path):
    from timm.data import get_img_extensions

    data.check(DataConfig(name="imagenet", root=str(write_imagenet(tmp_path / "i"))), 224)
    write_cifar(tmp_path, "binary")
    data.check(DataConfig(name="cifar10", root=str(tmp_path)), 32)
    assert set(get_img_extensions()) < set(layouts.ENDINGS)


def test_check_needs_no_torch():
    code = (
        "import sys; from hiap.data.loader import check; from hiap.train.config import DataConfig;"
        "check(DataConfig(), 32);"
        "print(sorted({'torch', 'timm', 'sklearn', 'torchvision'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_strongest_posterizing_of_the_recipe_is_possible():
    """timm's RandAugment may ask to keep no bit at all; a Pillow that refuses would end a run after hours."""
    from timm.data.auto_augment import rand_augment_transform

    transform = rand_augment_transform("rand-m10-n1-inc1", {"translate_const": 10, "img_mean": (0, 0, 0)})
    posterize = next(op for op in transform.ops if op.name.startswith("Posterize"))
    posterize.prob = 1.0
    assert np.asarray(posterize(Image.new("RGB", (8, 8), (255, 255, 255)))).max() == 0


# --- Fashion-MNIST -----------------------------------------------------------------------------------------------


def write_fashion(root: Path, gzipped: bool = False) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The four files in the published format, with fewer images (``small_fashion`` makes the loader expect so few)."""
    root.mkdir(parents=True, exist_ok=True)
    made = {}
    for which, count in (("train", 80), ("t10k", 20)):
        pixels = RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = RNG.integers(0, 10, count, dtype=np.uint8)
        made[which] = pixels, labels
        for kind, values in (("images-idx3", pixels), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, dtype=">i4").tobytes()
            content = head + values.tobytes()
            name = f"{which}-{kind}-ubyte"
            (root / (f"{name}.gz" if gzipped else name)).write_bytes(gzip.compress(content) if gzipped else content)
    return made


@pytest.fixture
def small_fashion(monkeypatch, tmp_path):
    for name, count in (("TRAIN", 50), ("VALIDATION", 30), ("TEST", 20)):
        monkeypatch.setattr(fashion_mnist, name, count)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "nowhere")
    monkeypatch.setenv("HIAP_CACHE", str(tmp_path / "cache"))


def fashion(root: Path | str, **changes) -> DataConfig:
    return DataConfig(name="fashion-mnist", root=str(root), **{"train_size": 50, "test_size": 20, **changes})


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("folder", ["", "FashionMNIST/raw"])
def test_fashion_mnist_is_read_from_every_published_layout(gzipped, folder, tmp_path, small_fashion):
    made = write_fashion(tmp_path / folder, gzipped)
    config = fashion(tmp_path)
    data.check(config, 28)
    (images, labels), *_ = data.test_batches(config, 28, batch_size=20)
    pixels, expected = made["t10k"]
    assert torch.allclose(images[:, 0] * 0.3530 + 0.2860, torch.from_numpy(pixels) / 255, atol=1e-5)
    assert labels.tolist() == expected.tolist()
    assert data.info(config, 28).channels == 1


def test_the_splits_of_fashion_mnist_share_no_image_and_subsets_are_nested(tmp_path, small_fashion):
    write_fashion(tmp_path)
    train, train_labels = fashion_mnist.images(str(tmp_path), "train", 28, 50)
    validation, _ = fashion_mnist.images(str(tmp_path), "validation", 28, 30)
    seen = {image.numpy().tobytes() for image in train}
    assert len(seen) == 50
    assert not seen & {image.numpy().tobytes() for image in validation}
    part, _ = fashion_mnist.images(str(tmp_path), "train", 28, 10)
    assert torch.equal(part, train[:10])
    other, _ = fashion_mnist.images(str(tmp_path), "train", 28, 10, seed=1)
    assert not torch.equal(part, other)
    on_validation = list(data.test_batches(fashion(tmp_path, measure="validation"), 28, batch_size=20))
    assert torch.allclose(on_validation[0][0][0, 0] * 0.3530 + 0.2860, validation[0, 0] / 255, atol=1e-5)
    assert len(train_labels) == 50


def test_fashion_mnist_is_resized_once_to_any_size(tmp_path, small_fashion):
    write_fashion(tmp_path)
    images, _ = fashion_mnist.images(str(tmp_path), "test", 56, 20)
    assert images.shape == (20, 1, 56, 56)
    assert images.dtype == torch.uint8
    small, _ = fashion_mnist.images(str(tmp_path), "test", 28, 20)
    back = torch.nn.functional.avg_pool2d(images.float(), 2)
    pairs = torch.stack([back.flatten(), small.float().flatten()])
    assert torch.corrcoef(pairs)[0, 1] > 0.9, "the same pictures"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "t10k-labels-idx1-ubyte").unlink(), "must be a folder with the four IDX files"),
        (lambda root: cut(root / "train-images-idx3-ubyte"), "not an IDX file"),
        (lambda root: (root / "train-labels-idx1-ubyte").write_bytes(b""), "not an IDX file"),
        (lambda root: swap(root), "not an IDX file"),
    ],
)
def test_damaged_fashion_mnist_is_one_line(damage, message, tmp_path, small_fashion):
    root = tmp_path / "set"
    write_fashion(root)
    damage(root)
    with pytest.raises(ConfigError, match=message) as caught:
        fashion_mnist.images(str(root), "train", 28, 10)
    assert "\n" not in str(caught.value)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def swap(root: Path) -> None:
    shutil.copy(root / "train-labels-idx1-ubyte", root / "train-images-idx3-ubyte")


def test_fashion_mnist_that_is_not_here_says_how_to_get_it(tmp_path, small_fashion):
    with pytest.raises(ConfigError, match="make fashion"):
        data.check(fashion(""), 28)
    write_fashion(tmp_path / "cache" / "fashion-mnist")
    data.check(fashion(""), 28)
    with pytest.raises(ConfigError, match=r"data\.train_size 51: fashion-mnist has 50 such images"):
        data.check(fashion("", train_size=51), 28)


def test_every_image_is_in_order_once_and_batches_say_which_they_are():
    config = SMALL
    whole = torch.cat([images for images, _ in data.in_order(config, 32, 64)])
    assert len(whole) == 600
    place = {"batch_size": 32, "seed": 3, "epoch": 1, "start": 2}
    chosen = data.train_indices(600, **place)
    for (images, _), indices in zip(data.train_batches(config, 32, **place), chosen, strict=True):
        assert torch.equal(images, whole[indices])
