"""A peer that nobody here wrote: Torch-Pruning (https://github.com/VainF/Torch-Pruning), the development extra.

Used for speed side by side at equal MACs, on random weights, because time does not depend on them, and as a baseline:
pruned, then fine-tuned as the others are. Settings: L2-norm importance, global and isomorphic ranking, the embedding
width kept (classifier and fc2 are never asked to lose outputs), head dimensions pruned alike in all heads of a layer,
as its grouping of q, k and v demands. For speed, widths are rounded to 8. Q and K lose dimensions too, and timm scales
by the width that is left, so the softmax temperature changes, as for every user of it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from baselines.uniform import rank
from hiap import cost, gated_vit
from hiap.config import Config, ConfigError, GateConfig
from hiap.extraction import PrunedAttention, PrunedBlock, extract
from hiap.method import Context, Stage
from hiap.selection import keep_best

# Torch-Pruning approaches its ratio in this many steps; we stop at the first that meets the MACs. Its smallest cut in
# attention is one dimension of every head of a layer, so it may fall short by that much however small the steps are.
STEPS = 300


class Peer(Stage):
    """Torch-Pruning at once, then training."""

    def prepare(self, model: Any, context: Context) -> Any:
        assert context.target_macs is not None
        return as_extracted(torch_pruning_at(copy.deepcopy(model), context.target_macs, round_to=None))


def stages(config: Config) -> list[Stage]:
    return [Peer("fine-tune", config.optim.epochs)]


@torch.no_grad()
def as_extracted(model: Any) -> Any:
    """What Torch-Pruning left, in this project's modules, which can be saved: same function, same layout of q, k, v."""
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


def torch_pruning_at(model: Any, macs: float, round_to: int | None = 8) -> Any:
    """``model`` pruned in place until it has at most ``macs`` MACs."""
    try:
        import torch_pruning as tp
    except ImportError:
        raise ConfigError(
            "the peer is torch-pruning, which is not here: install the development extra, hiap-reproduction[dev]"
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
        round_to=round_to,
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
