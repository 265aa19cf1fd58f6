"""ViT-Slim: search with l1-penalised soft masks, rank globally, extract, retrain.

Source: Chavan et al., "Vision Transformer Slimming" (CVPR 2022).
Algorithm: masks zeta, all 1 at first, multiply q, k and v of every head's dimension alike, and every FFN neuron; train
weights and masks with w_attn |zeta|_1 + w_mlp |zeta|_1 at a constant rate; rank dimensions and neurons by zeta,
separately, each over the whole network, and keep the same share of both; survivors' masks become 1; retrain.
Deviations: the official code only masks, here the network is extracted, with the softmax scale as trained; the share is
solved for the MACs target; patch masks, which never drop a patch, are left out; distillation is as in every other
method (``distill.alpha=0`` for the original recipe), and so is the masks' rate (``gates.lr``; unset, the weights').
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from baselines.ranking import global_rank
from hiap import gated_vit
from hiap.budget.selection import Ranking
from hiap.gates import Gate
from hiap.train.config import Config, GateConfig
from hiap.train.stages import Context, Stage, TargetedStage

KIND = "searching"


class SoftMask(Gate):
    """Mask zeta itself while it is learned; 0 or 1 once hardened. There is no macro mask."""

    def __init__(self, shape: tuple[int, ...], level: str, config: GateConfig, generator: torch.Generator):
        super().__init__(shape, level, config, generator)
        self.logit.requires_grad_(level == "micro")

    def forward(self) -> Tensor:
        if not self.training:
            return self.hardened().to(self.logit.dtype)
        return torch.ones_like(self.logit) if self.level == "macro" else self.logit


class Search(TargetedStage):
    def __init__(self, config: Config):
        super().__init__("search", config.search.epochs)
        self.config = config

    def recipe(self, config: Config) -> Config:
        search = {"lr": config.search.lr, "weight_decay": config.search.weight_decay, "schedule": "constant"}
        optim = config.optim.model_copy(update={**search, "warmup_epochs": 0.0, "epochs": self.epochs})
        return config.model_copy(update={"optim": optim})

    def gate(self, model: Any, context: Context) -> Any:
        masks = GateConfig(dims="qkv", init_logit=1.0, attn_bias=self.config.gates.attn_bias)
        return gated_vit.gate(model, masks, kind=SoftMask)

    def terms(self, model: Any) -> dict[str, Tensor]:
        attn = torch.stack([b.attn.value_gate.logit.abs().sum() for b in model.blocks]).sum()
        mlp = torch.stack([b.mlp.neuron_gate.logit.abs().sum() for b in model.blocks]).sum()
        return {"attn": self.config.search.w_attn * attn, "mlp": self.config.search.w_mlp * mlp}

    def log(self, model: Any) -> dict[str, float]:
        return {}  # zeta is no probability: there is no expected cost

    def rank(self, model: Any) -> Ranking:
        _, dims, _, neurons = gated_vit.stack_gates(model, lambda gate: gate.logit.detach().cpu())
        return Ranking(dims=global_rank(dims), neurons=global_rank(neurons), cut_qk=True)


def stages(config: Config) -> list[Stage]:
    return [Search(config), Stage("retrain", config.optim.epochs - config.search.epochs)]
