"""HiAP with a target whose gates start in the order of structured OBS: ours, not the paper's.

Source: none; HiAP's single phase from the ranking of ``obs``.
Algorithm: structured OBS ranks the value dimensions and neurons of all layers on ``options.images`` training images.
The first logit of the unit that is worth least is ``options.spread`` below ``gates.init_logit``, that of the most
valuable one as much above, the others' evenly between. From there on HiAP's phase, unchanged.
Deviations: none possible. Gates of heads and FFN blocks start where HiAP's do. The images looked at are billed.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from baselines.ranking import require_plain
from hiap.backbones.evening import even
from hiap.beyond import obs
from hiap.train.config import Config, ConfigError
from hiap.train.device import pick_device
from hiap.train.stages import Context, SinglePhase, Stage, looked_at, options

OPTIONS = {"images": 512, "spread": 2.0}


def stages(config: Config) -> list[Stage]:
    chosen = options(config)
    if not 0 < chosen["spread"] < config.gates.start("micro"):
        raise ConfigError(
            f"options.spread {chosen['spread']:g}: expected more than 0 and less than where gates start, "
            f"{config.gates.start('micro'):g}, so that all start open"
        )
    if chosen["images"] < 1:
        raise ConfigError(f"options.images {chosen['images']}: expected at least one")
    return [Ranked(config)]


class Ranked(SinglePhase):
    def prepare(self, model: Any, context: Context) -> Any:
        chosen, device = options(context.config), pick_device(context.config.run.device)
        assert context.target is not None
        whole = even(model)  # zeros where units are gone, which are worth least
        require_plain(whole)
        images = looked_at(context, chosen["images"], device)
        found = obs.rank(copy.deepcopy(whole).to(device), images, prices=context.target.prices)
        assert found.dims is not None
        assert found.neurons is not None
        gated = super().prepare(model, context)
        gates = [gate for block in gated.blocks for gate in (block.attn.value_gate, block.mlp.neuron_gate)]
        keys = [key for pair in zip(found.dims, found.neurons, strict=True) for key in pair]
        place = torch.cat([key.flatten() for key in keys]).argsort().argsort()
        ways = (2 * place / (len(place) - 1) - 1) * chosen["spread"]
        with torch.no_grad():
            for gate, way in zip(gates, ways.split([key.numel() for key in keys]), strict=True):
                gate.logit += way.view_as(gate.logit).to(gate.logit)
        return gated
