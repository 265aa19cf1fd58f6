"""The arithmetic of cost for a Vision Transformer, without torch: the paper's prices (Eq. 5), the true ones, and, ours,
measured time.

Units: the paper's C1, C2, C3 are FLOPs (two per multiply-add) although the paper calls them MACs; everything named
``macs`` here counts multiply-adds of linear maps and of the two attention products, per image. Norms, softmax, GELU and
additions are left out, as in ``torch.utils.flop_counter``.

Symbols: N tokens, D embedding, H heads, Dh head dimension, Dffn hidden neurons, L blocks.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from hiap.options import ConfigError

PICOSECONDS = 10**6  # of a microsecond


@dataclass(frozen=True)
class Dims:
    """The sizes that decide the cost of a dense ViT. ``prefix``: class, distillation and register tokens;
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
    columns: int | None = None  # of the image, where it has not as many as rows

    @property
    def patches(self) -> int:
        return (self.image // self.patch) * ((self.columns or self.image) // self.patch)

    @property
    def tokens(self) -> int:
        """N."""
        return self.patches + self.prefix


@dataclass(frozen=True)
class Prices:
    """Cost of keeping one unit, in ``unit``: ``head`` once per head, ``value_dim`` once per value dimension, ``neuron``
    once per FFN neuron; ``attention`` and ``ffn`` once per layer that keeps any; ``constant`` whatever is kept."""

    head: int
    value_dim: int
    neuron: int
    attention: int = 0
    ffn: int = 0
    constant: int = 0
    unit: str = "MACs"

    @property
    def million(self) -> str:
        """The name of a million of them, for messages."""
        return "µs" if self.unit == "ps" else f"M {self.unit}"


PRICED = tuple(field.name for field in fields(Prices) if field.name != "unit")


@dataclass(frozen=True)
class LatencyTable:
    """Ours, not the paper's: what ``python -m hiap.bench latency`` found for networks pruned from one of the sizes
    ``dims``, on one device with one batch size: ``prices`` in picoseconds per batch (so small that integers lose
    nothing). ``source`` is for messages. A head is priced with whole Q and K (A4 'v'); where dimensions take those
    along, each takes its share of the head's price."""

    dims: Dims
    prices: Prices
    source: str = "latency table"
    sha256: str = ""  # of its file

    def require_fits(self, dims: Dims) -> None:
        """Raises ``ConfigError`` if it was measured on another network."""
        mine, wanted = asdict(self.dims), asdict(dims)
        if other := [f"{name} {mine[name]}, not {wanted[name]}" for name in mine if mine[name] != wanted[name]]:
            raise ConfigError(f"{self.source} is of another network ({'; '.join(other)}); expected one of this network")


def read_latency(path: str | os.PathLike[str]) -> LatencyTable:
    """The table in a report of ``python -m hiap.bench latency``. Raises ``ConfigError`` if there is none."""
    expected = "expected a report of python -m hiap.bench latency"
    try:
        content = Path(path).read_bytes()
        saved = json.loads(content)["latency"]
        dims = Dims(**saved["sizes"])
        prices = latency_prices(dims.head_dim, saved["microseconds"])
        return LatencyTable(dims, prices, f"latency table '{path}'", hashlib.sha256(content).hexdigest())
    except OSError as error:
        raise ConfigError(f"latency table '{path}': {error.strerror}; {expected}") from None
    except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError):
        raise ConfigError(f"latency table '{path}': {expected}") from None


def latency_prices(head_dim: int, microseconds: Mapping[str, Any]) -> Prices:
    """``microseconds``: every field of ``Prices`` but the unit, per batch. Raises ``ValueError`` or ``TypeError`` for
    what is no time, and ``KeyError`` for one that is missing."""
    times = {name: float(microseconds[name]) for name in PRICED}
    if not all(0 <= time < math.inf for time in times.values()) or not any(times.values()):
        raise ValueError(f"{times}: expected times, 0 or more, and not all 0")
    rounded = {name: round(PICOSECONDS * time) for name, time in times.items()}
    # A multiple, so that a share of a head (A4) is an integer as well.
    rounded["head"] = head_dim * round(PICOSECONDS * times["head"] / head_dim)
    return Prices(**rounded, unit="ps")


