"""Parameters and predicted time as prices of units, and what masks leave, at any prices."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import torch
from torch import nn

from hiap import ledger
from hiap.backbones.count import blocks_of, qk_dims, value_dims
from hiap.backbones.errors import UnsupportedModelError
from hiap.backbones.evening import Given
from hiap.backbones.families import standard
from hiap.backbones.parts import biases, is_norm
from hiap.budget.latency import LatencyTable, read_latency
from hiap.cost import dims_of, params
from hiap.gated_layers import BlockMask, masks
from hiap.options import ConfigError


def million(prices: ledger.Prices) -> str:
    """Return the name of a million of their unit, for messages."""
    return "µs" if prices.unit == "ps" else f"M {prices.unit}"


def kept_cost(
    prices: ledger.Prices,
    kept: list[BlockMask],
    head_dim: int,
    cut_qk: bool = False,
    qk_left: Sequence[Sequence[int]] = (),
) -> int:
    """Return what extraction by these masks leaves; ``cut_qk``: Q and K lose the dimensions too (A4). ``qk_left``
    (L, H): how many dimensions of Q and K each head has, where a cut before has left fewer than ``head_dim``."""
    total = prices.constant
    for mask, own in zip_longest(kept, qk_left[: len(kept)]):
        widths, neurons = mask.head_widths(), mask.neuron_count()
        rows = sum(widths) if own is None else _qk_rows(mask, own, cut_qk)
        if cut_qk:
            total += prices.head // head_dim * rows
        else:
            gone = 0 if own is None else head_dim * len(widths) - rows
            total += prices.head * len(widths) - prices.head // head_dim * gone
        total += prices.value_dim * sum(widths) + prices.attention * bool(widths)
        total += prices.neuron * neurons + prices.ffn * bool(neurons)
    return total


def _qk_rows(mask: BlockMask, own: Sequence[int], cut_qk: bool) -> int:
    """Count the dimensions of Q, or K, that stay, one of each head at least, of ``own`` (H,) that are there."""
    open_dims = mask.dims & mask.heads[:, None]
    there = torch.arange(open_dims.shape[1], device=open_dims.device) < torch.tensor(own).to(open_dims.device)[:, None]
    stay = there & (open_dims if cut_qk else open_dims.any(-1, keepdim=True))
    return int(stay.sum(-1).clamp(min=1)[open_dims.any(-1)].sum())


def latency_table(model: Any, latency: LatencyTable | str | os.PathLike[str] | None) -> LatencyTable:
    """Return the latency table, given as such or by its file, for this dense or gated ViT. Raises ``ConfigError`` if
    there is none, or if it is of another network."""
    if not latency:
        raise ConfigError("latency: expected a table of this network, a report of python -m hiap.bench latency")
    table = latency if isinstance(latency, LatencyTable) else read_latency(latency)
    table.require_fits(dims_of(model))
    return table


def priced(model: Any, prices: ledger.Prices, head_dim: int) -> int:
    """Return the cost of a dense or extracted ViT. ``prices`` are those of the network that it was pruned from, whose
    heads had ``head_dim`` dimensions each."""
    total = prices.constant
    for block in blocks_of(model):
        widths = value_dims(block)
        neurons = block.mlp.fc2.in_features if block.mlp is not None else 0
        total += prices.head // head_dim * sum(qk_dims(block)) + prices.value_dim * sum(widths)
        total += prices.attention * bool(widths) + prices.neuron * neurons + prices.ffn * bool(neurons)
    return total


def hardened_macs(gated: Any) -> int:
    """Return the MACs of what extraction would leave of a gated model as it is now."""
    dims = dims_of(gated)
    return kept_cost(ledger.mac_prices(dims), masks(gated), dims.head_dim, gated.blocks[0].attn.cuts_qk, qk_left(gated))


def qk_left(model: Any) -> Sequence[Sequence[int]]:
    """Return (L, H), the dimensions of Q and K of each head; () where all are there."""
    before: Given | None = getattr(model, "given", None)
    return () if before is None else before.qk_left


def param_prices(model: Any) -> ledger.Prices:
    """Return the prices of a dense or gated ViT's units, in learnable scalars. A unit pays for its rows, their biases
    and its columns. ``attention`` and ``ffn`` are what goes with a layer's last head and an FFN's last neuron: norm,
    LayerScale and output bias (attention's only where A9 gates it). Raises ``UnsupportedModelError`` where blocks share
    weights, which then count once and are removed in each."""
    if hasattr(model, "dense_param_prices"):
        return model.dense_param_prices
    every = {name: id(p) for name, p in model.blocks.named_parameters(remove_duplicate=False)}
    owners = {p: name for name, p in reversed(every.items())}
    if shared := next((name for name, p in every.items() if owners[p] != name), None):
        first = owners[every[shared]]
        raise UnsupportedModelError(f"target in parameters: blocks.{shared} is blocks.{first}, too; give each its own")
    dims, block = dims_of(model), standard(model).blocks[0]
    attn, mlp, d = block.attn, block.mlp, dims.dim
    query, key, value = biases(attn.qkv)
    fc1, bias = dims.fc1_rows * (d + (mlp.fc1.bias is not None)), attn.proj.bias is not None
    gated_bias = bias and getattr(attn, "bias_gated", True)
    # A norm after the branch leaves a constant, in which an output bias that is not gated is lost.
    constants = d * (is_norm(block.ls1) and (gated_bias or not bias)), d * is_norm(block.ls2)
    position = sum(p.shape[0] for p in _parameters(getattr(attn, "position", None)))  # a column per head
    prices = ledger.Prices(
        head=dims.head_dim * (2 * d + query + key) + position,
        value_dim=2 * d + value + _per_unit(attn.norm),
        neuron=fc1 + d + _per_unit(mlp.norm),
        attention=sum(map(params, (block.norm1, block.ls1, attn.q_norm, attn.k_norm))) + d * gated_bias - constants[0],
        ffn=sum(map(params, (block.norm2, block.ls2))) + d * (mlp.fc2.bias is not None) - constants[1],
        unit="parameters",
    )
    return replace(prices, constant=params(model) - ledger.dense_cost(dims, prices))


def _parameters(module: nn.Module | None) -> list[nn.Parameter]:
    return [] if module is None else list(module.parameters())


def _per_unit(norm: nn.Module | None) -> int:
    """Count the learnable scalars that a norm over prunable units has for each."""
    return sum(p.ndim for p in _parameters(norm))


def remember_param_prices(gated: Any) -> None:
    """Keep ``param_prices`` those of the whole network, before the first weight goes."""
    gated.dense_param_prices = param_prices(gated)
