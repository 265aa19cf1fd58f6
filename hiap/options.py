"""The options of the method, each with the gap in the paper that it fills (docs/open_points.md numbers them): A1 to A10
without A8 here, A12 in ``objective.distillation_loss``, A8 and A11, recipe and CIFAR-10 network, in
``hiap.train.config``. A ``Section`` is a pydantic model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from hiap.backbones.errors import ConfigError, Section, checked, first_error, one_line  # noqa: F401


class GateConfig(Section):
    """Gates (Eqs. 1-4, 6) and how they harden."""

    # A1: Eq. 6 defines a soft sample, yet names a straight-through estimator, which has a meaning only if the forward
    # pass is discrete. Default: hard 0-1 forward, gradient of the soft sample.
    forward: Literal["straight-through", "soft"] = "straight-through"
    # A2: P(sample > 1/2) = sigmoid(logit) at every temperature, so for thresholded samples (A1) the closed form is
    # exact and has no variance, as long as |logit| < 13.8: past the clip of the noise (hiap.gates) gates never change.
    # It is not the mean of soft samples (logit 3, tau 2: 0.786, not 0.953); 'sampled' takes the last sample.
    expectation: Literal["closed-form", "sampled"] = "closed-form"
    # A4: Eq. 3 gates V only, and removing what was never gated changes the function; so V is gated and V is removed.
    # 'qkv': Q, K and V share the gate and go together. 'v-cut-qkv': section 3.4's text: V gated, Q, K, V removed.
    dims: Literal["v", "qkv", "v-cut-qkv"] = "v"
    # A5: thresholding the probability is deterministic given the weights; one noisy sample adds luck to the result.
    harden: Literal["probability", "sample"] = "probability"
    # A6: unstated. sigmoid(3) = 0.95: near all open, far from the threshold. Figs. 5-9 exclude it at the rate that the
    # paper states (docs/open_points.md): grids of these figures take start and rate from slurm/readings.yaml.
    init_logit: float = 3.0
    # A6: unstated. Where heads and FFN blocks start, if not where dimensions and neurons do: in Figs. 5-8 17 to 65 of
    # 72 heads close in the first epoch, in Fig. 9 71 % of the neurons and no head.
    init_macro: float | None = None
    # A6: unstated. None is the weights' learning rate, the only one that the paper gives.
    lr: float | None = Field(None, gt=0)
    # A6, as a distance instead of a rate: how far a steady gradient moves a logit over the whole run, however long that
    # is (one that grows moves it farther). Instead of lr.
    travel: float | None = Field(None, gt=0)
    # A6: decay pulls logits to 0, i.e. to maximal doubt, and is not in the paper's loss: off.
    weight_decay: float = Field(0.0, ge=0)
    # A9: 'gated' multiplies the attention's output bias by "any head open", so that a layer whose gates are all closed
    # is the identity, as section 3 says; 'kept' leaves the bias (which belongs to no head) in place.
    attn_bias: Literal["gated", "kept"] = "gated"
    # A10: unstated. 'own': every process, and every part of an accumulated batch, draws its own noise, as plain
    # data-parallel training does. 'shared': all draw the same, gates and drop path alike, so that what is learned does
    # not depend on how many processes share the batch. For loops that call ``Pruner.seed_noise(part)``.
    noise: Literal["own", "shared"] = "own"
    tau_start: float = Field(2.0, gt=0)  # section 3.4, exponential; that it falls at each step is ours
    tau_end: float = Field(0.5, gt=0)

    def start(self, level: str) -> float:
        """Return the first logit of a 'macro' or 'micro' gate."""
        return self.init_macro if level == "macro" and self.init_macro is not None else self.init_logit

    def rate_scale(self, lr: float, summed: float) -> float:
        """Return the gates' rate divided by the weights', which is ``lr`` at most and sums to ``summed`` in all."""
        if self.travel is not None:
            return self.travel / summed
        return (self.lr or lr) / lr

    @model_validator(mode="after")
    def _one_rate(self) -> GateConfig:
        if self.lr is not None and self.travel is not None:
            raise ValueError("gates.lr and gates.travel say the same: set one")
        return self


class PenaltyConfig(Section):
    """Eq. 7. ``lambda_macro`` prices the C1 part of Eq. 5, ``lambda_micro`` the C2 and C3 parts."""

    lambda_macro: float = Field(0.9, ge=0)  # price of heads (Eq. 5 has none of an FFN block); 0.9, 0.45: Fig. 5's
    lambda_micro: float = Field(0.45, ge=0)  # price of value dimensions and neurons
    # A3: strengths of order 1 rule out raw FLOPs. Dividing both by the dense total leaves the relative prices of Eq. 5;
    # 'own' divides each by its own dense value.
    scale: Literal["total", "own", "raw"] = "total"
    # 'paper': the constants of Eq. 5, which bill V's projection to the head. 'physical': what a removed unit saves with
    # dims 'v' (the true ledger; not named 'true' because YAML would read a boolean).
    ledger: Literal["paper", "physical"] = "paper"


class FeasibilityConfig(Section):
    """Eq. 8. A7: every number is unstated. Layers reach zero heads in Figs. 5-8, so the floor is soft: the weights are
    of the order of one head's price of DeiT-Small in Eq. 7, which cannot forbid an empty layer. None was tuned."""

    k_min: float = Field(1.0, ge=0)  # heads of a layer below which it is penalised
    gamma_attn: float = Field(0.1, ge=0, le=1)  # share of a head's value dimensions below which it is
    gamma_ffn: float = Field(0.1, ge=0, le=1)  # share of a layer's neurons below which it is
    beta_head: float = Field(1e-3, ge=0)  # strength of the floor of heads; 0: off
    beta_dim: float = Field(1e-3, ge=0)  # strength of the floor of value dimensions; 0: off
    beta_ffn: float = Field(1e-3, ge=0)  # strength of the floor of neurons; 0: off


def distance_to_threshold(gates: GateConfig, penalty: PenaltyConfig, nearest: bool = False) -> float | None:
    """Return the first logit of the gates that the penalty prices, which is their distance from 0, where they close:
    the largest, or with ``nearest`` the smallest; None if it prices none (controls). The micro costs, E[g d] and
    E[b c], price macro gates too."""
    levels = ["macro"] * (penalty.lambda_macro > 0) + ["macro", "micro"] * (penalty.lambda_micro > 0)
    return (min if nearest else max)((gates.start(level) for level in levels), default=None)
