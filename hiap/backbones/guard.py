"""Layers are what they compute: what may be read as timm's own, and the proof that a network made of it is the same.

The method reads weights and builds layers anew, so a layer that does more than its type says (an adapter, a hook, a
forward that somebody replaced) would be lost without a word. ``require_plain`` refuses what is known, with its cure.
``require_same`` compares two networks on random images, block by block on the same inputs, and so finds what nobody
has thought of; both run twice on two images at most, and neither modes nor buffers nor random numbers change.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from hiap.backbones.errors import UnsupportedModelError, one_line
from hiap.backbones.parts import JoinedLinear
from hiap.backbones.sharded import own_type

IMAGES = 2
# How far two ways to compute one branch may be apart, relative to it; where products run in less than float32, more.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-4, torch.float16: 3e-2, torch.bfloat16: 1e-1}
_REDUCED = 2e-2
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def require_numbers(model: nn.Module) -> None:
    """Raise ``UnsupportedModelError`` if weights have no numbers, as networks made on the device 'meta'."""
    if name := next((name for name, p in model.named_parameters() if p.is_meta), ""):
        cure = "model.to_empty(device=...) and load_state_dict first"
        raise UnsupportedModelError(f"{name}: on the device 'meta', without numbers; {cure}")


def require_plain(model: nn.Module) -> None:
    """Raise ``UnsupportedModelError`` if a module of ``model`` carries an adapter, a mask, or a forward of its own."""
    for name, module in model.named_modules():
        where = f"{name or 'the model'} ({type(module).__name__})"
        if "forward" in vars(module):
            cure = "expected its class's own"
            if {"_original_forward", "_hf_hook"} & vars(module).keys():
                cure = "accelerate did; take accelerator.unwrap_model(model, keep_fp32_wrapper=False)"
            raise UnsupportedModelError(f"{where}: its forward was replaced on this instance; {cure}")
        if odd := _foreign_methods(module):
            cure = "a copy would still call the old network; bind it (types.MethodType) or write a subclass"
            raise UnsupportedModelError(f"{where}: its {odd[0]} was replaced on this instance; {cure}")
        if hasattr(module, "lora_A") or (hasattr(module, "base_layer") and hasattr(module, "merge")):
            raise UnsupportedModelError(f"{where}: an adapter; merge it first (peft: model.merge_and_unload())")
        if any(isinstance(hook, prune.BasePruningMethod) for hook in module._forward_pre_hooks.values()):
            cure = "make it permanent first: torch.nn.utils.prune.remove"
            raise UnsupportedModelError(f"{where}: a mask of torch.nn.utils.prune; {cure}")
        if made := [k for k, v in vars(module).items() if isinstance(v, Tensor) and v.grad_fn is not None]:
            cure = "expected a parameter (of old weight_norm: torch.nn.utils.remove_weight_norm first)"
            raise UnsupportedModelError(f"{where}: {made[0]} is computed by a hook; {cure}")


def _foreign_methods(module: nn.Module) -> list[str]:
    """Methods that a function on the instance replaces: a copy of the module shares it, and what it has closed over."""
    return [
        name
        for name, own in vars(module).items()
        if callable(own) and not isinstance(own, nn.Module) and callable(getattr(type(module), name, None))
        if getattr(own, "__self__", None) is not module
    ]


def require_own_methods(model: Any) -> None:
    """Raise ``UnsupportedModelError`` if a method was replaced on an instance, which a copy has and a file has not."""
    for name, module in model.named_modules():
        for key, own in vars(module).items():
            if isinstance(own, MethodType) and callable(getattr(type(module), key, None)):
                where = f"{name or 'the model'} ({type(module).__name__})"
                raise UnsupportedModelError(f"{where}: its {key} was replaced on this instance; write a subclass")


def require_linear(name: str, layer: Any) -> None:
    """Raise ``UnsupportedModelError`` unless ``layer`` is a ``torch.nn.Linear``, several that are joined, or one whose
    weight ``torch.nn.utils.parametrize`` computes."""
    if isinstance(layer, JoinedLinear):
        for part in layer.parts:
            if parametrize.is_parametrized(part):
                cure = "torch.nn.utils.parametrize.remove_parametrizations first"
                raise UnsupportedModelError(f"{name}: parametrized, but joined with others; {cure}")
            require_linear(name, part)
        return
    kind = type(layer).__bases__[0] if parametrize.is_parametrized(layer) else own_type(layer)
    if kind is not nn.Linear:
        module, cure = type(layer).__module__, ""
        if hasattr(layer, "base_layer") or hasattr(layer, "merge"):  # peft's, and others made like it
            cure = "; merge the adapter first: model.merge_and_unload()"
        elif "quant" in module or "quant" in type(layer).__name__.lower() or "bitsandbytes" in module:
            cure = "; prune first, quantise afterwards"
        kind_of = type(layer).__name__ if type(layer).__name__ != "Linear" else f"{module}.Linear"
        raise UnsupportedModelError(f"{name} ({kind_of}): expected torch.nn.Linear{cure}")
    if layer.weight is None and not layer.in_features:  # emptied by shrinking: its branch is gone
        return
    if not isinstance(layer.weight, Tensor) or not layer.weight.is_floating_point():
        raise UnsupportedModelError(f"{name}: weights of {layer.weight.dtype}; prune first, quantise afterwards")
    if type(layer.weight.data).__module__.startswith("torchao"):
        kind_of = type(layer.weight.data).__name__
        raise UnsupportedModelError(f"{name}: weights of {kind_of}; prune first, quantise afterwards")


def require_dropout(name: str, layer: Any) -> None:
    """Raise ``UnsupportedModelError`` unless ``layer`` is a ``torch.nn.Dropout`` or does nothing."""
    if own_type(layer) not in (nn.Dropout, nn.Identity):
        raise UnsupportedModelError(f"{name} ({type(layer).__name__}): expected torch.nn.Dropout")


def hooked(model: Any, kept: Any) -> list[str]:
    """Name the modules in the blocks of ``model`` that have hooks which ``kept``, made of it, lacks (what is outside of
    the blocks was copied with its hooks). Without ``kept``, name all modules that have hooks."""
    still = {} if kept is None else dict(kept.blocks.named_modules(prefix="blocks"))
    lost = []
    for name, module in model.named_modules() if kept is None else model.blocks.named_modules(prefix="blocks"):
        if type(module).__name__.startswith("FSDP"):
            continue
        if any(len(getattr(module, h)) > len(getattr(still.get(name), h, ())) for h in _HOOKS):
            lost.append(name or type(module).__name__)
    return lost


def _tied(blocks: nn.Module) -> set[str]:
    """Names of parameters that are another name's too."""
    names: dict[int, list[str]] = {}
    for name, parameter in blocks.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name for same in names.values() if len(same) > 1 for name in same}


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def tell_lost(model: Any, kept: Any, action: str) -> None:
    """Warn of hooks, and of a forward, that ``action`` left behind; those hooks that change outputs are refused by
    ``require_same``."""
    if "forward" in vars(model) and kept is not None and "forward" not in vars(kept):
        warnings.warn(f"{action}: a forward that was put on the network (accelerate?) is not taken along", stacklevel=4)
    if lost := hooked(model, kept):
        told = "are not taken along; register them on the new network"
        warnings.warn(f"{action}: hooks of {_first(lost)} {told}", stacklevel=4)
    if kept is not None and (apart := sorted(_tied(model.blocks) - _tied(kept.blocks))):
        told = "shared a weight with others and have one of their own now"
        warnings.warn(f"{action}: {_first([f'blocks.{name}' for name in apart])} {told}", stacklevel=4)


