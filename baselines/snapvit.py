"""SnapViT's local score: what removing a unit costs by the diagonal of the Hessian, from gradients without labels.

Source: Simoncini et al., "Elastic ViTs from Pretrained Models without Retraining" (NeurIPS 2025, arXiv 2510.17700).
Algorithm: over ``options.images`` training images, the mean square of each weight's gradient stands for the diagonal of
the Hessian; a unit's score is the sum of weight^2 x that over its weights; divide by the MACs that removing it saves;
remove the lowest anywhere until the MACs meet the target, at once or in ``budget.rounds`` steps with training between;
fine-tune.
Deviations: the local score alone. The paper's loss is DINO's over several views, here it is the network's own answer
(its Fisher information), since there is a classifier; the factors between blocks that an evolutionary search finds are
left out; a head goes with its last dimension. Each image costs a backward pass of its own.
"""

from __future__ import annotations

from typing import Any

import torch

from baselines.ranking import per_mac, prune_then_tune, scored_copy
from hiap.beyond import obs
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
    layers = [layer for b in scored.blocks for layer in (b.attn.qkv, b.attn.proj, b.mlp.fc1, b.mlp.fc2)]
    weights = [layer.weight for layer in layers]
    squares = {id(weight): torch.zeros_like(weight) for weight in weights}
    generator = torch.Generator().manual_seed(0)
    for images, _ in looked_at(context, options(context.config)["images"], device):
        for image in images:
            logits = scored(image[None]).float()
            loss = (logits * obs.directions(logits.detach(), None, generator)).sum()
            for weight, grad in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                squares[id(weight)] += grad.square()
    return per_mac(scored, lambda weight: (weight.square() * squares[id(weight)]).detach())
