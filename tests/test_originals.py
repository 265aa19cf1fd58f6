"""What `make cifar10` and `make imagenette` fetch: a folder that the data layer reads, or one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_choice import write_copies
from test_data import own_cache, write_cifar  # noqa: F401

from hiap.data import downloads, originals
from hiap.data import loader as data
from hiap.train.config import DataConfig


@pytest.mark.parametrize("name", originals.ORIGINALS)
def test_what_is_fetched_is_read(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torchvision import datasets

    def download(root: str, download: bool, **split: Any) -> None:
        assert download
        place = Path(root)
        if name == "cifar10" and not (place / "cifar-10-batches-py").exists():
            write_cifar(place, "python")
        elif name == "imagenette" and not (place / "imagenette2-320").exists():
            write_copies(place / "imagenette2-320", 2, 1)

    monkeypatch.setattr(datasets, originals.ORIGINALS[name][0], download)
    for _ in range(2):
        assert originals.main([name]) == 0
    root = capsys.readouterr().out.splitlines()[0]
    kind: Any = originals.ORIGINALS[name][3].removeprefix("data.name=")
    assert data.info(DataConfig(name=kind, root=root), 32).classes == 10


@pytest.mark.parametrize("name", originals.ORIGINALS)
def test_without_a_network_one_line_says_what_to_do(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torchvision import datasets

    def download(*_: Any, **__: Any) -> None:
        raise OSError("Name or service\nnot known")

    monkeypatch.setattr(datasets, originals.ORIGINALS[name][0], download)
    assert originals.main([name]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {name} cannot be fetched")
    assert error.count("\n") == 1
    assert "data.root" in error
    assert not list((downloads.folder() / name).iterdir())
    assert originals.main(["imagenet"]) == 2
