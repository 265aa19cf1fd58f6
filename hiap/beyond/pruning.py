"""Ours, not the paper's: a smaller network in about a minute, from some hundred images and without training.

::

    small = hiap.prune(model, images, target_macs=0.5)

Units are ranked by optimal brain surgeon (``hiap.beyond.obs``), with the dimensions of queries and keys
(``hiap.beyond.query_key``) the best that fit the target stay, and least squares on the same images corrects the maps
behind what has gone (``hiap.beyond.correction``). No label is looked at.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hiap import gated_vit, ledger
from hiap.backbones.errors import UnsupportedModelError
from hiap.backbones.evening import even, trimmed
from hiap.backbones.families import copied, is_vit
from hiap.backbones.guard import require_numbers
from hiap.beyond import obs, query_key
from hiap.beyond.correction import RIDGE, correct, require_correctable
from hiap.beyond.images import batches
from hiap.budget.latency import LatencyTable
from hiap.budget.pruner import extract
from hiap.budget.selection import Target, constants, require_used, target_of
from hiap.options import ConfigError


def prune(
    model: Any,
    images: Any,
    *,
    target_macs: float | None = None,
    target_params: float | None = None,
    target_latency: float | None = None,
    latency: LatencyTable | str | os.PathLike[str] | None = None,
    multiple: int | None = None,
    fisher: str = "own",
    ridge: float | None = RIDGE,
) -> Any:
    """Return a smaller copy of ``model`` at the target, in eval mode, on the model's device and in its precision.

    Raises, before the first image is looked at, ``UnsupportedModelError`` for a network and ``ConfigError`` for images
    or a target that this is not for.

    Args:
        model: a ViT as ``hiap.gate`` takes it, or one that was pruned before.
        images: some hundred, as the network takes them and without augmentation, as one tensor (B, C, height, width) or
            as batches, which may be pairs of images and labels.
        target_macs, target_params, target_latency: one of them, a number or a share of ``model``'s below 1.
        latency, multiple: as in ``hiap.extract``.
        fisher: as in ``hiap.beyond.obs.rank``; with 'none' queries and keys stay whole.
        ridge: as in ``hiap.beyond.obs.rank`` and ``hiap.correct``, where None lets only the latter choose one.
    """
    if not is_vit(model):
        raise UnsupportedModelError(f"{type(model).__name__}: expected a timm VisionTransformer, Eva or Beit")
    require_used(latency, target_latency is not None)
    if fisher not in obs.FISHER:
        raise ConfigError(f"fisher {fisher!r}: expected {', '.join(map(repr, obs.FISHER))}")
    if ridge is not None and (not isinstance(ridge, int | float) or not 0 < ridge < float("inf")):
        raise ConfigError(f"ridge {ridge!r}: expected a number above 0, or None")
    if torch.is_inference_mode_enabled():
        raise ConfigError(
            "hiap.prune: cannot run under torch.inference_mode(), which keeps no gradients; call it outside"
        )
    require_numbers(model)
    whole = even(model)
    require_correctable(whole)
    gated = gated_vit.gate(whole, attn_bias="kept")  # what a branch gave on the mean stays as a constant
    target = target_of(gated, target_macs, target_params, target_latency, latency, multiple)
    if target is None:
        raise ConfigError("set target_macs, target_params or target_latency, e.g. target_macs=0.5")
    target = _constants_stay(target, whole)
    target.require_reachable(_blank(target))
    seen = _checked(images, whole, fisher == "labels")
    form = copied(whole).eval()
    queries = query_key.watch(form) if fisher != "none" else []
    with torch.autocast(next(form.parameters()).device.type, enabled=False):
        ranking = obs.rank(form, seen, fisher, ridge or RIDGE, target.prices, queries)
    bases = [one.basis() for one in queries]
    kept, widths = query_key.keep_best(target, ranking, bases)
    for mask in kept:
        mask.ffn.fill_(True)
    if min(widths) < target.dims.head_dim:
        gated = gated_vit.gate(query_key.narrowed(whole, bases, widths), attn_bias="kept")
    gated_vit.set_masks(gated, kept)
    small = extract(gated.eval())
    correct(small, form, (x for x, _ in seen), ridge)
    return trimmed(small)


def _constants_stay(target: Target, model: Any) -> Target:
    """Price an FFN without the bias of its output, which it leaves behind."""
    if target.prices.unit != "parameters" or model.blocks[0].mlp is None:
        return target
    kept, new = target.dims.dim, target.dims.depth - sum(constants(target.gone))
    ffn, constant = target.prices.ffn - kept, target.prices.constant + new * kept
    return replace(target, prices=replace(target.prices, ffn=ffn, constant=constant))


def _blank(target: Target) -> obs.Ranking:
    """Return a ranking of all units, to ask what can be reached."""
    d: ledger.Dims = target.dims
    return obs.Ranking(dims=torch.zeros(d.depth, d.heads, d.head_dim), neurons=torch.zeros(d.depth, d.hidden))


def _checked(images: Any, model: Any, labelled: bool) -> list[tuple[Tensor, Tensor | None]]:
    """Return batches of images, in the network's precision and on its device, with labels if they are looked at."""
    like = next(model.parameters())
    taken = [
        (x.to(like), _labels(labels, len(x), model).to(like.device) if labelled else None)
        for x, labels in batches(images, model)
    ]
    if not sum(len(x) for x, _ in taken):
        raise ConfigError("images: none; expected some hundred")
    return taken


def _labels(labels: Any, count: int, model: Any) -> Tensor:
    """Return labels as ``fisher`` 'labels' takes them: a class number (B,) of each image. Raises ``ConfigError`` for
    others."""
    classes = model.num_classes
    if not isinstance(labels, Tensor) or labels.shape != (count,) or labels.is_floating_point() or labels.is_complex():
        found = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise ConfigError(f"fisher 'labels': expected class numbers ({count},) with the images, not {found}")
    if count and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ConfigError(f"fisher 'labels': {int(labels.min())} to {int(labels.max())}; expected 0 to {classes - 1}")
    return labels.long()
