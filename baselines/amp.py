"""AMP's criterion: Taylor importance of the answers' entropy, so that no label is needed.

Source: Shen, "Adaptive MLP Pruning for Large Vision Transformers" (arXiv 2603.08100).
Algorithm: from the gradient of the entropy of the network's own answers over ``options.images`` training images, score
each unit by the sum of |weight x gradient| over its weights; divide by the MACs that removing it saves; remove the
lowest anywhere until the MACs meet the target, at once or in ``budget.rounds`` steps with training between; fine-tune.
Deviations: the criterion alone. The paper prunes neurons only and finds each layer's number by a binary search on its
own measure; here value dimensions are ranked too, and one threshold over all layers meets the target, as for Taylor.
"""

from __future__ import annotations

from typing import Any

from baselines.ranking import importance, per_mac, prune_then_tune, scored_copy
from hiap.budget.selection import Ranking
from hiap.train.config import Config, ConfigError
from hiap.train.device import pick_device
from hiap.train.stages import Context, Stage, looked_at, options

KIND = "ranking"
OPTIONS = {"images": 512}  # training images to rank by


def stages(config: Config) -> list[Stage]:
    if options(config)["images"] < 1:
        raise ConfigError(f"options.images {options(config)['images']}: expected at least one")
    return prune_then_tune(config, rank)


def rank(model: Any, context: Context) -> Ranking:
    device = pick_device(context.config.run.device)
    scored = scored_copy(model, device)
    for images, _ in looked_at(context, options(context.config)["images"], device):
        answers = scored(images).float().log_softmax(-1)
        (-(answers.exp() * answers).sum()).backward()  # of a sum, so that a last, smaller batch counts as it should
    return per_mac(scored, importance)
