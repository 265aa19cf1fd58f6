"""Section 4 of the paper in exact arithmetic: Lemma 1 by counting, Proposition 1 by enumeration, Proposition 2's gap.

Numbers are those of arXiv 2603.12222 version 1. Symbols: H heads, Dh value dimensions of a head, Dffn neurons; g, d, b,
c gates of heads, value dimensions, FFN blocks and neurons.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from analysis.findings.gates import hardening_gap
from hiap.ledger import Dims, Prices

Granularity = Literal["macro", "micro", "macro + micro"]
GRANULARITIES: tuple[Granularity, ...] = ("macro", "micro", "macro + micro")


# Lemma 1


def bits(dims: Dims, granularity: Granularity) -> float:
    """log2 of the number of different networks that the gates of a whole ViT can leave. A closed head and an open one
    without value dimensions are the same network, and so are a closed FFN and one without neurons."""
    macro = dims.heads + 1
    micro = dims.heads * dims.head_dim + dims.hidden
    return float(dims.depth * (macro if granularity == "macro" else micro))


def enumerate_networks(heads: int, head_dim: int, hidden: int, granularity: Granularity) -> int:
    """Different networks of one block, by going through all settings of its gates. For blocks of at most ~15 gates."""
    choices = [(0, 1)] * (heads + 1), [(0, 1)] * (heads * head_dim + hidden)
    fixed = [[(1,)] * len(options) for options in choices]
    free = [granularity != "micro", granularity != "macro"]
    options = itertools.chain(
        *(kind if is_free else ones for kind, ones, is_free in zip(choices, fixed, free, strict=True))
    )
    return len({_left(setting, heads, head_dim) for setting in itertools.product(*options)})


def _left(setting: tuple[int, ...], heads: int, head_dim: int) -> tuple[int, ...]:
    """Open value dimensions and neurons: what decides the block's function."""
    g, b, d = setting[:heads], setting[heads], setting[heads + 1 : heads + 1 + heads * head_dim]
    values = (g[i // head_dim] * open_ for i, open_ in enumerate(d))
    return (*values, *(b * c for c in setting[heads + 1 + heads * head_dim :]))


def counting(dims: Dims) -> pd.DataFrame:
    """Lemma 1: ``bits`` of one network per granularity, and those of one block: ``granularity``, ``bits``,
    ``bits_per_block``."""
    rows = [(g, bits(dims, g), bits(dims, g) / dims.depth) for g in GRANULARITIES]
    return pd.DataFrame(rows, columns=["granularity", "bits", "bits_per_block"])


# Proposition 1


class ExpectedCost(NamedTuple):
    """Expected cost of a block in units of its prices: ``enumerated`` over all states of its gates; ``joint``, Eq. 5
    with E[g d] and E[b c]; ``marginals``, Eq. 5 with products E[g] E[d] and E[b] E[c]."""

    enumerated: float
    joint: float
    marginals: float


def expected_cost(probabilities: np.ndarray, heads: int, head_dim: int, hidden: int, prices: Prices) -> ExpectedCost:
    """Proposition 1 for any joint distribution of a block's gates. ``probabilities``: one per state, in the order of
    ``itertools.product`` over g (H), b, d (H x Dh), c (Dffn); they sum to 1."""
    gates = heads + 1 + heads * head_dim + hidden
    states = np.array(list(itertools.product((0, 1), repeat=gates)), dtype=float)
    g, b, d, c = np.split(states, [heads, heads + 1, heads + 1 + heads * head_dim], axis=1)
    owner = np.repeat(np.arange(heads), head_dim)
    cost = prices.head * g.sum(1) + prices.value_dim * (g[:, owner] * d).sum(1) + prices.neuron * (b * c).sum(1)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.asarray(probabilities @ values)

    def eq5(gd: np.ndarray, bc: np.ndarray) -> float:
        return float(prices.head * mean(g).sum() + prices.value_dim * gd.sum() + prices.neuron * bc.sum())

    return ExpectedCost(
        enumerated=float(mean(cost)),
        joint=eq5(mean(g[:, owner] * d), mean(b * c)),
        marginals=eq5(mean(g)[owner] * mean(d), mean(b) * mean(c)),
    )


def independent(probability: float, gates: int) -> np.ndarray:
    """Distribution over the states of independent gates that are open with one ``probability``."""
    states = np.array(list(itertools.product((0, 1), repeat=gates)))
    return np.asarray(np.prod(np.where(states, probability, 1 - probability), axis=1))


def all_or_none(probability: float, gates: int) -> np.ndarray:
    """Distribution with the same marginals as ``independent`` in which all gates open and close together."""
    weights = np.zeros(2**gates)
    weights[0], weights[-1] = 1 - probability, probability
    return weights


def proposition_1(prices: Prices, probability: float = 0.5, seed: int = 0) -> pd.DataFrame:
    """Expected cost of a block of 2 heads, 2 value dimensions each and 4 neurons under three joint distributions of its
    gates (the third drawn at random), as shares of its dense cost."""
    heads, head_dim, hidden = 2, 2, 4
    gates = heads + 1 + heads * head_dim + hidden
    kinds = {
        "independent": independent(probability, gates),
        "all or none": all_or_none(probability, gates),
        "drawn at random": np.random.default_rng(seed).dirichlet(np.full(2**gates, 0.01)),
    }
    dense = heads * (prices.head + head_dim * prices.value_dim) + hidden * prices.neuron
    costs = pd.DataFrame([expected_cost(p, heads, head_dim, hidden, prices) for p in kinds.values()]) / dense
    costs.insert(0, "gates", list(kinds))
    return costs


# Proposition 2


def gap(logits: np.ndarray, gates: Literal[1, 2] = 1) -> pd.DataFrame:
    """Cost of one unit behind ``gates`` independent gates of one logit: ``logit``, ``expected``, ``hardened`` at 1/2,
    ``gap`` = hardened - expected. With one gate, |gap| = min(p, 1 - p) <= 1/2; with two it reaches 3/4."""
    found = hardening_gap(logits, 1, gates)
    return pd.DataFrame({"logit": logits, "gates": gates, **found._asdict(), "gap": found.gap})


def gaps(points: int = 401) -> pd.DataFrame:
    """``gap`` over logits from -6 to 6 for one and for two gates."""
    logits = np.linspace(-6, 6, points)
    return pd.concat([gap(logits, 1), gap(logits, 2)], ignore_index=True)


def certain_logit(epsilon: float, gates: Literal[1, 2] = 1) -> float:
    """|logit| beyond which one open unit is within ``epsilon`` of its expectation: what Proposition 2 would need."""
    p = (1 - epsilon) ** (1 / gates)
    return math.log(p / (1 - p))
