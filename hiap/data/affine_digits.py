"""The embedded images: scikit-learn's handwritten digits (real, 1,797 of 8x8 pixels), and 'affine-digits' made of them.

An affine-digits canvas shows one original under a random affine map, in front of clutter (fragments of other originals,
pen strokes), on a shaded background, with random contrast and noise. The labels are the originals' own, so the task is
real reading made as hard as wanted without a download. Train and test canvases are made from disjoint originals.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Split = Literal["train", "test", "fit", "validation"]

# Canvases are drawn so many at once (they fit a cache), each chunk from its own generator, so that a small set is the
# start of a larger one.
CHUNK = 250
# How hard the canvases are. Lengths are shares of the canvas, shifts of half its side, intensities of full scale.
SIDES = (0.65, 0.95)  # of the digit's box, width and height apart
ROTATION = math.radians(20)  # beyond 30 degrees 1 and 7 begin to meet
SHEAR = 0.2
SHIFT = 0.15
FRAGMENTS = 2
STROKES = 1
CLUTTER = (0.2, 0.6)
CONTRAST = (0.4, 0.7)
NOISE = (0.02, 0.10)


def part_of(split: Literal["train", "test"], validates: bool) -> Split:
    """Return what stands for a split where validation images are measured: canvases of other originals."""
    if not validates:
        return split
    return "fit" if split == "train" else "validation"


def original_indices(split: Split) -> np.ndarray:
    """Return which of the 1,797 originals belong to ``split``: of each class, in scikit-learn's order, every fourth
    image is a test image (1,352 train, 445 test). Of the training images of each class every fifth is for 'validation',
    the others are to 'fit'. Stratified, fixed, and without a random number."""
    labels = _load_digits()[1]
    rank = np.zeros(len(labels), dtype=np.int64)
    for digit in range(10):
        members = labels == digit
        rank[members] = np.arange(members.sum())
    tested = rank % 4 == 3
    apart = (rank - rank // 4) % 5 == 4  # by the rank among training images
    of_split = {"test": tested, "train": ~tested, "fit": ~tested & ~apart, "validation": ~tested & apart}
    return np.flatnonzero(of_split[split])


def originals(split: Split) -> tuple[Tensor, Tensor]:
    """Return the images (n, 1, 8, 8) of ``split``, float32 in [0, 1], bright ink on 0, and their labels (n,) int64."""
    images, labels = _load_digits()
    chosen = original_indices(split)
    return torch.from_numpy(images[chosen]).float().div(16)[:, None], torch.from_numpy(labels[chosen]).long()


def resized(split: Split, size: int) -> tuple[Tensor, Tensor]:
    """Return the originals themselves at ``size`` x ``size``, uint8 (n, 1, size, size), bilinear: between neighbours of
    an anti-aliased scan the truth is smooth, so squares of equal pixels would only be artefacts for patches to learn.
    """
    images, labels = originals(split)
    with _one_thread():
        images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
    return _to_bytes(images), labels


def canvases(split: Split, count: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw ``count`` canvases, uint8 (count, 1, size, size), and their labels (count,) int64; a pure function of the
    arguments."""
    images, labels = originals(split)
    # Drawn from a smooth enlargement, ink kept off its border: grid_sample then pads with background.
    source = F.pad(F.interpolate(images, scale_factor=2, mode="bicubic", align_corners=False).clamp(0, 1), (2, 2, 2, 2))
    with _one_thread():
        chunks = [_draw_chunk(source, labels, size, generator) for generator in _generators(split, count, seed)]
    pixels, targets = (torch.cat(parts)[:count].clone() for parts in zip(*chunks, strict=True))
    return pixels, targets


def shown(split: Split, count: int, seed: int) -> np.ndarray:
    """Return which original each of ``canvases``' images shows, counted within the split: pictures of one original are
    right or wrong together, which an interval over test images has to know."""
    number = len(original_indices(split))
    chosen = [torch.randint(number, (CHUNK,), generator=g) for g in _generators(split, count, seed)]
    return torch.cat(chosen)[:count].numpy()


def _generators(split: Split, count: int, seed: int) -> Iterator[torch.Generator]:
    """Yield a generator per chunk. The first thing that is drawn from it are the originals."""
    for chunk in range(math.ceil(count / CHUNK)):
        number = ("train", "test", "fit", "validation").index(split)
        entropy = np.random.SeedSequence([seed, number, chunk]).generate_state(1, np.uint64)
        yield torch.Generator().manual_seed(int(entropy[0]))


