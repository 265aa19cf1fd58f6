"""A new classifier that starts as a logistic regression, rates by layer, networks that are behind their features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_vit, tiny
from timm.models.deit import VisionTransformerDistilled

import hiap
from hiap.backbones.groups import param_groups
from hiap.data import loader as data
from hiap.train import probe
from hiap.train import run as train
from hiap.train.config import Config, ConfigError
from hiap.train.phase import adamw, layer_scales
from hiap.train.record import Folders, Metrics, Score

SIZES = {"embed_dim": 32, "depth": 3}  # of ``small_vit``


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with a classifier of seven other classes."""
    folder = tmp_path_factory.mktemp("start") / "network"
    hiap.save(small_vit(num_classes=7), folder)
    return folder


def dense(start: Path, results: Path, **sections: Any) -> Config:
    model = {"weights": str(start), "img_size": 16, **SIZES, **sections.pop("model", {})}
    base = {"optim": {"epochs": 1, "lr": 1e-6}, **sections}
    return tiny(results, method="dense", **base).model_copy(
        update={"model": tiny(results).model.model_copy(update=model)}
    )


def test_a_probe_is_the_logistic_regression_on_the_features() -> None:
    generator = np.random.default_rng(0)
    centres, labels = generator.normal(size=(4, 12)), np.repeat(np.arange(4), 50)
    features = 3 + 5 * (centres[labels] + 0.5 * generator.normal(size=(200, 12)))
    found = probe.Probe(features, labels, 5)
    assert found.score(features, labels).top1 > 95
    head = torch.nn.Linear(12, 5)
    found.put(head)
    logits = head(torch.from_numpy(features).float())
    assert logits.argmax(1).tolist() == (features @ found.weight.T + found.bias).argmax(1).tolist()
    loss = torch.nn.functional.cross_entropy(logits.double(), torch.from_numpy(labels))
    assert loss.item() == pytest.approx(found.score(features, labels).loss, rel=1e-3)
    two = labels < 2
    assert probe.Probe(features[two], labels[two], 2).score(features[two], labels[two]).top1 > 95


def test_a_new_classifier_starts_as_its_probe(start: Path, tmp_path: Path) -> None:
    config = dense(start, tmp_path, model={"probe": True})
    record = train.run(config)
    assert record.metrics.dense == record.metrics.probe
    assert record.metrics.extracted
    assert record.metrics.dense
    assert record.metrics.dense.top1 > 50, "of ten classes"
    assert record.metrics.extracted.top1 == pytest.approx(record.metrics.dense.top1, abs=2), "the rate is next to none"
    model = hiap.load(start)
    model.reset_classifier(10)
    shown = config.data
    seen, labels = probe.features(model, data.evenly_spaced(shown, 16, "train", None, 100), torch.device("cpu"), "fp32")
    tested = probe.features(model, data.evenly_spaced(shown, 16, "test", None, 100), torch.device("cpu"), "fp32")
    assert probe.Probe(seen, labels, 10).score(*tested).top1 == pytest.approx(record.metrics.dense.top1, abs=0.5)


