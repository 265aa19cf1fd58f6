"""Eqs. 7-8 against numbers worked out by hand, and the readings of A2 and A3."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import scatter_logits, small_vit

import hiap
from hiap.beyond.tasks import distillation_loss
from hiap.budget.options import PenaltyConfig
from hiap.objective import feasibility, penalties
from hiap.options import FeasibilityConfig


@pytest.fixture
def gated():
    model = hiap.gate(small_vit())
    scatter_logits(model)
    return model


def test_open_gates_cost_the_dense_share_under_each_scale():
    gated = hiap.gate(small_vit(), init_logit=50.0)
    config = {"lambda_macro": 1.0, "lambda_micro": 1.0}
    total, own, raw = (penalties(gated, PenaltyConfig(scale=s, **config)) for s in ("total", "own", "raw"))
    assert sum(total.values()).item() == pytest.approx(1.0)
    assert own["macro"].item() == pytest.approx(1.0)
    assert own["micro"].item() == pytest.approx(1.0)
    assert sum(raw.values()).item() == pytest.approx(hiap.expected_cost(gated).flops.item())


def test_strengths_multiply_their_own_part_only(gated):
    one = penalties(gated, PenaltyConfig(lambda_macro=1.0, lambda_micro=1.0))
    two = penalties(gated, PenaltyConfig(lambda_macro=2.0, lambda_micro=0.0))
    assert two["macro"].item() == pytest.approx(2 * one["macro"].item())
    assert two["micro"].item() == 0.0


def test_the_penalty_pushes_every_logit_down(gated):
    sum(penalties(gated, PenaltyConfig()).values()).backward()
    assert all((gate.logit.grad > 0).all() for _, gate in hiap.named_gates(gated))


def test_sampled_expectation_is_the_sample_and_has_the_closed_form_as_its_mean(images):
    gated = hiap.gate(small_vit(), expectation="sampled").train()
    scatter_logits(gated)
    closed = hiap.expected_cost(gated.eval()).flops.item()
    gated.train()
    torch.manual_seed(0)
    samples = []
    for _ in range(400):
        gated(images[:1])
        samples.append(hiap.expected_cost(gated).flops.item())
    assert len(set(samples)) > 300
    mean, spread = torch.tensor(samples).mean().item(), torch.tensor(samples).std().item()
    assert abs(mean - closed) < 4 * spread / 20


def test_feasibility_by_hand():
    gated = hiap.gate(small_vit(depth=1))
    block = gated.blocks[0]
    logit = lambda p: torch.logit(torch.tensor(p))  # noqa: E731
    block.attn.head_gate.logit.data.fill_(logit(0.1))  # 0.4 heads expected
    block.attn.value_gate.logit.data.fill_(logit(0.05))
    block.mlp.block_gate.logit.data.fill_(logit(0.5))
    block.mlp.neuron_gate.logit.data.fill_(logit(0.02))
    config = FeasibilityConfig(k_min=1, gamma_attn=0.1, gamma_ffn=0.1, beta_head=2.0, beta_dim=3.0, beta_ffn=5.0)
    expected = 2 * 0.6**2 + 3 * (4 * 0.1 * 0.05**2) + 5 * (0.5 * 0.08**2)
    value = feasibility(gated, config)
    assert value.item() == pytest.approx(expected, rel=1e-4)
    value.backward()
    assert (block.attn.value_gate.logit.grad < 0).all(), "a shortfall opens dimensions"
    assert (block.attn.head_gate.logit.grad < 0).all(), "and heads; closing the head is no way out"
    assert block.mlp.block_gate.logit.grad is None or (block.mlp.block_gate.logit.grad == 0).all()


def test_enough_units_cost_nothing():
    assert feasibility(hiap.gate(small_vit()), FeasibilityConfig()).item() == 0.0


def test_distillation_is_hintons_blend():
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 10), torch.randn(5, 10)
    labels = torch.arange(5)
    p, q = (teacher / 4).softmax(-1), (student / 4).softmax(-1)
    kl = (p * (p / q).log()).sum(-1).mean()
    expected = 0.3 * F.cross_entropy(student, labels) + 0.7 * 16 * kl
    torch.testing.assert_close(distillation_loss(student, labels, teacher), expected)
    torch.testing.assert_close(distillation_loss(student, labels), F.cross_entropy(student, labels))
    same = distillation_loss(teacher, labels, teacher)
    torch.testing.assert_close(same, 0.3 * F.cross_entropy(teacher, labels))
