"""Weights from whatever honest file holds them, fitted to a timm ViT.

Training checkpoints of timm, DeiT and others hold more than weights, under names of their own, for images of another
size or other classes. ``read`` finds the state dict without unpickling anything beyond ``ALLOWED``; ``fill`` adapts it
to the network by timm's own functions. Both tell what they did, for whoever runs it and for the record.
"""

from __future__ import annotations

import argparse
import collections
import inspect
import pathlib
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import Tensor

from hiap.backbones.families import pretrained
from hiap.options import one_line

# What a training checkpoint holds beside tensors: its arguments, paths, and scores as numpy's numbers.
ALLOWED: list[Any] = [
    argparse.Namespace,
    collections.defaultdict,
    pathlib.PosixPath,
    pathlib.PurePosixPath,
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int32, np.int64, np.bool_)),
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),  # numpy 2 moved it: both names
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
]
# Words in the path to weights that are the running average of others: DINO's teacher, MoCo's key encoder.
AVERAGED = re.compile(r"(^|[._])(ema|teacher|averaged?|shadow|momentum|encoder_k)([._]|$)")
# Parts of a training checkpoint that may hold tensors under the names of weights and are none.
NO_WEIGHTS = re.compile(r"(^|[._])(optim\w*|lr_schedulers?|schedulers?|scaler|loops|callbacks|loss|criterion)([._]|$)")
WRAPPERS = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
FIRST_CONV = "patch_embed.proj.weight"


class CheckpointError(ValueError):
    """A file that holds no weights for this network; one line."""


def read(path: Path, names: Iterable[str] = (), averaged: bool | None = None) -> tuple[dict[str, Tensor], list[str]]:
    """Read the state dict in a ``.safetensors`` or torch file, however deep it lies and whatever stands before its
    names; return it, and what was done to get it. ``names``: those of the network that it is for. ``averaged`` chooses
    where a file holds both weights as trained and their running average. Raises ``CheckpointError`` if there is
    none."""
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    except SafetensorError as error:
        raise CheckpointError(f"not a whole .safetensors file ({one_line(error)})") from None
    if not isinstance(content, Mapping):
        raise CheckpointError(f"holds a {type(content).__name__}; expected a state dict, name to tensor")
    whole = _tensors(content)
    if not whole:
        raise CheckpointError(f"holds no tensors but {', '.join(map(repr, list(content)[:3])) or 'nothing'}")
    found = {WRAPPERS.sub("", name): held for name, held in whole.items()}
    prefixes = _prefixes(found, frozenset(names))
    prefix = _chosen(prefixes, averaged)
    state = {name[len(prefix) :]: value for name, (_, value) in found.items() if name.startswith(prefix)}
    return state, _origin(prefix, prefixes, whole, found)


def _origin(
    prefix: str, prefixes: list[str], whole: Iterable[str], found: Mapping[str, tuple[str, Tensor]]
) -> list[str]:
    """Say what was done to get the weights behind ``prefix``."""
    places = {place for name, (place, _) in found.items() if name.startswith(prefix)}
    place = min(places, key=len)
    place = place if all(other.startswith(place) for other in places) else prefix
    done = [f"the weights under '{place[:-1]}'"] if place else []
    before = [prefix.removeprefix(place)] if prefix.startswith(place) else []
    wrappers = sorted({match[0] for match in map(WRAPPERS.search, whole) if match})
    if taken := ", ".join(f"'{words}'" for words in before + wrappers if words):
        done.append(f"names without the {taken} that training put there")
    others = tuple(filter(None, {prefix, *prefixes}))
    left = [name for name in found if prefix and not name.startswith(others) and not NO_WEIGHTS.search(name)]
    return done + ([f"not taken: {_few(left)}"] if left else [])


def _tensors(content: Mapping[Any, Any], place: str = "") -> dict[str, tuple[str, Tensor]]:
    """Return all tensors of nested mappings by their dotted paths, each with the part of the path that is of
    mappings."""
    found: dict[str, tuple[str, Tensor]] = {}
    for key, value in content.items():
        if isinstance(value, Tensor):
            found[f"{place}{key}"] = (place, value)
        elif isinstance(value, Mapping):
            found |= _tensors(value, f"{place}{key}.")
    return found


def _prefixes(found: Mapping[str, tuple[str, Tensor]], names: frozenset[str]) -> list[str]:
    """Return what stands before the names of a network's weights, once for each network that the file holds. Where the
    network's own ``names`` are not among them, a published file's, the mappings that hold the tensors."""
    count: collections.Counter[str] = collections.Counter()
    for name, (place, _) in found.items():
        if NO_WEIGHTS.search(place):
            continue
        cuts = [0, *(i + 1 for i, letter in enumerate(name) if letter == ".")]
        count.update(name[:cut] for cut in cuts if name[cut:] in names)
    if not count or max(count.values()) < len(names) / 4:
        count = collections.Counter(place for place, _ in found.values() if not NO_WEIGHTS.search(place))
    most = max(count.values(), default=0)
    return [prefix for prefix, number in count.items() if 2 * number > most] or [""]


