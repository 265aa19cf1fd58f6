"""Eq. 6, the fold (reference = folded, values and gradients), eval mode, annealing."""

from __future__ import annotations

import pytest
import torch
from conftest import scatter_logits, small_vit

import hiap
from hiap import reference
from hiap.gated_vit import sampling
from hiap.gates import CERTAIN, Gate, logistic_noise, set_temperature, temperature
from hiap.train.config import ConfigError, GateConfig


def gate_of(logit: float, count: int = 200_000, tau: float = 1.0, **options: str) -> Gate:
    gate = Gate((count,), "micro", GateConfig(**options), torch.Generator())
    gate.logit.data.fill_(logit)
    gate.tau.fill_(tau)
    return gate


@pytest.mark.parametrize("tau", [2.0, 0.5])
@pytest.mark.parametrize("logit", [-1.0, 0.0, 2.0])
def test_a_sample_exceeds_half_with_probability_sigmoid_of_the_logit_at_every_temperature(logit, tau):
    torch.manual_seed(0)
    share = gate_of(logit, tau=tau)().mean()
    assert abs(share - torch.sigmoid(torch.tensor(logit))) < 0.005


def test_the_closed_form_is_the_mean_of_thresholded_samples_and_not_of_soft_ones():
    torch.manual_seed(0)
    hard, soft = gate_of(3.0, tau=2.0), gate_of(3.0, tau=2.0, forward="soft")
    assert abs(hard().mean() - 0.953) < 0.002
    assert abs(soft().mean() - 0.786) < 0.002
    assert abs(hard.expected().mean() - 0.953) < 0.001
    assert torch.equal(hard.expected(), soft.expected())


def test_a_certain_gate_is_open_in_every_sample_because_the_noise_is_clipped():
    ends = logistic_noise(torch.tensor([0.0, 1.0]))
    assert ends.abs().max() < 13.9 < CERTAIN
    assert ends.tolist() == pytest.approx([-ends[1].item(), ends[1].item()], rel=1e-3)


def test_soft_samples_follow_eq_6_at_a_known_quantile():
    torch.manual_seed(0)
    sample = gate_of(0.7, tau=0.5, forward="soft")().detach()
    # P(z < 0.2) with z = sigmoid((0.7 + e) / 0.5) is P(e < 0.5 logit(0.2) - 0.7), e logistic
    expected = torch.sigmoid(0.5 * torch.logit(torch.tensor(0.2)) - 0.7)
    assert abs((sample < 0.2).float().mean() - expected) < 0.005


def test_straight_through_is_hard_forward_with_the_soft_gradient():
    hard, soft = gate_of(0.3, 1000), gate_of(0.3, 1000, forward="soft")
    outputs, gradients = [], []
    for gate in (hard, soft):
        torch.manual_seed(0)
        out = gate()
        (out * torch.arange(1, 1001)).sum().backward()
        outputs.append(out.detach())
        gradients.append(gate.logit.grad)
    assert set(outputs[0].tolist()) == {0.0, 1.0}
    assert torch.equal(outputs[0], (outputs[1] > 0.5).float())
    assert torch.equal(*gradients)
    assert gradients[0].abs().min() > 0


def test_hardening_thresholds_the_probability_or_one_stored_sample():
    by_probability = gate_of(0.1, 1000).eval()
    assert by_probability().min() == 1
    by_sample = gate_of(0.1, 100_000, harden="sample").eval()
    kept = by_sample()
    assert abs(kept.mean() - torch.sigmoid(torch.tensor(0.1))) < 0.01
    assert torch.equal(kept, by_sample()), "one network has one hardened form"


def test_annealing_is_exponential_between_the_stated_ends():
    config = GateConfig()
    assert temperature(config, 0.0) == 2.0
    assert temperature(config, 1.0) == pytest.approx(0.5)
    assert temperature(config, 0.5) == pytest.approx(1.0)


