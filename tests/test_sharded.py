"""Pruning on several processes: DistributedDataParallel, and FSDP2, where each process has a part of every weight."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conftest import small_vit
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

import hiap

IMAGE, STEPS = (1, 16, 16), 6
WAYS = ("ddp", "fsdp", "fsdp, whole")


def wrapped(model: Any, how: str) -> Any:
    if how == "ddp":
        return DistributedDataParallel(model)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.blocks if how == "fsdp" else ():
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def prune(how: str, **options: Any) -> tuple[hiap.Pruner, Any]:
    pruner = hiap.Pruner(small_vit().train(), steps=STEPS, **{"target_macs": 0.5, "multiple": 1, **options})
    model = wrapped(pruner.model, how) if how else pruner.model
    optimizer = torch.optim.AdamW(pruner.param_groups(lr=1e-3, gate_lr=0.3))
    images = torch.randn(8, *IMAGE, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    for _ in range(STEPS):
        (hiap.distillation_loss(model(images), torch.arange(8)) + pruner.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    return pruner, pruner.finish().eval()


@pytest.fixture
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["fsdp", "fsdp, whole"])
def test_fsdp_prunes_as_one_process_does(alone: None, how: str, tmp_path: Path) -> None:
    (pruner, small), (plain, expected) = prune(how), prune("")
    images = torch.randn(2, *IMAGE)
    with torch.no_grad():
        assert torch.allclose(small(images), expected(images), atol=1e-5)
        assert torch.allclose(pruner.model.eval()(images), small(images), atol=1e-5)
    assert pruner.travel() == pytest.approx(plain.travel(), abs=1e-5)
    assert str(pruner.summary()) == str(plain.summary())
    assert type(small) is type(expected)
    hiap.save(small, tmp_path / "net")


@pytest.mark.filterwarnings("ignore")
def test_fsdp_holds_what_must_stay(alone: None) -> None:
    keep = {"blocks.0.attn": [2], "blocks.1.mlp": True}
    pruner, small = prune("fsdp", keep=keep)
    assert small.blocks[1].mlp.fc2.in_features == pruner.model.blocks[1].mlp.fc2.in_features
    assert float(pruner.model.blocks[0].attn.head_gate.alpha[2]) == hiap.gates.CERTAIN


@pytest.mark.filterwarnings("ignore")
def test_fsdp1_is_refused_in_one_line(alone: None) -> None:
    pruner = hiap.Pruner(small_vit().train(), steps=STEPS)
    FullyShardedDataParallel(pruner.model, device_id=torch.device("cpu"))
    with pytest.raises(hiap.ConfigError, match=r"flattened.*shard with fully_shard") as error:
        pruner.penalty()
    assert "\n" not in str(error.value)


def _process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for how in WAYS:
        _, small = prune(how)
        torch.save((hiap.macs(small, IMAGE), small(torch.ones(1, *IMAGE))), f"{folder}/{how}-{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_processes_end_with_the_same_network_however_it_is_shared(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_process, (str(tmp_path),), 2)
    found = [torch.load(tmp_path / f"{how}-{rank}.pt") for how in WAYS for rank in range(2)]
    half = hiap.macs(small_vit(), IMAGE) // 2
    assert {macs for macs, _ in found} == {found[0][0]}
    assert 0.95 * half < found[0][0] <= half
    assert all(torch.allclose(logits, found[0][1], atol=1e-4) for _, logits in found)
