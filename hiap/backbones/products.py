"""Multiply-adds of one layer's matrix products, without torch."""

from __future__ import annotations

from collections.abc import Sequence


def attention_macs(n: int, d: int, qk_dims: Sequence[int], value_dims: Sequence[int]) -> int:
    """Count the MACs of one attention layer of ``n`` tokens of width ``d`` whose heads keep so many query/key and value
    dimensions."""
    return sum(
        2 * n * d * qk + n * n * qk + 2 * n * d * v + n * n * v for qk, v in zip(qk_dims, value_dims, strict=True)
    )


def ffn_macs(n: int, d: int, neurons: int, fc1_rows: int = 1) -> int:
    """Count the MACs of one FFN of ``n`` tokens of width ``d`` with so many neurons."""
    return (fc1_rows + 1) * n * d * neurons
