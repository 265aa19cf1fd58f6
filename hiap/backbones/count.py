"""MACs and parameters of dense, gated and extracted ViTs, counted from their modules."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, cast

import torch
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize
from torch.utils import flop_counter
from torch.utils.flop_counter import FlopCounterMode

from hiap.backbones import products
from hiap.backbones.errors import UnsupportedModelError, one_line
from hiap.backbones.families import channels, classifiers, fc1_rows, is_patches, is_vit, standard
from hiap.backbones.parts import JoinedLinear, TokenAndMean, is_norm
from hiap.backbones.pruned import PrunedAttention, PrunedBlock

# torch's counter knows the fused attention kernels of CUDA but not the CPU's, and would count those products as free.
_CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
if _CPU_ATTENTION not in flop_counter.flop_registry:

    @flop_counter.register_flop_formula(_CPU_ATTENTION)
    def _cpu_attention_flops(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return flop_counter.sdpa_flop_count(query, key, value)


def macs(model: nn.Module, image: tuple[int, int, int], executed: bool = False) -> int:
    """Count the multiply-adds of one image (channels, height, width) through a dense, gated or extracted ViT.

    Counted analytically from the modules. ``executed`` adds the zeros that layout 'padded' multiplies and then equals
    ``torch.utils.flop_counter`` / 2 to the last MAC; without it, what is left of the network however it is run. A gated
    model executes all weights that it has, so closed ones count. Raises ``ValueError`` if the image does not fit, and
    ``UnsupportedModelError`` where a layer has layers of its own.
    """
    if not is_vit(model):
        raise ValueError(f"{type(model).__name__}: expected a timm VisionTransformer, dense, gated or extracted")
    if not isinstance(image, (tuple, list)) or len(image) != 3 or not all(_counts(side) for side in image):
        raise ValueError(f"image {image}: expected (channels, height, width)")
    image, vit = (image[0], image[1], image[2]), cast("Any", model)
    (depth, height, width), embed = image, vit.patch_embed
    if depth != channels(embed):
        raise ValueError(f"image has {depth} channels, the model takes {channels(embed)}")
    if not getattr(vit, "dynamic_img_size", False) and (height, width) != tuple(embed.img_size):
        raise ValueError(f"image is {height}x{width}, the model takes {embed.img_size[0]}x{embed.img_size[1]}")
    patch = tuple(embed.patch_size)
    whole = not getattr(vit, "dynamic_img_size", False) or getattr(embed, "dynamic_img_pad", False)
    if not whole and (height % patch[0] or width % patch[1]):
        raise ValueError(f"image is {height}x{width}, the model takes whole patches of {patch[0]}x{patch[1]}")
    rows, columns = embed.dynamic_feat_size((height, width))
    tokens = rows * columns + vit.num_prefix_tokens
    blocks = (attention_macs(block, tokens, executed) + ffn_macs(block, tokens) for block in blocks_of(vit))
    return constant_macs(vit, image, tokens) + sum(blocks)


def blocks_of(model: Any) -> Any:
    """Return the blocks of a dense or extracted ViT, with the names that are counted here. Raises
    ``UnsupportedModelError`` where a map has layers of its own (an adapter), which the sizes of the map say nothing of,
    and for maps beside ``MAPS``."""
    cut = any(isinstance(block, PrunedBlock) for block in model.blocks)
    blocks = model.blocks if cut else standard(model).blocks
    for i, block in enumerate(blocks):
        for name, layer in block.named_modules():
            if isinstance(layer, (nn.Linear, _ConvNd)) and not name.startswith(MAPS):
                kind = type(layer).__name__
                raise UnsupportedModelError(f"blocks.{i}.{name} ({kind}): a layer whose cost is not known here")
        for name, layer in maps_of(block) if cut else ():  # else ``standard`` has asked for plain linear maps
            _require_bare(f"blocks.{i}.{name}", layer)
    return blocks


def maps_of(block: Any) -> Iterator[tuple[str, Any]]:
    """Yield the maps of a block that are there, each with its name of ``MAPS``."""
    for name in MAPS:
        branch, layer = name.split(".")
        if (found := getattr(getattr(block, branch), layer, None)) is not None:
            yield name, found


def _require_bare(name: str, layer: Any) -> None:
    if isinstance(layer, JoinedLinear) or parametrize.is_parametrized(layer):
        return
    if any(True for part in layer.children() for _ in part.parameters()):
        cure = "merge an adapter first: model.merge_and_unload()"
        raise UnsupportedModelError(f"{name} ({type(layer).__name__}): has layers of its own; {cure}")


MAPS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")  # of a block
COUNTED = ("patch_embed", "blocks", "head", "head_dist", "attn_pool")


def _require_counted(model: Any) -> None:
    """Raise ``UnsupportedModelError`` for a part with maps of its own that no count here knows."""
    for name, part in model.named_children():
        if name not in COUNTED and any(isinstance(layer, (nn.Linear, _ConvNd)) for layer in part.modules()):
            raise UnsupportedModelError(f"{name} ({type(part).__name__}): has layers whose cost is not known here")
    embed = model.patch_embed
    if is_patches(embed) and isinstance(embed.proj, nn.Conv2d) and tuple(embed.proj.stride) != tuple(embed.patch_size):
        stride = f"stride {tuple(embed.proj.stride)} for patches of {tuple(embed.patch_size)}"
        raise UnsupportedModelError(f"patch_embed.proj: {stride}; expected patches side by side")


def constant_macs(model: Any, image: tuple[int, int, int], tokens: int) -> int:
    """Count the MACs before and after the blocks."""
    _require_counted(model)
    return stem_macs(model.patch_embed, image) + pool_macs(model, tokens) + head_macs(model, tokens)


def _counts(side: Any) -> bool:
    return hasattr(side, "__index__") and side > 0


def in_patches(embed: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (height, width) of what becomes patches, the padding of ``dynamic_img_pad`` included, and how many patches
    there are of each."""
    if not (getattr(embed, "dynamic_img_pad", False) and is_patches(embed)):
        return embed.img_size, embed.grid_size
    (rows, columns), (high, wide) = embed.dynamic_feat_size(embed.img_size), embed.patch_size
    return (rows * high, columns * wide), (rows, columns)


