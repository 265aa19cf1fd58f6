"""Anyone's weights: loaded right, or one line that names the cause and the cure."""

from __future__ import annotations

import argparse
import csv
import logging
import pathlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import small_vit
from safetensors.torch import save_file
from test_data import write_imagenet
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

import hiap
from hiap.data import loader as data
from hiap.formats import checkpoints
from hiap.train import run as train
from hiap.train.config import Config, ConfigError, from_dict
from hiap.train.record import Folders, read
from hiap.train.start import PUBLISHED, Start, build, published_top1

SIZES = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "num_heads": 4, "depth": 3, "mlp_ratio": 4}


def config(**model: Any) -> Config:
    return from_dict({"model": {**SIZES, **model}, "data": {"name": "digits"}})


def started(path: Path, channels: int = 1, classes: int = 10, **model: Any) -> Start:
    chosen = config(weights=str(path), **model)
    return build(chosen.model, channels, classes, Folders.of(chosen))


def weights(scale: float = 1.0, **changes: Any) -> dict[str, torch.Tensor]:
    return {k: scale * v for k, v in small_vit(**changes).state_dict().items()}


def same(model: Any, state: dict[str, torch.Tensor], *, but: str = "none") -> bool:
    return all(torch.equal(v, state[k]) for k, v in model.state_dict().items() if not k.startswith(but))


def test_a_training_checkpoint_brings_arguments_paths_and_scores(tmp_path: Path) -> None:
    state, path = weights(), tmp_path / "deit.pth"
    args = argparse.Namespace(lr=5e-4, output_dir=pathlib.PurePosixPath("/x"), device=torch.device("cpu"))
    optimizer = {"state": {}, "param_groups": [{"lr": 1e-3}]}
    torch.save({"model": state, "optimizer": optimizer, "args": args, "best": np.float64(81.2), "epoch": 3}, path)
    start = started(path)
    assert same(start.model, state)
    assert (start.adapted, start.new_head) == (["the weights under 'model'"], False)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_what_wrappers_put_before_the_names_is_taken_off(prefix: str, tmp_path: Path) -> None:
    state = weights()
    torch.save({"state_dict": {prefix + k: v for k, v in state.items()}}, tmp_path / "a.pth")
    start = started(tmp_path / "a.pth")
    assert same(start.model, state)
    assert "names without" in start.adapted[-1]


def prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + k: v for k, v in state.items()}


