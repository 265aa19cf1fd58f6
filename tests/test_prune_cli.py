"""``hiap prune``: from what a person has to a network that is saved, exported and measured; else one line."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import small_vit
from PIL import Image
from test_prune import uneven
from torch import nn

import hiap
from hiap.cli import main
from hiap.cli import prune as prune_cli
from hiap.formats import card, networks, pictures
from hiap.options import ConfigError
from hiap.train import methods

TINY: dict[str, Any] = {"img_size": 16, "patch_size": 4, "in_chans": 3, "num_classes": 3, "embed_dim": 32}


def answering() -> Any:
    model = small_vit(**TINY)
    nn.init.normal_(model.head.weight)
    return model


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 16 images."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name in "abc":
        (root / name).mkdir()
        for i in range(16):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(root / name / f"{i}.png")
    return root


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    hiap.save(answering(), tmp_path / "net")
    return tmp_path / "net"


def prune(*arguments: object) -> int:
    return main(["prune", *map(str, arguments)])


def test_a_folder_of_ours_with_labels(
    saved: Path, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small"
    assert prune(saved, "--data", photographs, "--out", out, "--export", "torch") == 0
    told = capsys.readouterr().out
    small, before = hiap.load(out), hiap.load(saved)
    assert hiap.macs(small, (3, 16, 16)) <= 0.5 * hiap.macs(before, (3, 16, 16))
    for word in (
        "top-1 before",
        "top-1 after",
        "difference",
        "parameters",
        "ms for 16 images",
        "24 images that nothing",
    ):
        assert word in told
    front = card.front_matter(out)
    assert front["model-index"][0]["results"][0]["metrics"][0]["type"] == "accuracy"
    assert (tmp_path / "small.png").stat().st_size
    x = torch.randn(5, 3, 16, 16)
    program: Any = torch.export.load(tmp_path / "small.pt2").module()
    assert torch.allclose(program(x), small(x), atol=1e-5)


def test_copies_of_what_it_is_pruned_by_are_not_measured_on(photographs: Path, tmp_path: Path) -> None:
    shutil.copytree(photographs, tmp_path / "twice")
    for path in sorted(photographs.rglob("*.png")):
        shutil.copy(path, tmp_path / "twice" / path.parent.name / f"again-{path.name}")
    (tmp_path / "twice" / "a" / "more.heic").write_text("no format that is read")
    with pytest.warns(UserWarning, match="copies of such as the network is pruned by") as told:
        found = pictures.read(str(tmp_path / "twice"), answering(), None, 512, 512)
    said = " ".join(str(one.message) for one in told)
    assert "1 files in" in said
    assert "a/more.heic for example" in said
    assert "images are copies of such as the network is pruned by, and are not measured on" in said
    seen = torch.cat([x for x, _ in found.calibration])
    held_out = torch.cat([x for x, _ in found.held_out])
    assert not (seen[:, None] == held_out).flatten(2).all(-1).any()


def test_copies_of_training_images_are_not_measured_on(tmp_path: Path) -> None:
    """Under another name, in the folder that is measured."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 5)):
        for name in "abc":
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / split / name / f"{i}.png")
    for path in sorted((tmp_path / "train").rglob("*.png")):
        shutil.copy(path, tmp_path / "val" / path.parent.name / f"copy-{path.name}")
    with pytest.warns(UserWarning, match="24 images are copies of such as the network is pruned by"):
        found = pictures.read(str(tmp_path), answering(), None, 512, 512)
    assert sum(len(x) for x, _ in found.held_out) == 15 + 6  # its own, and copies of the fifth that is set apart


def test_images_without_classes(saved: Path, photographs: Path, tmp_path: Path, capsys: Any) -> None:
    assert prune(saved, "--data", photographs / "a", "--out", tmp_path / "small", "--target-params", 0.7) == 0
    assert "accuracy not measured: the images come without classes" in capsys.readouterr().out
    assert hiap.params(hiap.load(tmp_path / "small")) <= 0.7 * hiap.params(hiap.load(saved))


