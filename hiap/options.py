"""The options of the method, each with the gap in the paper that it fills (A1 ... A12: docs/open_points.md)."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator


class ConfigError(ValueError):
    """A configuration that cannot be run; the message is one line and says what was expected."""


def one_line(error: object, most: int | None = 200) -> str:
    """What is said, without line breaks, and not more than ``most`` characters of it (None: all)."""
    return " ".join(str(error).split())[:most]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class GateConfig(Section):
    """The gates (Eqs. 1-4, 6) and how they harden."""

    # A1: Eq. 6 defines a soft sample, yet names a straight-through estimator, which has a meaning only if the forward
    # pass is discrete. Default: hard 0-1 forward, gradient of the soft sample.
    forward: Literal["straight-through", "soft"] = "straight-through"
    # A2: P(sample > 1/2) = sigmoid(logit) at every temperature, so for thresholded samples (A1) the closed form is
    # exact and has no variance, while |logit| < 13.8: beyond the clip of the noise (hiap.gates) a gate never changes.
    # It is not the mean of soft samples (logit 3, tau 2: 0.786, not 0.953); 'sampled' is.
    expectation: Literal["closed-form", "sampled"] = "closed-form"
    # A4: Eq. 3 gates V only, and removing what was never gated changes the function; so V is gated and V is removed.
    # 'qkv': Q, K and V share the gate and go together. 'v-cut-qkv': section 3.4's text: V gated, Q, K, V removed.
    dims: Literal["v", "qkv", "v-cut-qkv"] = "v"
    # A5: thresholding the probability is deterministic given the weights; one noisy sample adds luck to the result.
    harden: Literal["probability", "sample"] = "probability"
    # A6: unstated. sigmoid(3) = 0.95: near all open, far from the threshold. The paper's figures exclude it at the rate
    # that it states (finding 14): its grids take start and rate from slurm/readings.yaml.
    init_logit: float = 3.0
    # A6: unstated. Where heads and FFN blocks start, if not where dimensions and neurons do: in the figures they close
    # within the first epoch, while nearly all neurons stay open for many.
    init_macro: float | None = None
    # A6: unstated. None is the weights' learning rate, the only one that the paper gives.
    lr: float | None = Field(None, gt=0)
    # A6, the same as a length: the rates of all steps sum to it, so a steady gradient takes a logit so far, however
    # long the run (one that grows takes it farther). Instead of lr.
    travel: float | None = Field(None, gt=0)
    # A6: decay pulls logits to 0, i.e. to maximal doubt, and is not in the paper's loss: off.
    weight_decay: float = Field(0.0, ge=0)
    # Ours, off in faithful runs: a rule that has closed every head keeps the best one, so that a run always leaves a
    # network that sees its image.
    keep_head: bool = False
    # A9: 'gated' multiplies the attention's output bias by "any head open", so that a layer whose gates are all closed
    # is the identity, as section 3 says; 'kept' leaves the bias (which belongs to no head) in place.
    attn_bias: Literal["gated", "kept"] = "gated"
    # A10: unstated. 'own': every process, and every part of an accumulated batch, draws its own noise, as plain
    # data-parallel training does. 'shared': all draw the same, gates and drop path alike, so that what is learned does
    # not depend on how many processes share the batch.
    noise: Literal["own", "shared"] = "own"
    tau_start: float = Field(2.0, gt=0)
    tau_end: float = Field(0.5, gt=0)

    def start(self, level: str) -> float:
        """The first logit of a 'macro' or 'micro' gate."""
        return self.init_macro if level == "macro" and self.init_macro is not None else self.init_logit

    @model_validator(mode="after")
    def _one_rate(self) -> GateConfig:
        if self.lr is not None and self.travel is not None:
            raise ValueError("gates.lr and gates.travel say the same: set one")
        return self


class PenaltyConfig(Section):
    """Eq. 7. ``lambda_macro`` prices the C1 part of Eq. 5, ``lambda_micro`` the C2 and C3 parts."""

    lambda_macro: float = Field(0.9, ge=0)  # price of heads and FFN blocks; with a target, only the ratio counts
    lambda_micro: float = Field(0.45, ge=0)  # price of value dimensions and neurons
    # A3: strengths of order 1 rule out raw FLOPs. Dividing both by the dense total keeps the relative prices of Eq. 5;
    # 'own' divides each by its own dense value.
    scale: Literal["total", "own", "raw"] = "total"
    # 'paper': the constants of Eq. 5, which bill V's projection to the head. 'physical': what a removed unit saves (the
    # true ledger; not named 'true' because YAML would read a boolean).
    # 'latency' (ours, the paper's future work): measured time, from the table in ``latency_table``.
    ledger: Literal["paper", "physical", "latency"] = "paper"
    # A report of `python -m hiap.bench latency` of this network: prices for that ledger, and for a target in time.
    # Its path is part of a run's id, its contents are not: the record has their SHA-256.
    latency_table: str = ""


class FeasibilityConfig(Section):
    """Eq. 8. A7: every number is unstated. Layers reach zero heads in Figs. 5-8, so the floor is soft: the weights are
    of the order of one head's price in Eq. 7, which discourages an empty layer and cannot forbid it."""

    k_min: float = Field(1.0, ge=0)  # heads of a layer below which it is penalised
    gamma_attn: float = Field(0.1, ge=0, le=1)  # share of a layer's value dimensions below which it is
    gamma_ffn: float = Field(0.1, ge=0, le=1)  # share of a layer's neurons below which it is
    beta_head: float = Field(1e-3, ge=0)  # strength of the floor of heads; 0: off
    beta_dim: float = Field(1e-3, ge=0)  # strength of the floor of value dimensions; 0: off
    beta_ffn: float = Field(1e-3, ge=0)  # strength of the floor of neurons; 0: off


Some = TypeVar("Some", bound=BaseModel)


def checked(section: type[Some], values: dict[str, Any]) -> Some:
    """``section(**values)``; what is wrong with them is one line."""
    try:
        return section(**values)
    except ValidationError as error:
        raise ConfigError(first_error(error)) from None


def first_error(error: ValidationError) -> str:
    """One line for the first problem: the dotted key, what is wrong, and what was given."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"] if part not in ("float", "str", "int"))
    given = "" if isinstance(first["input"], dict | BaseModel) else f", not {first['input']!r}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{key}: {message}{given}" if key else message
