"""One training step: forward, backward, update; what the loop repeats, and ``python -m hiap.bench train`` times."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hiap.backbones.seeds import noise_seed
from hiap.beyond.tasks import distillation_loss
from hiap.data import loader as data
from hiap.train import compilation
from hiap.train.config import Config
from hiap.train.device import autocast
from hiap.train.distributed import World
from hiap.train.phase import Phase


@dataclass
class Step:
    """Step of training, of a run's network on ``device``. ``images``: in the training split, of which the loss is a
    mean per batch; ``teacher``: the network that is asked at each step, None if it was asked beforehand or there is
    none."""

    config: Config
    world: World
    device: torch.device
    images: int
    teacher: Callable[[Tensor], Tensor] | None = None

    def wrapped(self, model: Any) -> Any:
        """Return ``model`` as it is called."""
        forward = self.world.wrap(model, self.device)
        return compilation.compiled(forward) if self.config.run.compile else forward

    def __call__(
        self, phase: Phase, forward: Any, images: Tensor, targets: Tensor, taught: Tensor | None
    ) -> dict[str, Tensor]:
        """Take the step; return the loss and its terms, detached: their means over the processes are the batch's.

        This process's share of the batch goes through in ``run.accumulate`` parts.
        """
        parts = phase.config.run.accumulate
        images = images.to(self.device, non_blocking=True)
        targets = targets.to(self.device, non_blocking=True)
        phase.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for i in range(parts):
            chosen = slice(None) if parts == 1 else data.share_of(np.arange(len(images)), i, parts)
            waits = nullcontext() if i == parts - 1 or self.world.size == 1 else forward.no_sync()
            self._seed_noise(phase, self.world.rank * parts + i)
            with waits:
                known = None if taught is None else taught[chosen]
                values = self._part(phase, forward, images[chosen], targets[chosen], known)
                phase.scaler.scale(values["loss"]).backward()
            for name, value in values.items():
                sums[name] = sums[name] + value.detach() if name in sums else value.detach()
        for group in phase.optimizer.param_groups:
            group["lr"] = phase.rate * group["rate_scale"]
        phase.scaler.step(phase.optimizer)
        phase.scaler.update()
        if phase.ema:
            phase.ema.update(phase.model)
        return sums

    def _part(
        self, phase: Phase, forward: Any, images: Tensor, targets: Tensor, taught: Tensor | None
    ) -> dict[str, Tensor]:
        """Return loss and terms of one part of the batch, weighted such that parts add up and processes average."""
        config = phase.config
        with autocast(self.device, config.optim.precision):
            if self.teacher and taught is None:
                with torch.no_grad():
                    taught = self.teacher(images)
            logits = forward(images)
        task = distillation_loss(
            logits,
            targets,
            taught,
            **config.distill.model_dump(include={"alpha", "temperature", "t_squared"}),
            label_smoothing=config.optim.label_smoothing,
        )
        terms = phase.stage.terms(phase.model)
        if config.run.accumulate * self.world.size > 1:
            share = len(images) * self.world.size / min(config.optim.batch_size, self.images)
            task = task * share
            terms = {name: term / config.run.accumulate for name, term in terms.items()}
        return {"loss": torch.stack([task, *terms.values()]).sum(), "task": task, **terms}

    def _seed_noise(self, phase: Phase, part: int) -> None:
        """Let gate noise, dropout and drop path follow from the step, and from the part of the batch unless A10 says
        so."""
        torch.manual_seed(noise_seed(self.config.seed, self.config.gates.noise, phase.index, phase.step, part))
