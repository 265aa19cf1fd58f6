"""Training itself: ``python -m hiap.bench train key=value ...`` times this project's step beside a plain timm loop.

All loops train one network on the same images, a random batch that lies in memory, in the same precision and on the
same threads. 'timm' is what timm's own script does: autocast, its AdamW, its attention, nothing else. The others are
the step of a run (``hiap.train.step``): 'dense', and 'gated' with HiAP's gates, penalties and annealing; '/compiled' is
``run.compile`` (of timm: ``torch.compile`` as it comes). Compiling is not timed::

    python -m hiap.bench train model=vit_small_patch14_dinov2 img_size=56 precision=bf16 batches=[64]
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import timm.optim
import torch
from torch import Tensor

from hiap import cost, gated_vit
from hiap.bench import topologies
from hiap.bench.settings import TrainSettings
from hiap.options import one_line
from hiap.train import compilation
from hiap.train.config import Config, ConfigError, from_dict
from hiap.train.distributed import ALONE
from hiap.train.phase import Phase
from hiap.train.reach import learning_rate
from hiap.train.stages import Context, stages
from hiap.train.step import Step

CLASSES = 1000
STEPS = 100_000  # of the schedule; few of them are made


def check(settings: TrainSettings) -> None:
    """Raise ``ConfigError`` for what can be told without a network."""
    if settings.img_size and Path(settings.model).is_dir():
        raise ConfigError(f"img_size {settings.img_size}: a network of hiap.save has a size of its own")
    if len(set(settings.loops)) < len(settings.loops):
        raise ConfigError(f"loops {settings.loops}: expected each of them once")
    if settings.compile:
        raise ConfigError("compile: 'train' has compiled loops, e.g. loops=[timm,dense/compiled]")


def loops(settings: TrainSettings, batch: int) -> dict[str, tuple[Any, Callable[[], Any]]]:
    """Return by name a network, and one training step of it."""
    device = torch.device(settings.device)
    found: dict[str, tuple[Any, Callable[[], Any]]] = {}
    if any(name.endswith("/compiled") for name in settings.loops):
        compilation.check(device)
    for name in settings.loops:
        torch.manual_seed(0)
        model = _network(settings).to(device)
        gated_vit.check_supported(model)
        images = torch.randn(batch, *cost.image_of(model), device=device)
        targets = torch.randint(model.num_classes, (batch,), device=device)
        loop, _, compiled = name.partition("/")
        make = _timm if loop == "timm" else _ours
        found[name] = make(loop, model, (images, targets), settings, bool(compiled))
    return found


def _network(settings: TrainSettings) -> Any:
    if Path(settings.model).is_dir():
        return topologies.create(settings.model)
    size: dict[str, Any] = {"img_size": settings.img_size} if settings.img_size else {}
    try:
        model = timm.create_model(settings.model, num_classes=CLASSES, **size)
    except (TypeError, AssertionError) as error:
        raise ConfigError(f"img_size {settings.img_size}: not of '{settings.model}' ({one_line(error)})") from None
    return model


def _timm(
    _: str, model: Any, batch: tuple[Tensor, Tensor], settings: TrainSettings, compiled: bool
) -> tuple[Any, Callable[[], Any]]:
    images, targets = batch
    model.train()
    optimizer = timm.optim.create_optimizer_v2(model, "adamw", lr=1e-4, weight_decay=0.05)
    task, forward = torch.nn.CrossEntropyLoss(), torch.compile(model) if compiled else model

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast(settings.device, torch.bfloat16, enabled=settings.precision == "bf16"):
            loss = task(forward(images), targets)
        loss.backward()
        optimizer.step()

    return model, run


def _ours(
    loop: str, model: Any, batch: tuple[Tensor, Tensor], settings: TrainSettings, compiled: bool
) -> tuple[Any, Callable[[], Any]]:
    images, targets = batch
    config, device = _config(loop, len(images), settings, compiled), images.device
    (stage,) = stages(config)
    model = stage.prepare(model, Context(config, steps_per_epoch=STEPS)).to(device).train()
    phase, step = Phase(0, stage, config, model, STEPS), Step(config, ALONE, device, STEPS * len(images))
    forward = step.wrapped(model)

    def run() -> None:
        phase.rate = learning_rate(config, phase.scheduled, phase.per_epoch, phase.schedule)
        phase.tau = stage.anneal(model, phase.step / phase.total)
        phase.add(step(phase, forward, images, targets, None))

    return model, run


def _config(loop: str, batch: int, settings: TrainSettings, compiled: bool) -> Config:
    return from_dict(
        {
            "method": {"dense": "dense", "gated": "hiap"}[loop],
            "optim": {"epochs": 1, "batch_size": batch, "lr": 1e-4, "precision": settings.precision},
            "distill": {"alpha": 0.0},
            "run": {"device": settings.device, "compile": compiled},
        }
    )
