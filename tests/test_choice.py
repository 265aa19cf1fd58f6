"""Which images a run trains on and is measured on, for every data set; the cache of decoded images."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import together
from PIL import Image
from test_data import batches, equal, own_cache, write_cifar  # noqa: F401
from test_layouts import class_tars, one_tar

from hiap.data import affine_digits, choice, downloads, pixel_cache
from hiap.data import loader as data
from hiap.train.config import ConfigError, DataConfig, from_dict

RNG = np.random.default_rng(1)
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def write_copies(root: Path, train: int = 10, val: int = 4, side: int = 32, classes: tuple[str, ...] = CIFAR) -> Path:
    """Class folders of JPEGs, no two alike."""
    for split, count in (("train", train), ("val", val)):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = RNG.integers(0, 256, (side, side, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i:04}.jpg", quality=95)
    return root


def made(tmp_path: Path, kind: str) -> DataConfig:
    """A small set of ten classes, of 100 training and 40 test images."""
    if kind == "binary":
        write_cifar(tmp_path, "binary", 20)
        return DataConfig(name="cifar10", root=str(tmp_path))
    root = write_copies(tmp_path / "folders", side=32 if kind != "photographs" else 40)
    if kind in ("tars", "class tars"):
        packed = tmp_path / "packed"
        packed.mkdir()
        for split in ("train", "val"):
            (one_tar if kind == "tars" else class_tars)(root, packed, split)
        root = packed
    return DataConfig(name="folder" if kind == "photographs" else "cifar10", root=str(root))


def seen(config: DataConfig, split: str, size: int = 32) -> dict[bytes, int]:
    """Each image and its label."""
    if split == "train":
        found = [*data.in_order(config, size, 16)]
    else:
        found = [*data.test_batches(config, size, batch_size=16)]
    return {
        x.numpy().tobytes(): int(label) for images, labels in found for x, label in zip(images, labels, strict=True)
    }


def per_class(found: dict[bytes, int]) -> list[int]:
    return np.bincount(list(found.values()), minlength=10).tolist()


@pytest.mark.parametrize("kind", ["folders", "tars", "class tars", "photographs"])
def test_subset_and_validation_of_every_layout(kind: str, tmp_path: Path) -> None:
    config = made(tmp_path, kind)
    assert data.info(config, 32) == data.Info(3, 10, 32 if config.name == "cifar10" else None, 100, 40)
    whole, tested = seen(config, "train"), seen(config, "test")
    validation = seen(config.model_copy(update={"measure": "validation"}), "test")
    assert per_class(validation) == [2] * 10, "of each class a fifth"
    assert validation.items() <= whole.items()
    assert not validation.keys() & tested.keys()
    for changes in ({}, {"train_size": 80}, {"train_size": 30}, {"train_size": 30, "seed": 5}):
        both = [config.model_copy(update={**changes, "measure": measure}) for measure in ("validation", "test")]
        assert seen(both[0], "test") == validation, "whatever the seed"
        trained = seen(both[0], "train")
        assert len(trained) == data.info(both[0], 32).train == changes.get("train_size", 80)
        assert not trained.keys() & validation.keys()
        if changes:
            assert seen(both[1], "train") == trained, "whatever is measured"
            assert per_class(trained) == [changes["train_size"] // 10] * 10
            assert seen(both[1], "test") == tested
    small, other = (seen(config.model_copy(update={"train_size": 10, "seed": seed}), "train") for seed in (0, 5))
    assert small.keys() <= seen(config.model_copy(update={"train_size": 30}), "train").keys(), "nested"
    assert small != other
    part = config.model_copy(update={"test_size": 20})
    assert per_class(seen(part, "test")) == [2] * 10
    assert seen(part, "test").items() <= tested.items()


def test_published_layouts_of_cifar_have_subsets_too(tmp_path: Path) -> None:
    config = made(tmp_path, "binary")
    changes: dict[str, Any] = {"train_size": 40, "measure": "validation", "test_size": 10}
    trained, measured = (seen(config.model_copy(update=changes), split) for split in ("train", "test"))
    assert (len(trained), len(measured)) == (40, 10)
    assert not trained.keys() & measured.keys()
    assert {**trained, **measured}.items() <= seen(config, "train").items()


@pytest.mark.parametrize("name", ["digits", "affine-digits"])
def test_digits_have_validation_images_of_their_own(name: str) -> None:
    sizes = {"train_size": 500, "test_size": 200}
    config = DataConfig(name=name, measure="validation", **sizes)  # type: ignore[arg-type]
    trained, measured = seen(config, "train", 16), seen(config, "test", 16)
    assert not trained.keys() & measured.keys()
    assert data.info(config, 16).train == 500
    fit, apart = (set(affine_digits.original_indices(part)) for part in ("fit", "validation"))  # type: ignore[arg-type]
    assert fit | apart == set(affine_digits.original_indices("train"))
    assert not fit & apart
    assert len(apart) == pytest.approx(0.2 * 1352, abs=10)


def test_a_beginning_of_the_order_holds_of_each_class_its_share() -> None:
    labels = np.repeat(np.arange(5), [100, 50, 25, 200, 125])
    order = choice.stratified_order(labels, 3)
    assert sorted(order) == list(range(500))
    for part in (20, 100, 250):
        found = np.bincount(labels[order[:part]], minlength=5)
        assert np.abs(found - part * np.array([100, 50, 25, 200, 125]) / 500).max() <= 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_size": 81}, "data.train_size 81: there are 80 training images beside those set apart"),
        ({"test_size": 41}, "data.test_size 41: there are 40 test images"),
        ({"measure": "validation", "test_size": 21}, "data.test_size 21: there are 20 validation images"),
        ({"seed": 1}, "data.seed 1 chooses among training images; set data.train_size"),
    ],
)
def test_what_does_not_apply_is_one_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = made(tmp_path, "tars").model_copy(update=changes)
    with pytest.raises(ConfigError, match=message) as told:
        data.check(config, 32)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("in_tars", [False, True])
def test_what_is_not_cifar_is_refused_by_its_name(in_tars: bool, tmp_path: Path) -> None:
    for name, options, message in (
        ("a", {"classes": ("cat", "dog")}, "of 2 classes|has 2 classes"),
        ("b", {"side": 40}, "has 40 x 40 pixels"),
    ):
        root = write_copies(tmp_path / name, 2, 1, **options)  # type: ignore[arg-type]
        if in_tars:
            for split in ("train", "val"):
                one_tar(root, root, split)
                (root / split).rename(root / f"was-{split}")
        with pytest.raises(ConfigError, match=f"{message}, not 32 x 32 pixels in ten classes; 'folder'"):
            data.info(DataConfig(name="cifar10", root=str(root)), 32)


def test_ids_of_before_are_those_of_before() -> None:
    for values, run_id in IDS_OF_BEFORE:
        assert from_dict(values).run_id == run_id, values
    fashion = {"name": "fashion-mnist", "train_size": None}
    assert from_dict({"data": fashion}) == from_dict({"data": {"name": "fashion-mnist"}})
    assert from_dict({"data": {"name": "cifar10", "train_size": 20000}}).run_id != IDS_OF_BEFORE[1][1]


IDS_OF_BEFORE: list[tuple[dict[str, Any], str]] = [
    ({}, "hiap-7674a781fc"),
    ({"data": {"name": "cifar10"}}, "hiap-7af015dfeb"),
    ({"data": {"root": "x"}}, "hiap-1246d8e1a4"),
    ({"data": {"train_size": 20_000, "test_size": 10_000}}, "hiap-7674a781fc"),
    ({"data": {"name": "fashion-mnist", "train_size": 6000}}, "hiap-29f805f006"),
    ({"data": {"name": "digits"}}, "hiap-e002e87606"),
]

# --- the cache ---------------------------------------------------------------------------------------------------


def test_images_from_the_cache_are_those_that_are_decoded_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = made(tmp_path, "photographs").model_copy(update={"train_size": 50})
    kept = [batches(config, size, batch_size=8) for size in (32, 48)]
    tested = [*data.test_batches(config, 32, batch_size=8)]
    assert len([*(downloads.folder() / "pixels").glob("*/about.json")]) == 3
    monkeypatch.setattr(pixel_cache, "MOST", 0)
    data._kept.cache_clear()
    monkeypatch.setenv("HIAP_CACHE", str(tmp_path / "other"))
    for size, expected in zip((32, 48), kept, strict=True):
        assert equal(batches(config, size, batch_size=8), expected)
    assert equal([*data.test_batches(config, 32, batch_size=8)], tested)
    assert not [*(downloads.folder() / "pixels").glob("*/about.json")]


def test_nothing_is_decoded_twice_and_batches_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = made(tmp_path, "tars")
    whole = batches(config, epoch=1)
    data._kept.cache_clear()  # as in another process
    monkeypatch.setattr(data.decode, "photograph", lambda *_: pytest.fail("decoded again"))
    assert equal(batches(config, epoch=1, start=7, workers=2), whole[7:])
    monkeypatch.undo()
    assert data.identity(config, 32) == data.identity(config, 32)


def _decoded(root: str) -> int:
    """How many images one process decodes."""
    count, photograph = [0], data.decode.photograph
    data.decode.photograph = lambda *a: count.append(1) or photograph(*a)  # type: ignore[func-returns-value, assignment]
    batches(DataConfig(name="folder", root=root))
    return sum(count)


def test_processes_that_start_together_decode_once(tmp_path: Path) -> None:
    root = str(write_copies(tmp_path, 3, 1))
    assert sum(together(_decoded, [root] * 3)) == 30


@pytest.mark.parametrize("harm", ["cut", "other shape", "no labels"])
def test_a_damaged_cache_is_made_anew(harm: str, tmp_path: Path) -> None:
    config = made(tmp_path, "folders")
    whole = batches(config)
    (folder,) = (path.parent for path in (downloads.folder() / "pixels").glob("*/about.json"))
    if harm == "cut":
        (folder / "images.npy").write_bytes((folder / "images.npy").read_bytes()[:5000])
    elif harm == "other shape":
        np.save(folder / "images.npy", np.zeros((100, 3, 8, 8), np.uint8))
    else:
        (folder / "about.json").write_text("{")
    data._kept.cache_clear()
    assert equal(batches(config), whole)


def test_a_writer_that_is_killed_or_finds_no_room_leaves_nothing_half(tmp_path: Path) -> None:
    def make(fails: bool) -> Any:
        yield np.zeros((1, 3, 4, 4), np.uint8), np.array([1])
        if fails:
            raise RuntimeError
        yield np.ones((1, 3, 4, 4), np.uint8), np.array([2])

    ask: dict[str, Any] = {"key": {"a": 1}, "shape": (2, 3, 4, 4), "corrupt": list, "what": "x"}
    with pytest.raises(RuntimeError):
        pixel_cache.load_or_decode(make=lambda: make(True), **ask)
    assert [path.name for path in (downloads.folder() / "pixels").iterdir() if path.is_dir()] == []
    found = pixel_cache.load_or_decode(make=lambda: make(False), **ask)
    assert found is not None
    assert found.digest == pixel_cache.digest(found.images, found.labels)
    assert pixel_cache.load_or_decode(make=lambda: pytest.fail("kept"), **ask) is not None


def test_where_nothing_can_be_kept_images_are_decoded_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = made(tmp_path, "folders")
    expected = batches(config)
    (tmp_path / "file").touch()
    monkeypatch.setenv("HIAP_CACHE", str(tmp_path / "file"))
    data._kept.cache_clear()
    pixel_cache._tell.cache_clear()
    assert equal(batches(config), expected)
    assert "they are decoded each time" in capsys.readouterr().err


def test_an_image_that_is_replaced_is_seen(tmp_path: Path) -> None:
    """Other pixels under the same name, with the size and the time of modification of the old."""
    config = made(tmp_path, "photographs")
    before, whole = data.identity(config, 32), batches(config)
    file = Path(config.root) / "train" / "cat" / "0003.jpg"
    stat, content = file.stat(), bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    data._kept.cache_clear()
    assert not equal(batches(config), whole)
    after = data.identity(config, 32)
    assert {name for name in after if after[name] != before[name]} == {"files", "trained"}


def test_the_same_images_elsewhere_are_the_same(tmp_path: Path) -> None:
    folders = made(tmp_path, "folders")
    (tmp_path / "packed").mkdir()
    for split in ("train", "val"):
        one_tar(tmp_path / "folders", tmp_path / "packed", split)
    tars = folders.model_copy(update={"root": str(tmp_path / "packed")})
    assert data.identity(tars, 32) == data.identity(folders, 32)
    assert len([*(downloads.folder() / "pixels").glob("*/about.json")]) == 2, "and are decoded once"


@pytest.mark.slow
@pytest.mark.parametrize("augment", ["none", "batch"])
def test_an_epoch_from_the_cache_takes_as_long_as_from_memory(augment: Any, tmp_path: Path) -> None:
    """Seconds of CPU, alternated, the cache mapped anew each time: at most 1.02 for a small network's epoch, of which
    the training itself, the same for both, is measured apart."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 1024), ("val", 8)):
        for i in range(count):
            (tmp_path / split / f"{i % 8}").mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(rng.integers(0, 256, (56, 56, 3), np.uint8))
            image.save(tmp_path / split / f"{i % 8}" / f"{i}.png", compress_level=0)
    config = DataConfig(name="folder", root=str(tmp_path), augment=augment)

    def epoch(number: int, in_memory: bool) -> float:
        data._kept.cache_clear()
        kept = data._tensors(data.unaugmented(config), 56, "train", 0)  # mapped anew: nothing of it is touched
        if in_memory:
            kept.images = kept.images.clone()
        before = time.process_time()
        assert sum(len(x) for x, _ in data.train_batches(config, 56, batch_size=64, seed=0, epoch=number)) == 1024
        return time.process_time() - before

    seconds = {True: list[float](), False: list[float]()}
    for number in range(15):
        for in_memory in (True, False) if number % 2 else (False, True):
            seconds[in_memory].append(epoch(number, in_memory))
    memory, cache = (float(np.median(seconds[in_memory])) for in_memory in (True, False))
    training = 16 * step_seconds(timm.create_model("vit_tiny_patch16_224", img_size=56, patch_size=14, depth=4))
    ratio = (training + cache) / (training + memory)
    print(f"{augment}: images {memory:.3f} s from memory, {cache:.3f} s from the cache, training {training:.1f} s")
    print(f"ratio {ratio:.4f}")
    assert ratio <= 1.02


def step_seconds(model: Any) -> float:
    """CPU of a training step of 64 images."""
    images, labels = torch.randn(64, 3, 56, 56), torch.zeros(64, dtype=torch.long)
    optimizer, taken = torch.optim.AdamW(model.parameters()), []
    for _ in range(4):
        before = time.process_time()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        taken.append(time.process_time() - before)
    return float(np.median(taken[1:]))
