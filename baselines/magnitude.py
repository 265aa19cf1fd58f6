"""Magnitude head pruning, one-shot or iterative.

Source: Michel et al., "Are Sixteen Heads Really Better than One?" (NeurIPS 2019), and the head-pruning rows that the
HiAP paper compares with; the classic multi-stage pipeline.
Algorithm: score each head by the l2 norm of its slices of the value and output projections; remove the lowest until
the MACs meet the target, wherever they are (``budget.head_ranking: global``) or the same share of each layer
(``layer``), at once or in ``budget.rounds`` steps with training between; fine-tune.
Deviations: Michel et al. score by a head's gradient; here it is magnitude, as the name says. Heads hold a limited share
of the MACs (38.6 % of what can be pruned in DeiT-S), so large cuts are out of reach and refused. So that the result
meets the target as closely as every other method's, the one head at the boundary is narrowed instead of removed: it
keeps its strongest dimensions, in Q, K and V alike. One head may be some per cent of a network.
"""

from __future__ import annotations

from typing import Any

from baselines.ranking import global_rank, prune_then_tune, value_dim_sums, within_layer_rank
from hiap.budget.selection import Ranking
from hiap.train.config import Config
from hiap.train.stages import Context, Stage

KIND = "ranking"


def stages(config: Config) -> list[Stage]:
    return prune_then_tune(config, rank)


def rank(model: Any, context: Context) -> Ranking:
    squares = value_dim_sums(model, lambda weight: weight.detach().square())
    per_layer = context.config.budget.head_ranking == "layer"
    heads = (within_layer_rank if per_layer else global_rank)(squares.sum(-1))
    within = within_layer_rank(squares.flatten(0, 1)).view_as(squares)
    # Heads differ by 1 / their number, a head's dimensions by less: no dimension leaves before a weaker head has gone.
    return Ranking(dims=heads[..., None] + within / (heads.numel() + 1), cut_qk=True)
