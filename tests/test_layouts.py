"""Photographs in any published layout: the same images in the same numbers, resumed to the step; what is no image or no
class is none; what cannot be read rightly is refused in one line."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_data import batches, equal, own_cache  # noqa: F401

from hiap.data import downloads, layouts, parquet
from hiap.data import loader as data
from hiap.train.config import ConfigError, DataConfig, from_dict
from slurm import estimate

COUNTS = {"train": 4, "val": 2}


def write_folders(root: Path, classes: tuple[str, ...] = ("cat", "dog", "emu")) -> Path:
    """Class k's images have the colour k, but for a corner that tells the splits apart."""
    for split, count in COUNTS.items():
        for k, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.full((20 + i, 30, 3), 20 * (k + 1) + i, np.uint8)
                pixels[0, 0, 0] += split == "val"
                Image.fromarray(pixels).save(root / split / name / f"{name}_{i}.png")
    return root


def samples(root: Path, split: str) -> list[tuple[Path, int]]:
    return [
        (path, k)
        for k, name in enumerate(layouts.class_folders(root / split))
        for path in sorted((root / split / name).iterdir())
    ]


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def one_tar(folders: Path, root: Path, split: str) -> None:
    with tarfile.open(root / f"{split}.tar", "w") as tar:
        tar.add(folders / split, ".")


def class_tars(folders: Path, root: Path, split: str) -> None:
    """ImageNet's own: a tar of a tar for each class, whose images lie in no folder."""
    with tarfile.open(root / f"{split}.tar", "w") as tar:
        for folder in sorted((folders / split).iterdir()):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as images:
                for path in folder.iterdir():
                    images.add(path, path.name)
            add(tar, f"{folder.name}.tar", inner.getvalue())


def folder_of_tars(folders: Path, root: Path, split: str) -> None:
    (root / split).mkdir()
    for folder in sorted((folders / split).iterdir()):
        with tarfile.open(root / split / f"{folder.name}.tar", "w") as tar:
            for path in folder.iterdir():
                tar.add(path, path.name)


def shards(folders: Path, root: Path, split: str, field: str = "cls") -> None:
    """WebDataset's: files of one name are one sample."""
    name = {"train": "set-train-{:04d}.tar", "val": "set-validation-{:02d}.tar"}[split]
    found = samples(folders, split)
    for number, first in enumerate(range(0, len(found), 5)):
        with tarfile.open(root / name.format(number), "w") as tar:
            for path, label in found[first : first + 5]:
                if field == "cls":
                    add(tar, f"{path.stem}.cls", str(label).encode())
                add(tar, f"{path.stem}.png", path.read_bytes())
                add(tar, f"{path.stem}.json", json.dumps({"label": label, "width": 30}).encode())


def json_shards(folders: Path, root: Path, split: str) -> None:
    (root / split).mkdir()
    shards(folders, root / split, split, "json")


