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

import copy
from typing import Any

import torch
from torch import Tensor

from baselines.ranking import neuron_sums, prune_then_tune, value_dim_sums
from hiap import cost, ledger
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
    dims, place = cost.dims_of(model), pick_device(context.config.run.device)
    prices = ledger.true_prices(dims.tokens, dims.dim, dims.head_dim)
    scored = copy.deepcopy(model).eval().to(place)
    layers = [layer for b in scored.blocks for layer in (b.attn.qkv, b.attn.proj, b.mlp.fc1, b.mlp.fc2)]
    weights = [layer.weight for layer in layers]
    squares = {id(weight): torch.zeros_like(weight) for weight in weights}
    generator = torch.Generator().manual_seed(0)
    for images, _ in looked_at(context, options(context.config)["images"], place):
        for image in images:
            logits = scored(image[None]).float()
            loss = (logits * obs.directions(logits.detach(), None, generator)).sum()
            for weight, grad in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                squares[id(weight)] += grad.square()

    def score(weight: Any) -> Tensor:
        return (weight.square() * squares[id(weight)]).detach()

    value_dims = value_dim_sums(scored, score) / (prices.value_dim + prices.head / dims.head_dim)
    return Ranking(dims=value_dims.cpu(), neurons=(neuron_sums(scored, score) / prices.neuron).cpu())
