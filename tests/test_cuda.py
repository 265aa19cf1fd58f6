"""What only a GPU can show; skipped where there is none."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import small_vit, tiny
from test_baselines import METHODS
from test_choice import made
from test_data import own_cache  # noqa: F401

import hiap
from hiap.backbones.pruned import LAYOUTS, PrunedAttention
from hiap.data import loader as data
from hiap.train import run as train
from hiap.train.config import Config, from_dict, merge
from hiap.train.device import autocast
from hiap.train.record import Folders

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

GPU = torch.device("cuda")
MORE = [
    ("hiap", {"budget": {"settle": 0.67}}),
    ("uniform", {"budget": {"rounds": 3}}),
    ("uniform", {"budget": {"noise": True}}),
    ("l1", {"budget": {"ranking": "global"}}),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("qk", "values"),
    [
        ([64] * 4, [64] * 4),
        ([64] * 4, [64, 48, 48, 16]),
        ([64] * 4, [64, 31, 24, 24]),
        ([64, 64, 40], [64, 64, 40]),
        ([37] * 4, [37] * 4),
        ([64, 13], [64, 13]),
        ([64, 64], [8, 1]),
    ],
)
def test_heads_of_any_width_go_forward_and_backward_as_on_a_cpu(qk, values, precision, layout):
    torch.manual_seed(0)
    reference = PrunedAttention(384, qk, values, scale=0.125).double()
    reference.layout = layout
    there = copy.deepcopy(reference).float().to(GPU)
    x = torch.randn(8, 17, 384, dtype=torch.double)
    upstream = torch.randn(8, 17, 384, dtype=torch.double)
    expected = reference(x)
    expected.backward(upstream)
    with autocast(GPU, precision):
        got = there(x.float().to(GPU))
    got.float().backward(upstream.float().to(GPU))
    bound = 0.02 if precision == "bf16" else 1e-4
    pairs = [
        (got, expected),
        *((p.grad, q.grad) for p, q in zip(there.parameters(), reference.parameters(), strict=True)),
    ]
    for a, b in pairs:
        assert (a.double().cpu() - b).norm() <= bound * b.norm() + 1e-9


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Config:
    config = tiny(tmp_path_factory.mktemp("results"), optim={"epochs": 4, "lr": 1e-2}, run={"device": "cuda"})
    train.run(config)
    return config


@pytest.mark.parametrize(("method", "sections"), [*METHODS, *MORE])
@pytest.mark.filterwarnings("ignore:Unwrapped parameters detected")
def test_every_method_trains_in_bf16_and_meets_its_target(start, method, sections):
    base = {
        "method": method,
        "model": {"weights": f"run:{start.run_id}"},
        "distill": {"alpha": 0.7, "precompute": True},
        "optim": {"epochs": 3, "precision": "bf16"},
        "budget": {"target_macs": 0.8},
        "run": {"device": "cuda"},
    }
    config = tiny(start.run.results, **merge(base, sections))
    record = train.run(config)
    assert record.environment.device == "cuda"
    assert record.size.macs <= 0.8 * record.size.dense_macs
    on_cpu = hiap.load(Folders.of(config).model)
    assert hiap.macs(on_cpu, (1, 16, 16)) == record.size.macs


def test_a_run_measures_the_same_accuracy_when_it_is_measured_again(start):
    record = train.run(from_dict(merge(start.model_dump(), {"seed": 1})))
    again = train.run(from_dict(merge(start.model_dump(), {"seed": 1, "run": {"results": start.run.results + "-2"}})))
    assert record.metrics == again.metrics


def test_masked_is_extracted():
    gated = hiap.gate(small_vit()).to(GPU)
    torch.manual_seed(0)
    for _, gate in hiap.named_gates(gated):
        gate.logit.data = torch.randn(gate.logit.shape, device=GPU)
    x = torch.randn(4, 1, 16, 16, device=GPU)
    with torch.no_grad():
        assert torch.allclose(gated.eval()(x), hiap.extract(gated).eval()(x), atol=1e-5)


@pytest.mark.parametrize("augment", ["none", "batch"])
def test_images_that_fit_lie_on_the_gpu_and_are_those_of_the_cpu(augment, tmp_path, monkeypatch):
    config = made(tmp_path, "tars").model_copy(update={"augment": augment, "mixup": 0.4})
    place = {"batch_size": 8, "seed": 1, "epoch": 0}
    here = [*data.train_batches(config, 32, **place)]
    there = [*data.train_batches(config, 32, device=GPU, **place)]
    again = [*data.train_batches(config, 32, device=GPU, **place)]
    monkeypatch.setattr(data, "ON_GPU", 0.0)
    data._kept.cache_clear()
    elsewhere = [*data.train_batches(config, 32, device=GPU, **place)]
    for (images, labels), (moved, told), (same, _), (left, _) in zip(here, there, again, elsewhere, strict=True):
        assert moved.is_cuda
        assert not left.is_cuda, "those that do not fit come from the CPU"
        assert torch.equal(moved, same), "itself, to the bit"
        torch.testing.assert_close(moved.cpu(), images, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(told.cpu(), labels)
