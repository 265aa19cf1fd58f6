"""A peer that nobody here wrote: Torch-Pruning (https://github.com/VainF/Torch-Pruning), the development extra.

Used for speed side by side at equal MACs, on random weights, because time does not depend on them. Settings: L2-norm
importance, global and isomorphic ranking, widths rounded to 8, the embedding width kept (classifier and fc2 are never
asked to lose outputs), head dimensions pruned alike in all heads of a layer, as its grouping of q, k and v demands.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from baselines.ranking import keep_best
from baselines.uniform import rank
from hiap import cost, gated_vit
from hiap.config import Config, ConfigError, GateConfig
from hiap.extraction import extract
from hiap.method import Context

STEPS = 100  # Torch-Pruning approaches its ratio in this many steps; we stop at the first that meets the MACs


def torch_pruning_at(model: Any, macs: float) -> Any:
    """``model`` pruned in place until it has at most ``macs`` MACs."""
    try:
        import torch_pruning as tp
    except ImportError:
        raise ConfigError(
            "mode 'peer' needs torch-pruning: install the development extra, hiap-reproduction[dev]"
        ) from None

    channels, (height, width) = model.patch_embed.proj.in_channels, model.patch_embed.img_size
    ignored: list[nn.Module] = [model.head, *(block.mlp.fc2 for block in model.blocks)]
    for block in model.blocks:
        block.attn.fused_attn = False  # its tracer follows plain matrix products
    pruner = tp.pruner.BasePruner(
        model,
        torch.zeros(1, channels, height, width),
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        isomorphic=True,
        pruning_ratio=0.9,
        iterative_steps=STEPS,
        ignored_layers=ignored,
        num_heads={block.attn.qkv: block.attn.num_heads for block in model.blocks},
        round_to=8,
    )
    for _ in range(STEPS):
        pruner.step()
        for block in model.blocks:  # it changes the layers, not the numbers that timm's attention reshapes by
            attn = block.attn
            attn.num_heads = pruner.num_heads[attn.qkv]
            attn.attn_dim = attn.qkv.out_features // 3
            attn.head_dim = attn.attn_dim // attn.num_heads
            attn.fused_attn = True
        if cost.macs(model, (channels, height, width)) <= macs:
            return model
    raise ConfigError(f"Torch-Pruning does not reach {macs / 1e9:.2f} G MACs")


def uniform_at(model: Any, macs: int) -> Any:
    """The network that uniform l1 ranking leaves at ``macs`` MACs, extracted by this project."""
    image = (model.patch_embed.proj.in_channels, *model.patch_embed.img_size)
    gated = gated_vit.gate(model, GateConfig())
    gated_vit.set_masks(gated, keep_best(cost.dims_of(model), rank(model, Context(Config(), macs, image)), macs))
    return extract(gated.eval())
