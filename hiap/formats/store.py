"""A network as a folder: ``architecture.json`` (what to build), ``weights.safetensors`` (what to fill in), and, if it
was asked for, a model card, ``README.md``.

Nothing is pickled and loading runs no code from the folder: the JSON names sizes, and the few module types that it may
name are listed here. Dense and extracted models are stored alike, block by block.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import timm
import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.layers import (
    Attention,
    AttentionPoolLatent,
    DropPath,
    GELUTanh,
    LayerNorm,
    LayerScale,
    Mlp,
    PatchDropout,
    PatchEmbed,
    QuickGELU,
    RmsNorm,
    create_rope_embed,
)
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from hiap.backbones.families import channels, classes, classifiers, copied, standard
from hiap.backbones.guard import require_linear, require_plain, tell_lost
from hiap.backbones.parts import Glu, JoinedLinear, Position, RelativeBias, Rotary, TokenAndMean, biases, is_norm
from hiap.backbones.pruned import LAYOUTS, PrunedAttention, PrunedBlock, set_layout
from hiap.files import atomic_folder, atomic_write
from hiap.formats import card as cards
from hiap.formats import hub
from hiap.formats.folder import ARCHITECTURE, WEIGHTS, StoreError
from hiap.gated_vit import UnsupportedModelError, is_gated
from hiap.options import one_line

FORMAT: Literal["hiap-vit"] = "hiap-vit"
VERSION: Literal[1] = 1

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "quick_gelu": QuickGELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}
_NORMS: dict[str, type[nn.Module]] = {"layernorm": LayerNorm, "torch_layernorm": nn.LayerNorm, "rmsnorm": RmsNorm}


Rate = Annotated[float, Field(ge=0, le=1)]


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NormSpec(_Spec):
    kind: str
    width: int
    eps: float


class AttentionSpec(_Spec):
    """``heads`` is given for timm's own attention, ``value_dims`` and ``qk_dims`` for a pruned one or one of another
    family. Of those ``qkv_bias`` may say of Q, K and V each whether it has a bias; ``prefix`` tokens are not rotated,
    the others in ``halves`` or in pairs, by all angles or by those of ``angles``; ``window``: BEiT's bias. ``drops``:
    the rates of dropout of scores and of the output."""

    heads: int | None = None
    head_dim: int | None = None
    qk_dims: list[int] | None = None
    value_dims: list[int] | None = None
    scale: float
    qkv_bias: bool | tuple[bool, bool, bool]
    proj_bias: bool
    q_norm: NormSpec | None = None
    k_norm: NormSpec | None = None
    norm: NormSpec | None = None
    prefix: int | None = Field(None, ge=0)
    halves: bool = False
    angles: list[int] | None = None
    window: tuple[PositiveInt, PositiveInt] | None = None
    drops: tuple[Rate, Rate] = (0.0, 0.0)


class BlockSpec(_Spec):
    """``norm2_again``: a second norm before the FFN; ``after1``, ``after2``: norms behind the branches; ``glu``: which
    half of a gated FFN is bent. ``drops``: the rates of the FFN's dropout, ``drop_paths`` those of the branches."""

    norm1: NormSpec | None = None
    attn: AttentionSpec | None = None
    attn_constant: bool = False
    layer_scale1: bool = False
    after1: NormSpec | None = None
    norm2: NormSpec | None = None
    norm2_again: NormSpec | None = None
    neurons: int = Field(0, ge=0)
    fc1_bias: bool = True
    fc2_bias: bool = True
    activation: str = "gelu"
    glu: Literal["first", "last"] | None = None
    hidden_norm: NormSpec | None = None
    mlp_constant: bool = False
    layer_scale2: bool = False
    after2: NormSpec | None = None
    drops: tuple[Rate, Rate] = (0.0, 0.0)
    drop_paths: tuple[Rate, Rate] = (0.0, 0.0)


class LayerSpec(_Spec):
    """One layer of a head that is no plain classifier: a linear map (``inputs``, ``outputs``, ``bias``), a dropout of
    this ``rate``, a norm or an activation."""

    kind: Literal["linear", "dropout", "norm", "activation", "identity"]
    inputs: int = Field(0, ge=0)
    outputs: int = Field(0, ge=0)
    bias: bool = True
    rate: Rate = 0.0
    norm: NormSpec | None = None
    activation: str = ""


