"""Which of a data set's images a run trains on, and which it is measured on.

A fifth of the training images, 10,000 at most, are set apart to validate on: of each class its share, and the same
whatever the seeds. A subset of ``data.train_size`` images is chosen by ``data.seed`` among the others, of each class
its share again: the same, whether test or validation images are measured. Needs no torch.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from hiap.data.config import DataConfig
from hiap.options import ConfigError

Role = Literal["train", "test"]

APART, MOST_APART = 5, 10_000  # one in so many training images is set apart, and so many at most
FIXED = 0  # the seed of what is the same for every run


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Order the images (n,) of ``labels`` (n,) such that every beginning of the order holds its share of each class;
    ``seed`` chooses which of a class come first. A small choice is the beginning of a larger one."""
    order = np.random.Generator(np.random.PCG64([seed])).permutation(len(labels))
    shuffled, counts = labels[order], np.bincount(labels)
    by_class = np.argsort(shuffled, kind="stable")
    rank = np.empty(len(labels))
    rank[by_class] = np.arange(len(labels)) - (np.cumsum(counts) - counts)[shuffled[by_class]]
    return order[np.argsort((rank + 0.5) / counts[shuffled], kind="stable")]


def apart(count: int) -> int:
    """Return how many of ``count`` training images are validation images."""
    return min(count // APART, MOST_APART)


def learns_apart(data: DataConfig) -> bool:
    """Return whether a run of these data trains on images that others set apart to validate on: on all of them, or on
    pictures of all originals."""
    return data.measure == "test" and (data.train_size is None or data.name == "affine-digits")


def counts(data: DataConfig, train: int, test: int) -> tuple[int, int]:
    """Return how many images are trained on and measured, of a set of ``train`` and ``test`` images. Raises
    ``ConfigError`` if there are not so many."""
    validates = data.measure == "validation"
    if validates and not apart(train):
        raise ConfigError(
            f"data.measure 'validation': {train} training images are too few to set a fifth of them apart"
        )
    if data.seed and data.train_size is None:
        raise ConfigError(
            f"data.seed {data.seed} chooses among training images; set data.train_size, else all are used"
        )
    left = train - apart(train) if validates or data.train_size is not None else train
    there = apart(train) if validates else test
    _require("train_size", data.train_size, left, "training images beside those set apart for validation")
    _require("test_size", data.test_size, there, f"{data.measure} images")
    return data.train_size or left, data.test_size or there


def _require(key: str, wanted: int | None, there: int, what: str) -> None:
    if wanted is not None and wanted > there:
        raise ConfigError(f"data.{key} {wanted}: there are {there:,} {what}; without data.{key} all of them are used")


def chosen(data: DataConfig, role: Role, labels: np.ndarray) -> np.ndarray:
    """Return the images (n,) that are trained on ('train') or measured ('test'); ``labels`` are those of all images of
    the split that these are taken from: the published test split for test images, else the training split."""
    if role == "test" and data.measure == "test":
        everything = np.arange(len(labels))
        return everything if data.test_size is None else np.sort(stratified_order(labels, FIXED)[: data.test_size])
    order = stratified_order(labels, FIXED)
    validation, rest = np.split(order, [apart(len(labels))])
    if role == "test":
        return np.sort(validation[: data.test_size])
    if data.train_size is not None:
        rest = np.sort(rest)
        return rest[stratified_order(labels[rest], data.seed)[: data.train_size]]
    return np.sort(rest) if data.measure == "validation" else np.arange(len(labels))
