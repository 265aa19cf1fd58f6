"""The single phase in a loop of one's own: what `python -m hiap.train` gives, wherever it was killed, on its target."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import scatter_logits, small_vit, tiny
from torch import Tensor

import hiap
from hiap import cost, ledger
from hiap import pruner as papers
from hiap.backbones.seeds import derive
from hiap.budget.options import GateConfig
from hiap.budget.prices import param_prices
from hiap.budget.summary import summary_of
from hiap.data import loader as data
from hiap.gated_vit import harden_to, masks, set_masks
from hiap.train import run as train
from hiap.train.config import Config
from hiap.train.reach import learning_rate, summed_rate
from hiap.train.record import Folders

IMAGE = (1, 16, 16)
REPOSITORY = Path(__file__).parents[1]
SHARES = [0.9, 0.7, 0.5, 0.3, 0.2]


def hiap_run(dense: Config, **sections: Any) -> Config:
    common = {"model": {"weights": f"run:{dense.run_id}"}, "distill": {"alpha": 0.7}, "optim": {"epochs": 3}}
    return tiny(dense.run.results, method="hiap", **common, **sections)


class Loop:
    """A training loop that somebody might have written, on the data of ``config``."""

    def __init__(self, config: Config, start: Any):
        self.config, self.teacher = config, start
        self.per_epoch = data.steps_per_epoch(config.data, 16, config.optim.batch_size)
        self.steps = config.optim.epochs * self.per_epoch
        self.pruner = hiap.Pruner(
            start,
            steps=self.steps,
            target_macs=config.budget.target_macs,
            lambda_macro=0.3,
            lambda_micro=0.3,
            gates=config.gates,
            multiple=1,  # as in the trainer
        )
        summed = summed_rate(config, self.steps, self.per_epoch, self.steps)
        groups = self.pruner.param_groups(lr=config.optim.lr, weight_decay=0.05, summed=summed)
        self.optimizer = torch.optim.AdamW(groups, fused=True)

    def run(self, until: int | None = None) -> None:
        while self.pruner.done < (self.steps if until is None else until):
            epoch, position = divmod(self.pruner.done, self.per_epoch)
            place = {"seed": derive(0, "data", 0), "epoch": epoch, "start": position}
            images, labels = next(iter(data.train_batches(self.config.data, 16, batch_size=128, **place)))
            for group in self.optimizer.param_groups:
                group["lr"] = group["rate_scale"] * learning_rate(
                    self.config, self.pruner.done, self.per_epoch, self.steps
                )
            self.pruner.seed_noise()
            with torch.no_grad():
                taught = self.teacher(images)
            loss = hiap.distillation_loss(self.pruner.model(images), labels, taught) + self.pruner.penalty()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.pruner.step()

    def saved(self) -> bytes:
        buffer = io.BytesIO()
        torch.save({"pruner": self.pruner.state_dict(), "optimizer": self.optimizer.state_dict()}, buffer)
        return buffer.getvalue()

    def resume(self, content: bytes) -> None:
        state = torch.load(io.BytesIO(content), weights_only=True)
        self.pruner.load_state_dict(state["pruner"])
        self.optimizer.load_state_dict(state["optimizer"])


def start_of(dense: Config) -> Any:
    return hiap.load(Folders.of(dense).model)


def fresh(config: Config, dense: Config) -> Loop:
    loop = Loop(config, start_of(dense))
    loop.pruner.model.train()
    return loop


def same_weights(a: Any, b: Any) -> None:
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(value, right[name]) for name, value in left.items())


@pytest.mark.parametrize("budget", [{}, {"target_macs": 0.5}, {"travel": 3.0}])
def test_a_plain_loop_ends_with_the_weights_of_our_trainer(dense: Config, budget: dict[str, float]) -> None:
    """Also where the logits' rate follows from how far they are to travel (A6), under a schedule of rates."""
    config = hiap_run(dense, gates={"lr": None, **budget}) if "travel" in budget else hiap_run(dense, budget=budget)
    record = train.run(config)
    loop = fresh(config, dense)
    loop.run()
    small = loop.pruner.finish()
    same_weights(small, hiap.load(Folders.of(config).model))
    assert record.size is not None
    assert hiap.macs(small, IMAGE) == record.size.macs < record.size.dense_macs