NESTED: dict[str, tuple[Any, str]] = {
    "Lightning": (
        lambda w: {"state_dict": prefixed("model.", w), "epoch": 3, "optimizer_states": [{"state": {0: w}}]},
        "the weights under 'state_dict'; names without the 'model.'",
    ),
    "Lightning, compiled": (
        lambda w: {"state_dict": prefixed("net._orig_mod.", w), "callbacks": {"x": {"best": torch.zeros(())}}},
        "names without the 'net.', '_orig_mod.'",
    ),
    "DINO's teacher": (
        lambda w: {"teacher": prefixed("backbone.", w) | {"head.mlp.0.weight": torch.zeros(2)}, "epoch": 3},
        "the weights under 'teacher'; names without the 'backbone.'.*not taken: teacher.head.mlp.0.weight",
    ),
    "layers compiled and wrapped one by one": (
        lambda w: {k.replace(".attn.", "._checkpoint_wrapped_module.attn."): v for k, v in w.items()},
        "names without the '_checkpoint_wrapped_module.'",
    ),
    "deep": (
        lambda w: {"a": {"b": {"c": prefixed("encoder.vit.", w)}}},
        "under 'a.b.c'; names without the 'encoder.vit.'",
    ),
    "the optimiser's copies": (
        lambda w: {"net": w, "optimizer": {"state": {"exp_avg": w, "exp_avg_sq": w}}},
        "the weights under 'net'",
    ),
    "nested by module": (
        lambda w: {"backbone": {"blocks": {k[7:]: v for k, v in w.items() if k.startswith("blocks.")},
                   **{k: v for k, v in w.items() if not k.startswith("blocks.")}}},
        "the weights under 'backbone'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("made", "told"), NESTED.values(), ids=NESTED.keys())
def test_weights_are_found_at_any_depth_and_behind_any_prefix(made: Any, told: str, tmp_path: Path) -> None:
    state = weights()
    torch.save(made(state), tmp_path / "a.pth")
    start = started(tmp_path / "a.pth")
    assert same(start.model, state)
    assert not start.new_head
    assert re.search(told, "; ".join(start.adapted)), start.adapted


def test_of_student_and_teacher_one_must_be_chosen(tmp_path: Path) -> None:
    student, teacher, path = weights(scale=2), weights(scale=3), tmp_path / "dino.pth"
    together = prefixed("module.backbone.", student), prefixed("backbone.", teacher)
    torch.save({"student": together[0], "teacher": together[1], "dino_loss": {"center": torch.zeros(3)}}, path)
    with pytest.raises(ConfigError, match=r"\('student.module.backbone'\) and averaged ones \('teacher.backbone'\)"):
        started(path)
    assert same(started(path, averaged=True).model, teacher)
    assert same(started(path, averaged=False).model, student)
    torch.save({"model": prefixed("student.", student) | prefixed("teacher.", teacher)}, path)
    assert same(started(path, averaged=True).model, teacher)


def test_of_two_networks_that_are_no_average_none_is_guessed(tmp_path: Path) -> None:
    path = tmp_path / "two.pth"
    torch.save(prefixed("image.", weights(scale=2)) | prefixed("depth.", weights(scale=3)), path)
    with pytest.raises(ConfigError, match=r"holds 2 networks \('image', 'depth'\); save the state dict") as error:
        started(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("keys", [("model", "model_ema"), ("state_dict", "state_dict_ema")])
def test_of_two_sets_of_weights_one_must_be_chosen(keys: tuple[str, str], tmp_path: Path) -> None:
    raw, averaged, path = weights(scale=2), weights(scale=3), tmp_path / "a.pth"
    torch.save(dict(zip(keys, (raw, averaged), strict=True)), path)
    with pytest.raises(ConfigError, match=r"'(model|state_dict)'\) and averaged ones.*model\.averaged=true or =false"):
        started(path)
    assert same(started(path, averaged=True).model, averaged)
    assert same(started(path, averaged=False).model, raw)
    torch.save({keys[0]: raw}, path)
    with pytest.raises(ConfigError, match="holds no averaged weights"):
        started(path, averaged=True)
    torch.save({keys[1]: raw}, path)
    assert same(started(path).model, raw)
    with pytest.raises(ConfigError, match="holds averaged weights alone"):
        started(path, averaged=False)


def test_code_is_not_unpickled_and_the_line_names_it(tmp_path: Path) -> None:
    torch.save({"model": weights(), "log": logging.Formatter()}, tmp_path / "a.pth")
    with pytest.raises(ConfigError, match=r"an object of logging\.Formatter.*save its state dict alone") as error:
        started(tmp_path / "a.pth")
    assert "\n" not in str(error.value)


def test_position_embeddings_are_resampled_as_timm_does(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "a.pth")
    start = started(tmp_path / "a.pth", img_size=24)
    expected = small_vit()
    expected.load_state_dict(torch.load(tmp_path / "a.pth"))
    expected.set_input_size(img_size=(24, 24))
    assert torch.allclose(start.model.pos_embed, expected.pos_embed, atol=1e-6)
    assert start.adapted == ["pos_embed resampled from (1, 17, 32) to (1, 37, 32)"]
    hiap.save(small_vit(), tmp_path / "net")
    start = started(tmp_path / "net", img_size=24)
    assert start.model(torch.zeros(1, 1, 24, 24)).shape == (1, 10)
    assert start.adapted == ["position embeddings resampled, from 16x16 images"]


def test_a_pruned_network_takes_another_size_too(tmp_path: Path) -> None:
    gated = hiap.gate(small_vit())
    hiap.save(hiap.extract(gated, target_macs=0.5), tmp_path / "net")
    start = started(tmp_path / "net", img_size=24, classes=7)
    assert start.model(torch.zeros(1, 1, 24, 24)).shape == (1, 7)
    assert start.new_head


def test_a_backbone_and_other_classes_get_a_new_classifier_which_depends_on_the_seed_alone(tmp_path: Path) -> None:
    backbone = {k: v for k, v in weights().items() if not k.startswith("head.")}
    save_file(backbone, tmp_path / "backbone.safetensors")
    torch.save(weights(num_classes=1000), tmp_path / "thousand.pth")
    hiap.save(small_vit(num_classes=1000), tmp_path / "net")
    for name, had in (("backbone.safetensors", "none"), ("thousand.pth", "1000"), ("net", "1000")):
        starts = [started(tmp_path / name) for _ in range(2)]
        assert starts[0].new_head
        assert starts[0].adapted == starts[1].adapted
        assert starts[0].adapted[-1].endswith(had)
        assert torch.equal(starts[0].model.head.weight, starts[1].model.head.weight)
        assert same(starts[0].model, weights(num_classes=10 if had == "none" else 1000), but="head.")


def test_colours_are_summed_for_grey_images(tmp_path: Path) -> None:
    state = weights(in_chans=3)
    torch.save(state, tmp_path / "a.pth")
    start = started(tmp_path / "a.pth")
    assert torch.allclose(start.model.patch_embed.proj.weight, state[checkpoints.FIRST_CONV].sum(1, keepdim=True))
    assert start.adapted == ["patch_embed.proj.weight from 3 to 1 channels"]


def test_published_names_are_translated(tmp_path: Path) -> None:
    """DINOv2's own file has a mask token, other names and 37 x 37 positions; a distilled DeiT two classifiers."""
    torch.manual_seed(0)
    theirs = VisionTransformer(img_size=56, patch_size=4, in_chans=1, num_classes=0, embed_dim=32, depth=3, num_heads=4,
                               init_values=1e-5)  # fmt: skip
    torch.save({**theirs.state_dict(), "mask_token": torch.zeros(1, 32)}, tmp_path / "dino.pth")
    ours = VisionTransformer(img_size=16, patch_size=4, in_chans=1, num_classes=10, embed_dim=32, depth=3, num_heads=4,
                             init_values=1e-5)  # fmt: skip
    loaded, done = checkpoints.read(tmp_path / "dino.pth")
    assert checkpoints.fill(ours, loaded, done)
    assert torch.equal(ours.blocks[2].ls1.gamma, theirs.blocks[2].ls1.gamma)
    small: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 1, "num_heads": 4}
    source, target = (VisionTransformerDistilled(num_classes=n, **small) for n in (1000, 10))
    target.pretrained_cfg = {"classifier": ("head", "head_dist")}
    done = []
    assert checkpoints.fill(target, source.state_dict(), done)
    assert done == ["a new classifier of 10 classes; the file has 1000"]


def test_other_networks_are_refused_in_one_line(tmp_path: Path) -> None:
    for name, state, message in (
        ("convnet", timm.create_model("resnet18", num_classes=10).state_dict(), "the file lacks"),
        ("wide", weights(embed_dim=64), "has in another size"),
        ("deep", weights(depth=4), "the file has blocks.3"),
        ("empty", {}, "holds no tensors"),
    ):
        torch.save(state, tmp_path / f"{name}.pth")
        with pytest.raises(ConfigError, match=message) as error:
            started(tmp_path / f"{name}.pth")
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 400 + len(str(tmp_path))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ConfigError, match="holds a list; expected a state dict"):
        started(tmp_path / "list.pth")


def test_a_pruning_run_does_not_learn_from_a_classifier_that_was_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(weights(num_classes=1000), tmp_path / "thousand.pth")
    sizes = [f"model.{k}={v}" for k, v in SIZES.items()]
    options = ["data.name=digits", "optim.epochs=1", "gates.lr=2", f"run.results={tmp_path}", "run.progress=false"]
    weights_of = f"model.weights={tmp_path / 'thousand.pth'}"
    assert train.main([*sizes, *options, weights_of, "method=hiap"]) == 2
    assert "a new classifier of 10 classes; the file has 1000, from which nothing can be" in capsys.readouterr().err
    assert train.main([*sizes, *options, weights_of, "method=dense"]) == 0
    (record,) = (tmp_path / "runs" / "manual").glob("*.json")
    assert read(record).adapted == ["a new classifier of 10 classes; the file has 1000"]
    hub = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **sizes: hub(name, **sizes))
    hub_run = ["model.name=deit_tiny_patch16_224", "model.img_size=32", "model.weights=hub"]
    assert train.main([*hub_run, *options, "method=hiap"]) == 2
    assert "a new classifier of 10 classes; the hub's has 1000" in capsys.readouterr().err


