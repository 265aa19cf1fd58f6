"""l1-structured pruning of the FFN.

Source: the "l1-Structured (FFN)" rows of Table 3 of the HiAP paper, after Li et al., "Pruning Filters for Efficient
ConvNets" (ICLR 2017).
Algorithm: score each FFN neuron by the l1 norm of its fc1 row and fc2 column; remove the lowest until the MACs meet the
target, the same share in each layer (``budget.ranking: layer``) or wherever they are lowest (``global``); fine-tune.
Deviations: the paper does not say which of the two rankings it used; per layer is our default, as in the source.
"""

from __future__ import annotations

from typing import Any

from baselines.ranking import l1_neurons, prune_then_tune, within_layer_rank
from hiap.budget.selection import Ranking
from hiap.train.config import Config
from hiap.train.stages import Context, Stage

KIND = "ranking"


def stages(config: Config) -> list[Stage]:
    return prune_then_tune(config, rank)


def rank(model: Any, context: Context) -> Ranking:
    scores = l1_neurons(model)
    return Ranking(neurons=within_layer_rank(scores) if context.config.budget.ranking == "layer" else scores)
