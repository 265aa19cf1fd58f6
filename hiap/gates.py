"""Gumbel-Sigmoid gates (Eq. 6) and their annealing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hiap.backbones.sharded import full_tensor_of, write
from hiap.options import ConfigError, GateConfig

CLIP = 1e-6  # noise comes from uniform numbers in [CLIP, 1 - CLIP], so it stays within +-13.8
CERTAIN = 20.0  # a logit beyond the noise: open in every sample


class Gate(nn.Module):
    """Tensor of gates with one learnable ``logit`` (alpha in the paper) each.

    ``level`` is 'macro' (heads, FFN blocks) or 'micro' (value dimensions, neurons). Calling the module returns gates of
    the logit's shape: sampled in training mode, hardened to 0 or 1 in eval mode, so that a gated model in eval mode
    computes what extraction leaves. Logits are float32 at least, whatever the network is cast to: in bfloat16 a logit
    of 9 would close twenty times too often, and small steps would be lost.
    """

    tau: Tensor
    offset: Tensor

    def __init__(self, shape: tuple[int, ...], level: str, config: GateConfig, generator: torch.Generator):
        super().__init__()
        self.level, self.soft = level, config.forward == "soft"
        self.sampled_expectation = config.expectation == "sampled"
        wide = torch.promote_types(torch.get_default_dtype(), torch.float32)
        self.logit = nn.Parameter(torch.full(shape, float(config.start(level)), dtype=wide))
        self.register_buffer("tau", torch.tensor(float(config.tau_start)), persistent=False)
        # What hardening adds to the logit: 0, or (A5) the noise of one sample, drawn once, for one hardened form.
        noise = logistic_noise(torch.rand(shape, generator=generator))
        self.register_buffer("offset", noise if config.harden == "sample" else torch.zeros(shape))
        self.sample: Tensor | None = None

    @property
    def alpha(self) -> Tensor:
        """Logits, gathered where FSDP2 leaves a process a part of them between forward passes. Raises ``ConfigError``
        if FSDP1 has flattened them."""
        logit = full_tensor_of(self._parameters.get("logit"))
        if logit is None or logit.shape != self.offset.shape:
            raise ConfigError(
                "the gates were flattened, as FullyShardedDataParallel (FSDP1) does, or hidden (DataParallel); "
                "shard with fully_shard (FSDP2) or wrap in DistributedDataParallel"
            )
        return logit

    def forward(self) -> Tensor:
        if not self.training:
            return self.hardened().to(self.logit.dtype)
        # One draw for all images of a forward pass (ours). This is ``logistic_noise``, written out: every gate of every
        # step comes by here.
        noise = torch.logit(torch.rand_like(self.logit), eps=CLIP)
        gate = torch.sigmoid((self.logit + noise) / self.tau)  # Eq. 6
        if not self.soft:
            # A1: the 0-1 value forward, the soft sample's gradient backward. `gate - gate.detach()` is exactly 0.
            gate = (gate > 0.5).to(gate.dtype) + (gate - gate.detach())
        if self.sampled_expectation:
            self.sample = gate
        return gate

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def wide(t: Tensor) -> Tensor:
            new = fn(t)
            return t.to(new.device) if new.is_floating_point() and new.dtype.itemsize < 4 else new

        return super()._apply(wide, recurse)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the last sample, which hangs in a graph, out of copies and pickles."""
        return {k: v for k, v in self.__dict__.items() if k != "_compiled_call_impl"} | {"sample": None}

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, value in (("logit", self.logit), ("offset", self.offset)):
            saved = state.get(prefix + name)
            if saved is not None and saved.shape != value.shape and saved.numel() == value.numel() == 1:
                state[prefix + name] = saved.view(value.shape)  # an FFN's gate was a scalar once
        super()._load_from_state_dict(state, prefix, *args)

    @torch.no_grad()
    def harden_to(self, stay: Tensor) -> None:
        """Decide by hand what ``hardened`` and eval mode give; the logit, so sampling and expectation, stays."""
        self.offset.copy_(torch.where(stay.to(self.offset.device), CERTAIN, -CERTAIN) - self.alpha)

    @torch.no_grad()
    def fix(self, stay: Tensor) -> None:
        """Close and open by hand for good: logits become +-``CERTAIN``."""
        value = torch.where(stay.to(self.logit.device), CERTAIN, -CERTAIN)
        write(self.logit, value.expand_as(self.alpha))

    def hardened(self) -> Tensor:
        """Return booleans: sigma(alpha) > 1/2 (or the one stored sample > 1/2, A5)."""
        return self.alpha.detach() + self.offset > 0

    def expected(self) -> Tensor:
        """Return E[gate] in Eq. 5: sigma(alpha) = P(sample > 1/2) at every temperature, so the mean of thresholded
        samples (of soft ones it is not), or the last sample itself (A2)."""
        if self.sampled_expectation and self.training and self.sample is not None:
            return self.sample
        logit = self._parameters.get("logit")  # ``alpha`` written out, as every gate comes by here twice a step
        plain = type(logit) is nn.Parameter and logit.shape == self.offset.shape
        return torch.sigmoid(logit if plain else self.alpha)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        return f"{tuple(self.logit.shape)}, {self.level}, {'soft' if self.soft else 'straight-through'}"


def logistic_noise(uniform: Tensor) -> Tensor:
    """Return Logistic(0, 1) noise, the difference of two Gumbels, from uniform numbers in [0, 1).

    The clip holds 0 finite. P(noise > -alpha) = sigma(alpha) stays exact while ``|alpha| < 13.8`` (A2); beyond it a
    gate is open in every sample or in none, where sigma differs from 1 or 0 by less than 1e-6."""
    return torch.logit(uniform, eps=CLIP)


def temperature(config: GateConfig, progress: float) -> float:
    """Return the temperature, annealed exponentially (section 3.4): tau_start at ``progress`` 0, tau_end at 1."""
    return config.tau_start * (config.tau_end / config.tau_start) ** progress


def set_temperature(gated: nn.Module, tau: float) -> None:
    for module in gated.modules():
        if isinstance(module, Gate):
            module.tau.fill_(tau)


def anneal(gated: nn.Module, config: GateConfig, progress: float) -> float:
    """Set and return the temperature at ``progress`` in [0, 1]."""
    set_temperature(gated, tau := temperature(config, progress))
    return tau