def test_a_network_with_uneven_heads(photographs: Path, tmp_path: Path, capsys: Any) -> None:
    model = uneven(answering())
    hiap.save(model, tmp_path / "net")
    assert prune(tmp_path / "net", "--data", photographs, "--out", tmp_path / "small", "--target", 0.7) == 0
    share = hiap.macs(hiap.load(tmp_path / "small"), (3, 16, 16)) / hiap.macs(model, (3, 16, 16))
    assert share <= 0.7
    assert "top-1 after" in capsys.readouterr().out


def test_a_name_of_timms_with_local_weights_and_a_checkpoint(photographs: Path, tmp_path: Path) -> None:
    name = "vit_tiny_patch16_224"
    model: Any = timm.create_model(name, num_classes=3, img_size=32)
    nn.init.normal_(model.head.weight)
    file = tmp_path / "weights.pth"
    torch.save({"model": model.state_dict()}, file)
    common = ("--data", photographs, "--img-size", 32, "--images", 8, "--measure", 4)
    assert prune(name, "--weights", file, "--out", tmp_path / "one", *common) == 0
    assert prune(file, "--arch", name, "--out", tmp_path / "two", *common) == 0
    one, two = hiap.load(tmp_path / "one"), hiap.load(tmp_path / "two")
    assert all(torch.equal(v, two.state_dict()[k]) for k, v in one.state_dict().items())
    assert (card.dense_of(tmp_path / "one") or pytest.fail("no sizes")).neurons == 768


def test_a_checkpoint_is_of_the_images_that_it_was_made_for_and_others_are_told(tmp_path: Path) -> None:
    name, file = "vit_tiny_patch16_224", tmp_path / "weights.pth"
    torch.save(timm.create_model(name, num_classes=3, img_size=64).state_dict(), file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert hiap.cost.image_of(networks.load(str(file), arch=name)) == (3, 64, 64)
        assert hiap.cost.image_of(networks.load(name, str(file))) == (3, 64, 64)
        networks.load(str(file), arch=name, img_size=64)
    with pytest.warns(UserWarning, match=r"pos_embed resampled from .* for images of 96 pixels"):
        assert hiap.cost.image_of(networks.load(str(file), arch=name, img_size=96)) == (3, 96, 96)


@pytest.mark.parametrize("damage", ["no bias", "another size"])
def test_a_classifier_that_does_not_fit_is_not_drawn_anew(damage: str, tmp_path: Path) -> None:
    state = timm.create_model("vit_tiny_patch16_224", num_classes=7).state_dict()
    if damage == "no bias":
        del state["head.bias"]
    else:
        state["head.weight"] = torch.cat([state["head.weight"]] * 2, 1)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(hiap.ConfigError, match="its classifier does not fit vit_tiny_patch16_224"):
        networks.load(str(tmp_path / "weights.pth"), arch="vit_tiny_patch16_224")


def test_an_option_that_would_do_nothing_is_refused(saved: Path) -> None:
    assert networks.load(str(saved), img_size=16)
    for options, words in (({"img_size": 32}, "is for 16 x 16"), ({"averaged": True}, "--averaged: is for a file")):
        with pytest.raises(hiap.ConfigError, match=words):
            networks.load(str(saved), **options)  # type: ignore[arg-type]


def test_what_is_read_is_not_overwritten_and_no_export_of_another_network_stays(
    saved: Path, photographs: Path, tmp_path: Path, capsys: Any
) -> None:
    options = ("--data", photographs, "--images", 16, "--measure", 8)
    assert prune(saved, *options, "--out", saved) == 2
    assert "is read and would be overwritten" in capsys.readouterr().err
    assert prune(saved, *options, "--out", tmp_path / "small", "--export", "torch") == 0
    assert prune(saved, *options, "--out", tmp_path / "small", "--target", 0.6) == 2
    assert "small.pt2 is of an earlier network and would stay" in capsys.readouterr().err
    assert prune(saved, *options, "--out", tmp_path / "small", "--target", 0.6, "--export", "torch") == 0


def test_without_matplotlib_all_but_the_picture_is_there(
    saved: Path, photographs: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune_cli, "find_spec", lambda name: None)
    assert prune(saved, "--data", photographs, "--out", tmp_path / "small") == 0
    assert "top-1 after" in (told := capsys.readouterr().out)
    assert told.endswith("pip install matplotlib\n")
    assert not (tmp_path / "small.png").exists()
    assert prune(saved, "--data", photographs, "--out", tmp_path / "small", "--export", "onnx") == 2
    assert "pip install onnx onnxscript" in capsys.readouterr().err


def test_of_a_checkpoint_with_two_networks_one_is_chosen(tmp_path: Path) -> None:
    models: list[Any] = [timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32) for _ in range(2)]
    raw, averaged = (m.state_dict() for m in models)
    torch.save({"state_dict": raw, "state_dict_ema": averaged}, tmp_path / "both.pth")
    name = "vit_tiny_patch16_224"
    for wanted, state in ((True, averaged), (False, raw)):
        found = networks.load(str(tmp_path / "both.pth"), arch=name, img_size=32, averaged=wanted)
        assert torch.equal(found.head.weight, state["head.weight"])
    with pytest.raises(hiap.ConfigError, match="choose by --averaged true or"):
        networks.load(str(tmp_path / "both.pth"), arch=name, img_size=32)


