"""Some hundred images as a user hands them over: one tensor, batches, or batches with labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from hiap import cost
from hiap.options import ConfigError

AT_ONCE = 64  # images of one tensor that go through the network together


def batches(images: Any, model: Any) -> Iterator[tuple[Tensor, Any]]:
    """Yield batches (B, C, height, width) with their labels, None where they come without. Raises ``ConfigError`` for
    what ``model`` does not take, the batch before it having been yielded."""
    if isinstance(images, Tensor):
        images = images.split(AT_ONCE) if images.ndim == 4 else [images]
    if not isinstance(images, Iterable):
        raise ConfigError(f"images: expected a tensor (B, C, height, width) or batches, not {type(images).__name__}")
    expected = cost.image_of(model)
    for batch in images:
        x, labels = (batch[0], batch[1]) if isinstance(batch, (tuple, list)) and len(batch) == 2 else (batch, None)
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim != 4 or tuple(x.shape[1:]) != expected:
            found = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ConfigError(f"images: expected numbers (B, {', '.join(map(str, expected))}), not {found}")
        yield x, labels
