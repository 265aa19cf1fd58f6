"""Finished runs of a grid with which test images each network got right, and labels against each other, image by image.

The digits' test images are made from 445 originals: those of one original count as one draw (``originals``).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.records import names
from analysis.records.results import Results
from analysis.stats import images
from analysis.stats.seeds import LEVEL, Interval
from hiap.train.config import ConfigError
from hiap.train.record import Record


def load(results: Results, grid: str) -> pd.DataFrame:
    """``Results.runs`` with the ``loss`` of the extracted network, ``hits``: which test images it got right, None where
    a record does not say, ``originals``: which original each shows, None where each is its own, and ``measured``: a
    digest of these images, '' where it is not known."""
    runs = results.runs(grid)
    records = {record.run_id: record for record in results.finished(grid)}
    scores = [records[run_id].metrics.extracted for run_id in runs["run_id"]]
    return runs.assign(
        loss=[score.loss if score else np.nan for score in scores],
        hits=_objects([score.hits() if score else None for score in scores], runs),
        originals=_objects([_originals(records[run_id]) for run_id in runs["run_id"]], runs),
        measured=[getattr(records[run_id].images, "measured", "") for run_id in runs["run_id"]],
    )


def _objects(values: list[Any], runs: pd.DataFrame) -> pd.Series:
    return pd.Series(values, index=runs.index, dtype=object)


def _originals(record: Record) -> np.ndarray | None:
    data, score = record.config.data, record.metrics.extracted
    if data.name != "affine-digits" or not score or not score.correct:
        return None
    return _shown(score.n, data.seed, data.measure == "validation")


@cache
def _shown(count: int, seed: int, validates: bool) -> np.ndarray:
    from hiap.data import affine_digits  # here: it draws with torch, which nothing else in these rooms waits for

    return affine_digits.shown(affine_digits.part_of("test", validates), count, seed)


def compare(method: pd.DataFrame, reference: pd.DataFrame) -> images.Comparison | None:
    """Runs of one label minus runs of another, on the seeds that both have. None for fewer than two such seeds, or
    where a record does not say which images were right. Raises ``ConfigError`` where they are not the same images."""
    require_same_images(pd.concat([method, reference]))
    return images.compare(_hits(method), _hits(reference), _clusters(method))


def pair(runs: pd.DataFrame, method: str, reference: str) -> images.Comparison | None:
    """``compare`` of two labels, say 'hiap-settled-65' and 'vit_slim-65'."""
    return compare(*(runs[runs["label"] == label] for label in (method, reference)))


def difference(found: images.Comparison | None, method: pd.DataFrame, reference: pd.DataFrame) -> Interval:
    """That of ``found``, their comparison; without one the mean over the seeds that both have, its ends missing."""
    if found:
        return found.difference
    gain = (method.set_index("seed")["top1"] - reference.set_index("seed")["top1"]).dropna()
    return Interval(float(gain.mean()), np.nan, np.nan, len(gain))


def over_images(method: pd.DataFrame, reference: pd.DataFrame) -> Interval:
    """The difference on the one seed that both labels have, with its interval over test images alone; ends missing
    where a record does not say which images were right."""
    gain = difference(None, method, reference)
    both = method.merge(reference, on="seed", suffixes=("", "_other"))
    (mine,), (other,) = both["hits"], both["hits_other"]
    if mine is None or other is None:
        return gain
    each = 100 * (np.asarray(mine, float) - np.asarray(other, float))
    half = float(stats.norm.ppf((1 + LEVEL) / 2) * each.std(ddof=1) / len(each) ** 0.5)
    return gain._replace(low=gain.mean - half, high=gain.mean + half)


def accuracy(runs: pd.DataFrame) -> Interval:
    """Mean top-1 of one label's runs; ends missing for one seed, or without knowing which images were right."""
    require_same_images(runs)
    bare = Interval(float(runs["top1"].mean()), np.nan, np.nan, len(runs))
    return images.accuracy(_hits(runs), _clusters(runs)) or bare


def flat(found: images.Comparison) -> dict[str, Any]:
    """A comparison as columns."""
    ends = found.difference
    row = {"n": ends.n, "difference": ends.mean, "low": ends.low, "high": ends.high, "p": found.p}
    return {**row, **found.improvement.columns("improvement"), "equivalent": found.equivalent}


def require_same_images(runs: pd.DataFrame) -> None:
    """Raise ``ConfigError`` if runs of ``load`` were measured on different images, as far as their records know."""
    for column in ("measure", "measured"):
        known = runs.loc[runs[column] != "", column] if column in runs else runs.iloc[:0]
        if len(kinds := known.drop_duplicates()) > 1:
            ids = [runs.loc[runs[column] == kind, "run_id"].iloc[0] for kind in kinds]
            told = names.listed([f"{run_id} on {kind:.12}" for run_id, kind in zip(ids, kinds, strict=True)])
            raise ConfigError(f"runs that were measured on different images cannot be compared: {told}")


def _hits(runs: pd.DataFrame) -> images.Hits:
    return dict(zip(runs["seed"], runs["hits"], strict=True))


def _clusters(runs: pd.DataFrame) -> np.ndarray | None:
    """The same for all runs: a grid has one test set."""
    return None if runs.empty else runs["originals"].iloc[0]
