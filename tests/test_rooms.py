"""The paper alone in the flat files, each room of ours above those that it needs, and how much of our code one training
step runs."""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from conftest import small_vit

import hiap

PACKAGE = Path(hiap.__file__).parent
FLAT = sorted(PACKAGE.glob("*.py"))
OURS = re.compile(r"\b(targets?|target_\w+|multiples?|keep\w*|latenc\w+|shr[iu]nk\w*)\b", re.IGNORECASE)
# From the ground up; '' are the flat files.
ROOMS = ("backbones", "", "budget", "beyond", "data", "formats", "train", "bench", "cli")


def test_the_paper_is_short_and_nothing_of_ours_is_in_it() -> None:
    assert len(FLAT) <= 12
    assert sum(len(path.read_text().splitlines()) for path in FLAT) <= 1300
    found = [(path.name, line) for path in FLAT for line in path.read_text().splitlines() if OURS.search(line)]
    assert found == []


def imports() -> Iterator[tuple[str, str]]:
    """Every import inside hiap/, also those in functions, as (module, imported module). The doors are left out: what
    ``hiap`` loads on demand, and ``python -m``."""
    files = {".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for name, path in files.items()}
    for name, path in modules.items():
        if name == "hiap" or name.endswith("__main__"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                wanted = [f"{node.module}.{alias.name}" for alias in node.names]
                yield from ((name, full if full in modules else node.module) for full in wanted)
            elif isinstance(node, ast.Import):
                yield from ((name, alias.name) for alias in node.names)


def edges() -> set[tuple[str, str]]:
    return {(a, b) for a, b in imports() if b.startswith("hiap.") and a != b}


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if (PACKAGE / parts[1]).is_dir() else ""


def test_no_room_asks_one_above_it() -> None:
    """A room that is not in the order stands above all that are."""
    level = {name: i for i, name in enumerate(ROOMS)} | {"files": -1}
    up = {(a, b) for a, b in edges() if level.get(room(a), 99) < level.get(room(b), 99)}
    assert up == set()


def test_no_module_needs_itself() -> None:
    needs = defaultdict(set)
    for a, b in edges():
        needs[a].add(b)
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        assert module not in path, f"a circle: {' -> '.join([*path[path.index(module) :], module])}"
        if module not in done:
            for other in needs[module]:
                visit(other, [*path, module])
            done.add(module)

    for module in list(needs):
        visit(module, [])


def one_step(pruner: Any) -> tuple[int, int]:
    """Calls into our files, and how often the file changes from one to the next, of one training step."""
    optimizer = torch.optim.SGD(pruner.param_groups(lr=1e-3, gate_lr=0.5))
    images, labels = torch.randn(4, 1, 16, 16), torch.arange(4)
    files: list[str] = []

    def look(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(str(PACKAGE)):
            files.append(frame.f_code.co_filename)

    for watched in (False, True):  # what is derived once, is by then
        sys.setprofile(look if watched else None)
        try:
            loss = hiap.distillation_loss(pruner.model(images), labels) + pruner.penalty()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            pruner.step()
        finally:
            sys.setprofile(None)
    return len(files), sum(a != b for a, b in pairwise(files))


def test_one_training_step_runs_little_of_our_code() -> None:
    pruner = hiap.Pruner(small_vit(depth=2).train(), steps=30)
    calls, switches = one_step(pruner)
    assert calls <= 80
    assert switches <= 30
