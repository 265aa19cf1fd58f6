"""Random sequences of what users do with a network: the function stays where it must, or one line says why not."""

from __future__ import annotations

import copy
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from test_families import FAMILIES, small

import hiap
from hiap.formats import export
from hiap.formats.store import StoreError

REFUSALS = (hiap.UnsupportedModelError, hiap.ConfigError, hiap.PrunerError, StoreError, export.ExportError)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.2}


class State:
    """A network and what it is: what each action changes, and what must stay."""

    def __init__(self, family: str, seed: int, folder: Path):
        self.random, self.folder, self.net, self.dtype = (
            random.Random(seed),
            folder,
            small(family).float(),
            torch.float32,
        )
        self.refused: list[str] = []
        torch.manual_seed(seed)

    def out(self, net: Any) -> torch.Tensor:
        images = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            return net.eval()(images.to(self.dtype)).float()

    def same(self, new: Any) -> None:
        old, tolerance = self.out(self.net), TOLERANCE[self.dtype]
        assert float((self.out(new) - old).norm()) <= tolerance * float(old.norm()) + 1e-6
        self.net = new

    def copy(self) -> None:
        self.same(copy.deepcopy(self.net))

    def save_and_load(self) -> None:
        hiap.save(self.net, self.folder / "net")
        loaded = hiap.load(self.folder / "net")
        assert {p.dtype for p in loaded.parameters()} == {self.dtype}
        self.same(loaded)

    def gate_and_extract(self) -> None:
        self.same(hiap.extract(hiap.gate(self.net.eval())))

    def cast(self) -> None:
        self.dtype = self.random.choice([torch.float32, torch.bfloat16])
        self.net = self.net.to(self.dtype)

    def freeze(self) -> None:
        for p in self.net.blocks[0].parameters():
            p.requires_grad_(self.random.random() < 0.5)

    def export(self) -> None:
        images = torch.randn(2, 1, 16, 16).to(self.dtype)
        program = torch.export.export(self.net.eval(), (images,), strict=False)
        with torch.no_grad():
            assert torch.allclose(program.module()(images), self.net(images), atol=1e-3)

    def prune(self) -> None:
        pruner = hiap.Pruner(self.net.train(), steps=4, target_macs=self.random.choice([0.6, 0.8, 0.9]))
        optimizer = torch.optim.AdamW(pruner.param_groups(lr=1e-4, gate_lr=1.5))
        for _ in range(4):
            out = pruner.model(torch.randn(2, 1, 16, 16).to(self.dtype))
            (out.float().square().mean() + pruner.penalty()).backward()
            optimizer.step()
            optimizer.zero_grad()
            pruner.step()
        left = pruner.finish()
        assert hiap.macs(left, (1, 16, 16)) <= 0.9 * hiap.macs(self.net, (1, 16, 16))
        hardened = self.out(pruner.model)
        assert float((self.out(left) - hardened).norm()) <= TOLERANCE[self.dtype] * float(hardened.norm()) + 1e-6
        self.net = left


ACTIONS = ("copy", "save_and_load", "gate_and_extract", "cast", "freeze", "prune", "prune", "export")


def go(seed: int, folder: Path) -> None:
    """Five actions; a refusal leaves the network as it was, and is not the guard's, which has nothing to find here."""
    families = sorted(FAMILIES)
    state = State(families[seed % len(families)], seed, folder)
    for _ in range(5):
        action = state.random.choice(ACTIONS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                getattr(state, action)()
            except REFUSALS as error:
                state.refused.append(f"{action}: {error}")
    assert not any("\n" in line or "would change" in line for line in state.refused), (seed, state.refused)


@pytest.mark.parametrize("seed", range(15))
def test_a_sequence(seed: int, tmp_path: Path) -> None:
    go(seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(15, 300))
def test_many_sequences(seed: int, tmp_path: Path) -> None:
    go(seed, tmp_path)
