"""What a call of ``python -m hiap.bench`` is asked for. Nothing here waits for torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt

from hiap.train.config import MOST

LEAST = 12  # networks to be fitted, for six prices

Width = PositiveInt | Literal["mixed"]
Runtime = Literal["eager", "compile", "onnxruntime", "openvino"]
Precision = Literal["fp32", "bf16", "int8"]


class Timing(BaseModel):
    """Settings that every mode takes. ``model``: a timm name or a folder of ``hiap.save``. ``clock`` 'cpu' counts the
    process's own seconds, for a CPU that others use too. ``processes``: repeat all in that many fresh processes, and
    take quartiles over their medians: where a process's memory happens to lie moves times by several per cent, and more
    rounds of one process cannot average that out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = ""  # of the report; '': the mode's
    model: str = "deit_small_patch16_224"  # a timm name or a folder of hiap.save
    batches: list[PositiveInt] = Field([16], min_length=1)  # images of a call, each size in turn
    rounds: int = Field(9, ge=3)  # in each of which every network is timed once
    warmup: int = Field(2, ge=1)  # rounds before, which do not count
    device: Literal["cpu", "cuda"] = "cpu"  # where it runs
    threads: int = Field(1, ge=1, le=MOST)  # of a CPU
    clock: Literal["wall", "cpu"] = "wall"  # 'cpu' counts the process's own seconds, for a CPU that others use too
    processes: int = Field(1, ge=1)  # repeat all in so many, quartiles over their medians
    out: str = "results/local/bench"  # the folder of reports

    def of_process(self, index: int, shared: Path) -> list[str]:
        """Return further arguments of one of several processes; all of them may use the folder ``shared``."""
        return []


class Settings(Timing):
    """Settings of the modes that run torch alone. ``topologies``, ``widths``, ``multiple`` and ``dims`` as in
    ``hiap.bench.topologies``."""

    topologies: list[str] = Field(["fig5"], min_length=1)  # 'fig5' ... 'fig9', 'fig5@3.1', 'uniform@3.1', a folder
    widths: list[Width] = Field([64, 48, 40, 36, 32, "mixed"], min_length=1)  # value dimensions of a head
    layouts: list[Literal["ragged", "padded"]] = Field(["ragged", "padded"], min_length=1)  # of heads that differ
    multiple: int = Field(1, ge=1)  # widths and neurons are rounded to multiples of it
    dims: Literal["v", "qkv"] = "v"  # A4: what a closed dimension removes
    precision: Literal["fp32", "bf16"] = "fp32"  # of matrix products
    compile: bool = False  # run through torch.compile
    # peer only: what is cut to.
    gmacs: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field([3.1, 2.5], min_length=1)
    workers: list[NonNegativeInt] = Field([0, 1, 2], min_length=1)  # input only: processes that read
    images: int = Field(512, ge=8)  # input only: how many are read


class LatencySettings(Settings):
    """Settings of ``latency``. ``networks``: sampled and fitted; 20 more are held out."""

    networks: int = Field(48, ge=LEAST)  # that are sampled and fitted


class TrainSettings(Settings):
    """Settings of ``train``; see ``hiap.bench.train``."""

    # What is timed beside the first of them.
    loops: list[Literal["timm", "timm/compiled", "dense", "dense/compiled", "gated", "gated/compiled"]] = Field(
        ["timm", "dense", "dense/compiled", "gated", "gated/compiled"], min_length=2
    )
    img_size: NonNegativeInt = 0  # side of the images; 0: the network's own
    batches: list[PositiveInt] = Field([64], min_length=1)  # images of a step, each size in turn


class DeploySettings(Timing):
    """Settings of ``deploy``. ``networks``: folders of ``hiap.save`` by the names that rows give them; ``topologies``
    come beside them, or, where neither is given, Fig. 5. ``data``: accuracy on ``test_size`` images (Fashion-MNIST: of
    the validation split; 0: none is measured), and int8 is calibrated on ``calibration`` training images instead of
    noise. ``merge``: every network once more for each of these numbers of pairs of tokens that are merged in a block,
    0.5 being one in every second block; such a row's network is 'hiap+0.5'. ``files``: where exported and quantised
    networks are kept; by default they are not."""

    networks: dict[str, str] = {}  # folders of hiap.save by the names that rows give them: 'networks={mine: FOLDER}'
    topologies: list[str] = []  # beside them, or, where neither is given, Fig. 5
    widths: list[Width] = Field([64], min_length=1)  # value dimensions of a head of a topology
    multiple: int = Field(1, ge=1)  # a topology's widths and neurons are rounded to multiples of it
    dims: Literal["v", "qkv"] = "v"  # A4: what a closed dimension removes
    batches: list[PositiveInt] = Field([1, 16], min_length=1)  # images of a call, each size in turn
    runtimes: list[Runtime] = Field(["eager", "compile", "onnxruntime", "openvino"], min_length=1)  # that run them
    precisions: list[Precision] = Field(["fp32", "bf16", "int8"], min_length=1)  # that they run in
    merge: list[PositiveFloat] = []  # pairs of tokens to merge in a block, each a network more
    data: Literal["", "digits", "fashion-mnist"] = ""  # accuracy on these images too
    root: str = ""  # the folder that they lie in
    test_size: int = Field(2000, ge=0)  # images that accuracy is measured on; 0: it is not
    calibration: int = Field(128, ge=1)  # images that int8 is calibrated on
    files: str = ""  # where exported networks are kept; '': nowhere

    def of_process(self, index: int, shared: Path) -> list[str]:
        """Return arguments by which networks are exported once, and accuracy, which no process changes, is measured
        once."""
        return [f"files={self.files or shared / 'files'}", *(["test_size=0"] if index else [])]


class Mode(NamedTuple):
    """Mode in words, for ``hiap bench --help``; ``usage`` where it takes other arguments than key=value."""

    about: str
    settings: type[Timing] | None
    usage: str = ""


MODES = {
    "speed": Mode("inference of topologies, in one process, alternated run by run", Settings),
    "deploy": Mode(
        "inference of saved or made-up networks in the runtimes and precisions that people deploy", DeploySettings
    ),
    "steps": Mode("training steps, gated against dense, and their peak memory", Settings),
    "train": Mode(
        "this project's training step, dense and gated, eager and compiled, against a plain timm loop", TrainSettings
    ),
    "peer": Mode("extracted networks against Torch-Pruning's at equal MACs (extra: dev)", Settings),
    "input": Mode("JPEGs through this project's loader against timm's, per number of workers", Settings),
    "latency": Mode(
        "what a head, a value dimension, a neuron and a branch cost in time: the table for penalty.latency_table and "
        "budget.target_latency",
        LatencySettings,
    ),
    "gpu": Mode(
        "all that notebooks show of a GPU, one report after another",
        None,
        "hiap bench gpu [FOLDER] [budget=840] [rehearse=true]",
    ),
}
