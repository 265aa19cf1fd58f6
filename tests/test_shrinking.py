"""Cuts while gates train: the same function, the same next step, the same bits after a kill, and an honest count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import small_vit, tiny
from test_distributed import record_of, same_curve, together
from test_train import kill_at, killed_at, same_result, weights  # noqa: F401

import hiap
from hiap import cost
from hiap.beyond.shrinking import carry_over
from hiap.budget.prices import hardened_macs
from hiap.budget.selection import drop_removed
from hiap.gated_layers import gates_with_masks
from hiap.gates import CERTAIN
from hiap.options import ConfigError
from hiap.pruner import PrunerError
from hiap.train import run as train
from hiap.train.config import Config, merge
from hiap.train.record import Folders

IMAGE = (1, 16, 16)
FAMILIES = {
    "timm's": small_vit,
    "rotary, SwiGLU and a norm inside": lambda: timm.create_model(
        "eva02_tiny_patch14_224", img_size=28, in_chans=1, num_classes=10, depth=2, embed_dim=32, num_heads=4
    ).eval(),
    "relative positions": lambda: timm.create_model(
        "beit_base_patch16_224", img_size=32, in_chans=1, num_classes=10, depth=2, embed_dim=32, num_heads=4
    ).eval(),
}


def pruner_of(model: Any, **options: Any) -> hiap.Pruner:
    return hiap.Pruner(model, steps=50, shrink=hiap.Shrink(below=0.01, after=1), **options)


@torch.no_grad()
def close_some(gated: Any, logit: float = -6.0) -> None:
    """Two heads by their gates, one by its dimensions, neurons here and there, one whole FFN, a whole attention."""
    first, second = gated.blocks[0], gated.blocks[1]
    first.attn.head_gate.logit[[0, 2]] = logit
    first.attn.value_gate.logit[3] = 2 * logit
    first.mlp.neuron_gate.logit[::3] = logit
    first.mlp.neuron_gate.logit[1] = -1.0  # closed, and not with certainty
    second.mlp.block_gate.logit.fill_(logit)
    second.attn.head_gate.logit.fill_(logit)


def optimizer_of(pruner: hiap.Pruner) -> torch.optim.Optimizer:
    return torch.optim.AdamW(pruner.param_groups(lr=1e-2, weight_decay=0.05, gate_lr=0.05))


def step(pruner: hiap.Pruner, optimizer: torch.optim.Optimizer, seed: int) -> None:
    images = torch.randn(8, 1, *pruner.model.patch_embed.img_size, generator=torch.Generator().manual_seed(seed))
    images = images.to(pruner.model.head.weight.dtype)
    torch.manual_seed(seed)
    loss = torch.nn.functional.cross_entropy(pruner.model(images), torch.arange(8) % 10) + pruner.penalty()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    pruner.step()


def begun(model: Any, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[hiap.Pruner, torch.optim.Optimizer]:
    """A phase a few steps old, in which some gates have closed."""
    pruner = pruner_of(model, **options)
    pruner.model.to(dtype)
    optimizer = optimizer_of(pruner)
    pruner.model.train()
    for seed in range(3):
        step(pruner, optimizer, seed)
    close_some(pruner.model)
    return pruner, optimizer


@pytest.mark.parametrize(("family", "dims"), [*((family, "v") for family in FAMILIES), ("timm's", "qkv")])
def test_a_cut_leaves_the_function_and_the_counts(family: str, dims: str) -> None:
    pruner, optimizer = begun(FAMILIES[family](), gates=hiap.GateConfig(dims=dims))  # type: ignore[arg-type]
    model = pruner.model.eval()
    image = cost.image_of(model)
    images = torch.randn(4, *image)
    before, dense = model(images), hiap.macs(model, image)
    expected, hardened, summary = cost.expected_cost(model), hardened_macs(model), pruner.summary()
    mass = sum(float(torch.sigmoid(g.logit.detach()[g.logit < -5]).sum()) for _, g in hiap.named_gates(model))
    assert pruner.cut(optimizer)
    assert torch.allclose(model(images), before, atol=1e-5)
    after = cost.expected_cost(model)
    # A unit costs at most what its block does, with the chance that it had.
    most = {"macro": expected.dense_macro, "micro": expected.dense_micro, "macs": dense}
    for name, all_blocks in most.items():
        lost = float((getattr(expected, name) - getattr(after, name)).detach())
        assert -1e-6 * all_blocks <= lost <= mass * all_blocks / len(model.blocks)
    assert (after.dense_macro, after.dense_micro) == (expected.dense_macro, expected.dense_micro)
    assert hardened_macs(model) == hardened
    assert str(pruner.summary()) == str(summary)
    attn = model.blocks[0].attn
    assert attn.left.tolist() == [1]
    assert attn.qkv.out_features == 3 * attn.head_dim
    assert model.blocks[1].attn.qkv is None
    assert model.blocks[1].mlp.fc1 is None
    small = hiap.extract(model)
    assert torch.allclose(small(images), before, atol=1e-5)
    assert hiap.macs(small, image) == hardened < hiap.macs(model, image) < dense
    assert not hasattr(small, "dense_dims")
    assert not hasattr(small, "dense_param_prices")
    again = hiap.extract(model, target_macs=0.99)
    assert hiap.macs(again, image) <= hiap.macs(model, image), "what is gone does not come back"


@pytest.mark.parametrize("bias", ["gated", "kept"])
def test_the_step_after_a_cut_is_that_of_the_uncut_network_with_those_units_held_closed(bias: str) -> None:
    gates = hiap.GateConfig(attn_bias=bias)  # type: ignore[arg-type]
    # In double precision: a bias of K has no gradient but for rounding, of which Adam would make steps.
    cut, optimizer = begun(small_vit(), torch.float64, target_macs=0.5, gates=gates)
    whole, other = begun(small_vit(), torch.float64, target_macs=0.5, gates=gates)
    changes = {change.name: change for change in cut.cut(optimizer)}
    gone = cut.shrink.gone()
    for seed in (7, 8):
        with torch.no_grad():
            for gate, mask in gates_with_masks(whole.model, gone):
                gate.logit.masked_fill_(mask, -CERTAIN)
        step(cut, optimizer, seed)
        step(whole, other, seed)
        assert cut.budget is not None
        assert whole.budget is not None
        assert float(cut.budget.strength) == pytest.approx(float(whole.budget.strength), rel=1e-4)
    full = dict(whole.model.named_parameters())
    assert 10 < len(changes) < len(full)
    for name, p in cut.model.named_parameters():
        old = full[name].detach()
        expected = changes[name].take(old) if name in changes else old
        alive = expected > -CERTAIN + 1 if name.endswith("logit") else torch.ones_like(expected, dtype=torch.bool)
        assert torch.allclose(p[alive], expected[alive], atol=1e-6), name


def test_the_state_of_the_optimiser_is_cut_along_and_one_that_cannot_be_is_refused() -> None:
    pruner, optimizer = begun(small_vit())
    name, old = "blocks.0.mlp.fc1.weight", pruner.model.blocks[0].mlp.fc1.weight
    before = optimizer.state[old]["exp_avg_sq"].clone()
    with pytest.raises(PrunerError, match="the optimiser lacks cls_token"):
        pruner.cut(torch.optim.SGD([old], lr=1.0))
    optimizer.state[old]["rows"] = torch.zeros(3)
    with pytest.raises(PrunerError, match=f"keeps rows in another shape than {name}"):
        pruner.cut(optimizer)
    assert pruner.model.blocks[0].mlp.left is None, "nothing is cut before all is known to go well"
    del optimizer.state[old]["rows"]
    pruner.cut(optimizer)
    mlp = pruner.model.blocks[0].mlp
    assert torch.equal(optimizer.state[mlp.fc1.weight]["exp_avg_sq"], before[mlp.left])
    assert old not in optimizer.state
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in pruner.model.parameters()}
    assert {id(p) for p in optimizer.state} <= held
    carry_over(optimizer, [])


def test_a_unit_goes_after_it_was_closed_so_often_in_a_row_and_the_last_head_never() -> None:
    pruner = hiap.Pruner(small_vit(), steps=50, shrink=hiap.Shrink(below=0.01, after=2))
    logit = pruner.model.blocks[0].mlp.neuron_gate.logit.data
    logit[:2] = -6.0
    assert pruner.cut(None) == []
    logit[1] = -4.5  # sigma is 0.011
    assert pruner.cut(None)
    assert pruner.model.blocks[0].mlp.left.tolist() == list(range(1, 128))
    logit[1] = -6.0
    assert pruner.cut(None) == []
    assert pruner.cut(None)
    assert float(logit[1]) == -CERTAIN
    for i, block in enumerate(pruner.model.blocks):
        block.attn.head_gate.logit.data.copy_(torch.tensor([-6.0, -7.0, -8.0, -9.0]) - i)
    for _ in range(3):
        pruner.cut(None)
    assert [block.attn.num_heads for block in pruner.model.blocks] == [1, 0, 0]
    assert pruner.model.blocks[0].attn.left.tolist() == [0]


def test_what_is_gone_stays_gone_whatever_a_mask_says() -> None:
    pruner, optimizer = begun(small_vit(), keep={"blocks.2": True})
    pruner.cut(optimizer)
    every = [type(mask)(*(torch.ones_like(t) for t in vars(mask).values())) for mask in pruner.shrink.gone()]
    there = drop_removed(pruner.model, every)
    assert there[0].dims.any(-1).tolist() == [False, True, False, False]
    assert not there[1].neurons.any()
    assert all(bool(t.all()) for t in vars(there[2]).values())
    for _ in range(3):
        step(pruner, optimizer, 5)
    assert pruner.model.blocks[0].attn.head_gate.logit[0].item() == -CERTAIN


def test_a_resumed_pruner_has_the_sizes_and_the_bits(tmp_path: Path) -> None:
    pruner, optimizer = begun(small_vit())
    pruner.cut(optimizer)
    torch.save({"pruner": pruner.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x.pt")
    step(pruner, optimizer, 11)
    state = torch.load(tmp_path / "x.pt", weights_only=True)
    resumed = pruner_of(small_vit())
    resumed.load_state_dict(state["pruner"])
    other = optimizer_of(resumed)
    other.load_state_dict(state["optimizer"])
    resumed.model.train()
    step(resumed, other, 11)
    expected = pruner.model.state_dict()
    assert expected.keys() == resumed.model.state_dict().keys()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())
    with pytest.raises(PrunerError, match="has been cut"):
        resumed.load_state_dict(state["pruner"])
    with pytest.raises(PrunerError, match="of a pruner with shrink"):
        hiap.Pruner(small_vit(), steps=50).load_state_dict(state["pruner"])
    with pytest.raises(PrunerError, match="of other sizes"):
        pruner_of(small_vit(depth=2)).load_state_dict(state["pruner"])


def test_refused() -> None:
    with pytest.raises(ConfigError, match=r"expected a chance in \(0, 0.5\)"):
        hiap.Shrink(below=0.5)
    with pytest.raises(ConfigError, match="1 or more"):
        hiap.Shrink(after=0)
    with pytest.raises(ConfigError, match="never quite closed"):
        pruner_of(small_vit(), gates=hiap.GateConfig(forward="soft"))
    with pytest.raises(PrunerError, match="make the pruner with shrink"):
        hiap.Pruner(small_vit(), steps=50).cut(None)


def shrinking(dense: Config, **sections: Any) -> Config:
    """A run in which an FFN goes whole after the first epoch, and neurons and a head after the second."""
    base = {"optim": {"epochs": 4, "ema": 0.9}, "gates": {"lr": 0.4}, "shrink": {"after": 1, "below": 0.1}}
    base |= {"model": {"weights": f"run:{dense.run_id}"}, "distill": {"alpha": 0.7}}
    return tiny(dense.run.results, method="hiap", **merge(base, sections))


def test_a_run_is_billed_for_what_it_executed_and_ends_with_the_same_bits_when_killed(
    dense: Config,
    kill_at: Any,  # noqa: F811
) -> None:
    config = shrinking(dense, run={"checkpoint_steps": 4})
    undisturbed, reference = train.run(config), weights(config)
    size, metrics, bill = undisturbed.size, undisturbed.metrics, undisturbed.stages[0]
    assert size is not None
    student = bill.train_macs - bill.images * size.dense_macs  # without the teacher
    assert 3 * size.macs * bill.images < student < 0.8 * 3 * size.dense_macs * bill.images
    assert student % (3 * 128) == 0, "whole steps of one size or another"
    assert undisturbed.epochs[-1].macs == size.macs == hiap.macs(hiap.load(Folders.of(config).model), IMAGE)
    assert metrics.hardened is not None
    assert metrics.extracted is not None
    assert metrics.extracted.top1 == metrics.hardened.top1
    # In the second epoch, on the step after a cut, and in the last one.
    disturbed, record = killed_at((13, 9, 13), config, kill_at, "disturbed")
    assert record.resumed == 3
    same_result(undisturbed, record)
    assert all(torch.equal(reference[name], value) for name, value in weights(disturbed).items())


def test_two_processes_cut_as_one_does(dense: Config) -> None:
    config = shrinking(dense, gates={"noise": "shared"}, run={"grid": "one"})
    other = config.model_copy(update={"run": config.run.model_copy(update={"grid": "two"})})
    expected = train.run(config)
    together(2, other)
    found = record_of(other)
    same_curve(found, expected, 1e-4)
    assert expected.size is not None
    bill = expected.stages[0]
    assert found.stages[0].train_macs == bill.train_macs < 0.9 * 4 * expected.size.dense_macs * bill.images


def test_off_it_changes_no_run_id_and_only_hiap_takes_it(tmp_path: Path) -> None:
    assert tiny(tmp_path).run_id == tiny(tmp_path, shrink={"after": 0}).run_id
    assert tiny(tmp_path).run_id != tiny(tmp_path, shrink={"after": 1}).run_id
    for wrong in ({"method": "dense"}, {"method": "hiap", "gates": {"forward": "soft", "lr": 0.5}}):
        with pytest.raises(ConfigError, match=r"shrink.after is for method 'hiap' with gates.forward"):
            train.run(tiny(tmp_path, shrink={"after": 1}, **wrong))
