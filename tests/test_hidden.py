"""Hidden states are distilled through a learned map, from the nearest layers, and the run stays what it was: resumed
bit for bit, the same on several processes, off unless asked for."""

# ruff: noqa: F811  (fixtures of another file)

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import small_vit, tiny
from test_distributed import hiap_run as shared_run
from test_distributed import record_of, together
from test_train import dense, hiap_run, kill_at, killed_at, same_result, weights  # noqa: F401

import hiap
from hiap.train import run as train
from hiap.train.config import Config, ConfigError
from hiap.train.hidden import HiddenMatch

SIZES: dict[str, Any] = {"embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2}


def looked_at(student: Any, teacher: Any, images: torch.Tensor) -> HiddenMatch:
    match = HiddenMatch(student, teacher)
    with match.teacher.seen(), torch.no_grad():
        teacher(images)
    with match.student.seen():
        student(images)
    return match


def states(model: Any, images: torch.Tensor) -> list[torch.Tensor]:
    x, found = model.norm_pre(model._pos_embed(model.patch_embed(images))), []
    for block in model.blocks:
        x = block(x)
        found.append(x)
    return found


def test_a_student_that_is_its_teacher_has_nothing_to_learn(images: torch.Tensor) -> None:
    model = small_vit(depth=12)
    match = looked_at(copy.deepcopy(model), model, images)
    assert match.chosen == [2, 5, 8, 11], "as in CoFi"
    assert match.loss() == 0
    assert (match.student.kept, match.teacher.kept) == ([], [])
    gated = hiap.gate(model)
    assert looked_at(gated.eval(), model, images).loss() < 1e-9, "open gates change nothing"


def test_the_loss_is_the_distance_to_the_nearest_layer_through_the_map(images: torch.Tensor) -> None:
    teacher, student = small_vit(depth=4), small_vit(depth=4)
    with torch.no_grad():
        for p in student.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    match = looked_at(student, teacher, images)
    with torch.no_grad():
        match.map.add_(0.1 * torch.randn(match.map.shape, generator=torch.Generator().manual_seed(2)))
    ours, theirs = states(student, images), states(teacher, images)
    table = torch.stack([torch.stack([((h @ match.map.T - t) ** 2).mean() for h in ours]) for t in theirs])
    loss = match.loss()
    torch.testing.assert_close(loss, table.min(1).values.mean())
    loss.backward()
    assert match.map.grad is not None
    assert match.map.grad.abs().max() > 0
    assert student.blocks[0].attn.qkv.weight.grad.abs().max() > 0
    match.close()
    student(images)
    assert not match.student.kept
    assert not student.blocks[0]._forward_hooks


def test_a_closed_layer_is_never_the_nearest(images: torch.Tensor) -> None:
    model = small_vit(depth=4)
    gated = hiap.gate(model).eval()
    with torch.no_grad():
        for name, gate in hiap.named_gates(gated):
            gate.logit.fill_(-5 if name.startswith("blocks.2.") else 5)
    ours = states(gated, images)
    assert torch.allclose(ours[2], ours[1])


@pytest.mark.parametrize("settle", [None, 0.5])
def test_a_killed_run_ends_with_the_same_bits_and_a_map_of_its_own(
    dense: Config, kill_at: Any, settle: float | None
) -> None:
    budget = {"target_macs": 0.7, "settle": settle} if settle else {}
    config = hiap_run(dense, optim={"epochs": 4}, distill={"hidden": 0.5}, budget=budget)
    undisturbed, reference = train.run(config), weights(config)
    assert all(log.terms["hidden"] > 0 for log in undisturbed.epochs)
    disturbed, record = killed_at((7, 20), config, kill_at, f"hidden{settle}")
    same_result(undisturbed, record)
    assert all(torch.equal(reference[k], v) for k, v in weights(disturbed).items())
    plain = train.run(hiap_run(dense, optim={"epochs": 4}, budget=budget))
    assert "hidden" not in plain.epochs[0].terms
    bill, least = undisturbed.stages[0], plain.stages[0]
    assert bill.train_macs - least.train_macs == 3 * 2 * 17 * 16 * 16 * bill.images, "two maps of 17 tokens"


def test_two_processes_learn_one_map(tmp_path: Path) -> None:
    """That of one process that takes its batch in the same two parts: each part has nearest layers of its own."""
    hiap.save(small_vit(**SIZES), tmp_path / "start")
    sections: dict[str, Any] = {"method": "dense", "optim": {"epochs": 2}}
    sections |= {"distill": {"alpha": 0.5, "hidden": 0.5, "teacher": str(tmp_path / "start")}}
    one = train.run(shared_run(tmp_path / "one", **copy.deepcopy(sections), run={"accumulate": 2}))
    config = shared_run(tmp_path / "two", **sections)
    together(2, config)
    for found, expected in zip(record_of(config).epochs, one.epochs, strict=True):
        assert found.loss == pytest.approx(expected.loss, rel=1e-5)
        assert found.terms == pytest.approx(expected.terms, rel=1e-5)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"method": "dense", "distill": {"alpha": 0.5, "hidden": 1}}, "distill.hidden needs a teacher"),
        ({"distill": {"alpha": 0.0, "hidden": 1}}, "distill.hidden needs a teacher"),
        ({"distill": {"alpha": 0.5, "hidden": 1, "precompute": True}}, "neither distill.precompute nor run.compile"),
        (
            {"distill": {"alpha": 0.5, "hidden": 1}, "run": {"compile": True}},
            "neither distill.precompute nor run.compile",
        ),
        ({"distill": {"alpha": 0.5, "hidden": 1, "teacher": "narrow"}}, r"of the start's width and tokens \(16, 17\)"),
    ],
)
def test_hidden_states_that_cannot_be_compared_are_one_line(
    sections: dict[str, Any], message: str, tmp_path: Path
) -> None:
    start, narrow = tmp_path / "start", tmp_path / "narrow"
    hiap.save(small_vit(**SIZES), start)
    hiap.save(small_vit(**{**SIZES, "embed_dim": 8}), narrow)
    if "teacher" in sections["distill"]:
        sections = {**sections, "distill": {**sections["distill"], "teacher": str(narrow)}}
    with pytest.raises(ConfigError, match=message) as told:
        train.run(tiny(tmp_path / "out", **{"method": "hiap", "model": {"weights": str(start)}, **sections}))
    assert "\n" not in str(told.value)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
