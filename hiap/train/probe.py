"""A linear probe: logistic regression on what a network says of images before its classifier. A new classifier may
start from it (``model.probe``), and a network that was trained on and is behind it is no start for comparisons."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hiap.backbones.families import classifiers
from hiap.data import choice
from hiap.data import loader as data
from hiap.data.loader import Batch
from hiap.train.config import Config, ConfigError, DataConfig
from hiap.train.device import autocast
from hiap.train.evaluate import at_once
from hiap.train.record import Record, Score

LOOK = 1_000  # images, of either split, where a probe is only to be compared with
PER_CLASS = 20  # training images that a probe needs to be of worth
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # inverse of the weight decay, as scikit-learn has it; the best is taken
STEPS = 300  # of L-BFGS, at most


class Probe:
    """Probe that is fitted: ``weight`` (classes, features), ``bias`` (classes,), of features as the network gives
    them."""

    def __init__(self, features: np.ndarray, labels: np.ndarray, classes: int):
        """Fit to features (n, D) and labels (n,). The weight decay is the one that serves a fifth of the images best
        when fitted to the others."""
        mean, std = features.mean(0), features.std(0) + 1e-6
        scaled = (features - mean) / std
        order = choice.stratified_order(labels, choice.FIXED)
        apart, rest = np.split(order, [len(order) // choice.APART])
        fits = {c: _fitted(scaled[rest], labels[rest], classes, c) for c in STRENGTHS}
        right = {c: (_logits(scaled[apart], *fit).argmax(1) == labels[apart]).mean() for c, fit in fits.items()}
        self.strength = max(STRENGTHS, key=lambda c: right[c])
        weight, bias = _fitted(scaled, labels, classes, self.strength)
        self.weight, self.bias = weight / std, bias - (weight / std) @ mean

    def score(self, features: np.ndarray, labels: np.ndarray) -> Score:
        """Measure the probe on features (n, D) and labels (n,)."""
        logits = _logits(features, self.weight, self.bias)
        shifted = logits - logits.max(1, keepdims=True)
        nats = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]
        return Score(top1=100 * float((logits.argmax(1) == labels).mean()), loss=float(nats.mean()), n=len(labels))

    @torch.no_grad()
    def put(self, head: Any) -> None:
        """Let a classifier be the probe."""
        head.weight.copy_(torch.from_numpy(self.weight))
        head.bias.copy_(torch.from_numpy(self.bias))


def _logits(features: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return features @ weight.T + bias


def _fitted(features: np.ndarray, labels: np.ndarray, classes: int, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Return weight (classes, D) and bias (classes,); a class without images gets a bias that it never wins by."""
    from sklearn.linear_model import LogisticRegression

    found = LogisticRegression(C=strength, max_iter=STEPS).fit(features, labels)
    weight, bias = np.zeros((classes, features.shape[1])), np.full(classes, -1e3)
    known = found.classes_
    rows, offsets = found.coef_, found.intercept_
    if len(known) == 2:  # scikit-learn keeps one row for two classes
        rows, offsets = np.concatenate([-rows / 2, rows / 2]), np.concatenate([-offsets / 2, offsets / 2])
    weight[known], bias[known] = rows, offsets
    return weight, bias


@torch.no_grad()
def features(model: Any, batches: Iterator[Batch], device: torch.device, precision: str) -> tuple[np.ndarray, Any]:
    """Return what ``model`` says of images before its classifier, float64 (n, D), and labels (n,)."""
    model.eval()
    found, labels = list[Tensor](), list[Tensor]()
    for images, targets in batches:
        with autocast(device, precision):
            tokens = model.forward_features(images.to(device))
            found.append(model.forward_head(tokens, pre_logits=True).double().cpu())
        labels.append(targets)
    return torch.cat(found).numpy(), torch.cat(labels).numpy()


def start_from(model: Any, config: Config, shown: DataConfig, classes: int, device: torch.device) -> None:
    """Let the classifier of ``model`` be a probe of all training images, as ``shown``."""
    if not isinstance(getattr(model, "head", None), nn.Linear):
        raise ConfigError(f"model.probe: the classifier of model.name '{config.model.name}' is no linear layer")
    found = Probe(*_seen(model, config, shown, "train", None, device), classes)
    for head in classifiers(model):  # of a distilled DeiT both: their mean is then the probe of its tokens' mean
        found.put(head)


def quick_score(model: Any, config: Config, shown: DataConfig, info: data.Info, device: torch.device) -> Score | None:
    """Return the accuracy of a probe of ``LOOK`` training images on ``LOOK`` of the images that are measured; None
    where it would say little, as for a thousand classes."""
    if min(LOOK, info.train) < PER_CLASS * info.classes:
        return None
    train, test = (_seen(model, config, shown, split, LOOK, device) for split in ("train", "test"))  # type: ignore[arg-type]
    return Probe(*train, info.classes).score(*test)


def _seen(
    model: Any, config: Config, shown: DataConfig, split: choice.Role, count: int | None, device: torch.device
) -> tuple[np.ndarray, Any]:
    size, workers = config.model.img_size, config.run.workers
    batches = data.evenly_spaced(shown, size, split, count, at_once(config), workers)
    return features(model.to(device), batches, device, config.optim.precision)


def behind(record: Record) -> str:
    """Say in one line how far a dense network is behind a probe of the features that it began with, on the images that
    the probe was measured on; '' if it is not behind, or that is not known."""
    probe, end = record.metrics.probe, record.metrics.extracted
    if probe is None or end is None:
        return ""
    hits = end.hits()
    if probe.n < end.n and hits is None:
        return ""
    top1 = end.top1
    if probe.n != end.n and hits is not None:
        top1 = 100 * float(hits[data.spaced_indices(end.n, probe.n)].mean())
    if top1 >= probe.top1:
        return ""
    return (
        f"the dense network has {top1:.2f} % where a logistic regression on the features that it began with has "
        f"{probe.top1:.2f} % ({probe.n:,} images): a comparison that starts from it says little; "
        "docs/data.md has recipes (model.probe, optim.layer_decay, a lower optim.lr)"
    )
