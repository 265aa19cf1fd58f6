"""A teacher that is not the start: any network that knows the classes, shown images in its own way, billed as it is."""

# ruff: noqa: F811  (fixtures of another file)

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import tiny
from test_train import dense, hiap_run, kill_at, killed_at, same_result, weights  # noqa: F401

import hiap
from hiap.data import loader as data
from hiap.train import run as train
from hiap.train import teachers
from hiap.train.config import Config, ConfigError, ModelConfig, check_needs
from hiap.train.record import Folders
from slurm import prefetch

CNN = "test_resnet"


def cnn(path: Path, classes: int = 10) -> dict[str, Any]:
    """Options for a small CNN of that many classes, its weights saved at ``path``."""
    torch.manual_seed(0)
    torch.save(timm.create_model(CNN, in_chans=1, num_classes=classes).state_dict(), path)
    return {"teacher": CNN, "teacher_weights": str(path), "alpha": 0.5}


def built(config: Config, channels: int = 1) -> teachers.Teacher:
    return teachers.teacher(config, data.pixels(config.data), channels, 10, Folders.of(config))


def test_the_start_by_its_name_teaches_as_the_start(dense: Config) -> None:
    start = f"run:{dense.run_id}"
    unnamed = hiap_run(dense, optim={"epochs": 2})
    named = hiap_run(dense, optim={"epochs": 2}, distill={"teacher": start})
    assert unnamed.run_id != named.run_id
    first, second = train.run(unnamed), train.run(named)
    assert [log.loss for log in first.epochs] == pytest.approx([log.loss for log in second.epochs], rel=1e-5)
    assert first.stages[0].train_macs == second.stages[0].train_macs


def test_a_cnn_teaches_is_billed_and_the_run_resumes_bit_for_bit(
    dense: Config,
    tmp_path: Path,
    kill_at: Any,
) -> None:
    config = hiap_run(dense, optim={"epochs": 2}, distill=cnn(tmp_path / "cnn.pth"))
    undisturbed, reference = train.run(config), weights(config)
    macs = built(config).macs((1, 16, 16))
    assert macs > 1000
    (bill,) = undisturbed.stages
    assert bill.train_macs == (3 * undisturbed.size.dense_macs + macs) * bill.images
    disturbed, record = killed_at((7,), config, kill_at, "cnn")
    same_result(undisturbed, record)
    assert all(torch.equal(reference[k], v) for k, v in weights(disturbed).items())


def test_a_dense_run_learns_from_a_teacher_only_if_it_is_named(dense: Config, tmp_path: Path) -> None:
    results = dense.run.results
    alone, also = (train.run(tiny(results, distill={"alpha": alpha})) for alpha in (0.0, 0.7))
    assert alone.epochs == also.epochs, "as ever"
    taught = train.run(tiny(results, distill={"teacher": f"run:{dense.run_id}", "alpha": 0.9, "precompute": True}))
    assert taught.epochs[-1].loss != alone.epochs[-1].loss
    assert taught.metrics.extracted.top1 > alone.metrics.extracted.top1, "a good teacher and two epochs"


def test_a_teacher_sees_images_normalised_as_it_was_trained() -> None:
    config = tiny("x", data={"name": "cifar10", "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]})
    network = timm.create_model(CNN, num_classes=10).eval()
    network.pretrained_cfg = {**network.pretrained_cfg, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.1)}
    pixels = torch.rand(2, 3, 32, 32)

    def normalised(mean: Any, std: Any) -> torch.Tensor:
        return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    seen = data.pixels(config.data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teachers, "_of_timm", lambda *_: (network, [], False))
        named = config.model_copy(update={"distill": config.distill.model_copy(update={"teacher": CNN})})
        teacher = teachers.teacher(named, seen, 3, 10, Folders.of(config))
    out = teacher(normalised(seen["mean"], seen["std"]))
    torch.testing.assert_close(out, network(normalised((0.5, 0.4, 0.3), (0.2, 0.3, 0.1))), rtol=1e-4, atol=1e-4)
    assert not out.requires_grad
    assert not teacher.training


def test_a_vit_teacher_is_built_for_the_students_size_and_may_be_a_saved_folder(tmp_path: Path) -> None:
    vit = timm.create_model("test_vit", img_size=32, in_chans=1, num_classes=10)
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    hiap.save(vit, tmp_path / "vit")
    images = torch.randn(2, 1, 32, 32)
    for distill in (
        {"teacher": "test_vit", "teacher_weights": str(tmp_path / "vit.pth")},
        {"teacher": str(tmp_path / "vit")},
    ):
        teacher = built(tiny("x", model={"img_size": 32}, distill={"alpha": 0.5, **distill}))
        torch.testing.assert_close(teacher(images), vit.eval()(images))
    scratch = {"img_size": 32, "weights": str(tmp_path / "vit"), "scratch": True}
    teacher = built(tiny("x", model=scratch, distill={"alpha": 0.5, "teacher": str(tmp_path / "vit")}))
    torch.testing.assert_close(teacher(images), vit.eval()(images), msg="the student begins anew, its teacher does not")
    named = ModelConfig(name="deit_tiny_patch16_224", img_size=32)
    config = tiny("x", distill={"alpha": 0.5, "teacher": str(tmp_path / "vit")}).model_copy(update={"model": named})
    torch.testing.assert_close(built(config)(images), vit.eval()(images), msg="another network than the student")


BAD = {
    "unknown": ({"teacher": "resnet5000"}, "expected a timm model, 'run:<run_id>' or a folder"),
    "no such run": ({"teacher": "run:dense-0"}, "no finished run of that id"),
    "no such file": (
        {"teacher": CNN, "teacher_weights": "/no/where.pth"},
        "'/no/where.pth': no such file; expected 'hub'",
    ),
    "no network": ({"teacher": CNN}, "cannot be made or fetched .* offline, set distill.teacher_weights"),
    "alpha 0": ({"teacher": CNN, "alpha": 0.0}, "teaches nothing at distill.alpha=0"),
    "weights alone": ({"teacher_weights": "x.pth"}, "is for a timm model in distill.teacher, which is empty"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_teacher_that_cannot_be_had_is_one_line_and_leaves_nothing(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(timm.models._builder, "load_pretrained", lambda *_, **__: (_ for _ in ()).throw(OSError()))
    distill, message = BAD[what]
    with pytest.raises(ConfigError, match=message) as told:
        train.run(tiny(tmp_path, distill={"alpha": 0.5, **distill}))
    assert "\n" not in str(told.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path) -> None:
    config = tiny(tmp_path, distill=cnn(tmp_path / "cnn.pth", classes=7))
    with pytest.raises(ConfigError, match="no classifier of the data's 10 classes"):
        built(config)


def test_a_teacher_is_enough_to_learn_from_and_is_fetched_beforehand(tmp_path: Path) -> None:
    sections: dict[str, Any] = {"method": "hiap", "distill": {"alpha": 0.5, "teacher": "regnety_160.deit_in1k"}}
    config = tiny(tmp_path, **sections)
    check_needs(config)
    assert prefetch.hub_names([config, tiny(tmp_path)]) == ["regnety_160.deit_in1k"]
    local = tiny(tmp_path, **{**sections, "distill": {**sections["distill"], "teacher_weights": "a.pth"}})
    assert prefetch.hub_names([local, tiny(tmp_path, distill={"teacher": "run:x"})]) == []
