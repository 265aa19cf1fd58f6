"""ViTs of ``transformers`` as timm's, and back::

    model = hiap.from_transformers(AutoModelForImageClassification.from_pretrained(folder))
    ...                                             # prune it like any other
    again = hiap.to_transformers(small, like)       # ``like``: the network it came from

Classifiers of ViT, DeiT (with one head or two), DINOv2 (with registers or without, with gated FFNs or plain ones) and
SigLIP; feature extractors and backbones of these and CLIP's, whose timm network gives ``last_hidden_state`` (B, N, D):
what comes after (a pooler, a projection) is no part of it and stays with ``like``. Outputs are equal; dropout and
stochastic depth of the training before are not taken along. ``transformers`` itself is not imported here: layers are
known by the names of their weights, in its version 4 and in 5.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import GluMlp, Mlp, QuickGELU
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from hiap.backbones.errors import UnsupportedModelError
from hiap.backbones.families import fc1_rows
from hiap.backbones.parts import TokenAndMean
from hiap.cost import image_of
from hiap.formats.export import ExportError, evaluated, to_timm
from hiap.options import one_line

TOLERANCE = 0.01  # of the logits' norm: what another kernel and order may make

_CLASSIFIERS = (
    "ViTForImageClassification",
    "DeiTForImageClassification",
    "DeiTForImageClassificationWithTeacher",
    "Dinov2ForImageClassification",
    "Dinov2WithRegistersForImageClassification",
    "SiglipForImageClassification",
)
_EXTRACTORS = (
    "ViTModel",
    "DeiTModel",
    "Dinov2Model",
    "Dinov2Backbone",
    "Dinov2WithRegistersModel",
    "Dinov2WithRegistersBackbone",
    "CLIPVisionModel",
    "CLIPVisionModelWithProjection",
    "CLIPVisionTransformer",
    "SiglipVisionModel",
    "SiglipVisionTransformer",
)
_CLASSES = (*_CLASSIFIERS, *_EXTRACTORS)
_ACTIVATIONS: dict[str, Any] = {
    "gelu": nn.GELU,
    "gelu_new": partial(nn.GELU, approximate="tanh"),
    "gelu_pytorch_tanh": partial(nn.GELU, approximate="tanh"),
    "quick_gelu": QuickGELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}
# What a weight is called in transformers, what in timm, and which part it is of how many in timm's.
_PLACES = [
    (r"embeddings\.patch_embeddings?(\.projection)?", "patch_embed.proj", 0, 1),
    (r"embeddings\.(cls_token|class_embedding)", "cls_token", 0, 1),
    (r"embeddings\.distillation_token", "dist_token", 0, 1),
    (r"embeddings\.register_tokens", "reg_token", 0, 1),
    (r"embeddings\.position_embeddings?(\.weight)?", "pos_embed", 0, 1),
    (r"pre_layrnorm", "norm_pre", 0, 1),  # CLIP's spelling
    (r"layernorm|post_layernorm", "norm", 0, 1),
    (r"classifier|cls_classifier", "head", 0, 1),
    (r"distillation_classifier", "head_dist", 0, 1),
    (r"layernorm_before|norm1|layer_norm1", "norm1", 0, 1),
    (r"layernorm_after|norm2|layer_norm2", "norm2", 0, 1),
    (r"(attention|self_attn)\.q_proj|attention\.attention\.query", "attn.qkv", 0, 3),
    (r"(attention|self_attn)\.k_proj|attention\.attention\.key", "attn.qkv", 1, 3),
    (r"(attention|self_attn)\.v_proj|attention\.attention\.value", "attn.qkv", 2, 3),
    (r"attention\.o_proj|self_attn\.out_proj|attention\.output\.dense", "attn.proj", 0, 1),
    (r"mlp\.fc1|intermediate\.dense|mlp\.weights_in", "mlp.fc1", 0, 1),
    (r"mlp\.gate_proj", "mlp.fc1", 0, 2),
    (r"mlp\.up_proj", "mlp.fc1", 1, 2),
    (r"mlp\.fc2|output\.dense|mlp\.weights_out|mlp\.down_proj", "mlp.fc2", 0, 1),
    (r"layer_scale1\.lambda1", "ls1.gamma", 0, 1),
    (r"layer_scale2\.lambda1", "ls2.gamma", 0, 1),
]
# Parts that a classifier does not look at, and that stand behind the tokens of a feature extractor.
_UNUSED = r"embeddings\.mask_token|embeddings\.position_ids|(pooler|head|visual_projection)\..*"


def from_transformers(model: Any) -> Any:
    """Return the timm ``VisionTransformer`` that computes the logits of ``model``, a classifier of transformers, or the
    ``last_hidden_state`` (B, N, D) of a feature extractor or backbone; images of the size of its configuration. Raises
    ``UnsupportedModelError`` (one line) for any other."""
    if type(model).__name__ not in _CLASSES:
        raise UnsupportedModelError(f"{type(model).__name__}: expected one of {', '.join(_CLASSES)}")
    state = _joined(model)
    vit = _frame(model, state)
    for name in ("pos_embed", "cls_token"):
        if name in state:
            state[name] = state[name].reshape(1, -1, state[name].shape[-1])
    if "dist_token" in state and not isinstance(vit, VisionTransformerDistilled):  # a token that no head looks at
        state["reg_token"] = state.pop("dist_token")
    elif "reg_token" in state:  # timm's registers have no position: the class token's goes to the token
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:]
    try:
        vit.load_state_dict(state)
    except RuntimeError as error:
        line = one_line(error)
        raise UnsupportedModelError(f"{type(model).__name__}: weights that are not known: {line}") from None
    return vit.to(state["patch_embed.proj.weight"]).train(model.training)


def to_transformers(model: Any, like: Any) -> Any:
    """Return a network of the class and configuration of ``like`` (what ``from_transformers`` was given, or one of its
    kind) that computes the logits, or tokens, of ``model``, a dense or extracted timm ViT. transformers builds all
    blocks alike: heads and value dimensions that are gone become zeros, and every FFN must keep as many neurons as the
    others (zeros fill DINOv2's, whose configuration knows whole multiples of the embedding only). Raises
    ``ExportError`` (one line) where that is not so, and where ``like`` is of another form (no LayerScale, another
    activation or pooling): both are run on an image and compared."""
    if type(like).__name__ not in _CLASSES:
        raise ExportError(f"{type(like).__name__}: expected one of {', '.join(_CLASSES)}")
    arguments, state = to_timm(model)
    own_heads = getattr(like.config, "vision_config", like.config).num_attention_heads
    if arguments["num_heads"] != own_heads:
        raise ExportError(f"the network is of {arguments['num_heads']} heads, {type(like).__name__} of {own_heads}")
    if "reg_token" in state and "Registers" in type(like).__name__:
        state["pos_embed"] = torch.cat([torch.zeros_like(state["cls_token"]), state["pos_embed"]], dim=1)
    elif "reg_token" in state:
        state["dist_token"] = state.pop("reg_token")
    config, neurons = _config(like, model)
    state |= {k: _filled(v, k, neurons, model) for k, v in state.items() if ".mlp." in k}
    again = type(like)(config)
    own, before = {**again.state_dict()}, like.state_dict()
    for name, value in own.items():
        place = _place_in(like, name)
        if place is None:  # no weight of timm's network: as it was
            own[name] = before[name] if before[name].shape == value.shape else value
            continue
        key, part, parts = place
        if key not in state or state[key].numel() != parts * value.numel():
            found = tuple(state[key].shape) if key in state else "none"
            raise ExportError(f"{name}: {type(like).__name__} wants {tuple(value.shape)}, the network has {found}")
        own[name] = state[key].chunk(parts)[part].reshape(value.shape)
    again.load_state_dict(own)
    again = again.to(state["patch_embed.proj.weight"]).eval()
    _require_same_logits(model, from_transformers(again), type(like).__name__)
    return again.train(model.training)


@torch.no_grad()
def _require_same_logits(model: Any, again: Any, kind: str) -> None:
    """Raise ``ExportError`` unless both give the same for a random image."""
    image = torch.randn(1, *image_of(model), generator=torch.Generator().manual_seed(0)).to(next(model.parameters()))
    with evaluated(model), evaluated(again):
        mine, theirs = model(image).float(), again(image).float()
    if mine.shape != theirs.shape or float((mine - theirs).norm()) > TOLERANCE * float(mine.norm()):
        raise ExportError(
            f"{kind} computes something else with these weights: it lacks a part of the network (LayerScale, norms of "
            "Q and K), or has another activation or pooling"
        )


def _place_in(model: Any, name: str) -> tuple[str, int, int] | None:
    """Place a weight as ``_place`` does, in this network: CLIP has its norm behind the tokens."""
    behind = type(model).__name__.startswith("CLIP") and "post_layernorm" in name
    return None if behind else _place(name)


def _place(name: str) -> tuple[str, int, int] | None:
    """Return timm's name of a weight of transformers, which part of it, of how many; None if the classifier lacks
    it."""
    tail = re.sub(r"^(vit|deit|dinov2|dinov2_with_registers|vision_model)\.", "", name)
    block = re.match(r"(?:encoder\.)?layers?\.(\d+)\.", tail)
    prefix, tail = (f"blocks.{block[1]}.", tail[block.end() :]) if block else ("", tail)
    if re.fullmatch(_UNUSED, tail):
        return None
    for pattern, ours, part, parts in _PLACES:
        if found := re.fullmatch(rf"(?:{pattern})(?P<kind>\.weight|\.bias)?", tail):
            kind = "" if ours == "pos_embed" else found["kind"] or ""
            return f"{prefix}{ours}{kind}", part, parts
    raise UnsupportedModelError(f"{name}: a weight that is not known")


def _joined(model: Any) -> dict[str, Tensor]:
    """Weights by timm's names, Q, K and V and the halves of a gated FFN in one."""
    pieces: dict[str, dict[int, Tensor]] = {}
    for name, value in model.state_dict().items():
        if place := _place_in(model, name):
            pieces.setdefault(place[0], {})[place[1]] = value.detach()
    return {name: torch.cat([by[i] for i in sorted(by)]).clone() for name, by in pieces.items()}


def _frame(model: Any, state: Mapping[str, Tensor]) -> Any:
    """Return timm's network for these weights, not filled in."""
    config, name = getattr(model.config, "vision_config", model.config), type(model).__name__
    if config.hidden_act not in _ACTIVATIONS:
        raise UnsupportedModelError(f"hidden_act '{config.hidden_act}': expected one of {', '.join(_ACTIVATIONS)}")
    widths = state["blocks.0.attn.proj.weight"].shape
    if config.hidden_size % config.num_attention_heads or widths[0] != widths[1]:
        raise UnsupportedModelError(f"{name}: expected heads that are together as wide as the embedding")
    dino, registers = "Dinov2" in name, state["reg_token"].shape[1] if "reg_token" in state else 0
    distilled = "head_dist.weight" in state
    arguments: dict[str, Any] = {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "in_chans": config.num_channels,
        "num_classes": state["head.weight"].shape[0] if "head.weight" in state else 0,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": (state["blocks.0.mlp.fc1.weight"].shape[0] + 0.5) / config.hidden_size,
        "mlp_layer": partial(GluMlp, gate_last=False) if getattr(config, "use_swiglu_ffn", False) else Mlp,
        "act_layer": nn.SiLU if getattr(config, "use_swiglu_ffn", False) else _ACTIVATIONS[config.hidden_act],
        "norm_layer": partial(nn.LayerNorm, eps=config.layer_norm_eps),
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "init_values": 1.0 if dino else None,
        "weight_init": "skip",
    }
    if distilled:
        return VisionTransformerDistilled(**arguments)
    tokens = name in _EXTRACTORS
    if tokens:
        arguments |= {"global_pool": "", "pre_norm": "norm_pre.weight" in state, "final_norm": "norm.weight" in state}
    if "cls_token" not in state:
        return VisionTransformer(**{"global_pool": "avg", **arguments}, class_token=False, fc_norm=False)
    arguments["reg_tokens"] = registers or int("dist_token" in state)
    vit: Any = VisionTransformer(**arguments, no_embed_class=registers > 0)
    if dino and not tokens:
        vit.attn_pool, vit.pool_include_prefix = TokenAndMean(1 + registers), True
        if "head.weight" in state:
            vit.head = nn.Linear(2 * config.hidden_size, arguments["num_classes"])
    return vit


def _config(like: Any, model: Any) -> tuple[Any, int]:
    """Return the configuration of ``like`` for FFNs as wide as those of ``model``, or the next width that it knows."""
    whole = copy.deepcopy(like.config)
    config, neurons = getattr(whole, "vision_config", whole), model.blocks[0].mlp.fc2.in_features
    if hasattr(config, "intermediate_size"):
        config.intermediate_size = neurons
        return whole, neurons
    gated, width = getattr(config, "use_swiglu_ffn", False), 0
    config.mlp_ratio = 0
    while width < neurons:
        config.mlp_ratio += 1
        width = config.hidden_size * config.mlp_ratio
        width = (int(width * 2 / 3) + 7) // 8 * 8 if gated else width  # of a gated FFN two thirds, in eights
    return whole, width


def _filled(value: Tensor, name: str, neurons: int, model: Any) -> Tensor:
    """Fill a weight of an FFN with zeros for the neurons that it lacks."""
    missing = neurons - model.blocks[0].mlp.fc2.in_features
    if name.endswith("fc2.weight"):
        return F.pad(value, (0, missing))
    if "fc1" not in name:
        return value
    rows = (0, missing) if value.ndim == 1 else (0, 0, 0, missing)
    return torch.cat([F.pad(half, rows) for half in value.chunk(fc1_rows(model.blocks[0].mlp))])
