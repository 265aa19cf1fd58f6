"""The parts of Eq. 7, summed in ``hiap.pruner``: task and distillation, macro and micro penalties, and Eq. 8."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from hiap.cost import expected_cost
from hiap.gated_layers import EXPECTED, stack_gates
from hiap.ledger import Prices
from hiap.options import FeasibilityConfig, PenaltyConfig


def distillation_loss(
    logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor | None = None,
    *,
    alpha: float = 0.7,
    temperature: float = 4.0,
    t_squared: bool = True,
    label_smoothing: float = 0.0,
    taught: Tensor | None = None,
) -> Tensor:
    """Return cross-entropy blended with distillation, ``(1 - alpha) CE + alpha T^2 KL(teacher || student)``, a mean
    over the batch; A12: T^2 or 1. Without a teacher, cross-entropy alone.

    The paper gives alpha and T and says "cross-entropy plus distillation"; the convex blend and T^2 are Hinton's, the
    usual meaning of the two numbers. ``hiap.distillation_loss`` checks shapes first, and knows other tasks.

    Args:
        logits, teacher_logits: (B, classes).
        labels: (B,) numbers of classes or (B, classes) probabilities.
        alpha, temperature: weight of the distilled part (alpha_KD, not the gates' alpha), and T (not their tau).
        t_squared: whether the distilled part is multiplied by T^2 (A12).
        label_smoothing: share of a label that goes to the other classes.
        taught: (B, classes), what learns from the teacher where that is another head.
    """
    loss = F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
    if teacher_logits is None:
        return loss
    student = (logits if taught is None else taught).float() / temperature
    teacher = teacher_logits.detach().float() / temperature
    divergence = F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True)
    weight = alpha * temperature * temperature if t_squared else alpha
    return (1 - alpha) * loss + weight * divergence


def penalties(gated: Any, config: PenaltyConfig, prices: Prices | None = None) -> dict[str, Tensor]:
    """Return ``lambda_macro L_macro`` and ``lambda_micro L_micro`` of Eq. 7 as 'macro' and 'micro', differentiable
    scalars, from the paper's own ledger or the true one, as ``config`` says, or from ``prices``."""
    cost = expected_cost(gated, prices or config.ledger)
    dense = cost.dense_macro + cost.dense_micro
    # A3: the scale is unstated; see PenaltyConfig.
    macro, micro = {
        "total": (dense, dense),
        "own": (cost.dense_macro, cost.dense_micro),
        "raw": (1, 1),
    }[config.scale]
    return {"macro": config.lambda_macro * cost.macro / macro, "micro": config.lambda_micro * cost.micro / micro}


def feasibility(gated: Any, config: FeasibilityConfig) -> Tensor:
    """Return Eq. 8: squared shortfalls below k_min heads per layer, a share gamma_attn of dimensions per active head,
    and a share gamma_ffn of neurons per active FFN, summed over the network.

    Ours: gates enter by E[gate], as in Eq. 5, and "active" weighs a shortfall by its head's or block's gate, held
    constant: else closing the head would pay."""
    g, d, b, c = stack_gates(gated, EXPECTED)
    heads = F.relu(config.k_min - g.sum(-1)).square().sum()
    dims = (g.detach() * F.relu(config.gamma_attn - d.mean(-1)).square()).sum()
    neurons = (b.detach() * F.relu(config.gamma_ffn - c.mean(-1)).square()).sum()
    return config.beta_head * heads + config.beta_dim * dims + config.beta_ffn * neurons
