"""First-order Taylor importance per MAC saved, one-shot or iterative.

Source: Molchanov et al., "Importance Estimation for Neural Network Pruning" (CVPR 2019), on which NViT and SAViT build.
Algorithm: from the gradient of the cross-entropy over ten training batches, score each value dimension and neuron by
the sum of |weight x gradient| over its weights; divide by the MACs that removing it saves; remove the lowest anywhere
until the MACs meet the target, at once or in ``budget.rounds`` steps with training between; fine-tune.
Deviations: a head is not a unit, it goes with its last dimension, and its Q, K cost is shared among its dimensions. The
gradient is of the mean loss over the batches. The images scored are billed.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F

from baselines.ranking import importance, per_mac, prune_then_tune, scored_copy
from hiap.backbones.seeds import derive
from hiap.budget.selection import Ranking
from hiap.data import loader as data
from hiap.train.config import Config
from hiap.train.device import pick_device
from hiap.train.stages import Context, Stage

KIND = "ranking"

BATCHES = 10


def stages(config: Config) -> list[Stage]:
    return prune_then_tune(config, rank)


def rank(model: Any, context: Context) -> Ranking:
    return per_mac(with_gradients(model, context), importance)


def with_gradients(model: Any, context: Context) -> Any:
    """Return a copy of ``model`` whose weights hold the gradients of the cross-entropy over ``BATCHES`` training
    batches."""
    config = context.config
    device = pick_device(config.run.device)
    scored = scored_copy(model, device)
    batches = data.train_batches(
        config.data,
        config.model.img_size,
        batch_size=config.optim.batch_size,
        seed=derive(config.seed, "rank"),
        epoch=0,
        workers=config.run.workers,
    )
    for _, (images, targets) in zip(range(BATCHES), batches, strict=False):
        (F.cross_entropy(scored(images.to(device)), targets.to(device)) / BATCHES).backward()
        context.scored += len(images)
    return scored.to(model.pos_embed.device)
