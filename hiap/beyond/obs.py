"""Ours, not the paper's: units ranked by what their removal costs once the others have made up for it.

Structured optimal brain surgeon (Frantar and Alistarh, Optimal Brain Compression, arXiv 2208.11580; Kurtic et al.,
ZipLM, arXiv 2302.04089). Each branch ends in a linear map W of its units: value dimensions at the output projection,
neurons at fc2. With H the second moments of what the units give, taking unit j away and refitting the others by least
squares costs ||W_j||^2 / [H^-1]_jj; the inverse without it follows by one rank-one step, and so does the next cheapest
unit. Two additions make the errors of all branches comparable: output channels are weighted by how much the network's
own output depends on them (its Fisher information; no labels), and a unit that is removed later is never worth less
than one before. Weighting tokens likewise was tried, and left a larger divergence from the dense network.

``hiap.correct`` then does this refitting, behind the cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiap import cost, ledger
from hiap.backbones.families import classes
from hiap.backbones.guard import modes_kept
from hiap.beyond.correction import RIDGE
from hiap.budget.selection import Ranking

FISHER = ("own", "labels", "none")
AT_ONCE = 64  # removals between two updates of the whole inverse
ACTIVATIONS = 2 * 2**30  # bytes that a backward pass may keep, about: larger batches go in pieces
TINY = 1e-30  # of a branch that nothing depends on


@dataclass
class Moments:
    """Second moments of what one branch's output map (out, units) saw: ``gram`` (units, units), those of its inputs per
    image, about their mean if the map has a bias; ``channels`` (out,), the weights of squared errors of its outputs."""

    gram: Tensor
    channels: Tensor


def rank(
    model: Any,
    images: Iterable[Any],
    fisher: str = "own",
    ridge: float = RIDGE,
    prices: ledger.Prices | None = None,
    also: Sequence[Any] = (),
) -> Ranking:
    """Rank all value dimensions and neurons of a ViT in the method's form: a key is the loss, in nats of an image, per
    MAC saved, or per unit of other ``prices``.

    ``images``: batches as for ``hiap.correct``, or pairs of images and labels. ``fisher``: weights of squared errors,
    'own' from the network's own predictions (its features, if it has no classifier), 'labels' from the images' labels,
    'none' equal ones (no backward pass).
    ``also``: what else looks at the same pass (``hiap.beyond.query_key.Queries``).
    Raises ``ValueError`` for an unknown ``fisher``, a ``ridge`` that is too small, no images, missing labels, numbers
    that are not finite, and answers that depend on no unit.
    """
    dims = cost.dims_of(model)
    prices = prices or ledger.true_prices(dims.tokens, dims.dim, dims.head_dim, dims.fc1_rows)
    seen = moments(model, images, fisher, also)
    keys = [
        removal_errors(found, output_map(block, branch).weight, ridge)
        for block, pair in zip(model.blocks, seen, strict=True)
        for branch, found in zip(("attn", "mlp"), pair, strict=True)
    ]
    errors = torch.stack(keys[::2]).unflatten(1, (dims.heads, dims.head_dim))
    return Ranking(dims=per_price(errors, prices), neurons=torch.stack(keys[1::2]) / max(prices.neuron, TINY))


def per_price(errors: Tensor, prices: ledger.Prices) -> Tensor:
    """Return the keys (L, H, Dh) of value dimensions: their errors per unit of cost. The best ones of a head share the
    head's own price, as many of them as have the highest joint error per joint price; that ratio is the key of each.
    Any further one pays its own price alone, and its key is never above theirs."""
    best, order = errors.sort(-1, descending=True)
    count = torch.arange(1, errors.shape[-1] + 1)
    together, last = (best.cumsum(-1) / (prices.head + count * prices.value_dim).clamp(min=TINY)).max(-1, keepdim=True)
    alone = torch.minimum(best / max(prices.value_dim, TINY), together)
    keys = torch.where(count - 1 <= last, together, alone)
    return torch.empty_like(keys).scatter(-1, order, keys)


def output_map(block: Any, branch: str) -> nn.Linear:
    """Return the linear map at the end of 'attn' or 'mlp'."""
    return block.attn.proj if branch == "attn" else block.mlp.fc2


def moments(
    model: Any, images: Iterable[Any], fisher: str = "own", also: Sequence[Any] = ()
) -> list[tuple[Moments, Moments]]:
    """Collect the moments of attention and FFN of each block, in one pass; arguments and errors as of ``rank``."""
    if fisher not in FISHER:
        raise ValueError(f"fisher {fisher!r}: expected one of {', '.join(FISHER)}")
    sums = [_Sums(block, branch) for block in model.blocks for branch in ("attn", "mlp")]
    watching = [*sums, *also]
    generator, count = torch.Generator().manual_seed(0), 0
    with modes_kept(model), ExitStack() as stack:
        model.eval()
        for one in watching:
            stack.enter_context(one.linear.register_forward_hook(one.take))
        for x, labels in _pieces(model, images):
            if fisher == "labels" and labels is None:
                raise ValueError("fisher 'labels': the images come without labels")
            _look(model, x, watching, labels if fisher == "labels" else None, generator if fisher != "none" else None)
            count += len(x)
    if not count:
        raise ValueError("no images; expected at least one batch")
    found = [one.moments(count) for one in sums]
    if not all(one.gram.isfinite().all() and one.channels.isfinite().all() for one in found):
        raise ValueError("the network gives numbers that are not finite for these images")
    if not any(one.channels.any() and one.gram.any() for one in found):
        raise ValueError(
            "the answers depend on nothing that can be removed (a classifier of zeros, or of one class?); fisher "
            "'none' asks not"
        )
    return list(zip(found[::2], found[1::2], strict=True))


def _pieces(model: Any, images: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield the batches, in pieces whose activations fit: memory does not grow with the size of a batch."""
    dims = cost.dims_of(model)
    of_an_image = 4 * dims.tokens * dims.depth * (10 * dims.dim + 3 * dims.hidden)
    count = max(1, ACTIVATIONS // of_an_image)
    for batch in images:
        x, labels = batch if isinstance(batch, (tuple, list)) else (batch, None)
        for first in range(0, len(x), count):
            yield x[first : first + count], None if labels is None else labels[first : first + count]


def _look(model: Any, x: Tensor, sums: list[Any], labels: Tensor | None, generator: torch.Generator | None) -> None:
    """Run one batch forward and, with a ``generator``, backward from the logits, or from the features of a network
    without a classifier, to what each branch gives."""
    if generator is None:
        with torch.no_grad():
            model(x)
            for one in sums:
                one.add(None)
        return
    with torch.enable_grad():
        logits = model(x.detach().requires_grad_()).float()
        direction = directions(logits.detach(), labels, generator) if classes(model) else signs(logits, generator)
        grads = torch.autograd.grad((logits * direction).sum(), [one.output for one in sums])
    for one, grad in zip(sums, grads, strict=True):
        one.add(grad)


def directions(logits: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
    """Return (B, classes), gradients of the cross-entropy with respect to the logits. Without labels a random direction
    with the same second moments, diag(p) - p p^T, as the gradient for labels that are drawn from the network's own
    answer p: the Fisher information, with less noise than from labels."""
    p = logits.softmax(-1)
    if labels is not None:
        return p - F.one_hot(labels, p.shape[-1])
    drawn = p.sqrt() * signs(p, generator)
    return drawn - p * drawn.sum(-1, keepdim=True)


def signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return -1 and 1 at random: as a gradient of features, whose squared errors then all count alike."""
    return torch.randint(0, 2, like.shape, generator=generator).to(like) * 2 - 1


class _Sums:
    """Sums over the tokens of all images of what the output map of a branch gets, and how much its outputs matter."""

    def __init__(self, block: Any, branch: str):
        self.linear = output_map(block, branch)
        self.gamma = getattr(block.ls1 if branch == "attn" else block.ls2, "gamma", None)
        kind: dict[str, Any] = {"dtype": torch.float64, "device": self.linear.weight.device}
        units, outputs = self.linear.in_features, self.linear.out_features
        self.gram, self.total = torch.zeros(units, units, **kind), torch.zeros(units, **kind)
        self.channels, self.tokens = torch.zeros(outputs, **kind), 0
        self.inputs = self.output = torch.empty(0)
        self.weighted = False
        self.shift: Tensor | None = None

    def take(self, _: Any, args: tuple[Tensor], output: Tensor) -> None:
        self.inputs, self.output = args[0].detach().flatten(0, -2), output

    def add(self, grad: Tensor | None) -> None:
        """Add a batch. ``grad`` (B, N, D) of the output: an output channel counts as the mean of its squares."""
        x = self.inputs.float()
        if grad is not None:
            self.weighted = True
            self.channels += grad.flatten(0, -2).float().square().sum(0)
        if self.shift is None:  # near the mean, so that no digits are lost where inputs hardly differ
            self.shift = x.mean(0) * (self.linear.bias is not None)
        x = torch.cat([x - self.shift, torch.ones_like(x[:, :1])], 1)
        gram = x.T @ x
        self.gram += gram[:-1, :-1]
        self.total += gram[-1, :-1]
        self.tokens += len(x)
        self.inputs = self.output = torch.empty(0)

    def moments(self, count: int) -> Moments:
        """Return the moments per image, of ``count`` images."""
        gram, channels = self.gram, self.channels / self.tokens
        if self.linear.bias is not None:  # which makes up for means
            gram = gram - torch.outer(self.total, self.total) / self.tokens
        if not self.weighted:
            channels = torch.ones_like(channels) if self.gamma is None else self.gamma.detach().double().square()
        return Moments(gram / count, channels)


def removal_errors(found: Moments, weight: Tensor, ridge: float = RIDGE) -> Tensor:
    """Return (units,): what the removal of each costs when its turn comes, never less than those before it."""
    order, errors = removals(found, weight, ridge)
    return torch.empty_like(errors).scatter(0, order, errors.cummax(0).values).float()


@torch.no_grad()
def removals(found: Moments, weight: Tensor, ridge: float = RIDGE) -> tuple[Tensor, Tensor]:
    """Return the units in the order in which they go, at each turn the cheapest of those left, and what each costs
    (float64). Raises ``ValueError`` where ``ridge`` is too small."""
    gram = found.gram
    strength = ridge * gram.diagonal().mean().clamp_min(TINY)
    factor, failed = torch.linalg.cholesky_ex(gram + strength * torch.eye(len(gram)).to(gram))
    if failed:
        raise ValueError(f"ridge {ridge:g}: too small for these images; expected more of them, or {RIDGE:g}")
    inverse = torch.cholesky_inverse(factor)
    w = found.channels.sqrt()[:, None] * weight.detach().double()
    left = torch.arange(len(gram), device=gram.device)
    order, errors = [], []
    while len(left):
        gone, costs, inverse, w = _some_removals(inverse, w, min(AT_ONCE, len(left)))
        order.append(left[gone])
        errors.append(costs)
        stay = torch.ones_like(left, dtype=torch.bool).scatter(0, gone, False)
        left, inverse, w = left[stay], inverse[stay][:, stay], w[:, stay]
    return torch.cat(order), torch.cat(errors)


def _some_removals(inverse: Tensor, w: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return ``count`` removals, in order; what each costs; the inverse and the map after all of them. Both change by
    products ``u u^T`` and ``v u^T``, which are kept apart until the end: a step then touches vectors alone."""
    u, v = inverse.new_zeros(len(inverse), count), inverse.new_zeros(len(w), count)
    diagonal, squares = inverse.diagonal().clone(), w.square().sum(0)
    gone, costs = torch.zeros(count, dtype=torch.long, device=w.device), inverse.new_zeros(count)
    for k in range(count):
        unit = int((squares / diagonal).argmin())
        row, before = u[unit, :k], v[:, :k]
        root = (inverse[unit, unit] - row @ row).sqrt()
        step, part = (inverse[unit] - u[:, :k] @ row) / root, (w[:, unit] - before @ row) / root
        gone[k], costs[k] = unit, part.square().sum()
        # squares of the columns of w - v u^T
        squares += step * (costs[k] * step - 2 * (part @ w - u[:, :k] @ (part @ before)))
        squares.clamp_(min=0)
        diagonal -= step.square()
        u[:, k], v[:, k] = step, part
        squares[gone[: k + 1]], diagonal[gone[: k + 1]] = torch.inf, 1.0
    return gone, costs, inverse - u @ u.T, w - v @ u.T