def _draw_chunk(source: Tensor, labels: Tensor, size: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw CHUNK canvases: clutter under the digit, both as ink in [0, 1], laid on a background with noise."""
    chosen = torch.randint(len(source), (CHUNK,), generator=g)
    ink = _warp(source[chosen], _digit_maps(g), size)
    clutter = torch.maximum(_fragments(source, size, g), _strokes(size, g))
    clutter = clutter * _uniform(g, *CLUTTER, CHUNK, 1, 1, 1)
    ink = torch.maximum(ink * _uniform(g, 0.7, 1.0, CHUNK, 1, 1, 1), clutter)
    paper = _background(size, g)
    contrast = _uniform(g, *CONTRAST, CHUNK, 1, 1, 1)
    noise = torch.randn(ink.shape, generator=g) * _uniform(g, *NOISE, CHUNK, 1, 1, 1)
    return _to_bytes(paper + contrast * ink + noise), labels[chosen]


def _digit_maps(g: torch.Generator) -> Tensor:
    """Draw affine maps (CHUNK, 2, 3) for the digits themselves."""
    width, height = _uniform(g, *SIDES, CHUNK), _uniform(g, *SIDES, CHUNK)
    angle, shear = _uniform(g, -ROTATION, ROTATION, CHUNK), _uniform(g, -SHEAR, SHEAR, CHUNK)
    return _inverse_maps(width, height, angle, shear, *_uniform(g, -SHIFT, SHIFT, 2, CHUNK))


def _fragments(source: Tensor, size: int, g: torch.Generator) -> Tensor:
    """Draw pieces of other originals, at any angle, (CHUNK, 1, size, size): the strongest of FRAGMENTS layers."""
    n = CHUNK * FRAGMENTS
    pieces = source[torch.randint(len(source), (n,), generator=g)]
    # A piece is the part of a digit on one side of a random line through it.
    side = pieces.shape[-1]
    y, x = torch.meshgrid(_axis(side), _axis(side), indexing="ij")
    angle = _uniform(g, -math.pi, math.pi, n, 1, 1, 1)
    pieces = pieces * (torch.cos(angle) * x + torch.sin(angle) * y > _uniform(g, 0.0, 0.4, n, 1, 1, 1))
    scale = _uniform(g, 0.4, 0.8, n)
    maps = _inverse_maps(
        scale, scale, _uniform(g, -math.pi, math.pi, n), torch.zeros(n), _uniform(g, -1, 1, n), _uniform(g, -1, 1, n)
    )
    return _warp(pieces, maps, size).view(CHUNK, FRAGMENTS, size, size).amax(1, keepdim=True)


def _strokes(size: int, g: torch.Generator) -> Tensor:
    """Draw straight pen strokes as wide as a digit's, (CHUNK, 1, size, size)."""
    axis = _axis(size)
    y, x = axis.view(1, 1, size, 1), axis.view(1, 1, 1, size)
    shape = (CHUNK, STROKES, 1, 1)
    x0, y0, angle = _uniform(g, -1, 1, *shape), _uniform(g, -1, 1, *shape), _uniform(g, -math.pi, math.pi, *shape)
    length, radius = _uniform(g, 0.2, 0.7, *shape), _uniform(g, 0.03, 0.07, *shape)
    dx, dy = torch.cos(angle), torch.sin(angle)
    along = ((x - x0) * dx + (y - y0) * dy).clamp(min=torch.zeros(()), max=length)
    distance = ((x - x0 - along * dx) ** 2 + (y - y0 - along * dy) ** 2).sqrt()
    softness = 2 / size
    return ((radius - distance) / softness + 0.5).clamp(0, 1).amax(1, keepdim=True)


def _background(size: int, g: torch.Generator) -> Tensor:
    """Draw paper lit from one side, (CHUNK, 1, size, size) in [0, 0.3]."""
    axis = _axis(size)
    slope = 0.1 * _uniform(g, -1, 1, CHUNK, 2, 1, 1)
    level = _uniform(g, 0.05, 0.25, CHUNK, 1, 1, 1)
    return level + slope[:, :1] * axis.view(1, 1, size, 1) + slope[:, 1:] * axis.view(1, 1, 1, size)


def _inverse_maps(width: Tensor, height: Tensor, angle: Tensor, shear: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return canvas-to-source maps (n, 2, 3) for grid_sample, of: scale, shear, rotate, then move to (x, y). Lengths
    are shares of the canvas, positions in [-1, 1]."""
    cos, sin = torch.cos(angle), torch.sin(angle)
    a, b = cos * width, (cos * shear - sin) * height
    c, d = sin * width, (sin * shear + cos) * height
    determinant = a * d - b * c
    inverse = torch.stack([d, -b, -c, a], 1).view(-1, 2, 2) / determinant.view(-1, 1, 1)
    return torch.cat([inverse, -inverse @ torch.stack([x, y], 1)[:, :, None]], 2)


def _warp(images: Tensor, maps: Tensor, size: int) -> Tensor:
    axis = _axis(size)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    points = torch.stack([x.flatten(), y.flatten(), torch.ones(size * size)])
    # F.affine_grid's result; as one matrix product it takes a tenth of the time.
    grid = (maps.reshape(-1, 3) @ points).view(-1, 2, size, size).permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _axis(size: int) -> Tensor:
    """Return the pixel centres of one side, in [-1, 1]."""
    return (torch.arange(size) + 0.5) * (2 / size) - 1


def _uniform(g: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return torch.rand(shape, generator=g) * (high - low) + low


def _to_bytes(images: Tensor) -> Tensor:
    return images.clamp(0, 1).mul(255).round().to(torch.uint8)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run with one thread: the last bit of a vectorised kernel may depend on how threads split the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@lru_cache(maxsize=1)
def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Load the images (1797, 8, 8) with values 0 to 16, and the labels."""
    from sklearn.datasets import load_digits  # slow to import, and only needed here

    bunch = load_digits()
    return bunch.images, bunch.target