def paper_prices(n: int, d: int, head_dim: int, fc1_rows: int = 1) -> Prices:
    """C1, C2, C3 of Eq. 5, FLOPs. C1 bills the V projection to the head, so C2 lacks it."""
    head, value_dim = 2 * n * d * 3 * head_dim + 2 * n * n * head_dim, 2 * n * d + 2 * n * n
    neuron = 2 * (fc1_rows + 1) * n * d  # the paper's 4 N D, and more in a gated FFN
    return Prices(head, value_dim, neuron, unit="FLOPs")


def true_prices(n: int, d: int, head_dim: int, fc1_rows: int = 1) -> Prices:
    """What removing one unit saves, MACs: a head's Q, K projections and Q K^T; a value dimension's V row, its column of
    attention times V and its output column; a neuron's fc1 row and fc2 column."""
    head, value_dim = 2 * n * d * head_dim + n * n * head_dim, 2 * n * d + n * n
    return Prices(head, value_dim, neuron=(fc1_rows + 1) * n * d)


def dense_cost(dims: Dims, prices: Prices) -> int:
    """All prunable units of the dense network at the given prices."""
    per_block = dims.heads * (prices.head + dims.head_dim * prices.value_dim) + dims.hidden * prices.neuron
    return dims.depth * (per_block + prices.attention + prices.ffn)


def mac_prices(dims: Dims) -> Prices:
    """The true prices of one network, with its constant part."""
    return replace(true_prices(dims.tokens, dims.dim, dims.head_dim, dims.fc1_rows), constant=constant_macs(dims))


def amount(wanted: float, dense: int) -> int:
    """What a target means: a share of ``dense`` if it is below 1, else a number."""
    return round(wanted * dense) if wanted < 1 else round(wanted)


def share(wanted: float, dense: int) -> float:
    """The same as a share of ``dense``."""
    return wanted if wanted < 1 else wanted / dense


def constant_macs(dims: Dims) -> int:
    """Patch embedding, pooling and classifier: not prunable here."""
    patch = dims.patches * dims.patch**2 * dims.channels * dims.dim
    return patch + dims.classifiers * dims.dim * dims.classes + dims.extra


def dense_macs(dims: Dims) -> int:
    """MACs of one image through the dense network."""
    prices = mac_prices(dims)
    return prices.constant + dense_cost(dims, prices)


def dense_params(dims: Dims) -> int:
    """Parameters of the dense network in timm's layout: biases everywhere, learned positions, a last norm."""
    n, d, inner, f = dims.tokens, dims.dim, dims.heads * dims.head_dim, dims.hidden
    stem = dims.patch**2 * dims.channels * d + d + n * d + dims.prefix * d
    attention = 3 * (d * inner + inner) + inner * d + d
    ffn = d * f + f + f * d + d
    norms = 2 * 2 * d
    head = dims.classifiers * (d * dims.classes + dims.classes)
    return stem + dims.depth * (attention + ffn + norms) + 2 * d + head


def attention_macs(n: int, d: int, qk_dims: Sequence[int], value_dims: Sequence[int]) -> int:
    """MACs of one attention layer whose heads keep these many query/key and value dimensions."""
    return sum(
        2 * n * d * qk + n * n * qk + 2 * n * d * v + n * n * v for qk, v in zip(qk_dims, value_dims, strict=True)
    )


def ffn_macs(n: int, d: int, neurons: int, fc1_rows: int = 1) -> int:
    """MACs of one FFN block with this many neurons."""
    return (fc1_rows + 1) * n * d * neurons


# Backbones that the grids name, for bills computed without building a network: (D, L, H, patch).
_KNOWN = {
    "deit_tiny_patch16_224": (192, 12, 3, 16),
    "deit_small_patch16_224": (384, 12, 6, 16),
    "deit_base_patch16_224": (768, 12, 12, 16),
    "vit_small_patch14_dinov2": (384, 12, 6, 14),
}


def known_dims(name: str, image: int = 224, classes: int = 1000, channels: int = 3) -> Dims | None:
    """Sizes of a timm model that the grids use, or None."""
    if name not in _KNOWN:
        return None
    d, depth, heads, patch = _KNOWN[name]
    return Dims(d, depth, heads, d // heads, 4 * d, patch, image, channels, classes)
