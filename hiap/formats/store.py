"""A network as a folder: ``architecture.json`` (what to build), ``weights.safetensors`` (what to fill in), and, if it
was asked for, a model card, ``README.md``.

Nothing is pickled and loading runs no code from the folder: the JSON names sizes, and the few module types that it may
name are listed here. Dense and extracted models are stored alike, block by block.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.layers import Attention, LayerNorm, LayerScale, Mlp, QuickGELU, RmsNorm
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from hiap.files import atomic_write
from hiap.formats import card as cards
from hiap.gated_vit import UnsupportedModelError, is_gated
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
    """``heads`` is given for timm's own attention, ``value_dims`` and ``qk_dims`` for a pruned one."""

    heads: int | None = None
    head_dim: int | None = None
    qk_dims: list[int] | None = None
    value_dims: list[int] | None = None
    scale: float
    qkv_bias: bool
    proj_bias: bool
    q_norm: NormSpec | None = None
    k_norm: NormSpec | None = None


class BlockSpec(_Spec):
    norm1: NormSpec | None = None
    attn: AttentionSpec | None = None
    attn_constant: bool = False
    layer_scale1: bool = False
    norm2: NormSpec | None = None
    neurons: int = Field(0, ge=0)
    fc1_bias: bool = True
    fc2_bias: bool = True
    activation: str = "gelu"
    mlp_constant: bool = False
    layer_scale2: bool = False