def test_killed_at_20_random_steps_a_plain_loop_ends_with_the_same_bits(dense: Config) -> None:
    config = hiap_run(dense, budget={"target_macs": 0.5})
    undisturbed = fresh(config, dense)
    undisturbed.run()
    stops = sorted(random.Random(0).sample(range(1, undisturbed.steps), 20))
    content = b""
    for stop in stops:
        loop = fresh(config, dense)
        if content:
            loop.resume(content)
        loop.run(stop)
        content = loop.saved()
    last = fresh(config, dense)
    last.resume(content)
    last.run()
    same_weights(last.pruner.finish(), undisturbed.pruner.finish())


def a_few_steps(forward: Any = None, parts: int = 1, bf16: bool = False, steps: int = 12, **options: Any) -> Any:
    """A pruner after a few steps on random images; ``parts`` of a batch see the same noise."""
    pruner = hiap.Pruner(small_vit().train(), steps=steps, **options)
    model = forward(pruner.model) if forward else pruner.model
    optimizer = torch.optim.AdamW(pruner.param_groups(lr=1e-3, gate_lr=0.3))
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        images, labels = torch.randn(8, *IMAGE, generator=generator), torch.randint(10, (8,), generator=generator)
        for some, wanted in zip(images.chunk(parts), labels.chunk(parts), strict=True):
            torch.manual_seed(step)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = model(some)
            ((hiap.distillation_loss(logits, wanted) + pruner.penalty()) / parts).backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    return pruner


def close(a: Any, b: Any, tolerance: float) -> None:
    for (name, left), right in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def test_accumulated_parts_are_the_whole_batch() -> None:
    whole, parts = (a_few_steps(parts=n, target_macs=0.5) for n in (1, 4))
    close(parts.model, whole.model, 1e-3)
    assert parts.done == whole.done == 12


def test_in_bf16_it_lands_on_its_target() -> None:
    pruner = a_few_steps(bf16=True, target_macs=0.5)
    assert on_target(pruner.finish(), 0.5)


def test_compiled_it_anneals_and_ends_with_the_same_network() -> None:
    """The temperature is read anew at each step, not frozen into the compiled graph."""
    plain, compiled = (a_few_steps(f, target_macs=0.5) for f in (None, lambda m: torch.compile(m, backend="aot_eager")))
    close(compiled.model, plain.model, 1e-3)


DISTRIBUTED = """
import sys, torch, torch.distributed as dist
sys.path.insert(0, "tests")
from conftest import small_vit
import hiap
dist.init_process_group("gloo")
rank = dist.get_rank()
pruner = hiap.Pruner(small_vit().train(), steps=12, target_macs=0.5)
model = torch.nn.parallel.DistributedDataParallel(pruner.model, broadcast_buffers=False)
optimizer = torch.optim.AdamW(pruner.param_groups(lr=1e-3, gate_lr=0.3))
generator = torch.Generator().manual_seed(0)
for step in range(12):
    images, labels = torch.randn(8, 1, 16, 16, generator=generator), torch.randint(10, (8,), generator=generator)
    torch.manual_seed(step)
    loss = hiap.distillation_loss(model(images.chunk(2)[rank]), labels.chunk(2)[rank]) + pruner.penalty()
    loss.backward(); optimizer.step(); optimizer.zero_grad(); pruner.step()
torch.save(pruner.state_dict(), f"{sys.argv[1]}/{rank}.pt")
"""


