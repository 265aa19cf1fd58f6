"""Heads and neurons by the size of what they put out, on training images: a method of one's own.

hiap train method=examples/own_baseline.py options.images=64 model.weights=run:<dense run> budget.target_macs=0.6
"""

import copy

import torch

from baselines.ranking import prune_then_tune
from hiap.budget.selection import Ranking
from hiap.train.stages import looked_at, options

KIND = "ranking"  # ranks units, removes them, fine-tunes
OPTIONS = {"images": 64}  # how many training images are looked at


def stages(config):
    return prune_then_tune(config, lambda model, context: rank(model, context, options(config)["images"]))


@torch.no_grad()
def rank(model, context, count):
    """Neurons by mean activation times the norm of what they write; each layer by itself."""
    model = copy.deepcopy(model).cpu().eval()
    sums = [torch.zeros(block.mlp.fc2.in_features) for block in model.blocks]

    def listen(index):
        def hook(module, inputs, output):
            sums[index] += inputs[0].abs().sum((0, 1)) * module.weight.norm(dim=0)

        return hook

    for index, block in enumerate(model.blocks):
        block.mlp.fc2.register_forward_hook(listen(index))
    for images, _ in looked_at(context, count, torch.device("cpu")):
        model(images)
    return Ranking(neurons=torch.stack([one / one.mean() for one in sums]))
