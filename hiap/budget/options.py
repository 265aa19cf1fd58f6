"""The paper's options (``hiap.options``), and what is ours among them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hiap import options


class GateConfig(options.GateConfig):
    """Gates (Eqs. 1-4, 6) and how they harden."""

    # Ours, off in faithful runs: a rule that has closed every head keeps the best one, so that a run always leaves a
    # network that sees its image.
    keep_head: bool = False


class PenaltyConfig(options.PenaltyConfig):
    """Penalties of Eq. 7. ``lambda_macro`` prices the C1 part of Eq. 5, ``lambda_micro`` the C2 and C3 parts."""

    lambda_macro: float = Field(0.9, ge=0)  # price of heads; with a target, only the ratio counts
    # 'paper': the constants of Eq. 5, which bill V's projection to the head. 'physical': what a removed unit saves (the
    # true ledger; not named 'true' because YAML would read a boolean).
    # 'latency' (ours, the paper's future work): measured time, from the table in ``latency_table``.
    ledger: Literal["paper", "physical", "latency"] = "paper"  # type: ignore[assignment]
    # A report of `python -m hiap.bench latency` of this network: prices for that ledger, and for a target in time.
    # Its path is part of a run's id, its contents are not: the record has their SHA-256.
    latency_table: str = ""
