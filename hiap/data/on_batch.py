"""Augmentation of whole batches of decoded images: crops after padding, flips and erasing, as tensor operations that
run where the images lie.

What happens to an image follows from (seed, epoch) and its number alone, whatever batch, process or device it is in.
Crops and flips move bytes; so they are the same to the bit everywhere.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PADDED = 8  # one in so many of a side is padded at either end before the crop, as DeiT does for CIFAR-10
ERASED = (
    0.25  # share of images with an erased rectangle; its area and its ratio of sides are DeiT's (Zhong et al., 2020)
)
AREA, RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)
DRAWS = 8  # random numbers of an image


class Places(NamedTuple):
    """Places within each image, int64 (B,): where its crop begins in the padded one, whether it is flipped (0 or 1),
    and the rectangle that is erased (of no height: none)."""

    y: Tensor
    x: Tensor
    flip: Tensor
    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor

    def to(self, device: torch.device) -> Places:
        return Places(*torch.stack([*self]).to(device, non_blocking=True))


def draws(count: int, *key: int) -> np.ndarray:
    """Draw random numbers in [0, 1), float32 (count, DRAWS), that follow from ``key``: one row per image."""
    return np.random.Generator(np.random.PCG64([*key])).random((count, DRAWS), dtype=np.float32)


def places(drawn: np.ndarray, height: int, width: int) -> Places:
    """Return what ``drawn`` (B, DRAWS) does to images of this size."""
    y, x, flip, erase, area, ratio, top, left = drawn.T.astype(np.float64)
    pixels = height * width * (AREA[0] + (AREA[1] - AREA[0]) * area)
    stretch = np.exp(math.log(RATIO[0]) + (math.log(RATIO[1]) - math.log(RATIO[0])) * ratio)
    tall = np.clip(np.sqrt(pixels * stretch).round(), 1, height) * (erase < ERASED)
    wide = np.clip(np.sqrt(pixels / stretch).round(), 1, width)
    found = (
        np.floor(y * (2 * (height // PADDED) + 1)),
        np.floor(x * (2 * (width // PADDED) + 1)),
        flip < 0.5,
        np.floor(top * (height - tall + 1)),
        np.floor(left * (width - wide + 1)),
        tall,
        wide,
    )
    return Places(*(torch.from_numpy(values.astype(np.int64)) for values in found))


def moved(images: Tensor, at: Places) -> Tensor:
    """Return images (B, C, H, W) padded with 0, cropped to their size and flipped."""
    count, _, height, width = images.shape
    across, down = width // PADDED, height // PADDED
    rows = at.y[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = at.x[:, None] + torch.where(at.flip[:, None] == 1, width - 1 - columns, columns)
    which = torch.arange(count, device=images.device)[:, None, None]
    padded = F.pad(images, (across, across, down, down))
    return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def erased(images: Tensor, at: Places) -> Tensor:
    """Set each rectangle of normalised images (B, C, H, W) to the mean, in place; return them."""

    def within(first: Tensor, length: Tensor, side: int) -> Tensor:
        place = torch.arange(side, device=images.device) - first[:, None]
        return (place >= 0) & (place < length[:, None])

    rows = within(at.top, at.height, images.shape[2])
    columns = within(at.left, at.width, images.shape[3])
    return images.masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)