def test_two_processes_train_the_network_of_one(tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [*launch, "--no-python", sys.executable, "-c", DISTRIBUTED, str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    alone = a_few_steps(target_macs=0.5)
    assert torch.equal(first["budget"]["strength"], second["budget"]["strength"])
    for name, value in alone.model.state_dict().items():
        assert torch.equal(first["model"][name], second["model"][name])
        torch.testing.assert_close(first["model"][name], value, rtol=1e-3, atol=1e-3)


def on_target(small: Any, share: float, model: Any = None) -> bool:
    """At most one unit below the target: the dearest that is no head is a neuron, and a first dimension brings one."""
    dims = cost.dims_of(model or small_vit())
    prices = ledger.mac_prices(dims)
    target = round(share * ledger.dense_macs(dims))
    return target - max(prices.neuron, prices.value_dim) < hiap.macs(small, IMAGE) <= target


@pytest.mark.parametrize("share", SHARES)
def test_one_trained_network_serves_every_target(share: float) -> None:
    gated = hiap.gate(small_vit())
    scatter_logits(gated)
    before = {name: value.clone() for name, value in gated.state_dict().items()}
    sizes = {s: hiap.extract(gated, target_macs=s) for s in SHARES}
    assert on_target(sizes[share], share)
    assert all(torch.equal(value, before[name]) for name, value in gated.state_dict().items()), "left alone"
    number = hiap.extract(gated, target_macs=round(share * ledger.dense_macs(cost.dims_of(gated))))
    same_weights(number, sizes[share])


def test_a_target_extracts_what_the_budget_hardens_to(images: Tensor) -> None:
    pruner = a_few_steps(target_macs=0.5)
    again = hiap.extract(pruner.model, target_macs=0.5)
    pruner.harden()
    with torch.no_grad():
        masked = pruner.model.eval()(images)
        small = pruner.finish().eval()
        assert torch.allclose(small(images), masked, atol=1e-5)
        assert torch.equal(small(images), again.eval()(images))


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize(
    "changes", [{}, {"init_values": 0.1, "qk_norm": True}, {"qkv_bias": False, "proj_bias": False}]
)
def test_a_target_of_parameters_is_met_within_a_unit(share: float, changes: dict[str, Any]) -> None:
    model = small_vit(**changes)
    gated = hiap.gate(model)
    scatter_logits(gated, seed=2)
    prices = param_prices(model)
    target = round(share * hiap.params(model))
    assert (
        target - max(prices.neuron, prices.value_dim) < hiap.params(hiap.extract(gated, target_params=share)) <= target
    )


@pytest.mark.parametrize("attn_bias", ["gated", "kept"])
@pytest.mark.parametrize("dims", ["v", "qkv"])
def test_parameters_are_priced_as_they_are_removed(dims: Any, attn_bias: Any) -> None:
    """Also where a whole layer goes, with its norm, its LayerScale and its output bias."""
    gated = hiap.gate(small_vit(init_values=0.1), dims=dims, attn_bias=attn_bias)
    scatter_logits(gated)
    gated.blocks[0].attn.head_gate.logit.data.fill_(-1)
    gated.blocks[1].mlp.block_gate.logit.data.fill_(-1)
    pruner_view = summary_of(gated, hiap.gated_vit.masks(gated))
    small = hiap.extract(gated)
    assert (pruner_view.macs, pruner_view.params) == (hiap.macs(small, IMAGE), hiap.params(small))
    assert pruner_view.dense_params == hiap.params(gated)
    for _, gate in hiap.named_gates(gated):
        gate.fix(gate.hardened())
    assert cost.expected(gated, param_prices(gated)).item() == pytest.approx(hiap.params(small), rel=1e-5)


def test_a_budget_of_parameters_in_the_single_phase() -> None:
    pruner = a_few_steps(target_params=0.5)
    small = pruner.finish()
    assert 0.49 < hiap.params(small) / hiap.params(small_vit()) <= 0.5


KEEP = {"blocks.0.attn": [1, 3], "blocks.1.mlp": [7, 100], "blocks.2": True}


@pytest.mark.parametrize("options", [{"target_macs": 0.5}, {"target_params": 0.5}, {}])
def test_what_is_protected_stays(options: dict[str, float]) -> None:
    gated = hiap.gate(small_vit())
    scatter_logits(gated, spread=0.5)
    for _, gate in hiap.named_gates(gated):  # protected or not, all seem worthless
        gate.logit.data -= 5
    small = hiap.extract(gated, keep=KEEP, **options)
    first, _, last = small.blocks
    assert sorted(first.attn.value_dims)[-2:] == [8, 8]
    rows = small_vit().blocks[1].mlp.fc1.weight[[7, 100]]
    assert all((small.blocks[1].mlp.fc1.weight == row).all(1).any() for row in rows)
    assert (last.attn.value_dims, last.mlp.fc1.out_features) == ([8] * 4, 128)
    if "target_macs" in options:
        assert on_target(small, 0.5)


@pytest.mark.parametrize("units", [[True, False, False, False], np.array([True, False, False, False]), [-1], [1.5]])
def test_what_is_no_number_of_a_unit_protects_nothing_else(units: Any) -> None:
    with pytest.raises(ValueError, match=r"keep 'blocks\.0\.attn': .* are not numbers of its heads or neurons"):
        hiap.extract(hiap.gate(small_vit()), target_macs=0.5, keep={"blocks.0.attn": units})


def test_protected_gates_are_open_in_every_sample_and_stay_through_the_phase() -> None:
    pruner = a_few_steps(keep=KEEP, lambda_macro=50.0, lambda_micro=50.0)
    block = pruner.model.blocks[2].train()
    assert all(bool((gate() > 0.5).all()) for _, gate in hiap.named_gates(block))
    assert pruner.summary().blocks[2].heads == 4
    small = pruner.finish()
    assert (small.blocks[2].attn.value_dims, small.blocks[2].mlp.fc1.out_features) == ([8] * 4, 128)


def test_the_summary_is_what_finish_leaves() -> None:
    pruner = a_few_steps(target_macs=0.5)
    summary, small = pruner.summary(), pruner.finish()
    assert (summary.macs, summary.params) == (hiap.macs(small, IMAGE), hiap.params(small))
    assert [b.heads for b in summary.blocks] == [len(b.attn.value_dims) if b.attn else 0 for b in small.blocks]
    assert "in all" in str(summary)
    assert len(str(summary).splitlines()) == 3 + 2


def test_misuse_is_one_clear_line() -> None:
    pruner = a_few_steps(target_macs=0.5)
    with pytest.raises(hiap.PrunerError, match="step: all 12 steps are done"):
        pruner.step()
    pruner.finish()
    with pytest.raises(hiap.PrunerError, match="finish: done before"):
        pruner.finish()
    with pytest.raises(hiap.UnsupportedModelError, match="expected a timm VisionTransformer"):
        hiap.Pruner(torch.nn.Linear(2, 2), steps=1)
    with pytest.raises(hiap.UnsupportedModelError, match="carries gates already"):
        hiap.Pruner(pruner.model, steps=1)
    with pytest.raises(ValueError, match="carries no gates"):
        hiap.extract(small_vit(), target_macs=0.5)
    for given, line in (
        ({"gates": {"init_logit": 3}}, "gates: expected a section of hiap.options, not dict"),
        ({"penalty": {}}, "penalty: expected a section"),
        ({"ramp": "0.5"}, "ramp '0.5': expected a share"),
    ):
        with pytest.raises(ValueError, match=line):
            hiap.Pruner(small_vit(), steps=1, **given)
    with pytest.warns(UserWarning, match="after 0 of 9 steps"):
        hiap.Pruner(small_vit(), steps=9).finish()


def test_an_optimiser_without_the_logits_is_noticed() -> None:
    pruner = hiap.Pruner(small_vit(), steps=100)
    weights = [p for name, p in pruner.model.named_parameters() if not name.endswith(".logit")]
    optimizer = torch.optim.AdamW(weights, lr=1e-3)
    for _ in range(9):
        pruner.penalty().backward()
        optimizer.step()
        pruner.step()
    with pytest.raises(hiap.PrunerError, match=r"no gate has moved in 10 steps; .*pruner\.param_groups"):
        pruner.step()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"steps": 0}, "steps 0: expected the number of optimiser steps"),
        ({"ramp": 0.0}, "ramp 0.0: expected a share"),
        ({"lambda_macro": -1.0}, "lambda_macro: Input should be greater than or equal to 0, not -1.0"),
        ({"target_macs": 50}, "did you mean 0.5, a share?"),
        ({"target_macs": 0.001}, "a target of 691 MACs cannot be reached by removing these units; reachable: "),
        ({"target_params": 0.001}, "a target of 40 parameters cannot be reached by removing these units; reachable: "),
        ({"target_macs": "half"}, "target_macs 'half': expected a share"),
        ({"target_macs": -1.0}, "target_macs -1.0: expected a share"),
        ({"target_macs": 0.5, "target_params": 0.5}, "set one of them"),
        ({"target_macs": 0.5, "gates": hiap.GateConfig(harden="sample")}, "gates.harden 'sample'"),
        ({"keep": {"blocks.9.attn": True}}, "keep 'blocks.9.attn': expected 'blocks.<i>.attn'"),
        ({"keep": {"blocks.0.attn": [9]}}, "are not numbers of its heads or neurons"),
        ({"keep": {"blocks.0": [1]}}, "with True, 'blocks.<i>'"),
        ({"keep": ["blocks.0.attn"]}, "keep ['blocks.0.attn']: expected a mapping"),
        ({"keep": {"blocks.0": True, "blocks.1": True}, "target_macs": 0.3}, "reachable"),
    ],
)
def test_bad_options_are_one_line(options: dict[str, Any], line: str) -> None:
    with pytest.raises(hiap.ConfigError) as error:
        hiap.Pruner(small_vit(), **{"steps": 10, **options})
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_a_state_of_another_phase_or_model_is_refused() -> None:
    state = hiap.Pruner(small_vit(), steps=10).state_dict()
    for other, line in (
        (hiap.Pruner(small_vit(), steps=11), "10 steps without a target"),
        (hiap.Pruner(small_vit(), steps=10, target_macs=0.5), "10 steps without a target"),
        (hiap.Pruner(small_vit(depth=2), steps=10), "another model"),
    ):
        with pytest.raises(hiap.PrunerError, match=line) as error:
            other.load_state_dict(state)
        assert "\n" not in str(error.value)
    state = hiap.Pruner(small_vit(), steps=10, target_macs=0.5).state_dict()
    for other, line in (
        (hiap.Pruner(small_vit(), steps=10, target_params=0.5), r"a phase with target '\d+ MACs'; make the pruner so"),
        (hiap.Pruner(small_vit(), steps=10, target_macs=0.4), "a phase with target"),
        (hiap.Pruner(small_vit(), steps=10, target_macs=0.5, gates=hiap.GateConfig(dims="qkv")), "gates.dims 'v'"),
    ):
        with pytest.raises(hiap.PrunerError, match=line):
            other.load_state_dict(state)
    hiap.Pruner(small_vit(), steps=10, target_macs=0.5, gates=hiap.GateConfig(lr=0.3)).load_state_dict(state)
    for odd in ({}, small_vit().state_dict(), {**state, "done": 11}):
        with pytest.raises(hiap.PrunerError, match="expected what pruner"):
            hiap.Pruner(small_vit(), steps=10).load_state_dict(odd)


