"""Random: what any ranking must beat.

Source: none needed.
Algorithm: order all FFN neurons and value dimensions at random; keep the first that fit the target; fine-tune.
Deviations: none possible. The order comes from the run's seed.
"""

from __future__ import annotations

from typing import Any

import torch

from baselines.ranking import prune_then_tune
from hiap import cost
from hiap.backbones.seeds import derive
from hiap.budget.selection import Ranking
from hiap.train.config import Config
from hiap.train.stages import Context, Stage

KIND = "ranking"


def stages(config: Config) -> list[Stage]:
    return prune_then_tune(config, rank)


def rank(model: Any, context: Context) -> Ranking:
    dims = cost.dims_of(model)
    generator = torch.Generator().manual_seed(derive(context.config.seed, "rank"))
    return Ranking(
        dims=torch.rand(dims.depth, dims.heads, dims.head_dim, generator=generator),
        neurons=torch.rand(dims.depth, dims.hidden, generator=generator),
    )
