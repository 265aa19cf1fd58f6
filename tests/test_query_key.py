"""Queries and keys of fewer dimensions: the same scores in another basis, and errors that are those of what is left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import small_vit
from test_obs import images
from test_prune import answering
from torch import nn

import hiap
from hiap import cost, gated_vit, ledger
from hiap.backbones.evening import trimmed
from hiap.backbones.families import standard
from hiap.beyond import obs, query_key
from hiap.budget.prices import priced
from hiap.budget.pruner import extract
from hiap.budget.selection import target_of
from hiap.train.config import Config, ConfigError


def seen(model: Any) -> tuple[list[query_key.Queries], Any]:
    queries = query_key.watch(model)
    return queries, obs.rank(model.eval(), images(), also=queries)


@pytest.mark.parametrize("bias", [True, False])
def test_in_its_own_basis_a_network_is_the_same_function(bias: bool) -> None:
    model = answering(qkv_bias=bias)
    queries, _ = seen(model)
    widths = [model.blocks[0].attn.head_dim] * len(model.blocks)
    turned = query_key.narrowed(model, [one.basis() for one in queries], widths)
    x = torch.cat(list(images()))[:8]
    assert not torch.equal(turned.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)
    torch.testing.assert_close(turned(x), model.eval()(x), rtol=1e-4, atol=1e-4)


def test_errors_are_those_of_the_queries_that_are_left() -> None:
    """What the last dimensions cost: the Fisher-weighted square of what their loss changes in every query, summed."""
    model = answering()
    queries, _ = seen(model)
    one, attn = queries[1], model.blocks[1].attn
    basis, fisher = one.basis(), one.fisher / one.tokens
    for width in (1, 3, attn.head_dim):
        projector = basis.key[:, :width].mT @ basis.query[:, :width]  # q' . k' = (P q) . k
        lost = torch.eye(attn.head_dim).double() - projector
        wanted = (fisher @ lost @ (one.seen / one.images) @ lost.mT).diagonal(dim1=-2, dim2=-1).sum(-1)
        torch.testing.assert_close(basis.errors[:, width:].sum(-1), wanted, rtol=2e-3, atol=1e-9)


def low_rank(model: Any, rank: int) -> Any:
    """Queries that lie in a space of so few dimensions."""
    for block in model.blocks:
        attn = block.attn
        mix = torch.randn(attn.num_heads, attn.head_dim, rank) @ torch.randn(attn.num_heads, rank, attn.head_dim)
        with torch.no_grad():
            q = attn.qkv.weight.chunk(3)[0]
            q.copy_((mix @ q.unflatten(0, (attn.num_heads, attn.head_dim))).flatten(0, 1))
            attn.qkv.bias.zero_()
    return model


def test_what_queries_never_use_goes_for_nothing() -> None:
    model = low_rank(answering(), 2)
    queries, ranking = seen(model)
    gated = hiap.gate(model, attn_bias="kept")
    target = target_of(gated, 0.93, multiple=1)
    assert target is not None
    kept, widths = query_key.keep_best(target, ranking, [one.basis() for one in queries])
    assert max(widths) <= 2
    before = target.keep_best(ranking)
    count = [sum(sum(m.head_widths()) + m.neuron_count() for m in masks) for masks in (kept, before)]
    assert count[0] > count[1], "what Q and K save is there for others"
    narrow = query_key.narrowed(model, [one.basis() for one in queries], [2] * len(model.blocks))
    x = torch.cat(list(images()))[:8]
    torch.testing.assert_close(narrow(x), model.eval()(x), rtol=1e-3, atol=1e-3)
    small = trimmed(extract(hiap.gate(narrow).eval()))
    assert all(set(block.attn.qk_dims) == {2} for block in small.blocks)
    torch.testing.assert_close(small.eval()(x), model(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("share", [0.7, 0.4])
def test_it_stays_within_its_target_and_costs_what_is_counted(share: float) -> None:
    model = answering(depth=4)
    small = hiap.prune(model, torch.cat(list(images())), target_macs=share, multiple=1)
    assert any(block.attn and block.attn.qk_dims[0] < model.blocks[0].attn.head_dim for block in small.blocks)
    counted, dense = hiap.macs(small, (1, 16, 16)), hiap.macs(model, (1, 16, 16))
    assert 0.95 * share < counted / dense <= share
    prices = ledger.mac_prices(cost.dims_of(model))
    assert priced(small, prices, model.blocks[0].attn.head_dim) == counted


def test_nothing_is_left_out_where_queries_are_normed_or_there_is_a_table_of_times(tmp_path: Any) -> None:
    normed = small_vit(qk_norm=True)
    assert query_key.watch(standard(normed)) == []
    model = answering()
    _, ranking = seen(model)
    target = target_of(hiap.gate(model), 0.5, multiple=1)
    assert target is not None
    kept, widths = query_key.keep_best(target, ranking, [])
    assert set(widths) == {model.blocks[0].attn.head_dim}
    assert all(torch.equal(a.dims, b.dims) for a, b in zip(kept, target.keep_best(ranking), strict=True))


def test_heads_that_nothing_depends_on_are_no_obstacle() -> None:
    model = answering()
    with torch.no_grad():
        model.blocks[0].attn.qkv.weight.zero_()
        model.blocks[1].attn.proj.weight.zero_()
    small = hiap.prune(model, torch.cat(list(images())), target_macs=0.5)
    assert small(torch.cat(list(images()))[:4]).isfinite().all()


def test_as_a_method_it_needs_one_round_and_an_information() -> None:
    from baselines.obs import stages

    def config(**budget: Any) -> Config:
        fisher = budget.pop("fisher", "own")
        return Config.model_validate(
            {"method": "obs", "options": {"queries": True, "fisher": fisher}, "budget": {"target_macs": 0.5, **budget}}
        )

    assert [type(stage).__name__ for stage in stages(config())] == ["Narrower"]
    for bad in ({"rounds": 3}, {"fisher": "none"}):
        with pytest.raises(ConfigError, match=r"options\.queries"):
            stages(config(**bad))


def test_gates_of_a_narrowed_network_can_be_set_like_any() -> None:
    model = answering()
    small = hiap.prune(model, torch.cat(list(images())), target_macs=0.5)
    again = hiap.prune(small, torch.cat(list(images())), target_macs=0.6)
    assert hiap.macs(again, (1, 16, 16)) <= 0.6 * hiap.macs(small, (1, 16, 16))
    assert not gated_vit.is_gated(again)
    assert isinstance(again.head, nn.Linear)
