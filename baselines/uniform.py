"""Uniform ratio: the same share of every layer goes.

Source: the "Uniform-Ratio" row of Table 3 of the HiAP paper, which does not say how units are ranked within a layer.
Algorithm: rank the FFN neurons of each layer, and the value dimensions of each layer, by the l1 norm of their weights;
keep the best share of each, the same share everywhere, such that the MACs meet the target; fine-tune.
Deviations: none known; heads are not removed as such, they only shrink.
"""

from __future__ import annotations

from typing import Any

from baselines.ranking import l1_neurons, l1_value_dims, prune_then_tune, within_layer_rank
from hiap.budget.selection import Ranking
from hiap.train.config import Config
from hiap.train.stages import Context, Stage

KIND = "ranking"


def stages(config: Config) -> list[Stage]:
    return prune_then_tune(config, rank)


def rank(model: Any, context: Context) -> Ranking:
    return Ranking(dims=within_layer_rank(l1_value_dims(model)), neurons=within_layer_rank(l1_neurons(model)))