def test_a_folder_of_transformers(photographs: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=16, patch_size=4,
        num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "theirs")
    processor = {"image_mean": [0.5] * 3, "image_std": [0.4] * 3, "size": {"height": 16, "width": 16}, "resample": 2}
    (tmp_path / "theirs" / networks.PROCESSOR).write_text(json.dumps(processor))
    assert prune(tmp_path / "theirs", "--data", photographs, "--out", tmp_path / "small") == 0
    assert prune(tmp_path / "theirs", "--data", photographs, "--out", tmp_path / "other", "--img-size", 32) == 2
    known = {"mean": (0.5,) * 3, "std": (0.4,) * 3, "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash"}
    assert networks.load(str(tmp_path / "theirs")).pretrained_cfg == known
    assert {**hiap.load(tmp_path / "small").pretrained_cfg, **known} == hiap.load(tmp_path / "small").pretrained_cfg
    assert str(hiap.show(tmp_path / "small", tmp_path / "theirs"))
    with pytest.raises(ValueError, match="a folder of transformers, it seems"):
        hiap.show(tmp_path / "theirs")
    whole = networks.load(str(tmp_path / "theirs"))
    assert hiap.macs(hiap.load(tmp_path / "small"), (3, 16, 16)) <= 0.5 * hiap.macs(whole, (3, 16, 16))


