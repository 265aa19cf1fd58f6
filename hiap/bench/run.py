"""Does the cut pay? Dense against extracted networks on the clock: ``python -m hiap.bench <mode> key=value ...``.

- ``speed``: inference of topologies, in one process, alternated run by run.
- ``steps``: training steps, gated against dense, and their peak memory.
- ``peer``: extracted networks against Torch-Pruning's at equal MACs (needs the development extra).
- ``input``: JPEGs through this project's loader against timm's, per number of workers.
- ``latency``: what a head, a value dimension, a neuron and a branch cost in time (``hiap.bench.latency``): the table
  for ``penalty.latency_table`` and ``budget.target_latency``.

A ratio is the median of quotients of neighbouring runs, so that a slow moment hits both sides. Weights are
random: time does not depend on them. One JSON per call goes to ``results/bench/``. On a GPU, say::

    python -m hiap.bench speed device=cuda precision=bf16 batches=[1,256] topologies=[fig5] multiple=8 name=fig5_cuda
    python -m hiap.bench latency device=cuda precision=bf16 batches=[64] name=latency_deit_small_cuda
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import timm
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt
from torch.profiler import ProfilerActivity, profile

import hiap
from hiap import cost, gated_vit
from hiap.bench import latency as timed
from hiap.bench import topologies
from hiap.files import write_json
from hiap.formats import store
from hiap.ledger import Dims
from hiap.objective import penalties
from hiap.options import checked
from hiap.pruned_vit import LAYOUTS, set_layout
from hiap.selection import target_of
from hiap.train.config import MOST, ConfigError, DataConfig, PenaltyConfig, parse_overrides, require_name, unknown_key
from hiap.train.record import Environment, environment, now, require_writable


class Settings(BaseModel):
    """``model``: a timm name or a folder of ``hiap.save``. ``topologies``, ``widths``, ``multiple`` and ``dims`` as in
    ``hiap.bench.topologies``. ``clock`` 'cpu' counts the
    process's own seconds, for a CPU that others use too. ``processes``: repeat all in that many fresh processes, and
    take quartiles over their medians: where a process's memory happens to lie moves times by several per cent, and more
    rounds of one process cannot average that out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = ""
    model: str = "deit_small_patch16_224"
    topologies: list[str] = Field(["fig5"], min_length=1)
    widths: list[PositiveInt | Literal["mixed"]] = Field([64, 48, 40, 36, 32, "mixed"], min_length=1)
    layouts: list[Literal["ragged", "padded"]] = Field(["ragged", "padded"], min_length=1)
    multiple: int = Field(1, ge=1)
    dims: Literal["v", "qkv"] = "v"  # A4: what a closed dimension removes
    batches: list[PositiveInt] = Field([16], min_length=1)
    rounds: int = Field(9, ge=3)
    warmup: int = Field(2, ge=1)
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    threads: int = Field(1, ge=1, le=MOST)
    clock: Literal["wall", "cpu"] = "wall"
    processes: int = Field(1, ge=1)
    gmacs: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field([3.1, 2.5], min_length=1)  # peer only
    workers: list[NonNegativeInt] = Field([0, 1, 2], min_length=1)  # input only, as is the number of images
    images: int = Field(512, ge=8)
    networks: int = Field(48, ge=timed.LEAST)  # latency only: sampled and fitted; 20 more are held out
    out: str = "results/bench"


# What `peer` holds against Torch-Pruning: topology, width, what a closed dimension removes.
PEERS: tuple[tuple[str, int | None, Literal["v", "qkv"]], ...] = (
    ("fig5", 64, "v"),
    ("fig5", 48, "v"),
    ("uniform", None, "qkv"),
    ("uniform", None, "v"),
)


class Row(BaseModel):
    """``seconds`` per batch (or step): median and quartiles. ``ratio``: this time over the reference's, median and
    quartiles of the rounds. ``share``: (1 - ratio) / (1 - macs / reference's macs). ``memory``: bytes that one call
    allocates at its peak, beyond weights and optimiser.
    """

    name: str
    layout: str
    batch: int
    macs: int
    executed_macs: int
    params: int
    seconds: tuple[float, float, float]
    throughput: float
    ratio: tuple[float, float, float]
    share: float | None = None
    memory: int


