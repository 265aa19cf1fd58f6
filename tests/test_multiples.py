"""Cuts in multiples: the best-ranked units stay, the target is met as nearly as before, and 1 is what it was."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import keep_best, scatter_logits, small_vit, tiny
from torch import Tensor

import hiap
from hiap import cost, gated_vit, ledger
from hiap.budget.prices import kept_cost, param_prices
from hiap.budget.selection import Ranking, joint_ranking, kept_units, rounded, target_of
from hiap.budget.summary import block_shapes, summary_of
from hiap.gated_vit import BlockMask
from hiap.ledger import Prices
from hiap.train import run as train
from hiap.train.config import Config, from_dict
from hiap.train.record import Folders

IMAGE = (1, 16, 16)
SHARES = [0.8, 0.6, 0.45]
KEEP = {"blocks.0.attn": [1, 3], "blocks.1.mlp": [7, 100], "blocks.2": True}


def draw(*shape: int, seed: int) -> Tensor:
    """Numbers that no version of numpy or torch changes."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)).float()


def scatter(gated: Any, seed: int, macro: float = 0.5) -> Any:
    """Logits at random, those of heads and FFNs around ``macro``."""
    for i, (_, gate) in enumerate(hiap.named_gates(gated)):
        gate.logit.data = draw(*gate.logit.shape, seed=1000 * seed + i) + (macro if gate.level == "macro" else 0.0)
    return gated


@pytest.fixture(scope="module")
def gated() -> Any:
    return hiap.gate(timm.create_model("deit_small_patch16_224"))


@pytest.fixture(scope="module")
def cut_alike() -> Any:
    """The same with Q and K that lose dimensions too."""
    return hiap.gate(timm.create_model("deit_small_patch16_224"), dims="qkv")


def ranked(kind: str, gated: Any, cut_alike: Any) -> tuple[Ranking, Prices]:
    """A ranking of DeiT-Small's units, and what they cost."""
    dims, layers = cost.dims_of(gated), (12, 6, 64)
    prices, params = ledger.mac_prices(dims), param_prices(gated)
    ties = Ranking(dims=draw(*layers, seed=1).round(decimals=1), neurons=draw(12, 1536, seed=2).round(decimals=1))
    if kind.startswith("joint"):
        return joint_ranking(scatter(gated, int(kind[-1]))), prices
    return {
        "params": lambda: (joint_ranking(scatter(gated, 4)), params),
        "qkv": lambda: (joint_ranking(scatter(cut_alike, 5)), prices),
        "keep": lambda: (joint_ranking(scatter(gated, 6), KEEP), prices),
        "many heads": lambda: (joint_ranking(scatter(gated, 7, macro=3.0)), params),
        "ties": lambda: (ties, prices),
        "neurons": lambda: (Ranking(neurons=ties.neurons), prices),
        "heads": lambda: (Ranking(dims=draw(12, 6, 1, seed=3).expand(layers), cut_qk=True), prices),
    }[kind]()


# Of the masks at a share of 0.8, 0.6 and 0.45, as the function gave them before it knew multiples.
GOLDEN = {
    "joint 0": "149ff86f8125f3d4",
    "joint 1": "92d867d1f8a78418",
    "params": "699cc60f010c80a9",
    "qkv": "3c748b869f07ee32",
    "keep": "bc585cabb1d78375",
    "many heads": "8c60511f06ff584e",
    "ties": "5559ec0daa046d29",
    "neurons": "d3a98b9b802ec9f2",
    "heads": "bc54c6ed0a41dbca",
}


def digest(kept: list[BlockMask]) -> str:
    return hashlib.sha256(b"".join(t.numpy().tobytes() for mask in kept for t in vars(mask).values())).hexdigest()[:16]


def dense_of(gated: Any, prices: Prices) -> int:
    return prices.constant + ledger.dense_cost(cost.dims_of(gated), prices)


@pytest.mark.parametrize("kind", GOLDEN)
def test_in_ones_it_is_what_it_was_to_the_bit(kind: str, gated: Any, cut_alike: Any) -> None:
    ranking, prices = ranked(kind, gated, cut_alike)
    dims, dense = cost.dims_of(gated), dense_of(gated, prices)
    shares = [0.9, 0.8, 0.75] if kind == "heads" else SHARES  # heads alone are not more
    found = [digest(keep_best(dims, ranking, round(share * dense), prices)) for share in shares]
    assert hashlib.sha256("".join(found).encode()).hexdigest()[:16] == GOLDEN[kind]