@pytest.mark.parametrize("kind", ["Dinov2", "Dinov2WithRegisters"])
def test_a_dinov2_is_for_the_images_that_its_processor_makes(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_ratio": 2, "num_labels": 3}
    config = getattr(transformers, f"{kind}Config")(**sizes, image_size=32, patch_size=4)
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{kind}ForImageClassification")(config).eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.2)
    theirs.save_pretrained(tmp_path)
    processor = {"image_mean": [0.5] * 3, "image_std": [0.4] * 3, "size": {"shortest_edge": 20}, "do_center_crop": True}
    text = json.dumps({**processor, "crop_size": {"height": 16, "width": 16}})
    (tmp_path / networks.PROCESSOR).write_text(text)
    for given, side in ((None, 16), (24, 24), (32, 32)):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            model = networks.load(str(tmp_path), img_size=given)
        assert any("resampled for images of" in str(line.message) for line in told) is (side != 32)
        images = torch.randn(2, 3, side, side)
        with torch.no_grad():
            torch.testing.assert_close(model(images), theirs(images).logits, rtol=1e-4, atol=1e-5)


def test_trained_on_where_there_are_splits(saved: Path, splits: Path, tmp_path: Path, capsys: Any) -> None:
    assert prune(saved, "--data", splits, "--out", tmp_path / "small", "--epochs", 1, "--images", 16) == 0
    assert hiap.macs(hiap.load(tmp_path / "small"), (3, 16, 16)) <= 0.5 * hiap.macs(hiap.load(saved), (3, 16, 16))
    assert len(list((tmp_path / "small-run" / "runs").rglob("*.json"))) == 1
    other = hiap.load(saved)
    nn.init.normal_(other.head.weight)
    hiap.save(other, tmp_path / "other")
    assert prune(tmp_path / "other", "--data", splits, "--out", tmp_path / "small", "--epochs", 1, "--images", 16) == 2
    assert "small-run: holds the run of another network; delete it, or choose another --out" in capsys.readouterr().err


def test_a_network_of_any_patch_is_trained_on_and_a_slash_behind_the_folder_is_none(
    splits: Path, tmp_path: Path
) -> None:
    model = small_vit(**{**TINY, "img_size": 18, "patch_size": 6})
    nn.init.normal_(model.head.weight)
    model.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    hiap.save(model, tmp_path / "sixths")
    out = f"{tmp_path / 'small'}/"
    given = ["--epochs", 1, "--images", 16, "--export", "torch"]
    assert prune(tmp_path / "sixths", "--data", splits, "--out", out, *given) == 0
    assert {path.name for path in tmp_path.glob("small*")} == {"small", "small-run", "small.png", "small.pt2"}


def test_without_the_repository_training_on_is_refused_before_anything_is_pruned(
    saved: Path, splits: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(methods, "BASELINES", tmp_path / "nowhere")
    monkeypatch.setattr(hiap, "prune", None)
    assert prune(saved, "--data", splits, "--out", tmp_path / "small", "--epochs", 1) == 2
    assert "which a checkout of the repository has" in capsys.readouterr().err


@pytest.fixture
def splits(photographs: Path, tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    for split in ("train", "val"):
        (tmp_path / "data" / split).symlink_to(photographs)
    return tmp_path / "data"


def test_where_there_are_fewer_images_than_by_default_all_are_taken(splits: Path, photographs: Path) -> None:
    """A fifth of training images validates: 39 of 48 are left; of files, half are measured on."""
    model = answering()
    for folder, there in ((splits, 39), (photographs, 24)):
        found = pictures.read(str(folder), model, None, 512, 2000)
        assert sum(len(x) for x, _ in found.calibration) == there
        assert sum(len(x) for x, _ in pictures.read(str(folder), model, None, 5, 2000).calibration) == 5


def test_the_seed_says_which_images(splits: Path, photographs: Path) -> None:
    model = answering()
    for folder in (splits, photographs):
        one, same, other = (pictures.read(str(folder), model, 10, 512, 5, seed).calibration[0][0] for seed in (1, 1, 2))
        assert torch.equal(one, same)
        assert not torch.equal(one.sum((1, 2, 3)).sort()[0], other.sum((1, 2, 3)).sort()[0])


def test_the_interval_is_of_the_images_on_which_they_differ() -> None:
    dense, pruned = torch.tensor([1, 1, 0, 0] * 25).bool(), torch.tensor([1, 0, 0, 0] * 25).bool()
    difference, low, high = prune_cli.paired(prune_cli.Accuracy(dense, pruned))
    assert difference == pytest.approx(-25)
    assert (high - low) / 2 == pytest.approx(196 * (0.25 * 0.75 / 100) ** 0.5, rel=0.02)
    assert low < difference < high


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 0), (0, 0)])
@pytest.mark.parametrize(("n", "least"), [(1, 50), (10, 14), (100, 2)])
def test_few_images_settle_nothing(n: int, least: float, before: int, after: int) -> None:
    right = [torch.full((n,), bool(one)) for one in (before, after)]
    difference, low, high = prune_cli.paired(prune_cli.Accuracy(*right))
    assert low <= difference <= high
    assert high - low > least
    assert low >= -100
    assert high <= 100


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere", "--data", "{data}"], "no such network; expected timm's name"),
        (["{net}", "--data", "nowhere"], "--data nowhere: no such folder"),
        (["{net}", "--data", "{empty}"], "holds no images"),
        (["{net}", "--data", "{data}", "--export", "tflite"], "--export tflite: expected some of onnx,openvino,torch"),
        (["{net}", "--data", "{data}", "--target", "0.001"], "reachable"),
        (["{net}", "--data", "{data}", "--target", "50"], "a target of 50 MACs cannot be reached"),
        (["{net}", "--data", "{data}", "--target", "-1"], "expected a share"),
        (["{net}", "--data", "{data}", "--target", "0.5", "--target-params", "0.5"], "set one of them"),
        (["{net}", "--data", "{data}", "--target-latency", "0.5"], "latency: expected a table"),
        (["{net}", "--data", "{data}", "--images", "0"], "--images 0: expected 1 or more"),
        (
            ["{net}", "--data", "{data}", "--images", "25"],
            "--images 25: of 48 images in {data} half are kept to measure",
        ),
        (["{net}", "--data", "{data}/a", "--images", "17"], "--images 17: {data}/a holds 16; without --images all"),
        (["{net}", "--data", "{splits}", "--images", "40"], "--images 40: there are 39 training images in {splits}"),
        (["{net}", "--data", "{data}", "--epochs", "1"], "needs labels"),
        (["{net}", "--data", "{data}", "--arch", "vit_tiny_patch16_224"], "is for a file of weights"),
        (["{net}", "--data", "{data}", "--out", "{data}"], "expected a new folder"),
        (["{file}", "--data", "{data}"], "say which network"),
        (["vit_tiny_patch16_224", "--data", "{data}", "--weights", "nowhere.pth"], "no such file"),
        (["resnet18", "--data", "{data}", "--weights", "{file}"], "expected a timm VisionTransformer"),
        (["{net}"], "--data"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], line: str, saved: Path, photographs: Path, splits: Path, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "empty").mkdir()
    file = tmp_path / "weights.pth"
    torch.save({"fc.weight": torch.zeros(3, 4), "head.weight": torch.zeros(3, 4)}, file)
    places = {"net": saved, "data": photographs, "splits": splits, "empty": tmp_path / "empty", "file": file}
    given = [argument.format(**places) for argument in arguments]
    out = [] if "--out" in given else ["--out", str(tmp_path / "small")]
    assert prune(*given, *out) == 2
    told = capsys.readouterr().err.strip()
    assert line.format(**places) in told
    assert "\n" not in told
    assert not (tmp_path / "small").exists()


