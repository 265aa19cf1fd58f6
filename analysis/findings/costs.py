"""Findings 1 to 3: units, the V projection, ways of counting. From ``hiap.ledger`` and nothing else."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pandas as pd

from hiap.budget.sizes import dense_params, known_dims
from hiap.ledger import Dims, constant_macs, dense_cost, dense_macs, paper_prices, true_prices

DEIT_SMALL: Dims = known_dims("deit_small_patch16_224")  # type: ignore[assignment]
WHOLE = {"heads": DEIT_SMALL.depth * DEIT_SMALL.heads, "neurons": DEIT_SMALL.depth * DEIT_SMALL.hidden}  # its units
_SIZES = DEIT_SMALL.tokens, DEIT_SMALL.dim, DEIT_SMALL.head_dim
PAPER, TRUE = paper_prices(*_SIZES), true_prices(*_SIZES)  # of one of them, in FLOPs and in MACs
# The CIFAR-10 model of Table 3 as far as the paper states it (L 6, D 192, H 3, 32 x 32 pixels); patch 4 and MLP ratio 4
# are not stated and follow from the search below.
CIFAR_VIT = Dims(dim=192, depth=6, heads=3, head_dim=64, hidden=768, patch=4, image=32, channels=3, classes=10)
PRINTED = 174.0e6  # its MACs, as Table 3 has them


# Finding 1: units


class Units(NamedTuple):
    """Dense network: Eq. 5's sum with every gate open, and what is true. ``paper`` in FLOPs, the rest MACs."""

    paper: int
    prunable_macs: int
    total_macs: int
    params: int

    @property
    def ratio(self) -> float:
        return self.paper / self.prunable_macs


def units() -> Units:
    """Finding 1: C1, C2, C3 are called MACs and are FLOPs: over any dense ViT they sum to exactly twice its MACs."""
    prunable = dense_cost(DEIT_SMALL, PAPER), dense_cost(DEIT_SMALL, TRUE)
    return Units(*prunable, dense_macs(DEIT_SMALL), dense_params(DEIT_SMALL))


# Finding 2: the V projection


class ValueDimension(NamedTuple):
    """MACs of one value dimension: ``credited`` by Eq. 5 (C2 / 2), ``saved`` by removing it."""

    credited: int
    saved: int

    @property
    def share(self) -> float:
        return self.credited / self.saved


def value_dimension() -> ValueDimension:
    """Finding 2: Eq. 5 bills the V projection to the head, so closing one value dimension is credited too little."""
    return ValueDimension(PAPER.value_dim // 2, TRUE.value_dim)


def price_list() -> pd.DataFrame:
    """MACs of one unit and of all units of a block, by Eq. 5 (halved to MACs) and in truth. A head's price is what is
    paid once per head; its value dimensions come on top."""
    dims = DEIT_SMALL
    count = {"head": dims.heads, "value_dim": dims.heads * dims.head_dim, "neuron": dims.hidden}
    rows = [
        (unit, name, macs, k, k * macs)
        for unit, k in count.items()
        for name, macs in (("Eq. 5", getattr(PAPER, unit) // 2), ("true", getattr(TRUE, unit)))
    ]
    return pd.DataFrame(rows, columns=["unit", "ledger", "macs", "units_per_block", "macs_per_block"])


# Finding 3: mixed conventions


def cost_parts() -> dict[str, int]:
    """MACs of the dense CIFAR-10 model by kind of operation: ``linear`` (projections and FFN), ``attention`` (Q K^T and
    attention times V), ``patch``, ``head``."""
    dims, n = CIFAR_VIT, CIFAR_VIT.tokens
    attention = dims.depth * 2 * n * n * dims.heads * dims.head_dim
    head = dims.classifiers * dims.dim * dims.classes
    patch = constant_macs(dims) - head
    linear = dense_macs(dims) - attention - patch - head
    return {"linear": linear, "attention": attention, "patch": patch, "head": head}


def thop_count() -> int:
    """What the ``thop`` profiler reports for a ViT of nn.Linear, nn.Softmax, nn.LayerNorm and ``@``: attention's matrix
    products are invisible to it, a norm counts 4 per element, a softmax 3 n - 1 per row of n."""
    dims, parts, n = CIFAR_VIT, cost_parts(), CIFAR_VIT.tokens
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


def search_conventions(target: float = PRINTED, half_width: float = 0.05e6) -> pd.DataFrame:
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


def counting_conventions() -> pd.DataFrame:
    """The CIFAR-10 model counted in four ways: ``counted``, ``macs``."""
    parts = cost_parts()
    counts = {
        "linear maps of the blocks": parts["linear"],
        "+ patch embedding, classifier": parts["linear"] + parts["patch"] + parts["head"],
        "thop (no attention products)": thop_count(),
        "every multiply-add": sum(parts.values()),
    }
    return pd.DataFrame(counts.items(), columns=["counted", "macs"])