def test_a_network_that_is_behind_its_features_is_told_of(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = dense(start, tmp_path)
    record = train.run(config)
    assert record.metrics.dense is None, "an untrained classifier is not measured"
    assert record.metrics.probe
    assert record.metrics.probe.n == 445
    says = "a comparison that starts from it says little"
    assert says in capsys.readouterr().err
    train.run(tiny(tmp_path, method="hiap", model={"weights": f"run:{record.run_id}", **SIZES}, distill={"alpha": 0.5}))
    assert says in capsys.readouterr().err, "before pruning"


@pytest.mark.parametrize(("right", "behind"), [(range(0, 10, 2), False), (range(1, 10, 2), True)])
def test_both_are_compared_on_the_same_images(right: range, behind: bool, start: Path, tmp_path: Path) -> None:
    """A probe was measured on five of ten images, evenly spaced."""
    from hiap.train.evaluate import pack

    hits = torch.zeros(10, dtype=torch.bool)
    hits[data.spaced_indices(10, 5)] = not behind
    record = train.run(dense(start, tmp_path))
    metrics = Metrics(
        probe=Score(top1=60, loss=1, n=5),
        extracted=Score(top1=float(hits.float().mean() * 100), loss=1, n=10, correct=pack(hits)),
    )
    assert bool(probe.behind(record.model_copy(update={"metrics": metrics}))) is behind


def test_images_are_taken_evenly() -> None:
    assert data.spaced_indices(10, 3).tolist() == [0, 4, 9]
    assert data.spaced_indices(3, 10).tolist() == [0, 1, 2]


def test_both_classifiers_of_a_distilled_network_are_the_probe(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 4, "in_chans": 1, "embed_dim": 32, "depth": 2, "num_heads": 4}
    model = VisionTransformerDistilled(**sizes, num_classes=10)
    config = tiny(tmp_path, model={"probe": True}, data={"train_size": 300, "test_size": 300})
    probe.start_from(model, config, config.data, 10, torch.device("cpu"))
    seen, labels = probe.features(
        model, data.evenly_spaced(config.data, 16, "train", None, 100), torch.device("cpu"), "fp32"
    )
    images = torch.cat([x for x, _ in data.evenly_spaced(config.data, 16, "train", None, 100)])
    with torch.no_grad():
        answers = model.eval()(images)
    expected = probe.Probe(seen, labels, 10)
    assert (answers.argmax(1).numpy() == (seen @ expected.weight.T + expected.bias).argmax(1)).mean() > 0.99
    faster = tiny(tmp_path, optim={"lr": 1e-3, "head_lr": 1e-2})
    groups = adamw(param_groups(model, 1e-3, 0.05, 0.0), model, faster).param_groups
    second = set(model.head_dist.parameters())
    assert {group["rate_scale"] for group in groups if second & set(group["params"])} == {10.0}


def test_rates_fall_from_layer_to_layer_as_timms_do() -> None:
    from timm.optim import param_groups_layer_decay

    model = small_vit()
    ours = layer_scales(model, 0.5)
    names = {p: name for name, p in model.named_parameters()}
    for group in param_groups_layer_decay(model, layer_decay=0.5):
        for p in group["params"]:
            assert ours[names[p]] == group["lr_scale"]
    assert ours["head.weight"] == 1
    assert ours["blocks.2.attn.qkv.weight"] == 0.5
    assert ours["patch_embed.proj.weight"] == 0.5**4


def test_classifier_blocks_and_gates_have_rates_of_their_own(tmp_path: Path) -> None:
    config = tiny(tmp_path, optim={"lr": 1e-3, "head_lr": 1e-2, "layer_decay": 0.5})
    model = hiap.gate(small_vit())
    optimizer = adamw(param_groups(model, 1e-3, 0.05, 0.0, gate_lr_scale=7.0), model, config)
    names = {p: name for name, p in model.named_parameters()}
    rates = {names[p]: group["rate_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert set(rates) == set(names.values()), "each parameter once"
    assert rates["head.weight"] == rates["head.bias"] == 10
    assert rates["blocks.0.mlp.fc1.weight"] == 0.125
    assert {rate for name, rate in rates.items() if name.endswith(".logit")} == {7.0}
    decays = {names[p]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays["head.bias"] == 0 < decays["head.weight"]


@pytest.mark.parametrize(
    ("method", "weights", "message"),
    [
        ("dense", "", "model.probe is for method=dense with model.weights"),
        ("hiap", "x", "model.probe is for method=dense"),
    ],
)
def test_a_probe_of_nothing_is_refused(method: str, weights: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        train.run(tiny(tmp_path, method=method, model={"probe": True, "weights": weights}))


def test_a_classifier_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    hiap.save(small_vit(), tmp_path / "network")
    with pytest.raises(ConfigError, match="have a classifier of these 10 classes"):
        train.run(dense(tmp_path / "network", tmp_path / "out", model={"probe": True}))
    assert not Folders.of(tiny(tmp_path / "out")).runs.exists()
