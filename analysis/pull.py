"""Which gates close first: the pull on each kind of gate. ``python -m analysis.pull [--results results]``.

Adam divides a gradient by the root of its mean square, so that a logit moves in each step by about ``rate x mean / root
mean square`` of its gradient: between 0 (noise) and the whole rate (a steady pull), whatever the gradient's size. That
quotient is the *pull*, positive towards closing. It is measured at the start of a run, weights and logits held, over
batches and gate noise, for the task (with distillation) and for the task with the price of Eq. 7, on the pretrained
network of DeiT-Small's widths and depth (grid tune's) and on the tiny one of the digit study (grid sensitivity's), with
the reading and strengths of grid calibrate at Fig. 5. Writes ``<results>/pull/NETWORK.json``; notebook 16 draws them.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

import hiap
from analysis.records.results import REPOSITORY, Results
from analysis.studies import calibrate
from hiap import gated_vit
from hiap.backbones.seeds import derive
from hiap.beyond.tasks import distillation_loss
from hiap.data import loader as data
from hiap.files import write_json
from hiap.objective import penalties
from hiap.train.arguments import Parser, one_line_errors, results_root
from hiap.train.config import Config, ConfigError
from hiap.train.record import Folders, environment
from hiap.train.start import build
from slurm import grid

BATCHES = 64
KINDS = {"head_gate": "head", "value_gate": "value dimension", "block_gate": "FFN", "neuron_gate": "neuron"}
QUANTILES = {"low": 0.1, "middle": 0.5, "high": 0.9}


class Network(NamedTuple):
    title: str
    grid: str
    label: str


READING = (calibrate.GRID, f"{calibrate.TAKEN}-fig5")
NETWORKS = {
    "paper_shape": Network("ViT-S, pretrained (12 x 6 x 1,536)", "tune", "hiap-lr0.05-ramp0.3"),
    "tiny": Network("digit study's network (4 x 4 x 256)", "sensitivity", "default"),
}


def planned(network: Network, results: Path) -> Config:
    """The network's run, in that reading."""

    def config(name: str, label: str) -> Config:
        path = grid.find(name)
        settings = {"results": str(results), "device": "cpu"}
        runs = grid.expand(grid.load(path), path, settings)
        return next(run.config for run in runs if run.label == label and run.config.seed == 0)

    mine, reading = config(network.grid, network.label), config(*READING)
    chosen = {name: getattr(reading, name) for name in ("gates", "penalty", "feasibility")}
    distill = mine.distill.model_copy(update={"t_squared": reading.distill.t_squared})
    return mine.model_copy(update={**chosen, "distill": distill})


def measure(config: Config, batches: int = BATCHES) -> pd.DataFrame:
    """One row per gate: its ``kind``, the pull of the ``task`` and of task and price (``both``), and the ``price``'s
    gradient over the root mean square of the task's."""
    info = data.info(config.data, config.model.img_size)
    teacher = build(config.model, info.channels, info.classes, Folders.of(config), config.seed).model.eval()
    dense = build(config.model, info.channels, info.classes, Folders.of(config), config.seed).model
    gated = hiap.gate(dense, config.gates)
    gated_vit.anneal(gated, config.gates, 0.0)
    gates = dict(hiap.named_gates(gated.train()))
    logits = [gate.logit for gate in gates.values()]
    price = torch.autograd.grad(torch.stack(list(penalties(gated, config.penalty).values())).sum(), logits)
    blend = config.distill.model_dump(exclude={"precompute"})
    first, second = ([torch.zeros_like(logit) for logit in logits] for _ in range(2))
    for step, (images, labels) in enumerate(_images(config, batches)):
        torch.manual_seed(derive(config.seed, "step", 0, step))
        with torch.no_grad():
            taught = teacher(images)
        loss = distillation_loss(gated(images), labels, taught, **blend)
        for mean, square, gradient in zip(first, second, torch.autograd.grad(loss, logits), strict=True):
            mean += gradient / batches
            square += gradient**2 / batches
    frames = [_pulls(name, *parts) for name, *parts in zip(gates, first, second, price, strict=True)]
    return pd.concat(frames, ignore_index=True)


def _images(config: Config, count: int) -> Iterator[Any]:
    """The first batches of a run, over as many epochs as they take."""
    place: dict[str, Any] = {"batch_size": config.optim.batch_size, "seed": derive(config.seed, "data", 0)}
    size = config.model.img_size
    epochs = (data.train_batches(config.data, size, epoch=epoch, **place) for epoch in range(count))
    return itertools.islice(itertools.chain.from_iterable(epochs), count)


def _pulls(name: str, mean: Tensor, square: Tensor, price: Tensor) -> pd.DataFrame:
    """The second moment of task and price is the task's, moved: the price has no noise."""
    both, moved = mean + price, square + 2 * mean * price + price**2
    tiny = torch.finfo(mean.dtype).tiny
    columns = {"task": mean / (square + tiny).sqrt(), "both": both / (moved + tiny).sqrt()}
    columns["price"] = price / (square + tiny).sqrt()
    kind = KINDS[name.rpartition(".")[2]]
    return pd.DataFrame({"kind": kind, **{key: value.flatten().numpy() for key, value in columns.items()}})


def summary(gates: pd.DataFrame) -> list[dict[str, Any]]:
    """Per kind of gate how many there are, and the quantiles over them."""
    rows = []
    for kind in KINDS.values():
        mine = gates[gates["kind"] == kind]
        quantiles = {
            f"{column}_{name}": round(float(mine[column].quantile(q)), 4)
            for column in ("task", "both", "price")
            for name, q in QUANTILES.items()
        }
        rows.append({"kind": kind, "gates": len(mine), **quantiles})
    return rows


def load(results: Results) -> pd.DataFrame:
    """``summary`` of every network that was measured, with its ``network`` and on how many ``batches``."""
    rows = []
    for name, network in NETWORKS.items():
        path = results.root / "pull" / f"{name}.json"
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            rows += [{"network": network.title, **row, "batches": found["batches"]} for row in found["rows"]]
    return pd.DataFrame(rows)


@one_line_errors
def main(arguments: list[str] | None = None) -> int | None:
    parser = Parser(prog="python -m analysis.pull", description="Measure the pull on each gate.")
    parser.add_argument("--results", type=results_root, default=REPOSITORY / "results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name, network in NETWORKS.items():
        try:
            rows = summary(measure(planned(network, options.results)))
        except ConfigError as error:
            needed = f"python slurm/launch_grid.py --grid {network.grid} --results {options.results} --only dense"
            raise ConfigError(f"{error}; first: {needed}") from None
        here = environment(torch.device("cpu"), "python -m analysis.pull").model_dump()
        write_json(options.results / "pull" / f"{name}.json", {"batches": BATCHES, "rows": rows, "environment": here})
        print(pd.DataFrame(rows).to_string(index=False))
    return None


if __name__ == "__main__":
    sys.exit(main())