@dataclass
class _Trace:
    """Record of what the blocks of a network got and gave on some images, call by call, and of what the network
    gave."""

    calls: list[tuple[int, tuple[Any, ...], dict[str, Any], dict[str, Any]]] = field(default_factory=list)
    output: Any = None


def require_same(wanted: Any, found: Any, action: str, masks: Callable[[Any], Any] | None = None) -> None:
    """Raise ``UnsupportedModelError``, naming the module, unless ``found`` computes what ``wanted`` does: two ViTs of
    as many blocks. ``masks``: a context in which gated ones of them run. Networks without storage are not compared, nor
    those of which a process holds shards only."""
    parameters = [*wanted.parameters(), *found.parameters()]
    if any(p.is_meta or type(p) is not nn.Parameter for p in parameters):
        return
    if odd := next((name for name, p in wanted.named_parameters() if p.is_inference()), ""):
        raise UnsupportedModelError(f"{odd}: made under torch.inference_mode; make or load the network outside of it")
    if bad := next((name for name, p in wanted.named_parameters() if not p.isfinite().all()), ""):
        raise UnsupportedModelError(f"{bad}: has numbers that are not finite; expected a network that did not diverge")
    first = next(p for p in wanted.parameters() if p.is_floating_point())
    images = _images(wanted, first)
    with ExitStack() as stack:
        for model in (wanted, found):
            stack.enter_context(_undisturbed(model, first.device))
            if masks:
                stack.enter_context(masks(model))
        difference = _compared(wanted, found, images)
    if isinstance(difference, Exception):
        line = one_line(difference, 120)
        warnings.warn(
            f"{action}: not verified on random images {tuple(images.shape)}, as the network fails on them: {line}",
            stacklevel=3,
        )
    elif difference:
        raise UnsupportedModelError(
            f"{difference}: {action} would change what the network computes here; a hook, a forward or a layer of its "
            "own does what cannot be read from weights: expected timm's"
        )


