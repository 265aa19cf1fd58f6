"""Structured optimal brain surgeon: each unit costs what its removal costs after the others have made up for it.

Source: Kurtic et al., "ZipLM" (arXiv 2302.04089), and Frantar and Alistarh, "Optimal Brain Compression" (arXiv
2208.11580).
Algorithm: on ``options.images`` training images, second moments of the inputs of each output map (``hiap.beyond.obs``);
greedy removal per layer with exact updates; the errors, per MAC saved, are the keys by which units of all layers
compete; remove the lowest until the MACs meet the target, at once or in ``budget.rounds`` steps with training between;
fine-tune. With ``budget.correct`` the others do make up for what is gone, by least squares.
Deviations: whole layers are not timed and no combination of them is searched, prices are those of the target. Squared
errors are weighted per output channel by the Fisher information of the network's own answers, so that no label is
needed. A head is not a unit, it goes with its last dimension. With ``options.queries`` (ours) Q and K lose dimensions
too, which nothing else here may cut (``hiap.beyond.query_key``). The images looked at are billed.
"""

from __future__ import annotations

import copy
from typing import Any

from baselines.ranking import FixedGate, Round, prune_then_tune, require_plain
from hiap import gated_vit
from hiap.backbones.evening import trimmed
from hiap.beyond import obs, query_key
from hiap.budget.selection import Ranking
from hiap.train.config import Config, ConfigError
from hiap.train.device import pick_device
from hiap.train.stages import Context, Stage, corrected, looked_at, options, remove

KIND = "ranking"
# Training images to rank by, and whose answers weigh the squared errors: the network's "own" (no label is looked at),
# the images' "labels", or "none". Whether Q and K lose dimensions too.
OPTIONS = {"images": 512, "fisher": "own", "queries": False}


def stages(config: Config) -> list[Stage]:
    chosen = options(config)
    if chosen["images"] < 1:
        raise ConfigError(f"options.images {chosen['images']}: expected at least one")
    if chosen["fisher"] not in obs.FISHER:
        raise ConfigError(f"options.fisher {chosen['fisher']!r}: expected {', '.join(obs.FISHER)}")
    if not chosen["queries"]:
        return prune_then_tune(config, rank)
    if config.budget.rounds > 1 or config.budget.noise or chosen["fisher"] == "none":
        raise ConfigError("options.queries: expected budget.rounds 1, no noise, and options.fisher 'own' or 'labels'")
    return [Narrower("fine-tune", config.optim.epochs, rank, 1.0)]


def rank(model: Any, context: Context) -> Ranking:
    return _ranked(model, context)[0]


def _ranked(model: Any, context: Context) -> tuple[Ranking, list[query_key.Queries]]:
    chosen, device = options(context.config), pick_device(context.config.run.device)
    images = looked_at(context, chosen["images"], device)
    prices = context.target.prices if context.target else None
    seen = copy.deepcopy(model).to(device)
    queries = query_key.watch(seen) if chosen["queries"] else []
    return obs.rank(seen, images, chosen["fisher"], prices=prices, also=queries), queries


class Narrower(Round):
    """A round that narrows Q and K too."""

    def prepare(self, model: Any, context: Context) -> Any:
        require_plain(model)
        target = context.target
        assert target is not None
        ranking, queries = _ranked(model, context)
        target.require_reachable(ranking)
        place = model.pos_embed.device
        bases = [one.basis().to(place) for one in queries]
        kept, widths = query_key.keep_best(target, ranking, bases)
        narrow = query_key.narrowed(model, bases, widths) if bases else model
        gated = gated_vit.gate(narrow, context.config.gates.model_copy(update={"dims": "v"}), kind=FixedGate)
        gated_vit.set_masks(gated, kept)
        return corrected(trimmed(remove(gated)), model, context)