def folders(root: Path, names: Iterable[str], size: tuple[int, int] = (16, 16)) -> Path:
    """A folder for each class, of two images."""
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", size, (len(name), 100 * i, 7 + number)).save(root / name / f"{i}.png")
    return root


def labels_by_folder(root: Path, model: Any, **more: Any) -> dict[str, int] | str:
    """The number of each class as images are measured by it, or why they are not."""
    found = pictures.read(str(root), model, 1, 8, 1000, **more)
    if found.why:
        return found.why
    files = sorted(root.rglob("*.png"), key=lambda path: path.relative_to(root).as_posix().encode())
    order = list(range(len(files)))
    random.Random(0).shuffle(order)
    labels = torch.cat([labels for _, labels in [*found.calibration, *found.held_out] if labels is not None])
    return {files[i].parent.name: int(label) for i, label in zip(order, labels, strict=True)}


def test_classes_have_the_numbers_that_the_network_gives_them(tmp_path: Path) -> None:
    model = answering()
    model.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "label_names": ["c", "a", "b"]}
    assert labels_by_folder(folders(tmp_path / "all", "abc"), model) == {"a": 1, "b": 2, "c": 0}
    assert labels_by_folder(folders(tmp_path / "some", "ab"), model) == {"a": 1, "b": 2}
    why = labels_by_folder(folders(tmp_path / "other", "abd"), model)
    assert why == "class 'd' is none of the network's 3 (c, a, b ...)"
    splits = [folders(tmp_path / "both" / split, "abc") for split in ("train", "val")]
    assert "in another order" in pictures.read(str(splits[0].parent), model, 1, 8, 1000).why
    model.pretrained_cfg["label_names"] = ["Sea lion", "B", "A"]  # in other words, a person would say, the same
    assert labels_by_folder(folders(tmp_path / "spelt", ("a", "b", "sea_lion")), model) == {
        "a": 2,
        "b": 1,
        "sea_lion": 0,
    }
    model.pretrained_cfg["label_names"] = ["Hund", "Katze", "Maus"]
    with pytest.warns(
        UserWarning, match=r"names its classes \(Hund, .* otherwise than the folders \(a, b, c .* same order"
    ):
        assert labels_by_folder(tmp_path / "all", model) == {"a": 0, "b": 1, "c": 2}
    del model.pretrained_cfg["label_names"]
    assert labels_by_folder(tmp_path / "all", model) == {"a": 0, "b": 1, "c": 2}