def test_a_rate_of_zero_holds_the_gates_and_is_told() -> None:
    pruner = hiap.Pruner(small_vit(), steps=10)
    with pytest.warns(UserWarning, match="a gate starts"):
        groups = pruner.param_groups(lr=1e-3, gate_lr=0.0)
    assert min(group["lr"] for group in groups) == 0


def test_the_papers_pruner_is_ours_without_a_target() -> None:
    """Losses, logits and the network that is left, bit for bit."""
    left = []
    for make in (hiap.Pruner, papers.Pruner):
        pruner = make(small_vit().train(), steps=8, gates=GateConfig(init_logit=0.5), seed=3)
        scatter_logits(pruner.model)  # about half of them closed
        optimizer = torch.optim.AdamW(pruner.param_groups(lr=1e-3, gate_lr=0.1))
        images, labels = torch.randn(8, *IMAGE, generator=torch.Generator().manual_seed(0)), torch.arange(8)
        for _ in range(8):
            pruner.seed_noise()
            (hiap.distillation_loss(pruner.model(images), labels) + pruner.penalty()).backward()
            optimizer.step()
            optimizer.zero_grad()
            pruner.step()
        left.append(pruner.finish())
    same_weights(*left)


class Thrifty(papers.Policy):
    """Doubles the price of everything, counts its steps, and keeps the first head of each layer whatever its gate."""

    def __init__(self, gated: Any):
        super().__init__(gated)
        self.told: list[float] = []

    def scale(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: 2 * term for name, term in terms.items()}

    def update(self, gated: Any, progress: float) -> None:
        self.told.append(progress)

    def harden(self, gated: Any) -> None:
        kept = masks(gated)
        for mask in kept:
            mask.heads[0] = mask.dims[0, 0] = True
        harden_to(gated, kept)


