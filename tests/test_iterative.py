"""A network that was pruned is pruned again: by HiAP, to a share of what it was, with the function that it had."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import scatter_logits, small_vit, tiny
from test_extraction import relative
from test_families import made, random_gated, small
from test_guard import Adapter, doubled, patched, put, twice
from timm.models.beit import Beit
from timm.models.eva import Eva

import hiap
from hiap import cost, ledger
from hiap.backbones.evening import even, trimmed
from hiap.budget.latency import LatencyTable
from hiap.budget.prices import priced
from hiap.budget.summary import block_shapes
from hiap.train import run as train
from hiap.train.config import Config
from hiap.train.record import Folders

IMAGE = (1, 16, 16)


def once(seed: int = 0) -> Any:
    """Uneven heads, the last block without its FFN, the first without its attention."""
    gated = hiap.gate(small_vit())
    scatter_logits(gated, seed)
    gated.blocks[0].attn.head_gate.logit.data.fill_(-1)
    gated.blocks[0].mlp.block_gate.logit.data.fill_(1)
    gated.blocks[1].mlp.block_gate.logit.data.fill_(1)
    gated.blocks[1].attn.head_gate.logit.data.fill_(1)
    gated.blocks[2].mlp.block_gate.logit.data.fill_(-1)
    return hiap.extract(gated).eval()


def test_heads_of_different_widths_are_told_by_gate() -> None:
    first = once()
    for block in (first.blocks[0], first.blocks[2]):
        block.attn, block.mlp = first.blocks[1].attn, first.blocks[1].mlp
        for part in ("norm1", "ls1", "drop_path1", "norm2", "ls2", "drop_path2"):
            setattr(block, part, getattr(first.blocks[1], part))
    with pytest.raises(hiap.UnsupportedModelError, match=r"blocks\.0\.attn: heads of different widths.*hiap\.prune"):
        hiap.gate(first)


def test_it_starts_as_it_was(images: torch.Tensor) -> None:
    first = once()
    pruner = hiap.Pruner(first, steps=3)
    with torch.no_grad():
        assert relative(pruner.model.eval()(images), first(images)) < 1e-5
        same = hiap.extract(pruner.model)
        assert relative(same(images), first(images)) < 1e-5
    assert hiap.macs(same, IMAGE) == hiap.macs(first, IMAGE)


def hooked(module: Any) -> None:
    module.register_forward_hook(lambda m, args, out: 2 * out)


CHANGED = {
    "an adapter": (lambda m: put(m, "blocks.1.attn.qkv", Adapter), "adapter; merge it first"),
    "a subclass": (lambda m: put(m, "blocks.1.mlp.fc1", doubled), r"\(Doubled\): expected torch.nn.Linear"),
    "a patched block": (lambda m: patched("blocks.1", twice)(m), "its forward was replaced"),
    "a hook": (lambda m: hooked(m.blocks[1].attn), "would change what the network computes"),
}


@pytest.mark.parametrize("case", CHANGED)
@pytest.mark.parametrize(
    "prune", [lambda m: hiap.Pruner(m, steps=2), lambda m: hiap.prune(m, torch.zeros(4, *IMAGE), target_macs=0.9)]
)
def test_what_its_weights_do_not_say_is_refused(case: str, prune: Any) -> None:
    change, line = CHANGED[case]
    first = once()
    change(first)
    with pytest.raises(hiap.UnsupportedModelError, match=line) as told:
        prune(first)
    assert "\n" not in str(told.value)


def test_what_is_frozen_stays_frozen() -> None:
    first = once().requires_grad_(False)
    first.head.requires_grad_(True)
    pruner = hiap.Pruner(first, steps=2, target_macs=0.8)
    learns = [name for name, p in pruner.model.named_parameters() if p.requires_grad and not name.endswith("logit")]
    assert learns == ["head.weight", "head.bias"]
    small = hiap.extract(pruner.model, target_macs=0.8)
    assert [name for name, p in small.named_parameters() if p.requires_grad] == learns


def narrow(images: torch.Tensor) -> Any:
    """As ``hiap.prune`` leaves a network: Q and K narrower, in the first block by half, and an FFN that is gone but
    for what it gave on average."""
    gated = hiap.gate(small_vit(depth=4), attn_bias="kept")
    scatter_logits(gated)
    for block in gated.blocks:
        block.attn.head_gate.logit.data.fill_(1)
        block.mlp.block_gate.logit.data.fill_(1)
    gated.blocks[1].mlp.neuron_gate.logit.data.fill_(-1)
    gated.blocks[2].attn.head_gate.logit.data.fill_(-1)
    first = hiap.extract(gated).eval()
    assert first.blocks[1].mlp_constant is not None
    assert first.blocks[2].attn_constant is not None
    with torch.no_grad():
        for constant in (first.blocks[1].mlp_constant, first.blocks[2].attn_constant):
            constant.normal_()
        for attn, left in ((first.blocks[0].attn, 4), (first.blocks[3].attn, 1)):
            rows = torch.arange(sum(attn.qk_dims)) % 8 >= left
            attn.qkv.weight[: 2 * len(rows)][rows.repeat(2)] = 0
            attn.qkv.bias[: 2 * len(rows)][rows.repeat(2)] = 0
    return trimmed(first)


@pytest.mark.parametrize("share", [0.99, 0.9, 0.7, 0.5])
@pytest.mark.parametrize("what", ["target_macs", "target_params"])
def test_a_target_of_a_narrowed_network_is_met_and_told(images: torch.Tensor, share: float, what: str) -> None:
    first, count = narrow(images), {"target_macs": lambda m: hiap.macs(m, IMAGE), "target_params": hiap.params}[what]
    pruner = hiap.Pruner(first, steps=2, multiple=1, **{what: share})
    summary = pruner.summary()
    small = pruner.finish()
    wanted, most = share * count(first), max(pruner.budget.target.prices.head, pruner.budget.target.prices.neuron)
    assert wanted - most < count(small) <= wanted
    assert pruner.budget.target.first == count(first)
    assert (summary.macs, summary.dense_macs) == (hiap.macs(small, IMAGE), hiap.macs(first, IMAGE))
    assert (summary.params, summary.dense_params) == (hiap.params(small), hiap.params(first))
    assert [block.macs for block in summary.blocks] == [block.macs for block in block_shapes(small)]
    again = hiap.extract(pruner.model, multiple=1, **{what: share})
    assert count(again) == count(small)
    with torch.no_grad():
        assert relative(pruner.model.eval()(images), small(images)) < 1e-5
        assert relative(again(images), small(images)) < 1e-5
    left = hiap.prune(first, images, fisher="none", multiple=1, **{what: share})
    assert wanted - most < count(left) <= wanted


OTHERS: dict[str, tuple[Callable[[], Any], str]] = {
    "separate Q, K, V": (lambda: made(Eva, qkv_fused=False, use_rot_pos_emb=False), "qkv"),
    "BEiT without positions": (lambda: made(Beit, use_rel_pos_bias=False), "qkv"),
    "BEiT": (lambda: small("BEiT"), "v"),
    "EVA": (lambda: small("EVA"), "v"),
}


@pytest.mark.parametrize("family", OTHERS)
@pytest.mark.parametrize("what", ["target_macs", "target_params"])
@pytest.mark.parametrize("share", [0.97, 0.9, 0.7])
def test_other_families_are_cut_again_to_the_target(family: str, what: str, share: float) -> None:
    """Where Q and K cannot be trimmed, and where a head has parameters of its own."""
    count = {"target_macs": lambda m: hiap.macs(m, IMAGE), "target_params": hiap.params}[what]
    make, dims = OTHERS[family]
    gated = hiap.gate(make(), dims=dims)
    scatter_logits(gated)
    for block in gated.blocks:
        block.attn.head_gate.logit.data.fill_(1)
        block.mlp.block_gate.logit.data.fill_(1)
    first = hiap.extract(gated).eval()
    pruner = hiap.Pruner(first, steps=2, multiple=1, **{what: share})
    small_one = pruner.finish()
    prices = pruner.budget.target.prices
    assert share * count(first) - 2 * max(prices.head, prices.neuron) < count(small_one) <= share * count(first)


def test_what_is_gone_is_not_kept(images: torch.Tensor) -> None:
    first = narrow(images)
    for keep in ({"blocks.1": True}, {"blocks.1.mlp": True}):
        pruner = hiap.Pruner(first, steps=2, multiple=1, target_macs=0.9, keep=keep)
        target = pruner.budget.target
        assert target.amount - target.prices.head < hiap.macs(pruner.finish(), IMAGE) <= target.amount


def test_a_trimmed_network_drops_nothing_when_it_is_evaluated(images: torch.Tensor) -> None:
    dense = small_vit(attn_drop_rate=0.3, proj_drop_rate=0.3)
    torch.nn.init.normal_(dense.head.weight)
    pruned = hiap.prune(dense, images, target_macs=0.4)
    assert any(min(block.attn.qk_dims) < 8 for block in pruned.blocks if block.attn is not None)
    assert torch.equal(pruned(images), pruned(images))


def test_a_number_above_what_a_pruned_network_has_is_refused(images: torch.Tensor) -> None:
    first = narrow(images)
    for name, there in (("target_macs", hiap.macs(first, IMAGE)), ("target_params", hiap.params(first))):
        assert hiap.Pruner(first, steps=2, multiple=1, **{name: there})
        with pytest.raises(hiap.ConfigError, match=r"is above the .* of this network"):
            hiap.Pruner(first, steps=2, multiple=1, **{name: there + 1})


def test_what_an_ffn_has_left_behind_stays_with_a_target(images: torch.Tensor) -> None:
    first = narrow(images)
    with torch.no_grad():
        first.blocks[3].mlp.fc2.weight[:, 0] = 1e-6  # goes first: nothing else changes
        pruner = hiap.Pruner(first, steps=2, multiple=1, target_macs=0.999)
        small = pruner.finish()
        assert small.blocks[1].mlp_constant is not None
        assert small.blocks[2].attn_constant is not None
        assert torch.equal(small.blocks[1].mlp_constant, first.blocks[1].mlp_constant)


def test_a_share_of_time_is_of_what_it_is_now(images: torch.Tensor) -> None:
    first = narrow(images)
    prices = ledger.Prices(head=800, value_dim=30, neuron=10, attention=50, ffn=70, constant=1000, unit="ps")
    table = LatencyTable(dims=cost.dims_of(even(first)), prices=prices)
    target = hiap.Pruner(first, steps=2, target_latency=0.9, latency=table).budget.target
    assert target.amount == round(0.9 * priced(first, prices, 8))


@pytest.mark.parametrize(
    "family", ["EVA", "EVA-02 plain", "DINOv3", "mixed angles", "BEiT", "SwiGLU apart", "norms behind"]
)
def test_networks_with_positions_are_pruned_again(family: str, images: torch.Tensor) -> None:
    dense = small(family) if family != "EVA-02 plain" else made(Eva, use_rot_pos_emb=True, qkv_fused=False).double()
    gated = random_gated(dense, 0)
    gated.blocks[1].mlp.block_gate.logit.data.fill_(1)
    first, pictures = hiap.extract(gated).eval(), images.double()
    assert first.blocks[0].attn is None
    pruner = hiap.Pruner(first, steps=2, target_macs=0.8)
    with torch.no_grad():
        assert relative(pruner.model.eval()(pictures), first(pictures)) < 1e-6
        second = hiap.extract(pruner.model, target_macs=0.8)
    assert hiap.macs(second, IMAGE) <= 0.8 * hiap.macs(first, IMAGE)


def test_norms_over_units_are_told() -> None:
    first = hiap.extract(random_gated(small("inner norms"), 0))
    with pytest.raises(hiap.UnsupportedModelError, match=r"blocks\.\d\.(attn|mlp): pruned, with a norm over its"):
        hiap.Pruner(first, steps=2)


def test_what_attention_has_left_behind_stays(images: torch.Tensor) -> None:
    """A branch that is gone but for its bias, as ``hiap.prune`` leaves it."""
    gated = hiap.gate(small_vit(), attn_bias="kept")
    gated.blocks[1].attn.head_gate.logit.data.fill_(-1)
    first = hiap.extract(gated).eval()
    assert first.blocks[1].attn_constant is not None
    pruner = hiap.Pruner(first, steps=2)
    with torch.no_grad():
        assert relative(pruner.model.eval()(images), first(images)) < 1e-5
        assert relative(hiap.extract(pruner.model)(images), first(images)) < 1e-5


def test_it_lands_on_a_share_of_what_it_was(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    first = once()
    pruner = hiap.Pruner(first.train(), steps=12, target_macs=0.6, multiple=1)
    optimizer = torch.optim.AdamW(pruner.param_groups(lr=1e-3, gate_lr=0.6))
    for _ in range(12):
        labels = torch.arange(4)
        (hiap.distillation_loss(pruner.model(images), labels) + pruner.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    assert pruner.travel() < 12 * 0.6 * 1.1, "what was gone has gone nowhere"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = pruner.finish().eval()
    assert 0.57 < hiap.macs(second, IMAGE) / hiap.macs(first, IMAGE) <= 0.6
    with torch.no_grad():
        assert relative(second(images), pruner.model.eval()(images)) < 1e-5
    third = hiap.Pruner(second, steps=1, target_macs=0.9)
    assert third.model.eval()(images).shape == (4, 10)


# --- whole runs of every method ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("again") / "once"
    hiap.save(once(), folder)
    return folder


def further(saved: Path, method: str, share: float = 0.8, **sections: Any) -> Config:
    base: dict[str, Any] = {"optim": {"epochs": 2}, "distill": {"alpha": 0.7}, "gates": {"lr": 1.0}, **sections}
    base["budget"] = {"target_macs": share, **base.get("budget", {})}
    network = hiap.load(saved)
    model = {"weights": str(saved), "embed_dim": network.embed_dim, "depth": len(network.blocks)}
    return tiny(saved.parent / "results", method=method, model=model, **base)


METHODS: list[tuple[str, dict[str, Any]]] = [
    ("hiap", {"gates": {"lr": 0.2}}),
    ("hiap", {"gates": {"lr": 0.2}, "budget": {"settle": 0.5}}),
    ("hiap_uniform", {}),
    ("hiap_ranked", {"gates": {"lr": 0.2}, "options": {"images": 64, "spread": 0.5}}),
    ("random", {}),
    ("l1", {"budget": {"ranking": "global"}}),
    ("uniform", {"budget": {"noise": True}}),
    ("taylor", {"budget": {"rounds": 2}}),
    ("obs", {"budget": {"correct": 128}, "options": {"images": 64}}),
    ("magnitude", {"budget": {"head_ranking": "layer"}, "optim": {"epochs": 0}}),
    ("vit_slim", {"search": {"epochs": 1}}),
    ("cofi", {"search": {"epochs": 1}, "budget": {"target_macs": None, "target_params": 0.85}}),
]


@pytest.mark.parametrize(("method", "sections"), METHODS)
def test_every_method_prunes_it_to_a_share_of_what_it_was(saved: Path, method: str, sections: dict[str, Any]) -> None:
    config, first = further(saved, method, **sections), once()
    record = train.run(config)
    small = hiap.load(Folders.of(config).model)
    assert record.size is not None
    assert record.size.dense_macs == hiap.macs(first, IMAGE)
    if method.startswith("hiap") or method == "cofi":
        assert all((log.macs or 0) <= record.size.dense_macs for log in record.epochs), "what is gone is never open"
    if method == "cofi":
        assert record.epochs[0].macs > record.size.dense_macs / 2, "what is gone is not to be saved once more"
    if config.budget.target_params:
        assert 0.78 < record.size.params / cost.params(first) <= 0.85
    else:
        assert 0.73 < record.size.macs / record.size.dense_macs <= 0.8
    assert hiap.macs(small, IMAGE) == record.size.macs
    for block in small.blocks:
        if block.attn is not None:
            assert not (block.attn.proj.weight == 0).all(0).any(), "nothing that was gone has come back"
        if block.mlp is not None:
            assert not (block.mlp.fc2.weight == 0).all(0).any()


@pytest.mark.parametrize(
    ("method", "sections"),
    [
        ("hiap", {"gates": {"lr": 0.2}}),
        ("obs", {"options": {"queries": True, "images": 64}}),
        ("uniform", {"budget": {"noise": True, "correct": 64}}),
        ("vit_slim", {"search": {"epochs": 1}}),
    ],
)
def test_constants_stay_where_they_are_to_be_kept(
    tmp_path: Path, images: torch.Tensor, method: str, sections: dict[str, Any]
) -> None:
    first = narrow(images)
    hiap.save(first, tmp_path / "narrow")
    gates = {**sections.get("gates", {"lr": 1.0}), "attn_bias": "kept"}
    config = further(tmp_path / "narrow", method, **{**sections, "gates": gates})
    record, small = train.run(config), hiap.load(Folders.of(config).model)
    assert small.blocks[2].attn_constant is not None
    assert small.blocks[1].mlp_constant is not None
    assert record.size is not None
    assert 0.73 < record.size.macs / hiap.macs(first, IMAGE) <= 0.8


def test_what_is_removed_in_two_runs_is_what_is_removed_in_one(tmp_path: Path, images: torch.Tensor) -> None:
    """Of a ranking by weights, without training in between."""
    hiap.save(small_vit(), tmp_path / "whole")

    def cut(start: Path, macs: int) -> Any:
        given = {"budget": {"ranking": "global", "target_macs": macs}, "optim": {"epochs": 0}, "distill": {"alpha": 0}}
        model = {"weights": str(start), "embed_dim": 32, "depth": 3}
        config = tiny(tmp_path / f"{start.name}-{macs}", method="l1", model=model, **given)
        train.run(config)
        return Folders.of(config).model

    most, least = (round(share * hiap.macs(small_vit(), IMAGE)) for share in (0.85, 0.7))
    twice, once_ = (
        hiap.load(folder) for folder in (cut(cut(tmp_path / "whole", most), least), cut(tmp_path / "whole", least))
    )
    assert hiap.macs(twice, IMAGE) == hiap.macs(once_, IMAGE)
    with torch.no_grad():
        assert relative(twice(images), once_(images)) < 1e-5


@pytest.mark.parametrize(
    ("method", "sections", "line"),
    [
        ("peer", {}, "pruned before, which method 'peer' does not take; expected one of hiap, "),
        (
            "hiap",
            {"budget": {"target_macs": None, "target_latency": 0.5}, "penalty": {"latency_table": "TABLE"}},
            "TABLE",
        ),
    ],
)
def test_what_does_not_go_is_one_line_before_anything_is_paid(
    saved: Path, method: str, sections: dict[str, Any], line: str
) -> None:
    with pytest.raises(hiap.ConfigError, match=line) as told:
        train.run(further(saved, method, **sections))
    assert "\n" not in str(told.value)


def test_an_evened_network_stays_a_run_that_resumes(saved: Path) -> None:
    """A round leaves zeros, is kept on disk and goes on."""
    config = further(saved, "taylor", budget={"rounds": 2}, run={"grid": "resumed"})
    again = further(saved, "taylor", budget={"rounds": 2}, run={"grid": "undisturbed"})
    stop = iter([False] * 15 + [True])
    seen = train.Run(config, Folders.of(config), lambda: next(stop, False))
    with pytest.raises(train.Interrupted):
        seen.execute("now")
    one, two = train.run(config), train.run(again)
    assert one.resumed
    assert one.metrics.extracted == two.metrics.extracted
