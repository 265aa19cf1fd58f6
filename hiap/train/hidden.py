"""Distillation of hidden states as CoFi has it: layers of the teacher, each matched to the layer of the student that is
nearest to it at this step, through a linear map that is learned along (Xia et al., ACL 2022, section 3.2)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiap.train.config import ConfigError
from hiap.train.distributed import World

LAYERS = 4  # of the teacher, evenly spaced, the last one among them


class HiddenStates:
    """Outputs (B, N, D) of a ViT's blocks, kept while ``seen`` is open."""

    def __init__(self, model: Any):
        self.kept: list[Tensor] = []
        self.looking = False
        self.hooks = [block.register_forward_hook(self._keep) for block in model.blocks]

    def _keep(self, block: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        if self.looking:
            self.kept.append(output)

    @contextmanager
    def seen(self) -> Iterator[None]:
        self.kept, self.looking = [], True
        try:
            yield
        finally:
            self.looking = False

    def close(self) -> None:
        self.kept = []
        for hook in self.hooks:
            hook.remove()


class HiddenMatch:
    """Term of the loss for one stage: the mean over the chosen layers i of the teacher of ``min_j MSE(map(student_j),
    teacher_i)``, by the images of this process's part of the batch. A layer of the student whose gates are all closed
    hands its input on, so it is never nearer than the one before it. ``map`` (D, D) starts as the identity and is gone
    when the stage ends."""

    def __init__(self, student: Any, teacher: Any):
        self.student, self.teacher = HiddenStates(student), HiddenStates(teacher)
        self.tokens, depth = _tokens(teacher), len(teacher.blocks)
        self.chosen = sorted({round((k + 1) * depth / LAYERS) - 1 for k in range(LAYERS)} - {-1})
        device = next(student.parameters()).device
        self.map = nn.Parameter(torch.eye(student.embed_dim, device=device))

    def group(self, lr: float) -> dict[str, Any]:
        """Return the map's group for the optimiser: the weights' rate, and no decay, which would pull the map to
        zero."""
        return {"params": [self.map], "weight_decay": 0.0, "lr": lr, "lr_scale": 1.0}

    def loss(self) -> Tensor:
        """Return the loss of the states that both have seen last, which are let go: they hold the graph of a step."""
        taught = [self.teacher.kept[i].float() for i in self.chosen]
        mapped = [F.linear(state.float(), self.map) for state in self.student.kept]
        self.student.kept, self.teacher.kept = [], []
        with torch.no_grad():
            distances = torch.stack([torch.stack([F.mse_loss(s, t) for s in mapped]) for t in taught])
        nearest = distances.argmin(1).tolist()
        return torch.stack([F.mse_loss(mapped[j], t) for j, t in zip(nearest, taught, strict=True)]).mean()

    def average(self, world: World) -> None:
        """Average the map's gradient over the processes: it is no part of what ``DistributedDataParallel`` averages."""
        assert self.map.grad is not None
        world.sum(self.map.grad).div_(world.size)

    def macs(self) -> int:
        """Count the MACs of the maps for one image, forward."""
        assert self.tokens is not None, "check_fits lets ViTs pass alone"
        return len(self.student.hooks) * self.tokens * self.map.numel()

    def close(self) -> None:
        self.student.close()
        self.teacher.close()


def check_fits(student: Any, teacher: Any) -> None:
    """Raise ``ConfigError`` unless the teacher has hidden states of the student's shape."""
    shapes = [(getattr(m, "embed_dim", None), _tokens(m)) for m in (student, teacher)]
    if not hasattr(teacher, "blocks") or shapes[0] != shapes[1]:
        raise ConfigError(
            f"distill.hidden: the teacher ({type(teacher).__name__}) must be a ViT of the start's width and tokens "
            f"{shapes[0]}, not {shapes[1]}"
        )


def _tokens(model: Any) -> int | None:
    embed = getattr(model, "patch_embed", None)
    return None if embed is None else getattr(embed, "num_patches", 0) + getattr(model, "num_prefix_tokens", 0)
