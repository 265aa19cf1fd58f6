"""The loss of Eq. 7: task and distillation, macro and micro penalties, and the feasibility terms of Eq. 8."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from hiap.cost import expected_cost, latency_table
from hiap.gated_vit import stack_gates
from hiap.ledger import Prices
from hiap.options import FeasibilityConfig, PenaltyConfig


def distillation_loss(
    logits: Tensor,
    targets: Tensor,
    teacher_logits: Tensor | None = None,
    *,
    alpha: float = 0.7,
    temperature: float = 4.0,
    t_squared: bool = True,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross-entropy blended with distillation, ``(1 - alpha) CE + alpha T^2 KL(teacher || student)``, a mean over the
    batch; A12: T^2 or 1. Without a teacher, cross-entropy alone.

    ``logits``, ``teacher_logits`` (B, classes); ``targets`` (B,) labels or (B, classes) probabilities. The paper gives
    alpha and T and says "cross-entropy plus distillation"; the convex blend and T^2 are Hinton's, the usual meaning of
    the two numbers.
    """
    loss = F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)
    if teacher_logits is None:
        return loss
    student, teacher = ((z.float() / temperature).log_softmax(-1) for z in (logits, teacher_logits.detach()))
    divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    weight = alpha * temperature * temperature if t_squared else alpha
    return (1 - alpha) * loss + weight * divergence


def penalties(gated: Any, config: PenaltyConfig, latency: Prices | None = None) -> dict[str, Tensor]:
    """``lambda_macro L_macro`` and ``lambda_micro L_micro`` of Eq. 7, from the paper's own ledger, the true one, or
    measured time: ``latency``, or else what ``config.latency_table`` has."""
    prices: str | Prices = config.ledger
    if config.ledger == "latency":
        prices = latency or latency_table(gated, config.latency_table).prices
    cost = expected_cost(gated, prices)
    dense = cost.dense_macro + cost.dense_micro
    # A3: the scale is unstated; see PenaltyConfig.
    macro, micro = {
        "total": (dense, dense),
        "own": (cost.dense_macro, cost.dense_micro),
        "raw": (1, 1),
    }[config.scale]
    return {"macro": config.lambda_macro * cost.macro / macro, "micro": config.lambda_micro * cost.micro / micro}


def feasibility(gated: Any, config: FeasibilityConfig) -> Tensor:
    """Eq. 8: squared shortfalls below k_min heads per layer, a share gamma_attn of dimensions per active head, and a
    share gamma_ffn of neurons per active FFN, summed over the network.

    "Active" weighs a head's or block's shortfall by its own gate, held constant: else closing the head would pay."""
    g, d, b, c = stack_gates(gated, lambda gate: gate.expected())
    heads = F.relu(config.k_min - g.sum(-1)).square().sum()
    dims = (g.detach() * F.relu(config.gamma_attn - d.mean(-1)).square()).sum()
    neurons = (b.detach() * F.relu(config.gamma_ffn - c.mean(-1)).square()).sum()
    return config.beta_head * heads + config.beta_dim * dims + config.beta_ffn * neurons
