"""How a network becomes smaller: a method is a list of stages, each one training phase of the one loop.

``hiap/`` holds plain training and HiAP; every other method is a file of ``baselines/`` with a function
``stages(config) -> list[Stage]``.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import Tensor

from hiap import gated_vit
from hiap.config import Config
from hiap.extraction import extract
from hiap.gates import temperature
from hiap.objective import feasibility, penalties


@dataclass
class Context:
    """What a stage may look at besides the network: the run's configuration, the MACs that it must reach (None if the
    method has no target), and the image (channels, height, width)."""

    config: Config
    target_macs: int | None
    image: tuple[int, int, int]


class Stage:
    """One training phase; as it stands, plain training (a dense network, or fine-tuning)."""

    def __init__(self, name: str, epochs: int):
        self.name, self.epochs = name, epochs

    def prepare(self, model: Any, context: Context) -> Any:
        """What is trained, made from what the previous stage left. Deterministic: a resumed run calls it again."""
        return model

    def anneal(self, model: Any, progress: float) -> float | None:
        """Called before each step with ``progress`` in [0, 1); returns the temperature if there is one."""
        return None

    def terms(self, model: Any) -> dict[str, Tensor]:
        """Named terms that are added to the task loss."""
        return {}

    def finish(self, model: Any) -> Any:
        """What this stage leaves: a plain network."""
        return model


class SinglePhase(Stage):
    """HiAP: weights and gates together, then hardened and removed, without fine-tuning (section 3.4)."""

    def __init__(self, config: Config):
        super().__init__("single-phase", config.optim.epochs)
        self.config = config

    def prepare(self, model: Any, context: Context) -> Any:
        return gated_vit.gate(model, self.config.gates, seed=self.config.seed)

    def anneal(self, model: Any, progress: float) -> float:
        tau = temperature(self.config.gates, progress)
        gated_vit.set_temperature(model, tau)
        return tau

    def terms(self, model: Any) -> dict[str, Tensor]:
        return {
            **penalties(model, self.config.penalty),
            "feasibility": feasibility(model, self.config.feasibility),
        }

    def finish(self, model: Any) -> Any:
        return extract(model)


def stages(config: Config) -> list[Stage]:
    """The phases of ``config.method``."""
    if config.method == "dense":
        return [Stage("train", config.optim.epochs)]
    if config.method == "hiap":
        return [SinglePhase(config)]
    return import_module(f"baselines.{config.method}").stages(config)
