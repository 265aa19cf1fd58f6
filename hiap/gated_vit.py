"""A network with gates: made of a timm ViT, annealed, hardened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hiap.backbones.errors import UnsupportedModelError
from hiap.backbones.families import Names, copied, require_alike
from hiap.backbones.guard import modes_kept, require_same, tell_lost
from hiap.extraction import built
from hiap.gated_layers import (
    BlockMask,
    GatedAttention,
    GatedMlp,
    decided,
    gates_with_masks,
    is_gated,
    masks,
    named_gates,
    stack_gates,  # noqa: F401
)
from hiap.gates import Gate, anneal  # noqa: F401
from hiap.options import ConfigError, GateConfig, checked


def gate(
    model: nn.Module,
    config: GateConfig | None = None,
    *,
    seed: int = 0,
    kind: type[Gate] = Gate,
    **options: Any,
) -> Any:
    """Return a copy of ``model`` whose attention and FFN carry gates, still a ``VisionTransformer``, ``Eva`` or
    ``Beit``: in training mode it samples its gates, in eval mode it runs the hardened ones.

    Args:
        model: is left alone. Raises ``UnsupportedModelError`` naming the first module without a gated form.
        config, options: ``GateConfig`` or, without one, its fields by keyword (A1, A2, A4-A6, A9); rates and noise are
            ``Pruner``'s. Raises ``ConfigError`` for a field that is none, and for both.
        seed, kind: of the noise of ``harden='sample'``; another gate than the paper's, for baselines.
    """
    if config and options:
        raise ConfigError(f"gate: a GateConfig and {', '.join(options)} beside it; put the latter into the former")
    config = config or checked(GateConfig, options)
    check_supported(model, config)
    generator = torch.Generator().manual_seed(seed)
    gated: Any = copied(model)
    for block, given in zip(gated.blocks, model.get_submodule("blocks").children(), strict=True):
        block.attn = GatedAttention(block.attn, config, generator, kind).to(block.attn.proj.weight.device)
        block.mlp = GatedMlp(block.mlp, config, generator, kind).to(block.mlp.fc2.weight.device)
        block.train(given.training)
    gated.dense_dims = None  # ``hiap.cost.dims_of`` derives them once
    vars(gated)["no_weight_decay"] = Names(
        {*gated.no_weight_decay(), *(name for name, _ in gated.named_parameters() if name.endswith(".logit"))}
    )
    tell_lost(model, gated, "gate")
    require_same(model, gated, "gating", open_gates)
    require_removable(gated)
    return gated


def open_gates(gated: Any) -> Any:
    """Return a context in which every gate of a network is open, whatever has been learned; see ``decided``."""
    return decided(gated, [mask.map(torch.ones_like) for mask in masks(gated)] if is_gated(gated) else [])


def require_removable(gated: Any) -> None:
    """Raise ``UnsupportedModelError`` unless extraction of half of the units, drawn at random, computes what closing
    their gates computes: an activation that mixes neurons, for example, shows before it is trained."""
    if any(p.is_meta for p in gated.parameters()):
        return
    generator = torch.Generator().manual_seed(0)
    half = [mask.map(lambda t: torch.rand(t.shape, generator=generator) < 0.5) for mask in masks(gated)]
    for mask in half:
        mask.heads[0] = mask.dims[0, 0] = mask.neurons[0] = True
        mask.ffn.fill_(True)
    require_same(gated, built(gated, half), "extraction", lambda model: decided(model, half))


def check_supported(model: nn.Module, config: GateConfig | None = None) -> None:
    """Raise ``UnsupportedModelError`` unless ``model`` is a timm ViT that ``hiap.backbones.families`` has a form for,
    without gates, all its blocks alike, and with Q and K that may lose dimensions if ``config`` says so."""
    if is_gated(model):
        raise UnsupportedModelError("the model carries gates already: expected one without")
    require_alike(model, None if config is None or config.dims == "v" else f"gates.dims '{config.dims}'")


@contextmanager
def sampling(gated: nn.Module) -> Iterator[None]:
    """Let the gates sample as in training, within, whatever the mode of the rest (the 'soft' evaluation)."""
    gates = [g for _, g in named_gates(gated)]
    with modes_kept(*gates):
        for g in gates:
            g.train()
        yield


def set_masks(gated: Any, kept: list[BlockMask]) -> None:
    """Close and open gates by hand, for good: this is how baselines decide."""
    for g, stay in gates_with_masks(gated, kept):
        g.fix(stay)


def harden_to(gated: Any, kept: list[BlockMask]) -> None:
    """Decide by hand how gates harden; what they have learned stays."""
    for g, stay in gates_with_masks(gated, kept):
        g.harden_to(stay)
