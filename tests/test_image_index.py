"""An index of ImageNet gives what a walk gives, in the same order, and is not believed when the images have changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_data import pack, write_imagenet

from hiap.data import image_index
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
def test_an_index_gives_what_a_walk_gives(packed: bool, tmp_path: Path) -> None:
    root = write_imagenet(tmp_path / "data", train=8)
    for image in (root / "train").rglob("*_7.JPEG"):
        image.rename(image.with_name(image.name.replace("_7", "_10")))  # where people and bytes sort names differently
    root = pack(root) if packed else root
    config = DataConfig(name="imagenet", root=str(root), augment="basic")
    walked, info = images(config), data.info(config, 64)
    names = [data._imagenet(config.root, "train").name(i) for i in range(info.train)]
    files = data.make_index(config.root)
    assert all(file.is_file() for file in files)
    indexed = images(config)
    source = data._imagenet(config.root, "train")
    assert isinstance(source.reader, image_index.Indexed)
    assert [source.name(i) for i in range(info.train)] == names
    assert data.info(config, 64) == info
    for (x, y), (a, b) in zip(walked, indexed, strict=True):
        assert torch.equal(x, a)
        assert torch.equal(y, b)
    before = [file.stat().st_mtime_ns for file in files]
    assert data.make_index(config.root) == files
    assert [file.stat().st_mtime_ns for file in files] == before, "made once"


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
    data._imagenet.cache_clear()
    assert not isinstance(data._imagenet(config.root, "train").reader, image_index.Indexed)
    assert isinstance(data._imagenet(config.root, "test").reader, image_index.Indexed)
    files[1].write_text("{")
    data._imagenet.cache_clear()
    assert len(data._imagenet(config.root, "test")) == 6
