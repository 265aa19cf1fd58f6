"""A network as a folder: ``architecture.json`` (what to build), ``weights.safetensors`` (what to fill in), and, if it
was asked for, a model card, ``README.md``.

Version 2 names what timm builds, an entry (``vit_small_patch16_224``) or, for a network that somebody put together, a
class, and its arguments, of which timm is given those that are not its defaults. What stands in it follows: the parts
before and behind the blocks, and the blocks in the method's form, with the widths that are left. They are written out
even where a name would give them: timm's next version may give others, a class has no name that would, and one form
is less code than two. Version 1 is read (``hiap.formats.store_v1`` says it in version 2's words), no longer written.

Nothing is pickled and loading runs no code from the folder: the JSON names sizes, and the few types of modules and
arguments that it may name are listed here. A network is built from its description and compared before it is saved.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm import layers
from timm.layers import pos_embed_sincos as sincos
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn
from torch.overrides import TorchFunctionMode

from hiap.backbones.errors import UnsupportedModelError
from hiap.backbones.families import channels, classes, copied, pretrained, standard
from hiap.backbones.guard import require_linear, require_numbers, require_own_methods, require_plain, tell_lost
from hiap.backbones.parts import Glu, JoinedLinear, RelativeBias, Rotary, TokenAndMean, is_norm
from hiap.backbones.pruned import LAYOUTS, PrunedAttention, PrunedBlock, allow_gaps, set_layout
from hiap.files import atomic_folder, atomic_write
from hiap.formats import card as cards
from hiap.formats import hub, store_v1
from hiap.formats.folder import ARCHITECTURE, CONFIG, WEIGHTS, StoreError
from hiap.gated_layers import is_gated
from hiap.options import one_line

FORMAT: Literal["hiap-vit"] = "hiap-vit"
VERSION: Literal[2] = 2
Node = dict[str, Any]  # one module: "is", its type; its arguments; what it holds, by name
_CLASSES: dict[str, Any] = {c.__name__: c for c in (VisionTransformer, VisionTransformerDistilled, Eva, Beit)}
# What sizes that make no network raise in torch or timm; UnsupportedModelError is a ValueError.
_WRONG = (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AssertionError, AttributeError)


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Arguments(_Spec):
    """Arguments that an entry or a class of timm may be given."""

    img_size: tuple[PositiveInt, PositiveInt] | None = None
    patch_size: tuple[PositiveInt, PositiveInt] | None = None
    in_chans: PositiveInt | None = None
    num_classes: NonNegativeInt | None = None
    global_pool: Literal["", "avg", "avgmax", "max", "token", "map"] | None = None
    embed_dim: PositiveInt | None = None
    class_token: bool | None = None
    reg_tokens: NonNegativeInt | None = None
    num_reg_tokens: NonNegativeInt | None = None
    no_embed_class: bool | None = None
    pos_embed: Literal["learn", "none"] | None = None
    use_abs_pos_emb: bool | None = None
    pool_include_prefix: bool | None = None
    pre_norm: bool | None = None
    use_pre_transformer_norm: bool | None = None
    dynamic_img_size: bool | None = None
    dynamic_img_pad: bool | None = None


class Known(_Spec):
    """Facts that timm's ``pretrained_cfg`` holds of pixels, which are in [0, 1], and of classes."""

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None
    label_names: list[str] | None = None
    label_descriptions: dict[str, str] | None = None


class Architecture(_Spec):
    """Description of a network. ``model``: an entry of timm's or one of its classes; ``parts``: what stands in it
    beside the blocks, as the model has it where nothing is said; ``frozen``: parameters that were not
    trained, where others were."""

    format: Literal["hiap-vit"] = FORMAT
    version: Literal[2] = VERSION
    model: str
    arguments: Arguments
    known: Known = Known()
    layout: Literal["ragged", "padded"]
    frozen: list[str] = []
    parts: dict[str, Node | None]
    blocks: list[Node]

    def text(self) -> str:
        """Return the JSON, a block a line."""
        given = self.model_dump(mode="json", exclude_none=True)
        blocks = ",\n  ".join(map(json.dumps, given.pop("blocks")))
        lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in given.items()]
        return "{\n" + ",\n".join([*lines, f' "blocks": [\n  {blocks}\n ]']) + "\n}\n"


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
    given, model = model, _in_form(model)
    spec = describe(model)
    require_numbers(given)
    require_plain(given)
    require_own_methods(given)
    tell_lost(given, None, "save")
    state = _untied({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()})
    described = None if card is None else cards.text(cards.checked(card), model)
    try:
        with atomic_folder(folder) as temporary:
            save_file(state, temporary / WEIGHTS)
            atomic_write(temporary / ARCHITECTURE, spec.text().encode())
            if described is not None:
                atomic_write(temporary / cards.NAME, described.encode())
    except PermissionError as error:
        raise StoreError(f"{folder}: {error.strerror}; nothing was written") from None


