"""Accuracy of a network on a test split."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hiap.gated_vit import sampling
from hiap.train.config import Config
from hiap.train.device import autocast
from hiap.train.distributed import ALONE, World
from hiap.train.record import Score

MEASURED_AT_ONCE = 250  # images, where the training batch is smaller: without gradients more fit, and more is faster


def at_once(config: Config) -> int:
    """Return how many images go through a network together where nothing is learned."""
    return max(config.optim.batch_size, MEASURED_AT_ONCE)


def evaluate(
    model: Any,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    precision: str = "fp32",
    soft: bool = False,
    world: World = ALONE,
) -> Score:
    """Measure top-1 (per cent) and mean cross-entropy (nats) over all images of ``batches``.

    Args:
        model: left in eval mode.
        batches: images and labels; with several processes in ``world`` each brings its own, and all get the score of
            all images.
        device, precision: where and in what the network runs.
        soft: gates sample as in training, one draw per batch; else a gated model runs its hardened gates.
        world: the processes that share the images.
    """
    model.eval()
    with sampling(model) if soft else nullcontext():
        return _evaluate(model, batches, device, precision, world)


def pack(correct: Tensor) -> str:
    """Pack Booleans (n,) as base64, eight to a byte; ``Score.hits`` unpacks them."""
    return base64.b64encode(np.packbits(correct.cpu().numpy()).tobytes()).decode()


@torch.no_grad()
def _evaluate(
    model: Any, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device, precision: str, world: World
) -> Score:
    hits: list[Tensor] = []
    loss = torch.zeros((), dtype=torch.float64, device=device)
    n = 0
    for images, labels in batches:
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with autocast(device, precision):
            logits = model(images)
        logits = logits.float()
        hits.append(logits.argmax(-1) == labels)
        loss += F.cross_entropy(logits, labels, reduction="sum").double()
        n += len(labels)
    correct = torch.cat(hits) if hits else torch.zeros(0, dtype=torch.bool, device=device)
    right, nats, n = world.sum(torch.stack([correct.sum().double(), loss, loss.new_tensor(n)])).tolist()
    if n == 0:
        raise ValueError("evaluate: the test split is empty")
    if not math.isfinite(nats):  # the first class is the largest of answers that are no numbers
        raise FloatingPointError(f"evaluate: the network's answers are not finite numbers in {precision}")
    # Several processes take turns at the batches, so none has the images in the split's order: nothing is kept then.
    return Score(top1=100 * right / n, loss=nats / n, n=int(n), correct=pack(correct) if world.size == 1 else "")
