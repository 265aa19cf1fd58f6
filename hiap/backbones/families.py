"""timm's ViTs read into the one form that the method knows.

That form is a block with ``norm1, attn, ls1, drop_path1, norm2, mlp, ls2, drop_path2`` whose attention has ``qkv``,
``q_norm``, ``k_norm``, ``norm``, ``proj`` and a ``position``, and whose FFN is timm's ``Mlp``, possibly with a gated
activation (``parts.Glu``) and a norm. timm's own plain block is such a block and is left as it is. What other families
call by other names is put in its place, on the same parameters:

- Q, K and V apart or with biases of their own: ``JoinedLinear``;
- rotary angles and relative positions: ``Position``;
- gated FFNs, in whatever order their halves come: a neuron is then a pair of fc1's rows;
- LayerScale as a vector: ``LayerScale``; norms after the branch instead of before it stand in LayerScale's place.

A norm over what is pruned (attention's output, an FFN's neurons) runs over the units that are left.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.layers import Attention, AttentionPoolLatent, LayerScale, Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hiap.backbones.guard import UnsupportedModelError, require_dropout, require_linear
from hiap.backbones.parts import Glu, JoinedLinear, RelativeBias, Rotary, TokenAndMean, is_norm
from hiap.backbones.sharded import own_type
from hiap.options import one_line
from hiap.pruned_vit import PrunedAttention, PrunedBlock

# By name: older versions of timm lack some of these classes. A subclass may compute something else and is not meant.
_OTHER_MODELS = ("timm.models.eva.Eva", "timm.models.beit.Beit")
_BLOCKS = ("timm.models.eva.EvaBlock", "timm.models.beit.Block")
_POST_NORM_BLOCKS = ("timm.models.eva.EvaBlockPostNorm", "timm.models.vision_transformer.ResPostBlock")
_ATTENTIONS = (
    "timm.layers.attention.Attention",
    "timm.layers.attention.AttentionRope",
    "timm.models.eva.EvaAttention",
    "timm.models.beit.Attention",
)


def is_vit(model: Any) -> bool:
    return isinstance(model, VisionTransformer) or _kind(model) in _OTHER_MODELS


def standard(model: Any) -> Any:
    """``model`` with every block in the method's form: itself where they are, else a view of it on the same parameters,
    to be read. Raises ``UnsupportedModelError`` naming the first module without a form."""
    if type(model).__module__.startswith("transformers."):
        raise UnsupportedModelError(f"{type(model).__name__}: make it timm's first: hiap.from_transformers(model)")
    if not is_vit(model):
        cure = "; merge the adapter first: model.merge_and_unload()" if hasattr(model, "merge_and_unload") else ""
        raise UnsupportedModelError(f"{type(model).__name__}: expected a timm VisionTransformer, Eva or Beit{cure}")
    pool = getattr(model, "attn_pool", None)
    if pool is not None and not isinstance(pool, (AttentionPoolLatent, TokenAndMean)):
        raise UnsupportedModelError(
            f"attn_pool ({type(pool).__name__}): expected a pooling of tokens or AttentionPoolLatent"
        )
    if getattr(model, "rel_pos_bias", None) is not None:
        raise UnsupportedModelError("rel_pos_bias (RelativePositionBias): expected none that all blocks share")
    blocks = [_block(f"blocks.{i}", block, model) for i, block in enumerate(model.blocks)]
    if all(new is old for new, old in zip(blocks, model.blocks, strict=True)):
        return model
    view = copy.copy(model)
    view._modules = {**model._modules, "blocks": type(model.blocks)()}
    for i, block in enumerate(blocks):
        view.blocks.add_module(str(i), block)
    return view


def copied(model: Any) -> Any:
    """A copy of ``model`` in the method's form, its joined layers made one where they agree about a bias."""
    own = copy.deepcopy(standard(model))
    for block in own.blocks:
        block.attn.qkv, block.mlp.fc1 = _merged(block.attn.qkv), _merged(block.mlp.fc1)
    own.num_classes = classes(own)
    return own