def _untied(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return ``state`` with memory of its own for each tensor: the file format has no shared one."""
    seen = set[int]()
    for name, value in state.items():
        place = value.untyped_storage().data_ptr()
        state[name] = value.clone() if place in seen else value
        seen.add(place)
    return state


def others_files(folder: Path) -> list[str]:
    """Names in ``folder`` that ``save`` does not write; the folder's own if it is a file."""
    if not folder.is_dir():
        return [folder.name]
    names = {path.name for path in folder.iterdir()}
    ours = {ARCHITECTURE, WEIGHTS} | ({cards.NAME} if ARCHITECTURE in names else set())  # alone, it is somebody's
    return sorted(names - ours)


def folder_of(name: str | Path) -> Path:
    """Return a folder as it is; where there is none, the hub's ``owner/name``, fetched. Raises ``StoreError`` (one
    line)."""
    if isinstance(name, str) and not Path(name).exists() and hub.is_name(name):
        return hub.fetch(name)
    return Path(name)


def load(folder: str | Path) -> Any:
    """Load the network that ``save`` wrote, in eval mode, on the CPU: of a folder, or the hub's ``owner/name``. Raises
    ``StoreError`` (one line) for anything else."""
    folder = folder_of(folder)
    if not (folder / ARCHITECTURE).is_file():
        raise StoreError(f"{folder}: {_what_is_there(folder)}; expected {ARCHITECTURE} and {WEIGHTS} of hiap.save")
    try:
        text, state = (folder / ARCHITECTURE).read_text(encoding="utf-8"), load_file(folder / WEIGHTS)
    except (OSError, SafetensorError, UnicodeDecodeError) as error:
        raise StoreError(
            f"{folder}: expected {ARCHITECTURE} and {WEIGHTS} of hiap.save: {one_line(error, 300)}"
        ) from None
    spec = _read(folder / ARCHITECTURE, text)
    try:
        model = build(spec)
        # copied, as a file that is read by the page starts anywhere, and products then round otherwise
        model.load_state_dict({name: value.clone() for name, value in state.items()}, strict=True, assign=True)
        types = {value.dtype for value in state.values() if value.is_floating_point()}
        if len(types) == 1:  # the weights have theirs; of buffers that are computed nothing is stored
            model.to(types.pop())
        for name in spec.frozen:
            model.get_parameter(name).requires_grad_(False)
    except _WRONG as error:
        raise StoreError(f"{folder}: weights do not fit the architecture: {one_line(error, 300)}") from None
    return model.eval()


def _what_is_there(folder: Path) -> str:
    if not folder.exists():
        return "no such folder"
    if (folder / CONFIG).is_file():
        return "a folder of transformers, it seems, which hiap prune and hiap.from_transformers read"
    return "is a file" if folder.is_file() else f"holds no {ARCHITECTURE}"


def _read(path: Path, text: str) -> Architecture:
    try:
        given, version = json.loads(text), int(VERSION)
        if isinstance(given, dict) and given.get("format") == FORMAT and given.get("version") == store_v1.VERSION:
            version = store_v1.VERSION
            given = store_v1.in_version_2(text)
        return Architecture.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        line = f"{'.'.join(map(str, first['loc'])) or 'file'}: {first['msg']}"
    except _WRONG as error:
        line = f"{type(error).__name__}: {one_line(error)}"
    raise StoreError(f"{path}: not format {FORMAT} {version}: {line}")


def describe(model: Any) -> Architecture:
    """Return the sizes of a dense or extracted ViT. Raises ``UnsupportedModelError`` naming what has no description."""
    model = _in_form(model)
    layouts = {m.layout for m in model.modules() if isinstance(m, PrunedAttention)}
    parts = {name: part for name, part in model._modules.items() if name not in ("patch_embed", "blocks")}
    parts |= {"patch_embed.norm": norm} if (norm := getattr(model.patch_embed, "norm", None)) else {}
    spec = Architecture(
        model=type(model).__name__,
        arguments=Arguments(),
        known=_known(model),
        layout=layouts.pop() if layouts else LAYOUTS[0],
        frozen=_frozen(model),
        parts={name: _node(name, part) for name, part in parts.items()},
        blocks=[_block(f"blocks.{i}", block) for i, block in enumerate(model.blocks)],
    )
    entry = pretrained(model).get("architecture", "")
    refusal: Exception | None = None
    for name in [entry, spec.model] if entry and timm.is_model(entry) else [spec.model]:
        try:
            if _defaults(name)[0] is type(model):
                spec = spec.model_copy(update={"model": name, "arguments": Arguments(**arguments_of(model))})
                _require_same(build(spec), model)
                return spec
        except _WRONG as error:  # an entry may refuse an argument that its class takes
            refusal = refusal or error
    raise UnsupportedModelError(one_line(refusal, 300)) from None


def _in_form(model: Any) -> Any:
    """Return an extracted network or a plain dense one as it is, a dense one of another family in the method's form."""
    if type(model) not in _CLASSES.values():
        raise UnsupportedModelError(f"{type(model).__name__}: expected a timm VisionTransformer, Eva or Beit")
    if is_gated(model):
        raise UnsupportedModelError("the model carries gates: call hiap.extract first")
    extracted = any(isinstance(block, PrunedBlock) for block in model.blocks)
    return model if extracted or standard(model) is model else copied(model)


def build(spec: Architecture) -> Any:
    """Build an untrained network of this architecture, its parameters without storage."""
    with torch.device("meta"), _Undrawn():
        usual = _defaults(spec.model)[1]  # of the timm that is here, which may differ from the one that wrote
        given = {k: v for k, v in spec.arguments.model_dump(exclude_none=True).items() if v != usual[k]}
        model = _frame(spec.model, given)
        for name, node in spec.parts.items():
            owner, _, own = name.rpartition(".")
            _put(model.get_submodule(owner), own, _built(node))
        model.blocks = nn.Sequential(*map(_built, spec.blocks))
    allow_gaps(model)
    if hasattr(model, "rope_mixed"):
        model.rope_mixed = isinstance(model.rope, sincos.RotaryEmbeddingMixed)
    model.feature_info = [{"module": f"blocks.{i}", "num_chs": model.embed_dim} for i in range(len(spec.blocks))]
    set_layout(model, spec.layout)
    known = spec.known.model_dump(exclude_none=True)
    if spec.model not in _CLASSES:
        known["architecture"] = spec.model
    size = {"input_size": (channels(model.patch_embed), *model.patch_embed.img_size), "num_classes": model.num_classes}
    vars(model)["pretrained_cfg"] = size | known  # where timm keeps it, and timm.data looks for it
    return model


@lru_cache
def _defaults(name: str) -> tuple[type, Node]:
    """Return what class a name makes, and its arguments where none are given."""
    with torch.device("meta"), _Undrawn():
        model = _frame(name, {})
    return type(model), arguments_of(model)


class _Undrawn(TorchFunctionMode):
    """Context in which layers do not draw the weights that they begin with, for which nothing has storage."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return None
        return func(*args, **(kwargs or {}))


def _frame(name: str, arguments: Node) -> Any:
    """Return the network without blocks, by names that timm registers: nothing is fetched or imported."""
    if name in _CLASSES:
        return _CLASSES[name](depth=0, num_heads=1, **arguments)
    if not timm.is_model(name):
        raise UnsupportedModelError(f"model '{name}': expected an entry of timm or {', '.join(_CLASSES)}")
    return timm.create_model(name, depth=0, **arguments)


def arguments_of(model: Any) -> Node:
    """Return what ``_frame`` takes, read off a network, which may have been changed since it was made."""
    embed, tokens, vit = model.patch_embed, getattr(model, "reg_token", None), isinstance(model, VisionTransformer)
    kept = ("global_pool", "embed_dim", "no_embed_class", "pool_include_prefix", "dynamic_img_size")
    found = {name: getattr(model, name) for name in kept if hasattr(model, name)}
    found |= {"img_size": embed.img_size, "patch_size": embed.patch_size, "in_chans": channels(embed)}
    found |= {"num_classes": classes(model), "dynamic_img_pad": getattr(embed, "dynamic_img_pad", False)}
    found |= {"class_token": model.cls_token is not None}
    found["reg_tokens" if vit else "num_reg_tokens"] = 0 if tokens is None else tokens.shape[1]
    found["pre_norm" if vit else "use_pre_transformer_norm"] = is_norm(getattr(model, "norm_pre", None))
    learned = model.pos_embed is not None
    return found | ({"pos_embed": "learn" if learned else "none"} if vit else {"use_abs_pos_emb": learned})


def _known(model: Any) -> Known:
    """As far as timm's names of classes are of as many as there are."""
    told = pretrained(model)
    pixels = {name: told.get(name) for name in ("mean", "std", "interpolation", "crop_pct", "crop_mode")}
    if pixels["crop_mode"] == "center":  # what it is where nothing is said
        del pixels["crop_mode"]
    names, described = told.get("label_names"), told.get("label_descriptions")
    if not names or len(names) != classes(model):
        return Known(**pixels)
    texts = {str(name): str(text) for name, text in described.items()} if isinstance(described, dict) else None
    return Known(**pixels, label_names=[str(name) for name in names], label_descriptions=texts)


def _frozen(model: Any) -> list[str]:
    """Parameters that are not trained; of a network that is only run, in which none is, []."""
    names = [name for name, p in model.named_parameters() if not p.requires_grad]
    return [] if len(names) == len(list(model.parameters())) else names


@lru_cache
def _parameters(cls: Any) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(cls).parameters.items()}