def test_a_named_network_needs_its_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["model.name=deit_small_patch16_224", "data.name=imagenet"]) == 2
    assert "model.img_size is missing: 'deit_small_patch16_224'" in capsys.readouterr().err


def test_images_are_shown_as_the_network_was_trained(tmp_path: Path) -> None:
    """By timm's numbers for it, which its file and the runs after it keep; else by the data set's."""
    write_imagenet(tmp_path / "imagenet")
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"  # trained with mean and standard deviation 0.5
    torch.save(timm.create_model(name, img_size=32, num_classes=3).state_dict(), tmp_path / "a.pth")
    chosen = {"model": {"name": name, "img_size": 32, "weights": str(tmp_path / "a.pth")}, "method": "dense",
              "data": {"name": "imagenet", "root": str(tmp_path / "imagenet")}, "optim": {"epochs": 1, "batch_size": 2},
              "run": {"results": str(tmp_path), "progress": False}}  # fmt: skip
    first = from_dict(chosen)
    running = train.Run(first, Folders.of(first), lambda: False)
    assert running.data.mean == running.data.std == (0.5, 0.5, 0.5)
    assert running.data.crop_pct == 0.9
    (shown, _), *_ = data.test_batches(running.data, 32, batch_size=4)
    (default, _), *_ = data.test_batches(first.data, 32, batch_size=4)
    assert shown.shape == default.shape
    assert not torch.allclose(shown, default)
    hiap.save(running.start, tmp_path / "net")
    assert hiap.load(tmp_path / "net").pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    chosen["model"] = {**chosen["model"], "weights": str(tmp_path / "net")}
    assert train.Run(from_dict(chosen), Folders.of(first), lambda: False).data == running.data
    own = from_dict({**chosen, "data": {**chosen["data"], "mean": (0.1, 0.2, 0.3)}})
    assert train.Run(own, Folders.of(own), lambda: False).data.mean == (0.1, 0.2, 0.3)
    random = from_dict({**chosen, "model": {**chosen["model"], "weights": ""}})
    assert train.Run(random, Folders.of(random), lambda: False).data.mean == timm.data.IMAGENET_DEFAULT_MEAN


