"""What a difference of accuracies shows: a bootstrap over seeds and test images, and equivalence.

A study's networks are measured on one sample of images and trained from a few seeds, and both could have been others.
So both are drawn with replacement, independently (Owen's pigeonhole bootstrap, 2007), and all seeds see the same drawn
images. Five seeds are few: where they differ more than their images explain, the percentiles are too narrow (tests
measure both cases), so a p-value is the larger of the bootstrap's and Student's over the seeds, and an interval of
fewer than ``ENOUGH`` seeds reaches at least as far as Student's.

Records that do not say which images were right allow none of this: the answer is then None.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy import stats

from analysis.stats.seeds import DIGITS, LEVEL, Interval, student_p, widened

SEED, RESAMPLES = 0, 4_000
EQUIVALENT = 0.3  # points of top-1 that nobody would choose a method for

_KEPT: dict[tuple[bytes, tuple[int, ...], int], tuple[np.ndarray, np.ndarray]] = {}

Hits = Mapping[int, np.ndarray | None]  # seed -> which test images were right (n,), None where the record says nothing


class Comparison(NamedTuple):
    """``difference``: points of top-1, method minus reference, on the same seeds and images. ``p``: two-sided.
    ``improvement``: probability that the method beats the reference on a seed, ties counting one half.
    ``equivalent``: whether two one-sided tests at 5 % place the difference within ``EQUIVALENT`` of zero."""

    difference: Interval
    p: float
    improvement: Interval
    equivalent: bool


def accuracy(hits: Hits, clusters: np.ndarray | None = None) -> Interval | None:
    """Mean top-1 in per cent. None for a single seed, or without knowing which images were right."""
    right = _stacked(hits, list(hits))
    if right is None:
        return None
    found = widened(_interval(100 * right.mean(), *_resampled(100 * right, clusters), len(right)), 100 * right.mean(1))
    return found._replace(low=max(found.low, 0.0), high=min(found.high, 100.0))


def compare(method: Hits, reference: Hits, clusters: np.ndarray | None = None) -> Comparison | None:
    """The seeds that both have, image by image. ``clusters`` (n,): images with one number are drawn together, as
    pictures of the same original must be. None for fewer than two such seeds, or where one does not say which images
    were right."""
    seeds = [seed for seed in method if seed in reference]
    right, other = _stacked(method, seeds), _stacked(reference, seeds)
    if right is None or other is None:
        return None
    if right.shape != other.shape:
        raise ValueError(f"{right.shape[1]} and {other.shape[1]} images: not measured on the same ones")
    gain = 100 * (right - other)
    per_seed, weights = _resampled(gain, clusters)
    student = gain.mean(1).round(DIGITS)
    ahead = _wins(gain.mean(1)).mean()
    return Comparison(
        widened(_interval(gain.mean(), per_seed, weights, len(seeds)), gain.mean(1)),
        max(_two_sided((per_seed * weights).sum(1)), student_p(student)),
        _interval(ahead, _wins(per_seed), weights, len(seeds)),
        _equivalent((per_seed * weights).sum(1), student),
    )


def _stacked(hits: Hits, seeds: list[int]) -> np.ndarray | None:
    """(seeds, images) of 0 and 1."""
    rows = [found for seed in seeds if (found := hits[seed]) is not None]
    return np.stack(rows).astype(np.int64) if len(rows) == len(seeds) > 1 else None


def _resampled(values: np.ndarray, clusters: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Per resample, the mean over its images of each seed's whole-numbered ``values`` (seeds, images), and the weights
    of the seeds; both (RESAMPLES, seeds). Kept: tables, sentences and verdicts ask for the same differences."""
    asked = hashlib.sha256(values.tobytes())
    asked.update(b"" if clusters is None else clusters.tobytes())
    key = asked.digest(), values.shape, RESAMPLES
    if key not in _KEPT:
        _KEPT[key] = _resample(values, clusters)
    return _KEPT[key]


def _resample(values: np.ndarray, clusters: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Images that have the same values in all seeds can be told apart by no statistic, so each kind is drawn as often
    as its members would be together: a few hundred binomials instead of all images."""
    rng = np.random.default_rng(SEED)
    sums, sizes = values, np.ones(values.shape[1], dtype=np.int64)
    if clusters is not None:
        which = np.unique(clusters, return_inverse=True)[1]
        sizes = np.bincount(which)
        sums = np.stack([np.bincount(which, row).astype(np.int64) for row in values])
    kinds, counts = np.unique(np.vstack([sums, sizes]), axis=1, return_counts=True)
    drawn = rng.multinomial(counts.sum(), counts / counts.sum(), size=RESAMPLES) @ kinds.T
    seeds = len(values)
    weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES) / seeds
    return drawn[:, :-1] / drawn[:, -1:], weights


def _interval(mean: float, per_seed: np.ndarray, weights: np.ndarray, n: int) -> Interval:
    low, high = _ends((per_seed * weights).sum(1), LEVEL)
    return Interval(float(mean), low, high, n)


def _ends(draws: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]).round(DIGITS) + 0.0  # no -0.0
    return float(low), float(high)


def _two_sided(draws: np.ndarray) -> float:
    """Twice the share of resamples on the rarer side of zero, the data themselves counted as one more."""
    rarer = min((draws <= 0).sum(), (draws >= 0).sum())
    return float(min(1.0, 2 * (1 + rarer) / (1 + len(draws))))


def _wins(gain: np.ndarray) -> np.ndarray:
    return (gain > 0) + 0.5 * (gain == 0)


def _equivalent(draws: np.ndarray, gain: np.ndarray) -> bool:
    """Whether the 90 % intervals of the bootstrap and of Student both lie within ``EQUIVALENT`` of zero."""
    low, high = _ends(draws, 0.9)
    half = float(stats.t.ppf(0.95, len(gain) - 1) * gain.std(ddof=1) / len(gain) ** 0.5)
    return max(-low, high, abs(float(gain.mean())) + half) < EQUIVALENT