def _unpickled(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(ALLOWED):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's, zipfile's and torch's own: a wrong file can raise anything
        text = str(error)
        if "Unsupported global: GLOBAL " in text or "Unsupported class " in text:
            name = text.split("Unsupported global: GLOBAL " if "GLOBAL " in text else "Unsupported class ")[1].split()[
                0
            ]
            raise CheckpointError(
                f"holds an object of {name}, which is not unpickled as that may run code; where the file comes from, "
                "save its state dict alone: torch.save(model.state_dict(), ...)"
            ) from None
        raise CheckpointError(f"not a state dict of tensors ({type(error).__name__})") from None


def _chosen(prefixes: list[str], averaged: bool | None) -> str:
    """Choose the network that is meant."""
    ema = [prefix for prefix in prefixes if AVERAGED.search(prefix)]
    raw = [prefix for prefix in prefixes if prefix not in ema]
    if len(ema) == len(raw) == 1 and averaged is None:
        raise CheckpointError(
            f"holds weights as trained ('{raw[0][:-1]}') and averaged ones ('{ema[0][:-1]}'); choose by "
            "model.averaged=true or =false"
        )
    if averaged and not ema:
        raise CheckpointError("holds no averaged weights ('ema', 'teacher' ...), which model.averaged asks for")
    if averaged is False and not raw:
        raise CheckpointError(
            f"holds averaged weights alone ('{ema[0][:-1]}'); expected model.averaged to be true or unset"
        )
    chosen = prefixes if averaged is None else ema if averaged else raw
    if len(chosen) > 1:
        listed = ", ".join(f"'{prefix[:-1]}'" for prefix in chosen[:4])
        raise CheckpointError(f"holds {len(chosen)} networks ({listed}); save the state dict of the one that is meant")
    return chosen[0]


def fill(model: Any, state: dict[str, Tensor], done: list[str]) -> bool:
    """Load ``state`` into ``model``, adapted where it was made for other images or classes; appends to ``done`` what
    was adapted. True if the classifier stays as it was drawn. Raises ``CheckpointError``."""
    try:
        fitted = _filter(model)(state, model)
    except (RuntimeError, KeyError, AssertionError, AttributeError, ValueError) as error:
        raise CheckpointError(f"not weights of a {type(model).__name__} ({one_line(error)})") from None
    own = model.state_dict()
    done += [
        f"{name} resampled from {tuple(state[name].shape)} to {tuple(fitted[name].shape)}"
        for name in fitted
        if name in state and state[name].shape[1:] != fitted[name].shape[1:] and fitted[name].shape == own[name].shape
    ]
    if FIRST_CONV in fitted and fitted[FIRST_CONV].shape[1] != (channels := own[FIRST_CONV].shape[1]):
        done.append(f"{FIRST_CONV} from {fitted[FIRST_CONV].shape[1]} to {channels} channels")
        fitted[FIRST_CONV] = adapt_input_conv(channels, fitted[FIRST_CONV])
    drawn = _drop_classifier(model, fitted, own, done)
    _check(fitted, {name: value for name, value in own.items() if name not in drawn})
    model.load_state_dict(fitted, strict=not drawn)
    return bool(drawn)


def _filter(model: Any) -> Any:
    """Translate published files to the names and sizes of ``model``, by timm."""
    function: Any = getattr(inspect.getmodule(type(model)), "checkpoint_filter_fn", None)
    if function is None:
        return lambda state, model: dict(state)
    scales = "adapt_layer_scale" in inspect.signature(function).parameters  # DeiT III's names
    return partial(function, adapt_layer_scale=True) if scales else function


def classifiers(model: Any) -> list[str]:
    """Names of the modules that give the classes: one, or two of a distilled DeiT."""
    named = pretrained(model).get("classifier") or "head"
    return [named] if isinstance(named, str) else list(named)


def _drop_classifier(model: Any, fitted: dict[str, Tensor], own: dict[str, Tensor], done: list[str]) -> set[str]:
    """Take a classifier that has other classes out of ``fitted``; names that are then left as drawn."""
    names = [f"{head}.{part}" for head in classifiers(model) for part in ("weight", "bias")]
    names = [name for name in names if name in own]
    if all(name in fitted and fitted[name].shape == own[name].shape for name in names):
        return set()
    found = next((len(fitted[name]) for name in names if name in fitted), 0)
    for name in names:
        fitted.pop(name, None)
    done.append(f"a new classifier of {model.num_classes} classes; the file has {found or 'none'}")
    return set(names)


def _check(fitted: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    wrong = {
        "lacks": [name for name in own if name not in fitted],
        "has": [name for name in fitted if name not in own],
        "has in another size": [
            f"{name} {tuple(fitted[name].shape)}, not {tuple(own[name].shape)}"
            for name in own
            if name in fitted and fitted[name].shape != own[name].shape
        ],
    }
    parts = [f"{what} {_few(names)}" for what, names in wrong.items() if names]
    if parts:
        raise CheckpointError(f"not weights of this network: the file {'; '.join(parts)}; is model.name right?")


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more