def test_pixels_are_for_photographs(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["data.name=digits", "data.crop_pct=0.9", "distill.alpha=0", "gates.lr=1"]) == 2
    assert "data.crop_pct is for photographs" in capsys.readouterr().err


def test_a_start_far_below_its_published_accuracy_ends_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Random weights under the name of a trained network, as when classes stand in another order."""
    write_imagenet(tmp_path / "imagenet")
    name = "deit_tiny_patch16_224"
    torch.save(timm.create_model(name, num_classes=3).state_dict(), tmp_path / "a.pth")
    options = [f"model.name={name}", "model.img_size=224", f"model.weights={tmp_path / 'a.pth'}", "method=dense",
               "data.name=imagenet", f"data.root={tmp_path / 'imagenet'}", "optim.epochs=1", "optim.batch_size=2",
               f"run.results={tmp_path}", "run.progress=false"]  # fmt: skip
    assert train.main(options) == 2
    err = capsys.readouterr().err
    assert "timm publishes 72.17 % for deit_tiny_patch16_224" in err
    assert not list((tmp_path / "runs").rglob("*.json"))
    assert train.main([*options, "run.max_drop=100"]) == 0


def test_published_accuracies_are_of_networks_that_timm_knows() -> None:
    only = {"name": "deit_small_patch16_224", "weights": "hub"}
    assert published_top1(from_dict({"model": {**only, "img_size": 224}}).model) == 79.844
    assert published_top1(from_dict({"model": {**only, "img_size": 384}}).model) is None
    with PUBLISHED.open(newline="") as file:
        for row in csv.DictReader(file):
            cfg = timm.get_pretrained_cfg(row["model"])
            assert int(row["img_size"]) == cfg.input_size[-1], row["model"]
