"""Least squares after a cut: exact where what is left can give all, no worse elsewhere, nothing else changed."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import scatter_logits, small_vit
from torch import nn

import hiap
from baselines import taylor
from hiap.beyond import correction
from hiap.beyond import images as calibration
from hiap.gated_vit import harden_to, masks
from hiap.train import run as train
from hiap.train.config import ConfigError, from_dict, merge


def images(batches: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(64, 1, 16, 16, generator=generator) for _ in range(batches)]


def distance(one: Any, other: Any) -> float:
    """Mean square difference of the last block's tokens, on images that nothing was fitted to."""
    x = torch.randn(64, 1, 16, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return float((one.forward_features(x) - other.forward_features(x)).square().mean())


def cut(model: Any, seed: int = 0, **options: Any) -> Any:
    gated = hiap.gate(model)
    scatter_logits(gated, seed)
    return hiap.extract(gated, **options)


def test_a_unit_that_others_can_replace_is_replaced_to_the_last_digit() -> None:
    dense: Any = small_vit()
    with torch.no_grad():
        for block in dense.blocks:  # neuron 5 does what neuron 3 does, and value dimension 1 of head 0 what 0 does
            block.mlp.fc1.weight[5], block.mlp.fc1.bias[5] = block.mlp.fc1.weight[3], block.mlp.fc1.bias[3]
            values = block.attn.qkv.weight[64:], block.attn.qkv.bias[64:]
            values[0][1], values[1][1] = values[0][0], values[1][0]
    gated = hiap.gate(dense)
    kept = masks(gated)
    for mask in kept:
        mask.neurons[5], mask.dims[0, 1] = False, False
    harden_to(gated, kept)
    small = hiap.extract(gated)
    far = distance(small, dense)
    near = distance(hiap.correct(small, dense, images(), ridge=1e-9), dense)
    assert near < 1e-6 * far


@pytest.mark.parametrize(("noise", "expected"), [(0.0, 1e-4), (30.0, 1.0)])
def test_a_ridge_is_chosen_by_what_was_not_fitted(noise: float, expected: float) -> None:
    """Against a fit of the first four fifths of each batch by hand: small where images say much, large where little."""
    torch.manual_seed(0)
    linear = nn.Linear(6, 3)
    solve, fitted, apart = correction._LeastSquares(linear), [], []
    for _ in range(2):
        x = torch.randn(10, 1, 6)
        missing = x[..., :3] + noise * torch.randn(10, 1, 3)
        solve.take(x)
        solve.add(missing, None, choose=True)
        rows = torch.cat([torch.cat([x, torch.ones(10, 1, 1)], 2), missing], 2).double().squeeze(1)
        fitted.append(rows[:8]), apart.append(rows[8:])
    (x, y), (u, v) = (torch.cat(rows).split([7, 3], 1) for rows in (fitted, apart))

    def error(ridge: float) -> float:
        strength = torch.zeros(7, dtype=torch.double)
        strength[:6] = ridge * (x.T @ x).diagonal()[:6].mean()
        return float((u @ torch.linalg.solve(x.T @ x + strength.diag(), x.T @ y) - v).square().sum())

    assert solve.best() == min(correction.RIDGES, key=error) == expected


def test_a_chosen_ridge_replaces_what_others_can_and_one_image_is_fitted_as_by_default() -> None:
    dense = small_vit()
    small, other = cut(dense), cut(dense)
    far = distance(small, dense)
    assert distance(hiap.correct(small, dense, images(), ridge=None), dense) < 0.7 * far
    hiap.correct(small := cut(dense), dense, [images()[0][:1]], ridge=None)
    hiap.correct(other, dense, [images()[0][:1]])
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in small.state_dict().items())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("layer_scale", [None, 0.1])
def test_a_cut_network_comes_nearer_and_keeps_its_size(seed: int, layer_scale: float | None) -> None:
    dense = small_vit(init_values=layer_scale, depth=4)
    small = cut(dense, seed)
    state, spent = copy.deepcopy(small.state_dict()), hiap.macs(small, (1, 16, 16))
    far = distance(small, dense)
    assert hiap.correct(small, dense, images()) is small
    assert distance(small, dense) < 0.7 * far
    assert hiap.macs(small, (1, 16, 16)) == spent
    changed = {k for k, v in small.state_dict().items() if not torch.equal(v, state[k])}
    assert changed
    assert all(".proj." in k or ".fc2." in k or k.endswith("_constant") for k in changed)


