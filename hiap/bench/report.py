"""What a call of ``python -m hiap.bench`` is asked for, and what it writes: one JSON of settings, machine and rows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel

from hiap.bench import latency as timed
from hiap.bench.settings import DeploySettings, LatencySettings, Precision, Runtime, Settings, Timing, TrainSettings
from hiap.train.record import Environment, Score, environment, now

Quartiles = tuple[float, float, float]  # the median in the middle


class Times(BaseModel):
    """Times of one call. ``seconds`` per batch (or step): median and quartiles. ``ratio``: this time over the
    reference's, median and quartiles of the rounds. ``share``: (1 - ratio) / (1 - macs / reference's macs)."""

    name: str
    batch: int
    macs: int
    params: int
    seconds: Quartiles
    throughput: float
    ratio: Quartiles
    share: float | None = None


class Row(Times):
    """Row of a report. ``memory``: bytes that one call allocates at its peak, beyond weights and optimiser."""

    layout: str
    executed_macs: int
    memory: int


class Deployed(Times):
    """Row of a network in one runtime. ``ratio`` is over the dense network's time in fp32 and the same runtime,
    ``against_best`` over the same in the runtime that is fastest then, ``against_same`` over the dense network's in the
    same runtime and precision, to which ``share`` refers (None: it does not run there): what pruning saves where
    precision has saved before. ``worst``: the least share of several processes."""

    network: str
    runtime: Runtime
    precision: Precision
    against_best: Quartiles
    against_same: Quartiles | None
    worst: float | None = None
    score: Score | None = None


class Frame(BaseModel):
    """Base of all reports: mode, machine and times, and the network that others are compared with."""

    schema_version: Literal[1] = 1
    mode: str
    environment: Environment
    started: str
    finished: str
    reference: str


class Report(Frame):
    settings: Settings
    rows: list[Row]


class LatencyReport(Report):
    settings: LatencySettings
    latency: timed.Table


class TrainReport(Report):
    settings: TrainSettings


class DeployReport(Frame):
    """Report of ``deploy``. ``left_out``: a line for each runtime or precision that was asked for and is missing, with
    the reason."""

    settings: DeploySettings
    rows: list[Deployed]
    left_out: list[str]


_started = now()


def begin() -> None:
    """Set the start that a report names to now: a process may have been there before its call."""
    global _started
    _started = now()


def framed(mode: str, settings: Timing, reference: str) -> dict[str, Any]:
    """Return what all reports have: how, where, when."""
    return {
        "mode": mode,
        "settings": settings.model_copy(update={"out": ""}),
        "environment": environment(torch.device(settings.device), _command()),
        "started": _started,
        "finished": now(),
        "reference": reference,
    }


def _command() -> str:
    words = sys.argv[2:] if sys.argv[1:2] == ["bench"] else sys.argv[1:]  # 'hiap bench', or 'python -m hiap.bench'
    return " ".join(["python -m hiap.bench", *words])


def read(path: Path) -> Report | DeployReport:
    """Read any report. Raises pydantic's ``ValidationError`` for what is none."""
    text = path.read_text(encoding="utf-8")
    kinds: dict[str, type[Report] | type[DeployReport]] = {
        "deploy": DeployReport,
        "latency": LatencyReport,
        "train": TrainReport,
    }
    return kinds.get(Frame.model_validate_json(text).mode, Report).model_validate_json(text)