def _settings(module: Any) -> Node:
    """Return the arguments of a module that keeps them under their names, but for defaults and modules."""
    found = {}
    cls: Any = type(module)
    for name, default in _parameters(cls).items():
        value = getattr(module, name, default)
        value = value is not None if name == "bias" else value
        if value != default and not isinstance(value, nn.Module):
            found[name] = value
    return found


def _nothing(_: Any) -> Node:
    return {}


def _norm(cls: Any) -> _Kind:
    return lambda width, eps: cls(width, eps=eps), lambda m: {"width": m.normalized_shape[0], "eps": m.eps}


_BLOCK = ("norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2")


def _constants(block: Any) -> Node:
    found = {name: getattr(block, name) for name in ("attn_constant", "mlp_constant")}
    return {name: len(value) for name, value in found.items() if value is not None}


def _bare(cls: Any) -> Callable[[], Any]:
    """Make a module that has nothing but what it holds, which is built once and not twice so."""

    def make() -> Any:
        module = cls.__new__(cls)
        nn.Module.__init__(module)
        return module

    return make


def _pruned_block(attn_constant: int = 0, mlp_constant: int = 0) -> PrunedBlock:
    given = {"attn_constant": attn_constant, "mlp_constant": mlp_constant}
    constants = {name: torch.zeros(size) if size else None for name, size in given.items()}
    return PrunedBlock(dict.fromkeys(_BLOCK), constants)