def widths(kept: list[BlockMask]) -> list[int]:
    """Value dimensions of each head and neurons of each FFN, 0 where it is gone."""
    return [n for m in kept for n in [*(m.dims.sum(-1) * m.heads).tolist(), m.neuron_count()]]


def the_best_stay(kept: list[BlockMask], ranking: Ranking) -> bool:
    """In no head or FFN does a unit go that ranks above one that stays."""
    pairs = [
        (torch.stack([m.dims for m in kept]), ranking.dims),
        (torch.stack([m.neurons for m in kept]), ranking.neurons),
    ]
    for stays, keys in pairs:
        if keys is not None:
            worst, best = keys.masked_fill(~stays, torch.inf).amin(-1), keys.masked_fill(stays, -torch.inf).amax(-1)
            if not bool((worst >= best).all()):
                return False
    return True


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5, 0.3])
@pytest.mark.parametrize("macro", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_in_sixteens_it_is_on_target_and_the_best_stay(share: float, macro: float, seed: int, gated: Any) -> None:
    """MACs and parameters, whatever share of heads and FFNs the macro gates close."""
    scatter(gated, seed, macro)
    dims, ranking = cost.dims_of(gated), joint_ranking(gated)
    for unit in ("target_macs", "target_params"):
        target = target_of(gated, **{unit: share}, multiple=None)
        assert target is not None
        assert target.multiple == 16
        kept = target.keep_best(ranking)
        found = kept_cost(target.prices, kept, dims.head_dim)
        assert target.amount - 0.005 * target.dense <= found <= target.amount
        assert all(width % 16 == 0 for width in widths(kept))
        assert the_best_stay(kept, ranking)


@pytest.mark.parametrize("kind", ["qkv", "keep", "many heads", "ties", "neurons"])
@pytest.mark.parametrize("share", [0.8, 0.6])
def test_so_it_is_with_every_kind_of_ranking(kind: str, share: float, gated: Any, cut_alike: Any) -> None:
    ranking, prices = ranked(kind, gated, cut_alike)
    dims, target = cost.dims_of(gated), round(share * dense_of(gated, prices))
    kept = keep_best(dims, ranking, target, prices, 16)
    assert 0.995 * target <= kept_cost(prices, kept, dims.head_dim, ranking.cut_qk) <= target
    assert all(width % 16 == 0 for width in widths(kept))
    if kind != "keep":
        assert the_best_stay(kept, ranking)
        return
    first, second, third = kept[:3]
    assert first.dims[[1, 3]].all()
    assert second.neurons[[7, 100]].all()
    assert third.dims.all()
    assert third.neurons.all()


def test_a_cut_in_sixteens_is_the_nearest_to_one_in_ones(gated: Any) -> None:
    """With all macro gates open no head or FFN ends more than one portion away from where single units end."""
    ranking = joint_ranking(scatter(gated, 8, macro=9.0))
    dims, prices = cost.dims_of(gated), ledger.mac_prices(cost.dims_of(gated))
    target = round(0.6 * ledger.dense_macs(dims))
    ones, sixteens = (widths(keep_best(dims, ranking, target, prices, multiple)) for multiple in (1, 16))
    assert max(abs(a - b) for a, b in zip(ones, sixteens, strict=True)) < 16
    assert sum(a != b for a, b in zip(ones, sixteens, strict=True)) > 40, "else nothing was rounded"


def test_a_target_is_out_of_reach_by_what_a_portion_costs(gated: Any) -> None:
    """What must stay is one unit in ones, and a portion in sixteens."""
    dims = cost.dims_of(gated)
    prices, ranking = ledger.mac_prices(dims), joint_ranking(scatter(gated, 9))
    least = prices.constant + prices.head + prices.value_dim
    assert sum(widths(keep_best(dims, ranking, least))) == 1
    with pytest.raises(hiap.ConfigError, match="reachable"):
        keep_best(dims, ranking, least + 15 * prices.value_dim - 1, multiple=16)
    assert sum(widths(keep_best(dims, ranking, least + 15 * prices.value_dim, multiple=16))) == 16


def test_what_no_multiple_divides_is_kept_whole_or_in_multiples() -> None:
    gated = hiap.gate(small_vit(embed_dim=48, mlp_ratio=70 / 48))  # heads of 12, FFNs of 70
    seen = set()
    for seed in range(8):
        scatter_logits(gated, seed)
        kept = kept_units(gated, target_of(gated, 0.2 + 0.1 * seed, multiple=8))
        seen |= {("dims", width) for m in kept for width in m.dims.sum(-1).tolist()}
        seen |= {("neurons", m.neuron_count()) for m in kept}
    assert {width for kind, width in seen if kind == "dims"} == {0, 12}
    assert {width for kind, width in seen if kind == "neurons"} <= {0, 8, 16, 24, 32, 40, 48, 56, 70}


def test_how_many_fit_is_one_rule() -> None:
    """16 for a network that somebody runs; what small ones have is fine enough for their targets."""

    def fits(model: Any, **options: Any) -> int:
        target = target_of(hiap.gate(model, **options), 0.5, multiple=None)
        assert target is not None
        unit = max(target.prices.neuron, target.prices.value_dim)
        assert target.multiple in (1, 16) or target.multiple * unit <= target.dense / 400 < 4 * target.multiple * unit
        return target.multiple

    assert fits(timm.create_model("deit_tiny_patch16_224")) == 16
    assert fits(timm.create_model("deit_tiny_patch16_224"), dims="qkv") == 8, "Q and K go along"
    assert fits(small_vit()) == 1
    assert 1 < fits(small_vit(embed_dim=96, depth=4)) < 16
    plain = target_of(small_vit(), 0.5)
    assert plain is not None
    assert plain.multiple == 1


def test_extraction_and_pruner_take_what_fits_with_a_target_and_ones_without(gated: Any) -> None:
    scatter(gated, 0)
    for name, multiple in (("target_macs", 16), ("target_params", 16)):
        assert all(
            width % multiple == 0 for width in widths(kept_units(gated, target_of(gated, **{name: 0.5}, multiple=None)))
        )
    assert digest(kept_units(gated)) == digest(gated_vit.masks(gated))
    assert hiap.Pruner(small_vit(), steps=1).multiple == 1
    assert hiap.Pruner(small_vit(embed_dim=96, depth=4), steps=1, target_macs=0.5).multiple > 1
    assert hiap.Pruner(small_vit(), steps=1, target_macs=0.5, multiple=8).multiple == 8


@pytest.mark.parametrize("harden", ["probability", "sample"])
@pytest.mark.parametrize("multiple", [3, 4])
def test_the_papers_rule_is_rounded_to_the_nearest(multiple: int, harden: Any) -> None:
    """Half a multiple is rounded up, fewer go; what was open stays before what was closed; twice is once."""
    gated = hiap.gate(small_vit(), harden=harden)
    scatter_logits(gated, spread=1.5)
    before = gated_vit.masks(gated)
    after = rounded(gated, before, multiple)
    for old, new in zip(widths(before), widths(after), strict=True):
        size = 128 if old > 8 else 8
        allowed = [*range(0, size // multiple * multiple, multiple), size]
        assert new in allowed
        assert abs(new - old) <= min(abs(other - old) for other in allowed)
    for old, new in zip(before, after, strict=True):
        added, gone = new.neurons & ~old.neurons, old.neurons & old.ffn & ~new.neurons  # type: ignore[attr-defined]
        assert not (added.any() and gone.any())
        assert torch.equal(new.heads, old.heads)  # type: ignore[attr-defined]
        assert torch.equal(new.ffn, old.ffn)  # type: ignore[attr-defined]
    assert harden == "sample" or the_best_stay([m for m in after if m.ffn], _of_open_ffns(gated, after))
    gated_vit.harden_to(gated, after)
    assert digest(rounded(gated, gated_vit.masks(gated), multiple)) == digest(after)


def _of_open_ffns(gated: Any, kept: list[BlockMask]) -> Ranking:
    keys = joint_ranking(gated).neurons
    assert keys is not None
    return Ranking(neurons=keys[torch.stack([m.ffn for m in kept])])


def test_rounding_leaves_a_head_where_there_was_one_and_none_where_there_was_none() -> None:
    gated = hiap.gate(small_vit())
    for block in gated.blocks:
        block.attn.value_gate.logit.data.fill_(-1.0)
    gated.blocks[1].attn.value_gate.logit.data[2, 5] = 1.0
    kept = rounded(gated, gated_vit.masks(gated), 4)
    assert [m.dims.sum(-1).tolist() for m in kept] == [[0] * 4, [0, 0, 4, 0], [0] * 4]
    gated.blocks[1].attn.value_gate.logit.data[2, 5] = -0.5
    assert not any(m.dims.any() for m in rounded(gated, gated_vit.masks(gated), 4))
    protected = kept_units(gated, keep={"blocks.0.attn": [1], "blocks.2.mlp": [3]}, multiple=4)
    assert protected[0].dims[1].all()
    assert protected[2].neurons[3]


@pytest.mark.parametrize("options", [{"target_macs": 0.5}, {"target_params": 0.6}, {}, {"keep": {"blocks.1": True}}])
@pytest.mark.parametrize("dims", ["v", "qkv"])
def test_masked_is_extracted_and_the_summary_says_both_numbers(options: Any, dims: Any, images: Tensor) -> None:
    pruner = hiap.Pruner(small_vit(), steps=1, gates=hiap.GateConfig(dims=dims), multiple=4, **options)
    scatter_logits(pruner.model)
    pruner.step()
    goal = {key: value for key, value in options.items() if key != "keep"}
    alone = summary_of(pruner.model, kept_units(pruner.model, target_of(pruner.model, **goal), options.get("keep")))
    summaries = [pruner.summary()]
    pruner.harden()
    with torch.no_grad():
        masked = pruner.model.eval()(images)
        summaries.append(pruner.summary())
        small = pruner.finish().eval()
        assert torch.allclose(small(images), masked, atol=1e-5)
    assert all(width % 4 == 0 for block in block_shapes(small) for width in (*block.head_dims, block.neurons))
    by_target = any(name.startswith("target") for name in options)
    for summary in summaries:
        assert (summary.macs, summary.params) == (hiap.macs(small, IMAGE), hiap.params(small))
        assert (summary.threshold is None) == by_target
        assert by_target or summary.threshold == alone != summary
        assert by_target or f"threshold {alone.counts}" in str(summary)
        assert by_target or f"in multiples of 4: {summary.counts}" in str(summary)


@pytest.mark.parametrize("multiple", [0, -8, 1.5, "16"])
def test_a_multiple_that_is_none_is_refused_in_one_line(multiple: Any) -> None:
    for call in (
        lambda: hiap.extract(hiap.gate(small_vit()), multiple=multiple),
        lambda: hiap.extract(hiap.gate(small_vit()), multiple=multiple, target_macs=0.5),
        lambda: hiap.Pruner(small_vit(), steps=1, multiple=multiple),
    ):
        with pytest.raises(hiap.ConfigError, match=r"multiple .*: expected a number of units, 1 or more"):
            call()


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = tiny(tmp_path_factory.mktemp("results"), model={"num_heads": 1})
    train.run(config)
    return config


@pytest.mark.filterwarnings("ignore:Unwrapped parameters detected")
@pytest.mark.parametrize(
    ("method", "sections"),
    [
        ("hiap", {}),
        ("uniform", {}),
        ("taylor", {"budget": {"rounds": 2}}),
        ("vit_slim", {"search": {"epochs": 1}}),
        ("peer", {}),
    ],
)
def test_a_run_cuts_every_method_in_multiples(start: Config, method: str, sections: dict[str, Any]) -> None:
    base = {"model": {"weights": f"run:{start.run_id}", "num_heads": 1}, "distill": {"alpha": 0.7}}
    budget = {"target_macs": 0.7, "multiple": 4, **sections.get("budget", {})}
    config = tiny(start.run.results, method=method, **{**base, **sections, "budget": budget})
    record = train.run(config)
    assert record.size is not None
    assert 0.6 * record.size.dense_macs < record.size.macs <= 0.7 * record.size.dense_macs
    small = hiap.load(Folders.of(config).model)
    assert all(width % 4 == 0 for block in block_shapes(small) for width in (*block.head_dims, block.neurons))


def test_a_run_id_hears_of_multiples_only_where_they_are_set() -> None:
    plain = from_dict({"budget": {"target_macs": 0.5}})
    assert from_dict({"budget": {"target_macs": 0.5, "multiple": 1}}).run_id == plain.run_id
    assert from_dict({"budget": {"target_macs": 0.5, "multiple": 16}}).run_id != plain.run_id
