"""Findings 4 and 5: hardening at 1/2, and how decided a Gumbel-Sigmoid sample (Eq. 6) is. Closed forms."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

LOGIT, UNITS = 0.1, 10  # the example of finding 4
TEMPERATURES = (2.0, 1.0, 0.5, 0.1)  # of Fig. 2
ANNEALED = (2.0, 0.5)  # from, to (section 5.1)
UNDECIDED = (0.05, 0.95)


def sigmoid(x: np.ndarray | float) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.asarray(x, dtype=float))))


class HardeningGap(NamedTuple):
    """Cost of units of weight 1: ``expected`` under the gates' probabilities, and ``hardened`` at 1/2."""

    expected: Any
    hardened: Any

    @property
    def gap(self) -> Any:
        return self.hardened - self.expected


def hardening_gap(logit: Any = LOGIT, units: int = UNITS, gates: Literal[1, 2] = 1) -> HardeningGap:
    """Finding 4: Proposition 2 fails. ``units`` equal units, each behind ``gates`` independent gates of one logit, a
    number or many (2 gates: a macro and a micro gate). Neither number depends on the temperature, since
    P(sample > 1/2) = sigmoid(logit) at every one; a unit behind one gate of probability p is off by min(p, 1 - p),
    whatever the annealing."""
    return HardeningGap(units * sigmoid(logit) ** gates, units * (np.asarray(logit) > 0).astype(float))


def undecided_share(tau: float, logit: float = 0.0) -> float:
    """Finding 5: probability that a Gumbel-Sigmoid sample (Eq. 6) lies in ``UNDECIDED``: at tau 0.5 most still do."""
    ends = np.array(UNDECIDED)
    bounds = tau * np.log(ends / (1 - ends)) - logit
    lower, upper = sigmoid(bounds)
    return float(upper - lower)


def sample_density(z: np.ndarray, tau: float, logit: float = 0.0) -> np.ndarray:
    """Density of a Gumbel-Sigmoid sample (Eq. 6) at 0 < ``z`` < 1, exact: x = tau log(z / (1 - z)) - logit is the
    logistic noise that gives ``z``."""
    x = tau * np.log(z / (1 - z)) - logit
    return tau * sigmoid(x) * sigmoid(-x) / (z * (1 - z))


def sample_mean(tau: float, logit: float, points: int = 200_001) -> float:
    """Mean of a soft Gumbel-Sigmoid sample, by the quadrature of ``sample_variance``: sigmoid(logit) only as tau falls
    to 0 (A2)."""
    return float(np.mean(_quantiles(tau, logit, points)))


def sample_variance(tau: float, logit: float = 0.0, points: int = 200_001) -> float:
    """Variance of a Gumbel-Sigmoid sample, by quadrature over the logistic noise's quantiles. As tau falls it rises to
    the Bernoulli variance sigmoid(logit) sigmoid(-logit), not to 0."""
    return float(np.var(_quantiles(tau, logit, points)))


def _quantiles(tau: float, logit: float, points: int) -> np.ndarray:
    """A soft sample's quantiles at the middles of equal steps of probability."""
    u = (np.arange(points) + 0.5) / points
    return sigmoid(np.clip((logit + np.log(u) - np.log1p(-u)) / tau, -500, 500))


# Fig. 2, and what it does not show


def densities(logit: float = 0.0, points: int = 2000) -> pd.DataFrame:
    """Exact density of a sample at Fig. 2's temperatures: ``tau``, ``z``, ``density``."""
    z = (np.arange(points) + 0.5) / points
    frames = [pd.DataFrame({"tau": tau, "z": z, "density": sample_density(z, tau, logit)}) for tau in TEMPERATURES]
    return pd.concat(frames, ignore_index=True)


def undecided(logits: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0), points: int = 61) -> pd.DataFrame:
    """``undecided``, share of samples in ``UNDECIDED``, and ``variance`` of a sample, against temperature;
    ``bernoulli``: the variance that remains at temperature 0."""
    rows = []
    for logit in logits:
        open_ = float(sigmoid(logit))
        for tau in np.geomspace(0.02, 4, points):
            spread = sample_variance(tau, logit, points=20_001)
            rows.append((logit, open_, tau, undecided_share(tau, logit), spread, open_ * (1 - open_)))
    return pd.DataFrame(rows, columns=["logit", "open", "tau", "undecided", "variance", "bernoulli"])
