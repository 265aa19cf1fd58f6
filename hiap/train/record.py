"""One JSON record per run: what was run, what came out, where, with which code. The only format results have.

Layout below a results root (``results/`` for what this repository publishes, ``results/local/`` for your own runs)::

    runs/<grid>/<run_id>.json            a finished run
    runs/<grid>/<run_id>.failed-<n>.json failed attempts; they stay
    work/<grid>/<run_id>/                checkpoints, the extracted model, curves.csv, TensorBoard, status.json (not
                                         committed)
"""

from __future__ import annotations

import base64
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from hiap.budget.sizes import BlockShape
from hiap.files import write_json
from hiap.options import one_line
from hiap.train.config import SIZES, Config, ConfigError
from hiap.train.device import cpu_has_bf16

if TYPE_CHECKING:
    import torch

SCHEMA_VERSION: Literal[1] = 1
PACKAGE = Path(__file__).parents[1]  # hiap/, in the checkout whose code this is
SNAPSHOT = "snapshot.json"
Part = TypeVar("Part", bound=BaseModel)
GONE = (("distill", "hidden", 0.0), ("optim", "clip_norm", None))  # options of old records: section, key, how it is off
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "scikit-learn")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Score(_Part):
    """Accuracy on the images measured: ``top1`` in per cent, mean cross-entropy ``loss`` in nats, ``n`` images.
    ``correct``: which of them, in order, one bit each in base64; of the extracted network only, and '' in old records.
    """

    top1: float
    loss: float
    n: int
    correct: str = ""

    def hits(self) -> np.ndarray | None:
        """Return Booleans (n,), which images were classified rightly; None if the record does not say. Raises
        ``ConfigError`` if they are of another number of images, or of another accuracy."""
        if not self.correct:
            return None
        bits = np.unpackbits(np.frombuffer(base64.b64decode(self.correct), dtype=np.uint8))
        found = bits[: self.n].astype(bool)
        if not self.n <= len(bits) < self.n + 8 or abs(100 * found.mean() - self.top1) > 0.01:
            raise ConfigError(f"'correct' of {len(bits)} images does not give top-1 {self.top1:.2f} % of {self.n}")
        return found


class Metrics(_Part):
    """Accuracy of the same network at four moments. ``dense``: what the run started from (None when trained from
    scratch); ``soft``: gates sampled as in training, at the final temperature; ``hardened``: gates thresholded, nothing
    removed; ``extracted``: physically smaller module, the number that counts. ``soft`` and ``hardened`` exist for gated
    runs. ``probe``: a logistic regression on the features that a dense run with a new classifier began with, perhaps of
    fewer images (hiap/train/probe.py)."""

    dense: Score | None = None
    probe: Score | None = None
    soft: Score | None = None
    hardened: Score | None = None
    extracted: Score | None = None

    @property
    def gap(self) -> float | None:
        """Extracted minus soft top-1, in points: what hardening costs."""
        return None if self.soft is None or self.extracted is None else self.extracted.top1 - self.soft.top1


class Size(_Part):
    """Size of a network: ``macs`` per image (multiply-adds) and ``params``, both counted, of the dense start and the
    extracted end."""

    dense_macs: int
    dense_params: int
    macs: int
    params: int


class Latency(_Part):
    """Microseconds of a batch that ``penalty.latency_table`` predicts for the extracted network and for the dense one,
    and which table: the path says little."""

    predicted: float
    dense: float
    table_sha256: str


class StageCost(_Part):
    """Cost of one training stage. ``train_macs`` counts forward (1x) and backward (2x) of the trained network as it
    executes, plus the teacher's forward; ``seconds`` is wall time in training steps, ``pruning_seconds`` that of
    ranking, cutting and correcting before and after them: on a CPU, seconds of the processor, which other work beside
    it hardly moves. None in records before 2026-11-29."""

    name: str
    epochs: int
    steps: int
    images: int
    seconds: float
    train_macs: float
    pruning_seconds: float | None = None


