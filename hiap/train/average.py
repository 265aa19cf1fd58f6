"""A running average of the weights (EMA), which is what a run with ``optim.ema`` measures and leaves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Average:
    """Average of the weights: ``mean <- decay mean + (1 - decay) weights`` after each step, from the weights that a
    stage starts with. Logits of gates are left out: they decide what stays, and a mean that lags behind would decide
    otherwise than the penalties and a target have steered."""

    def __init__(self, model: Any, decay: float):
        self.decay = decay
        self.means = {name: p.detach().clone() for name, p in _weights(model).items()}

    @torch.no_grad()
    def update(self, model: Any) -> None:
        torch._foreach_lerp_(list(self.means.values()), list(_weights(model).values()), 1 - self.decay)

    @torch.no_grad()
    def put(self, model: Any) -> None:
        """Let the model have the averaged weights."""
        for name, p in _weights(model).items():
            p.copy_(self.means[name])

    def follow(self, changes: Iterable[Any]) -> None:
        """Drop what was removed from the model's weights (``hiap.beyond.shrinking.Change``)."""
        for change in changes:
            mean = self.means.pop(change.name) if change.new is None else self.means[change.name]
            if change.new is not None:
                self.means[change.name] = change.take(mean).clone()

    @contextmanager
    def shown(self, model: Any) -> Iterator[None]:
        """Let the model have the averaged weights, and afterwards its own again."""
        kept = {name: p.detach().clone() for name, p in _weights(model).items()}
        self.put(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in _weights(model).items():
                    p.copy_(kept[name])

    def state_dict(self) -> dict[str, Tensor]:
        return self.means

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the means. Raises ``KeyError`` if they are of another model."""
        for name, mean in self.means.items():
            mean.copy_(state[name])


def _weights(model: Any) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if not name.endswith(".logit")}
