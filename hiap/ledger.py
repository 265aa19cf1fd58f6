"""The arithmetic of cost for a Vision Transformer, without torch: the paper's prices (Eq. 5) and the true ones.

Units: the paper's C1, C2, C3 are FLOPs (two per multiply-add) although the paper calls them MACs; everything named
``macs`` here counts multiply-adds of linear maps and of the two attention products, per image. Norms, softmax, GELU and
additions are left out, as in ``torch.utils.flop_counter``.

Symbols: N tokens, D embedding, H heads, Dh head dimension, Dffn hidden neurons, L blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from hiap.backbones.products import attention_macs, ffn_macs  # noqa: F401


@dataclass(frozen=True)
class Dims:
    """Sizes that decide the cost of a dense ViT. ``patch`` (its side), ``image`` (its rows) and ``columns`` (None: as
    many as rows) are in pixels. ``prefix``: class, distillation and register tokens;
    ``classifiers``: classifier heads (2 for a distilled DeiT), each applied to one pooled token; ``fc1_rows`` per
    neuron, 2 in a gated FFN; ``extra``: MACs of pooling by attention and of what a stem has beside the patches."""

    dim: int
    depth: int
    heads: int
    head_dim: int
    hidden: int
    patch: int
    image: int
    channels: int
    classes: int
    prefix: int = 1
    classifiers: int = 1
    fc1_rows: int = 1
    extra: int = 0
    columns: int | None = None

    @property
    def patches(self) -> int:
        return (self.image // self.patch) * ((self.columns or self.image) // self.patch)

    @property
    def tokens(self) -> int:
        """Number of tokens N."""
        return self.patches + self.prefix


@dataclass(frozen=True)
class Prices:
    """Cost of one unit that stays, in ``unit``: ``head`` once per head, ``value_dim`` once per value dimension,
    ``neuron`` once per FFN neuron; ``attention`` and ``ffn`` once per layer that has any; ``constant`` in any case."""

    head: int
    value_dim: int
    neuron: int
    attention: int = 0
    ffn: int = 0
    constant: int = 0
    unit: str = "MACs"


@lru_cache
def paper_prices(n: int, d: int, head_dim: int, fc1_rows: int = 1) -> Prices:
    """Return C1, C2, C3 of Eq. 5, FLOPs. C1 bills the V projection to the head, so C2 lacks it."""
    head, value_dim = 2 * n * d * 3 * head_dim + 2 * n * n * head_dim, 2 * n * d + 2 * n * n
    neuron = 2 * (fc1_rows + 1) * n * d  # the paper's 4 N D, and more in a gated FFN
    return Prices(head, value_dim, neuron, unit="FLOPs")


@lru_cache
def true_prices(n: int, d: int, head_dim: int, fc1_rows: int = 1) -> Prices:
    """Return what removing one unit saves, MACs (dims 'v'): a head's Q, K projections and Q K^T; a value dimension's V
    row, its column of attention times V and its output column; a neuron's fc1 row and fc2 column."""
    head, value_dim = 2 * n * d * head_dim + n * n * head_dim, 2 * n * d + n * n
    return Prices(head, value_dim, neuron=(fc1_rows + 1) * n * d)


@lru_cache
def dense_cost(dims: Dims, prices: Prices) -> int:
    """Price all prunable units of the dense network."""
    per_block = dims.heads * (prices.head + dims.head_dim * prices.value_dim) + dims.hidden * prices.neuron
    return dims.depth * (per_block + prices.attention + prices.ffn)


@lru_cache
def mac_prices(dims: Dims) -> Prices:
    """Return the true prices of one network, with its constant part."""
    return replace(true_prices(dims.tokens, dims.dim, dims.head_dim, dims.fc1_rows), constant=constant_macs(dims))


def constant_macs(dims: Dims) -> int:
    """Count patch embedding, pooling and classifier, which no gate reaches."""
    patch = dims.patches * dims.patch**2 * dims.channels * dims.dim
    return patch + dims.classifiers * dims.dim * dims.classes + dims.extra


def dense_macs(dims: Dims) -> int:
    """Count the MACs of one image through the dense network."""
    prices = mac_prices(dims)
    return prices.constant + dense_cost(dims, prices)