def _merged(layer: Any) -> Any:
    if not isinstance(layer, JoinedLinear) or len({part.bias is None for part in layer.parts}) > 1:
        return layer
    trained = any(p.requires_grad for p in layer.parameters())
    return linear(layer.weight.detach(), None if layer.bias is None else layer.bias.detach(), trained)


def heads(model: Any) -> list[nn.Module]:
    """What stands behind the pooling: none, one, or two of a distilled DeiT."""
    found = (model.head, getattr(model, "head_dist", None))
    return [head for head in found if head is not None and not isinstance(head, nn.Identity)]


def classes(model: Any) -> int:
    """How many numbers the network gives as logits, counted from its head, which somebody may have replaced; 0 of a
    network without one, which gives features."""
    if not heads(model):
        return 0
    layers = [layer for layer in model.head.modules() if isinstance(layer, nn.Linear)]
    return layers[-1].out_features if layers else model.num_classes


def head_macs(model: Any, tokens: int) -> int:
    """MACs of the heads for one image, whose ``tokens`` are pooled first unless the network does not pool."""
    rows = 1 if getattr(model, "attn_pool", None) is not None or model.global_pool else tokens
    return rows * sum(_row_macs(head, model) for head in heads(model))


def _row_macs(head: nn.Module, model: Any) -> int:
    leaves = [layer for layer in head.modules() if not list(layer.children())]
    known = type(head) in (nn.Linear, nn.Sequential)
    if known and all(isinstance(layer, nn.Linear) or is_norm(layer) or not [*layer.parameters()] for layer in leaves):
        return sum(layer.weight.numel() for layer in leaves if isinstance(layer, nn.Linear))
    width = model.embed_dim * (2 if isinstance(getattr(model, "attn_pool", None), TokenAndMean) else 1)
    try:
        own = copy.deepcopy(head).to("meta", torch.float32).eval()
        return counted_macs(own, torch.zeros(1, width, device="meta"))
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        line = f"head ({type(head).__name__}): its cost cannot be counted ({one_line(error, 80)})"
        raise UnsupportedModelError(f"{line}; expected layers that take (images, {width})") from None


def channels(embed: Any) -> int:
    """Of the images."""
    return embed.proj.in_channels if isinstance(embed.proj, nn.Conv2d) and _is_patches(embed) else embed.in_chans


def stem_macs(embed: Any, image: tuple[int, int, int]) -> int:
    """MACs of one image (channels, height, width) up to the tokens. A convolutional stem is counted once, by torch."""
    if _is_patches(embed):
        rows, columns = embed.dynamic_feat_size(image[1:])
        return rows * columns * embed.proj.weight.numel()
    known = embed.__dict__.setdefault("_counted_macs", {})
    if image not in known:
        known[image] = counted_macs(copy.deepcopy(embed).to("meta").eval(), torch.zeros(1, *image, device="meta"))
    return known[image]


@torch.no_grad()
def counted_macs(module: nn.Module, images: Tensor) -> int:
    """Multiply-adds of the matrix products and convolutions that torch sees."""
    with FlopCounterMode(display=False) as counter:
        module(images)
    return counter.get_total_flops() // 2


def pool_macs(model: Any, tokens: int) -> int:
    """MACs of pooling by attention, 0 for any other."""
    pool = getattr(model, "attn_pool", None)
    if not isinstance(pool, AttentionPoolLatent):
        return 0
    if not getattr(model, "pool_include_prefix", True):
        tokens -= model.num_prefix_tokens
    layers = [pool.q, pool.proj] + ([] if pool.mlp is None else [pool.mlp.fc1, pool.mlp.fc2])
    each = sum(layer.weight.numel() for layer in layers if isinstance(layer, nn.Linear))
    scores = 2 * tokens * pool.num_heads * pool.head_dim
    return pool.latent_len * (each + scores) + tokens * pool.kv.weight.numel()


def fc1_rows(mlp: Any) -> int:
    """Rows of fc1 that make one neuron: 2 in a gated FFN."""
    return mlp.fc1.out_features // mlp.fc2.in_features