class Report(BaseModel):
    schema_version: Literal[1] = 1
    mode: str
    settings: Settings
    environment: Environment
    started: str
    finished: str
    reference: str
    rows: list[Row]
    latency: timed.Table | None = None  # of mode latency


def alternate(
    runs: dict[str, Callable[[], Any]], reference: str, settings: Settings, device: torch.device
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Seconds of each call and their ratio to the reference's, (rounds,) per name. Each call has a run of the reference
    right beside it, before or after it in turn, so that both meet the machine in one state."""
    clock = time.process_time if settings.clock == "cpu" else time.perf_counter

    def timed(name: str) -> float:
        _wait(device)
        start = clock()
        runs[name]()
        _wait(device)
        return clock() - start

    seconds: dict[str, list[float]] = {name: [] for name in runs}
    ratios: dict[str, list[float]] = {name: [] for name in runs}
    others = [name for name in runs if name != reference]
    for i in range(settings.warmup + settings.rounds):
        for name in others:
            pair = {n: timed(n) for n in ((reference, name) if i % 2 else (name, reference))}
            if i >= settings.warmup:
                ratios[name].append(pair[name] / pair[reference])
                for n, value in pair.items():
                    seconds[n].append(value)
    ratios[reference] = [1.0]
    return {n: np.array(v) for n, v in seconds.items()}, {n: np.array(v) for n, v in ratios.items()}


def speed(settings: Settings) -> Report:
    """Inference: each topology, width and layout against the dense network."""
    dense = create(settings.model)
    models: dict[str, tuple[str, Any]] = {"dense": ("-", dense)}
    for topology in settings.topologies:
        for width in settings.widths if topologies.takes_width(topology) else [None]:
            small = topologies.load(topology, width, dense, settings.multiple, settings.dims)
            ragged = len(settings.layouts) > 1 and cost.macs(small, cost.image_of(small)) != _executed(small, "padded")
            for layout in settings.layouts if ragged else settings.layouts[-1:]:
                name = topology if width is None else f"{topology}/{width}"
                models[f"{name}/{layout}"] = (layout, small)
    return _report("speed", settings, _compare_inference(models, settings, "dense"), "dense")


def create(name: str) -> Any:
    """The dense network: timm's of this name, or the one in a folder of ``hiap.save``."""
    return store.load(name) if Path(name).is_dir() else timm.create_model(name).eval()


def against_torch_pruning(settings: Settings) -> Report:
    """Torch-Pruning at the given GMACs, and paired with it, at the MACs that it reached and with widths that are
    multiples of 8 as its own: Fig. 5's heads, whole and narrowed, its own kind of cut (every head, narrowed in Q, K and
    V alike), the same in V alone, and the dense network."""
    from baselines.torch_pruning import prune_to

    rows = []
    for gmacs in settings.gmacs:
        # A fresh network each time: what was measured has moved to the device.
        theirs = create(settings.model)
        target = target_of(theirs, gmacs * 1e9)
        assert target is not None
        theirs = prune_to(theirs, target)
        at = cost.macs(theirs, cost.image_of(theirs)) / 1e9
        models: dict[str, tuple[str, Any]] = {"dense": ("-", create(settings.model)), "torch-pruning": ("-", theirs)}
        for name, width, removed in PEERS:
            small = topologies.load(f"{name}@{at!r}", width, create(settings.model), 8, removed)
            models[f"{name}-{removed}" if width is None else f"{name}-{width}"] = ("padded", small)
        named = {f"{name}/{gmacs}": entry for name, entry in models.items()}
        rows += _compare_inference(named, settings, f"torch-pruning/{gmacs}")
    return _report("peer", settings, rows, "torch-pruning")


def read_images(settings: Settings) -> Report:
    """Decoding and DeiT's augmentation at 224 pixels: ours (every image a function of seed, epoch and index) against
    timm's data set and loader with the same transform. ``throughput``: images/s."""
    import itertools

    from timm.data import create_dataset, create_loader

    from hiap.data import loader as data

    (batch,), rows = settings.batches, []
    with tempfile.TemporaryDirectory() as folder:
        config = DataConfig(name="imagenet", root=str(_write_jpegs(Path(folder), settings.images)), augment="deit")
        theirs = create_dataset("", root=f"{folder}/train", is_training=True)
        for workers in settings.workers:
            loader = create_loader(
                theirs, (3, 224, 224), batch, is_training=True, use_prefetcher=False, num_workers=workers,
                auto_augment="rand-m9-mstd0.5-inc1", color_jitter=0.3, interpolation="bicubic", re_prob=0.25,
                re_mode="pixel", persistent_workers=False,
            )  # fmt: skip
            epochs = itertools.count()

            def ours(workers: int = workers, epochs: Iterator[int] = epochs) -> None:
                _exhaust(data.train_batches(config, 224, batch_size=batch, seed=0, epoch=next(epochs), workers=workers))

            runs: dict[str, Callable[[], Any]] = {"timm": partial(_exhaust, loader), "hiap": ours}
            seconds, ratios = alternate(runs, "timm", settings, torch.device("cpu"))
            for name in runs:
                images = settings.images // batch * batch
                row = {"name": f"{name}/{workers}", "layout": "-", "batch": images, "macs": 0, "executed_macs": 0}
                speed = round(images / float(np.median(seconds[name])), 3)
                took, against = _quartiles(seconds[name]), _quartiles(ratios[name])
                rows.append(Row(**row, params=0, seconds=took, throughput=speed, ratio=against, memory=0))
    return _report("input", settings, rows, "timm")


def latency(settings: Settings) -> Report:
    """Sampled networks, each with the dense one beside it, as they are run by default; and the prices of their units.
    One is made, timed and dropped at a time, so that memory holds two."""
    device, dtype = torch.device(settings.device), _dtype(settings)
    dense = create(settings.model)
    gated, (batch,) = gated_vit.gate(dense), settings.batches
    dims, images = cost.dims_of(gated), torch.randn(batch, *cost.image_of(dense), device=device, dtype=dtype)
    base = _inference(dense.to(device, dtype), "-", images, settings.compile)
    beside, rows, networks = [], [], [timed.network("dense", dense)]
    for name, widths, neurons in timed.shapes(dims, settings.networks):
        small = topologies.extracted(gated, *topologies.rounded_up(dims, widths, neurons, settings.multiple))
        run = _inference(small.to(device, dtype), LAYOUTS[0], images, settings.compile)
        with torch.inference_mode():
            seconds, ratios = alternate({"dense": base, name: run}, "dense", settings, device)
        beside.append(seconds["dense"])
        rows.append(_row(name, LAYOUTS[0], small, batch, seconds[name], ratios[name], 0))
        networks.append(timed.network(name, small))
    first = _row("dense", "-", dense, batch, np.concatenate(beside), np.ones(1), 0)
    return _priced(_report("latency", settings, [first, *rows], "dense"), dims, networks)


def _priced(report: Report, dims: Dims, networks: list[timed.Network]) -> Report:
    """The report with prices from its rows: a time is the dense network's times the ratio of neighbouring runs, so that
    what drifts meanwhile cancels."""
    dense = 1e6 * report.rows[0].seconds[1]
    ratios = {row.name: row.ratio[1] for row in report.rows}
    measured = [n.model_copy(update={"measured": round(dense * ratios[n.name], 3)}) for n in networks]
    report.latency = timed.table(dims, measured)
    return report


def _exhaust(batches: Iterable[Any]) -> None:
    for _ in batches:
        pass


def _write_jpegs(root: Path, count: int) -> Path:
    """ImageNet's layout and usual size, of smooth noise, which compresses about as photographs do."""
    rng = np.random.default_rng(0)
    for split, images in (("train", count), ("val", 8)):
        for i in range(images):
            folder = root / split / f"n{i % 8:08d}"
            folder.mkdir(parents=True, exist_ok=True)
            small = Image.fromarray(rng.integers(0, 256, (47, 62, 3), dtype=np.uint8))
            small.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{i}.JPEG", quality=90)
    return root


def steps(settings: Settings) -> Report:
    """One training step (forward, penalty, backward, AdamW) of the gated network against the dense one."""
    device = torch.device(settings.device)
    rows = []
    for batch in settings.batches:
        dense = create(settings.model).to(device).train()
        models = {"dense": dense, "gated": hiap.gate(dense).train()}
        runs = {name: _training_step(model, batch, settings) for name, model in models.items()}
        seconds, ratios = alternate(runs, "dense", settings, device)
        for name, model in models.items():
            rows.append(_row(name, "-", model, batch, seconds[name], ratios[name], peak_memory(runs[name], device)))
    return _report("steps", settings, rows, "dense")


def peak_memory(run: Callable[[], Any], device: torch.device) -> int:
    """Bytes that one call allocates at its peak, beyond what it found allocated."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        _wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        run()
    assert trace.profiler is not None
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    return int(np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]).max())


def _compare_inference(models: dict[str, tuple[str, Any]], settings: Settings, reference: str) -> list[Row]:
    device, dtype, rows = torch.device(settings.device), _dtype(settings), []
    for batch in settings.batches:
        runs = {}
        for name, (layout, model) in models.items():
            images = torch.randn(batch, *cost.image_of(model), device=device, dtype=dtype)
            runs[name] = _inference(model.to(device, dtype), layout, images, settings.compile)
        with torch.inference_mode():
            seconds, ratios = alternate(runs, reference, settings, device)
            for name, (layout, model) in models.items():
                if layout in LAYOUTS:
                    set_layout(model, layout)
                memory = peak_memory(runs[name], device)
                rows.append(_row(name, layout, model, batch, seconds[name], ratios[name], memory))
        base = next(r for r in rows if r.name == reference and r.batch == batch)
        for row in rows:
            if reference == "dense" and row.batch == batch and row.macs < base.macs:
                row.share = _share(row, base)
    return rows


def _dtype(settings: Settings) -> torch.dtype:
    return torch.bfloat16 if settings.precision == "bf16" else torch.float32


def _share(row: Row, base: Row) -> float:
    return round((1 - row.ratio[1]) / (1 - row.macs / base.macs), 4)


def _in_processes(mode: str, arguments: list[str], settings: Settings) -> Report:
    """The same call in fresh processes, one after another, as one report."""
    reports = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(settings.processes):
            child = [sys.executable, "-m", "hiap.bench", mode, *arguments, "processes=1", f"out={folder}", "name=part"]
            subprocess.run(child, check=True, stdout=subprocess.DEVNULL)
            reports.append(Report.model_validate_json((Path(folder) / "part.json").read_text()))
    rows = []
    for same in zip(*(report.rows for report in reports), strict=True):
        row = same[0].model_copy(deep=True)
        row.seconds = _quartiles([r.seconds[1] for r in same])
        row.ratio = _quartiles([r.ratio[1] for r in same])
        row.throughput = round(row.batch / row.seconds[1], 3)
        rows.append(row)
    for row in rows:
        base = next((r for r in rows if r.name == reports[0].reference and r.batch == row.batch), row)
        row.share = None if row.share is None else _share(row, base)
    report, found = _report(mode, settings, rows, reports[0].reference), reports[0].latency
    if found is None:
        return report
    return _priced(report, Dims(**found.sizes), [*found.fitted, *found.held_out])  # type: ignore[arg-type]


def _quartiles(values: Any) -> tuple[float, float, float]:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]).round(6).tolist()
    return low, middle, high


def _inference(model: Any, layout: str, images: torch.Tensor, compiled: bool) -> Callable[[], Any]:
    forward = torch.compile(model) if compiled else model

    def run() -> Any:
        if layout in LAYOUTS:  # the layouts of one network share its weights
            set_layout(model, layout)
        return forward(images)

    return run


def _training_step(model: Any, batch: int, settings: Settings) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    images = torch.randn(batch, *cost.image_of(model), device=settings.device)
    labels = torch.randint(model.num_classes, (batch,), device=settings.device)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(settings.device, torch.bfloat16, enabled=settings.precision == "bf16"):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        if gated_vit.is_gated(model):
            loss = loss + sum(penalties(model, PenaltyConfig()).values())
        loss.backward()
        optimizer.step()

    return run


def _row(name: str, layout: str, model: Any, batch: int, seconds: np.ndarray, ratios: np.ndarray, memory: int) -> Row:
    return Row(
        name=name,
        layout=layout,
        batch=batch,
        macs=cost.macs(model, cost.image_of(model)),
        executed_macs=cost.macs(model, cost.image_of(model), executed=True),
        params=cost.params(model),
        seconds=_quartiles(seconds),
        throughput=round(batch / float(np.median(seconds)), 3),
        ratio=_quartiles(ratios),
        memory=memory,
    )


def _executed(model: Any, layout: str) -> int:
    set_layout(model, layout)
    return cost.macs(model, cost.image_of(model), executed=True)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _report(mode: str, settings: Settings, rows: list[Row], reference: str) -> Report:
    return Report(
        mode=mode,
        settings=settings.model_copy(update={"out": ""}),
        environment=environment(torch.device(settings.device), " ".join(["python -m hiap.bench", *sys.argv[1:]])),
        started=_STARTED,
        finished=now(),
        reference=reference,
        rows=rows,
    )


_STARTED = now()
MODES: dict[str, Callable[[Settings], Report]] = {
    "speed": speed,
    "steps": steps,
    "peer": against_torch_pruning,
    "input": read_images,
    "latency": latency,
}


def parse(arguments: list[str]) -> tuple[str, Settings]:
    if not arguments or arguments[0] not in MODES:
        raise ConfigError(f"first argument: expected one of {', '.join(MODES)}, e.g. python -m hiap.bench speed")
    values = parse_overrides(arguments[1:])
    for key in values:
        if key not in Settings.model_fields:
            raise ConfigError(unknown_key(key, list(Settings.model_fields)))
    settings = checked(Settings, values)
    try:
        require_name("name", settings.name or arguments[0])
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if arguments[0] == "input" and (len(settings.batches) > 1 or settings.batches[0] > settings.images):
        raise ConfigError(f"batches {settings.batches}: 'input' reads one size, of images {settings.images} or fewer")
    if arguments[0] == "latency" and (len(settings.batches) > 1 or settings.dims != "v"):
        raise ConfigError(f"batches {settings.batches}, dims {settings.dims}: 'latency' prices one batch size, dims v")
    if arguments[0] == "speed":
        topologies.check(settings.topologies)
    require_writable(Path(settings.out), f"out '{settings.out}'")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda': no CUDA device here; expected 'cpu'")
    if settings.clock == "cpu" and (settings.device != "cpu" or settings.threads != 1):
        raise ConfigError("clock 'cpu' needs device=cpu and threads=1: it adds up what all threads take")
    if settings.model not in timm.list_models() and not Path(settings.model).is_dir():
        raise ConfigError(f"model '{settings.model}': not a timm model, nor a folder of hiap.save")
    return arguments[0], settings


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        mode, settings = parse(arguments)
        torch.set_num_threads(settings.threads)
        several = settings.processes > 1
        report = _in_processes(mode, arguments[1:], settings) if several else MODES[mode](settings)
    except (ConfigError, gated_vit.UnsupportedModelError, store.StoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    path = Path(settings.out) / f"{settings.name or mode}.json"
    write_json(path, report.model_dump(mode="json"))
    for row in report.rows:
        share = "" if row.share is None else f"  share {row.share:.3f}"
        print(
            f"{row.name:24} batch {row.batch:4}  {row.macs / 1e9:.3f} G ({row.executed_macs / 1e9:.3f} executed)  "
            f"{row.seconds[1] * 1e3:9.1f} ms  ratio {row.ratio[1]:.3f} [{row.ratio[0]:.3f}, {row.ratio[2]:.3f}]  "
            f"{row.memory / 2**20:.0f} MiB{share}"
        )
    if report.latency:
        print(report.latency)
    print(path)
    return 0