def test_what_is_not_the_networks_classes_is_not_measured(tmp_path: Path) -> None:
    model = answering()
    model.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    numbered = folders(tmp_path / "numbered", ("1", "2", "10"))
    with pytest.raises(ConfigError, match="set --class-order to 'name'"):
        labels_by_folder(numbered, model)
    assert labels_by_folder(numbered, model, class_order="number") == {"1": 0, "2": 1, "10": 2}
    assert labels_by_folder(numbered, model, class_order="name") == {"1": 0, "10": 1, "2": 2}
    with pytest.raises(ConfigError, match="test_set and training_set are no classes"):
        labels_by_folder(folders(tmp_path / "splits", ("training_set/a", "test_set/a")), model)
    (tmp_path / "holes" / "c").mkdir(parents=True)
    assert labels_by_folder(folders(tmp_path / "holes", "ab"), model) == "class folder 'c' holds no image"
    linked = folders(tmp_path / "linked", "ab")
    (linked / "c").symlink_to(folders(tmp_path / "elsewhere", "x") / "x")
    assert pictures.read(str(linked), model, 1, 8, 1000).held_out, "a linked class counts"


def test_pixels_are_as_the_network_knows_them(tmp_path: Path) -> None:
    model = answering()
    root = folders(tmp_path / "wide", "abc", (48, 16))
    model.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0}
    for path in root.rglob("*.png"):
        image = np.zeros((16, 48, 3), np.uint8)
        image[:, :16] = 255
        Image.fromarray(image).save(path)
    seen = {}
    for mode in ("center", "squash"):
        model.pretrained_cfg["crop_mode"] = mode
        seen[mode] = pictures.read(str(root), model, 1, 8, 1).calibration[0][0].mean().item()
    assert seen["center"] == pytest.approx(-1, abs=0.01), "the middle is black"
    assert seen["squash"] == pytest.approx(2 / 3 - 1, abs=0.05), "a third is white"
    hiap.save(model, tmp_path / "net")
    assert hiap.load(tmp_path / "net").pretrained_cfg["crop_mode"] == "squash"
    with pytest.warns(UserWarning, match="does not say how its images are normalised"):
        pictures.read(str(root), answering(), 1, 8, 1)


def test_a_network_at_chance_is_told(photographs: Path, tmp_path: Path, capsys: Any) -> None:
    model = answering()
    model.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    hiap.save(model, tmp_path / "net")
    assert prune(tmp_path / "net", "--data", photographs, "--out", tmp_path / "small") == 0
    assert "which is not above chance" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("told", "known"),
    [
        ({"size": {"height": 224, "width": 224}}, ("bilinear", 1.0, "squash")),
        ({"size": 224}, ("bilinear", 1.0, "squash")),  # as older versions wrote it
        ({"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": True}, ("bilinear", 0.875, "center")),
        (
            {"size": {"height": 256}, "crop_size": {"height": 224}, "do_center_crop": True, "resample": 3},
            ("bicubic", 0.875, "squash"),
        ),
    ],
)
def test_a_processor_of_transformers_is_read(told: dict[str, Any], known: tuple[Any, ...], tmp_path: Path) -> None:
    file = tmp_path / networks.PROCESSOR
    file.write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3, **told}))
    found = networks._pixels(tmp_path)
    assert (found["interpolation"], found["crop_pct"], found["crop_mode"]) == known
    assert (found["mean"], found["std"]) == ((0.5,) * 3, (0.25,) * 3)
    for odd in ({"resample": 1}, {"rescale_factor": 1.0}, {"image_mean": None}):
        file.write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3, **told, **odd}))
        with pytest.raises(ConfigError, match="not a processor that is known"):
            networks._pixels(tmp_path)
