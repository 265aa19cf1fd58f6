"""A stage in progress: network, optimiser and position, which is all that a checkpoint must restore."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.models import group_parameters
from torch import Tensor

from hiap.train.average import Average
from hiap.train.config import Config, ConfigError
from hiap.train.distributed import World
from hiap.train.stages import Stage


@dataclass
class Phase:
    """Stage in progress. ``step`` counts finished steps; ``sums`` adds up the loss terms of the current epoch;
    ``macs``: forward, of one image of each step before step ``since``, the last one with another size of network."""

    index: int
    stage: Stage
    config: Config
    model: Any
    per_epoch: int
    step: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    clock: float = field(default_factory=time.perf_counter)
    rate: float = 0.0
    tau: float | None = None
    macs: int = 0
    since: int = 0
    ema: Average | None = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self) -> None:
        groups = self.stage.param_groups(self.model, self.config, self.per_epoch, self.schedule)
        self.optimizer = adamw(groups, self.model, self.config)
        self.ema = Average(self.model, self.config.optim.ema) if self.config.optim.ema else None
        device = next(self.model.parameters()).device.type
        self.scaler = torch.amp.GradScaler(device, enabled=self.config.optim.precision == "fp16")

    @property
    def total(self) -> int:
        return self.stage.epochs * self.per_epoch

    @property
    def schedule(self) -> int:
        """Steps of the schedule of rates, which stages may share."""
        return (self.stage.before + self.stage.epochs + self.stage.after) * self.per_epoch

    @property
    def scheduled(self) -> int:
        """Place of the next step in that schedule."""
        return self.stage.before * self.per_epoch + self.step

    def elapsed(self) -> float:
        """Return the seconds spent in this stage, earlier tries included."""
        return self.seconds + time.perf_counter() - self.clock

    def add(self, terms: dict[str, Tensor]) -> None:
        for name, value in terms.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.step += 1

    def average(self, world: World) -> None:
        """Let ``sums`` be the mean over the processes, in all of them."""
        if world.size > 1 and self.sums:
            means = world.sum(torch.stack(list(self.sums.values()))) / world.size
            self.sums = dict(zip(self.sums, means, strict=True))

    def cut(self, macs: Callable[[Any], int]) -> None:
        """Let the stage remove what it can, and the average follow. ``since`` says at which step something went."""
        executed = macs(self.model)
        changes = self.stage.cut(self.optimizer)
        if not changes:
            return
        if self.ema:
            self.ema.follow(changes)
        self.macs, self.since = self.macs + executed * (self.step - self.since), self.step

    def trained_macs(self, macs: Callable[[Any], int]) -> int:
        """Count the MACs of training so far, forward, of one image of each step."""
        return self.macs + macs(self.model) * (self.step - self.since)

    def state(self) -> dict[str, Any]:
        return {
            "stage": self.index,
            "step": self.step,
            "model": self.model.state_dict(),
            "stage_state": self.stage.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "sums": self.sums,
            "seconds": self.elapsed(),
            **({"macs": self.macs, "since": self.since} if self.since else {}),
            **({"ema": self.ema.state_dict()} if self.ema else {}),
        }

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        try:
            self.stage.load_state_dict(state["stage_state"])
            if state.get("since"):  # the network has been cut, and what follows it must be made anew
                self.__post_init__()
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            for group in self.optimizer.param_groups:
                group["rate_scale"]  # the state's own groups: those of older code lack it
            if state.get("scaler"):  # not in older checkpoints, empty without fp16
                self.scaler.load_state_dict(state["scaler"])
            if self.ema:
                self.ema.load_state_dict(state["ema"])
        except (RuntimeError, ValueError, KeyError) as error:
            first = str(error).split("\n")[0]
            raise ConfigError(
                f"the checkpoint of stage {self.stage.name} does not fit ({first}): other code wrote it; "
                "remove the run's work folder to start it afresh"
            ) from None
        self.step, self.seconds = state["step"], state["seconds"]
        self.macs, self.since = state.get("macs", 0), state.get("since", 0)
        self.sums = {k: v.to(device) for k, v in state["sums"].items()}


def adamw(groups: list[dict[str, Any]], model: Any, config: Config) -> torch.optim.Optimizer:
    """Return the optimiser of a stage, its ``groups`` split by the rates that the run's options give to layers."""
    return torch.optim.AdamW(_with_rates(groups, model, config), fused=True)


def _with_rates(groups: list[dict[str, Any]], model: Any, config: Config) -> list[dict[str, Any]]:
    """Split ``groups`` by the rates of ``optim.layer_decay`` and ``optim.head_lr``; gates keep theirs."""
    optim = config.optim
    if optim.layer_decay is None and optim.head_lr is None:
        return groups
    scales = layer_scales(model, optim.layer_decay or 1.0)
    if optim.head_lr is not None:
        scales |= {name: optim.head_lr / optim.lr for name in scales if name.startswith(("head.", "head_dist."))}
    of = {p: 1.0 if name.endswith(".logit") else scales[name] for name, p in model.named_parameters()}
    split = []
    for group in groups:
        for scale in dict.fromkeys(of[p] for p in group["params"]):
            rate = group["rate_scale"] * scale
            chosen = [p for p in group["params"] if of[p] == scale]
            split.append({**group, "params": chosen, "lr": optim.lr * rate, "rate_scale": rate})
    return split


def layer_scales(model: Any, decay: float) -> dict[str, float]:
    """Return the rate of each parameter, by its name, as a share of the classifier's: ``decay`` to the power of the
    layers above it, which are the blocks as timm counts them, the embeddings below and the last norm with the
    classifier."""
    if not hasattr(model, "group_matcher"):
        raise ConfigError(f"optim.layer_decay, optim.head_lr: {type(model).__name__} does not say what its layers are")
    layers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    top = max(layers.values())
    return {name: decay ** (top - layers[name]) for name, _ in model.named_parameters()}
