"""Finding 14, the speed limit: how far a gate's logit can travel at the stated rate, against Figs. 5-9.

The bound is ``hiap.train.reach``'s. Settings are the paper's (section 5: AdamW, rate 5e-5, global batch 256); schedule
and warm-up are unstated (A8), so all is computed twice: at the full rate in every step, which no schedule exceeds, and
with the cosine and the five epochs of warm-up of our grids. Column 0 of Figs. 5-9 is the end of the first epoch.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.findings.costs import WHOLE
from analysis.findings.gates import sigmoid
from analysis.records import published
from hiap.train.config import from_dict
from hiap.train.reach import GROWN, bound, learning_rate

RATE = 5e-5  # as stated
WARMUP = 5  # epochs, of our grids
STARTS, RATES = (0.1, 0.25, 1.0, 3.0), (RATE, 10 * RATE, 100 * RATE)


class Phase(NamedTuple):
    """``per_epoch``: whole batches of 256."""

    epochs: int
    per_epoch: int


FIGURES, CIFAR = Phase(published.EPOCHS, 1_281_167 // 256), Phase(200, 50_000 // 256)


@cache
def step_rates(phase: Phase, full: bool = False) -> np.ndarray:
    """The stated rate at each step, as our grids schedule it or ``full`` in each."""
    optim = {"epochs": phase.epochs, "lr": RATE, "warmup_epochs": 0 if full else WARMUP}
    config = from_dict({"optim": {**optim, "schedule": "constant" if full else "cosine"}})
    total = phase.epochs * phase.per_epoch
    return np.array([learning_rate(config, step, phase.per_epoch, total) for step in range(total)])


def reach(phase: Phase, full: bool = False) -> np.ndarray:
    """(epochs,) how far a logit with a steady gradient has come at the end of each epoch: the rates so far, summed."""
    return np.cumsum(step_rates(phase, full))[phase.per_epoch - 1 :: phase.per_epoch]


def grown(phase: Phase, epochs: int | None = None) -> float:
    """How far in so many epochs (all) at most if the gradient may grow by ``GROWN`` meanwhile; of a part of the phase
    at the full rate, of all of it as scheduled."""
    return bound(step_rates(phase, full=epochs is not None)[: (epochs or phase.epochs) * phase.per_epoch], GROWN**2)


def first_reach() -> pd.DataFrame:
    """Of each ``start`` (distance from the threshold) and ``rate`` of the gates, after how many epochs of Figs. 5-9 a
    steady gradient can first have closed a gate: at the ``full`` rate, and as ``scheduled``; missing: never."""
    ways = {"full": reach(FIGURES, full=True), "scheduled": reach(FIGURES)}
    rows = [
        {"rate": rate, "start": start, **{name: first_epoch(way * rate / RATE, start) for name, way in ways.items()}}
        for rate in RATES
        for start in STARTS
    ]
    return pd.DataFrame(rows).astype(dict.fromkeys(ways, "Int64"))


def first_epoch(way: np.ndarray, start: float) -> int | None:
    """The first, from 1, at whose end a logit has come so far; None if there is none."""
    there = np.flatnonzero(way >= start)
    return int(there[0]) + 1 if len(there) else None


def first_columns(epoch: int = 0) -> pd.DataFrame:
    """What Figs. 5-9 show at the end of an epoch: ``figure``, open ``heads``, ``heads_closed``, and the share of the
    ``neurons_closed``."""
    rows = published.totals().query("epoch == @epoch")
    closed = {"heads_closed": WHOLE["heads"] - rows["heads"], "neurons_closed": 1 - rows["neurons"] / WHOLE["neurons"]}
    return rows.assign(**closed)[["figure", "heads", "heads_closed", "neurons_closed"]].reset_index(drop=True)


def most_open_start() -> float:
    """With what probability a gate can have been open at the start, at most, that a steady pull has closed within the
    first epoch of Figs. 5-9 at the stated rate."""
    return float(sigmoid(reach(FIGURES, full=True)[0]))