class PoolSpec(_Spec):
    """What pools where it is a module: attention by ``heads`` and an FFN, or, without heads, the class token beside the
    mean of what follows ``prefix`` tokens."""

    heads: int | None = Field(None, ge=1)
    neurons: int = Field(0, ge=0)
    norm: NormSpec | None = None
    activation: str = "gelu"
    prefix: int = Field(0, ge=0)


class RopeSpec(_Spec):
    """The angles of rotary positions, as ``timm.layers.create_rope_embed`` takes them; ``dim`` of all ``num_heads``."""

    rope_type: Literal["cat", "mixed", "dinov3"]
    dim: PositiveInt
    num_heads: PositiveInt
    temperature: float
    grid_indexing: Literal["ij", "xy"]
    grid_offset: float = 0.0
    rotate_half: bool = False
    fixed: bool
    ref_feat_shape: tuple[int, int] | None = None


class PixelSpec(_Spec):
    """How images become what the network expects: timm's names, pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float


class Architecture(_Spec):
    """``head``: the layers of a head that is no plain classifier. ``drops``: the rates of dropout of positions, of
    patches and before the head. ``frozen``: parameters that were not trained, where others were."""

    format: Literal["hiap-vit"] = FORMAT
    version: Literal[1] = VERSION
    family: Literal["vit", "eva", "beit"] = "vit"
    stem: str = Field("", description="entry of timm whose convolutional stem stands before the blocks")
    embed_norm: NormSpec | None = None
    pool: PoolSpec | None = None
    rope: RopeSpec | None = None
    distilled: bool
    img_size: tuple[PositiveInt, PositiveInt]
    patch_size: tuple[PositiveInt, PositiveInt]
    in_chans: PositiveInt
    num_classes: int
    global_pool: Literal["", "avg", "avgmax", "max", "token", "map"]
    embed_dim: PositiveInt
    class_token: bool
    reg_tokens: int
    no_embed_class: bool
    pos_embed: bool
    pool_include_prefix: bool
    dynamic_img_size: bool
    dynamic_img_pad: bool = False
    head: list[LayerSpec] | None = None
    drops: tuple[Rate, Rate, Rate] = (0.0, 0.0, 0.0)
    frozen: list[str] = []
    label_names: list[str] | None = None
    label_descriptions: dict[str, str] | None = None
    norm_pre: NormSpec | None
    norm: NormSpec | None
    fc_norm: NormSpec | None
    layout: Literal["ragged", "padded"]
    pixels: PixelSpec | None = None
    blocks: list[BlockSpec]


def save(model: Any, folder: str | Path, card: Any = None) -> None:
    """Write a dense or extracted ViT to ``folder``, whole or not at all; a network that is there is replaced, and its
    card with it. ``card``: write one of whatever is known (``hiap.formats.card.Card`` or a mapping of its fields).

    Before anything is written, raises ``UnsupportedModelError`` if the network cannot be described by this format (a
    gated one, for example: extract it first), ``StoreError`` if ``folder`` holds anything but a network or may not be
    written by this user, and ``ConfigError`` for a card of wrong fields.
    """
    folder = Path(folder)
    if folder.exists() and (others := others_files(folder)):
        raise StoreError(f"{folder}: not a folder of hiap.save (it holds {others[0]}); expected a new or an old one")
    spec = describe(model)
    require_plain(model)
    tell_lost(model, None, "save")
    model = _in_form(model)
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    _check_same(build(spec, meta=True), model, state)
    described = None if card is None else cards.text(cards.checked(card), model)
    try:
        with atomic_folder(folder) as temporary:
            save_file(state, temporary / WEIGHTS)
            atomic_write(temporary / ARCHITECTURE, (spec.model_dump_json(indent=1) + "\n").encode())
            if described is not None:
                atomic_write(temporary / cards.NAME, described.encode())
    except PermissionError as error:
        raise StoreError(f"{folder}: {error.strerror}; nothing was written") from None


def others_files(folder: Path) -> list[str]:
    """Names in ``folder`` that ``save`` does not write; the folder's own if it is a file."""
    if not folder.is_dir():
        return [folder.name]
    names = {path.name for path in folder.iterdir()}
    ours = {ARCHITECTURE, WEIGHTS} | ({cards.NAME} if ARCHITECTURE in names else set())  # alone, it is somebody's
    return sorted(names - ours)


