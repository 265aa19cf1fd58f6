"""Every method lands just below its target, what it masks is what it extracts, and what it cannot reach it refuses."""

from __future__ import annotations

import pytest
import torch
from conftest import keep_best, scatter_logits, small_vit, tiny
from timm.layers import SwiGLU

import hiap
from baselines import magnitude, random, taylor, torch_pruning, uniform, vit_slim
from baselines.ranking import FixedGate, fold
from hiap import cost, gated_vit, ledger
from hiap.budget.prices import kept_cost
from hiap.budget.selection import Ranking, joint_ranking, target_of
from hiap.train import methods
from hiap.train import run as train
from hiap.train.config import Config, ConfigError, from_dict
from hiap.train.record import Folders
from hiap.train.stages import Context, stages

IMAGE = (1, 16, 16)
SHARES = [0.9, 0.75, 0.6, 0.5, 0.4, 0.3, 0.2, 0.15]


def sizes(model) -> tuple[ledger.Dims, ledger.Prices, int]:
    dims = cost.dims_of(model)
    return dims, ledger.true_prices(dims.tokens, dims.dim, dims.head_dim), ledger.dense_macs(dims)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("mode", ["v", "qkv"])
@pytest.mark.parametrize("shift", [-3.0, 0.0, 3.0])
def test_a_budget_lands_less_than_a_neuron_below_the_target(share, mode, shift):
    """Whatever the gates have learned, also when a threshold of 1/2 would keep all or nothing."""
    model = small_vit()
    dims, prices, dense = sizes(model)
    gated = hiap.gate(model, dims=mode)
    scatter_logits(gated, seed=3)
    for _, gate in hiap.named_gates(gated):
        gate.logit.data += shift
    target = round(share * dense)
    gated_vit.harden_to(gated, keep_best(dims, joint_ranking(gated), target))
    macs = hiap.macs(hiap.extract(gated), IMAGE)
    assert target - prices.neuron < macs <= target


