"""Which runtime to take, and what pruning and int8 give together: ``python -m hiap.bench deploy key=value ...``.

Dense and pruned networks in each runtime and precision of ``hiap.bench.runtimes``, in one process. What is compared
was run side by side: within a runtime every network and precision beside the dense network in fp32, and that one beside
the dense network in fp32 of the first runtime; other ratios are products of these, round by round. What is not
installed, or fails, is a line of the report. With ``data``, each network's accuracy in the runtime that was timed::

    python -m hiap.bench deploy model=work/dense/model 'networks={hiap: work/hiap/model}' data=fashion-mnist processes=5
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hiap import cost
from hiap.bench import topologies
from hiap.bench.clock import alternate, quartiles, share
from hiap.bench.report import Deployed, DeployReport, DeploySettings, framed
from hiap.bench.runtimes import NEEDS, RUNTIMES, Call, Network, missing
from hiap.beyond import token_merging
from hiap.data import loader
from hiap.formats import store
from hiap.options import one_line
from hiap.train.config import ConfigError, DataConfig, require_name
from hiap.train.evaluate import evaluate
from hiap.train.record import Score, require_writable

Cell = tuple[str, str, str]  # network, runtime, precision
LIBRARIES = ("nncf", *(name for name, _, _ in NEEDS.values()))


def check(settings: DeploySettings) -> None:
    """Raise ``ConfigError`` for what can be told without a network."""
    if "fp32" not in settings.precisions:
        raise ConfigError(f"precisions {settings.precisions}: expected fp32 among them, which all is compared with")
    for name in settings.networks:
        try:
            require_name("networks", name)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if name == "dense" or name in settings.topologies:
            raise ConfigError(f"networks '{name}': that is the name of another network of the call")
    if settings.files:
        require_writable(Path(settings.files), f"files '{settings.files}'")
    if settings.root and settings.data != "fashion-mnist":
        raise ConfigError("root: only data=fashion-mnist is read from a folder")
    if settings.data:
        loader.check(_data(settings), 28)


def deploy(settings: DeploySettings) -> DeployReport:
    """Time networks in the runtimes and precisions that are asked for; measure their accuracy where ``data`` is
    named."""
    models = _models(settings)
    images = _calibration(settings, models["dense"])
    left_out: dict[str, None] = {}
    rows: list[Deployed] = []
    with _folder(settings.files) as files:
        device = torch.device(settings.device)
        networks = {n: Network(m, files, images, device, settings.threads) for n, m in models.items()}
        for batch in settings.batches:
            calls = _prepared(networks, batch, settings, left_out)
            mine = _timed(calls, models, batch, settings)
            if settings.data and settings.test_size and batch == max(settings.batches):
                for row in mine:
                    row.score = _score(calls[row.network, row.runtime, row.precision], batch, models["dense"], settings)
            rows += mine
    frame = framed("deploy", settings, "dense")
    frame["environment"].libraries |= _versions()
    return DeployReport(**frame, rows=rows, left_out=list(left_out))


def _models(settings: DeploySettings) -> dict[str, Any]:
    """Return the networks by name, the dense one first. Seeded: processes of one call share what they export."""
    torch.manual_seed(0)
    models = {"dense": topologies.create(settings.model).eval()}
    models |= {name: store.load(folder) for name, folder in settings.networks.items()}
    names = settings.topologies or ([] if settings.networks else ["fig5"])
    models |= topologies.each(names, settings.widths, models["dense"], settings.multiple, settings.dims)
    asked = _form(models["dense"])
    for name, model in models.items():
        if _form(model) != asked:
            raise ConfigError(f"{name}: images and classes {_form(model)}; expected the dense network's {asked}")
    return models | {
        f"{name}+{pairs:g}": token_merging.merge_tokens(model, _spread(pairs, len(model.blocks)))
        for name, model in models.items()
        for pairs in settings.merge
    }


def _spread(pairs: float, depth: int) -> list[int]:
    """Spread ``pairs`` a block on average over the blocks, in whole numbers: 0.5 is 0, 1, 0, 1, ..."""
    ends = [int(pairs * (i + 1) + 1e-9) for i in range(depth)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _macs(model: Any) -> int:
    blocks = model.blocks
    if isinstance(blocks, token_merging.MergingBlocks):
        return token_merging.macs(blocks.unmerged(model), blocks.schedule)
    return cost.macs(model, cost.image_of(model))


def _form(model: Any) -> tuple[int, ...]:
    return (*cost.image_of(model), model.num_classes)


def _data(settings: DeploySettings) -> DataConfig:
    if settings.data == "digits":
        return DataConfig(name="digits")
    sizes = {"train_size": settings.calibration, "test_size": max(1, settings.test_size)}
    return DataConfig(name="fashion-mnist", root=settings.root, measure="validation", **sizes)


def _calibration(settings: DeploySettings, model: Any) -> Tensor:
    """Return training images (n, C, H, W), or noise where no data set is named."""
    channels, height, width = cost.image_of(model)
    if not settings.data:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(settings.calibration, channels, height, width, generator=generator)
    data = _data(settings)
    known = loader.info(data, height)
    if (channels, height, model.num_classes) != (known.channels, width, known.classes):
        raise ConfigError(
            f"data '{data.name}': {known.classes} classes of square images with {known.channels} channel(s); the "
            f"network has {model.num_classes} and takes {channels} x {height} x {width}"
        )
    return next(loader.train_batches(data, height, batch_size=settings.calibration, seed=0, epoch=0))[0]


@contextmanager
def _folder(name: str) -> Iterator[Path]:
    if name:
        yield Path(name)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _prepared(
    networks: dict[str, Network], batch: int, settings: DeploySettings, left_out: dict[str, None]
) -> dict[Cell, Call]:
    """Return what can be run, tried once. A runtime that lacks the dense network in fp32 has nothing to compare
    with."""
    calls: dict[Cell, Call] = {}
    image = torch.randn(batch, *networks["dense"].calibration.shape[1:], device=settings.device)
    for runtime in dict.fromkeys(settings.runtimes):
        for precision in sorted(set(settings.precisions), key=("fp32", "bf16", "int8").index):
            if precision != "fp32" and ("dense", runtime, "fp32") not in calls:
                break
            if why := missing(runtime, precision, settings.device):
                left_out[f"{runtime}: {why}" if precision == "fp32" else f"{runtime} {precision}: {why}"] = None
                continue
            for name, network in networks.items():
                if name != "dense" and ("dense", runtime, "fp32") not in calls:
                    break
                try:
                    call = RUNTIMES[runtime](network, precision, batch)
                    with torch.inference_mode():
                        call(image)
                    calls[name, runtime, precision] = call
                except Exception as error:  # whatever other people's libraries raise
                    left_out[f"{name} in {runtime} {precision}: {type(error).__name__}: {one_line(error)}"] = None
    if not calls:
        raise ConfigError(f"nothing to time: {'; '.join(left_out)}")
    return calls


def _timed(calls: dict[Cell, Call], models: dict[str, Any], batch: int, settings: DeploySettings) -> list[Deployed]:
    images = torch.randn(batch, *cost.image_of(models["dense"]), device=settings.device)
    runs: dict[Cell, Callable[[], Any]] = {cell: partial(call, images) for cell, call in calls.items()}
    references = [cell for cell in runs if cell[0] == "dense" and cell[2] == "fp32"]
    seconds: dict[Cell, np.ndarray] = {}
    own: dict[Cell, np.ndarray] = {}
    with torch.inference_mode():
        between = _alternate({cell: runs[cell] for cell in references}, settings)[1]
        for base in references:
            took, ratios = _alternate({c: run for c, run in runs.items() if c[1] == base[1]}, settings)
            seconds |= took
            own |= ratios
    best = min(between, key=lambda cell: float(np.median(between[cell])))
    rows = []
    for cell in runs:
        network, runtime, precision = cell
        same, to_best = ("dense", runtime, precision), between["dense", runtime, "fp32"] / between[best]
        rows.append(
            Deployed.model_validate(
                {
                    **{"name": "/".join(cell), "network": network, "runtime": runtime, "precision": precision},
                    "batch": batch,
                    "macs": _macs(models[network]),
                    "params": cost.params(models[network]),
                    "seconds": quartiles(seconds[cell]),
                    "throughput": round(batch / float(np.median(seconds[cell])), 3),
                    "ratio": quartiles(own[cell]),
                    "against_best": quartiles(own[cell] * to_best),
                    "against_same": quartiles(own[cell] / own[same]) if same in own else None,
                }
            )
        )
    return _shared(rows)


def _alternate(
    runs: dict[Cell, Callable[[], Any]], settings: DeploySettings
) -> tuple[dict[Cell, np.ndarray], dict[Cell, np.ndarray]]:
    """Return seconds and ratios of cells, beside the first of them."""
    named = {"/".join(cell): run for cell, run in runs.items()}
    seconds, ratios = alternate(named, next(iter(named)), settings, torch.device(settings.device))
    return {c: seconds["/".join(c)] for c in runs}, {c: ratios["/".join(c)] for c in runs}


def _shared(rows: list[Deployed]) -> list[Deployed]:
    """Add to each row what is realised of its cut, where one is made."""
    dense = next(row.macs for row in rows if row.network == "dense")
    for row in rows:
        if row.macs < dense and row.against_same:
            row.share = share(row.against_same[1], row.macs, dense)
    return rows


class _Padded(nn.Module):
    """Call that takes up to ``batch`` images."""

    def __init__(self, call: Call, batch: int, device: str):
        super().__init__()
        self.call, self.batch, self.device = call, batch, device

    def forward(self, images: Tensor) -> Tensor:
        n = len(images)
        whole = images[torch.arange(self.batch) % n].to(self.device)
        with torch.inference_mode():
            return self.call(whole)[:n].cpu()


def _score(call: Call, batch: int, model: Any, settings: DeploySettings) -> Score:
    """Measure the accuracy in this runtime."""
    side = cost.image_of(model)[1]
    batches = loader.test_batches(_data(settings), side, batch_size=batch)
    enough = zip(range(-(-settings.test_size // batch)), batches, strict=False)
    return evaluate(_Padded(call, batch, settings.device), (pair for _, pair in enough), torch.device("cpu"))


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def merged(reports: list[DeployReport]) -> DeployReport:
    """Merge the reports of several processes into one. What one of them lacks is left out; the fastest is the fastest
    over all."""
    tables = [{(row.name, row.batch): row for row in report.rows} for report in reports]
    common = [key for key in tables[0] if all(key in table for table in tables)]
    rows = []
    for key in common:
        row, same = tables[0][key].model_copy(deep=True), [table[key] for table in tables]
        row.seconds = quartiles([r.seconds[1] for r in same])
        row.throughput = round(row.batch / row.seconds[1], 3)
        row.ratio = quartiles([r.ratio[1] for r in same])
        known = [r.against_same[1] for r in same if r.against_same]
        row.against_same = quartiles(known) if known else None
        row.worst = min((r.share for r in same if r.share is not None), default=None)
        best = _fastest(tables, common, row.batch)
        pairs = zip(same, tables, strict=True)
        row.against_best = quartiles([r.against_best[1] / table[best].against_best[1] for r, table in pairs])
        rows.append(row)
    left_out = dict.fromkeys(line for report in reports for line in report.left_out)
    return reports[0].model_copy(update={"rows": _shared(rows), "left_out": list(left_out)})


def _fastest(tables: list[dict[tuple[str, int], Deployed]], keys: list[tuple[str, int]], batch: int) -> tuple[str, int]:
    """Return the runtime in which the dense network in fp32 is the fastest, median over the processes."""
    dense = [key for key in keys if key[1] == batch and tables[0][key].network == "dense" and key[0].endswith("/fp32")]
    return min(dense, key=lambda key: float(np.median([table[key].against_best[1] for table in tables])))


def lines(report: DeployReport) -> list[str]:
    """Return lines for a terminal: the rows, the fastest first, and what was left out."""
    wide = max(len(row.network) for row in report.rows)
    head = f"{'batch':>5}  {'network':{wide}}  {'runtime':11}  {'':4}  {'ms':>9}"
    lines = [f"{head}  speed-up: own fp32  best fp32  share of the cut  top-1"]
    for row in sorted(report.rows, key=lambda row: (row.batch, row.against_best[1])):
        ups = [f"{1 / ratio[1]:.2f}" for ratio in (row.ratio, row.against_best)]
        cut = "" if row.share is None else f"{row.share:.3f}"
        cut += "" if row.worst is None else f" ({row.worst:.3f})"
        top1 = "" if row.score is None else f"{row.score.top1:.2f}"
        lines.append(
            f"{row.batch:5}  {row.network:{wide}}  {row.runtime:11}  {row.precision:4}  {row.seconds[1] * 1e3:9.2f}  "
            f"{ups[0]:>18}  {ups[1]:>9}  {cut:>16}  {top1:>5}".rstrip()
        )
    return [*lines, *(f"left out: {line}" for line in report.left_out)]
