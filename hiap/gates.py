"""Gumbel-Sigmoid gates (Eq. 6) and their annealing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hiap.config import GateConfig

CERTAIN = 20.0  # far from the threshold; as a logit, open in every sample: the noise is clipped to +-13.8


class Gate(nn.Module):
    """A tensor of gates with one learnable ``logit`` (alpha in the paper) each.

    ``kind`` is 'macro' (heads, FFN blocks) or 'micro' (value dimensions, neurons). Calling the module returns gates of
    the logit's shape: sampled in training mode, hardened to 0 or 1 in eval mode, so that a gated model in eval mode
    computes what extraction leaves.
    """

    tau: Tensor
    doubt: Tensor

    def __init__(self, shape: tuple[int, ...], kind: str, config: GateConfig, generator: torch.Generator):
        super().__init__()
        self.kind, self.soft = kind, config.forward == "soft"
        self.sampled_expectation = config.expectation == "sampled"
        self.logit = nn.Parameter(torch.full(shape, float(config.start(kind))))
        self.register_buffer("tau", torch.tensor(float(config.tau_start)), persistent=False)
        # A5: the noise of the one sample that hardening thresholds; 0 thresholds the probability. It is drawn once, so
        # that a network has one hardened form.
        noise = logistic_noise(torch.rand(shape, generator=generator))
        self.register_buffer("doubt", noise if config.harden == "sample" else torch.zeros(shape))
        self.sample: Tensor | None = None

    def forward(self) -> Tensor:
        if not self.training:
            return self.hardened().to(self.logit.dtype)
        noise = logistic_noise(torch.rand_like(self.logit))
        gate = torch.sigmoid((self.logit + noise) / self.tau)  # Eq. 6
        if not self.soft:
            # A1: the 0-1 value forward, the soft sample's gradient backward. `gate - gate.detach()` is exactly 0.
            gate = (gate > 0.5).to(gate.dtype) + (gate - gate.detach())
        if self.sampled_expectation:
            self.sample = gate
        return gate

    @torch.no_grad()
    def harden_to(self, keep: Tensor) -> None:
        """Decide by hand what ``hardened`` and eval mode give; the logit, so sampling and expectation, stays."""
        self.doubt.copy_(torch.where(keep.to(self.doubt.device), CERTAIN, -CERTAIN) - self.logit)

    @torch.no_grad()
    def fix(self, keep: Tensor) -> None:
        """Close and open by hand for good: logits become +-``CERTAIN``."""
        self.logit.copy_(torch.where(keep.to(self.logit.device), CERTAIN, -CERTAIN))

    def hardened(self) -> Tensor:
        """Boolean gates: sigma(alpha) > 1/2 (or the one stored sample > 1/2, A5)."""
        return self.logit.detach() + self.doubt > 0

    def expected(self) -> Tensor:
        """E[gate] in Eq. 5: sigma(alpha) = P(sample > 1/2) at every temperature, so the mean of thresholded samples (of
        soft ones it is not), or the last sample itself (A2)."""
        if self.sampled_expectation and self.training and self.sample is not None:
            return self.sample
        return torch.sigmoid(self.logit)

    def extra_repr(self) -> str:
        return f"{tuple(self.logit.shape)}, {self.kind}, {'soft' if self.soft else 'straight-through'}"


class FixedGate(Gate):
    """A gate that is what it was fixed to, in training too: a mask. Its logit is never trained."""

    def __init__(self, shape: tuple[int, ...], kind: str, config: GateConfig, generator: torch.Generator):
        super().__init__(shape, kind, config, generator)
        self.logit.requires_grad_(False)

    def forward(self) -> Tensor:
        return self.hardened().to(self.logit.dtype)


def logistic_noise(uniform: Tensor) -> Tensor:
    """Logistic(0, 1) noise, the difference of two Gumbels, from uniform numbers in [0, 1); clipped to +-13.8."""
    return torch.logit(uniform, eps=1e-6)


def temperature(config: GateConfig, progress: float) -> float:
    """Exponential annealing (section 3.4): tau_start at ``progress`` 0, tau_end at 1."""
    return config.tau_start * (config.tau_end / config.tau_start) ** progress
