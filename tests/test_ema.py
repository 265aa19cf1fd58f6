"""The running average of the weights is what is measured and kept, resumes bit for bit, and is off unless asked for;
accuracy after each epoch is measured without a trace in what is learned."""

# ruff: noqa: F811  (fixtures of another file)

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from conftest import small_vit, tiny
from test_train import dense, hiap_run, kill_at, killed_at, same_result, weights  # noqa: F401

import hiap
from hiap.train import run as train
from hiap.train.average import Average
from hiap.train.config import Config
from hiap.train.record import Folders


def test_the_average_is_the_weighted_mean_of_all_steps_and_gates_are_not_in_it() -> None:
    model = hiap.gate(small_vit())
    average, decay = Average(model, 0.75), 0.75
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert {name for name in start if name not in average.means} == {n for n in start if n.endswith(".logit")}
    expected, generator = copy.deepcopy(start), torch.Generator().manual_seed(0)
    for _ in range(3):
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.add_(torch.randn(p.shape, generator=generator))
                expected[name] = decay * expected[name] + (1 - decay) * p
        average.update(model)
    for name, mean in average.means.items():
        torch.testing.assert_close(mean, expected[name])
    trained = {name: p.detach().clone() for name, p in model.named_parameters()}
    with average.shown(model):
        assert all(torch.equal(dict(model.named_parameters())[name], mean) for name, mean in average.means.items())
    assert all(torch.equal(trained[name], p) for name, p in model.named_parameters())


@pytest.mark.parametrize("settle", [None, 0.5])
def test_an_averaged_run_that_is_killed_ends_with_the_same_bits(dense: Config, kill_at, settle: float | None) -> None:
    sections = {"budget": {"target_macs": 0.7, "settle": settle}} if settle else {}
    config = hiap_run(dense, optim={"epochs": 4, "ema": 0.9}, run={"evaluate_every": 1}, **sections)
    undisturbed, reference = train.run(config), weights(config)
    disturbed, record = killed_at((7, 20), config, kill_at, f"ema{settle}")
    same_result(undisturbed, record)
    resumed = weights(disturbed)
    assert all(torch.equal(reference[k], v) for k, v in resumed.items())
    assert record.resumed == 2
    if settle is None:
        assert record.epochs[-1].top1 == record.metrics.hardened.top1, "of the averaged network, both"
    raw = train.run(hiap_run(dense, optim={"epochs": 4}, **sections))
    assert raw.run_id != config.run_id
    if settle is None:
        assert raw.shape == record.shape, "gates are trained and decide as without the average"
        assert [log.loss for log in raw.epochs] == [log.loss for log in record.epochs]
    assert any(
        not torch.equal(v, reference[k]) for k, v in weights(hiap_run(dense, optim={"epochs": 4}, **sections)).items()
    )


def test_accuracy_after_epochs_leaves_no_trace_in_what_is_learned(dense: Config, tmp_path: Path) -> None:
    plain = hiap_run(dense, optim={"epochs": 3})
    looked = hiap_run(dense, optim={"epochs": 3}, run={"evaluate_every": 2, "grid": "looked"})
    assert plain.run_id == looked.run_id
    first, second = train.run(plain), train.run(looked)
    assert [log.top1 is None for log in second.epochs] == [True, False, True]
    assert all(torch.equal(weights(plain)[k], v) for k, v in weights(looked).items())
    second.epochs[1].top1 = None
    same_result(first, second)
    every = train.run(tiny(tmp_path, run={"evaluate_every": 1}))
    assert every.epochs[-1].top1 == every.metrics.extracted.top1
    assert Folders.of(plain).record.exists()