def image_of(model: Any) -> tuple[int, int, int]:
    """Return the (channels, height, width) of the images that a ViT was built for."""
    return (channels(model.patch_embed), *model.patch_embed.img_size)


def value_dims(block: Any) -> list[int]:
    """Return the value dimensions of each head of a dense or extracted block; [] if its attention is gone."""
    attn = block.attn
    if attn is None:
        return []
    return list(getattr(attn, "value_dims", None) or [attn.head_dim] * attn.num_heads)


def qk_dims(block: Any) -> list[int]:
    """Return the query (or key) dimensions of each head of a dense or extracted block; [] if its attention is gone."""
    attn = block.attn
    return [] if attn is None else getattr(attn, "qk_dims", None) or [attn.head_dim] * attn.num_heads


def params(model: nn.Module) -> int:
    """Count the learnable scalars (gate logits not counted: they never leave training)."""
    return sum(p.numel() for name, p in model.named_parameters() if not name.endswith(".logit"))


def attention_macs(block: Any, n: int, executed: bool = False) -> int:
    """Count the MACs of the attention branch of a dense, gated or extracted block with ``n`` tokens."""
    attn = block.attn
    if attn is None or not attn.num_heads:
        return 0
    total = products.attention_macs(n, attn.qkv.in_features, qk_dims(block), value_dims(block))
    return total + n * n * attn.padding() if executed and isinstance(attn, PrunedAttention) else total


def ffn_macs(block: Any, n: int) -> int:
    """Count the MACs of the FFN of a dense, gated or extracted block with ``n`` tokens."""
    mlp = block.mlp
    if mlp is None or not mlp.fc2.in_features:
        return 0
    return products.ffn_macs(n, mlp.fc1.in_features, mlp.fc2.in_features, fc1_rows(mlp))


def classifier_count(model: Any) -> int:
    """Count the classifiers of one pooled token; one that looks at two counts twice."""
    linear = (head for head in classifiers(model) if isinstance(head, nn.Linear))
    return sum(head.in_features // model.embed_dim for head in linear)


def head_macs(model: Any, tokens: int) -> int:
    """Count the MACs of the heads for one image, whose ``tokens`` are pooled first unless the network does not pool."""
    rows = 1 if getattr(model, "attn_pool", None) is not None or model.global_pool else tokens
    return rows * sum(_row_macs(head, model) for head in classifiers(model))


def _row_macs(head: nn.Module, model: Any) -> int:
    leaves = [layer for layer in head.modules() if not list(layer.children())]
    known = type(head) in (nn.Linear, nn.Sequential) and not any(map(parametrize.is_parametrized, head.modules()))
    if known and all(isinstance(layer, nn.Linear) or is_norm(layer) or not [*layer.parameters()] for layer in leaves):
        return sum(layer.weight.numel() for layer in leaves if isinstance(layer, nn.Linear))
    width = model.embed_dim * (2 if isinstance(getattr(model, "attn_pool", None), TokenAndMean) else 1)
    try:
        own = copy.deepcopy(head).to("meta", torch.float32).eval()
        return counted_macs(own, torch.zeros(1, width, device="meta"))
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        line = f"head ({type(head).__name__}): its cost cannot be counted ({one_line(error, 80)})"
        raise UnsupportedModelError(f"{line}; expected layers that take (images, {width})") from None


def stem_macs(embed: Any, image: tuple[int, int, int]) -> int:
    """Count the MACs of one image (channels, height, width) up to the tokens. A convolutional stem is counted once, by
    torch."""
    if is_patches(embed):
        rows, columns = embed.dynamic_feat_size(image[1:])
        return rows * columns * embed.proj.weight.numel()
    known = embed.__dict__.setdefault("_counted_macs", {})
    if image not in known:
        known[image] = counted_macs(copy.deepcopy(embed).to("meta").eval(), torch.zeros(1, *image, device="meta"))
    return known[image]


@torch.no_grad()
def counted_macs(module: nn.Module, images: Tensor) -> int:
    """Count the multiply-adds of the matrix products and convolutions that torch sees."""
    with FlopCounterMode(display=False) as counter:
        module(images)
    return counter.get_total_flops() // 2


def pool_macs(model: Any, tokens: int) -> int:
    """Count the MACs of pooling by attention, 0 for any other."""
    pool = getattr(model, "attn_pool", None)
    if not isinstance(pool, AttentionPoolLatent):
        return 0
    if not getattr(model, "pool_include_prefix", True):
        tokens -= model.num_prefix_tokens
    layers = [pool.q, pool.proj] + ([] if pool.mlp is None else [pool.mlp.fc1, pool.mlp.fc2])
    each = sum(layer.weight.numel() for layer in layers if isinstance(layer, nn.Linear))
    scores = 2 * tokens * pool.num_heads * pool.head_dim
    return pool.latent_len * (each + scores) + tokens * pool.kv.weight.numel()
