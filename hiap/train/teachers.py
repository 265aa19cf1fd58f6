"""What a run learns from besides labels: its start, another run's network, a saved one, or any of timm's, a CNN as in
DeiT included."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from hiap import cost
from hiap.backbones.count import counted_macs
from hiap.backbones.families import pretrained
from hiap.data import loader as data
from hiap.formats import online
from hiap.train.config import CIFAR_MODEL, Config, ConfigError
from hiap.train.device import autocast
from hiap.train.evaluate import at_once
from hiap.train.record import Folders
from hiap.train.start import build, filled, require_same_classes


class Teacher(nn.Module):
    """Teacher: a frozen network that is shown images as it was trained on them. ``scale``, ``shift`` (C, 1, 1) take the
    pixels that the student sees to its own; ``adapted``: what was done to its weights."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: Any, adapted: list[str], scale: Tensor, shift: Tensor):
        super().__init__()
        self.model, self.adapted = model, adapted
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images * self.scale + self.shift)

    def macs(self, image: tuple[int, int, int]) -> int:
        """Count the multiply-adds of one image."""
        try:
            return cost.macs(self.model, image)
        except ValueError:  # no ViT
            return counted_macs(self.model, torch.zeros(1, *image))


class Distillation:
    """Distillation within a run. ``network``: the one that it starts from, frozen (paper, section 5), or another that
    was asked for; None for dense runs and at alpha 0. ``logits``: its own of every training image, float32 (n,
    classes), where they are computed once."""

    def __init__(self, config: Config, start: Any, macs: int, info: data.Info, folders: Folders, device: torch.device):
        """Make the teacher of a run. ``macs`` are those of ``start``; ``config.data`` as the run shows them."""
        self.config, self.device = config, device
        self.macs, self.adapted = macs, list[str]()
        self.network: Any = None
        self.logits: Tensor | None = None
        if config.distill.teacher:
            found = teacher(config, data.pixels(config.data), info.channels, info.classes, folders)
            self.macs, self.adapted = found.macs(info.image(config.model.img_size)), found.adapted
            self.network = found.to(device)
        elif config.method != "dense" and config.distill.alpha > 0:
            self.network = copy.deepcopy(start).eval().requires_grad_(False).to(device)

    @torch.no_grad()
    def precompute(self) -> None:
        """Ask for ``logits``, if the run wants them at once."""
        if self.network is None or not self.config.distill.precompute:
            return
        found = []
        size, workers = self.config.model.img_size, self.config.run.workers
        for images, _ in data.in_order(self.config.data, size, at_once(self.config), workers):
            with autocast(self.device, self.config.optim.precision):
                found.append(self.network(images.to(self.device)).float())
        self.logits = torch.cat(found)

    @property
    def macs_per_image(self) -> int:
        """MACs of the teacher, at each image that is trained on."""
        return 0 if self.network is None or self.logits is not None else self.macs

    @property
    def macs_once(self) -> int:
        """MACs of the teacher, for all that is trained on."""
        return 0 if self.logits is None else self.macs * len(self.logits)


def teacher(config: Config, pixels: dict[str, Any], channels: int, classes: int, folders: Folders) -> Teacher:
    """Build ``distill.teacher``, on the CPU; ``pixels``: mean and std of the images that the student sees. Raises
    ``ConfigError`` if it cannot be had, or does not know the classes."""
    name = config.distill.teacher
    if name.startswith("run:") or Path(name).is_dir():
        own = {"name": "vit", **CIFAR_MODEL, "weights": name, "scratch": False}  # of its own sizes, whatever learns
        start = build(config.model.model_copy(update=own), channels, classes, folders)
        model, adapted, new_head = start.model, start.adapted, start.new_head
    else:
        model, adapted, new_head = _of_timm(config, channels, classes)
    if new_head:
        raise ConfigError(f"distill.teacher '{name}': no classifier of the data's {classes} classes; nothing to learn")
    require_same_classes(model, config.data, classes, f"distill.teacher '{name}'")
    bare = config.data.model_copy(update=dict.fromkeys(data.PIXELS))
    theirs = data.pixels(bare, pretrained(model))
    (mean, std), (own_mean, own_std) = (
        (torch.tensor(p["mean"]).view(-1, 1, 1), torch.tensor(p["std"]).view(-1, 1, 1)) for p in (pixels, theirs)
    )
    return Teacher(model, adapted, std / own_std, (mean - own_mean) / own_std)


def _of_timm(config: Config, channels: int, classes: int) -> tuple[Any, list[str], bool]:
    """Return the model, what was adapted, and whether its classifier is not for these classes."""
    name, weights = config.distill.teacher, config.distill.teacher_weights
    if not timm.is_model(name):
        raise ConfigError(f"distill.teacher '{name}': expected a timm model, 'run:<run_id>' or a folder of hiap.save")
    if weights == "hub":
        model = _created(config, pretrained=True, in_chans=channels)
        return model, [], model.num_classes != classes
    if not Path(weights).is_file():
        raise ConfigError(f"distill.teacher_weights '{weights}': no such file; expected 'hub', .safetensors or .pth")
    model = _created(config, in_chans=channels, num_classes=classes)
    return model, *filled(model, Path(weights), config.model.averaged, "distill.teacher_weights")


def _created(config: Config, **options: Any) -> Any:
    """Create the model at the student's size, where the architecture has one."""
    name = config.distill.teacher
    try:
        with online.at_hand() if options.get("pretrained") else nullcontext():
            try:
                return timm.create_model(name, img_size=config.model.img_size, **options)
            except TypeError:
                return timm.create_model(name, **options)
    except Exception as error:  # huggingface_hub raises a dozen kinds, offline or not
        raise ConfigError(
            f"distill.teacher '{name}': cannot be made or fetched ({type(error).__name__}); offline, set "
            "distill.teacher_weights to a local file"
        ) from None
