"""CoFi-style: hard-concrete gates at both levels under a Lagrangian target, then fine-tuning.

Source: Xia et al., "Structured Pruning Learns Compact and Accurate Models" (ACL 2022); gates after Louizos et al.,
"Learning Sparse Neural Networks through L0 Regularization" (ICLR 2018).
Algorithm: gates are sigmoid((logit + logistic noise) / (2/3)), stretched to (-0.1, 1.1) and clipped to [0, 1]; to the
loss comes l1 (s - t) + l2 (s - t)^2 with s the expected share of MACs that is removed, t its target, which rises
linearly; l1 and l2 follow by gradient ascent; then the most probable units that fit the target stay; fine-tune.
Deviations: CoFi prunes BERT, down to the embedding width too, and distils layer by layer; here heads, value dimensions,
FFN blocks and neurons, distilled as every other method. It rounds gates by their expected number, here the MACs decide.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hiap import gated_vit
from hiap.budget.controller import Multipliers
from hiap.budget.policy import close_zeros
from hiap.budget.selection import Ranking, joint_ranking, pruned_before
from hiap.gates import Gate, logistic_noise
from hiap.train.config import Config
from hiap.train.reach import HARD_CONCRETE
from hiap.train.stages import Context, Stage, TargetedStage

KIND = "searching"

LOW, HIGH, TEMPERATURE = HARD_CONCRETE


class HardConcrete(Gate):
    def forward(self) -> Tensor:
        if not self.training:
            return self.hardened().to(self.logit.dtype)
        noise = logistic_noise(torch.rand_like(self.logit))
        return (torch.sigmoid((self.logit + noise) / TEMPERATURE) * (HIGH - LOW) + LOW).clamp(0, 1)

    def expected(self) -> Tensor:
        """P(gate > 0)."""
        return torch.sigmoid(self.logit - TEMPERATURE * math.log(-LOW / HIGH))


class Search(TargetedStage):
    # The ascent's step, per share of the stage (see Multipliers), set by how closely s follows t in a short stage.
    RATE = 5000.0

    def __init__(self, config: Config):
        super().__init__("search", config.search.epochs)
        self.config = config

    def gate(self, model: Any, context: Context) -> Any:
        self.multipliers = Multipliers(2)
        gated = gated_vit.gate(model, self.config.gates, kind=HardConcrete)
        if pruned_before(gated):  # else what is gone would be paid for until its gates close
            close_zeros(gated)
        return gated

    def anneal(self, model: Any, progress: float) -> float:
        self.progress = progress
        with torch.no_grad():
            excess = self.excess(model, progress)
            self.multipliers.ascend(torch.stack([excess, excess.square()]), progress, self.RATE)
        return TEMPERATURE

    def terms(self, model: Any) -> dict[str, Tensor]:
        excess = self.excess(model, self.progress)
        return {"target": (self.multipliers.value * torch.stack([excess, excess.square()])).sum()}

    def rank(self, model: Any) -> Ranking:
        return joint_ranking(model)

    def state_dict(self) -> dict[str, Any]:
        return self.multipliers.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.multipliers.load_state_dict(state)


def stages(config: Config) -> list[Stage]:
    return [Search(config), Stage("fine-tune", config.optim.epochs - config.search.epochs)]