def test_a_budget_moves_one_threshold_for_all_gates():
    """Units that a common threshold closes stay closed, but for those that fill what it leaves of the target."""
    gated = hiap.gate(small_vit())
    scatter_logits(gated, seed=1)
    dims, _, dense = sizes(gated)
    ranking = joint_ranking(gated)
    kept = keep_best(dims, ranking, dense // 2)
    neurons = torch.stack([m.neurons for m in kept])
    open_below = 0
    for layer, block in enumerate(gated.blocks):
        joint = torch.minimum(block.mlp.neuron_gate.logit, block.mlp.block_gate.logit)
        floor = joint[neurons[layer]].min() if neurons[layer].any() else torch.tensor(float("inf"))
        open_below += int((joint[~neurons[layer]] > floor).sum())
    assert open_below <= 1


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("seed", range(4))
def test_what_a_macro_gate_has_closed_stays_closed(share, seed):
    """A head or FFN whose own gate ranks below one that is gone is gone too, not left with a few of its units; only
    where all that are left are full does one come back to fill what remains."""
    gated = hiap.gate(small_vit())
    scatter_logits(gated, seed=seed)
    dims, _, dense = sizes(gated)
    kept = keep_best(dims, joint_ranking(gated), round(share * dense))
    ruled = []  # (macro logit, the logits that it rules, which of those units are left)
    for block, mask in zip(gated.blocks, kept, strict=True):
        ruled.append((block.mlp.block_gate.logit, block.mlp.neuron_gate.logit, mask.neurons))
        ruled += zip(block.attn.head_gate.logit, block.attn.value_gate.logit, mask.dims, strict=True)
    closed = [float(torch.minimum(macro, micro).detach().max()) for macro, micro, left in ruled if not left.any()]
    revived = [bool(left.all()) for macro, micro, left in ruled if left.any() and macro < max(closed, default=-9.0)]
    full = [bool(left.all()) for _, _, left in ruled if left.any()]
    assert not revived or full.count(False) <= 1


def test_hardening_to_a_target_leaves_what_was_learned():
    gated = hiap.gate(small_vit()).train()
    scatter_logits(gated)
    before = [gate.expected().clone() for _, gate in hiap.named_gates(gated)]
    dims, _, dense = sizes(gated)
    gated_vit.harden_to(gated, keep_best(dims, joint_ranking(gated), dense // 3))
    assert all(torch.equal(a, g.expected()) for a, (_, g) in zip(before, hiap.named_gates(gated), strict=True))


@pytest.mark.parametrize("rank", [uniform.rank, random.rank])
@pytest.mark.parametrize("share", SHARES)
def test_baselines_land_less_than_a_neuron_below_the_target(rank, share, images):
    model = small_vit()
    dims, prices, dense = sizes(model)
    target = round(share * dense)
    kept = keep_best(dims, rank(model, Context(Config())), target)
    assert target - prices.neuron < kept_cost(ledger.mac_prices(dims), kept, dims.head_dim) <= target


@pytest.mark.parametrize("share", [0.9, 0.8, 0.75])
def test_heads_go_whole_but_for_the_one_at_the_boundary(share):
    model = small_vit()
    dims, prices, dense = sizes(model)
    target = round(share * dense)
    ranking = magnitude.rank(model, Context(Config()))
    kept = keep_best(dims, ranking, target)
    assert sum(int((m.dims.any(-1) & ~m.dims.all(-1)).sum()) for m in kept) <= 1
    per_dim = prices.head // dims.head_dim + prices.value_dim
    assert target - per_dim < kept_cost(ledger.mac_prices(dims), kept, dims.head_dim, cut_qk=True) <= target
    with pytest.raises(ConfigError, match="reachable"):
        keep_best(dims, ranking, round(0.3 * dense))


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5])
@pytest.mark.filterwarnings("ignore:Unwrapped parameters detected")
def test_torch_pruning_lands_at_most_half_a_per_cent_of_dense_below_the_target(share):
    model = small_vit()
    _, _, dense = sizes(model)
    left = cost.macs(torch_pruning.prune_to(model, target_of(model, share), round_to=None), IMAGE)
    assert (share - 0.005) * dense <= left <= round(share * dense)


@pytest.mark.parametrize("share", [0.9, 0.5, 0.3])
def test_a_head_stays_even_where_every_head_ranks_last(share, images):
    """An extracted network without heads would not look at its image; extraction refuses it."""
    dims, _, dense = sizes(small_vit())
    ranking = Ranking(dims=torch.rand(3, 4, 8) - 5, neurons=torch.rand(3, 128))
    target = round(share * dense)
    gated = hiap.gate(small_vit())
    gated_vit.set_masks(gated, keep_best(dims, ranking, target))
    assert cost.macs(hiap.extract(gated.eval()), IMAGE) <= target


def test_the_weakest_heads_go():
    model = small_vit()
    dims, prices, dense = sizes(model)
    with torch.no_grad():
        model.blocks[1].attn.qkv.weight.chunk(3)[2].view(4, 8, 32)[2] *= 1e-3
        model.blocks[1].attn.proj.weight.view(32, 4, 8)[:, 2] *= 1e-3
    target = dense - prices.head - dims.head_dim * prices.value_dim
    kept = keep_best(dims, magnitude.rank(model, Context(Config())), target)
    assert [m.heads.tolist() for m in kept] == [[True] * 4, [True, True, False, True], [True] * 4]
    assert all(m.dims[m.heads].all() for m in kept)


def test_taylor_removes_what_the_loss_does_not_feel():
    """A neuron or dimension whose output weights are zero has no first-order effect through them; with its input
    weights zero too it has none at all, and ranks last."""
    model = small_vit()
    with torch.no_grad():
        for block in model.blocks:
            block.mlp.fc1.weight[:5] = 0
            block.mlp.fc2.weight[:, :5] = 0
    config = from_dict({"data": {"name": "digits"}, "model": {"img_size": 16}, "optim": {"batch_size": 32}})
    context = Context(config)
    ranking = taylor.rank(model, context)
    assert (ranking.neurons[:, :5] == 0).all()
    assert (ranking.neurons[:, 5:] > 0).all()
    assert context.scored == 32 * taylor.BATCHES
    assert all(p.grad is None for p in model.parameters()), "the network itself is left alone"


RANKED = {name: (name, {}) for kind in ("ranking", "cutting") for name in methods.of_kind(kind) if name != "same_sizes"}
RANKED["peer by taylor"] = ("peer", {"importance": "taylor"})


@pytest.mark.parametrize(("method", "options"), RANKED.values(), ids=RANKED)
def test_a_frozen_network_is_ranked_and_stays_frozen(method: str, options: dict[str, str]):
    config = from_dict(
        {
            "method": method,
            "data": {"name": "digits"},
            "model": {"img_size": 16},
            "optim": {"batch_size": 32, "epochs": 1},
            "budget": {"target_macs": 0.8},
            "options": options,
        }
    )
    model = small_vit().requires_grad_(False)
    model.head.requires_grad_(True)
    stage = stages(config)[0]
    small = stage.finish(stage.prepare(model, Context(config, target_of(model, 0.8))))
    learns = [name for name, p in small.named_parameters() if p.requires_grad and not name.endswith("logit")]
    assert learns == ["head.weight", "head.bias"]
    assert not any(p.requires_grad for p in model.blocks.parameters())


def test_vit_slim_masks_what_it_extracts(images):
    """Masked = extracted for per-head widths of q, k and v alike, with survivors' masks at 1."""
    model = small_vit()
    search = vit_slim.Search(from_dict({"search": {"epochs": 1}, "optim": {"epochs": 2}}))
    _dims, prices, dense = sizes(model)
    gated = search.prepare(model, Context(Config(), target_of(model, 0.5)))
    scatter_logits(gated, spread=0.3)
    for block in gated.blocks:
        block.attn.qkv.weight.data *= 10
    search.harden(gated)
    gated.eval()
    small = hiap.extract(gated).eval()
    with torch.no_grad():
        expected, found = gated(images), small(images)
    assert ((found - expected).norm() / expected.norm()).item() < 1e-5
    assert dense // 2 - prices.neuron < hiap.macs(small, IMAGE) <= dense // 2
    assert small.blocks[0].attn.qk_dims == small.blocks[0].attn.value_dims


def test_vit_slim_keeps_the_same_share_of_both_kinds_by_signed_mask():
    model = small_vit()
    search = vit_slim.Search(from_dict({"search": {"epochs": 1}, "optim": {"epochs": 2}}))
    dims, _, dense = sizes(model)
    gated = search.prepare(model, Context(Config(), target_of(model, 0.5)))
    scatter_logits(gated)
    ranking = search.rank(gated)
    assert ranking.dims.max() == ranking.neurons.max() == 1
    kept = keep_best(dims, ranking, dense // 2)
    shares = [torch.stack([getattr(m, n) for m in kept]).float().mean().item() for n in ("dims", "neurons")]
    assert abs(shares[0] - shares[1]) < 0.05


def test_soft_masks_multiply_and_start_as_the_dense_network(images):
    model = small_vit().train()
    search = vit_slim.Search(from_dict({"search": {"epochs": 1}, "optim": {"epochs": 2}}))
    gated = search.prepare(model, Context(Config(), target_of(model, 0.9))).train()
    assert torch.allclose(gated(images), model(images), atol=1e-5)
    gated.blocks[0].mlp.neuron_gate.logit.data[:] = 0.5
    assert not torch.allclose(gated(images), model(images), atol=1e-4)


@pytest.mark.parametrize("mode", ["v", "qkv"])
def test_folding_keeps_the_function_and_leaves_a_dense_network(mode, images):
    model = small_vit()
    for block in model.blocks:
        torch.nn.init.normal_(block.attn.qkv.bias)
        block.attn.qkv.weight.data *= 10
    dims, _, dense = sizes(model)
    gated = gated_vit.gate(model, kind=FixedGate, dims=mode)
    kept = keep_best(dims, uniform.rank(model, Context(Config())), dense // 2)
    kept[1].heads[:], kept[1].dims[:], kept[2].ffn[...] = False, False, False
    gated_vit.set_masks(gated, kept)
    folded = fold(gated, model)
    with torch.no_grad():
        assert torch.allclose(folded(images), gated(images), atol=1e-6)
        assert torch.equal(gated.train()(images), gated.eval()(images)), "fixed gates do not sample"
    assert hiap.macs(folded, IMAGE) == dense


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Config:
    config = tiny(tmp_path_factory.mktemp("results"), optim={"epochs": 4, "lr": 1e-2})
    train.run(config)
    return config


def pruned(start: Config, method: str, **sections) -> Config:
    base = {"model": {"weights": f"run:{start.run_id}"}, "distill": {"alpha": 0.7}, "optim": {"epochs": 3}}
    budget = {"target_macs": 0.8, **sections.pop("budget", {})}
    return tiny(start.run.results, method=method, **base, budget=budget, **sections)


METHODS = [
    ("hiap", {}),
    ("random", {}),
    ("taylor", {"budget": {"rounds": 3}}),
    ("obs", {"budget": {"correct": 128}}),
    ("obs", {"budget": {"correct": 128}, "options": {"queries": True}}),
    ("amp", {"options": {"images": 64}}),
    ("snapvit", {"options": {"images": 64}}),
    ("magnitude", {"budget": {"rounds": 2}}),
    ("vit_slim", {"search": {"epochs": 1}}),
    ("cofi", {"search": {"epochs": 2}, "gates": {"lr": 0.5}}),
    ("peer", {}),
]


@pytest.mark.parametrize(("method", "sections"), METHODS)
@pytest.mark.filterwarnings("ignore:Unwrapped parameters detected")
def test_every_method_meets_its_target_with_the_same_epochs(start, method, sections):
    config = pruned(start, method, **sections)
    record = train.run(config)
    assert record.size.macs <= 0.8 * record.size.dense_macs
    assert sum(stage.epochs for stage in record.stages) == 3
    assert hiap.macs(hiap.load(Folders.of(config).model), IMAGE) == record.size.macs
    assert record.metrics.extracted.n == record.metrics.dense.n
    if method == "hiap":
        assert record.metrics.hardened.top1 == record.metrics.extracted.top1
        assert {"expected_macs", "strength"} <= record.epochs[0].state.keys()


def test_the_strength_rises_while_the_network_costs_too_much_and_falls_below():
    pruner = hiap.Pruner(small_vit(), steps=10, target_macs=0.5)
    for _ in range(5):
        step_by_hand(pruner)
    strengths = []
    for _ in range(4):
        step_by_hand(pruner)
        strengths.append(float(pruner.budget.dual.value))
    assert strengths == sorted(strengths)
    assert strengths[-1] > 0
    for _, gate in hiap.named_gates(pruner.model):
        gate.logit.data.fill_(-3)
    pruner.budget.update(pruner.model, 1.0)
    assert float(pruner.budget.dual.value) < strengths[-1]


def step_by_hand(pruner: hiap.Pruner) -> None:
    """As if the optimiser had moved nothing worth mentioning."""
    pruner.model.blocks[0].mlp.neuron_gate.logit.data[0] += 1e-3
    pruner.step()


def test_a_strength_that_winds_up_is_bounded_and_starts_again_when_the_target_is_passed():
    """Gates that are still on their way to the threshold look like gates that resist; the price must not grow."""
    pruner = hiap.Pruner(small_vit(), steps=100, target_macs=0.3)
    budget = pruner.budget
    for _ in range(99):
        step_by_hand(pruner)
    assert float(budget.dual.value) == pytest.approx(budget.LIMIT)
    assert float(budget.strength) <= 1e4 * 1.001
    for _, gate in hiap.named_gates(pruner.model):
        gate.logit.data.fill_(-3)
    budget.update(pruner.model, 1.0)
    assert float(budget.dual.value) <= 0, "the first step below the target lets go"
    assert float(budget.strength) < 1


def test_a_settled_run_trains_what_is_left_on_one_schedule(start):
    gates = {"lr": 0.3}
    config = pruned(start, "hiap", budget={"settle": 0.34}, gates=gates)
    record = train.run(config)
    assert [(s.name, s.epochs) for s in record.stages] == [("single-phase", 1), ("settled", 2)]
    assert record.size.macs <= 0.8 * record.size.dense_macs
    assert record.metrics.hardened is None, "the gates are a means here"
    rates = [e.lr for e in record.epochs]
    whole = train.run(pruned(start, "hiap", gates=gates))
    assert rates == [e.lr for e in whole.epochs], "one cosine over both"
    assert record.stages[1].train_macs / 2 < record.stages[0].train_macs


def test_fine_tuning_under_gate_noise_keeps_what_the_ranking_keeps(start):
    plain, noisy = (
        train.run(pruned(start, "uniform", budget={"noise": noise}, gates={"init_logit": 1.0}))
        for noise in (False, True)
    )
    assert noisy.shape == plain.shape
    assert noisy.size == plain.size
    assert noisy.epochs[0].loss != plain.epochs[0].loss
    assert noisy.metrics.hardened.top1 == noisy.metrics.extracted.top1


def test_heads_ranked_per_layer_lose_the_same_share_of_each(start):
    record = train.run(pruned(start, "magnitude", budget={"target_macs": 0.75, "head_ranking": "layer"}))
    assert len({len(block.head_dims) for block in record.shape}) == 1
    assert len({sum(block.head_dims) for block in record.shape}) <= 2


def test_a_strength_changes_no_ratio():
    """lambda_macro : lambda_micro stays as set."""
    pruner = hiap.Pruner(small_vit(), steps=10, target_macs=0.5)
    before = pruner.terms()
    pruner.budget.dual.value += 1
    pruner.budget.update(pruner.model, 0.0)
    after = pruner.terms()
    ratios = [(after[name] / before[name]).item() for name in ("macro", "micro")]
    assert ratios == pytest.approx([2.718282, 2.718282])
    assert torch.equal(after["feasibility"], before["feasibility"])


@pytest.mark.parametrize(("method", "sections"), METHODS)
@pytest.mark.filterwarnings("ignore:Unwrapped parameters detected")
def test_every_method_meets_a_budget_of_parameters(start, method, sections):
    sections = {**sections, "budget": {**sections.get("budget", {}), "target_macs": None, "target_params": 0.8}}
    record = train.run(pruned(start, method, **sections))
    assert 0.7 * record.size.dense_params < record.size.params <= 0.8 * record.size.dense_params


@pytest.mark.parametrize(
    ("method", "sections", "line"),
    [
        ("l1", {"budget": {"target_macs": 0.2}}, "reachable"),
        ("magnitude", {"budget": {"target_macs": 0.2, "rounds": 2}}, "reachable"),
        ("hiap", {"budget": {"target_macs": 0.001}}, "reachable"),
        ("cofi", {"budget": {"target_macs": 0.001}, "search": {"epochs": 1}, "gates": {"lr": 0.5}}, "reachable"),
        ("vit_slim", {}, "search.epochs 50: must leave some of optim.epochs 3"),
        ("taylor", {"budget": {"rounds": 9}}, "budget.rounds 9: more than optim.epochs 3"),
        ("hiap", {"gates": {"harden": "sample"}}, "gates.harden 'sample'"),
    ],
)
def test_bad_targets_are_refused_before_training(start, method, sections, line):
    config = pruned(start, method, **sections)
    with pytest.raises(ConfigError, match=line):
        train.run(config)
    assert not Folders.of(config).record.exists()
    assert not (Folders.of(config).work / "checkpoints").exists()


def test_a_ranking_of_nothing_else_keeps_the_other_kind_whole():
    dims, _, dense = sizes(small_vit())
    kept = keep_best(dims, Ranking(neurons=torch.rand(3, 128)), round(0.8 * dense))
    assert all(m.dims.all() for m in kept)


@pytest.mark.parametrize("method", ["taylor", "obs", "peer", "amp", "snapvit"])
def test_networks_whose_weights_cannot_be_ranked_are_one_line(method: str) -> None:
    model = small_vit(mlp_layer=SwiGLU)
    context = Context(from_dict({"method": method, "data": {"name": "digits"}}), target_of(model, 0.5, None))
    with pytest.raises(ConfigError, match="methods that rank weights expect timm's plain attention and Mlp"):
        stages(context.config)[0].prepare(model, context)
