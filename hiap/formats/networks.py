"""A network from whatever a person names: timm's name with weights, a checkpoint, a folder of ``hiap.save`` or of
transformers, the hub's ``owner/name``."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hiap.backbones.errors import UnsupportedModelError
from hiap.backbones.families import standard
from hiap.cost import image_of
from hiap.formats import checkpoints, online, store
from hiap.formats.folder import CONFIG
from hiap.options import ConfigError, one_line

PROCESSOR = "preprocessor_config.json"  # of a folder of transformers: how images become pixels
SAYS = "expected timm's name, a checkpoint with --arch, or a folder of hiap.save or transformers"


def load(
    model: str, weights: str = "", arch: str = "", img_size: int | None = None, averaged: bool | None = None
) -> Any:
    """Load a network in eval mode, on the CPU. ``weights``: a file for timm's name ``model``, '' for timm's hub; a file
    as ``model`` needs its ``arch``. ``img_size`` None: as it was made, or as the processor of a folder of transformers
    makes images; another is for timm's networks and DINOv2, and a warning says what was resampled for it. ``averaged``
    chooses where a file holds weights as trained and their running average. Raises ``ConfigError``, ``StoreError`` or
    ``UnsupportedModelError`` (one line)."""
    import timm

    _refuse_unless(averaged is None or bool(weights or arch), "--averaged: is for a file of weights")

    path = Path(model)
    if path.is_dir() and (path / CONFIG).is_file() and not (path / store.ARCHITECTURE).is_file():
        _refuse_unless(not (weights or arch), f"{model}: a folder of transformers has its own weights and architecture")
        return _of_size(_of_transformers(path, img_size), img_size, model).eval()
    if path.is_file():
        _refuse_unless(bool(arch), f"{model}: a file of weights; say which network they are of, --arch NAME of timm's")
        _refuse_unless(not weights, f"--weights {weights}: {model} is a file of weights itself")
        return _of_timm(arch, model, img_size, averaged).eval()
    _refuse_unless(not arch, f"--arch {arch}: is for a file of weights, and {model} is none")
    if timm.is_model(model):
        return _of_timm(model, weights, img_size, averaged).eval()
    if path.is_dir() or "/" in model:
        _refuse_unless(not weights, f"--weights {weights}: {model} has its own")
        return _of_size(store.load(model), img_size, model)
    raise ConfigError(f"{model}: no such network; {SAYS}")


def _refuse_unless(fine: bool, line: str) -> None:
    if not fine:
        raise ConfigError(line)


def _of_size(model: Any, img_size: int | None, name: str) -> Any:
    _, height, width = image_of(model)
    fits = img_size is None or (img_size, img_size) == (height, width)
    _refuse_unless(fits, f"--img-size {img_size}: {name} is for {height} x {width}; another is for timm's networks")
    return model


def _of_timm(name: str, weights: str, img_size: int | None, averaged: bool | None) -> Any:
    import timm

    if not timm.is_model(name):
        raise ConfigError(f"{name}: not a model of timm's")
    sizes: dict[str, Any] = {} if img_size is None else {"img_size": img_size}
    if not weights:
        try:
            with online.at_hand():
                return _supported(timm.create_model(name, pretrained=True, **sizes))
        except (UnsupportedModelError, TypeError) as error:
            raise UnsupportedModelError(f"{name}: {one_line(error)}") from None
        except Exception as error:  # huggingface_hub's dozen kinds
            raise ConfigError(
                f"{name}: its weights cannot be fetched ({type(error).__name__}); offline, --weights FILE"
            ) from None
    file = Path(weights)
    _refuse_unless(file.is_file(), f"--weights {weights}: no such file")
    try:
        frame = timm.create_model(name)
        state, adapted = checkpoints.read(file, frame.state_dict(), averaged)
        head = next((state[f"{n}.weight"] for n in checkpoints.classifiers(frame) if f"{n}.weight" in state), None)
        _refuse_unless(head is not None, f"{weights}: holds no classifier, so there is no answer to keep")
        if img_size is None and (made := _made_for(frame, state)):
            sizes["img_size"] = made
        model = _supported(timm.create_model(name, num_classes=len(head), **sizes))  # type: ignore[arg-type]
        before = len(adapted)
        if checkpoints.fill(model, state, adapted):
            raise ConfigError(
                f"{weights}: its classifier does not fit {name} ({adapted[-1]}), so there is no answer to keep"
            )
        if resampled := [line for line in adapted[before:] if " resampled " in line]:
            warnings.warn(f"{weights}: {'; '.join(resampled)}, for images of {img_size} pixels", stacklevel=3)
    except (checkpoints.CheckpointError, OSError) as error:
        line = one_line(error).replace("model.averaged=", "--averaged ")
        raise ConfigError(f"{weights}: {line}") from None
    except TypeError as error:
        raise UnsupportedModelError(f"{name}: {one_line(error)}") from None
    return model


def _made_for(frame: Any, state: Mapping[str, Any]) -> int | None:
    """Side of the square images that the position embeddings of ``state`` are of, in pixels; None where they are those
    of ``frame``, timm's network, or say nothing."""
    own, theirs = getattr(frame, "pos_embed", None), state.get("pos_embed")
    if own is None or theirs is None or theirs.ndim != 3 or theirs.shape[1] == own.shape[1]:
        return None
    others = own.shape[1] - frame.patch_embed.num_patches  # class token and registers, where they have positions
    side, patch = math.isqrt(max(0, theirs.shape[1] - others)), frame.patch_embed.patch_size
    square = side * side == theirs.shape[1] - others and patch[0] == patch[1]
    return side * patch[0] if square and side else None


