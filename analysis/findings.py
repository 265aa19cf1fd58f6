"""What does not add up in the paper's arithmetic, recomputed from first principles.

Equations, tables and figures are those of arXiv 2603.12222 version 1. Nothing here is quoted: every number follows from
``hiap.ledger``, from the closed form of a Gumbel-Sigmoid gate, or from a published table that the function names.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from analysis import collect
from hiap.ledger import (
    Dims,
    attention_macs,
    constant_macs,
    dense_cost,
    dense_macs,
    dense_params,
    ffn_macs,
    known_dims,
    paper_prices,
    true_prices,
)

DEIT_SMALL: Dims = known_dims("deit_small_patch16_224")  # type: ignore[assignment]
WHOLE = {"heads": DEIT_SMALL.depth * DEIT_SMALL.heads, "neurons": DEIT_SMALL.depth * DEIT_SMALL.hidden}  # its units
# The CIFAR-10 model of Table 3 as far as the paper states it (L 6, D 192, H 3, 32 x 32 pixels); patch 4 and MLP ratio 4
# are not stated and follow from the search below.
CIFAR_VIT = Dims(dim=192, depth=6, heads=3, head_dim=64, hidden=768, patch=4, image=32, channels=3, classes=10)


# Finding 1: units


@dataclass(frozen=True)
class Units:
    """Dense network: Eq. 5's sum with every gate open, and what is true. ``paper`` in FLOPs, the rest MACs."""

    paper: int
    prunable_macs: int
    total_macs: int
    params: int

    @property
    def ratio(self) -> float:
        return self.paper / self.prunable_macs


def units(dims: Dims = DEIT_SMALL) -> Units:
    """Finding 1: C1, C2, C3 are called MACs and are FLOPs: over any dense ViT they sum to exactly twice its MACs."""
    n, d, dh = dims.tokens, dims.dim, dims.head_dim
    return Units(
        paper=dense_cost(dims, paper_prices(n, d, dh)),
        prunable_macs=dense_cost(dims, true_prices(n, d, dh)),
        total_macs=dense_macs(dims),
        params=dense_params(dims),
    )


# Finding 2: the V projection


@dataclass(frozen=True)
class ValueDimension:
    """MACs of one value dimension: ``credited`` by Eq. 5 (C2 / 2), ``saved`` by removing it."""

    credited: int
    saved: int

    @property
    def share(self) -> float:
        return self.credited / self.saved