def _compared(wanted: Any, found: Any, images: Tensor) -> str | Exception:
    """Return what differs, '' if nothing does, or the error that stops the first network, which may be any."""
    state = torch.get_rng_state()
    try:
        trace = _recorded(wanted, images)
    except Exception as error:
        return error
    torch.set_rng_state(state)
    difference = _difference(found, images, trace)
    if not difference and torch.is_tensor(trace.output) and not trace.output.isfinite().all():
        return ArithmeticError(f"numbers that are not finite in {trace.output.dtype}")
    return difference


def _images(model: Any, like: Tensor) -> Tensor:
    embed = model.patch_embed
    conv = getattr(embed, "proj", None)
    plain = isinstance(conv, nn.Conv2d) and not hasattr(embed, "backbone")
    channels = conv.in_channels if plain else getattr(embed, "in_chans", 3)  # type: ignore[union-attr]
    size = (IMAGES, channels, *(embed.img_size or (224, 224)))
    return torch.randn(size, generator=torch.Generator().manual_seed(0)).to(like.device, like.dtype)


@contextmanager
def modes_kept(*models: nn.Module) -> Iterator[None]:
    """Give every module of ``models`` its mode, training or evaluation, back afterwards."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def evaluated(*models: Any, device: torch.device) -> Iterator[None]:
    """Let networks evaluate eagerly and in their own precision: compiled blocks call no hooks, and autocast goes on
    with its copies of weights that were changed meanwhile. Afterwards every module is in the mode that it was."""
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if any(getattr(module, "_compiled_call_impl", None) for model in models for module in model.modules()):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(modes_kept(*models))
        for model in models:
            model.eval()
        yield


@contextmanager
def _undisturbed(model: Any, device: torch.device) -> Iterator[None]:
    """Let ``model`` evaluate eagerly, by its class's forward, without gradients; afterwards all is as before."""
    buffers = [(b, b._version, b.clone()) for b in model.buffers()]
    own = vars(model).pop("forward", None)  # accelerate's, with autocast of its own
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(evaluated(model, device=device))
        try:
            yield
        finally:
            if own is not None:
                vars(model)["forward"] = own
            for buffer, version, before in buffers:
                if buffer._version != version:
                    buffer.copy_(before)


