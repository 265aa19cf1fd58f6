"""Same sizes: a control. As many units per layer as another run's network has kept, but drawn at random.

Source: the shuffled masks of Frankle et al., "Pruning Neural Networks at Initialization: Why Are We Missing the Mark?"
(ICLR 2021): if random units at the same sizes do as well, a method has found sizes and not units.
Algorithm: ``budget.target_macs: run:<run_id>`` names the other run. Per layer, as many heads, value dimensions in each
and neurons as its network has are drawn at random from the run's seed; all others are removed at once, and what is left
is fine-tuned. With ``options.ramp`` they close one after the other, in random order, over the first ``budget.ramp`` of
the training, as HiAP's wanted MACs fall, and are removed at its end.
Deviations: none possible. Which of a layer's heads gets which of the widths is drawn too. If the other run's MACs are
met only with Q and K as narrow as V (ViT-Slim, magnitude), Q and K are narrowed too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from baselines.ranking import FixedGate, Round
from hiap import gated_vit
from hiap.backbones.seeds import derive
from hiap.gated_vit import BlockMask
from hiap.train.config import Config, ConfigError
from hiap.train.record import Folders, read
from hiap.train.stages import Context, Stage, corrected, options, remove

KIND = "cutting"
OPTIONS = {"ramp": False}


def stages(config: Config) -> list[Stage]:
    if not str(config.budget.target_macs).startswith("run:"):
        raise ConfigError("method 'same_sizes': budget.target_macs must be run:<run_id>, the run whose sizes are taken")
    return [(Ramped if options(config)["ramp"] else Drawn)(config)]


class Drawn(Round):
    """Removes what is not drawn and trains the rest."""

    def __init__(self, config: Config):
        super().__init__("fine-tune", config.optim.epochs, rank=None, share=1.0)

    def kept(self, model: Any, context: Context) -> tuple[list[BlockMask], str]:
        config, block = context.config, model.blocks[0]
        shape = read(Folders.of(config).referred(str(config.budget.target_macs)).record).shape or []
        generator = torch.Generator().manual_seed(derive(config.seed, "rank"))
        heads, width, neurons = block.attn.num_heads, block.attn.head_dim, block.mlp.fc1.out_features
        kept = []
        for left in shape:
            dims = torch.zeros(heads, width, dtype=torch.bool)
            for head, count in zip(_some(heads, len(left.head_dims), generator), left.head_dims, strict=True):
                dims[head, _some(width, count, generator)] = True
            stays = torch.zeros(neurons, dtype=torch.bool)
            stays[_some(neurons, left.neurons, generator)] = True
            kept.append(BlockMask(heads=dims.any(1), dims=dims, ffn=stays.any(), neurons=stays))
        target = context.target
        if target is None or target.cost_of(kept) <= target.amount:
            return kept, "v"
        if target.cost_of(kept, cut_qk=True) <= target.amount:  # the other run's dimensions went in Q and K too
            return kept, "qkv"
        raise ConfigError(
            f"method 'same_sizes': with as many heads, value dimensions and neurons it would cost "
            f"{target.cost_of(kept):,}, the other run {target.amount:,}; expected one whose Q and K are whole, or as "
            "wide as V"
        )


def _some(count: int, chosen: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(count, generator=generator)[:chosen]


class Ramped(Drawn):
    """Closes what is not drawn one after the other while it trains."""

    def prepare(self, model: Any, context: Context) -> Any:
        self.context, self.ramp = context, context.config.budget.ramp
        gated = self.masked(model, context, FixedGate)
        self.last = [BlockMask(*(mask.cpu() for mask in vars(block).values())) for block in gated_vit.masks(gated)]
        generator = torch.Generator().manual_seed(derive(context.config.seed, "ramp"))
        self.when = [  # the share of the ramp after which a unit closes; 2: never
            (
                torch.rand(block.dims.shape, generator=generator) + 2 * block.dims,
                torch.rand(block.neurons.shape, generator=generator) + 2 * block.neurons,
            )
            for block in self.last
        ]
        return gated

    def anneal(self, model: Any, progress: float) -> float | None:
        done = min(1.0, progress / self.ramp)
        now = [(dims > done, neurons > done) for dims, neurons in self.when]
        gated_vit.set_masks(model, [BlockMask(d.any(1), d, n.any(), n) for d, n in now])
        return None

    def harden(self, model: Any) -> None:
        gated_vit.set_masks(model, self.last)

    def finish(self, model: Any) -> Any:
        return corrected(remove(model), model, self.context)
