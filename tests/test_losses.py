"""Losses and heads: every task can be pruned, and what a loss is not for is one line."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import small_vit
from test_extraction import counted_macs
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn

import hiap
from hiap import cost, ledger
from hiap.formats.store import StoreError

B, K = 6, 5
Z, LABELS, ONE = torch.randn(B, K), torch.arange(B) % K, torch.randn(B, 1)


@pytest.mark.parametrize(
    ("arguments", "options", "line"),
    [
        ((ONE, torch.randn(B, 1), ONE), {}, "logits (6, 1): expected (B, classes), 2 classes or more"),
        ((ONE, torch.zeros(B, dtype=torch.long)), {}, "task='values' for regression"),
        ((ONE[:, 0], torch.randn(B)), {}, "logits (6,)"),
        ((Z, torch.rand(B)), {}, "targets (6,) of floating point"),
        ((Z, LABELS[:, None]), {}, "targets (6, 1): expected labels (6,)"),
        ((Z, LABELS[:1]), {}, "targets (1,)"),
        ((Z, LABELS, torch.zeros(B, 10)), {}, "the teacher's logits are (6, 10), the student's (6, 5)"),
        ((Z, LABELS, ONE), {}, "the teacher's logits are (6, 1)"),
        ((Z, LABELS, torch.zeros(1, K)), {}, "the teacher's logits are (1, 5)"),
        ((Z, LABELS, (Z, Z)), {}, "the teacher's logits are tuple"),
        (((Z, Z), LABELS), {}, "two heads and no teacher"),
        (((Z, ONE), LABELS, Z), {}, "two heads of shapes (6, 5) and (6, 1)"),
        (({"logits": Z}, LABELS), {}, "logits are a dict"),
        ((Z, LABELS), {"task": "labels"}, "expected (B, labels) of both"),
        ((ONE[:, 0], torch.randn(B, 1)), {"task": "values"}, "expected one shape"),
        ((Z, LABELS), {"task": "boxes"}, "task 'boxes'"),
        ((Z, torch.ones(B, K)), {}, "targets that sum to 5 over the classes"),
        ((Z, torch.full((B, K), torch.nan)), {}, "targets that sum to nan"),
        ((Z, 2 * torch.ones(B, K)), {"task": "labels"}, "targets from 2 to 2; expected 0 to 1"),
        ((Z, LABELS + 1), {}, "labels from 1 to 5; expected 0 to 4"),
        ((Z, torch.full((B,), -100)), {}, "all labels are -100"),
        ((Z, LABELS, Z.softmax(-1)), {}, "the teacher's answers sum to 1 for each image; expected logits"),
        ((Z, LABELS, Z), {"alpha": 1.5}, "alpha 1.5: expected 0 to 1"),
        ((Z, LABELS, Z), {"temperature": 0}, "temperature 0: expected a number above 0"),
        ((Z, LABELS, Z), {"temperature": -1.0}, "temperature -1.0: expected a number above 0"),
        ((Z, LABELS, Z), {"label_smoothing": 1}, "label_smoothing 1: expected 0 to below 1"),
    ],
)
def test_a_loss_that_would_be_wrong_is_one_line(arguments: Any, options: Any, line: str) -> None:
    with pytest.raises(ValueError, match="distillation_loss: ") as error:
        hiap.distillation_loss(*arguments, **options)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_labels_of_any_whole_type_and_left_out_ones_count_alike() -> None:
    wanted = hiap.distillation_loss(Z, LABELS, Z + 1)
    assert all(torch.equal(hiap.distillation_loss(Z, LABELS.to(t), Z + 1), wanted) for t in (torch.int32, torch.uint8))
    some = LABELS.clone()
    some[1:] = -100
    assert torch.equal(hiap.distillation_loss(Z, some), hiap.distillation_loss(Z[:1], LABELS[:1]))


def test_several_labels_are_independent_coins() -> None:
    targets, teacher = torch.rand(B, K), torch.randn(B, K)
    assert hiap.distillation_loss(Z, targets, task="labels") == F.binary_cross_entropy_with_logits(Z, targets)
    p, q = (torch.sigmoid(z / 2) for z in (teacher, Z))
    kl = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    found = hiap.distillation_loss(Z, targets, teacher, task="labels", alpha=1.0, temperature=2.0)
    assert found.item() == pytest.approx(4 * kl.item(), rel=1e-4)
    assert hiap.distillation_loss(Z, targets, Z, task="labels", alpha=1.0).item() == pytest.approx(0, abs=1e-6)


def test_values_are_compared_as_they_are() -> None:
    y, teacher = torch.randn(B), torch.randn(B)
    found = hiap.distillation_loss(ONE[:, 0], y, teacher, task="values", alpha=0.25)
    wanted = 0.75 * F.mse_loss(ONE[:, 0], y) + 0.25 * F.mse_loss(ONE[:, 0], teacher)
    assert found.item() == pytest.approx(wanted.item())


def test_the_second_head_learns_from_the_teacher() -> None:
    first, second = torch.randn(B, K, requires_grad=True), torch.randn(B, K, requires_grad=True)
    found = hiap.distillation_loss((first, second), LABELS, Z, alpha=0.7)
    alone = 0.3 * F.cross_entropy(first, LABELS) + hiap.distillation_loss(second, LABELS, Z, alpha=1.0) * 0.7
    assert found.item() == pytest.approx(alone.item(), rel=1e-5)


def test_features_are_measured_by_their_spread() -> None:
    wanted = 3 * torch.randn(4, 7, 16) + 1
    assert hiap.feature_loss(wanted, wanted) == 0
    assert hiap.feature_loss(wanted.mean().expand_as(wanted), wanted).item() == pytest.approx(1, rel=1e-4)
    with pytest.raises(ValueError, match=r"features \(4, 7, 16\), the teacher's \(4, 16\)"):
        hiap.feature_loss(wanted, wanted.mean(1))


def mixed() -> nn.Module:
    return nn.Sequential(nn.LayerNorm(32), nn.Dropout(0.2), nn.Linear(32, 24, bias=False), nn.GELU(), nn.Linear(24, 3))


HEADS: dict[str, tuple[Any, int]] = {
    "other classes": (lambda: nn.Linear(32, 3), 3),
    "regression": (lambda: nn.Linear(32, 1), 1),
    "no bias": (lambda: nn.Linear(32, 3, bias=False), 3),
    "dropout and linear": (lambda: nn.Sequential(nn.Dropout(0.2), nn.Linear(32, 3)), 3),
    "alone in a sequence": (lambda: nn.Sequential(nn.Linear(32, 3)), 3),
    "layers": (mixed, 3),
    "none": (nn.Identity, 0),
}


@pytest.mark.parametrize("name", HEADS)
def test_whatever_head_is_there_is_counted_and_saved(name: str, tmp_path: Any) -> None:
    model: Any = small_vit()
    make, classes = HEADS[name]
    model.head = make()  # num_classes still says 10
    image = (1, 16, 16)
    assert hiap.macs(model, image) == counted_macs(model, image) == ledger.dense_macs(cost.dims_of(model))
    pruner = hiap.Pruner(model, steps=1, target_macs=0.5, multiple=1)
    small = hiap.extract(pruner.model, target_macs=0.5, multiple=1).eval()
    assert 0.48 < hiap.macs(small, image) / hiap.macs(model, image) <= 0.5
    assert hiap.macs(small, image, executed=True) == counted_macs(small, image)
    assert small.num_classes == classes
    hiap.save(small, tmp_path / "net")
    again = hiap.load(tmp_path / "net")
    images = torch.randn(2, *image)
    assert torch.equal(again(images), small(images))
    assert again.num_classes == classes
    assert name == "alone in a sequence" or str(again.head) == str(small.head)


def test_a_head_of_ones_own_is_counted_and_refused_by_name_when_it_is_saved(tmp_path: Any) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(32, 3), nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.a(x), self.b(x)], -1)

    model: Any = small_vit()
    model.head = Two()
    assert hiap.macs(model, (1, 16, 16)) == counted_macs(model, (1, 16, 16))
    small = hiap.extract(hiap.gate(model))
    with pytest.raises(hiap.UnsupportedModelError, match=r"head \(Two\)"):
        hiap.save(small, tmp_path / "net")


def test_a_network_that_does_not_pool_is_counted_token_by_token() -> None:
    model = small_vit(global_pool="")
    assert hiap.macs(model, (1, 16, 16)) == counted_macs(model, (1, 16, 16))


def test_a_backbone_learns_to_be_small_from_its_features() -> None:
    torch.manual_seed(0)
    model: Any = small_vit(num_classes=0)
    pruner = hiap.Pruner(model.train(), steps=12, target_macs=0.6, multiple=1)
    optimizer = torch.optim.AdamW(pruner.param_groups(lr=1e-3, gate_lr=0.6))
    for _ in range(12):
        images = torch.randn(8, 1, 16, 16)
        with torch.no_grad():
            wanted = model.forward_features(images)
        loss = hiap.feature_loss(pruner.model.forward_features(images), wanted) + pruner.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    small = pruner.finish().eval()
    assert small.num_classes == 0
    assert small(images).shape == (8, 32)
    final, maps = small.forward_intermediates(images, indices=[0, 2])
    assert final.shape == (8, 17, 32)
    assert [m.shape for m in maps] == [(8, 32, 4, 4)] * 2


def test_a_distilled_network_trains_both_heads() -> None:
    sizes = {"img_size": 16, "patch_size": 4, "in_chans": 1, "num_classes": 5, "embed_dim": 32, "depth": 2}
    model: Any = VisionTransformerDistilled(**sizes, num_heads=4)
    model.set_distilled_training(True)
    pruner = hiap.Pruner(model.train(), steps=2, target_macs=0.6)
    images = torch.randn(B, 1, 16, 16)
    (hiap.distillation_loss(pruner.model(images), LABELS, Z) + pruner.penalty()).backward()
    assert pruner.model.head_dist.weight.grad is not None
    small = hiap.extract(pruner.model, target_macs=0.6)
    assert small.distilled_training
    assert hiap.macs(small, (1, 16, 16), executed=True) == counted_macs(small, (1, 16, 16))


def test_all_that_is_no_weight_comes_back(tmp_path: Any) -> None:
    model: Any = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        embed_dim=32,
        depth=2,
        num_heads=4,
        num_classes=3,
        drop_rate=0.1,
        pos_drop_rate=0.15,
        patch_drop_rate=0.25,
        proj_drop_rate=0.2,
        attn_drop_rate=0.3,
        drop_path_rate=0.4,
        dynamic_img_size=True,
        dynamic_img_pad=True,
    )
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    model.blocks[1].attn.qkv.bias.requires_grad_(True)
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": ("a", "b", "c"), "label_descriptions": {"a": "A"}}
    trained = ["blocks.1.attn.qkv.bias", "head.bias", "head.weight"]
    gated = hiap.gate(model.bfloat16())
    small = hiap.extract(gated, multiple=1)
    hiap.save(small, tmp_path / "net")
    again = hiap.load(tmp_path / "net")
    for network in (gated, small, again):
        learns = [n for n, p in network.named_parameters() if p.requires_grad and not n.endswith("logit")]
        assert sorted(learns) == trained
        assert {p.dtype for n, p in network.named_parameters() if not n.endswith("logit")} == {torch.bfloat16}
        rates = [float(getattr(m, "p", getattr(m, "drop_prob", getattr(m, "prob", 0)))) for m in network.modules()]
        assert sorted(r for r in rates if r) == pytest.approx(
            sorted([0.1, 0.15, 0.25] + [0.2] * 6 + [0.3] * 2 + [0.4] * 2)
        )
        assert network.patch_embed.dynamic_img_pad
    images = torch.randn(2, 3, 30, 44, dtype=torch.bfloat16)
    assert torch.equal(again(images), small.eval()(images))
    config = timm.data.resolve_model_data_config(again)
    assert config["input_size"] == (3, 32, 32)
    assert again.pretrained_cfg["label_names"] == ["a", "b", "c"]
    assert again.pretrained_cfg["label_descriptions"] == {"a": "A"}
    hiap.save(again.requires_grad_(False), tmp_path / "net")
    assert all(p.requires_grad for p in hiap.load(tmp_path / "net").parameters()), "a network that is only run"


def test_a_damaged_description_is_still_one_line(tmp_path: Any) -> None:
    model: Any = small_vit()
    model.head.requires_grad_(False)
    hiap.save(model, tmp_path / "net")
    path = tmp_path / "net" / "architecture.json"
    path.write_text(path.read_text().replace('"head.weight"', '"head.nothing"'))
    with pytest.raises(StoreError, match="do not fit") as error:
        hiap.load(tmp_path / "net")
    assert "\n" not in str(error.value)