def test_a_policy_scales_the_penalty_is_told_each_step_and_chooses_the_masks() -> None:
    plain, thrifty = papers.Pruner(small_vit(), steps=2), papers.Pruner(small_vit(), steps=2, policy=Thrifty)
    for name, term in plain.terms().items():
        assert thrifty.terms()[name] == (term if name == "feasibility" else 2 * term)
    set_masks(thrifty.model, [type(m)(*(torch.zeros_like(t) for t in vars(m).values())) for m in masks(thrifty.model)])
    thrifty.step()
    thrifty.step()
    assert isinstance(thrifty.policy, Thrifty)
    assert thrifty.policy.told == [0, 0.5, 1]
    assert [block.attn.value_dims for block in thrifty.finish().blocks] == [[1]] * 3


def test_noise_is_the_parts_own_or_shared() -> None:
    draws = {}
    for noise in ("own", "shared"):
        pruner = papers.Pruner(small_vit(), steps=2, gates=GateConfig(noise=noise))
        for part in (0, 1):
            pruner.seed_noise(part)
            draws[noise, part] = torch.rand(4)
    assert torch.equal(draws["shared", 0], draws["shared", 1])
    assert torch.equal(draws["shared", 0], draws["own", 0])
    assert not torch.equal(draws["own", 0], draws["own", 1])