def _scaled(scale: float, **sizes: Any) -> layers.Attention:
    attn = layers.Attention(**sizes)
    attn.scale = scale
    return attn


def _sizes(**names: str) -> Callable[[Any], Node]:
    """Read an attention's: its own names of them by those of its arguments."""
    return lambda m: {"dim": m.qkv.in_features, "scale": m.scale} | {name: getattr(m, n) for name, n in names.items()}


# How a module is made of arguments, and how they are read off it; what it holds is put into it by name.
_Kind = tuple[Callable[..., Any], Callable[[Any], Node]]
_PLAIN: tuple[Any, ...] = (nn.Identity, nn.Linear, nn.Dropout, layers.DropPath, layers.PatchDropout, nn.GELU, nn.ReLU)
_PLAIN += (nn.SiLU, layers.GELUTanh, layers.QuickGELU, TokenAndMean, Rotary)
_ROPES: tuple[Any, ...] = tuple(getattr(sincos, f"RotaryEmbedding{kind}") for kind in ("Cat", "Mixed", "DinoV3"))
_TYPES: dict[Any, _Kind] = {
    **{cls: (cls, _settings) for cls in _PLAIN + _ROPES},
    **{cls: _norm(cls) for cls in (layers.LayerNorm, nn.LayerNorm, layers.RmsNorm)},
    **{cls: (_bare(cls), _nothing) for cls in (Block, layers.Mlp, nn.Sequential, nn.ModuleList)},
    RelativeBias: (RelativeBias, lambda m: {"window": m.window, "heads": m.relative_position_bias_table.shape[1]}),
    JoinedLinear: (lambda: JoinedLinear([]), _nothing),
    Glu: (lambda gate_last: Glu(nn.Identity(), gate_last), _settings),
    layers.LayerScale: (layers.LayerScale, lambda m: {"dim": len(m.gamma)}),
    layers.AttentionPoolLatent: (
        layers.AttentionPoolLatent,
        lambda m: {"in_features": m.latent_dim, "num_heads": m.num_heads},
    ),
    layers.Attention: (_scaled, _sizes(num_heads="num_heads", attn_head_dim="head_dim")),
    PrunedAttention: (PrunedAttention, _sizes(qk_dims="qk_dims", value_dims="value_dims")),
    PrunedBlock: (_pruned_block, _constants),
}
_NAMES = {cls: "torch.LayerNorm" if cls is nn.LayerNorm else cls.__name__ for cls in _TYPES}
_CLASS_OF = {name: cls for cls, name in _NAMES.items()}


