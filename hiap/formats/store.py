"""A network as a folder: ``architecture.json`` (what to build), ``weights.safetensors`` (what to fill in), and, if it
was asked for, a model card, ``README.md``.

Nothing is pickled and loading runs no code from the folder: the JSON names sizes, and the few module types that it may
name are listed here. Dense and extracted models are stored alike, block by block.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.layers import (
    Attention,
    AttentionPoolLatent,
    GELUTanh,
    LayerNorm,
    LayerScale,
    Mlp,
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

from hiap.backbones.families import channels, copied, standard
from hiap.backbones.parts import Glu, JoinedLinear, Position, RelativeBias, Rotary, TokenAndMean, biases, is_norm
from hiap.files import atomic_folder, atomic_write
from hiap.formats import card as cards
from hiap.gated_vit import UnsupportedModelError, is_gated
from hiap.options import one_line
from hiap.pruned_vit import LAYOUTS, PrunedAttention, PrunedBlock, set_layout

FORMAT: Literal["hiap-vit"] = "hiap-vit"
VERSION: Literal[1] = 1
ARCHITECTURE, WEIGHTS = "architecture.json", "weights.safetensors"

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "quick_gelu": QuickGELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}
_NORMS: dict[str, type[nn.Module]] = {"layernorm": LayerNorm, "torch_layernorm": nn.LayerNorm, "rmsnorm": RmsNorm}


class StoreError(ValueError):
    """A folder that is not a network of this format, or a damaged one; one line."""


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid")


class NormSpec(_Spec):
    kind: str
    width: int
    eps: float


class AttentionSpec(_Spec):
    """``heads`` is given for timm's own attention, ``value_dims`` and ``qk_dims`` for a pruned one or one of another
    family. Of those ``qkv_bias`` may say of Q, K and V each whether it has a bias; ``prefix`` tokens are not rotated,
    the others in ``halves`` or in pairs, by all angles or by those of ``angles``; ``window``: BEiT's bias."""

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


class BlockSpec(_Spec):
    """``norm2_again``: a second norm before the FFN; ``after1``, ``after2``: norms behind the branches; ``glu``: which
    half of a gated FFN is bent."""

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
    if folder.exists() and (others := _others(folder)):
        raise StoreError(f"{folder}: not a folder of hiap.save (it holds {others[0]}); expected a new or an old one")
    spec, model = describe(model), _in_form(model)
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


def _others(folder: Path) -> list[str]:
    """Names in ``folder`` that ``save`` does not write; the folder's own if it is a file."""
    if not folder.is_dir():
        return [folder.name]
    names = {path.name for path in folder.iterdir()}
    ours = {ARCHITECTURE, WEIGHTS} | ({cards.NAME} if ARCHITECTURE in names else set())  # alone, it is somebody's
    return sorted(names - ours)


def folder_of(name: str | Path) -> Path:
    """A folder as it is; where there is none, the hub's ``owner/name``, fetched. Raises ``StoreError`` (one line)."""
    from hiap.formats import hub

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
        model.load_state_dict(state, strict=True)
    # UnsupportedModelError is a ValueError; sizes that make no network fail in torch or timm in any of these ways.
    except (RuntimeError, ValueError, TypeError, ArithmeticError, AssertionError) as error:
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
        num_classes=model.num_classes,
        global_pool=model.global_pool,
        embed_dim=model.embed_dim,
        class_token=model.cls_token is not None,
        reg_tokens=0 if registers is None else registers.shape[1],
        no_embed_class=getattr(model, "no_embed_class", False),
        pos_embed=model.pos_embed is not None,
        pool_include_prefix=getattr(model, "pool_include_prefix", False),
        dynamic_img_size=getattr(model, "dynamic_img_size", False),
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
    known = spec.pixels.model_dump() if spec.pixels else {}
    if known or spec.stem:  # where timm keeps it, and timm.data looks for it
        vars(model)["pretrained_cfg"] = known | ({"architecture": spec.stem} if spec.stem else {})
    return model


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
        "drop_path1": nn.Identity(),
        "norm2": norm2 if mlp else None,
        "mlp": mlp,
        "ls2": _build_scale(dim, spec.layer_scale2, spec.after2) if mlp else None,
        "drop_path2": nn.Identity(),
    }
    if spec.attn and spec.attn.heads:  # a dense block stays timm's own, so that it can be gated again
        block = Block(dim, 1)
        for name, part in parts.items():
            setattr(block, name, part)
        return block
    zeros = torch.zeros(dim)
    constants = {n: zeros if getattr(spec, n) else None for n in ("attn_constant", "mlp_constant")}
    return PrunedBlock(parts, constants)


def _build_scale(dim: int, layer_scale: bool, after: NormSpec | None) -> nn.Module:
    return LayerScale(dim) if layer_scale else _build_norm(after)


def _build_mlp(dim: int, spec: BlockSpec) -> nn.Module:
    act: Any = _activation(spec.activation)
    mlp: Any = Mlp(dim, spec.neurons, dim, act_layer=act, bias=(spec.fc1_bias, spec.fc2_bias))
    mlp.norm = _build_norm(spec.hidden_norm)
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
            position=position,
            norm=_build_norm(spec.norm) if spec.norm else None,
        )
    if not isinstance(spec.qkv_bias, bool):
        raise UnsupportedModelError("attention: expected one qkv_bias for timm's own attention")
    attn = Attention(
        dim, spec.heads, attn_head_dim=spec.head_dim, qkv_bias=spec.qkv_bias, proj_bias=spec.proj_bias, dim_out=dim
    )
    attn.q_norm, attn.k_norm = norms["q_norm"], norms["k_norm"]
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
