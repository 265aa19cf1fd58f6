"""What a call of ``python -m hiap.bench`` is asked for, and what it writes: one JSON of settings, machine and rows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt

from hiap.bench import latency as timed
from hiap.train.config import MOST
from hiap.train.record import Environment, Score, environment, now

Width = PositiveInt | Literal["mixed"]
Runtime = Literal["eager", "compile", "onnxruntime", "openvino"]
Precision = Literal["fp32", "bf16", "int8"]
Quartiles = tuple[float, float, float]  # the median in the middle


class Timing(BaseModel):
    """What every mode takes. ``model``: a timm name or a folder of ``hiap.save``. ``clock`` 'cpu' counts the process's
    own seconds, for a CPU that others use too. ``processes``: repeat all in that many fresh processes, and take
    quartiles over their medians: where a process's memory happens to lie moves times by several per cent, and more
    rounds of one process cannot average that out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = ""
    model: str = "deit_small_patch16_224"
    batches: list[PositiveInt] = Field([16], min_length=1)
    rounds: int = Field(9, ge=3)
    warmup: int = Field(2, ge=1)
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = Field(1, ge=1, le=MOST)
    clock: Literal["wall", "cpu"] = "wall"
    processes: int = Field(1, ge=1)
    out: str = "results/bench"

    def of_process(self, index: int, shared: Path) -> list[str]:
        """Further arguments of one of several processes; all of them may use the folder ``shared``."""
        return []


class Settings(Timing):
    """Of the modes that run torch alone. ``topologies``, ``widths``, ``multiple`` and ``dims`` as in
    ``hiap.bench.topologies``."""

    topologies: list[str] = Field(["fig5"], min_length=1)
    widths: list[Width] = Field([64, 48, 40, 36, 32, "mixed"], min_length=1)
    layouts: list[Literal["ragged", "padded"]] = Field(["ragged", "padded"], min_length=1)
    multiple: int = Field(1, ge=1)
    dims: Literal["v", "qkv"] = "v"  # A4: what a closed dimension removes
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    gmacs: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field([3.1, 2.5], min_length=1)  # peer only
    workers: list[NonNegativeInt] = Field([0, 1, 2], min_length=1)  # input only, as is the number of images
    images: int = Field(512, ge=8)


class LatencySettings(Settings):
    """``networks``: sampled and fitted; 20 more are held out."""

    networks: int = Field(48, ge=timed.LEAST)


class DeploySettings(Timing):
    """``networks``: folders of ``hiap.save`` by the names that rows give them; ``topologies`` come beside them, or,
    where neither is given, Fig. 5. ``data``: accuracy on ``test_size`` images (Fashion-MNIST: of the validation split;
    0: none is measured), and int8 is calibrated on ``calibration`` training images instead of noise. ``merge``:
    every network once more for each of these numbers of pairs of tokens that are merged in a block, 0.5 being one in
    every second block; such a row's network is 'hiap+0.5'. ``files``: where exported and quantised networks are kept;
    by default they are not."""

    networks: dict[str, str] = {}
    topologies: list[str] = []
    widths: list[Width] = Field([64], min_length=1)
    multiple: int = Field(1, ge=1)
    dims: Literal["v", "qkv"] = "v"
    batches: list[PositiveInt] = Field([1, 16], min_length=1)
    runtimes: list[Runtime] = Field(["eager", "compile", "onnxruntime", "openvino"], min_length=1)
    precisions: list[Precision] = Field(["fp32", "bf16", "int8"], min_length=1)
    merge: list[PositiveFloat] = []
    data: Literal["", "digits", "fashion-mnist"] = ""
    root: str = ""
    test_size: int = Field(2000, ge=0)
    calibration: int = Field(128, ge=1)
    files: str = ""

    def of_process(self, index: int, shared: Path) -> list[str]:
        """Networks are exported once, and accuracy, which no process changes, is measured once."""
        return [f"files={self.files or shared / 'files'}", *(["test_size=0"] if index else [])]


class Times(BaseModel):
    """``seconds`` per batch (or step): median and quartiles. ``ratio``: this time over the reference's, median and
    quartiles of the rounds. ``share``: (1 - ratio) / (1 - macs / reference's macs)."""

    name: str
    batch: int
    macs: int
    params: int
    seconds: Quartiles
    throughput: float
    ratio: Quartiles
    share: float | None = None


class Row(Times):
    """``memory``: bytes that one call allocates at its peak, beyond weights and optimiser."""

    layout: str
    executed_macs: int
    memory: int


class Deployed(Times):
    """One network in one runtime. ``ratio`` is over the dense network's time in fp32 and the same runtime,
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


class DeployReport(Frame):
    """``left_out``: a line for each runtime or precision that was asked for and is missing, with the reason."""

    settings: DeploySettings
    rows: list[Deployed]
    left_out: list[str]


_STARTED = now()


def framed(mode: str, settings: Timing, reference: str) -> dict[str, Any]:
    """What all reports have: how, where, when."""
    return {
        "mode": mode,
        "settings": settings.model_copy(update={"out": ""}),
        "environment": environment(torch.device(settings.device), " ".join(["python -m hiap.bench", *sys.argv[1:]])),
        "started": _STARTED,
        "finished": now(),
        "reference": reference,
    }


def read(path: Path) -> Report | DeployReport:
    """Any report. Raises pydantic's ``ValidationError``."""
    text = path.read_text()
    kinds: dict[str, type[Report] | type[DeployReport]] = {"deploy": DeployReport, "latency": LatencyReport}
    return kinds.get(Frame.model_validate_json(text).mode, Report).model_validate_json(text)