def folder_of(name: str | Path) -> Path:
    """A folder as it is; where there is none, the hub's ``owner/name``, fetched. Raises ``StoreError`` (one line)."""
    if isinstance(name, str) and not Path(name).exists() and hub.is_name(name):
        return hub.fetch(name)
    return Path(name)


def load(folder: str | Path) -> Any:
    """The network that ``save`` wrote, in eval mode, on the CPU: of a folder, or the hub's ``owner/name``. Raises
    ``StoreError`` (one line) for anything else."""
    folder = folder_of(folder)
    try:
        spec = Architecture.model_validate_json((folder / ARCHITECTURE).read_text(encoding="utf-8"))
        state = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError, UnicodeDecodeError) as error:
        raise StoreError(
            f"{folder}: expected {ARCHITECTURE} and {WEIGHTS} of hiap.save: {one_line(error, 300)}"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise StoreError(f"{folder / ARCHITECTURE}: not format {FORMAT} {VERSION}: {where}: {first['msg']}") from None
    try:
        model = build(spec)
        _take_types(model, state)
        model.load_state_dict(state, strict=True)
        for name in spec.frozen:
            model.get_parameter(name).requires_grad_(False)
    # UnsupportedModelError is a ValueError; sizes that make no network fail in torch or timm in any of these ways.
    except (RuntimeError, ValueError, TypeError, ArithmeticError, AssertionError, AttributeError) as error:
        raise StoreError(f"{folder}: weights do not fit the architecture: {one_line(error, 300)}") from None
    return model.eval()


def describe(model: Any) -> Architecture:
    """The sizes of a dense or extracted ViT. Raises ``UnsupportedModelError`` naming what has no description."""
    if type(model) not in (VisionTransformer, VisionTransformerDistilled, Eva, Beit):
        raise UnsupportedModelError(f"{type(model).__name__}: expected a timm VisionTransformer, Eva or Beit")
    if is_gated(model):
        raise UnsupportedModelError("the model carries gates: call hiap.extract first")
    model = _in_form(model)
    layouts = {m.layout for m in model.modules() if isinstance(m, PrunedAttention)}
    embed, registers = model.patch_embed, getattr(model, "reg_token", None)
    return Architecture(
        family="eva" if isinstance(model, Eva) else "beit" if isinstance(model, Beit) else "vit",
        stem=_stem_name(model),
        embed_norm=_norm_spec("patch_embed.norm", getattr(embed, "norm", None)),
        pool=_pool_spec(getattr(model, "attn_pool", None)),
        rope=_rope_spec(model),
        distilled=isinstance(model, VisionTransformerDistilled),
        img_size=embed.img_size,
        patch_size=embed.patch_size,
        in_chans=channels(embed),
        num_classes=classes(model),
        global_pool=model.global_pool,
        embed_dim=model.embed_dim,
        class_token=model.cls_token is not None,
        reg_tokens=0 if registers is None else registers.shape[1],
        no_embed_class=getattr(model, "no_embed_class", False),
        pos_embed=model.pos_embed is not None,
        pool_include_prefix=getattr(model, "pool_include_prefix", False),
        dynamic_img_size=getattr(model, "dynamic_img_size", False),
        dynamic_img_pad=getattr(embed, "dynamic_img_pad", False),
        head=_head_spec(model),
        drops=(_rate(model.pos_drop), _rate(getattr(model, "patch_drop", None)), _rate(model.head_drop)),
        frozen=_frozen(model),
        **_labels(model),
        norm_pre=_norm_spec("norm_pre", getattr(model, "norm_pre", None)),
        norm=_norm_spec("norm", model.norm),
        fc_norm=_norm_spec("fc_norm", model.fc_norm),
        layout=layouts.pop() if layouts else LAYOUTS[0],
        pixels=_pixel_spec(model),
        blocks=[_block_spec(f"blocks.{i}", b) for i, b in enumerate(model.blocks)],
    )


def _in_form(model: Any) -> Any:
    """An extracted network or a plain dense one as it is, a dense one of another family in the method's form."""
    extracted = any(isinstance(block, PrunedBlock) for block in model.blocks)
    return model if extracted or standard(model) is model else copied(model)


def build(spec: Architecture, meta: bool = False) -> Any:
    """An untrained network of this architecture (``meta``: without storage)."""
    with torch.device("meta" if meta else "cpu"):
        model = _build_frame(spec)
        names = ("norm", "fc_norm") if spec.family == "beit" else ("norm_pre", "norm", "fc_norm")
        for name in names:
            setattr(model, name, _build_norm(getattr(spec, name)))
        if spec.stem:
            model.patch_embed = _build_stem(spec)
        elif spec.embed_norm:
            model.patch_embed.norm = _build_norm(spec.embed_norm)
        if spec.pool:
            model.attn_pool, model.global_pool = _build_pool(spec.embed_dim, spec.pool), spec.global_pool
        if spec.pool and not spec.pool.heads and isinstance(model.head, nn.Linear):
            model.head = nn.Linear(2 * spec.embed_dim, spec.num_classes)
        model.blocks = nn.Sequential(*(_build_block(spec.embed_dim, b) for b in spec.blocks))
    if spec.rope:  # its buffers are computed, not stored
        model.rope, model.rope_mixed = _build_rope(spec, meta), spec.rope.rope_type == "mixed"
    model.feature_info = [{"module": f"blocks.{i}", "num_chs": spec.embed_dim} for i in range(len(spec.blocks))]
    set_layout(model, spec.layout)
    if spec.head is not None:
        with torch.device("meta" if meta else "cpu"):
            model.head = _build_head(spec.head)
    _set_rates(model, spec)
    vars(model)["pretrained_cfg"] = _timm_cfg(spec)  # where timm keeps it, and timm.data looks for it
    return model


def _timm_cfg(spec: Architecture) -> dict[str, Any]:
    cfg: dict[str, Any] = {"input_size": (spec.in_chans, *spec.img_size), "num_classes": spec.num_classes}
    cfg |= spec.pixels.model_dump() if spec.pixels else {}
    cfg |= {"architecture": spec.stem} if spec.stem else {}
    labels = {"label_names": spec.label_names, "label_descriptions": spec.label_descriptions}
    return cfg | {name: value for name, value in labels.items() if value}


def _labels(model: Any) -> dict[str, Any]:
    """timm's names of the classes, as far as they are of this many."""
    known = getattr(model, "pretrained_cfg", None) or {}
    names, described = known.get("label_names"), known.get("label_descriptions")
    if not names or len(names) != classes(model):
        return {}
    told = {str(name): str(text) for name, text in described.items()} if isinstance(described, dict) else None
    return {"label_names": [str(name) for name in names], "label_descriptions": told}


def _frozen(model: Any) -> list[str]:
    """Parameters that are not trained; of a network that is only run, in which none is, []."""
    names = [name for name, p in model.named_parameters() if not p.requires_grad]
    return [] if len(names) == len(list(model.parameters())) else names


def _take_types(model: Any, state: dict[str, torch.Tensor]) -> None:
    """Give a network the types of numbers of these weights, and its other buffers theirs if they agree."""
    types = {value.dtype for value in state.values() if value.is_floating_point()}
    if len(types) == 1:
        model.to(types.pop())
        return
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in state and tensor.is_floating_point():
            tensor.data = tensor.data.to(state[name].dtype)


def _rate(drop: Any) -> float:
    """Of a dropout, of stochastic depth, or of patches; 0 of what is no dropout."""
    for name in ("p", "drop_prob", "prob"):
        if (rate := getattr(drop, name, None)) is not None:
            return float(rate)
    return 0.0


def _set_rates(model: Any, spec: Architecture) -> None:
    """The dropouts beside those of the blocks, and what the stem does with sizes that patches do not divide."""
    positions, patches, head = spec.drops
    model.pos_drop, model.head_drop = nn.Dropout(positions), nn.Dropout(head)
    if patches:
        model.patch_drop = PatchDropout(patches, num_prefix_tokens=model.num_prefix_tokens)
    if spec.dynamic_img_pad:
        model.patch_embed.dynamic_img_pad = True


def _head_spec(model: Any) -> list[LayerSpec] | None:
    """The layers of a head, None of one that timm builds."""
    head, width = (
        model.head,
        model.embed_dim * (2 if isinstance(getattr(model, "attn_pool", None), TokenAndMean) else 1),
    )
    if not classifiers(model) or (type(head) is nn.Linear and head.bias is not None and head.in_features == width):
        return None
    layers = list(head) if type(head) is nn.Sequential else [head]
    if type(head) is nn.Sequential and len(layers) == 1:
        layers.append(nn.Identity())  # else it would be taken for the layer alone
    return [_layer_spec(f"head.{i}" if len(layers) > 1 else "head", layer) for i, layer in enumerate(layers)]


def _layer_spec(name: str, layer: nn.Module) -> LayerSpec:
    if type(layer) is nn.Linear:
        return LayerSpec(
            kind="linear", inputs=layer.in_features, outputs=layer.out_features, bias=layer.bias is not None
        )
    if type(layer) is nn.Dropout:
        return LayerSpec(kind="dropout", rate=layer.p)
    if type(layer) is nn.Identity:
        return LayerSpec(kind="identity")
    if type(layer) in _NORMS.values():
        return LayerSpec(kind="norm", norm=_norm_spec(name, layer))
    if hasattr(layer, "in_features"):
        require_linear(name, layer)
    return LayerSpec(kind="activation", activation=_activation_name(name, layer))


def _build_head(specs: list[LayerSpec]) -> nn.Module:
    def layer(spec: LayerSpec) -> nn.Module:
        if spec.kind == "linear":
            return nn.Linear(spec.inputs, spec.outputs, bias=spec.bias)
        if spec.kind == "dropout":
            return nn.Dropout(spec.rate)
        return _activation(spec.activation)() if spec.kind == "activation" else _build_norm(spec.norm)

    return layer(specs[0]) if len(specs) == 1 else nn.Sequential(*map(layer, specs))


def _pixel_spec(model: Any) -> PixelSpec | None:
    known = getattr(model, "pretrained_cfg", None) or {}
    found = {name: known.get(name) for name in PixelSpec.model_fields}
    return None if None in found.values() else PixelSpec(**found)


def _build_frame(spec: Architecture) -> Any:
    """The network without blocks."""
    common: dict[str, Any] = {
        "img_size": spec.img_size,
        "patch_size": spec.patch_size,
        "in_chans": spec.in_chans,
        "num_classes": spec.num_classes,
        # what pools by a module is put in later
        "global_pool": "avg" if spec.pool else spec.global_pool,
        "embed_dim": spec.embed_dim,
        "depth": 0,
        "num_heads": 1,
    }
    if spec.family == "beit":
        return Beit(**common, use_abs_pos_emb=spec.pos_embed)
    common |= {"no_embed_class": spec.no_embed_class, "dynamic_img_size": spec.dynamic_img_size}
    common |= {"class_token": spec.class_token}
    if spec.family == "eva":
        return Eva(
            **common,
            num_reg_tokens=spec.reg_tokens,
            use_abs_pos_emb=spec.pos_embed,
            use_pre_transformer_norm=spec.norm_pre is not None,
        )
    common |= {"pos_embed": "learn" if spec.pos_embed else "none", "pre_norm": spec.norm_pre is not None}
    if spec.stem:
        common |= {"img_size": _grid(spec), "patch_size": 1}  # for as many tokens as the stem will give
    if spec.distilled:
        return VisionTransformerDistilled(**common, weight_init="skip")
    return VisionTransformer(
        **common, weight_init="skip", reg_tokens=spec.reg_tokens, pool_include_prefix=spec.pool_include_prefix
    )


def _stem_name(model: Any) -> str:
    """The timm entry that makes the convolutional stem of ``model`` again; '' where it only cuts patches."""
    embed = model.patch_embed
    if type(embed) is PatchEmbed:
        return ""
    name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture", "")
    if not name or not timm.is_model(name):
        raise UnsupportedModelError(
            f"patch_embed ({type(embed).__name__}): expected timm's PatchEmbed, or a model of timm.create_model"
        )
    return name


def _build_stem(spec: Architecture) -> Any:
    """By name, and only names that timm registers: nothing is fetched or imported."""
    if not timm.is_model(spec.stem):
        raise UnsupportedModelError(f"stem '{spec.stem}': expected an entry of timm")
    donor: Any = timm.create_model(
        spec.stem, depth=0, num_classes=0, embed_dim=spec.embed_dim, img_size=spec.img_size, in_chans=spec.in_chans
    )
    return donor.patch_embed


def _grid(spec: Architecture) -> tuple[int, int]:
    with torch.device("meta"):
        return _build_stem(spec).grid_size


def _pool_spec(pool: Any) -> PoolSpec | None:
    if pool is None:
        return None
    if isinstance(pool, TokenAndMean):
        return PoolSpec(prefix=pool.prefix)
    if type(pool) is not AttentionPoolLatent or pool.latent_len != 1 or pool.mlp is None:
        raise UnsupportedModelError(f"attn_pool ({type(pool).__name__}): expected one latent query and an FFN")
    if not isinstance(pool.q_norm, nn.Identity) or pool.pos_embed is not None:
        raise UnsupportedModelError("attn_pool: expected neither norms of Q and K nor positions of its own")
    return PoolSpec(
        heads=pool.num_heads,
        neurons=pool.mlp.fc1.out_features,
        norm=_norm_spec("attn_pool.norm", pool.norm),
        activation=_activation_name("attn_pool.mlp.act", pool.mlp.act),
    )


def _build_pool(dim: int, spec: PoolSpec) -> nn.Module:
    if not spec.heads:
        return TokenAndMean(spec.prefix)
    pool = AttentionPoolLatent(dim, num_heads=spec.heads)
    act: Any = _activation(spec.activation)
    pool.norm, pool.mlp = _build_norm(spec.norm), Mlp(dim, spec.neurons, dim, act_layer=act)
    return pool


_ROPES = {"RotaryEmbeddingCat": "cat", "RotaryEmbeddingMixed": "mixed", "RotaryEmbeddingDinoV3": "dinov3"}


def _rope_spec(model: Any) -> RopeSpec | None:
    rope = getattr(model, "rope", None)
    if rope is None:
        return None
    kind = _ROPES.get(type(rope).__name__)
    if kind is None:
        raise UnsupportedModelError(f"rope ({type(rope).__name__}): expected one of {', '.join(_ROPES)}")
    heads = rope.num_heads if kind == "mixed" else 1
    spec = RopeSpec(
        rope_type=kind,  # type: ignore[arg-type]
        dim=rope.dim,
        num_heads=heads,
        temperature=rope.temperature,
        grid_indexing=rope.grid_indexing,
        grid_offset=getattr(rope, "grid_offset", 0.0),
        rotate_half=getattr(rope, "rotate_half", False),
        fixed=not model.dynamic_img_size,
        ref_feat_shape=getattr(rope, "ref_feat_shape", None),
    )
    again = _rope(spec, model.patch_embed.grid_size, len(model.blocks))
    ours, theirs = (dict(r.named_buffers()) for r in (rope, again))
    if ours.keys() != theirs.keys() or any(not torch.equal(v.cpu(), theirs[k]) for k, v in ours.items()):
        raise UnsupportedModelError(f"rope ({type(rope).__name__}): with settings that cannot be described")
    return spec


def _build_rope(spec: Architecture, meta: bool) -> nn.Module:
    grid = (spec.img_size[0] // spec.patch_size[0], spec.img_size[1] // spec.patch_size[1])
    assert spec.rope
    return _rope(spec.rope, grid, len(spec.blocks)).to("meta" if meta else "cpu")


def _rope(spec: RopeSpec, grid: tuple[int, int], depth: int) -> nn.Module:
    settings: dict[str, Any] = spec.model_dump(exclude={"fixed", "ref_feat_shape", "grid_offset", "rotate_half"})
    settings["feat_shape"] = grid if spec.fixed else None
    if spec.rope_type == "mixed":
        return create_rope_embed(depth=depth, **settings)
    settings |= {"grid_offset": spec.grid_offset}
    if spec.rotate_half:
        settings["rotate_half"] = True
    if spec.rope_type == "cat":
        settings |= {"in_pixels": False, "ref_feat_shape": spec.ref_feat_shape}
    return create_rope_embed(**settings)


def _block_spec(name: str, block: Any) -> BlockSpec:
    if type(block) not in (Block, PrunedBlock):
        raise UnsupportedModelError(f"{name} ({type(block).__name__}): expected timm's Block or an extracted one")
    mlp = block.mlp
    if mlp is not None and type(mlp) is not Mlp:
        raise UnsupportedModelError(f"{name}.mlp ({type(mlp).__name__}): expected timm.layers.Mlp")
    for part, layers in ((block.attn, ("qkv", "proj")), (mlp, ("fc1", "fc2"))):
        for layer in layers if part is not None else ():
            require_linear(f"{name}.{layer}", getattr(part, layer))
    norm2, norm2_again = block.norm2, None
    if isinstance(norm2, nn.Sequential):
        norm2, norm2_again = norm2
    spec = BlockSpec(
        norm1=_norm_spec(f"{name}.norm1", block.norm1),
        attn=None if block.attn is None else _attention_spec(f"{name}.attn", block.attn),
        attn_constant=getattr(block, "attn_constant", None) is not None,
        layer_scale1=isinstance(block.ls1, LayerScale),
        after1=_norm_spec(f"{name}.ls1", block.ls1) if is_norm(block.ls1) else None,
        norm2=_norm_spec(f"{name}.norm2", norm2),
        norm2_again=_norm_spec(f"{name}.norm2", norm2_again),
        mlp_constant=getattr(block, "mlp_constant", None) is not None,
        layer_scale2=isinstance(block.ls2, LayerScale),
        after2=_norm_spec(f"{name}.ls2", block.ls2) if is_norm(block.ls2) else None,
        drop_paths=(_rate(block.drop_path1), _rate(block.drop_path2)),
    )
    if mlp is None:
        return spec
    act, glu = mlp.act, None
    if isinstance(act, Glu):
        act, glu = act.act, "last" if act.gate_last else "first"
    return spec.model_copy(
        update={
            "neurons": mlp.fc2.in_features,
            "fc1_bias": mlp.fc1.bias is not None,
            "fc2_bias": mlp.fc2.bias is not None,
            "activation": _activation_name(f"{name}.mlp.act", act),
            "glu": glu,
            "hidden_norm": _norm_spec(f"{name}.mlp.norm", mlp.norm),
            "drops": (_rate(mlp.drop1), _rate(mlp.drop2)),
        }
    )


def _attention_spec(name: str, attn: Any) -> AttentionSpec:
    position = getattr(attn, "position", None)
    rotary = position if isinstance(position, Rotary) else None
    common = {
        "scale": attn.scale,
        "qkv_bias": biases(attn.qkv) if isinstance(attn.qkv, JoinedLinear) else attn.qkv.bias is not None,
        "proj_bias": attn.proj.bias is not None,
        "q_norm": _norm_spec(f"{name}.q_norm", attn.q_norm),
        "k_norm": _norm_spec(f"{name}.k_norm", attn.k_norm),
        "norm": _norm_spec(f"{name}.norm", attn.norm),
        "prefix": rotary.prefix if rotary else None,
        "halves": bool(rotary and rotary.halves),
        "angles": rotary.heads if rotary else None,
        "window": position.window if isinstance(position, RelativeBias) else None,
        "drops": (_rate(attn.attn_drop), _rate(attn.proj_drop)),
    }
    if isinstance(attn, PrunedAttention):
        return AttentionSpec(qk_dims=attn.qk_dims, value_dims=attn.value_dims, **common)
    if type(attn) is Attention and isinstance(attn.norm, nn.Identity) and getattr(attn, "gate", None) is None:
        return AttentionSpec(heads=attn.num_heads, head_dim=attn.head_dim, **common)
    raise UnsupportedModelError(f"{name} ({type(attn).__name__}): expected timm.layers.Attention or an extracted one")


def _build_block(dim: int, spec: BlockSpec) -> nn.Module:
    mlp = _build_mlp(dim, spec) if spec.neurons else None
    norm2 = _build_norm(spec.norm2)
    if spec.norm2_again:
        norm2 = nn.Sequential(norm2, _build_norm(spec.norm2_again))
    parts: dict[str, nn.Module | None] = {
        "norm1": _build_norm(spec.norm1) if spec.attn else None,
        "attn": _build_attention(dim, spec.attn) if spec.attn else None,
        "ls1": _build_scale(dim, spec.layer_scale1, spec.after1) if spec.attn else None,
        "drop_path1": _build_drop_path(spec.drop_paths[0]) if spec.attn else None,
        "norm2": norm2 if mlp else None,
        "mlp": mlp,
        "ls2": _build_scale(dim, spec.layer_scale2, spec.after2) if mlp else None,
        "drop_path2": _build_drop_path(spec.drop_paths[1]) if mlp else None,
    }
    if spec.attn and spec.attn.heads:  # a dense block stays timm's own, so that it can be gated again
        block = Block(dim, 1)
        for name, part in parts.items():
            setattr(block, name, part)
        return block
    zeros = torch.zeros(dim)
    constants = {n: zeros if getattr(spec, n) else None for n in ("attn_constant", "mlp_constant")}
    return PrunedBlock(parts, constants)


def _build_drop_path(rate: float) -> nn.Module:
    return DropPath(rate) if rate else nn.Identity()


def _build_scale(dim: int, layer_scale: bool, after: NormSpec | None) -> nn.Module:
    return LayerScale(dim) if layer_scale else _build_norm(after)


def _build_mlp(dim: int, spec: BlockSpec) -> nn.Module:
    act: Any = _activation(spec.activation)
    mlp: Any = Mlp(dim, spec.neurons, dim, act_layer=act, bias=(spec.fc1_bias, spec.fc2_bias))
    mlp.norm = _build_norm(spec.hidden_norm)
    mlp.drop1, mlp.drop2 = map(nn.Dropout, spec.drops)
    if spec.glu:
        mlp.fc1 = nn.Linear(dim, 2 * spec.neurons, bias=spec.fc1_bias)
        mlp.act = Glu(mlp.act, spec.glu == "last")
    return mlp


def _build_attention(dim: int, spec: AttentionSpec) -> nn.Module:
    norms: dict[str, Any] = {"q_norm": _build_norm(spec.q_norm), "k_norm": _build_norm(spec.k_norm)}
    if spec.heads is None:
        if not spec.qk_dims or not spec.value_dims or len(spec.qk_dims) != len(spec.value_dims):
            raise UnsupportedModelError("attention: expected as many qk_dims as value_dims, at least one")
        position: Position | None = None
        if spec.window:
            position = RelativeBias(spec.window, len(spec.value_dims))
        elif spec.prefix is not None:
            position = Rotary(spec.prefix, spec.halves, spec.angles)
        return PrunedAttention(
            dim,
            spec.qk_dims,
            spec.value_dims,
            spec.scale,
            spec.qkv_bias,
            spec.proj_bias,
            **norms,
            attn_drop=spec.drops[0],
            proj_drop=spec.drops[1],
            position=position,
            norm=_build_norm(spec.norm) if spec.norm else None,
        )
    if not isinstance(spec.qkv_bias, bool):
        raise UnsupportedModelError("attention: expected one qkv_bias for timm's own attention")
    attn = Attention(
        dim, spec.heads, attn_head_dim=spec.head_dim, qkv_bias=spec.qkv_bias, proj_bias=spec.proj_bias, dim_out=dim
    )
    attn.q_norm, attn.k_norm = norms["q_norm"], norms["k_norm"]
    attn.attn_drop, attn.proj_drop = map(nn.Dropout, spec.drops)
    return attn


def _norm_spec(name: str, norm: nn.Module | None) -> NormSpec | None:
    if norm is None or isinstance(norm, nn.Identity):
        return None
    for kind, cls in _NORMS.items():
        if type(norm) is cls:
            return NormSpec(kind=kind, width=norm.normalized_shape[0], eps=norm.eps)  # type: ignore[index, arg-type]
    raise UnsupportedModelError(f"{name} ({type(norm).__name__}): expected one of {', '.join(_NORMS)}")


def _build_norm(spec: NormSpec | None) -> nn.Module:
    if spec is None:
        return nn.Identity()
    if spec.kind not in _NORMS:
        raise UnsupportedModelError(f"norm '{spec.kind}': expected one of {', '.join(_NORMS)}")
    return _NORMS[spec.kind](spec.width, eps=spec.eps)


def _activation(name: str) -> Callable[[], nn.Module]:
    if name not in _ACTIVATIONS:
        raise UnsupportedModelError(f"activation '{name}': expected one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _activation_name(name: str, act: nn.Module) -> str:
    if isinstance(act, nn.GELU):
        return "gelu_tanh" if act.approximate == "tanh" else "gelu"
    if isinstance(act, GELUTanh):
        return "gelu_tanh"
    for key, make in _ACTIVATIONS.items():
        if type(act) is make:
            return key
    raise UnsupportedModelError(f"{name} ({type(act).__name__}): expected one of {', '.join(_ACTIVATIONS)}")


def _check_same(again: Any, model: Any, state: dict[str, torch.Tensor]) -> None:
    """The description must rebuild the very network: same names, same shapes, and layer by layer the same stem."""
    built = {k: tuple(v.shape) for k, v in again.state_dict().items()}
    given = {k: tuple(v.shape) for k, v in state.items()}
    if wrong := sorted(k for k in built.keys() | given.keys() if built.get(k) != given.get(k)):
        raise UnsupportedModelError(f"{wrong[0]}: shape {given.get(wrong[0])} cannot be described by format {FORMAT}")
    if str(again.patch_embed) != str(model.patch_embed):
        raise UnsupportedModelError(f"patch_embed: other layers than {type(model).__name__} builds")