class EpochLog(_Part):
    """Log of an epoch: means over it, and for gated runs the hardened counts per block at its end: open heads, value
    dimensions kept per head, open neurons; ``macs`` is what extraction by the threshold of 1/2 would leave at this
    moment (a run with a target moves the threshold at its end). ``state``: further numbers of the method, such as the
    expected MACs. ``top1``: accuracy (%) by the hardened gates, where ``run.evaluate_every`` asks for it."""

    stage: str
    epoch: int
    loss: float
    terms: dict[str, float] = Field(default_factory=dict)
    lr: float
    tau: float | None = None
    heads: list[int] | None = None
    head_dims: list[list[int]] | None = None
    neurons: list[int] | None = None
    macs: int | None = None
    top1: float | None = None
    state: dict[str, float] = Field(default_factory=dict)


class GateLog(_Part):
    """Log of the gates: the hardened counts per block after ``step`` of ``steps`` steps of the stage that trains the
    gates; ``macs``, ``expected_macs`` as in ``EpochLog``."""

    step: int
    steps: int
    heads: list[int]
    neurons: list[int]
    macs: int
    expected_macs: int


class Environment(_Part):
    """Machine, libraries and code that made a record."""

    device: str
    device_name: str
    threads: int
    processes: int = 1
    python: str
    platform: str
    libraries: dict[str, str]
    commit: str
    dirty: bool
    command: str


class Images(_Part):
    """Digests of the images that a run saw, SHA-256 (64 hex digits): of the ``files`` that the data set is read from,
    its ``classes`` in the order of their numbers, and the pixels and labels that were ``trained`` on and ``measured``,
    as the cache holds them, before normalisation. '' for files where there are none, for pixels where each image is
    decoded anew."""

    files: str
    classes: str
    trained: str
    measured: str


class Record(_Part):
    """Record of a run, finished or failed."""

    schema_version: Literal[1] = SCHEMA_VERSION
    run_id: str
    grid: str
    label: str
    status: Literal["finished", "failed"]
    error: str = ""
    config: Config
    seed: int
    metrics: Metrics = Metrics()
    gap: float | None = None
    size: Size | None = None
    latency: Latency | None = None
    stages: list[StageCost] = Field(default_factory=list)
    epochs: list[EpochLog] = Field(default_factory=list)
    shape: list[BlockShape] | None = None
    gates: list[GateLog] = Field(default_factory=list)  # every run.gate_log steps, if that is set
    weights_sha256: str = ""  # of the file that the weights began with, through the runs before this one
    files: dict[str, str] = Field(default_factory=dict)  # SHA-256 of what the configuration names by a path, by key
    code: str = ""  # digest of the baseline's file and those that it imports (hiap/train/identity.py)
    core: str = ""  # of the modules of hiap/ that all methods share
    adapted: list[str] = Field(default_factory=list)  # what was done to fit those weights to the images and classes
    images: Images | None = None  # None in old records and in those of failed runs
    corrupt_images: int = 0  # training images that could not be read and were replaced
    environment: Environment
    started: str
    finished: str
    resumed: int = 0
    begun_with: dict[str, str] = Field(default_factory=dict)  # of a resumed run: what was another machine or code then

    @model_validator(mode="before")
    @classmethod
    def _without_what_meant_nothing(cls, values: Any) -> Any:
        """Drop what records of before name and nothing followed from: options that are gone, where they were off, and
        sizes of data sets that were used whole."""
        config = values.get("config") if isinstance(values, dict) and "schema_version" in values else None
        if not isinstance(config, dict):
            return values
        for section, key, off in GONE:
            part = config.get(section)
            if isinstance(part, dict) and key in part and part[key] == off:
                del part[key]
        data = config.get("data", {})
        if "images" not in values and isinstance(data, dict) and data.get("name", "affine-digits") not in SIZES:
            config["data"] = {k: v for k, v in data.items() if k not in ("train_size", "test_size")}
        return values


class Summary(BaseModel):
    """Part of a record that tables show. The rest, by far the most of it, is skipped."""

    metrics: Metrics
    size: Size | None
    stages: list[StageCost]
    resumed: int

    @property
    def top1(self) -> str:
        return "" if self.metrics.extracted is None else f"{self.metrics.extracted.top1:.2f}"

    @property
    def share(self) -> str:
        return f"{self.size.macs / self.size.dense_macs:.1%}" if self.size else ""