def _parts(block: Any) -> list[tuple[str, Any]]:
    """Return the branches of a block and the block itself, in the order in which they finish."""
    branches = [(name, getattr(block, name, None)) for name in ("attn", "mlp")]
    return [(name, part) for name, part in branches if isinstance(part, nn.Module)] + [("", block)]


def _recorded(model: Any, images: Tensor) -> _Trace:
    trace, pending = _Trace(), dict[str, Any]()

    def keep(index: int, name: str) -> Callable[..., None]:
        def hook(_: Any, args: Any, kwargs: Any, out: Any) -> None:
            pending[name] = out
            if not name:
                trace.calls.append((index, args, kwargs, dict(pending)))
                pending.clear()

        return hook

    with ExitStack() as stack:
        for i, block in enumerate(model.blocks):
            for name, part in _parts(block):
                stack.enter_context(part.register_forward_hook(keep(i, name), with_kwargs=True))
        trace.output = model(images)
    return trace


class _DifferenceError(Exception):
    """Carries the name of the first module that differs."""


def _difference(model: Any, images: Tensor, trace: _Trace) -> str:
    """Return the first module of ``model`` that gives something else than ``trace`` has, each block on the inputs
    recorded there; '' if there is none."""
    calls = iter(trace.calls)
    now: dict[str, Any] = {"call": None}

    def before(index: int) -> Callable[..., Any]:
        def hook(_: Any, args: Any, kwargs: Any) -> Any:
            now["call"] = call = next(calls, None)
            if call is None or call[0] != index or not _close(args[:1], call[1][:1], args[:1]):
                raise _DifferenceError(f"what comes to blocks.{index}")
            return call[1], call[2]

        return hook

    def after(index: int, name: str) -> Callable[..., Any]:
        def hook(_: Any, args: Any, out: Any) -> Any:
            _, given, _, wanted = now["call"]
            moved = None if name or not torch.is_tensor(out) else wanted[""] - given[0]
            if name in wanted and not _close(out, wanted[name], given[0] if not name else None, moved):
                raise _DifferenceError(f"blocks.{index}.{name}".rstrip("."))
            return wanted[""] if not name else None

        return hook

    with ExitStack() as stack:
        for i, block in enumerate(model.blocks):
            stack.enter_context(block.register_forward_pre_hook(before(i), with_kwargs=True))
            for name, part in _parts(block):
                stack.enter_context(part.register_forward_hook(after(i, name)))
        try:
            output = model(images)
            if next(calls, None) is not None:
                return "the blocks, which are called in another order"
            return "" if _close(output, trace.output) else "what follows the blocks"
        except _DifferenceError as found:
            return str(found)
        except Exception as error:  # the other network ran: whatever this is, it is a difference
            return f"the forward ({type(error).__name__}: {one_line(error, 100)})"


def _close(out: Any, wanted: Any, base: Any = None, moved: Any = None) -> bool:
    """Tell whether two results are the same but for rounding. ``base`` is what a block adds ``moved`` to, else None."""
    if isinstance(wanted, (tuple, list)):
        return len(out) == len(wanted) and all(map(_close, out, wanted))
    if not torch.is_tensor(wanted):
        return True
    if not torch.is_tensor(out) or out.shape != wanted.shape:
        return False
    if not wanted.isfinite().all():  # random images overflow in float16: nothing can be said
        return True
    tolerance = _tolerance(wanted)
    rounding = 8 * torch.finfo(wanted.dtype).eps if wanted.is_floating_point() else 0.0
    out, wanted = out.double(), wanted.double()
    size = (wanted if moved is None else moved.double()).norm()
    floor = base.double().norm() * rounding if torch.is_tensor(base) else 1e-6
    return bool((out - wanted).norm() <= tolerance * size + floor)


def _tolerance(like: Tensor) -> float:
    reduced = like.device.type == "cuda" or torch.get_float32_matmul_precision() != "highest"
    return _REDUCED if reduced and like.dtype is torch.float32 else _TOLERANCE.get(like.dtype, 1e-1)
