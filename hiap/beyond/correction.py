"""Ours, not the paper's: after a cut, the linear maps behind what was removed are corrected by least squares.

What removed units brought can in part be had from those that are left. Per branch, on a few hundred images without
labels and without gradients: the output map (W_O or fc2) of the pruned network changes by the ridge solution that
brings its residual stream nearest to that of the network before the cut (the idea of SparseGPT and of Optimal Brain
Surgeon, for whole columns). Blocks are corrected in order, each on what the corrected ones before it give, so that
errors do not add up.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hiap.backbones.count import image_of, macs
from hiap.backbones.errors import UnsupportedModelError
from hiap.backbones.evening import even
from hiap.backbones.families import standard
from hiap.backbones.guard import evaluated
from hiap.backbones.parts import is_norm
from hiap.backbones.pruned import PrunedBlock
from hiap.beyond.images import batches
from hiap.gated_vit import is_gated, sampling

RIDGE = 0.01  # of the mean square of the inputs
RIDGES = (1e-4, 1e-3, RIDGE, 0.1, 1.0)  # to choose from
APART = 5  # one in so many images of a batch is held out to choose by

Streams = list[Tensor]  # (B, N, D) of each batch
Given = list[dict[str, Any]]  # what each block is given beside the stream, rotary angles for example


@torch.no_grad()
def correct(small: Any, before: Any, images: Any, ridge: float | None = RIDGE) -> Any:
    """Correct ``small`` in place, towards the network before the cut, and return it. Only output maps, their biases and
    the constants of removed branches change, so that sizes, MACs and parameters stay.

    Memory: five times the tokens of all images, (images, N, D); with gates, and for a network that is not in the
    method's form, twice that per block. Raises ``ValueError`` without images, for networks of different size or depth,
    if ``small`` is the larger one or in another precision, for numbers that are not finite, and for blocks that put a
    norm behind a branch, where a change of the output map is not a change of the stream. Warns where the images are too
    few.

    Args:
        small: an extracted ViT.
        before: the ViT that it was cut from; if it carries gates, they sample as in training.
        images: some hundred as the networks take them, without augmentation: one tensor (B, C, height, width) or
            batches, which may be pairs of images and labels.
        ridge: above 0; holds a correction small where the images say little. None: of each map, the one of ``RIDGES``
            that leaves the least error on a fifth of each batch, which the others are fitted without.
    """
    if len(small.blocks) != len(before.blocks):
        raise ValueError(f"correct: {len(small.blocks)} blocks, but {len(before.blocks)} before the cut")
    if ridge is not None and not (isinstance(ridge, int | float) and 0 < ridge < float("inf")):
        raise ValueError(f"correct: ridge {ridge}: expected a number above 0, or None")
    if is_gated(small):
        raise ValueError("correct: small carries gates; extract it first")
    require_correctable(small)
    kinds = [str(next(model.parameters()).dtype).removeprefix("torch.") for model in (small, before)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"correct: small is in {kinds[0]}, before in {kinds[1]}; expected one precision")
    if small.embed_dim == before.embed_dim and macs(small, image_of(small)) > macs(before, image_of(before)):
        raise ValueError("correct: small has more MACs than before; are the arguments the other way round?")
    before = before if is_gated(before) else even(before)
    like, whole = next(before.parameters()), [p.detach().clone() for p in small.parameters()]
    try:
        with evaluated(small, before, device=like.device):
            _correct(small, before, (x.to(like) for x, _ in batches(images, before) if len(x)), ridge)
    except BaseException:  # half of a correction fits nothing
        for p, old in zip(small.parameters(), whole, strict=True):
            p.copy_(old)
        raise
    return small


def _correct(small: Any, before: Any, images: Iterable[Tensor], ridge: float | None) -> None:
    sampled = is_gated(before) or any(not hasattr(block, "ls1") for block in before.blocks)
    own: Streams = []
    given_on = _noted(small, images, own)
    streams, given, recorded = _recorded(before, given_on) if sampled else _first(before, given_on)
    if not streams:
        raise ValueError("correct: no images; expected at least one batch")
    if own[0].shape != streams[0].shape:
        shapes = f"{tuple(own[0].shape[1:])} and {tuple(streams[0].shape[1:])}"
        raise ValueError(f"correct: tokens of {shapes} before the first block; expected two networks of one size")
    _tell_few(small, sum(x.shape[0] * x.shape[1] for x in streams))
    dense, streams = streams, own
    for i, block in enumerate(small.blocks):
        after_attn, after_mlp = recorded[i] if recorded else _after(before.blocks[i], dense, given[i])
        streams = _corrected(block, "attn", streams, after_attn, ridge, given[i])
        streams = _corrected(block, "mlp", streams, after_mlp, ridge, {})
        dense = after_mlp


def require_correctable(model: Any) -> None:
    """Raise ``UnsupportedModelError`` for blocks with a norm behind a branch, and for weights that are computed, into
    which nothing can be written."""
    cut = any(isinstance(block, PrunedBlock) for block in model.blocks)
    for name, module in model.blocks.named_modules():
        if parametrize.is_parametrized(module):
            cure = "torch.nn.utils.parametrize.remove_parametrizations first"
            raise UnsupportedModelError(
                f"blocks.{name}: its weights are computed, so nothing can be written there; {cure}"
            )
    for block in model.blocks if cut else standard(model).blocks:
        if is_norm(block.ls1) or is_norm(block.ls2):
            raise UnsupportedModelError("correct: blocks with a norm behind a branch; expected at most a LayerScale")


class _EnoughError(Exception):
    """Raised within a network to leave it: all that was wanted of it is known."""


def _noted(model: Any, images: Iterable[Tensor], streams: Streams) -> Iterator[Tensor]:
    """Hand batches on, and note the stream of each before the first block of ``model``: one that was trained since it
    was cut has another than the network before the cut."""

    def enter(_: Any, args: tuple[Tensor]) -> None:
        streams.append(args[0])
        raise _EnoughError

    for batch in images:
        with model.blocks[0].register_forward_pre_hook(enter), suppress(_EnoughError):
            model(batch)
        yield batch


def _tell_few(small: Any, rows: int) -> None:
    """Warn of fewer equations than unknowns."""
    branches = [(block.attn, "proj") for block in small.blocks] + [(block.mlp, "fc2") for block in small.blocks]
    units = max((getattr(part, name).in_features for part, name in branches if part is not None), default=0)
    if rows < units:
        few = f"{rows:,} tokens in all are too few to tell the {units:,} units of a layer apart"
        warnings.warn(f"correct: {few}; take more images", stacklevel=4)


def _first(model: Any, images: Iterable[Tensor]) -> tuple[Streams, Given, None]:
    """Return the stream before the first block, and what each block is given beside it."""
    streams: Streams = []
    given: Given = []
    for batch in _noted(model, images, streams):
        given = given or _given(model, batch)
    return streams, given, None


def _given(model: Any, batch: Tensor) -> Given:
    """Return what each block is given beside the stream."""
    found: Given = []
    with ExitStack() as stack:
        for block in model.blocks:
            found.append({})
            keep = partial(_keep_given, found[-1])
            stack.enter_context(block.register_forward_pre_hook(keep, with_kwargs=True))
        model(batch)
    return found


def _keep_given(to: dict[str, Any], _: Any, args: tuple[Tensor], others: dict[str, Any]) -> None:
    to.update({name: value for name, value in others.items() if value is not None})


def _after(block: Any, streams: Streams, given: dict[str, Any]) -> tuple[Streams, Streams]:
    """Return the stream after either branch of a block that nothing is cut from."""
    after: tuple[Streams, Streams] = ([], [])
    with block.norm2.register_forward_pre_hook(lambda _, args: after[0].append(args[0])):
        for x in streams:
            after[1].append(block(x, **given))
    return after


def _recorded(model: Any, images: Iterable[Tensor]) -> tuple[Streams, Given, list[tuple[Streams, Streams]]]:
    """Return the residual stream of each batch before the first block, and of each block after either branch, all in
    one pass: gates are sampled once."""
    first: Streams = []
    given: Given = [{} for _ in model.blocks]
    after: list[tuple[Streams, Streams]] = [([], []) for _ in model.blocks]
    with ExitStack() as stack:
        stack.enter_context(model.blocks[0].register_forward_pre_hook(lambda _, args: first.append(args[0])))
        for block, (attn, mlp), own in zip(model.blocks, after, given, strict=True):
            keep = partial(_keep_given, own)
            stack.enter_context(block.register_forward_pre_hook(keep, with_kwargs=True))
            stack.enter_context(block.norm2.register_forward_pre_hook(lambda _, args, to=attn: to.append(args[0])))
            stack.enter_context(block.register_forward_hook(lambda _, args, out, to=mlp: to.append(out)))
        if is_gated(model):
            stack.enter_context(sampling(model))
        for batch in images:
            model(batch)
    return first, given, after


def _corrected(
    block: Any, branch: str, streams: Streams, wanted: Streams, ridge: float | None, given: dict[str, Any]
) -> Streams:
    """Correct one branch; return the stream after it."""
    part, constant = getattr(block, branch), getattr(block, f"{branch}_constant", None)
    if part is None:
        if constant is not None:
            constant.copy_(torch.cat([w - x for x, w in zip(streams, wanted, strict=True)]).mean((0, 1)))
        return [x if constant is None else x + constant for x in streams]
    norm, scale = (block.norm1, block.ls1) if branch == "attn" else (block.norm2, block.ls2)
    output = part.proj if branch == "attn" else part.fc2
    gamma = getattr(scale, "gamma", None)
    solve = _LeastSquares(output)
    with output.register_forward_pre_hook(lambda _, args: solve.take(args[0])):
        for x, w in zip(streams, wanted, strict=True):
            solve.add(w - x - scale(part(norm(x), **given)), gamma, ridge is None)
    solve.apply(solve.best() if ridge is None else ridge)
    return [x + scale(part(norm(x), **given)) for x in streams]


class _LeastSquares:
    """Normal equations of what a linear map must add to come nearest to a wanted output."""

    def __init__(self, linear: nn.Linear):
        self.linear = linear
        size = linear.in_features + int(linear.bias is not None)
        weight = linear.weight
        self.inputs, self.gram = torch.empty(0), torch.zeros(size, size, dtype=torch.float64, device=weight.device)
        self.cross = torch.zeros(size, linear.out_features, dtype=torch.float64, device=weight.device)
        self.held: tuple[Tensor, Tensor] | None = None  # of ``gram`` and ``cross``, what is held out

    def take(self, inputs: Tensor) -> None:
        self.inputs = inputs

    def add(self, missing: Tensor, gamma: Tensor | None, choose: bool = False) -> None:
        """Add a batch. ``missing`` (B, N, D): what the branch should give more, behind a layer scale ``gamma`` (D,).
        ``choose``: hold some of it out for ``best``."""
        x, y = self.inputs.flatten(0, 1).double(), missing.flatten(0, 1).double()
        if gamma is not None:  # a channel that is scaled to nothing cannot be corrected
            y = torch.where(gamma.abs() > 1e-8, y / gamma, 0.0)
        if self.linear.bias is not None:
            x = torch.cat([x, x.new_ones(len(x), 1)], 1)
        self.gram += x.T @ x
        self.cross += x.T @ y
        if choose and (rows := len(missing) // APART * missing.shape[1]):
            if self.held is None:
                self.held = torch.zeros_like(self.gram), torch.zeros_like(self.cross)
            self.held[0].add_(x[-rows:].T @ x[-rows:])
            self.held[1].add_(x[-rows:].T @ y[-rows:])

    def best(self) -> float:
        """Return the ridge that leaves the least squared error on what was held out, fitted on the rest; ``RIDGE``
        where nothing was."""
        if self.held is None:
            return RIDGE
        gram, cross = self.held
        errors = []
        for ridge in RIDGES:
            added = self._solved(self.gram - gram, self.cross - cross, ridge)
            errors.append(float((added * (gram @ added - 2 * cross)).sum()))  # beside what no ridge changes
        return RIDGES[errors.index(min(errors))]

    def apply(self, ridge: float) -> None:
        count = self.linear.in_features
        added = self._solved(self.gram, self.cross, ridge).T.to(self.linear.weight.dtype)
        if not added.isfinite().all():
            raise ValueError("correct: the network gives numbers that are not finite for these images")
        self.linear.weight.add_(added[:, :count])
        if self.linear.bias is not None:
            self.linear.bias.add_(added[:, count])

    def _solved(self, gram: Tensor, cross: Tensor, ridge: float) -> Tensor:
        count = self.linear.in_features
        strength = torch.zeros(len(gram), dtype=gram.dtype, device=gram.device)
        least = torch.finfo(gram.dtype).tiny  # where all inputs are zero, nothing is to be added
        strength[:count] = (ridge * gram.diagonal()[:count].mean()).clamp_min(least)  # the bias is free
        return torch.linalg.solve(gram + strength.diag(), cross)
