"""Torch-Pruning (https://github.com/VainF/Torch-Pruning), a library that nobody here wrote: the development extra.

Used for speed side by side at equal MACs, on random weights, because time does not depend on them, and as a baseline:
pruned, then fine-tuned as the others are. Settings: L2-norm importance or, with ``options.importance=taylor``, its
GroupTaylorImportance on the gradients that method taylor has; global and isomorphic ranking, the embedding
width kept (classifier and fc2 are never asked to lose outputs), head dimensions pruned alike in all heads of a layer,
as its grouping of q, k and v demands. For speed, widths are rounded to 8. Q and K lose dimensions too, and timm scales
by the width that is left, so the softmax temperature changes, as for every user of it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from baselines.ranking import require_plain
from baselines.taylor import with_gradients
from hiap import cost
from hiap.backbones.pruned import PrunedAttention, PrunedBlock
from hiap.budget.prices import million, priced
from hiap.budget.selection import Target
from hiap.train.config import Config, ConfigError
from hiap.train.stages import Context, Stage, corrected, options

NAME = "peer"  # as in the ids of old runs
KIND = "cutting"
OPTIONS = {"importance": "magnitude"}  # or "taylor"

# Torch-Pruning approaches its ratio in this many steps, so that one of its groups is a dimension or a few neurons.
STEPS = 300


class TorchPruning(Stage):
    """Torch-Pruning at once, then training."""

    def prepare(self, model: Any, context: Context) -> Any:
        assert context.target is not None
        require_plain(model)
        multiple, importance = context.target.multiple, options(context.config)["importance"]
        scored = with_gradients(model, context) if importance == "taylor" else copy.deepcopy(model)
        scored.requires_grad_()  # Torch-Pruning passes over what is frozen
        pruned = prune_to(scored, context.target, multiple if multiple > 1 else None, importance)
        pruned.zero_grad()
        small = as_extracted(pruned)
        for name, weight in small.named_parameters():
            weight.requires_grad_(model.get_parameter(name).requires_grad)
        return corrected(small, model, context)


def stages(config: Config) -> list[Stage]:
    if (given := options(config)["importance"]) not in ("magnitude", "taylor"):
        raise ConfigError(f"options.importance {given!r}: expected magnitude or taylor")
    return [TorchPruning("fine-tune", config.optim.epochs)]


@torch.no_grad()
def as_extracted(model: Any) -> Any:
    """Return what Torch-Pruning left, in this project's modules, which can be saved: same function, same layout of q,
    k, v."""
    blocks = []
    for block in model.blocks:
        attn, width = block.attn, block.attn.head_dim
        pruned = PrunedAttention(
            attn.qkv.in_features,
            [width] * attn.num_heads,
            [width] * attn.num_heads,
            width**-0.5,
            qkv_bias=attn.qkv.bias is not None,
            proj_bias=attn.proj.bias is not None,
        )
        pruned.qkv.load_state_dict(attn.qkv.state_dict())
        pruned.proj.load_state_dict(attn.proj.state_dict())
        names = ("norm1", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2")
        parts = {name: getattr(block, name) for name in names}
        blocks.append(PrunedBlock({**parts, "attn": pruned}, {"attn_constant": None, "mlp_constant": None}))
    model.blocks = nn.Sequential(*blocks)
    return model


def prune_to(model: Any, target: Target, round_to: int | None = 8, importance: str = "magnitude") -> Any:
    """Prune ``model`` in place until it meets the target; return it. By importance 'taylor' weights have gradients."""
    try:
        import torch_pruning as tp
    except ImportError:
        raise ConfigError("torch-pruning is not here: pip install torch-pruning") from None

    image, prices = cost.image_of(model), target.prices
    column = prices.value_dim + prices.head // target.dims.head_dim

    def size() -> int:
        if prices.unit == "ps":
            return priced(model, prices, target.dims.head_dim)
        return cost.macs(model, image) if prices.unit == "MACs" else cost.params(model)

    ignored: list[nn.Module] = [model.head, *(block.mlp.fc2 for block in model.blocks)]
    by = (
        tp.importance.GroupTaylorImportance() if importance == "taylor" else tp.importance.GroupMagnitudeImportance(p=2)
    )
    for block in model.blocks:
        block.attn.fused_attn = False  # its tracer follows plain matrix products
    pruner = tp.pruner.BasePruner(
        model,
        torch.zeros(1, *image, device=model.head.weight.device),
        importance=by,
        global_pruning=True,
        isomorphic=True,
        pruning_ratio=0.9,
        iterative_steps=STEPS,
        ignored_layers=ignored,
        num_heads={block.attn.qkv: block.attn.num_heads for block in model.blocks},
        round_to=round_to,
    )
    for block in model.blocks:
        block.attn.fused_attn = True
    while pruner.current_step < STEPS:
        for group in pruner.step(interactive=True):
            left = size()
            if left <= target.amount:
                return model
            # A dimension goes from every head of a layer at once, which is some per mille of a small network. So that
            # the result is near its target, the one that would overshoot stays, and neurons do the rest.
            if left - column * _attention_columns(group, model) >= target.amount:
                group.prune()
                _tell_attention(model, pruner.num_heads)
    raise ConfigError(
        f"Torch-Pruning does not reach a target of {target.amount / 1e6:.2f} {million(prices)}; "
        f"it stopped at {size() / 1e6:.2f}"
    )


def _attention_columns(group: Any, model: Any) -> int:
    """How many columns of an output projection the group removes; as many rows of q, k and v go along."""
    projections = {block.attn.proj for block in model.blocks}
    return sum(len(idxs) for dependency, idxs in group if dependency.target.module in projections)


def _tell_attention(model: Any, num_heads: dict[nn.Module, int]) -> None:
    """Torch-Pruning changes the layers, not the numbers that timm's attention reshapes by."""
    for block in model.blocks:
        attn = block.attn
        attn.num_heads = num_heads[attn.qkv]
        attn.attn_dim = attn.qkv.out_features // 3
        attn.head_dim = attn.attn_dim // attn.num_heads