def rows_of(mlp: Any, neurons: Tensor) -> Tensor:
    """fc1's rows of these neurons."""
    return torch.cat([neurons + i * mlp.fc2.in_features for i in range(fc1_rows(mlp))])


def _block(name: str, block: Any, model: Any) -> Any:
    if isinstance(block, PrunedBlock) and not (block.attn and block.mlp):
        raise UnsupportedModelError(f"{name}: a branch is gone; expected a network with all of its heads and neurons")
    post = _kind(block) in _POST_NORM_BLOCKS
    if not (post or own_type(block) in (Block, PrunedBlock) or _kind(block) in _BLOCKS):
        raise UnsupportedModelError(
            f"{name} ({type(block).__name__}): expected timm's Block, ResPostBlock, EvaBlock or Beit's"
        )
    attn, mlp = _attention(f"{name}.attn", block.attn, model), _ffn(f"{name}.mlp", block.mlp)
    _require_known(name, attn, mlp)
    if attn is block.attn and mlp is block.mlp and own_type(block) in (Block, PrunedBlock):
        return block
    # What stands before an FFN of ViTamin's: the block's norm and one of the FFN's own.
    norm2 = nn.Sequential(block.norm2, block.mlp.norm) if _kind(block.mlp) == _GEGLU else block.norm2
    parts: dict[str, Any] = {
        "norm1": nn.Identity() if post else block.norm1,
        "attn": attn,
        "ls1": block.norm1 if post else _scale(block, 1),
        "drop_path1": block.drop_path1,
        "norm2": nn.Identity() if post else norm2,
        "mlp": mlp,
        "ls2": block.norm2 if post else _scale(block, 2),
        "drop_path2": block.drop_path2,
    }
    return PrunedBlock(parts, {"attn_constant": None, "mlp_constant": None})


def _require_known(name: str, attn: Any, mlp: Any) -> None:
    """The layers that are read by their weights, or by their rate, are torch's own."""
    for part, module, layers in (("attn", attn, ("qkv", "proj")), ("mlp", mlp, ("fc1", "fc2"))):
        for layer in layers:
            if getattr(module, layer) is not None:  # a network that is being cut has lost some
                require_linear(f"{name}.{part}.{layer}", getattr(module, layer))
    for part, module, layers in (("attn", attn, ("attn_drop", "proj_drop")), ("mlp", mlp, ("drop1", "drop2"))):
        for layer in layers:
            require_dropout(f"{name}.{part}.{layer}", getattr(module, layer))


def _scale(block: Any, branch: int) -> Any:
    if hasattr(block, f"ls{branch}"):
        return getattr(block, f"ls{branch}")
    gamma = getattr(block, f"gamma_{branch}")
    if gamma is None:
        return nn.Identity()
    scale: Any = LayerScale(len(gamma))
    scale.gamma = gamma
    return scale


def _attention(name: str, attn: Any, model: Any) -> Any:
    plain = type(attn) is Attention and isinstance(attn.norm, nn.Identity)
    if not plain and not getattr(attn, "standard", False) and _kind(attn) not in _ATTENTIONS:
        raise UnsupportedModelError(f"{name} ({type(attn).__name__}): expected timm.layers.Attention, Eva's or Beit's")
    if getattr(attn, "gate", None) is not None:
        raise UnsupportedModelError(f"{name}.gate: attention with an output gate of its own")
    if getattr(attn, "num_kv_groups", 1) > 1:
        raise UnsupportedModelError(f"{name} ({type(attn).__name__}): heads that share K and V; expected one of each")
    if plain or getattr(attn, "standard", False):
        return attn
    heads, width = attn.num_heads, attn.proj.in_features // attn.num_heads
    with torch.device("meta"):
        view = PrunedAttention(attn.proj.out_features, [width] * heads, [width] * heads, attn.scale)
    view.qkv, view.proj = _qkv(attn), attn.proj
    view.attn_drop, view.proj_drop = attn.attn_drop, attn.proj_drop
    view.q_norm, view.k_norm = getattr(attn, "q_norm", view.q_norm), getattr(attn, "k_norm", view.k_norm)
    view.norm = _inner_norm(f"{name}.norm", getattr(attn, "norm", None))
    view.position = _position(attn, model)
    return view