def _node(where: str, module: Any) -> Node | None:
    if module is None:
        return None
    if hasattr(module, "in_features") and hasattr(module, "weight"):
        require_linear(where, module)
    if type(module) not in _TYPES:
        kinds = ", ".join(_CLASS_OF)
        raise UnsupportedModelError(f"{where} ({type(module).__name__}): has no description; expected one of {kinds}")
    held = {name: _node(f"{where}.{name}", part) for name, part in module._modules.items() if part is not None}
    return {"is": _NAMES[type(module)], **_TYPES[type(module)][1](module), **held}


def _block(where: str, block: Any) -> Any:
    """Describe a block; the method's form of timm's, around timm's attention, is only read: what runs is timm's."""
    node: Any = _node(where, block)
    return node | {"is": "Block"} if node.get("attn", {}).get("is") == "Attention" else node


def _built(node: Node | None) -> Any:
    if node is None:
        return None
    cls, held = _CLASS_OF[node["is"]], {name: part for name, part in node.items() if isinstance(part, dict)}
    given = {name: value for name, value in node.items() if name != "is" and name not in held}
    with torch.device("cpu") if cls in (RelativeBias, *_ROPES) else nullcontext():  # their buffers are not stored
        module = _TYPES[cls][0](**given)
    for name, part in held.items():
        _put(module, name, _built(part))
    return module


def _put(module: Any, name: str, part: nn.Module | None) -> None:
    """Let ``module`` hold ``part`` where it may hold one: what is no frame may begin with nothing."""
    if not isinstance(getattr(module, name, None if type(module) in _TYPES else name), nn.Module | None):
        raise UnsupportedModelError(f"{name}: no part of a {type(module).__name__}")
    setattr(module, name, part)


# What has no part in what a network computes from an image, or follows from its layers.
_FREE = ("training", "num_classes", "grad_checkpointing", "distilled_training", "weight_init_mode", "fix_init")


def _require_same(again: Any, model: Any) -> None:
    """Raise ``UnsupportedModelError`` unless the description rebuilds the very network: the same names, shapes,
    computed buffers and settings, and layer by layer the same stem."""
    if type(again.patch_embed) is not type(model.patch_embed):
        cure = "expected timm's PatchEmbed, or a model of timm.create_model"
        raise UnsupportedModelError(f"patch_embed ({type(model.patch_embed).__name__}): {cure}")
    built, given = ({k: tuple(v.shape) for k, v in m.state_dict().items()} for m in (again, model))
    if wrong := sorted(k for k in built.keys() | given.keys() if built.get(k) != given.get(k)):
        raise UnsupportedModelError(f"{wrong[0]}: shape {given.get(wrong[0])} cannot be described by format {FORMAT}")
    if str(again.patch_embed) != str(model.patch_embed):
        raise UnsupportedModelError(f"patch_embed: other layers than {type(model).__name__} builds")
    ours = dict(again.named_buffers())
    for name, buffer in model.named_buffers():
        other = ours.get(name)
        if name not in given and (other is None or other.is_meta or not _close(buffer, other)):
            raise UnsupportedModelError(f"{name}: made with settings that cannot be described by format {FORMAT}")
    for name, part in (("", model), ("patch_embed.", model.patch_embed)):
        other = vars(again.patch_embed if name else again)
        for key, value in vars(part).items():
            plain = isinstance(value, (bool, int, float, str, tuple)) and not key.startswith("_")
            if plain and key in other and key not in _FREE and value != other[key]:
                raise UnsupportedModelError(f"{name}{key}: {value!r} cannot be described by format {FORMAT}")


def _close(buffer: torch.Tensor, other: torch.Tensor) -> bool:
    buffer = buffer.cpu()
    return buffer.shape == other.shape and torch.allclose(buffer, other.to(buffer.dtype), atol=1e-5)
