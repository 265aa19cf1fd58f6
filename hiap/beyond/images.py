"""Some hundred images as a user hands them over: one tensor, batches, or batches with labels."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from hiap import cost
from hiap.backbones.families import pretrained
from hiap.options import ConfigError

AT_ONCE = 64  # images of one tensor that go through the network together
MOST = 10_000  # images of a loader, of which some hundred are wanted: they are held in memory
FAR = 3  # times the range from black to white, outside of which no normalised image lies


def batches(images: Any, model: Any) -> Iterator[tuple[Tensor, Any]]:
    """Yield batches (B, C, height, width) with their labels, None where they come without; of a loader no more than
    ``MOST`` images, which is told. Warns of pixels that are probably not as ``model`` knows them. Raises
    ``ConfigError`` for what ``model`` does not take, the batch before it having been yielded."""
    whole = isinstance(images, Tensor)
    if isinstance(images, Tensor):
        images = images.split(AT_ONCE) if images.ndim == 4 else [images]
    if not isinstance(images, Iterable):
        raise ConfigError(f"images: expected a tensor (B, C, height, width) or batches, not {type(images).__name__}")
    expected, count, low, high = cost.image_of(model), 0, math.inf, -math.inf
    for batch in images:
        x, labels = (batch[0], batch[1]) if isinstance(batch, (tuple, list)) and len(batch) == 2 else (batch, None)
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim != 4 or tuple(x.shape[1:]) != expected:
            found = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ConfigError(f"images: expected numbers (B, {', '.join(map(str, expected))}), not {found}")
        if len(x):
            if not x.isfinite().all():
                raise ConfigError("images: some have numbers that are not finite")
            if count and not whole and count + len(x) > MOST:
                warnings.warn(f"images: more than {MOST:,}; those behind are not looked at", stacklevel=1)
                break
            count += len(x)
            low, high = min(low, float(x.min())), max(high, float(x.max()))
        yield x, labels
    if not count:
        return
    if low == high:
        raise ConfigError(f"images: all values are {low:g}; expected some hundred, as the network takes them")
    if doubt := _doubt(low, high, pretrained(model)):
        warnings.warn(doubt, stacklevel=1)


def _doubt(low: float, high: float, known: Mapping[str, Any]) -> str:
    """Say if images with values from ``low`` to ``high`` are probably not normalised; '' if they may be."""
    if not known.get("mean") or not known.get("std"):
        return ""
    black, white = (
        end([(value - m) / s for m, s in zip(known["mean"], known["std"], strict=True)])
        for end, value in ((min, 0), (max, 1))
    )
    far = max(black - low, high - white) > FAR * (white - black)
    if not far and not (black < 0 <= low and high <= 1):
        return ""
    by = f"normalised by the network's mean and std they lie between {black:.2g} and {white:.2g}"
    return f"images: values from {low:.3g} to {high:.3g}; {by}"
