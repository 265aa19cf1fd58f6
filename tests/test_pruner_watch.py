"""The pruner knows whether pruning happened: a loop that does not prune is told what it lacks."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import small_vit
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3

import hiap
from hiap.gates import Gate

STEPS = 12


def loop(
    train: bool = True,
    penalty: bool = True,
    gate_lr: float | None = 0.6,
    batches: int = 1,
    scheduler: Callable[[Any], Any] | None = None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> tuple[Any, list[str]]:
    """A pruner after ``STEPS`` calls of ``step``, and what was told until ``finish`` was."""
    torch.manual_seed(0)
    options = {"target_macs": 0.5, "multiple": 1, **options}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        pruner = hiap.Pruner(small_vit().train(train).to(dtype), steps=STEPS, **options)
        eps = 1e-4 if dtype is torch.float16 else 1e-8  # which is 0 in float16
        optimizer = torch.optim.AdamW(pruner.param_groups(lr=1e-3, gate_lr=gate_lr), eps=eps, foreach=True)
        schedule = scheduler(optimizer) if scheduler else None
        for step in range(STEPS):
            images, labels = torch.randn(8, 1, 16, 16, dtype=dtype), torch.arange(8)
            loss = hiap.distillation_loss(pruner.model(images), labels)
            (loss + pruner.penalty() if penalty else loss).backward()
            if (step + 1) % batches == 0:
                optimizer.step()
                optimizer.zero_grad()
                if schedule:
                    schedule.step()
            pruner.step()
        pruner.small = pruner.finish()  # type: ignore[attr-defined]
    return pruner, [str(line.message) for line in told if "hiap" in str(line.filename) or "tests" in str(line.filename)]


def about(lines: list[str], words: str) -> bool:
    return any(words in line and "\n" not in line for line in lines)


def test_a_loop_that_prunes_is_told_nothing() -> None:
    pruner, told = loop()
    assert told == []
    assert pruner.near() > 0


def test_eval_mode_is_told() -> None:
    _, told = loop(train=False)
    assert about(told, "eval mode for 10 steps")


def closed_a_little(pruner: hiap.Pruner) -> None:
    """A step of a loop in which every gate comes nearer to its threshold."""
    pruner.penalty().backward()
    with torch.no_grad():
        for _, gate in hiap.named_gates(pruner.model):
            gate.logit.sub_(0.2)


def test_eval_mode_of_a_validation_in_between_is_not() -> None:
    pruner = hiap.Pruner(small_vit().train(), steps=30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(30):
            closed_a_little(pruner)
            pruner.model.train(step % 9 != 0)
            pruner.step()


def test_a_penalty_that_is_not_added_is_told() -> None:
    _, told = loop(penalty=False)
    assert about(told, "no gradient has come through pruner.penalty()")


@pytest.mark.filterwarnings("error")
def test_a_resumed_loop_is_told_nothing() -> None:
    """Fused optimisers write without a trace; loading does leave one."""
    first = hiap.Pruner(small_vit().train(), steps=40)
    second = hiap.Pruner(small_vit().train(), steps=40)
    second.load_state_dict(first.state_dict())
    optimizer = torch.optim.AdamW(second.param_groups(lr=1e-3, gate_lr=0.2), fused=True)
    for _ in range(20):
        second.penalty().backward()
        optimizer.step()
        optimizer.zero_grad()
        second.step()


def test_a_control_without_prices_has_none_to_add() -> None:
    _, told = loop(penalty=False, target_macs=None, lambda_macro=0.0, lambda_micro=0.0)
    assert told == []


def test_a_loss_of_the_network_that_was_given_is_told() -> None:
    """The gates learn their price and nothing of the task, since ``Pruner`` works on a copy."""
    given = small_vit().train()
    pruner = hiap.Pruner(given, steps=STEPS, target_macs=0.5, multiple=1)
    optimizer = torch.optim.AdamW(pruner.param_groups(lr=1e-3, gate_lr=0.6))
    for _ in range(STEPS):
        (hiap.distillation_loss(given(torch.randn(8, 1, 16, 16)), torch.arange(8)) + pruner.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    with pytest.warns(UserWarning, match=r"finish: no weight of pruner\.model has changed; the task loss must be of"):
        pruner.finish()


def test_one_cycle_with_a_rate_for_each_group_prunes() -> None:
    def cycle(optimizer: Any) -> Any:
        rates = [group["lr"] for group in optimizer.param_groups]
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rates, total_steps=STEPS)

    pruner, told = loop(scheduler=cycle, gate_lr=1.2)
    assert told == []
    assert pruner.near() > 0
    assert hiap.macs(pruner.small, (1, 16, 16)) <= 0.5 * hiap.macs(small_vit(), (1, 16, 16))


def test_layer_decay_prunes_and_layers_learn_at_their_rates() -> None:
    torch.manual_seed(0)
    pruner = hiap.Pruner(small_vit().train(), steps=STEPS, target_macs=0.5, multiple=1)
    before = {name: p.detach().clone() for name, p in pruner.model.named_parameters()}
    groups = pruner.param_groups(1e-3, 0.05, gate_lr=0.6, layer_decay=0.25)
    optimizer = torch.optim.AdamW(groups)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=[group["lr"] for group in groups], total_steps=STEPS, pct_start=0.1
    )
    for _ in range(STEPS):
        loss = hiap.distillation_loss(pruner.model(torch.randn(8, 1, 16, 16)), torch.arange(8)) + pruner.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        pruner.step()
    ways = {name: (p - before[name]).abs().max().item() for name, p in pruner.model.named_parameters()}
    assert ways["blocks.0.norm1.bias"] < ways["blocks.1.norm1.bias"] < ways["blocks.2.norm1.bias"]
    assert pruner.travel() > 1.5, "the gates keep their rate"
    assert hiap.macs(pruner.finish(), (1, 16, 16)) <= 0.5 * hiap.macs(small_vit(), (1, 16, 16))


def test_one_rate_for_all_groups_is_told_at_the_end() -> None:
    """torch's OneCycleLR with one max_lr overrides the gates' own."""
    _, told = loop(
        scheduler=lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=1e-3, total_steps=STEPS), gate_lr=0.6
    )
    assert about(told, "finish: no gate came half of its way to the threshold")


def test_a_rate_that_cannot_reach_is_told_before_the_first_step() -> None:
    pruner = hiap.Pruner(small_vit(), steps=62, target_macs=0.5)
    start = "param_groups: a gate starts 3 from its threshold, and the rates of 62 steps sum to "
    # Far enough at 5 / 62 a step, if it were pulled the same way at each.
    for rate, far in ((None, "0.0031"), (5 / 62, "5")):
        with pytest.warns(UserWarning, match=f"{start}{far}, not twice that; set gate_lr to 0.097 or more"):
            pruner.param_groups(lr=5e-5, gate_lr=rate)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruner.param_groups(lr=5e-5, gate_lr=0.1)
        travels = hiap.Pruner(small_vit(), steps=62, target_macs=0.5, gates=hiap.GateConfig(travel=6))
        assert travels.param_groups(lr=5e-5)[-1]["lr"] == pytest.approx(6 / 62)


def test_steps_that_are_batches_are_told() -> None:
    _, told = loop(batches=4)
    assert about(told, "called 10 times, while the optimiser wrote the gates 2 times")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_penalty_that_is_not_finite_is_refused_at_once(value: float) -> None:
    pruner = hiap.Pruner(small_vit(), steps=100, target_macs=0.5)
    pruner.model.blocks[1].attn.head_gate.logit.data[0] = float("nan") if value != value else value
    if value == float("inf"):
        pruner.budget.strength.fill_(value)
    with pytest.raises(hiap.PrunerError, match=r"penalty: .* at step 1: .* not finite") as error:
        pruner.penalty()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gates_are_float32_whatever_the_weights_are(dtype: torch.dtype) -> None:
    pruner, told = loop(dtype=dtype)
    assert {gate.logit.dtype for _, gate in hiap.named_gates(pruner.model)} == {torch.float32}
    assert {p.dtype for name, p in pruner.model.named_parameters() if not name.endswith(".logit")} == {dtype}
    assert {p.dtype for p in pruner.small.parameters()} == {dtype}
    assert not about(told, "finish")
    assert pruner.small(torch.randn(2, 1, 16, 16, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cast_afterwards_logits_keep_what_they_learned_and_close_as_often(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    gate = Gate((100_000,), "micro", hiap.GateConfig(init_logit=6.123456), torch.Generator()).to(dtype)
    assert (gate.logit == torch.tensor(6.123456)).all()
    closed = sum(float((gate() < 0.5).float().mean()) for _ in range(20)) / 20
    assert closed == pytest.approx(torch.sigmoid(torch.tensor(-6.123456)).item(), rel=0.1)
    assert gate.double().logit.dtype is torch.float64


def test_a_gate_that_was_a_scalar_is_loaded() -> None:
    """Checkpoints of earlier versions."""
    gated = hiap.gate(small_vit())
    state = {
        k: v.view(()) if k.endswith(("block_gate.logit", "block_gate.offset")) else v
        for k, v in gated.state_dict().items()
    }
    hiap.gate(small_vit()).load_state_dict(state)


@pytest.mark.parametrize("expectation", ["closed-form", "sampled"])
def test_copies_after_a_step(expectation: Any) -> None:
    pruner = hiap.Pruner(small_vit().train(), steps=4, gates=hiap.GateConfig(expectation=expectation))
    (pruner.model(torch.randn(2, 1, 16, 16)).sum() + pruner.penalty()).backward()
    assert type(copy.deepcopy(pruner.model)) is type(pruner.model)
    ModelEmaV3(pruner.model)
    torch.optim.swa_utils.AveragedModel(pruner.model)
    again = pickle.loads(pickle.dumps(copy.deepcopy(pruner)))
    buffer = io.BytesIO()
    torch.save(again.state_dict(), buffer)
    buffer.seek(0)
    pruner.load_state_dict(torch.load(buffer, weights_only=True))


def test_timms_optimisers_do_not_decay_logits() -> None:
    pruner = hiap.Pruner(small_vit(), steps=30)
    name = {id(p): n for n, p in pruner.model.named_parameters()}
    optimizer = create_optimizer_v2(pruner.model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.65)
    decayed = [name[id(p)] for group in optimizer.param_groups for p in group["params"] if group["weight_decay"]]
    assert decayed
    assert not any(n.endswith("logit") for n in decayed)
    small = hiap.extract(pruner.model)
    assert small.no_weight_decay() == small_vit().no_weight_decay()


def test_a_rate_that_would_train_the_other_way_is_one_line() -> None:
    pruner = hiap.Pruner(small_vit().train(), steps=100, target_macs=0.5)
    for rates, line in (({"lr": -1e-4}, "lr -0.0001: expected a number above 0"), ({"lr": 0}, "lr 0"),
                        ({"lr": 1e-4, "gate_lr": -0.1}, "gate_lr -0.1: expected a number of 0 or more"),
                        ({"lr": 1e-4, "weight_decay": float("nan")}, "weight_decay nan")):  # fmt: skip
        with pytest.raises(hiap.ConfigError, match=f"param_groups: {line}"):
            pruner.param_groups(**rates)


def test_layer_decay_is_timms_and_leaves_the_gates_their_rate() -> None:
    pruner = hiap.Pruner(small_vit(), steps=30)
    groups = pruner.param_groups(1e-3, 0.05, gate_lr=0.2, layer_decay=0.5)
    name = {id(p): n for n, p in pruner.model.named_parameters()}
    rates = {name[id(p)]: group["lr"] for group in groups for p in group["params"]}
    assert rates.keys() == set(name.values())
    assert {rate for n, rate in rates.items() if n.endswith("logit")} == {0.2}
    assert rates["head.weight"] == 1e-3
    assert rates["blocks.2.mlp.fc1.weight"] == pytest.approx(2 * rates["blocks.1.mlp.fc1.weight"])
    with pytest.raises(hiap.ConfigError, match="layer_decay 2"):
        pruner.param_groups(1e-3, gate_lr=0.2, layer_decay=2.0)


def test_the_summary_says_how_far_the_gates_have_come() -> None:
    pruner, _ = loop()
    summary = pruner.summary()
    assert summary.travel == pruner.travel() > 1.5
    assert 0 < summary.certainty < 1
    assert "of their way to the threshold, certainty 0." in str(summary)


def test_schedulers_of_timm_and_torch_scale_each_group_by_its_own_rate() -> None:
    from timm.scheduler import CosineLRScheduler

    pruner = hiap.Pruner(small_vit(), steps=30)
    for options in ({}, {"layer_decay": 0.5}):
        optimizer = torch.optim.AdamW(pruner.param_groups(5e-5, 0.05, gate_lr=0.4, **options))
        highest = [group["lr"] for group in optimizer.param_groups]
        assert max(highest) == 0.4
        schedule = CosineLRScheduler(optimizer, t_initial=10, warmup_t=2, warmup_lr_init=0)
        schedule.step(2)
        warm = [group["lr"] for group in optimizer.param_groups]
        schedule.step(10 // 2)
        assert warm == pytest.approx([0.9045 * rate for rate in highest], rel=1e-3)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([rate / 2 for rate in highest])


def test_the_decay_of_the_optimiser_is_that_of_the_matrices_unless_it_is_given() -> None:
    pruner = hiap.Pruner(small_vit(), steps=30)
    for options in ({}, {"layer_decay": 0.5}):
        optimizer = torch.optim.AdamW(pruner.param_groups(1e-3, gate_lr=0.4, **options), lr=1e-3, weight_decay=0.05)
        name = {id(p): n for n, p in pruner.model.named_parameters()}
        decays = {name[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        assert decays["blocks.0.mlp.fc1.weight"] == 0.05
        assert decays["blocks.0.mlp.fc1.bias"] == 0
        assert {decay for n, decay in decays.items() if n.endswith("logit")} == {0}


def test_blocks_in_eval_mode_are_told_unless_they_are_kept() -> None:
    for keep, expected in ((None, True), ({"blocks.0": True}, False)):
        pruner = hiap.Pruner(small_vit().train(), steps=30, target_macs=0.7, multiple=1, keep=keep)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for _ in range(12):
                closed_a_little(pruner)
                pruner.model.blocks[0].eval()
                pruner.step()
        lines = [str(line.message) for line in told]
        assert about(lines, "more gates have been in eval mode for 10 steps") is expected
        assert not about(lines, "the network has been in eval mode")


def test_a_warm_up_from_zero_is_told_and_goes_on() -> None:
    def steps(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step > 10))

    _, told = loop(scheduler=steps)
    assert about(told, "no gate has moved in 10 steps, though the optimiser writes them")


@pytest.mark.parametrize("size", [16, 32])
def test_images_of_another_size_than_the_targets_are_told(size: int) -> None:
    pruner = hiap.Pruner(small_vit(dynamic_img_size=True).train(), steps=3, target_macs=0.5)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        hiap.distillation_loss(pruner.model(torch.randn(2, 1, size, size)), torch.arange(2))
        pruner.step()
    assert about([str(line.message) for line in told], "images of 32x32 are trained on") is (size == 32)
    assert not pruner.model.patch_embed._forward_pre_hooks
    assert not hasattr(pruner.model.patch_embed, "seen")


def test_what_wraps_the_network_has_a_name_of_its_own() -> None:
    pruner = hiap.Pruner(small_vit(), steps=3)
    for wrapped in (torch.nn.DataParallel(pruner.model), torch.compile(pruner.model)):
        with pytest.raises(hiap.PrunerError, match=r"pruner\.model: .*; keep the network itself there"):
            pruner.model = wrapped


def test_a_cut_of_gates_that_learned_nothing_is_told() -> None:
    gated = hiap.gate(small_vit())
    with pytest.warns(UserWarning, match="the gates have learned nothing"):
        hiap.extract(gated, target_macs=0.5)
