"""Meaning of a target, sizes of networks that the grids name, and of what is left of a block; without torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from hiap.ledger import Dims

# Backbones that the grids name, for bills computed without building a network: (D, L, H, patch).
_KNOWN = {
    "deit_tiny_patch16_224": (192, 12, 3, 16),
    "deit_small_patch16_224": (384, 12, 6, 16),
    "deit_base_patch16_224": (768, 12, 12, 16),
    "vit_small_patch14_dinov2": (384, 12, 6, 14),
}


class BlockShape(BaseModel):
    """Shape of what is left of a block: value dimensions of each head, and FFN neurons (0: the FFN is gone); also
    MACs of an image and parameters, which no record holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    head_dims: tuple[int, ...]
    neurons: int
    macs: int = Field(0, exclude=True)
    params: int = Field(0, exclude=True)

    @property
    def heads(self) -> int:
        return len(self.head_dims)

    @property
    def value_dims(self) -> int:
        return sum(self.head_dims)


def known_dims(name: str, image: int = 224, classes: int = 1000, channels: int = 3) -> Dims | None:
    """Return the sizes of a timm model that the grids use, or None."""
    if name not in _KNOWN:
        return None
    d, depth, heads, patch = _KNOWN[name]
    return Dims(d, depth, heads, d // heads, 4 * d, patch, image, channels, classes)


def amount(wanted: float, dense: int) -> int:
    """Return what a target means: a share of ``dense`` if it is below 1, else a number."""
    return round(wanted * dense) if wanted < 1 else round(wanted)


def share(wanted: float, dense: int) -> float:
    """Return a target as a share of ``dense``."""
    return wanted if wanted < 1 else wanted / dense


def dense_params(dims: Dims) -> int:
    """Count the parameters of the dense network in timm's layout: biases everywhere, learned positions, a last norm."""
    n, d, inner, f = dims.tokens, dims.dim, dims.heads * dims.head_dim, dims.hidden
    stem = dims.patch**2 * dims.channels * d + d + n * d + dims.prefix * d
    attention = 3 * (d * inner + inner) + inner * d + d
    ffn = d * f + f + f * d + d
    norms = 2 * 2 * d
    head = dims.classifiers * (d * dims.classes + dims.classes)
    return stem + dims.depth * (attention + ffn + norms) + 2 * d + head