def test_a_cut_without_loss_is_left_alone() -> None:
    gated = hiap.gate(small_vit()).eval()
    scatter_logits(gated)
    for _, gate in hiap.named_gates(gated):
        gate.logit.data = gate.logit.sign() * 30  # open or closed in every sample
    small = hiap.extract(gated)
    state = copy.deepcopy(small.state_dict())
    hiap.correct(small, gated, images())
    assert all(torch.allclose(v, state[k], atol=1e-5) for k, v in small.state_dict().items())


def test_modes_and_the_network_before_are_as_they_were() -> None:
    dense = small_vit()
    state = copy.deepcopy(dense.state_dict())
    small = cut(dense).train()
    hiap.correct(small, dense.train(), images(1))
    assert small.training
    assert dense.training
    assert all(torch.equal(v, state[k]) for k, v in dense.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for n in (small, dense) for m in n.modules())


def test_bad_input_is_one_line() -> None:
    dense = small_vit()
    with pytest.raises(ValueError, match="no images; expected at least one batch"):
        hiap.correct(cut(dense), dense, [])
    with pytest.raises(ValueError, match="3 blocks, but 2 before the cut"):
        hiap.correct(cut(dense), small_vit(depth=2), images())
    for ridge in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="expected a number above 0, or None"):
            hiap.correct(cut(dense), dense, images(), ridge=ridge)


def test_a_network_that_was_trained_since_is_corrected_on_what_its_own_blocks_get() -> None:
    dense = small_vit()
    later = cut(dense)
    nn.init.normal_(later.pos_embed, std=0.3)  # as after training
    known = copy.deepcopy(later)
    known.pos_embed.data = dense.pos_embed.data  # what it would be corrected as if its own stream were not looked at
    hiap.correct(known, dense, images())
    known.pos_embed.data = later.pos_embed.data
    before = distance(later, dense)
    hiap.correct(later, dense, images())
    assert distance(later, dense) < min(before, distance(known, dense))


def test_what_cannot_be_solved_is_one_line_and_leaves_modes_and_numbers_alone() -> None:
    dense = small_vit().train()
    with pytest.raises(ValueError, match=r"correct: tokens of \(17, 64\) and \(17, 32\) before the first block"):
        hiap.correct(cut(small_vit(embed_dim=64)), dense, images())
    assert dense.training
    first, last = images()[0], torch.full_like(images()[0], torch.nan)
    for given in ([last], [first, last]):
        small = cut(dense)
        with pytest.raises(ValueError, match="not finite"):
            hiap.correct(small, dense, given)
        assert all(p.isfinite().all() for p in small.parameters())


def test_two_precisions_are_refused() -> None:
    before = small_vit().eval()
    small = hiap.prune(before, images(), target_macs=0.6)
    with pytest.raises(ValueError, match="small is in float32, before in bfloat16; expected one precision"):
        hiap.correct(small, before.bfloat16(), images())


def test_a_network_that_had_lost_branches_before_is_cut_and_corrected() -> None:
    gated = hiap.gate(small_vit())
    scatter_logits(gated)
    for i, block in enumerate(gated.blocks):
        block.mlp.block_gate.logit.data.fill_(1 if i else -1)
    gated.blocks[1].attn.head_gate.logit.data.fill_(-1)
    first = hiap.extract(gated).eval()
    second = hiap.Pruner(first, steps=1, target_macs=0.6).finish().eval()
    apart = distance(second, first)
    assert distance(hiap.correct(second, first, images()), first) < 0.9 * apart
    with pytest.raises(ValueError, match="are the arguments the other way round"):
        hiap.correct(first, second, images())


def test_a_ridge_that_is_too_small_is_one_line() -> None:
    model, few = small_vit(), images(1)[0][:1]
    nn.init.normal_(model.head.weight)
    with pytest.raises(ValueError, match=r"ridge 1e-30: too small for these images; expected more of them, or 0\.01"):
        hiap.prune(model, few, target_macs=0.5, ridge=1e-30)


def test_images_that_are_hardly_meant_are_told_and_such_without_a_picture_refused() -> None:
    dense = small_vit()
    dense.pretrained_cfg = {"mean": (0.5,), "std": (0.5,)}
    small = cut(dense)
    before = copy.deepcopy(small.state_dict())
    with pytest.warns(UserWarning, match="images: values from .* normalised by the network's mean and std"):
        hiap.correct(copy.deepcopy(small), dense, [255 * x.sigmoid() for x in images()])
    with pytest.raises(ValueError, match="images: all values are 0"):
        hiap.correct(small, dense, [torch.zeros_like(x) for x in images()])
    assert all(torch.equal(before[name], value) for name, value in small.state_dict().items())


