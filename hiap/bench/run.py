"""Does the cut pay? Dense against extracted networks on the clock: ``python -m hiap.bench <mode> key=value ...``.

- ``speed``: inference of topologies, in one process, alternated run by run.
- ``deploy``: inference of trained or made-up networks in the runtimes and precisions that people deploy.
- ``steps``: training steps, gated against dense, and their peak memory.
- ``train``: this project's training step, dense and gated, eager and compiled, against a plain timm loop.
- ``peer``: extracted networks against Torch-Pruning's at equal MACs (needs the development extra).
- ``input``: JPEGs through this project's loader against timm's, per number of workers.
- ``latency``: what a head, a value dimension, a neuron and a branch cost in time (``hiap.bench.latency``): the table
  for ``penalty.latency_table`` and ``budget.target_latency``.
- ``gpu``: all that notebooks show of a GPU, one report after another (``hiap.bench.gpu``).

A ratio is the median of quotients of neighbouring runs, so that a slow moment hits both sides. Weights are
random: time does not depend on them. One JSON per call goes to ``results/local/bench/``. On a GPU, say::

    python -m hiap.bench speed device=cuda precision=bf16 batches=[1,256] topologies=[fig5] multiple=8 name=fig5_cuda
    python -m hiap.bench latency device=cuda precision=bf16 batches=[64] name=latency_deit_small_cuda
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import timm
import torch
from PIL import Image

import hiap
from hiap import cost, gated_vit
from hiap.backbones.pruned import LAYOUTS, set_layout
from hiap.bench import deploy, gpu, report, runtimes, topologies, train
from hiap.bench import latency as timed
from hiap.bench.clock import alternate, peak_memory, quartiles, share
from hiap.bench.report import (
    DeploySettings,
    LatencyReport,
    LatencySettings,
    Report,
    Row,
    Settings,
    Timing,
    TrainReport,
    TrainSettings,
    framed,
)
from hiap.budget.selection import target_of
from hiap.files import write_json
from hiap.formats import store
from hiap.ledger import Dims
from hiap.objective import penalties
from hiap.options import checked
from hiap.train.config import ConfigError, DataConfig, PenaltyConfig, parse_overrides, require_name, unknown_key
from hiap.train.record import require_writable

# What `peer` holds against Torch-Pruning: topology, width, what a closed dimension removes.
PEERS: tuple[tuple[str, int | None, Literal["v", "qkv"]], ...] = (
    ("fig5", 64, "v"),
    ("fig5", 48, "v"),
    ("uniform", None, "qkv"),
    ("uniform", None, "v"),
)


def speed(settings: Settings) -> Report:
    """Time inference: each topology, width and layout against the dense network."""
    dense = topologies.create(settings.model)
    models: dict[str, tuple[str, Any]] = {"dense": ("-", dense)}
    shape = (settings.multiple, settings.dims)
    for name, small in topologies.each(settings.topologies, settings.widths, dense, *shape):
        ragged = len(settings.layouts) > 1 and cost.macs(small, cost.image_of(small)) != _executed(small, "padded")
        for layout in settings.layouts if ragged else settings.layouts[-1:]:
            models[f"{name}/{layout}"] = (layout, small)
    return _report("speed", settings, _compare_inference(models, settings, "dense"), "dense")


def against_torch_pruning(settings: Settings) -> Report:
    """Time Torch-Pruning at the given GMACs, and beside it, at the MACs that it reached and with widths in multiples of
    8 like its own: Fig. 5's heads, whole and narrowed; its own kind of cut (every head, narrowed in Q, K and V alike);
    the same in V alone; and the dense network."""
    from baselines.torch_pruning import prune_to

    rows = []
    for gmacs in settings.gmacs:
        # A fresh network each time: what was measured has moved to the device.
        theirs = topologies.create(settings.model)
        target = target_of(theirs, gmacs * 1e9)
        assert target is not None
        theirs = prune_to(theirs, target)
        at = cost.macs(theirs, cost.image_of(theirs)) / 1e9
        models: dict[str, tuple[str, Any]] = {
            "dense": ("-", topologies.create(settings.model)),
            "torch-pruning": ("-", theirs),
        }
        for name, width, removed in PEERS:
            small = topologies.load(f"{name}@{at!r}", width, topologies.create(settings.model), 8, removed)
            models[f"{name}-{removed}" if width is None else f"{name}-{width}"] = ("padded", small)
        named = {f"{name}/{gmacs}": entry for name, entry in models.items()}
        rows += _compare_inference(named, settings, f"torch-pruning/{gmacs}")
    return _report("peer", settings, rows, "torch-pruning")


def read_images(settings: Settings) -> Report:
    """Time decoding and DeiT's augmentation at 224 pixels: ours (every image a function of seed, epoch and index)
    against timm's data set and loader with the same transform. ``throughput``: images/s."""
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
                took, against = quartiles(seconds[name]), quartiles(ratios[name])
                rows.append(Row(**row, params=0, seconds=took, throughput=speed, ratio=against, memory=0))
    return _report("input", settings, rows, "timm")


