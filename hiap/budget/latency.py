"""Ours, not the paper's (its future work): measured time as prices of units; without torch."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from hiap.ledger import Dims, Prices
from hiap.options import ConfigError

PICOSECONDS = 10**6  # of a microsecond
PRICED = tuple(field.name for field in fields(Prices) if field.name != "unit")


@dataclass(frozen=True)
class LatencyTable:
    """Table of times that ``python -m hiap.bench latency`` found for networks pruned from one of the sizes ``dims``, on
    one device with one batch size: ``prices`` in picoseconds per batch (so small that integers lose nothing).
    ``source`` is for messages. A head is priced with whole Q and K (A4 'v'); where dimensions take those along, each
    takes its share of the head's price."""

    dims: Dims
    prices: Prices
    source: str = "latency table"
    sha256: str = ""  # of its file

    def require_fits(self, dims: Dims) -> None:
        """Raise ``ConfigError`` if it was measured on another network."""
        mine, wanted = asdict(self.dims), asdict(dims)
        if other := [f"{name} {mine[name]}, not {wanted[name]}" for name in mine if mine[name] != wanted[name]]:
            raise ConfigError(f"{self.source} is of another network ({'; '.join(other)}); expected one of this network")


def read_latency(path: str | os.PathLike[str]) -> LatencyTable:
    """Read the table in a report of ``python -m hiap.bench latency``. Raises ``ConfigError`` if there is none."""
    expected = "expected a report of python -m hiap.bench latency"
    try:
        content = Path(path).read_bytes()
        saved = json.loads(content)["latency"]
        dims = Dims(**saved["sizes"])
        prices = latency_prices(dims.head_dim, saved["microseconds"])
        return LatencyTable(dims, prices, f"latency table '{path}'", hashlib.sha256(content).hexdigest())
    except OSError as error:
        raise ConfigError(f"latency table '{path}': {error.strerror}; {expected}") from None
    except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError):
        raise ConfigError(f"latency table '{path}': {expected}") from None


def latency_prices(head_dim: int, microseconds: Mapping[str, Any]) -> Prices:
    """Return ``microseconds``, every field of ``Prices`` but the unit, per batch, as prices. Raises ``ValueError`` or
    ``TypeError`` for what is no time, and ``KeyError`` for one that is missing."""
    times = {name: float(microseconds[name]) for name in PRICED}
    if not all(0 <= time < math.inf for time in times.values()) or not any(times.values()):
        raise ValueError(f"{times}: expected times, 0 or more, and not all 0")
    rounded = {name: round(PICOSECONDS * time) for name, time in times.items()}
    # A multiple, so that a share of a head (A4) is an integer as well.
    rounded["head"] = head_dim * round(PICOSECONDS * times["head"] / head_dim)
    return Prices(**rounded, unit="ps")
