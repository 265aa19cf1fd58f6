"""Small networks and configurations that many tests share."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from fake_queue import queue  # noqa: F401
from timm.models.vision_transformer import VisionTransformer

import hiap
from hiap import ledger
from hiap.budget.selection import Ranking, Target
from hiap.gated_vit import BlockMask
from hiap.train import run as train
from hiap.train.config import Config, from_dict, merge

T = TypeVar("T")
R = TypeVar("R")
SLOW_UNTIL = float(os.environ.get("HIAP_SLOW_UNTIL", "inf"))


def takes_long(item: pytest.Item) -> bool:
    return any(map(item.get_closest_marker, ("slow", "slurm")))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip long tests that have not begun at HIAP_SLOW_UNTIL (seconds since 1970): on a slow machine, CI has to end."""
    if takes_long(item) and time.time() > SLOW_UNTIL:
        pytest.skip("not begun before HIAP_SLOW_UNTIL")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that hangs fails, with the stacks of all threads: without, CI ends after its time and says nothing."""
    for item in items:
        if not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(2400 if takes_long(item) else 600))


torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # by a shell that started this in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # or what tests start would not hear it either


def together(
    function: Callable[[T], R], arguments: Sequence[T], environments: Sequence[dict[str, str]] | None = None
) -> list[R]:
    """What ``function`` of a test's module says of each argument, in processes that start at one time.

    They are forked from a server without threads: a fork of this process can wait forever for a lock that one of its
    threads held. The server has imported already what takes a new process most of ten seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["timm", "hiap.train.everything"])  # of tests' modules it does not know the path
    added = environments or [{} for _ in arguments]
    calls = [(function, argument, {**os.environ, **own}) for argument, own in zip(arguments, added, strict=True)]
    with context.Pool(len(calls)) as pool:
        return pool.map_async(_called, calls, chunksize=1).get(timeout=300)


def _called(call: tuple[Callable[[T], R], T, dict[str, str]]) -> R:
    function, argument, environment = call
    os.environ.clear()
    os.environ.update(environment)
    return function(argument)


def small_vit(**changes: Any) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 4, "in_chans": 1, "num_classes": 10, "embed_dim": 32, "depth": 3}
    model = VisionTransformer(**{**sizes, "num_heads": 4, **changes})
    with torch.no_grad():  # biases start at zero in timm, and would hide errors in them
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.normal_(std=0.1)
    return model.eval()


def keep_best(
    dims: ledger.Dims, ranking: Ranking, target: int, prices: ledger.Prices | None = None, multiple: int = 1
) -> list[BlockMask]:
    return Target(dims, prices or ledger.mac_prices(dims), target, multiple).keep_best(ranking)


def scatter_logits(gated: Any, seed: int = 0, spread: float = 1.0) -> None:
    """Random logits, about half of them closed."""
    generator = torch.Generator().manual_seed(seed)
    for _, gate in hiap.named_gates(gated):
        gate.logit.data = spread * torch.randn(gate.logit.shape, generator=generator)


def tiny(results: Path | str, **sections: Any) -> Config:
    """A run of a few seconds: the 1,797 digits at 16 pixels, a two-block network, two epochs."""
    base: dict[str, Any] = {
        "method": "dense",
        "model": {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2},
        "data": {"name": "digits"},
        "optim": {"epochs": 2, "batch_size": 128, "lr": 3e-3},
        "gates": {"lr": 0.1, "init_logit": 1.0},
        "penalty": {"lambda_macro": 0.3, "lambda_micro": 0.3},
        "distill": {"alpha": 0.0},
        "run": {"results": str(results), "device": "cpu", "threads": 1, "tensorboard": False},
    }
    return from_dict(merge(base, sections))


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    return torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A finished run that others start from."""
    config = tiny(tmp_path_factory.mktemp("results"), optim={"epochs": 6, "lr": 1e-2})
    train.run(config)
    return config