@pytest.mark.parametrize("options", [{}, {"attn_bias": "kept"}, {"dims": "qkv"}])
@pytest.mark.parametrize("soft", [True, False])
def test_folded_equals_activation_masking_in_outputs_and_gradients(images, options, soft):
    model = small_vit(init_values=0.5)
    gated = hiap.gate(model, forward="soft" if soft else "straight-through", **options).double().train()
    scatter_logits(gated)
    set_temperature(gated, 0.7)
    images = images.double()

    torch.manual_seed(3)
    folded = gated(images)
    folded.square().sum().backward()
    gradients = {n: p.grad.clone() for n, p in gated.named_parameters()}
    gated.zero_grad()

    torch.manual_seed(3)  # the same draws, in the order in which the blocks ask for them
    gates = [
        {"g": b.attn.head_gate(), "d": b.attn.value_gate(), "b": b.mlp.block_gate(), "c": b.mlp.neuron_gate()}
        for b in gated.blocks
    ]
    plain = reference.forward(gated, images, gates)
    plain.square().sum().backward()

    torch.testing.assert_close(folded, plain, rtol=1e-6, atol=1e-8)  # fused attention's exp is not the plain one's
    for name, p in gated.named_parameters():
        torch.testing.assert_close(gradients[name], p.grad, rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")
        assert not soft or gradients[name].abs().sum() > 0, f"{name} learns nothing"


def test_open_gates_leave_the_network_as_it_was(images):
    model = small_vit()
    gated = hiap.gate(model, init_logit=3.0)
    torch.testing.assert_close(gated(images), model(images), rtol=1e-5, atol=1e-6)


def test_a_config_and_fields_beside_it_are_refused():
    with pytest.raises(ConfigError, match="a GateConfig and dims beside it"):
        hiap.gate(small_vit(), GateConfig(), dims="qkv")


def test_gating_copies_and_training_mode_samples(images):
    model = small_vit()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    gated = hiap.gate(model, init_logit=0.0)
    gated.eval()
    assert torch.equal(gated(images), gated(images))
    with sampling(gated):
        assert not torch.equal(gated(images), gated(images))
    assert torch.equal(gated(images), gated(images)), "the context restores eval mode"
    gated.train()
    assert not torch.equal(gated(images), gated(images))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_named_gates_lists_every_gate_once_with_its_logit():
    gated = hiap.gate(small_vit())
    names = dict(hiap.named_gates(gated))
    assert len(names) == 3 * 4
    assert names["blocks.1.attn.head_gate"].logit.shape == (4,)
    assert names["blocks.1.attn.value_gate"].logit.shape == (4, 8)
    assert names["blocks.1.mlp.block_gate"].logit.shape == (1,)
    assert names["blocks.1.mlp.neuron_gate"].logit.shape == (128,)
    assert {g.level for g in names.values()} == {"macro", "micro"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"global_pool": "prr", "class_token": False}, r"attn_pool \(AttentionPoolPrr\)"),
        ({"block_fn": "ParallelScalingBlock"}, r"blocks\.0 \(ParallelScalingBlock\)"),
        ({"attn_layer": "diff"}, r"blocks\.0\.attn \(DiffAttention\)"),
        ({"mlp_layer": "GatedMlp"}, r"blocks\.0\.mlp \(GatedMlp\)"),
    ],
)
def test_unsupported_modules_are_named(changes, named):
    import timm.layers
    from timm.models import vision_transformer

    if changes.get("global_pool") == "prr" and not hasattr(timm.layers, "AttentionPoolPrr"):
        pytest.skip(f"timm {timm.__version__} has none")
    known = vars(timm.layers) | vars(vision_transformer)
    changes = {k: known.get(v, v) if isinstance(v, str) else v for k, v in changes.items()}
    with pytest.raises(hiap.UnsupportedModelError, match=named):
        hiap.gate(small_vit(**changes))


def test_a_gated_model_is_not_gated_twice_and_other_networks_are_refused():
    with pytest.raises(hiap.UnsupportedModelError, match="carries gates already"):
        hiap.gate(hiap.gate(small_vit()))
    with pytest.raises(hiap.UnsupportedModelError, match="Linear: expected a timm VisionTransformer"):
        hiap.gate(torch.nn.Linear(2, 2))
    with pytest.raises(hiap.UnsupportedModelError, match="q_norm"):
        hiap.gate(small_vit(qk_norm=True), dims="qkv")
