"""An index of ImageNet gives what a walk gives, in the same order, and is not believed when the images have changed."""

from __future__ import annotations

import tarfile
import time
from pathlib import Path

import pytest
import torch
from conftest import together
from PIL import Image
from test_data import pack, write_imagenet
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.data.readers.reader_image_in_tar import ReaderImageInTar

from hiap.data import image_index, layouts
from hiap.data import loader as data
from hiap.train.config import DataConfig


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIAP_CACHE", str(tmp_path / "cache"))
    data._imagenet.cache_clear()


def images(config: DataConfig) -> list[tuple[torch.Tensor, torch.Tensor]]:
    data._imagenet.cache_clear()  # as in another process
    found = [*data.train_batches(config, 64, batch_size=4, seed=0, epoch=0)]
    return [*found, *data.test_batches(config, 64, batch_size=10)]


@pytest.mark.parametrize("packed", [False, True], ids=["folders", "tars"])
def test_an_index_gives_what_a_walk_gives(packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_imagenet(tmp_path / "data", train=8)
    for image in (root / "train").rglob("*_7.JPEG"):
        image.rename(image.with_name(image.name.replace("_7", "_10")))  # where people and bytes sort names differently
    root = pack(root) if packed else root
    config = DataConfig(name="imagenet", root=str(root), augment="basic")
    walked, info = images(config), data.info(config, 64)
    names = [data._imagenet(config.root, "train").name(i) for i in range(info.train)]
    for file in data.make_index(config.root):
        file.unlink(missing_ok=True)
    files = data.make_index(config.root)
    assert all(file.is_file() for file in files)
    scans: list[object] = []
    monkeypatch.setattr(layouts, "scan", scans.append)
    indexed = images(config)
    assert [data._imagenet(config.root, "train").name(i) for i in range(info.train)] == names
    assert data.info(config, 64) == info
    for (x, y), (a, b) in zip(walked, indexed, strict=True):
        assert torch.equal(x, a)
        assert torch.equal(y, b)
    before = [file.stat().st_mtime_ns for file in files]
    assert data.make_index(config.root) == files
    assert [file.stat().st_mtime_ns for file in files] == before, "made once"
    assert not scans


@pytest.mark.parametrize("packed", [False, True], ids=["folders", "tars"])
def test_an_index_that_is_out_of_date_is_not_used(packed: bool, tmp_path: Path) -> None:
    root = write_imagenet(tmp_path / "data")
    config = DataConfig(name="imagenet", root=str(pack(root) if packed else root))
    files = data.make_index(config.root)
    if packed:
        tar = Path(config.root) / "train.tar"
        tar.write_bytes(tar.read_bytes())  # another file of the same content
    else:
        next((root / "train" / "n01440764").iterdir()).unlink()
    places = layouts.find(Path(config.root))
    assert image_index.load(places["train"]) is None
    assert image_index.load(places["test"]) is not None
    files[1].write_text("{")
    assert image_index.load(places["test"]) is None
    data._imagenet.cache_clear()
    assert len(data._imagenet(config.root, "test")) == 6


def count_scans(root: str) -> int:
    """How many scans one process needs, in a process of its own."""
    scans: list[object] = []
    scan = layouts.scan
    layouts.scan = lambda place: scans.append(place) or time.sleep(0.5) or scan(place)  # type: ignore[func-returns-value]
    try:
        data.info(DataConfig(name="folder", root=root), 32)
    finally:
        layouts.scan = scan
    return len(scans)


def test_a_tar_is_read_through_once_by_all_processes_that_start_together(tmp_path: Path) -> None:
    root = str(pack(write_imagenet(tmp_path)))
    assert sum(together(count_scans, [root] * 3)) == 2, "one of each split"
    data._imagenet.cache_clear()
    assert count_scans(root) == 0


def test_where_no_index_can_be_kept_it_is_made_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(pack(write_imagenet(tmp_path / "data")))
    (tmp_path / "file").touch()
    monkeypatch.setenv("HIAP_CACHE", str(tmp_path / "file"))
    assert count_scans(root) == 2
    assert "no index of images can be kept there" in capsys.readouterr().err


@pytest.mark.parametrize("packed", [False, True], ids=["folders", "tars"])
def test_the_order_is_that_of_timms_readers(packed: bool, tmp_path: Path) -> None:
    """Runs of before read their images in that order."""
    names = ["n2/a_10.JPEG", "n2/a_9.jpeg", "n10/B1.png", "n10/a01.jpg", "n10/c-1.JPG", "n10/c.1.jpg", "N3/x_2_10.png",
             "N3/x_10_2.png", "N3/x_2_9.png", "N3/007.png"]  # fmt: skip
    for split in ("train", "val"):
        for name in names:
            (tmp_path / split / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(tmp_path / split / name, "PNG")
    if packed:
        with tarfile.open(tmp_path / "train.tar", "w") as tar:
            for name in names:
                tar.add(tmp_path / "train" / name, f"./{name}")
        place = image_index.Place("tar", tmp_path / "train.tar", (tmp_path / "train.tar",))
        reader = ReaderImageInTar(str(tmp_path / "train.tar"), cache_tarinfo=False)
        theirs = [reader.filename(i).removeprefix("./") for i in range(len(reader))]
    else:
        place = layouts.find(tmp_path)["train"]
        theirs = [*map(ReaderImageFolder(str(tmp_path / "train")).filename, range(len(names)))]
    ours = layouts.scan(place)
    assert list(ours.names) == theirs
    assert [ours.classes[label] for label in ours.labels] == [name.split("/")[0] for name in theirs]
    assert list(ours.classes) == ["N3", "n10", "n2"], "numbered as published networks are"
