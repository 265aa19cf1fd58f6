"""How far a gate can travel, and the refusal of runs whose gates cannot reach their threshold (finding 14).

Adam divides a gradient's running mean by its running root mean square, so a step moves a logit by about its rate, and
the rates of all steps sum to how far it goes if its gradient is steady; one that grows takes it farther, which counts
in runs of few steps. No torch: the launcher asks before it submits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from hiap.options import distance_to_threshold
from hiap.train import methods
from hiap.train.config import Config, ConfigError, OptimConfig

BETAS = (0.9, 0.999)  # torch's defaults for AdamW
GROWN = 1e3  # how much a gradient may grow where "at most" is said
FEW = 200  # steps with a target below which HiAP is far behind a ranking that cuts at once
GATED = ("hiap", "hiap_uniform", "hiap_ranked")  # whose gates go the paper's way
HARD_CONCRETE = (-0.1, 1.1, 2 / 3)  # limits and temperature of CoFi's gates (baselines/cofi.py)


def learning_rate(config: Config, step: int, per_epoch: int, total: int) -> float:
    """Return the weights' rate at ``step`` of ``total``: linear warm-up, then cosine to ``min_lr`` or constant."""
    return _rate(config.optim, step, per_epoch, total)


def _rate(optim: OptimConfig, step: int, per_epoch: int, total: int) -> float:
    warmup = min(round(optim.warmup_epochs * per_epoch), total - 1)
    if step < warmup:
        return optim.lr * (step + 1) / (warmup + 1)
    if optim.schedule == "constant":
        return optim.lr
    progress = (step - warmup) / (total - warmup)
    return optim.min_lr + (optim.lr - optim.min_lr) * (1 + math.cos(math.pi * progress)) / 2


def summed_rate(config: Config, steps: int, per_epoch: int, total: int) -> float:
    """Sum the weights' rates over the first ``steps`` steps of ``total``."""
    return _summed(config.optim, steps, per_epoch, total)


@lru_cache(maxsize=256)  # an ImageNet run has a million steps, and a grid's runs and seeds share few schedules
def _summed(optim: OptimConfig, steps: int, per_epoch: int, total: int) -> float:
    return math.fsum(_rate(optim, step, per_epoch, total) for step in range(steps))


def gate_scale(config: Config, per_epoch: int, total: int) -> float:
    """Return the gates' rate over the weights': 1 unless ``gates.lr`` or ``gates.travel`` says otherwise (A6)."""
    summed = summed_rate(config, total, per_epoch, total) if config.gates.travel is not None else 0.0
    return config.gates.rate_scale(config.optim.lr, summed)


def travel(config: Config, per_epoch: int, total: int, steps: int | None = None) -> float:
    """Return how far a logit goes in ``steps`` steps (all ``total`` unless given) if its gradient never changes: the
    gates' rates, summed. A gradient that changes its sign or its size from step to step takes a logit less far; one
    that grows can take it farther, but not beyond ``bound``."""
    return gate_scale(config, per_epoch, total) * summed_rate(
        config, total if steps is None else steps, per_epoch, total
    )


def bound(rates: Sequence[float] | np.ndarray, growth: float = 1.0, betas: tuple[float, float] = BETAS) -> float:
    """Return a distance beyond which no sequence of gradients takes a parameter under Adam with these ``rates``, weight
    decay aside, if all increases of the running mean of its squared gradient (v, bias-corrected) multiply to at most
    ``growth``. Without any increase that is the sum of the rates, which a constant gradient reaches.

    A step is r_t |m_t| / sqrt(v_t) at most. m_t is a mean of the gradients g_s so far, with weights w_ts; so m_t^2 <=
    q_t = sum_s w_ts g_s^2, and by Cauchy and Schwarz all steps sum to at most sqrt(R sum_t r_t q_t / v_t), R = sum r_t.
    With k_s = sum of b2^i over 0 < i < s, g_s^2 = v_s + k_s (v_s - v_(s-1)), and hence q_t / v_t = 1 + sum over s < t
    of c_ts (1 - v_s / v_t), c_ts = w_ts (1 + k_s) (b2 / b1 - 1) >= 0. Now 1 - v_s / v_t <= log(v_t / v_s), which is at
    most the sum of log(v_j / v_(j-1)) over the increases between s and t. The one at j is counted sum_(s<j) c_ts =
    w_tj (k_j - l_j) times, l_j being k_j with b1 for b2. So sum_t r_t q_t / v_t is at most
    R + max_j(R_j (k_j - l_j)) log growth with R_j = sum_t r_t w_tj.
    """
    rate, t = np.asarray(rates, dtype=float), np.arange(1, len(rates) + 1)
    b1 = betas[0]
    shares = np.zeros(len(rates))  # R_j
    for lag in range(min(len(rates), math.ceil(math.log(1e-12) / math.log(b1)))):
        shares[: len(rates) - lag] += rate[lag:] * (1 - b1) * b1**lag / (1 - b1 ** t[lag:])
    early, late = (b * (1 - b ** (t - 1)) / (1 - b) for b in betas)  # l_j, k_j
    total = rate.sum()
    return float(np.sqrt(total * (total + (shares * (late - early)).max() * math.log(max(growth, 1.0)))))


