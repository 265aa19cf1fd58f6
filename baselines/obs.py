"""Structured optimal brain surgeon: each unit costs what its removal costs after the others have made up for it.

Source: Kurtic et al., "ZipLM" (arXiv 2302.04089), and Frantar and Alistarh, "Optimal Brain Compression" (arXiv
2208.11580).
Algorithm: on ``options.images`` training images, second moments of the inputs of each output map (``hiap.beyond.obs``);
greedy removal per layer with exact updates; the errors, per MAC saved, are the keys by which units of all layers
compete; remove the lowest until the MACs meet the target, at once or in ``budget.rounds`` steps with training between;
fine-tune. With ``budget.correct`` the others do make up for what is gone, by least squares.
Deviations: whole layers are not timed and no combination of them is searched, prices are those of the target. Squared
errors are weighted per output channel by the Fisher information of the network's own answers, so that no
label is needed. A head is not a unit, it goes with its last dimension. The images looked at are billed.
"""

from __future__ import annotations

import copy
from typing import Any

from baselines.ranking import prune_then_tune
from hiap.beyond import obs
from hiap.selection import Ranking
from hiap.train.config import Config, ConfigError
from hiap.train.device import pick_device
from hiap.train.stages import Context, Stage, looked_at, options

KIND = "ranking"
# Training images to rank by, and whose answers weigh the squared errors: the network's "own" (no label is looked at),
# the images' "labels", or "none".
OPTIONS = {"images": 512, "fisher": "own"}


def stages(config: Config) -> list[Stage]:
    chosen = options(config)
    if chosen["images"] < 1:
        raise ConfigError(f"options.images {chosen['images']}: expected at least one")
    if chosen["fisher"] not in obs.FISHER:
        raise ConfigError(f"options.fisher {chosen['fisher']!r}: expected {', '.join(obs.FISHER)}")
    return prune_then_tune(config, rank)


def rank(model: Any, context: Context) -> Ranking:
    chosen, device = options(context.config), pick_device(context.config.run.device)
    images = looked_at(context, chosen["images"], device)
    prices = context.target.prices if context.target else None
    return obs.rank(copy.deepcopy(model).to(device), images, chosen["fisher"], prices=prices)