def _qkv(attn: Any) -> Any:
    if attn.qkv is None:
        return JoinedLinear([attn.q_proj, attn.k_proj, attn.v_proj])
    if getattr(attn, "q_bias", None) is None:
        return attn.qkv
    require_linear("attn.qkv", JoinedLinear([attn.qkv]))
    biases = (attn.q_bias, None, attn.v_bias)
    return JoinedLinear(
        [
            linear(weight, bias, attn.qkv.weight.requires_grad)
            for weight, bias in zip(attn.qkv.weight.detach().chunk(3), biases, strict=True)
        ]
    )


def linear(weight: Tensor, bias: Tensor | None, trained: bool = True) -> nn.Linear:
    """A layer of these weights (out, in), which are not copied; ``trained``: whether those that are no parameters yet
    ask for a gradient."""
    layer: Any = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=trained)
    layer.bias = bias if bias is None or isinstance(bias, nn.Parameter) else nn.Parameter(bias, requires_grad=trained)
    return layer


def _position(attn: Any, model: Any) -> Any:
    if getattr(attn, "relative_position_bias_table", None) is not None:
        bias = RelativeBias(attn.window_size, 0)
        bias.relative_position_bias_table = attn.relative_position_bias_table
        bias.index = attn.relative_position_index
        return bias
    if getattr(model, "rope", None) is None:
        return None
    heads = list(range(attn.num_heads)) if model.rope_mixed else None
    return Rotary(attn.num_prefix_tokens, getattr(attn, "rotate_half", False), heads)


def _inner_norm(name: str, norm: Any) -> Any:
    if norm is None or isinstance(norm, nn.Identity):
        return None
    if not is_norm(norm) or norm.weight is None:
        raise UnsupportedModelError(f"{name} ({type(norm).__name__}): expected a LayerNorm or RmsNorm with weights")
    return norm


_GEGLU = "timm.models.vitamin.GeGluMlp"
# Kind of FFN: its layers from the input, the one to the output, its norm over the neurons.
_FFNS: dict[str, tuple[tuple[str, ...], str, str | None]] = {
    "timm.layers.mlp.GluMlp": (("fc1",), "fc2", "norm"),
    "timm.layers.mlp.SwiGLU": (("fc1_g", "fc1_x"), "fc2", "norm"),
    _GEGLU: (("w0", "w1"), "w2", None),
}


def _ffn(name: str, mlp: Any) -> Any:
    if getattr(mlp, "standard", False):
        return mlp
    if type(mlp) is Mlp:
        _inner_norm(f"{name}.norm", mlp.norm)
        return mlp
    if _kind(mlp) not in _FFNS:
        raise UnsupportedModelError(f"{name} ({type(mlp).__name__}): expected timm's Mlp, GluMlp, SwiGLU or GeGluMlp")
    first, last, norm = _FFNS[_kind(mlp)]
    inputs, output = [getattr(mlp, layer) for layer in first], getattr(mlp, last)
    with torch.device("meta"):
        view: Any = Mlp(output.out_features, 1)
    view.fc1 = inputs[0] if len(inputs) == 1 else JoinedLinear(inputs)
    view.act = Glu(mlp.act, getattr(mlp, "gate_last", False))
    view.norm = (norm and _inner_norm(f"{name}.norm", getattr(mlp, norm))) or nn.Identity()
    view.fc2 = output
    # Older ones have no dropout.
    view.drop1, view.drop2 = (getattr(mlp, drop, nn.Dropout(0.0)) for drop in ("drop1", "drop2"))
    return view


def _is_patches(embed: Any) -> bool:
    return hasattr(embed, "norm") and not hasattr(embed, "backbone")


def _kind(module: Any) -> str:
    return f"{own_type(module).__module__}.{own_type(module).__name__}"
