"""Augmentation of whole batches: what happens to an image, that it follows from seed, epoch and number alone, and whole
runs on small sets of real formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny
from test_choice import made
from test_data import batches, equal, own_cache  # noqa: F401
from test_train import Killed, kill_at, killed_at, same_result, weights  # noqa: F401

import hiap
from hiap.data import loader as data
from hiap.data import on_batch, pixel_cache
from hiap.train import run as train
from hiap.train.config import Config, DataConfig, merge

KINDS = ["binary", "tars", "photographs"]


def by_hand(image: torch.Tensor, at: on_batch.Places, i: int) -> torch.Tensor:
    """One image (C, H, W), pixel by pixel."""
    _, height, width = image.shape
    result = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            source = width - 1 - column if at.flip[i] else column
            y = row + int(at.y[i]) - height // on_batch.PADDED
            x = source + int(at.x[i]) - width // on_batch.PADDED
            if 0 <= y < height and 0 <= x < width:
                result[:, row, column] = image[:, y, x]
    return result


def test_it_is_what_it_is_pixel_by_pixel() -> None:
    images = torch.randint(1, 256, (30, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    at = on_batch.places(on_batch.draws(30, 1, 2), 16, 24)
    moved = on_batch.moved(images, at)
    assert moved.is_contiguous()
    for i in range(30):
        assert torch.equal(moved[i], by_hand(images[i], at, i))
    erased = on_batch.erased(moved.float() + 1, at)
    for i in range(30):
        expected = moved[i].float() + 1
        top, left = int(at.top[i]), int(at.left[i])
        expected[:, top : top + int(at.height[i]), left : left + int(at.width[i])] = 0
        assert torch.equal(erased[i], expected)


def test_shares_and_ranges_are_those_that_are_said() -> None:
    at = on_batch.places(on_batch.draws(20_000, 3), 32, 32)
    assert {int(v) for v in at.y} == {int(v) for v in at.x} == set(range(9)), "every crop"
    assert at.flip.float().mean().item() == pytest.approx(0.5, abs=0.02)
    some = at.height > 0
    assert some.float().mean().item() == pytest.approx(on_batch.ERASED, abs=0.02)
    assert ((at.top + at.height <= 32) & (at.left + at.width <= 32)).all()
    area = (at.height * at.width)[some] / 1024
    assert 0.01 < area.min().item() < 0.03
    assert 0.3 < area.max().item() < 0.4
    for size in (8, 9, 28):
        small = on_batch.places(on_batch.draws(500, 3), size, size)
        assert on_batch.moved(torch.zeros(500, 1, size, size, dtype=torch.uint8), small).shape == (500, 1, size, size)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_the_same_in_any_batch_share_process_and_cache(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = made(tmp_path, kind).model_copy(update={"augment": "batch"})
    whole = batches(config, epoch=2)
    assert not equal(whole, batches(config, epoch=3))
    assert not equal(whole, batches(config.model_copy(update={"augment": "none"}), epoch=2))
    assert equal(batches(config, epoch=2, start=3, workers=2), whole[3:])
    pixels = {x.numpy().tobytes() for images, _ in whole for x in images}
    halves = [x for i in range(2) for images, _ in batches(config, epoch=2, share=(i, 2)) for x in images]
    assert {x.numpy().tobytes() for x in halves} == pixels
    other = [x for images, _ in batches(config, epoch=2, batch_size=5) for x in images]
    assert {x.numpy().tobytes() for x in other} >= pixels
    monkeypatch.setattr(pixel_cache, "MOST", 0)
    data._kept.cache_clear()
    monkeypatch.setenv("HIAP_CACHE", str(tmp_path / "other"))
    assert equal(batches(config, epoch=2, workers=1), whole), "decoded each time"


def test_copies_are_augmented_anew_and_the_first_is_the_only_one_without(tmp_path: Path) -> None:
    config = made(tmp_path, "binary").model_copy(update={"augment": "batch"})
    once, thrice = batches(config, batch_size=12), batches(config.model_copy(update={"repeats": 3}), batch_size=12)
    seen, original = (torch.cat([images for images, _ in part]) for part in (thrice, once))
    assert torch.equal(seen[::3], original[: len(seen[::3])])
    assert not torch.equal(seen[0], seen[1])


def test_what_is_measured_probed_and_looked_at_is_not_augmented(tmp_path: Path) -> None:
    plain = made(tmp_path, "photographs")
    config = plain.model_copy(update={"augment": "batch", "repeats": 2, "mixup": 0.5})
    for split in ("train", "test"):
        both = [[*data.evenly_spaced(one, 32, split, 20, 8)] for one in (plain, config)]  # type: ignore[arg-type]
        assert equal(*both)
    assert equal(*([*data.test_batches(one, 32, batch_size=8)] for one in (plain, config)))
    assert data.identity(plain, 32) == data.identity(config, 32), "the same images, to the digest"


@pytest.mark.parametrize("name", ["digits", "affine-digits"])
def test_digits_are_not_flipped(name: Any) -> None:
    with pytest.raises(hiap.ConfigError, match=r"data.augment 'batch': data.name '.*' takes only 'none'"):
        data.check(DataConfig(name=name, augment="batch"), 16)


# --- whole runs --------------------------------------------------------------------------------------------------


def run_of(tmp_path: Path, images: DataConfig, **sections: Any) -> Config:
    """A run on a small set of ten classes, dense unless said, in batches of 8."""
    shown = images.model_dump(include={"name", "root"}) | sections.pop("data", {})
    base: dict[str, Any] = {"model": {"img_size": 16}, "data": shown, "optim": {"epochs": 2, "batch_size": 8}}
    return tiny(tmp_path / "results", **merge(base, sections))


@pytest.mark.parametrize("kind", ["tars", "photographs"])
def test_a_run_on_augmented_batches_resumes_to_the_bit(kind: str, tmp_path: Path, kill_at: Any) -> None:  # noqa: F811
    changes = {"augment": "batch", "mixup": 0.4, "repeats": 2}
    config = run_of(tmp_path, made(tmp_path, kind), data=changes, run={"checkpoint_steps": 2})
    record = train.run(config)
    disturbed, again = killed_at((3, 4, 9), config, kill_at, "disturbed")
    same_result(record, again)
    both = weights(config), weights(disturbed)
    assert all(torch.equal(a, b) for a, b in zip(*(part.values() for part in both), strict=True))
    assert record.images is not None
    assert record.images.trained, "the digest of what was decoded"


@pytest.mark.parametrize("kind", KINDS)
def test_subset_validation_precompute_and_cache_in_whole_runs(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dense, then pruned with a teacher asked once, on validation images; decoded once for both, and for none after."""
    shown = {"train_size": 40, "measure": "validation", "test_size": 10}
    images = made(tmp_path, kind)
    dense = run_of(tmp_path, images, data=shown)
    first = train.run(dense)
    assert first.metrics.extracted is not None
    assert (first.metrics.extracted.n, first.stages[0].images) == (10, 80)
    decoded, photograph = list[str](), data.decode.photograph

    def counted(content: Any, name: str) -> Any:
        decoded.append(name)
        return photograph(content, name)

    monkeypatch.setattr(data.decode, "photograph", counted)
    config = run_of(
        tmp_path,
        images,
        method="hiap",
        model={"weights": f"run:{dense.run_id}"},
        data=shown,
        budget={"target_macs": 0.7},
        gates={"lr": 1.0},
        distill={"alpha": 0.7, "precompute": True},
    )
    once = train.run(config)
    assert first.images == once.images, "the same images, by digests"
    assert len(decoded) <= 2, "but for the first of each split, which tells what it is"
    at_each = config.model_copy(update={"distill": config.distill.model_copy(update={"precompute": False})})
    asked = train.run(at_each)
    assert once.metrics.extracted is not None
    assert asked.metrics.extracted is not None
    assert once.metrics.extracted.loss == pytest.approx(asked.metrics.extracted.loss, rel=1e-3)
    teacher = asked.stages[0].train_macs - once.stages[0].train_macs
    assert teacher == first.size.macs * (80 - 40), "asked once of each image, not at every step"  # type: ignore[union-attr]
