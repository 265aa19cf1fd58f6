"""Several processes that train one network: who they are, and the few things that they say to each other.

Processes are found by the environment that ``torchrun`` sets (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT),
or by what ``srun`` says (``hiap.train.rendezvous``); without it a run is one process and nothing here costs anything.
Gradients are averaged by PyTorch's ``DistributedDataParallel``; every process holds the same network and optimiser, so
only the first one writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from hiap.train.config import ConfigError
from hiap.train.rendezvous import join_slurm

RENDEZVOUS_TIMEOUT = timedelta(minutes=5)


@dataclass(frozen=True)
class World:
    """World of the processes that share a run: this one is ``rank`` of ``size``, and ``local`` of those on its
    machine."""

    rank: int = 0
    size: int = 1
    local: int = 0
    group: Any = None  # for words, on CPUs; gradients take the device's own way

    @property
    def first(self) -> bool:
        return self.rank == 0

    def wrap(self, model: Any, device: torch.device) -> Any:
        """Return ``model`` as it is called in training: with gradients averaged over the processes."""
        if self.size == 1:
            return model
        devices = [torch.cuda.current_device()] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)

    def sum(self, values: Tensor) -> Tensor:
        """Sum ``values`` over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Tell whether ``flag`` holds in any process. All must ask at the same step."""
        if self.size == 1:
            return flag
        word = torch.tensor(int(flag))
        dist.all_reduce(word, dist.ReduceOp.MAX, group=self.group)
        return bool(word)

    def broadcast(self, choose: Callable[[], str]) -> str:
        """Return what ``choose`` gives in rank 0."""
        words = [choose() if self.first else ""]
        if self.size > 1:
            dist.broadcast_object_list(words, group=self.group)
        return words[0]

    def union(self, numbers: set[int]) -> set[int]:
        """Return the numbers of all processes. All must ask at the same step."""
        parts = [numbers] * self.size
        if self.size > 1:
            dist.all_gather_object(parts, numbers, group=self.group)
        return set().union(*parts)

    def barrier(self) -> None:
        """Wait until all processes are here: what rank 0 wrote can be read after it."""
        self.any(False)


ALONE = World()


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """Let this process belong to the world that its environment names. Raises ``ConfigError`` for half of one."""
    join_slurm()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if missing := [name for name in names if name not in os.environ]:
        raise ConfigError(f"WORLD_SIZE is set, {missing[0]} is not: expected the environment of torchrun or srun")
    rank, size, local = (int(os.environ[name]) for name in names[:3])
    if device.type == "cuda":
        torch.cuda.set_device(local % torch.cuda.device_count())
    # A process that is missing after minutes will not come; collectives afterwards have torch's own, longer timeout.
    store, _, _ = next(dist.rendezvous("env://", rank, size, timeout=RENDEZVOUS_TIMEOUT))
    store.set_timeout(dist.default_pg_timeout)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.PrefixStore("hiap", store), rank=rank, world_size=size)
    try:
        yield World(rank, size, local, dist.new_group(backend="gloo"))
    finally:
        dist.destroy_process_group()


def lost_another(error: Exception, world: World) -> bool:
    """Tell whether ``error`` only says that another process is gone, which may have died for a reason of its own."""
    says_so = isinstance(error, dist.DistError) or "gloo" in str(error) or "Connection closed by peer" in str(error)
    return world.size > 1 and says_so