def latency(settings: LatencySettings) -> LatencyReport:
    """Time sampled networks, each beside the dense one, as they are run by default, and fit the prices of their units.
    One is made, timed and dropped at a time, so that memory holds two."""
    device, dtype = torch.device(settings.device), _dtype(settings)
    dense = topologies.create(settings.model)
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


def _priced(found: Report, dims: Dims, networks: list[timed.Network]) -> LatencyReport:
    """Return the report with prices from its rows: a time is the dense network's times the ratio of neighbouring runs,
    so that what drifts meanwhile cancels."""
    dense = 1e6 * found.rows[0].seconds[1]
    ratios = {row.name: row.ratio[1] for row in found.rows}
    measured = [n.model_copy(update={"measured": round(dense * ratios[n.name], 3)}) for n in networks]
    return LatencyReport(**{**dict(found), "latency": timed.table(dims, measured)})


def _merged_latency(reports: list[LatencyReport]) -> LatencyReport:
    """Merge as ``merged`` does, with prices from what all processes measured."""
    found = reports[0].latency
    return _priced(merged([*reports]), Dims(**found.sizes), [*found.fitted, *found.held_out])  # type: ignore[arg-type]


def _exhaust(batches: Iterable[Any]) -> None:
    for _ in batches:
        pass


def _write_jpegs(root: Path, count: int) -> Path:
    """Write JPEGs in ImageNet's layout and usual size, of smooth noise, which compresses about as photographs do."""
    rng = np.random.default_rng(0)
    for split, images in (("train", count), ("val", 8)):
        for i in range(images):
            folder = root / split / f"n{i % 8:08d}"
            folder.mkdir(parents=True, exist_ok=True)
            small = Image.fromarray(rng.integers(0, 256, (47, 62, 3), dtype=np.uint8))
            small.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{i}.JPEG", quality=90)
    return root


def steps(settings: Settings) -> Report:
    """Time one training step (forward, penalty, backward, AdamW) of the gated network against the dense one."""
    device = torch.device(settings.device)
    rows = []
    for batch in settings.batches:
        dense = topologies.create(settings.model).to(device).train()
        models = {"dense": dense, "gated": hiap.gate(dense).train()}
        runs = {name: _training_step(model, batch, settings) for name, model in models.items()}
        seconds, ratios = alternate(runs, "dense", settings, device)
        for name, model in models.items():
            rows.append(_row(name, "-", model, batch, seconds[name], ratios[name], peak_memory(runs[name], device)))
    return _report("steps", settings, rows, "dense")


def training(settings: TrainSettings) -> TrainReport:
    """Time training steps against the first of the loops."""
    device, reference, rows = torch.device(settings.device), settings.loops[0], []
    for batch in settings.batches:
        found = train.loops(settings, batch)
        runs = {name: run for name, (_, run) in found.items()}
        seconds, ratios = alternate(runs, reference, settings, device)
        for name, (model, run) in found.items():
            rows.append(_row(name, "-", model, batch, seconds[name], ratios[name], peak_memory(run, device)))
    return TrainReport(**framed("train", settings, reference), rows=rows)


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
                row.share = share(row.ratio[1], row.macs, base.macs)
    return rows


def _dtype(settings: Settings) -> torch.dtype:
    return torch.bfloat16 if settings.precision == "bf16" else torch.float32


def in_processes(mode: str, arguments: list[str], settings: Timing) -> list[Any]:
    """Return the reports of the same call in fresh processes, one after another."""
    reports = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(settings.processes):
            own = ["processes=1", f"out={folder}", "name=part", *settings.of_process(i, Path(folder))]
            child = [sys.executable, "-m", "hiap.bench", mode, *arguments, *own]
            subprocess.run(child, check=True, stdout=subprocess.DEVNULL)
            reports.append(report.read(Path(folder) / "part.json"))
    return reports


def merged(reports: list[Report]) -> Report:
    """Merge the reports of the same call in several processes into one."""
    first, rows = reports[0], []
    for same in zip(*(one.rows for one in reports), strict=True):
        row = same[0].model_copy(deep=True)
        row.seconds = quartiles([r.seconds[1] for r in same])
        row.ratio = quartiles([r.ratio[1] for r in same])
        row.throughput = round(row.batch / row.seconds[1], 3)
        rows.append(row)
    for row in rows:
        base = next((r for r in rows if r.name == first.reference and r.batch == row.batch), row)
        row.share = None if row.share is None else share(row.ratio[1], row.macs, base.macs)
    return first.model_copy(update={"rows": rows})