def hub_parquet(folders: Path, root: Path, split: str) -> None:
    """As the hub's ``datasets`` writes them, in row groups of two; another column says nothing to us."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    (root / "data").mkdir(exist_ok=True)
    names = layouts.class_folders(folders / split)
    features = {"picture": {"_type": "Image"}, "animal": {"_type": "ClassLabel", "names": names}, "size": {}}
    type_ = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    found = samples(folders, split)
    name = {"train": "train", "val": "validation"}[split]
    starts = range(0, len(found), 7)
    for number, first in enumerate(starts):
        part = found[first : first + 7]
        pictures = [{"bytes": path.read_bytes(), "path": path.name} for path, _ in part]
        columns = {"size": [30] * len(part), "picture": pyarrow.array(pictures, type_), "animal": [k for _, k in part]}
        table = pyarrow.table(columns)
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        write_table(table, root / "data" / f"{name}-{number:05d}-of-{len(starts):05d}.parquet", row_group_size=2)


def plain_parquet(folders: Path, root: Path, split: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    found = samples(folders, split)
    columns = {"image": [path.read_bytes() for path, _ in found], "label": [label for _, label in found]}
    write_table(pyarrow.table(columns), root / f"{split}.parquet")


WRITERS = {
    f.__name__: f for f in (one_tar, class_tars, folder_of_tars, shards, json_shards, hub_parquet, plain_parquet)
}


def packed(tmp_path: Path, writer: Callable[[Path, Path, str], None]) -> tuple[Path, Path]:
    """Class folders, and the same images as ``writer`` lays them."""
    folders, root = write_folders(tmp_path / "folders"), tmp_path / "packed"
    root.mkdir()
    for split in COUNTS:
        writer(folders, root, split)
    return folders, root


def config_of(root: Path, **changes: Any) -> DataConfig:
    return DataConfig(name="folder", root=str(root), **changes)


@pytest.mark.parametrize("name", WRITERS)
def test_every_layout_holds_the_same_images_and_resumes_to_the_step(name: str, tmp_path: Path) -> None:
    folders, root = packed(tmp_path, WRITERS[name])
    config = config_of(root, augment="deit", mixup=0.8)
    data.check(config, 32)
    assert data.info(config, 32) == data.Info(3, 3, None, 12, 6)
    (images, labels), *_ = data.test_batches(config_of(root), 32, batch_size=6)
    (expected, truth), *_ = data.test_batches(config_of(folders), 32, batch_size=6)
    assert torch.equal(labels, truth)
    assert torch.equal(images, expected)
    whole = batches(config, epoch=1)
    if name != "folder_of_tars":  # in order of files, not of folders
        assert equal(whole, batches(config.model_copy(update={"root": str(folders)}), epoch=1))
    for k, workers in ((1, 0), (2, 0), (1, 2)):
        data._imagenet.cache_clear()  # as in another process, from the index that is kept
        assert equal(batches(config, epoch=1, start=k, workers=workers), whole[k:])
    assert len([*(downloads.folder() / "index").glob("*.json")]) == 2


@pytest.mark.parametrize("name", ["one_tar", "shards", "hub_parquet"])
def test_an_unreadable_image_is_named_by_file_and_place(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders, root = write_folders(tmp_path / "folders"), tmp_path / "packed"
    root.mkdir()
    (folders / "train" / "dog" / "dog_1.png").write_bytes(b"woof")
    for split in COUNTS:
        WRITERS[name](folders, root, split)
    batches(config_of(root), batch_size=12)
    holder = {"one_tar": "train.tar/dog", "shards": "set-train-0001.tar", "hub_parquet": "train-00000-of-00002.parquet"}
    assert f"{root}/{'data/' * (name == 'hub_parquet')}{holder[name]}/dog_1.png: not a readable image" in (
        capsys.readouterr().err
    )


def test_what_a_system_leaves_behind_is_no_image_and_no_class(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "set")
    expected = batches(config_of(root))
    for split in COUNTS:
        for name in (".ipynb_checkpoints", "__MACOSX", ".Trash"):
            shutil.copytree(root / split / "cat", root / split / name)
        for name in ("._cat_0.png", ".DS_Store", ".hidden.jpg", "Thumbs.db", "cat_0.png.txt"):
            (root / split / "cat" / name).write_bytes(b"\0")
        (root / split / "cat" / ".cache.png").mkdir()
        (root / split / "a.png").write_bytes(b"in no class")
        (root / split / ".DS_Store").write_bytes(b"\0")
    for path in (root, tars := tmp_path / "tars"):
        if path == tars:
            tars.mkdir()
            for split in COUNTS:
                one_tar(root, tars, split)
        layouts.check.cache_clear()
        data._imagenet.cache_clear()
        assert data.info(config_of(path), 32) == data.Info(3, 3, None, 12, 6)
        assert equal(batches(config_of(path, max_corrupt=0)), expected)


def test_a_class_of_hidden_files_holds_no_image(tmp_path: Path) -> None:
    root = write_folders(tmp_path)
    for path in (root / "train" / "emu").iterdir():
        path.rename(path.with_name(f"._{path.name}"))
    with pytest.raises(ConfigError, match="emu holds no image"):
        data.check(config_of(root), 32)


@pytest.mark.parametrize("split", COUNTS)
@pytest.mark.parametrize("in_tars", [False, True])
def test_a_flat_folder_says_how_to_sort_it_and_that_works(split: str, in_tars: bool, tmp_path: Path) -> None:
    root, other = write_folders(tmp_path / "set"), tmp_path / "tars"
    lines = ["ImageId,PredictionString"]
    for path, _ in samples(root, split):
        lines.append(f"{path.stem},{path.parent.name} 1 2 3 4 {path.parent.name} 5 6 7 8")
        path.rename(root / split / f"{path.stem}.JPEG")
    for folder in [path for path in (root / split).iterdir() if path.is_dir()]:
        folder.rmdir()
    if in_tars:
        other.mkdir()
        for name in COUNTS:
            one_tar(root, other, name)
    with pytest.raises(
        ConfigError, match=rf"{split}(\.tar)? holds images and no class folders: sort them .*awk"
    ) as told:
        data.info(config_of(other if in_tars else root), 32)
    assert "\n" not in str(told.value)
    if not in_tars:
        (root / split / "LOC_val_solution.csv").write_text("\n".join([*lines, ""]))
        command = str(told.value)[str(told.value).index("awk") :]
        subprocess.run(["sh", "-c", command], cwd=root / split, check=True)
        layouts.check.cache_clear()
        assert data.info(config_of(root), 32).classes == 3


NUMBERS = tuple(map(str, range(1, 12)))


def labels_by_folder(config: DataConfig) -> dict[str, int]:
    source = data._source(config, "test")
    return {source.name(i).split("/")[-2]: source[i][1] for i in range(len(source))}


def test_class_folders_that_are_numbers_need_a_word(tmp_path: Path) -> None:
    root = write_folders(tmp_path, NUMBERS)
    for name in ("folder", "imagenet"):
        with pytest.raises(
            ConfigError, match=r"sort as 1, 10, 11 .* and 1, 2, 3 .*class_order to 'name' .* or 'number'"
        ) as told:
            data.check(config_of(root).model_copy(update={"name": name}), 32)
        assert "\n" not in str(told.value)
    by_name = labels_by_folder(config_of(root, class_order="name"))
    assert by_name == {name: i for i, name in enumerate(sorted(NUMBERS))}
    assert labels_by_folder(config_of(root, class_order="number")) == {name: int(name) - 1 for name in NUMBERS}
    tars = tmp_path / "tars"
    tars.mkdir()
    for split in COUNTS:
        one_tar(root, tars, split)
    with pytest.raises(ConfigError, match="by number"):
        data.info(config_of(tars), 32)
    found = data._source(config_of(tars, class_order="number"), "train")
    assert {found.name(i).split("/")[-2]: found[i][1] for i in range(len(found))}["11"] == 10


def test_names_that_sort_in_one_way_need_none(tmp_path: Path) -> None:
    for i, names in enumerate((("01", "02", "10"), ("7", "8", "9"), ("1", "2", "x10"), ("n1", "n10", "n2"))):
        assert (layouts.numbers(sorted(names), "auto") == np.arange(3)).all(), i
    with pytest.raises(ConfigError, match="class folder 'x10' is no number"):
        layouts.numbers(["1", "2", "x10"], "number")
    with pytest.raises(ConfigError, match=r"data.class_order 'name': data.name 'cifar10' has no class folders"):
        data.check(DataConfig(name="cifar10", class_order="name"), 32)
    _, root = packed(tmp_path, shards)
    with pytest.raises(ConfigError, match=r"set-train-0000\.tar says each image's number itself"):
        data.info(config_of(root, class_order="name"), 32)


def test_a_set_of_other_classes_under_imagenets_name_is_told_of(tmp_path: Path) -> None:
    root = write_folders(tmp_path)
    assert data.doubts(config_of(root), 32) == ""
    assert "has 3 classes, not 1,000; 'folder' is the name" in data.doubts(
        DataConfig(name="imagenet", root=str(root)), 32
    )


def test_photographs_of_any_set_are_shown_as_imagenets(tmp_path: Path) -> None:
    """Resized and cropped alike, and as the network was trained where it says how."""
    theirs = {"mean": (0.5, 0.5, 0.5), "crop_pct": 0.9}
    for network in (None, theirs):
        assert data.pixels(config_of(tmp_path), network) == data.pixels(DataConfig(name="imagenet"), network)


def test_a_bill_counts_the_images_of_a_folder_that_is_here(tmp_path: Path) -> None:
    base = {"optim": {"batch_size": 4}, "model": {"img_size": 32}}
    here = from_dict({**base, "data": {"name": "folder", "root": str(write_folders(tmp_path))}})
    assert estimate.steps_per_epoch(here) == 3
    assert estimate.dims(here).classes == 3  # type: ignore[union-attr]
    there = from_dict({**base, "data": {"name": "folder", "root": "$TMPDIR/set", "train_size": 400}})
    assert estimate.steps_per_epoch(there) == 100


def test_ids_of_before_are_those_of_before() -> None:
    assert from_dict({"data": {"name": "imagenet"}}).run_id == "hiap-a0c299e1c4"
    assert from_dict({"data": {"name": "imagenet", "class_order": "name"}}).run_id != "hiap-a0c299e1c4"


def spoil(root: Path, what: str) -> None:
    """One thing that is wrong with shards."""
    shard = root / "set-train-0001.tar"
    if what == "no validation":
        for path in root.glob("*validation*"):
            path.unlink()
    elif what == "no split":
        for path in root.iterdir():
            path.rename(root / path.name.replace("train", "a").replace("validation", "b"))
    elif what == "cut":
        shard.write_bytes(shard.read_bytes()[:3000])
    else:
        with tarfile.open(shard, "w") as tar:
            add(tar, "a.png", b"x")
            if what != "no label":
                add(tar, "a.cls", {"word": b"cat", "below zero": b"-1", "nothing": b"", "two": b"1"}[what])
            if what == "two":
                add(tar, "a.mask.png", b"x")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no validation", r"shards of train alone; data\.root must hold"),
        ("no split", r"shards of no named split alone; data\.root must hold"),
        ("cut", r"set-train-0001\.tar: not a whole tar of images"),
        ("no label", r"set-train-0001\.tar/a\.png: an image without a label"),
        ("word", r"set-train-0001\.tar/a\.cls: expected a class number, not b'cat'"),
        ("below zero", r"a\.cls: expected a class number, not b'-1'"),
        ("nothing", r"a\.cls: expected a class number, not b''"),
        ("two", r"set-train-0001\.tar: a\.png and a\.mask\.png are one sample; expected an image for each label"),
    ],
)
def test_wrong_shards_are_one_line(what: str, message: str, tmp_path: Path) -> None:
    _, root = packed(tmp_path, shards)
    spoil(root, what)
    with pytest.raises(ConfigError, match=message) as told:
        data.info(config_of(root), 32)
    assert "\n" not in str(told.value)
    assert not [*(downloads.folder() / "index").glob("*.json")], "nothing is left of a scan that failed"


def test_wrong_parquet_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    _, root = packed(tmp_path, plain_parquet)
    for columns, message in (
        ({"image": [b""], "label": [-1]}, r"train\.parquet: row 0 has no label, as in a test split"),
        ({"pixels": [b""], "label": [1]}, r"train\.parquet: columns pixels, label; expected 'image'"),
        ({"image": ["a.png"], "label": [1]}, r"train\.parquet: columns image, label; expected 'image'"),
    ):
        write_table(pyarrow.table(columns), root / "train.parquet")
        with pytest.raises(ConfigError, match=message):
            data.info(config_of(root), 32)
    (root / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match=r"train\.parquet: not a whole parquet file") as told:
        data.info(config_of(root), 32)
    assert "\n" not in str(told.value)


def test_parquet_without_its_reader_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in COUNTS:
        (tmp_path / f"{split}.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr(parquet, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pyarrow, which is not installed: pip install pyarrow$"):
        data.check(config_of(tmp_path), 32)


@pytest.mark.parametrize(("numbers", "missing"), [((0, 2), 1), ((1, 2), None), ((0, 1), None), ((0, 1, 3, 4), 2)])
def test_a_download_that_broke_off_is_no_data_set(
    tmp_path: Path, numbers: tuple[int, ...], missing: int | None
) -> None:
    count = 2 if missing is None else numbers[-1] + 1
    for split in ("train", "val"):
        for number in numbers:
            with tarfile.open(tmp_path / f"{split}-{number:05d}-of-{count:05d}.tar", "w"):
                pass
    if missing is None:
        assert layouts.find(tmp_path)["train"].files
    else:
        with pytest.raises(ConfigError, match=f"1 of its {count} shards are missing, number {missing} first"):
            layouts.find(tmp_path)


def tar_of(root: Path, names: list[str]) -> layouts.Place:
    """A tar of images with these names, and its place."""
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / "train.tar", "w") as tar:
        for i, name in enumerate(names):
            picture = io.BytesIO()
            Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(picture, "PNG")
            add(tar, name, picture.getvalue())
    return layouts.Place("tar", root / "train.tar", (root / "train.tar",))


@pytest.mark.parametrize(
    "names",
    [
        ["n01/images/a.png", "n02/images/b.png"],  # Tiny-ImageNet's layout: all of one class, 'images'
        ["cat/left/a.png", "cat/right/b.png", "dog/left/c.png"],
        ["cat/a.png", "cat/hairy/b.png", "dog/c.png"],
    ],
)
def test_folders_of_a_tar_that_are_no_classes_are_refused(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(ConfigError, match="expected one folder for each class"):
        layouts.scan(tar_of(tmp_path, names))


def test_of_a_file_that_was_added_to_a_tar_again_the_last_counts(tmp_path: Path) -> None:
    found = layouts.scan(tar_of(tmp_path, ["cat/a.png", "dog/b.png", "cat/a.png"]))
    assert found.names == ["cat/a.png", "dog/b.png"]
    once = layouts.scan(tar_of(tmp_path / "once", ["cat/a.png", "dog/b.png"]))
    assert found.spots is not None
    assert once.spots is not None
    assert found.spots[0, 1] > once.spots[1, 1], "the one at the end"


def test_a_link_in_a_tar_is_refused_and_other_files_are_told(tmp_path: Path) -> None:
    place = tar_of(tmp_path, ["cat/a.png", "dog/b.png", "dog/b.avif"])
    with pytest.warns(UserWarning, match=r"1 files in .* are no images .* dog/b\.avif"):
        layouts.scan(place)
    with tarfile.open(place.path, "a") as tar:
        link = tarfile.TarInfo("dog/c.png")
        link.type, link.linkname = tarfile.LNKTYPE, "dog/b.png"
        tar.addfile(link)
    with pytest.raises(ConfigError, match=r"dog/c\.png is a link; expected files"):
        layouts.scan(place)


def test_validation_images_that_are_training_images_too_are_told(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "set")
    for kind in ("folder", "tar"):
        shutil.copy(root / "train" / "dog" / "dog_1.png", root / "val" / "dog" / "copied.png")
        place = root
        if kind == "tar":
            place = tmp_path / "tars"
            place.mkdir()
            for split in COUNTS:
                with tarfile.open(place / f"{split}.tar", "w") as tar:
                    tar.add(root / split, arcname=split)
        told = data.doubts(config_of(place), 32)
        assert re.search(r"1 of \d+ validation images are training images too, \S*copied\.png for example", told), kind


def test_shards_of_a_split_in_several_folders_are_refused(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "set")
    for size in ("160px", "320px"):
        for split in COUNTS:
            (tmp_path / "hub" / size).mkdir(parents=True, exist_ok=True)
            with tarfile.open(tmp_path / "hub" / size / f"{split}-00000.tar", "w") as tar:
                for i, (path, k) in enumerate(samples(root, split)):
                    tar.add(path, arcname=f"{i}.png")
                    add(tar, f"{i}.cls", str(k).encode())
    with pytest.raises(ConfigError, match=r"160px and .*320px both hold \.tar shards of one split"):
        data.info(config_of(tmp_path / "hub"), 32)
    assert data.info(config_of(tmp_path / "hub" / "160px"), 32).classes == 3


@pytest.mark.parametrize(
    ("said", "line"), [({"class": 1}, "says no class of the image"), ({"label": [1]}, "class number")]
)
def test_shards_whose_labels_are_not_found_have_no_classes_of_their_own(
    said: dict[str, Any], line: str, tmp_path: Path
) -> None:
    root = write_folders(tmp_path / "set")
    for split in COUNTS:
        (tmp_path / "shards" / split).mkdir(parents=True)
        for part in range(2):
            with tarfile.open(tmp_path / "shards" / split / f"{part:05d}.tar", "w") as tar:
                for i, (path, _) in enumerate(samples(root, split)):
                    tar.add(path, arcname=f"{i}.png")
                    add(tar, f"{i}.json", json.dumps(said).encode())
    with pytest.raises(ConfigError, match=line):
        data.info(config_of(tmp_path / "shards"), 32)


def test_classes_of_the_hubs_parquet_files_have_their_names(tmp_path: Path) -> None:
    _, root = packed(tmp_path, hub_parquet)
    assert data.class_names(config_of(root)) == ["cat", "dog", "emu"]
    assert layouts.numbers_for(["cat", "dog", "emu"], {"label_names": ["dog", "emu", "cat"]}, 3) == [2, 0, 1]