def gate_phase(config: Config) -> Config:
    """Return the configuration that the gates train with: of a search, its own epochs and recipe."""
    optim: dict[str, Any] = {}
    if methods.kind(config.method) == "searching":
        optim = {"epochs": config.search.epochs}
    if config.method == "vit_slim":
        search = {"lr": config.search.lr, "weight_decay": config.search.weight_decay}
        optim |= {**search, "schedule": "constant", "warmup_epochs": 0.0}
    return config.model_copy(update={"optim": config.optim.model_copy(update=optim)})


def distance(config: Config, nearest: bool = False) -> float | None:
    """Return how far a gate starts from where it is closed, in logits (ViT-Slim: in units of its mask), for the kind of
    gate that starts farthest, or ``nearest``. None for a method without learned gates, or where nothing is priced
    (controls)."""
    if config.method in GATED:
        return distance_to_threshold(config.gates, config.penalty, nearest)
    if config.method == "cofi":  # half of the way to where it is open half of the time: ranks decide, not a threshold
        low, high, temperature = HARD_CONCRETE
        return (config.gates.init_logit - temperature * math.log(-low / high)) / 2
    if config.method == "vit_slim":
        return 1.0  # from 1 to 0
    return None


def check_reach(config: Config, per_epoch: int, closes_by: int | None = None) -> str:
    """Return a warning where a gate gets to its threshold only if it is pulled the same way at nearly every one of the
    run's steps, ``per_epoch`` an epoch; '' elsewhere. ``closes_by``: epochs after which some gates must be able to
    close, for the run to show what it is for. Raises ``ConfigError`` (one line with both numbers and what to set) if
    the rates of those epochs, or of the run, do not sum to the way.

    A gradient that grows from step to step can take a gate a little farther (``bound``), and in runs of a few hundred
    steps some do close so. Such a run shows its rate and not its method, so it is refused as well.
    """
    phase = gate_phase(config)
    whole = round((config.budget.settle or 1.0) * phase.optim.epochs)
    warning = _look(phase, distance(config), per_epoch, whole, "")
    if closes_by is not None:
        within = f" within {closes_by} epoch{'s' if closes_by > 1 else ''}, as it is meant to"
        _look(phase, distance(config, nearest=True), per_epoch, min(closes_by, whole), within)
    return warning


def few_steps(config: Config, per_epoch: int) -> str:
    """Return a warning where HiAP has fewer steps to a target than any record of this repository that is near a Taylor
    ranking, else ''. How long a network and its data need is not known beforehand (docs/prune_your_model.md), so it is
    no refusal."""
    steps = round((config.budget.settle or 1.0) * config.optim.epochs) * per_epoch
    if config.method not in GATED or not config.budget.has_target or not distance(config) or steps >= FEW:
        return ""
    return (
        f"{steps:,} steps are few for gates to learn what to keep: from {FEW} on HiAP came near a ranking that cuts at "
        "once; for a short run take method=taylor or method=obs (docs/prune_your_model.md)"
    )


def short_for_its_schedule(config: Config, per_epoch: int) -> str:
    """Return a warning where a run ends before its warm-up does, or before its running average has forgotten the
    weights that it began with, else ''."""
    optim, steps = config.optim, config.optim.epochs * per_epoch
    if optim.epochs and optim.warmup_epochs >= optim.epochs:
        return (
            f"optim.warmup_epochs {optim.warmup_epochs:g}: the run has {optim.epochs}, and warms up in all but one step"
        )
    if optim.epochs and optim.ema and steps < (reach := 1 / (1 - optim.ema)):
        return (
            f"optim.ema {optim.ema:g} reaches back {reach:,.0f} steps: in {steps:,} it mostly holds what it began with"
        )
    return ""


def _look(phase: Config, distance: float | None, per_epoch: int, epochs: int, within: str) -> str:
    if distance is None or distance <= 0:
        return ""
    total, steps = phase.optim.epochs * per_epoch, epochs * per_epoch
    far = travel(phase, per_epoch, total, steps)
    rate = gate_scale(phase, per_epoch, total) * phase.optim.lr
    says = f"a gate starts {distance:.3g} from its threshold, and the rates of {steps:,} steps sum to {far:.3g}"
    remedy = f"set gates.lr to {2 * rate * distance / far:.2g} or more (it is {rate:.2g}), or gates.travel"
    if far < distance:
        raise ConfigError(f"too slow to prune{within}: {says}; {remedy}")
    if far < 2 * distance:
        return f"only a gate that is pulled the same way at nearly every step can close: {says}; {remedy}"
    return ""