class Folders:
    """Paths of the files of one run (see the module docstring)."""

    def __init__(self, results: str | Path, grid: str, run_id: str):
        root = Path(results)
        self.root, self.grid, self.run_id = root, grid, run_id
        self.runs = root / "runs" / grid
        self.record = self.runs / f"{run_id}.json"
        self.work = root / "work" / grid / run_id
        self.model = self.work / "model"
        self.checkpoints = self.work / "checkpoints"
        self.status = self.work / "status.json"
        self.curves = self.work / "curves.csv"
        self.earlier = self.work / "earlier.json"  # the record of a run that is made again, until it is
        self.again = self.work / "again.json"  # what such a run is made of

    @classmethod
    def of(cls, config: Config) -> Folders:
        return cls(config.run.results, config.run.grid, config.run_id)

    def sibling(self, run_id: str) -> Folders:
        """Find another run's files: of the same grid if it is there, else of whichever grid has it. A record that was
        copied from another grid has its model there."""
        here = Folders(self.root, self.grid, run_id)
        found = [here] if here.record.exists() else []
        found += here.twins()
        if not found:
            raise ConfigError(f"run:{run_id}: no finished run of that id below {self.root / 'runs'}; run it first")
        return next((folders for folders in found if folders.model.exists()), found[0])

    def referred(self, name: str) -> Folders:
        """Return the files of the run that a configuration names as 'run:<run_id>'."""
        return self.sibling(name.removeprefix("run:"))

    def behind(self, name: str) -> Folders | None:
        """Return as ``referred``; None where ``name`` is no 'run:<run_id>', or no record of that run was kept."""
        try:
            return self.referred(name) if name.startswith("run:") else None
        except ConfigError:
            return None

    def twins(self) -> list[Folders]:
        """Return the same run where other grids have finished it."""
        paths = sorted((self.root / "runs").glob(f"*/{self.run_id}.json"))
        return [Folders(self.root, path.parent.name, self.run_id) for path in paths if path.parent.name != self.grid]

    def stage(self, index: int) -> Path:
        """Return the place of the network that a stage hands to the next."""
        return self.work / f"stage-{index}"

    def needed_to_resume(self) -> list[Path]:
        """Return the folders that only an unfinished run needs."""
        return [self.checkpoints, *self.work.glob("stage-*")]

    def set_aside(self) -> None:
        """Let the run begin afresh: its record becomes ``earlier``, and what it would resume from goes."""
        if self.record.exists():
            self.work.mkdir(parents=True, exist_ok=True)
            self.record.replace(self.earlier)
        for folder in self.needed_to_resume():
            shutil.rmtree(folder, ignore_errors=True)

    def begin_again(self, made_of: dict[str, str]) -> None:
        """Set the run aside, unless it was begun again before, of the same images, files and code, and interrupted."""
        begun = json.loads(self.again.read_text(encoding="utf-8")) if self.again.exists() else None
        if begun == made_of and not self.record.exists():
            return
        self.set_aside()
        write_json(self.again, made_of)

    def failed_records(self) -> list[Path]:
        return sorted(self.runs.glob(f"{self.run_id}.failed-*.json"))

    def failed_record(self) -> Path:
        numbers = [int(number) for path in self.failed_records() if (number := path.stem.rpartition("-")[2]).isdigit()]
        return self.runs / f"{self.run_id}.failed-{max(numbers, default=0) + 1}.json"


def write(record: Record, folders: Folders) -> Path:
    """Write a record to its place; return that."""
    path = folders.record if record.status == "finished" else folders.failed_record()
    write_json(path, record.model_dump(mode="json"))
    return path


def read(path: Path) -> Record:
    """Read a record. Raises ``ConfigError`` (one line) if the file is none of this schema."""
    return _parse(path, path.read_bytes(), Record)


def target_value(config: Config, folders: Folders, of: Literal["macs", "params"]) -> float | None:
    """Return ``budget.target_macs`` (or ``_params``), which may be what another run ended with."""
    given: float | str | None = getattr(config.budget, f"target_{of}")
    if not isinstance(given, str):
        return given
    size = read(folders.referred(given).record).size
    if size is None:
        raise ConfigError(f"budget.target_{of} {given}: that record holds no size")
    return getattr(size, of)


