"""From measured times to prices of units: what ``python -m hiap.bench latency`` samples, fits and reports.

A network's time is taken to be linear in its units: so much for each head, value dimension and FFN neuron, for each
attention and each FFN that is there at all, and for the rest. The six prices come from networks of random shape, by
least squares on relative errors without negative prices. Whole networks are timed rather than single branches, whose
times do not add up: a branch alone finds its weights in the cache, and a GPU hides its launch.

Time is not linear: matrix kernels work in tiles, so that it rises in steps (of 8, 16 or more neurons, by device and
precision), and narrow heads are padded to the widest of their layer. Numbers of units are drawn without regard to that,
so a price is the mean slope of the stairs, and half a step goes to the branch. A network of round numbers is a little
faster than predicted, one just beyond them slower; errors of all networks are in the report, and those of the ones that
were not fitted say how far the prices can be trusted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from pydantic import BaseModel

from hiap.budget.latency import PRICED
from hiap.budget.summary import block_shapes
from hiap.ledger import Dims

HELD_OUT = 20  # networks that are measured and not fitted


class Network(BaseModel):
    """Sampled network: how many units it has (``attention``, ``ffn``: blocks that have one); its time in microseconds
    of a batch, ``measured`` (the dense network's time times the ratio to it) and ``predicted`` (its units' prices added
    up); and ``error``, predicted over measured - 1."""

    name: str
    heads: int
    value_dims: int
    neurons: int
    attention: int
    ffn: int
    measured: float
    predicted: float = 0.0
    error: float = 0.0

    def units(self) -> list[int]:
        return [self.heads, self.value_dims, self.neurons, self.attention, self.ffn, 1]


class Table(BaseModel):
    """Table of prices: ``microseconds`` of a batch that a unit costs in a network of ``sizes`` (``hiap.ledger.Dims``).
    ``median_error``, ``worst_error``: of the networks that were not fitted, ``fitted_error``: median of those that
    were; sizes of relative errors. The dense network is among the fitted ones."""

    sizes: dict[str, int | None]
    microseconds: dict[str, float]
    fitted: list[Network]
    held_out: list[Network]
    median_error: float
    worst_error: float
    fitted_error: float

    def __str__(self) -> str:
        prices = ", ".join(f"{name} {price:.4g}" for name, price in self.microseconds.items())
        return (
            f"µs of a batch: {prices}\n{len(self.held_out)} networks that were not fitted: median error "
            f"{self.median_error:.1%}, worst {self.worst_error:.1%} (fitted: median {self.fitted_error:.1%})"
        )


def shapes(dims: Dims, fitted: int) -> Iterator[tuple[str, list[list[int]], list[int]]]:
    """Yield name, value dimensions of each head per block, and neurons per block, of the networks to fit and to hold
    out."""
    for kind, count in (("fitted", fitted), ("held-out", HELD_OUT)):
        for i in range(count):
            yield f"{kind}:{i}", *shape(dims, np.random.default_rng([kind == "held-out", i]))


def shape(dims: Dims, rng: np.random.Generator) -> tuple[list[list[int]], list[int]]:
    """Draw a random shape. Shares of heads, widths and neurons, and how often a branch is gone, are a network's own, so
    that networks differ in one from the other; blocks and heads scatter around them. Some attention is always there."""
    heads, width, neurons = rng.uniform(0.1, 1.0, 3)
    no_attention, no_ffn = rng.uniform(0.0, 0.5, 2)

    def near(most: int, share: float) -> int:
        return int(np.clip(round(most * (share + rng.uniform(-0.25, 0.25))), 1, most))

    def attention() -> list[int]:
        return [near(dims.head_dim, width) for _ in range(near(dims.heads, heads))]

    widths = [[] if rng.random() < no_attention else attention() for _ in range(dims.depth)]
    wide = [0 if rng.random() < no_ffn else near(dims.hidden, neurons) for _ in range(dims.depth)]
    return (widths if any(widths) else [attention(), *widths[1:]]), wide


def network(name: str, model: Any) -> Network:
    """Count the units of a dense or extracted network, which is not yet measured."""
    left = block_shapes(model)
    return Network(
        name=name,
        heads=sum(block.heads for block in left),
        value_dims=sum(block.value_dims for block in left),
        neurons=sum(block.neurons for block in left),
        attention=sum(bool(block.head_dims) for block in left),
        ffn=sum(bool(block.neurons) for block in left),
        measured=0.0,
    )


def fit(units: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return the prices (6,), none below 0, that come nearest to ``times`` (n,) of networks with these ``units`` (n,
    6), by the sum of squared relative errors."""
    from scipy.optimize import nnls  # here: the extra study, which nothing else of the package waits for

    relative = units / times[:, None]
    largest = np.maximum(relative.max(0), np.finfo(float).tiny)
    prices, _ = nnls(relative / largest, np.ones(len(times)))
    return prices / largest


def table(dims: Dims, networks: Sequence[Network]) -> Table:
    """Fit all networks but those held out; compare predicted and measured times of all."""
    fitted = [n for n in networks if not n.name.startswith("held-out")]
    prices = fit(np.array([n.units() for n in fitted], float), np.array([n.measured for n in fitted]))
    compared = {n.name: _compared(n, prices) for n in networks}
    held_out = [n for name, n in compared.items() if name.startswith("held-out")]
    fitted = [compared[n.name] for n in fitted]
    errors, of_fitted = (np.abs([n.error for n in part]) for part in (held_out, fitted))
    return Table(
        sizes=asdict(dims),
        microseconds=dict(zip(PRICED, prices.round(6).tolist(), strict=True)),
        fitted=fitted,
        held_out=held_out,
        median_error=round(float(np.median(errors)), 4),
        worst_error=round(float(errors.max()), 4),
        fitted_error=round(float(np.median(of_fitted)), 4),
    )


def _compared(one: Network, prices: np.ndarray) -> Network:
    predicted = float(prices @ one.units())
    error = round(predicted / one.measured - 1, 4)
    return one.model_copy(update={"predicted": round(predicted, 3), "error": error})