def test_of_an_endless_loader_some_thousand_images_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "MOST", 100)
    loader = ((torch.randn(16, 1, 16, 16), None) for _ in itertools.count())
    with pytest.warns(UserWarning, match="images: more than 100; those behind are not looked at"):
        assert sum(len(x) for x, _ in calibration.batches(loader, small_vit())) == 96


def test_images_that_it_does_not_take_are_one_line_and_leave_a_network_that_runs() -> None:
    dense, labels = small_vit(), torch.zeros(len(images()[0]))
    small = cut(dense)
    for given in (["folder"], [images()[0][:, :, :8]], [images()[0], None]):
        with pytest.raises(ValueError, match="images: expected numbers"):
            hiap.correct(small, dense, given)
        assert small(images()[0]).isfinite().all()
    one = hiap.correct(cut(dense), dense, images()[:1])(images()[0])
    for same in ([(images()[0], labels)], images()[0]):  # a loader's pairs, one tensor
        assert torch.equal(hiap.correct(cut(dense), dense, same)(images()[0]), one)


def test_too_few_images_are_told() -> None:
    dense = small_vit()
    with pytest.warns(UserWarning, match=r"correct: 17 tokens in all are too few to tell the \d+ units"):
        hiap.correct(cut(dense), dense, [images()[0][:1]])


@pytest.mark.parametrize("method", ["uniform", "taylor", "obs", "amp", "snapvit", "peer", "vit_slim", "hiap"])
def test_every_method_can_be_corrected_and_is_billed_for_it(method: str, tmp_path: Path) -> None:
    def made(correct: int) -> Any:
        start = small_vit()
        nn.init.normal_(start.head.weight)
        hiap.save(start, tmp_path / "net")
        values = {"method": method, "data": {"name": "digits"}, "optim": {"epochs": 2, "batch_size": 64},
                  "model": {"img_size": 16, "weights": str(tmp_path / "net")}, "search": {"epochs": 1},
                  "budget": {"target_macs": 0.7, "correct": correct}, "gates": {"lr": 2.0},
                  "run": {"results": str(tmp_path), "progress": False, "tensorboard": False}}  # fmt: skip
        return train.run(from_dict(values))

    without, corrected = made(0), made(128)
    assert corrected.metrics.extracted.loss != without.metrics.extracted.loss
    assert sum(s.images for s in corrected.stages) - sum(s.images for s in without.stages) == 128


def test_a_cut_can_be_measured_before_any_training(tmp_path: Path) -> None:
    """With no epochs a run ends right after the cut; its bill is what the ranking looked at."""
    hiap.save(small_vit(), tmp_path / "net")
    made = {}
    for correct in (0, 128):
        values = {"method": "taylor", "data": {"name": "digits"}, "optim": {"epochs": 0, "batch_size": 64},
                  "model": {"img_size": 16, "weights": str(tmp_path / "net")},
                  "budget": {"target_macs": 0.5, "correct": correct},
                  "run": {"results": str(tmp_path), "progress": False, "tensorboard": False}}  # fmt: skip
        made[correct] = train.run(from_dict(values))
    scored = taylor.BATCHES * 64
    assert [(s.epochs, s.steps, s.images) for s in made[0].stages] == [(0, 0, scored)]
    assert [(s.epochs, s.steps, s.images) for s in made[128].stages] == [(0, 0, scored + 128)]
    assert made[0].size.macs == made[128].size.macs <= 0.5 * made[0].size.dense_macs
    assert made[0].metrics.extracted.loss != made[128].metrics.extracted.loss
    small, start = (hiap.load(tmp_path / "work" / "manual" / made[0].run_id / "model"), small_vit())
    assert torch.equal(small.head.weight, start.head.weight)


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "hiap"},
        {"method": "dense", "budget": {"target_macs": None}},
        {"method": "vit_slim"},
        {"budget": {"rounds": 2}},
        {"budget": {"noise": True}},
    ],
)
def test_what_must_train_cannot_go_without_epochs(changes: dict[str, Any], tmp_path: Path) -> None:
    hiap.save(small_vit(), tmp_path / "net")
    values = {"method": "uniform", "data": {"name": "digits"}, "optim": {"epochs": 0},
              "model": {"img_size": 16, "weights": str(tmp_path / "net")},
              "run": {"results": str(tmp_path)}}  # fmt: skip
    changed = merge(values, merge({"budget": {"target_macs": 0.5}}, changes))
    with pytest.raises(ConfigError, match=r"optim\.epochs 0"):
        train.run(from_dict(changed))
    assert not (tmp_path / "runs").exists()