def _supported(model: Any) -> Any:
    standard(model)
    return model


def _of_transformers(folder: Path, img_size: int | None) -> Any:
    """Code that the folder may hold is not run."""
    try:
        import transformers
        from transformers import AutoModelForImageClassification
    except ImportError:
        raise ConfigError(f"{folder}: needs transformers, which is not installed: pip install transformers") from None
    transformers.logging.disable_progress_bar()  # of loading, between the lines that a command prints
    from hiap.formats.huggingface import from_transformers

    try:
        theirs, told = AutoModelForImageClassification.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # whatever a damaged folder makes it raise
        raise ConfigError(f"{folder}: not a classifier of transformers ({one_line(error)})") from None
    if drawn := sorted(told["missing_keys"]):
        raise ConfigError(f"{folder}: lacks {len(drawn)} of the network's weights, {drawn[0]} for example")
    _resize(theirs, img_size or _side(folder), folder)
    model = from_transformers(theirs)
    model.pretrained_cfg = {**_pixels(folder), **_labels(theirs.config)}
    return model


def _resize(theirs: Any, side: int | None, folder: Path) -> None:
    """Make a network of transformers one for images of ``side`` pixels, as it would itself when it gets such. Raises
    ``ConfigError`` for one that would not take them."""
    import torch

    config = getattr(theirs.config, "vision_config", theirs.config)
    own = config.image_size
    if side is None or side == own:
        return
    if not type(theirs).__name__.startswith("Dinov2"):
        raise ConfigError(
            f"{folder}: is for images of {own} pixels, not of {side}, as asked or as its {PROCESSOR} says"
        )
    warnings.warn(f"{folder}: positions for {own} pixels resampled for images of {side}", stacklevel=4)
    embeddings = getattr(theirs, theirs.base_model_prefix).embeddings
    with torch.no_grad():
        tokens = torch.empty(1, 1 + (side // config.patch_size) ** 2, config.hidden_size)
        found = embeddings.interpolate_pos_encoding(tokens, side, side)
    embeddings.position_embeddings, config.image_size = torch.nn.Parameter(found), side


def _side(folder: Path) -> int | None:
    """Return the side of the square images that the folder's processor makes, in pixels; None where none is told."""
    told = _processor(folder)
    size = told.get("crop_size") if told.get("do_center_crop", False) else told.get("size")
    sides = {size.get("height"), size.get("width")} if isinstance(size, dict) else {size}
    side = sides.pop() if len(sides) == 1 else None
    return side if isinstance(side, int) else None


def _processor(folder: Path) -> dict[str, Any]:
    """Read the processor; {} where there is none, or none that ``_pixels`` would take."""
    try:
        told = json.loads((folder / PROCESSOR).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _pixels(folder: Path) -> dict[str, Any]:
    """Return how the folder's processor makes pixels of photographs, by timm's names; {} where there is none."""
    file = folder / PROCESSOR
    if not file.is_file():
        return {}
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        size, crop, cuts = told.get("size") or {}, told.get("crop_size") or {}, told.get("do_center_crop", False)
        if isinstance(size, int):  # as older versions wrote it
            size = {"shortest_edge": size} if cuts else {}
        if abs(255 * told.get("rescale_factor", 1 / 255) - 1) > 1e-3 or not told.get("do_rescale", True):
            raise ValueError("pixels that are not in [0, 1]")
        mean, std = (told[name] for name in ("image_mean", "image_std"))
        if not told.get("do_normalize", True):
            mean, std = [0.0] * 3, [1.0] * 3
        found: dict[str, Any] = {"mean": tuple(map(float, mean)), "std": tuple(map(float, std))}
        whole = size.get("shortest_edge") or size.get("height")
        share = (crop["height"] if isinstance(crop, dict) else crop) / whole if cuts and whole else 1.0
        found |= {"crop_pct": share, "crop_mode": "center" if "shortest_edge" in size else "squash"}
        if (how := {2: "bilinear", 3: "bicubic"}.get(told.get("resample", 2))) is None:
            raise ValueError(f"resample {told['resample']}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ConfigError(
            f"{file}: not a processor that is known ({type(error).__name__}: {one_line(error)})"
        ) from None
    return {**found, "interpolation": how}


def _labels(config: Any) -> dict[str, Any]:
    """Return the names of the classes, where they are not transformers' 'LABEL_0' and so on."""
    names = [str(config.id2label[i]) for i in sorted(config.id2label)] if getattr(config, "id2label", None) else []
    return {} if not names or names[0] == "LABEL_0" else {"label_names": names}
