"""Controls: sizes without units, units without sizes, a shape without its weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import tiny

from hiap.beyond import obs
from hiap.budget.selection import target_of
from hiap.formats import store
from hiap.train import run as train
from hiap.train.config import Config, ConfigError
from hiap.train.record import Folders
from hiap.train.stages import Context, looked_at, stages


@pytest.fixture(scope="module")
def pruned(dense: Config) -> Config:
    """HiAP's network at half of the MACs of ``dense``."""
    config = after(dense, method="hiap", budget={"target_macs": 0.5})
    train.run(config)
    return config


def after(start: Config, **sections) -> Config:
    values = {"model": {"weights": f"run:{start.run_id}"}, "optim": {"lr": 1e-3}, **sections}
    return tiny(start.run.results, **values)


def shape(config: Config) -> list[tuple[list[int], int]]:
    record = train.run(config)
    return [(sorted(block.head_dims), block.neurons) for block in record.shape or []]


@pytest.mark.parametrize("ramp", [False, True])
def test_same_sizes_are_the_other_runs_and_units_are_the_seeds(dense: Config, pruned: Config, ramp: bool) -> None:
    targets = {"method": "same_sizes", "budget": {"target_macs": f"run:{pruned.run_id}"}, "options": {"ramp": ramp}}
    drawn = after(dense, **targets)
    assert shape(drawn) == shape(pruned)
    first, second = (stages(after(dense, **targets, seed=seed))[0].kept for seed in (0, 1))  # type: ignore[attr-defined]
    model = store.load(Folders.of(dense).model)
    assert any(
        not torch.equal(a.neurons, b.neurons)
        for a, b in zip(first(model, context(drawn, 0))[0], second(model, context(drawn, 1))[0], strict=True)
    )


def context(config: Config, seed: int):
    return Context(config.model_copy(update={"seed": seed}))


def test_same_sizes_need_a_run(dense: Config) -> None:
    with pytest.raises(ConfigError, match="must be run:<run_id>"):
        train.run(after(dense, method="same_sizes", budget={"target_macs": 0.5}))


def test_hiaps_units_at_uniform_sizes_leave_each_layer_the_same(dense: Config) -> None:
    found = shape(after(dense, method="hiap_uniform", budget={"target_macs": 0.5}))
    neurons = [block[1] for block in found]
    dims = [sum(block[0]) for block in found]
    assert max(neurons) - min(neurons) <= 1
    assert max(dims) - min(dims) <= 1


def test_gates_start_in_the_order_of_structured_obs(dense: Config) -> None:
    values: dict[str, Any] = {"method": "hiap_ranked", "budget": {"target_macs": 0.5}}
    config = after(dense, **values, gates={"init_logit": 3.0}, options={"images": 64})
    model = store.load(Folders.of(dense).model)
    target = target_of(model, 0.5)
    gated = stages(config)[0].prepare(model, Context(config, target, 10))
    images = looked_at(Context(config), 64, torch.device("cpu"))
    found = obs.rank(model, images, prices=target.prices)
    keys = torch.cat([key.flatten() for pair in zip(found.dims, found.neurons, strict=True) for key in pair])
    gates = [gate for block in gated.blocks for gate in (block.attn.value_gate, block.mlp.neuron_gate)]
    logits = torch.cat([gate.logit.detach().flatten() for gate in gates])
    assert (logits[keys.argsort()].diff() > 0).all()
    torch.testing.assert_close(torch.stack([logits.min(), logits.max()]), torch.tensor([1.0, 5.0]))
    assert all((block.attn.head_gate.logit == 3).all() and block.mlp.block_gate.logit == 3 for block in gated.blocks)
    with pytest.raises(
        ConfigError, match=r"options\.spread 3: expected more than 0 and less than where gates start, 3"
    ):
        stages(after(dense, **values, gates={"init_logit": 3.0}, options={"spread": 3.0}))
    left = train.run(after(dense, **values, options={"images": 64, "spread": 0.5}))
    assert left.size.macs <= 0.5 * left.size.dense_macs


def test_scratch_takes_the_shape_and_none_of_the_weights(dense: Config, pruned: Config) -> None:
    fresh = after(
        pruned, method="dense", model={"weights": f"run:{pruned.run_id}", "scratch": True}, optim={"lr": 1e-9}
    )
    assert shape(fresh) == shape(pruned)
    record = train.run(fresh)
    assert record.metrics.dense is None  # what the shape's own weights can do is nothing of this run's
    assert record.metrics.extracted is not None
    assert record.metrics.extracted.top1 < 30
    with pytest.raises(ConfigError, match=r"model\.scratch is for method 'dense'"):
        train.run(after(pruned, method="hiap", model={"weights": f"run:{pruned.run_id}", "scratch": True}))


def test_torch_pruning_by_taylor_cuts_otherwise_than_by_norms(dense: Config) -> None:
    found = {
        importance: shape(
            after(
                dense,
                method="peer",
                budget={"target_macs": 0.5},
                optim={"lr": 1e-3, "epochs": 0},
                options={"importance": importance},
            )
        )
        for importance in ("magnitude", "taylor")
    }
    assert found["magnitude"] != found["taylor"]
    with pytest.raises(ConfigError, match="expected magnitude or taylor"):
        stages(after(dense, method="peer", budget={"target_macs": 0.5}, options={"importance": "tailor"}))


def test_same_sizes_refuse_a_run_that_narrowed_more(dense: Config) -> None:
    """Q and K are no sizes of this control: with them whole its network would cost more than the one it stands for."""
    narrowed = after(dense, method="obs", budget={"target_macs": 0.5}, options={"queries": True, "images": 64})
    train.run(narrowed)
    with pytest.raises(ConfigError, match="expected one whose Q and K are whole"):
        train.run(after(dense, method="same_sizes", budget={"target_macs": f"run:{narrowed.run_id}"}))


def test_same_sizes_cost_what_heads_alone_left(dense: Config) -> None:
    heads = after(dense, method="magnitude", budget={"target_macs": 0.85})
    left = train.run(heads).size
    same = train.run(after(dense, method="same_sizes", budget={"target_macs": f"run:{heads.run_id}"})).size
    assert left is not None
    assert same is not None
    assert same.macs == left.macs
