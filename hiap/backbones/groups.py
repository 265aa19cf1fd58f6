"""A network's parameters as groups for an optimiser."""

from __future__ import annotations

import math
from typing import Any

from hiap.backbones.errors import ConfigError


def param_groups(
    model: Any,
    lr: float,
    weight_decay: float | None,
    gate_decay: float = 0.0,
    gate_lr_scale: float = 1.0,
    layer_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Return groups for an optimiser, as ``hiap.Pruner.param_groups`` explains them; ``model`` may be dense. Decay is
    on matrices only, timm's usual rule; None leaves it to the optimiser. ``rate_scale`` is not called ``lr_scale``,
    since timm's schedulers would multiply ``lr`` by that once more."""
    skip = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
    if layer_decay is not None:
        return _layer_groups(model, lr, weight_decay, gate_decay, gate_lr_scale, layer_decay, skip)
    decay, plain, logits = [], [], []
    for name, p in model.named_parameters():
        if name.endswith(".logit"):
            logits.append(p)
        elif p.ndim < 2 or name in skip:
            plain.append(p)
        else:
            decay.append(p)
    groups = ((decay, weight_decay, 1.0), (plain, 0.0, 1.0), (logits, gate_decay, gate_lr_scale))
    return [_group(params, lr, scale, decayed) for params, decayed, scale in groups if params]


def _group(params: list[Any], lr: float, scale: float, decay: float | None) -> dict[str, Any]:
    own = {} if decay is None else {"weight_decay": decay}
    return {"params": params, **own, "lr": lr * scale, "rate_scale": scale}


def check_rates(**rates: float | None) -> None:
    """Raise ``ConfigError`` for a rate with which an optimiser would train away from what the loss asks, or not at all:
    it takes those of groups unseen. None passes, and 0 for all but 'lr'."""
    for name, rate in rates.items():
        low = rate is not None and not (0 < rate < math.inf if name == "lr" else 0 <= rate < math.inf)
        if low:
            least = "above 0 (requires_grad_(False) freezes weights)" if name == "lr" else "of 0 or more"
            raise ConfigError(f"param_groups: {name} {rate}: expected a number {least}")


def _layer_groups(
    model: Any,
    lr: float,
    weight_decay: float | None,
    gate_decay: float,
    gate_lr_scale: float,
    layer_decay: float,
    skip: set[str],
) -> list[dict[str, Any]]:
    """Return timm's groups of layer decay, with the gates' logits in one of their own."""
    from timm.optim import param_groups_layer_decay

    if not 0 < layer_decay <= 1:
        raise ConfigError(f"layer_decay {layer_decay!r}: expected a factor in (0, 1]")
    logits = [p for name, p in model.named_parameters() if name.endswith(".logit") and p.requires_grad]
    ours = {id(p) for p in logits}
    groups, decay = [], 1.0 if weight_decay is None else weight_decay  # timm's vectors have 0
    for group in param_groups_layer_decay(model, decay, no_weight_decay_list=skip, layer_decay=layer_decay):
        if params := [p for p in group["params"] if id(p) not in ours]:
            own = None if weight_decay is None and group["weight_decay"] else group["weight_decay"]
            groups.append(_group(params, lr, group["lr_scale"], own))
    return groups + ([_group(logits, lr, gate_lr_scale, gate_decay)] if logits else [])