def value_dimension(dims: Dims = DEIT_SMALL) -> ValueDimension:
    """Finding 2: Eq. 5 bills the V projection to the head, so closing one value dimension is credited too little."""
    n, d, dh = dims.tokens, dims.dim, dims.head_dim
    return ValueDimension(paper_prices(n, d, dh).value_dim // 2, true_prices(n, d, dh).value_dim)


def price_list(dims: Dims = DEIT_SMALL) -> pd.DataFrame:
    """MACs of one unit and of all units of a block, by Eq. 5 (halved to MACs) and in truth. A head's price is what is
    paid once per head; its value dimensions come on top."""
    n, d, dh = dims.tokens, dims.dim, dims.head_dim
    paper, true = paper_prices(n, d, dh), true_prices(n, d, dh)
    count = {"head": dims.heads, "value_dim": dims.heads * dh, "neuron": dims.hidden}
    rows = [
        {"unit": unit, "ledger": name, "macs": macs, "units_per_block": k, "macs_per_block": k * macs}
        for unit, k in count.items()
        for name, macs in (("Eq. 5", getattr(paper, unit) // 2), ("true", getattr(true, unit)))
    ]
    return pd.DataFrame(rows)


# Finding 3: mixed conventions


def cost_parts(dims: Dims = CIFAR_VIT) -> dict[str, int]:
    """MACs of the dense network by kind of operation: ``linear`` (projections and FFN), ``attention`` (Q K^T and
    attention times V), ``patch``, ``head``."""
    n, d, inner = dims.tokens, dims.dim, dims.heads * dims.head_dim
    attention = dims.depth * 2 * n * n * inner
    head = dims.classifiers * d * dims.classes
    patch = constant_macs(dims) - head
    return {
        "linear": dense_macs(dims) - attention - patch - head,
        "attention": attention,
        "patch": patch,
        "head": head,
    }


def thop_count(dims: Dims = CIFAR_VIT) -> int:
    """What the ``thop`` profiler reports for a ViT of nn.Linear, nn.Softmax, nn.LayerNorm and ``@``: attention's matrix
    products are invisible to it, a norm counts 4 per element, a softmax 3 n - 1 per row of n."""
    parts, n = cost_parts(dims), dims.tokens
    norms = (2 * dims.depth + 1) * 4 * n * dims.dim
    softmax = dims.depth * dims.heads * n * (3 * n - 1)
    return parts["linear"] + parts["patch"] + parts["head"] + norms + softmax


# What the paper leaves open about the model, and ways in which counters differ. Costs are per element.
SEARCH = {
    "patch": (2, 4, 8, 16),
    "mlp_ratio": (1, 1.5, 2, 2.5, 3, 3.5, 4, 8),
    "prefix": (0, 1, 2),
    "classes": (10, 100, 1000),
    "attention_products": (0, 1, 2),
    "stem_and_head": ("both", "stem", "head", "neither"),
    "bias": (0, 1),
    "norm": (0, 1, 2, 4, 5),
    "softmax": (0, 1, 3, 5),
    "gelu": (0, 1, 8),
}


def search_conventions(target: float = 174.0e6, half_width: float = 0.05e6) -> pd.DataFrame:
    """Finding 3: every combination of ``SEARCH``, counted. ``hit``: rounds to the printed ``target``."""
    grid = pd.DataFrame(itertools.product(*SEARCH.values()), columns=list(SEARCH))
    n = (CIFAR_VIT.image // grid["patch"]) ** 2 + grid["prefix"]
    d, depth, heads = CIFAR_VIT.dim, CIFAR_VIT.depth, CIFAR_VIT.heads
    hidden = grid["mlp_ratio"] * d
    outputs = n * (3 * d + d + hidden + d)  # of the linear maps of one block
    linear = n * (4 * d * d + 2 * d * hidden)
    block = (
        linear
        + grid["attention_products"] * n * n * d
        + grid["bias"] * outputs
        + grid["softmax"] * heads * n * n
        + grid["gelu"] * n * hidden
    )
    norms = (2 * depth + 1) * grid["norm"] * n * d
    stem = (n - grid["prefix"]) * d * (grid["patch"] ** 2 * CIFAR_VIT.channels + grid["bias"])
    head = (d + grid["bias"]) * grid["classes"]
    ends = grid["stem_and_head"].isin(["both", "stem"]) * stem + grid["stem_and_head"].isin(["both", "head"]) * head
    grid["macs"] = depth * block + norms + ends
    grid["hit"] = (grid["macs"] - target).abs() <= half_width
    return grid


# Findings 4 and 5: hardening


def sigmoid(x: np.ndarray | float) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.asarray(x, dtype=float))))


@dataclass(frozen=True)
class HardeningGap:
    """Cost of units of weight 1: ``expected`` under the gates' probabilities, and ``hardened`` at 1/2."""

    expected: float
    hardened: float

    @property
    def gap(self) -> float:
        return self.hardened - self.expected


def hardening_gap(logit: float, units: int = 10, gates: Literal[1, 2] = 1) -> HardeningGap:
    """Finding 4: Proposition 2 fails. ``units`` equal units, each behind ``gates`` independent gates of one logit (2: a
    macro and a micro gate). Neither number depends on the temperature, since P(sample > 1/2) = sigmoid(logit) at every
    one; a unit behind one gate of probability p is off by min(p, 1 - p), whatever the annealing."""
    p = float(sigmoid(logit)) ** gates
    return HardeningGap(expected=units * p, hardened=units * float(logit > 0))


def undecided_share(tau: float, logit: float = 0.0, low: float = 0.05, high: float = 0.95) -> float:
    """Finding 5: probability that a Gumbel-Sigmoid sample (Eq. 6) lies in (low, high): at tau 0.5 most still do."""
    bounds = tau * np.log(np.array([low, high]) / (1 - np.array([low, high]))) - logit
    lower, upper = sigmoid(bounds)
    return float(upper - lower)


def sample_density(z: np.ndarray, tau: float, logit: float = 0.0) -> np.ndarray:
    """Density of a Gumbel-Sigmoid sample (Eq. 6) at 0 < ``z`` < 1, exact: x = tau log(z / (1 - z)) - logit is the
    logistic noise that gives ``z``."""
    x = tau * np.log(z / (1 - z)) - logit
    return tau * sigmoid(x) * sigmoid(-x) / (z * (1 - z))


def sample_mean(tau: float, logit: float, points: int = 200_001) -> float:
    """Mean of a soft Gumbel-Sigmoid sample, by the quadrature of ``sample_variance``: sigmoid(logit) only as tau falls
    to 0 (A2)."""
    return float(np.mean(_quantiles(tau, logit, points)))


def sample_variance(tau: float, logit: float = 0.0, points: int = 200_001) -> float:
    """Variance of a Gumbel-Sigmoid sample, by quadrature over the logistic noise's quantiles. As tau falls it rises to
    the Bernoulli variance sigmoid(logit) sigmoid(-logit), not to 0."""
    return float(np.var(_quantiles(tau, logit, points)))


def _quantiles(tau: float, logit: float, points: int) -> np.ndarray:
    """A soft sample's quantiles at the middles of equal steps of probability."""
    u = (np.arange(points) + 0.5) / points
    return sigmoid(np.clip((logit + np.log(u) - np.log1p(-u)) / tau, -500, 500))


# Figs. 5-9: what the digitised runs end as

FIGURES = (5, 6, 7, 8, 9)
READ_AS_FULL = 1520  # the colour scale does not separate 1520 from 1536 neurons


def figure_title(figure: int) -> str:
    row = collect.published("fig5_9_gate_heatmaps").query("figure == @figure").iloc[0]
    macro, micro = (rf"$\lambda_\mathrm{{{level}}}$" for level in ("macro", "micro"))
    return f"Fig. {figure} of the paper: {macro} = {row['lambda_macro']:g}, {micro} = {row['lambda_micro']:g}"


def final_sizes(dims: Dims = DEIT_SMALL) -> pd.DataFrame:
    """MACs and parameters after the last epoch of Figs. 5-9. Upper bounds: the figures do not show value dimensions, so
    all are kept, and neurons from ``READ_AS_FULL`` up count as full (``macs_as_read``: they count as read). Norms stay;
    a part that is gone takes its biases along (A9)."""
    rows = []
    for figure in FIGURES:
        last = collect.published_heatmap(figure).query("epoch == epoch.max()")
        heads = last["heads"].tolist()
        neurons = last["neurons"].where(last["neurons"] < READ_AS_FULL, dims.hidden).tolist()
        rows.append(
            {
                "figure": figure,
                "heads": sum(heads),
                "neurons": sum(neurons),
                "last_ffn_neurons": neurons[-1],
                "macs": _macs(dims, heads, neurons),
                "macs_as_read": _macs(dims, heads, last["neurons"].tolist()),
                "params": _params(dims, heads, neurons),
            }
        )
    return pd.DataFrame(rows)


def _macs(dims: Dims, heads: list[int], neurons: list[int]) -> int:
    n, d, dh = dims.tokens, dims.dim, dims.head_dim
    attention = sum(attention_macs(n, d, [dh] * h, [dh] * h) for h in heads)
    return constant_macs(dims) + attention + sum(ffn_macs(n, d, k) for k in neurons)


def _params(dims: Dims, heads: list[int], neurons: list[int]) -> int:
    d, dh = dims.dim, dims.head_dim
    per_head, per_neuron = 3 * dh * (d + 1) + dh * d, d + 1 + d
    removed_heads = sum((dims.heads - h) * per_head + (d if h == 0 else 0) for h in heads)
    removed_neurons = sum((dims.hidden - k) * per_neuron + (d if k == 0 else 0) for k in neurons)
    return dense_params(dims) - removed_heads - removed_neurons


# Everything above as one table; ``analysis.findings_runs.overview`` adds findings 6 to 14


def overview() -> pd.DataFrame:
    """The numbers of findings 1 to 5, one per row: ``finding``, ``quantity``, ``value``, ``unit``."""
    deit, value, parts, search = units(), value_dimension(), cost_parts(), search_conventions()
    counted = search["hit"] & (search["attention_products"] == 2)
    one, two = hardening_gap(0.1), hardening_gap(0.1, gates=2)
    rows = [
        (1, "Eq. 5 over dense DeiT-Small", deit.paper / 1e9, "GFLOPs"),
        (1, "prunable part of dense DeiT-Small", deit.prunable_macs / 1e9, "GMACs"),
        (1, "Eq. 5 / prunable MACs", deit.ratio, ""),
        (1, "dense DeiT-Small", deit.total_macs / 1e9, "GMACs"),
        (1, "dense DeiT-Small", deit.params / 1e6, "M parameters"),
        (2, "credited by Eq. 5 for one value dimension", value.credited, "MACs"),
        (2, "saved by removing one value dimension", value.saved, "MACs"),
        (2, "credited / saved", 100 * value.share, "%"),
        *((3, f"CIFAR-10 model: {name}", macs / 1e6, "MMACs") for name, macs in parts.items()),
        (3, "CIFAR-10 model: all", sum(parts.values()) / 1e6, "MMACs"),
        (3, "CIFAR-10 model: as thop counts", thop_count() / 1e6, "MMACs"),
        (3, "ways of counting that were tried", len(search), ""),
        (3, "of them, round to 174.0 M", search["hit"].sum(), ""),
        (3, "of these, count both attention products", counted.sum(), ""),
        (3, "of these, with a whole MLP ratio", (counted & (search["mlp_ratio"] % 1 == 0)).sum(), ""),
        (4, "ten units at logit 0.1: expected", one.expected, "units"),
        (4, "ten units at logit 0.1: hardened", one.hardened, "units"),
        (4, "ten units behind two gates at logit 0.1: expected", two.expected, "units"),
        (4, "ten units behind two gates at logit 0.1: hardened", two.hardened, "units"),
        (5, "samples in (0.05, 0.95) at logit 0, temperature 0.5", 100 * undecided_share(0.5), "%"),
    ]
    return pd.DataFrame(rows, columns=["finding", "quantity", "value", "unit"]).astype({"value": float})


def counting_conventions(dims: Dims = CIFAR_VIT) -> pd.DataFrame:
    """The CIFAR-10 model counted in four ways: ``counted``, ``macs``."""
    parts = cost_parts(dims)
    ends = parts["patch"] + parts["head"]
    return pd.DataFrame(
        [
            ("linear maps of the blocks", parts["linear"]),
            ("+ patch embedding, classifier", parts["linear"] + ends),
            ("thop (no attention products)", thop_count(dims)),
            ("every multiply-add", sum(parts.values())),
        ],
        columns=["counted", "macs"],
    )