class PixelSpec(_Spec):
    """How images become what the network expects: timm's names, pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float


class Architecture(_Spec):
    format: Literal["hiap-vit"] = FORMAT
    version: Literal[1] = VERSION
    distilled: bool
    img_size: tuple[PositiveInt, PositiveInt]
    patch_size: tuple[PositiveInt, PositiveInt]
    in_chans: PositiveInt
    num_classes: int
    global_pool: Literal["", "avg", "avgmax", "max", "token"]
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
    gated one, for example: extract it first), ``StoreError`` if ``folder`` holds anything but a network, and
    ``ConfigError`` for a card of wrong fields.
    """
    folder = Path(folder)
    if folder.exists() and (others := _others(folder)):
        raise StoreError(f"{folder}: not a folder of hiap.save (it holds {others[0]}); expected a new or an old one")
    spec = describe(model)
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    _check_same(build(spec, meta=True), state)
    described = None if card is None else cards.text(cards.checked(card), model)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        save_file(state, temporary / WEIGHTS)
        atomic_write(temporary / ARCHITECTURE, (spec.model_dump_json(indent=1, exclude_defaults=False) + "\n").encode())
        if described is not None:
            atomic_write(temporary / cards.NAME, described.encode())
        os.chmod(temporary, 0o755)
        if folder.exists():  # a folder cannot be replaced in one step: set the old one aside first
            old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.old."))
            os.replace(folder, old)
            os.replace(temporary, folder)
            shutil.rmtree(old)
        else:
            os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


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
        spec = Architecture.model_validate_json((folder / ARCHITECTURE).read_text())
        state = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError, UnicodeDecodeError) as error:
        raise StoreError(f"{folder}: expected {ARCHITECTURE} and {WEIGHTS} of hiap.save: {line(error)}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "file"
        raise StoreError(f"{folder / ARCHITECTURE}: not format {FORMAT} {VERSION}: {where}: {first['msg']}") from None
    try:
        model = build(spec)
        model.load_state_dict(state, strict=True)
    # UnsupportedModelError is a ValueError; sizes that make no network fail in torch or timm in any of these ways.
    except (RuntimeError, ValueError, TypeError, ArithmeticError, AssertionError) as error:
        raise StoreError(f"{folder}: weights do not fit the architecture: {line(error)}") from None
    return model.eval()


def describe(model: Any) -> Architecture:
    """The sizes of a dense or extracted ViT. Raises ``UnsupportedModelError`` naming what has no description."""
    if type(model) not in (VisionTransformer, VisionTransformerDistilled):
        raise UnsupportedModelError(f"{type(model).__name__}: expected a timm VisionTransformer")
    if is_gated(model):
        raise UnsupportedModelError("the model carries gates: call hiap.extract first")
    if model.attn_pool is not None:
        raise UnsupportedModelError(f"attn_pool ({type(model.attn_pool).__name__}): expected token or average pooling")
    layouts = {m.layout for m in model.modules() if isinstance(m, PrunedAttention)}
    distilled = isinstance(model, VisionTransformerDistilled)
    return Architecture(
        distilled=distilled,
        img_size=model.patch_embed.img_size,
        patch_size=model.patch_embed.patch_size,
        in_chans=model.patch_embed.proj.in_channels,
        num_classes=model.num_classes,
        global_pool=model.global_pool,
        embed_dim=model.embed_dim,
        class_token=model.cls_token is not None,
        reg_tokens=model.num_reg_tokens,
        no_embed_class=model.no_embed_class,
        pos_embed=model.pos_embed is not None,
        pool_include_prefix=model.pool_include_prefix,
        dynamic_img_size=model.dynamic_img_size,
        norm_pre=_norm_spec("norm_pre", model.norm_pre),
        norm=_norm_spec("norm", model.norm),
        fc_norm=_norm_spec("fc_norm", model.fc_norm),
        layout=layouts.pop() if layouts else LAYOUTS[0],
        pixels=_pixel_spec(model),
        blocks=[_block_spec(f"blocks.{i}", b) for i, b in enumerate(model.blocks)],
    )


def build(spec: Architecture, meta: bool = False) -> Any:
    """An untrained network of this architecture (``meta``: without storage)."""
    kind = VisionTransformerDistilled if spec.distilled else VisionTransformer
    extra: dict[str, Any] = (
        {} if spec.distilled else {"reg_tokens": spec.reg_tokens, "pool_include_prefix": spec.pool_include_prefix}
    )
    with torch.device("meta" if meta else "cpu"):
        model = kind(
            img_size=spec.img_size,
            patch_size=spec.patch_size,
            in_chans=spec.in_chans,
            num_classes=spec.num_classes,
            global_pool=spec.global_pool,
            embed_dim=spec.embed_dim,
            depth=0,
            num_heads=1,
            class_token=spec.class_token,
            no_embed_class=spec.no_embed_class,
            pos_embed="learn" if spec.pos_embed else "none",
            dynamic_img_size=spec.dynamic_img_size,
            pre_norm=spec.norm_pre is not None,
            weight_init="skip",
            **extra,
        )
        for name in ("norm_pre", "norm", "fc_norm"):
            setattr(model, name, _build_norm(getattr(spec, name)))
        model.blocks = nn.Sequential(*(_build_block(spec.embed_dim, b) for b in spec.blocks))
    model.feature_info = [{"module": f"blocks.{i}", "num_chs": spec.embed_dim} for i in range(len(spec.blocks))]
    set_layout(model, spec.layout)
    if spec.pixels:
        vars(model)["pretrained_cfg"] = spec.pixels.model_dump()  # where timm keeps it, and timm.data looks for it
    return model


def _pixel_spec(model: Any) -> PixelSpec | None:
    known = getattr(model, "pretrained_cfg", None) or {}
    found = {name: known.get(name) for name in PixelSpec.model_fields}
    return None if None in found.values() else PixelSpec(**found)


def _block_spec(name: str, block: Any) -> BlockSpec:
    if type(block) not in (Block, PrunedBlock):
        raise UnsupportedModelError(f"{name} ({type(block).__name__}): expected timm's Block or an extracted one")
    mlp = block.mlp
    if mlp is not None and type(mlp) is not Mlp:
        raise UnsupportedModelError(f"{name}.mlp ({type(mlp).__name__}): expected timm.layers.Mlp")
    spec = BlockSpec(
        norm1=_norm_spec(f"{name}.norm1", block.norm1),
        attn=None if block.attn is None else _attention_spec(f"{name}.attn", block.attn),
        attn_constant=getattr(block, "attn_constant", None) is not None,
        layer_scale1=isinstance(block.ls1, LayerScale),
        norm2=_norm_spec(f"{name}.norm2", block.norm2),
        mlp_constant=getattr(block, "mlp_constant", None) is not None,
        layer_scale2=isinstance(block.ls2, LayerScale),
    )
    if mlp is None:
        return spec
    return spec.model_copy(
        update={
            "neurons": mlp.fc1.out_features,
            "fc1_bias": mlp.fc1.bias is not None,
            "fc2_bias": mlp.fc2.bias is not None,
            "activation": _activation_name(f"{name}.mlp.act", mlp.act),
        }
    )


def _attention_spec(name: str, attn: Any) -> AttentionSpec:
    common = {
        "scale": attn.scale,
        "qkv_bias": attn.qkv.bias is not None,
        "proj_bias": attn.proj.bias is not None,
        "q_norm": _norm_spec(f"{name}.q_norm", attn.q_norm),
        "k_norm": _norm_spec(f"{name}.k_norm", attn.k_norm),
    }
    if isinstance(attn, PrunedAttention):
        return AttentionSpec(qk_dims=attn.qk_dims, value_dims=attn.value_dims, **common)
    if type(attn) is Attention and isinstance(attn.norm, nn.Identity) and getattr(attn, "gate", None) is None:
        return AttentionSpec(heads=attn.num_heads, head_dim=attn.head_dim, **common)
    raise UnsupportedModelError(f"{name} ({type(attn).__name__}): expected timm.layers.Attention or an extracted one")


def _build_block(dim: int, spec: BlockSpec) -> nn.Module:
    mlp = None
    if spec.neurons:
        act = _ACTIVATIONS.get(spec.activation)
        if act is None:
            raise UnsupportedModelError(f"activation '{spec.activation}': expected one of {', '.join(_ACTIVATIONS)}")
        mlp = Mlp(dim, spec.neurons, dim, act_layer=act, bias=(spec.fc1_bias, spec.fc2_bias))  # type: ignore[arg-type]
    parts: dict[str, nn.Module | None] = {
        "norm1": _build_norm(spec.norm1) if spec.attn else None,
        "attn": _build_attention(dim, spec.attn) if spec.attn else None,
        "ls1": LayerScale(dim) if spec.layer_scale1 else (nn.Identity() if spec.attn else None),
        "drop_path1": nn.Identity(),
        "norm2": _build_norm(spec.norm2) if mlp else None,
        "mlp": mlp,
        "ls2": LayerScale(dim) if spec.layer_scale2 else (nn.Identity() if mlp else None),
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


def _build_attention(dim: int, spec: AttentionSpec) -> nn.Module:
    norms: dict[str, Any] = {"q_norm": _build_norm(spec.q_norm), "k_norm": _build_norm(spec.k_norm)}
    if spec.heads is None:
        if not spec.qk_dims or not spec.value_dims or len(spec.qk_dims) != len(spec.value_dims):
            raise UnsupportedModelError("attention: expected as many qk_dims as value_dims, at least one")
        return PrunedAttention(dim, spec.qk_dims, spec.value_dims, spec.scale, spec.qkv_bias, spec.proj_bias, **norms)
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


def _activation_name(name: str, act: nn.Module) -> str:
    if isinstance(act, nn.GELU):
        return "gelu_tanh" if act.approximate == "tanh" else "gelu"
    for key, make in _ACTIVATIONS.items():
        if type(act) is make:
            return key
    raise UnsupportedModelError(f"{name} ({type(act).__name__}): expected one of {', '.join(_ACTIVATIONS)}")


def _check_same(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """The description must rebuild the very network: same names, same shapes."""
    built = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    given = {k: tuple(v.shape) for k, v in state.items()}
    if wrong := sorted(k for k in built.keys() | given.keys() if built.get(k) != given.get(k)):
        raise UnsupportedModelError(f"{wrong[0]}: shape {given.get(wrong[0])} cannot be described by format {FORMAT}")


def line(error: object) -> str:
    return " ".join(str(error).split())[:300]
