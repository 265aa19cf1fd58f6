"""Optimal brain surgeon: the errors it counts are those that least squares leaves, and its order is the greedy one."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import small_vit
from test_correction import images
from torch import Tensor, nn

import hiap
from baselines import random, taylor
from baselines.ranking import FixedGate
from hiap import gated_vit, ledger
from hiap.beyond import obs
from hiap.beyond.obs import Moments
from hiap.budget.selection import Ranking, target_of
from hiap.data import loader as data
from hiap.train.config import Config
from hiap.train.record import Folders
from hiap.train.stages import Context


def answering() -> Any:
    """A network that says something: a classifier of zeros has no Fisher information."""
    model = small_vit(depth=4)
    nn.init.normal_(model.head.weight)
    return model


def problem(units: int = 100, outputs: int = 16) -> tuple[Moments, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(400, units, dtype=torch.float64) @ torch.randn(units, units, dtype=torch.float64)
    return Moments(x.T @ x / 400, torch.rand(outputs, dtype=torch.float64)), torch.randn(outputs, units)


def left_over(found: Moments, weight: Tensor, gone: list[int], ridge: float) -> float:
    """What the best refit of the units that stay leaves: min over changes C with C_gone = -W_gone of C H C^T."""
    h = found.gram + ridge * found.gram.diagonal().mean() * torch.eye(len(found.gram), dtype=torch.float64)
    stay = [i for i in range(len(h)) if i not in gone]
    schur = h[gone][:, gone] - h[gone][:, stay] @ torch.linalg.solve(h[stay][:, stay], h[stay][:, gone])
    w = found.channels.sqrt()[:, None] * weight.double()[:, gone]
    return float(((w @ schur) * w).sum())


def test_costs_add_up_to_what_least_squares_leaves() -> None:
    found, weight = problem()
    order, costs = obs.removals(found, weight)
    assert sorted(order.tolist()) == list(range(100))
    for count in (1, 2, 50, 64, 65, 99):
        wanted = left_over(found, weight, order[:count].tolist(), obs.RIDGE)
        assert float(costs[:count].sum()) == pytest.approx(wanted, rel=1e-6)


def test_each_step_removes_the_cheapest() -> None:
    found, weight = problem(units=12)
    order, costs = obs.removals(found, weight)
    gone: list[int] = []
    for unit, cost in zip(order.tolist(), costs.tolist(), strict=True):
        before = left_over(found, weight, gone, obs.RIDGE) if gone else 0.0
        each = {i: left_over(found, weight, [*gone, i], obs.RIDGE) - before for i in range(12) if i not in gone}
        assert cost == pytest.approx(min(each.values()), rel=1e-6)
        assert unit == min(each, key=lambda i: each[i])
        gone.append(unit)


def test_without_a_classifier_all_features_count_alike() -> None:
    model, x, seen = small_vit(depth=2, num_classes=0), next(iter(images(4))), []
    found = obs.moments(model, [x.repeat(500, 1, 1, 1)])
    layer = model.blocks[0].mlp.fc2
    with torch.enable_grad():
        handle = layer.register_forward_hook(lambda _, args, output: seen.append(output))
        features = model(x.requires_grad_())
        handle.remove()
        squares = sum(torch.autograd.grad(f, seen[0], retain_graph=True)[0].square() for f in features.sum(0))
    wanted = squares.flatten(0, 1).mean(0).double()
    assert float((found[0][1].channels - wanted).norm() / wanted.norm()) < 0.1


def test_of_two_units_that_do_the_same_one_is_free_and_the_other_is_not() -> None:
    found, weight = problem(units=12)
    weight *= 10
    gram = found.gram.clone()
    gram[5], gram[:, 5] = gram[3], gram[:, 3]
    gram[5, 5] = gram[3, 3]
    errors = obs.removal_errors(Moments(gram, found.channels), weight, ridge=1e-9)
    assert errors[[3, 5]].min() < 1e-6 * errors[[3, 5]].max()


@pytest.mark.parametrize("share", [0.5, 0.3])
def test_what_it_keeps_answers_more_like_the_network_than_what_others_keep(dense: Config, share: float) -> None:
    model = hiap.load(Folders.of(dense).model)
    batches = [
        b for _, b in zip(range(8), data.train_batches(dense.data, 16, batch_size=64, seed=0, epoch=0), strict=False)
    ]
    unseen = torch.cat([x for x, _ in data.test_batches(dense.data, 16, batch_size=64)])

    def off(ranking: Ranking) -> float:
        target = target_of(model, share)
        assert target is not None
        gated = gated_vit.gate(model, kind=FixedGate)
        gated_vit.set_masks(gated, target.keep_best(ranking))
        small = hiap.correct(hiap.extract(gated), model, (x for x, _ in batches))
        with torch.no_grad():
            answers = [each(unseen).log_softmax(-1) for each in (small, model)]
        return float(F.kl_div(*answers, log_target=True, reduction="batchmean"))

    others = [off(each.rank(model, Context(dense))) for each in (random, taylor)]
    ours = [off(obs.rank(model, batches, fisher)) for fisher in obs.FISHER]
    weighted, equal = ours[:2], ours[2]  # equal weights cannot compare the errors of different layers
    assert max(weighted) < 0.7 * min(others)
    assert equal < max(others)


def test_the_own_fisher_information_is_that_of_drawn_labels() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5).expand(200_000, 5)
    drawn = obs.directions(logits, None, torch.Generator().manual_seed(0))
    p = logits[0].softmax(0)
    assert torch.allclose(drawn.T @ drawn / len(drawn), p.diag() - torch.outer(p, p), atol=5e-3)


def test_keys_choose_what_a_price_per_head_and_per_dimension_makes_best() -> None:
    """At any price of a unit of cost, dimensions with higher keys are those that win the most, less what they cost."""
    prices = ledger.Prices(head=40, value_dim=3, neuron=1)
    errors = torch.rand(2, 3, 8, generator=torch.Generator().manual_seed(0)) ** 3
    keys = obs.per_price(errors, prices)
    for price in torch.linspace(0.001, 0.2, 40).tolist():
        kept = keys > price
        for layer, head in itertools.product(range(2), range(3)):
            best = errors[layer, head].sort(descending=True).values
            gains = [0.0, *(float(best[:n].sum()) - price * (40 + 3 * n) for n in range(1, 9))]
            chosen = kept[layer, head]
            got = float(errors[layer, head][chosen].sum()) - price * (40 + 3 * int(chosen.sum())) * bool(chosen.any())
            assert got == pytest.approx(max(gains), abs=1e-5)


def test_labels_are_looked_at_only_where_asked() -> None:
    model = answering()
    none = [(x, None) for x in images(1)]
    same = [(x, torch.zeros(len(x), dtype=torch.long)) for x in images(1)]
    keys = [obs.rank(model, batches, "own").neurons for batches in (images(1), none, same)]
    assert all(torch.equal(keys[0], other) for other in keys[1:])
    assert not torch.equal(keys[0], obs.rank(model, same, "labels").neurons)


def test_the_network_is_left_as_it_was() -> None:
    model = answering().train()
    state = copy.deepcopy(model.state_dict())
    obs.rank(model, images(1))
    assert model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("batches", "fisher", "line"),
    [
        ([], "own", "no images"),
        (images(1), "labels", "without labels"),
        (images(1), "mine", "expected one of own, labels, none"),
        ([torch.full((2, 1, 16, 16), torch.nan)], "own", "not finite"),
    ],
)
def test_bad_input_is_one_line(batches: list[Tensor], fisher: str, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        obs.rank(answering(), batches, fisher)


def test_a_classifier_of_zeros_is_refused() -> None:
    model = small_vit()
    nn.init.zeros_(model.head.weight)
    with pytest.raises(ValueError, match="a classifier of zeros"):
        obs.rank(model, images(1))


def test_a_large_batch_goes_in_pieces_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch, seen = answering(), torch.cat(list(images())), []
    hook = model.patch_embed.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    whole = obs.moments(model, [batch], "none")
    monkeypatch.setattr(obs, "ACTIVATIONS", 1 << 20)
    parts = obs.moments(model, [batch], "none")
    hook.remove()
    assert seen[0] == len(batch) > max(seen[1:])
    for (a, b), (c, d) in zip(whole, parts, strict=True):
        torch.testing.assert_close(a.gram, c.gram, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(b.gram, d.gram, rtol=1e-4, atol=1e-6)


def test_an_error_leaves_every_module_in_its_mode() -> None:
    model = answering().train()
    model.blocks[0].eval()  # frozen
    modes = [module.training for module in model.modules()]
    with pytest.raises(ValueError, match="without labels"):
        obs.rank(model, [images(1)[0]], "labels")
    assert [module.training for module in model.modules()] == modes
    obs.rank(model, images(1))
    assert [module.training for module in model.modules()] == modes