def summary(path: Path) -> Summary:
    """Read as ``read`` does, tens of times as fast for a record of many epochs."""
    return _parse(path, _without(_without(path.read_bytes(), b"epochs"), b"gates"), Summary)


def read_briefly(path: Path) -> Record:
    """Read as ``read`` does, without the logs of epochs and gates, which are most of a record."""
    return _parse(path, _without(_without(path.read_bytes(), b"epochs"), b"gates"), Record)


def _without(text: bytes, key: bytes) -> bytes:
    """Return a record's text, as ``write`` lays it out, without the list of that key: keys of the record, and no
    others, stand behind one space."""
    start = text.find(b'\n "' + key + b'": [\n')
    end = text.find(b'\n "', start + 1)
    return text if start < 0 or end < 0 else text[:start] + text[end:]


def _parse(path: Path, text: bytes, what: type[Part]) -> Part:
    try:
        return what.model_validate_json(text)
    except ValueError as error:
        first = str(error).splitlines()
        raise ConfigError(f"{path}: not a run record of schema {SCHEMA_VERSION}: {' '.join(first[:3])}") from None


def require_writable(folder: Path, source: str) -> None:
    """Raise ``ConfigError`` naming ``source`` if no file can be made in ``folder``, or, where that is not there yet, in
    what it would be made in. Nothing is left behind."""
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=there):  # a name of its own: runs that start together share the folder
            pass
    except OSError as error:
        raise ConfigError(f"{source}: cannot write there ({error.strerror})") from None


def write_status(folders: Folders, **fields: Any) -> None:
    """Write what ``--status`` shows of a run that is not finished. A queue counts its requeues in
    SLURM_RESTART_COUNT."""
    here = {"node": platform.node(), "restarts": int(os.environ.get("SLURM_RESTART_COUNT", "0"))}
    write_json(folders.status, {**here, **fields, "updated": now()})


def read_status(folders: Folders) -> dict[str, Any]:
    """Read the status of a run; {} where there is none."""
    try:
        return json.loads(folders.status.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def now() -> str:
    """Return the time, in UTC, as records have it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def environment(device: torch.device, command: str, processes: int = 1) -> Environment:
    """Return what a record says of the machine, the libraries and the code."""
    import torch  # here, so that reading records (launcher, analysis) starts without it

    commit, dirty = git_state()
    return Environment(
        device=device.type,
        device_name=torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        threads=torch.get_num_threads(),
        processes=processes,
        python=platform.python_version(),
        platform=platform.platform(),
        libraries={name: version(name) for name in LIBRARIES},
        commit=commit,
        dirty=dirty,
        command=command,
    )


@cache
def git_state() -> tuple[str, bool]:
    """Return the commit of the checkout that holds this file and whether tracked code differs from it; ('', False)
    where that is unknown, with a line on standard error that says why if there is a repository. One that only lies
    around an installed copy is another project's. A copy of the code that the launcher made says so in the file
    ``SNAPSHOT``."""
    if (note := PACKAGE / SNAPSHOT).exists():
        made = json.loads(note.read_text(encoding="utf-8"))
        return made["commit"], made["dirty"]
    try:
        if not os.path.samefile(_git("rev-parse", "--show-toplevel"), PACKAGE.parent):
            return "", False
        code = ("hiap", "baselines", "slurm")  # records that come and go do not matter
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", *code)
        return _git("rev-parse", "HEAD"), bool(changed)
    except (OSError, subprocess.SubprocessError) as error:
        said = one_line(getattr(error, "stderr", "") or error)
        if (PACKAGE.parent / ".git").exists():
            print(f"commit unknown: git does not tell that of {PACKAGE.parent} ({said})", file=sys.stderr)
        return "", False


def _git(*args: str) -> str:
    """Return what git says in the folder of the code."""
    return subprocess.run(
        ["git", *args], cwd=PACKAGE.parent, capture_output=True, encoding="utf-8", check=True, timeout=30
    ).stdout.strip()


def _cpu_name() -> str:
    """Return the name of the processor and the vector instructions that PyTorch uses on it: generations that compute
    other last digits, at another speed, may be sold under one name."""
    import torch

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()}{', bf16' if cpu_has_bf16() else ''})"
