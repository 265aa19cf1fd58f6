"""What is left right after a cut, before any training, without and with the least squares of ``hiap.correct``.

``python -m analysis.after_cut [--results results]`` cuts grid tune's dense network (the pretrained ViT-S of the paper's
shape) once by each ranking and to each budget, corrects a copy on ``IMAGES`` training images, and measures both on the
grid's validation images: nothing is tuned on them, and the test images stay untouched. Writes
``<results>/after_cut/paper_shape.json``; notebook 17 draws it.
"""

from __future__ import annotations

import copy
import json
import sys
from typing import Any

import pandas as pd
import torch

from analysis.records.results import REPOSITORY, Results
from hiap import cost
from hiap.data import loader as data
from hiap.files import write_json
from hiap.selection import target_of
from hiap.train.arguments import Parser, results_root, told
from hiap.train.config import Config, ConfigError, from_dict, merge
from hiap.train.evaluate import evaluate
from hiap.train.record import Folders, environment
from hiap.train.stages import Context, corrected, stages
from hiap.train.start import build
from slurm import grid

GRID, LABELS = "tune", ("uniform-lr1e-4", "l1-lr1e-4", "taylor-lr1e-4", "peer-lr1e-4")
BUDGETS = (0.67, 0.5, 0.35)
IMAGES = 512
FILE = "after_cut/paper_shape.json"


def planned(results: str) -> list[Config]:
    """The runs of grid tune that cut at once, one of each method."""
    path = grid.find(GRID)
    runs = grid.expand(grid.load(path), path, {"results": results, "device": "cpu"})
    return [run.config for run in runs if run.label in LABELS]


def measure(config: Config) -> list[dict[str, Any]]:
    """Rows of one method: ``share`` asked for and ``macs`` left of dense, top-1 (%) ``cut`` and ``corrected``."""
    info = data.info(config.data, config.model.img_size)
    dense = build(config.model, info.channels, info.classes, Folders.of(config)).model.eval()
    rows = []
    for share in BUDGETS:
        asked = from_dict(merge(config.model_dump(), {"budget": {"target_macs": share, "correct": 0}}))
        context = Context(asked, target_of(dense, share, None))
        small = stages(asked)[0].prepare(copy.deepcopy(dense), context).eval()
        row = {"method": config.method, "share": share, "macs": cost.macs(small, cost.image_of(small))}
        row["cut"] = _top1(small, config)
        wanted = Context(from_dict(merge(asked.model_dump(), {"budget": {"correct": IMAGES}})))
        row["corrected"] = _top1(corrected(small, dense, wanted), config)
        rows.append({**row, "images": info.test})
    return rows


def _top1(model: Any, config: Config) -> float:
    batches = data.test_batches(config.data, config.model.img_size, batch_size=250)
    return evaluate(model, batches, torch.device("cpu"), config.optim.precision).top1


def load(results: Results) -> pd.DataFrame:
    """The rows that were measured; empty where none were."""
    path = results.root / FILE
    return pd.DataFrame(json.loads(path.read_text())["rows"]) if path.exists() else pd.DataFrame()


def main(arguments: list[str] | None = None) -> int:
    return told(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int | None:
    parser = Parser(prog="python -m analysis.after_cut", description="Accuracy right after a cut.")
    parser.add_argument("--results", type=results_root, default=REPOSITORY / "results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        rows = [row for config in planned(str(options.results)) for row in measure(config)]
    except ConfigError as error:
        needed = f"python slurm/launch_grid.py --grid {GRID} --results {options.results} --only dense"
        raise ConfigError(f"{error}; first: {needed}") from None
    here = environment(torch.device("cpu"), "python -m analysis.after_cut").model_dump()
    write_json(options.results / FILE, {"corrected_on": IMAGES, "rows": rows, "environment": here})
    print(pd.DataFrame(rows).to_string(index=False))
    return None


if __name__ == "__main__":
    sys.exit(main())