def _inference(model: Any, layout: str, images: torch.Tensor, compiled: bool) -> Callable[[], Any]:
    forward = runtimes.compiled(model) if compiled else model

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
        seconds=quartiles(seconds),
        throughput=round(batch / float(np.median(seconds)), 3),
        ratio=quartiles(ratios),
        memory=memory,
    )


def _executed(model: Any, layout: str) -> int:
    set_layout(model, layout)
    return cost.macs(model, cost.image_of(model), executed=True)


def lines(found: Report) -> list[str]:
    """Return a line per row."""
    return [
        f"{row.name:24} batch {row.batch:4}  {row.macs / 1e9:.3f} G ({row.executed_macs / 1e9:.3f} executed)  "
        f"{row.seconds[1] * 1e3:9.1f} ms  ratio {row.ratio[1]:.3f} [{row.ratio[0]:.3f}, {row.ratio[2]:.3f}]  "
        f"{row.memory / 2**20:.0f} MiB{'' if row.share is None else f'  share {row.share:.3f}'}"
        for row in found.rows
    ]


def _report(mode: str, settings: Settings, rows: list[Row], reference: str) -> Report:
    return Report(**framed(mode, settings, reference), rows=rows)


class Mode(NamedTuple):
    """Mode of the benchmark. ``merge``: makes one report of several processes'; ``lines``: gives a report's rows as
    lines for a terminal."""

    settings: type[Timing]
    run: Callable[[Any], Any]
    merge: Callable[[Any], Any] = merged
    lines: Callable[[Any], list[str]] = lines


MODES = {
    "speed": Mode(Settings, speed),
    "steps": Mode(Settings, steps),
    "peer": Mode(Settings, against_torch_pruning),
    "input": Mode(Settings, read_images),
    "latency": Mode(LatencySettings, latency, _merged_latency, lambda found: [*lines(found), str(found.latency)]),
    "deploy": Mode(DeploySettings, deploy.deploy, deploy.merged, deploy.lines),
    "train": Mode(TrainSettings, training),
}


def parse(arguments: list[str]) -> tuple[str, Any]:
    """Return mode and settings of a command line. Raises ``ConfigError`` for what cannot be run."""
    if not arguments or arguments[0] not in MODES:
        raise ConfigError(f"first argument: expected one of {', '.join(MODES)}, gpu, e.g. python -m hiap.bench speed")
    mode, values = MODES[arguments[0]], parse_overrides(arguments[1:])
    for key in values:
        if key not in mode.settings.model_fields:
            raise ConfigError(unknown_key(key, list(mode.settings.model_fields)))
    settings: Any = checked(mode.settings, values)
    try:
        require_name("name", settings.name or arguments[0])
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if arguments[0] == "input" and (len(settings.batches) > 1 or settings.batches[0] > settings.images):
        raise ConfigError(f"batches {settings.batches}: 'input' reads one size, of images {settings.images} or fewer")
    if arguments[0] == "latency" and (len(settings.batches) > 1 or settings.dims != "v"):
        raise ConfigError(f"batches {settings.batches}, dims {settings.dims}: 'latency' prices one batch size, dims v")
    if arguments[0] in ("steps", "input", "latency") and getattr(settings, "compile", False):
        raise ConfigError(f"compile: is for inference, which '{arguments[0]}' does not time")
    if arguments[0] == "train":
        train.check(settings)
    if arguments[0] in ("speed", "deploy"):
        topologies.check(settings.topologies)
    if arguments[0] == "deploy":
        deploy.check(settings)
    require_writable(Path(settings.out), f"out '{settings.out}'")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda': no CUDA device here; expected 'cpu'")
    if settings.clock == "cpu" and (settings.device != "cpu" or settings.threads != 1):
        raise ConfigError("clock 'cpu' needs device=cpu and threads=1: it adds up what all threads take")
    if settings.model not in timm.list_models() and not Path(settings.model).is_dir():
        raise ConfigError(f"model '{settings.model}': not a timm model, nor a folder of hiap.save")
    return arguments[0], settings


def main(arguments: list[str] | None = None) -> int:
    """Run one mode and write its report; return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments[:1] == ["gpu"]:
            return gpu.main(arguments[1:], main)
        name, settings = parse(arguments)
        mode = MODES[name]
        torch.set_num_threads(settings.threads)
        if settings.processes > 1:
            found = mode.merge(in_processes(name, arguments[1:], settings))
            frame = framed(name, settings, found.reference)
            frame["environment"].libraries = found.environment.libraries
            found = found.model_copy(update=frame)
        else:
            found = mode.run(settings)
    except (ConfigError, gated_vit.UnsupportedModelError, store.StoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:  # one of several processes, which has said why
        return error.returncode
    path = Path(settings.out) / f"{settings.name or name}.json"
    write_json(path, found.model_dump(mode="json"))
    print("\n".join([*mode.lines(found), str(path)]))
    return 0
