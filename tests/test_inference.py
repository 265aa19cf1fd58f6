"""The bootstrap over seeds and images, Holm and equivalence, on made-up networks whose truth is known."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy.special import ndtri

from analysis.stats import images as inference
from analysis.stats import seeds as over_seeds


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of made-up studies need no ends to the last digit."""
    monkeypatch.setattr(inference, "RESAMPLES", 1000)


def networks(
    rng: np.random.Generator,
    seeds: int,
    images: int,
    gain: float,
    spread: float = 0.0,
    per: int = 1,
    luck: tuple[float, float] = (0.5, 0.3),
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Hits of a method and its reference, whose accuracies differ by ``gain`` points on average over all seeds and
    images; a seed moves that by ``spread`` points (standard deviation). Of what decides about an image, ``luck`` is the
    variance that both have in all seeds, and that a method has in all seeds; the rest is each network's own. ``per``
    images are made from one original and share the luck."""
    both, one, rest = np.sqrt([luck[0], luck[1], 1 - sum(luck)])
    common, *ours = rng.standard_normal((3, images // per)).repeat(per, axis=1)
    draws = [both * common + one * own + rest * rng.standard_normal((seeds, images)) for own in ours]
    edges = ndtri(0.85 + (gain + spread * rng.standard_normal(seeds)) / 100)[:, None], ndtri(0.85)
    method, reference = (dict(enumerate(draw < edge)) for draw, edge in zip(draws, edges, strict=True))
    return method, reference


def covered(trials: int, spread: float, per: int = 1, clusters: np.ndarray | None = None) -> float:
    """Share of intervals that contain the true gain of one point."""
    rng, found = np.random.default_rng(0), []
    for _ in range(trials):
        answer = inference.compare(*networks(rng, 5, 1000, 1.0, spread, per), clusters)
        assert answer is not None
        found.append(answer.difference.low <= 1.0 <= answer.difference.high)
    return float(np.mean(found))


@pytest.mark.parametrize("spread", [0.0, 1.0, 2.0])
def test_intervals_cover_the_truth_where_seeds_and_images_both_vary(spread):
    """The 1,000 images alone move the mean difference by about one point here."""
    assert 0.91 <= covered(200, spread) <= 0.99


def test_clusters_that_are_ignored_are_missed():
    """Ten images of each of 100 originals: as if independent they promise far too much; drawn together they do not."""
    assert covered(100, 0.5, 10) < 0.75
    assert covered(100, 0.5, 10, np.arange(100).repeat(10)) >= 0.88


def test_where_only_seeds_matter_percentiles_are_too_narrow_and_student_decides():
    """What the module's docstring says of five seeds, and why p is the larger of the two."""
    rng, wrong, narrow = np.random.default_rng(1), 0, 0
    for _ in range(200):
        method, reference = networks(rng, 5, 1000, 0.0, spread=8.0)
        answer = inference.compare(method, reference)
        assert answer is not None
        narrow += not answer.difference.low <= 0 <= answer.difference.high
        wrong += answer.p < 0.05
    assert narrow / 200 > 0.08
    assert wrong / 200 < 0.08


def test_images_of_one_original_are_one_draw():
    method, reference = networks(np.random.default_rng(2), 5, 3000, 0.5, per=10)
    clusters = np.arange(300).repeat(10)
    alone, together = inference.compare(method, reference), inference.compare(method, reference, clusters)
    assert alone is not None
    assert together is not None
    assert together.difference.mean == alone.difference.mean
    width = alone.difference.high - alone.difference.low
    assert together.difference.high - together.difference.low > 1.5 * width


def test_clusters_may_differ_in_size_and_singletons_change_nothing():
    method, reference = networks(np.random.default_rng(4), 4, 500, 2.0)
    apart = inference.compare(method, reference, np.arange(500))
    assert apart == inference.compare(method, reference)
    uneven = inference.compare(method, reference, np.arange(500) // 7)
    assert uneven is not None
    assert uneven.difference.low < uneven.difference.mean < uneven.difference.high


def test_the_same_input_gives_the_same_answer_in_a_second(monkeypatch):
    monkeypatch.setattr(inference, "RESAMPLES", 4000)
    method, reference = networks(np.random.default_rng(5), 5, 10_000, 0.4, spread=0.2)
    start = time.perf_counter()
    first = inference.compare(method, reference)
    assert time.perf_counter() - start < 5  # far less where nothing else runs
    assert first == inference.compare(method, reference)
    assert first is not None
    assert first.difference.n == 5
    backwards = inference.compare(reference, method)
    assert backwards is not None
    assert backwards.difference.mean == pytest.approx(-first.difference.mean)
    assert backwards.improvement.mean == pytest.approx(1 - first.improvement.mean)


def test_without_images_or_a_second_seed_the_answer_is_none():
    method, reference = networks(np.random.default_rng(6), 3, 100, 1.0)
    assert inference.compare({**method, 1: None}, reference) is None
    assert inference.compare(method, {7: reference[0]}) is None
    assert inference.compare(method, {0: reference[0]}) is None
    assert inference.accuracy({0: method[0]}) is None
    assert inference.accuracy({**method, 2: None}) is None
    with pytest.raises(ValueError, match="not measured on the same"):
        inference.compare(method, {seed: hits[:50] for seed, hits in reference.items()})


def test_improvement_is_paired_and_has_an_interval():
    """Reference seeds that differ by far more than the method's gain: an unpaired count would see one half."""
    rng = np.random.default_rng(7)
    reference = {seed: rng.random(2000) < level for seed, level in enumerate((0.5, 0.6, 0.7, 0.8))}
    method = {seed: hits | (rng.random(2000) < 0.1) for seed, hits in reference.items()}
    answer = inference.compare(method, reference)
    assert answer is not None
    assert answer.improvement == (1.0, 1.0, 1.0, 4)
    same = inference.compare(reference, reference)
    assert same is not None
    assert same.improvement.mean == 0.5
    assert (same.difference.mean, same.p) == (0, 1)


def test_equivalence_needs_certainty_not_a_small_difference():
    rng = np.random.default_rng(8)
    declared = []
    for _ in range(40):  # 1,000 images say nothing about a third of a point
        answer = inference.compare(*networks(rng, 5, 1000, 0.0))
        assert answer is not None
        declared.append(answer.equivalent)
    assert not any(declared)
    reference = {seed: rng.random(10_000) < 0.9 for seed in range(5)}
    method = {seed: hits ^ (np.arange(10_000) == seed) for seed, hits in reference.items()}
    close = inference.compare(method, reference)
    assert close is not None
    assert close.equivalent
    worse = inference.compare({s: hits & (np.arange(10_000) > 50) for s, hits in reference.items()}, reference)
    assert worse is not None
    assert not worse.equivalent


def test_equivalence_is_rarely_declared_at_the_margin():
    rng, wrong = np.random.default_rng(9), 0
    for _ in range(50):
        answer = inference.compare(*networks(rng, 5, 10_000, inference.EQUIVALENT, luck=(0.95, 0.02)))
        assert answer is not None
        wrong += answer.equivalent
    assert wrong <= 6


def test_holm_against_a_worked_example():
    """Four tests: 0.005 x 4, 0.011 x 3, 0.02 x 2 and 0.04 x 1, none below the one before."""
    assert over_seeds.holm(np.array([0.02, 0.005, 0.04, 0.011])) == pytest.approx([0.04, 0.02, 0.04, 0.033])
    assert over_seeds.holm(np.array([0.6, 0.9])) == pytest.approx([1.0, 1.0])
    assert over_seeds.holm(np.array([])).tolist() == []
    some = over_seeds.holm(np.array([0.01, np.nan, 0.04]))
    assert some[[0, 2]] == pytest.approx([0.02, 0.04])
    assert np.isnan(some[1])


def test_holm_keeps_the_order_and_never_helps():
    rng = np.random.default_rng(10)
    for _ in range(50):
        p = rng.random(rng.integers(1, 30)) ** 3
        adjusted = over_seeds.holm(p)
        assert (np.diff(adjusted[np.argsort(p)]) >= 0).all()
        assert (adjusted >= p).all()
        assert (adjusted <= np.minimum(1, len(p) * p) + 1e-12).all()  # Bonferroni is never milder


def test_student_where_nothing_varies():
    assert over_seeds.student_p(np.array([0.1 + 0.2 - 0.3] * 5)) == 1
    assert over_seeds.student_p(np.array([1.0, 1.0])) == 0
    assert np.isnan(over_seeds.student_p(np.array([1.0])))
    assert over_seeds.student_p(np.array([1.0, 2.0, 3.0])) == pytest.approx(0.0742, abs=1e-4)
