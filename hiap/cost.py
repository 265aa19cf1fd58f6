"""What a network costs: expected cost of a gated one in either ledger, and counted MACs and parameters of any.

The prices are in ``hiap.ledger``; here they meet modules and tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from torch import Tensor

from hiap import ledger
from hiap.backbones.count import classifier_count, constant_macs, image_of, in_patches, macs, params  # noqa: F401
from hiap.backbones.families import channels, classes, fc1_rows, standard
from hiap.gated_layers import EXPECTED, stack_gates


@dataclass
class ExpectedCost:
    """Differentiable scalars. ``macro`` and ``micro`` are the C1 and the C2, C3 parts of Eq. 5 in the unit of their
    prices, FLOPs if they are the paper's; ``macs`` is the true ledger: expected multiply-adds of the extracted model,
    constants included. ``dense_macro``, ``dense_micro``: the same parts with every gate open."""

    macro: Tensor
    micro: Tensor
    macs: Tensor
    dense_macro: int
    dense_micro: int

    @property
    def flops(self) -> Tensor:
        """Return Eq. 5, in the unit of the prices."""
        return self.macro + self.micro


def dims_of(model: Any) -> ledger.Dims:
    """Return the sizes of a timm ViT with dense blocks, or of the dense network that a gated one is or was. Those of a
    gated network are derived once, until it takes other images or classes. Raises ``UnsupportedModelError`` for other
    networks, and ``ValueError`` for patches that are not square."""
    known: ledger.Dims | None = getattr(model, "dense_dims", None)
    if known is not None:
        images, embed = (known.image, known.columns or known.image), model.patch_embed
        if known.classes == model.num_classes and (images == tuple(embed.img_size) or images == in_patches(embed)[0]):
            return known
    dims = _dims(model)
    if hasattr(model, "dense_dims"):
        model.dense_dims = dims
    return dims


def _dims(model: Any) -> ledger.Dims:
    embed, block = model.patch_embed, standard(model).blocks[0]
    (rows, columns), grid = in_patches(embed)
    if rows // grid[0] != columns // grid[1]:
        raise ValueError(f"image {rows}x{columns} in {grid[0]}x{grid[1]} patches: expected square ones")
    dims = ledger.Dims(
        dim=model.embed_dim,
        depth=len(model.blocks),
        heads=block.attn.num_heads,
        head_dim=block.attn.head_dim,
        hidden=block.mlp.fc2.in_features,
        patch=rows // grid[0],
        image=rows,
        channels=channels(embed),
        classes=classes(model),
        prefix=model.num_prefix_tokens,
        classifiers=classifier_count(model),
        fc1_rows=fc1_rows(block.mlp),
        columns=None if columns == rows else columns,
    )
    constant = constant_macs(model, (dims.channels, rows, columns), dims.tokens)
    return replace(dims, extra=constant - ledger.constant_macs(dims))


def expected_cost(gated: Any, prices: str | ledger.Prices = "paper") -> ExpectedCost:
    """Return Eq. 5 by Proposition 1 (linear in joint gates, drawn apart: E[g d] = E[g] E[d]) and true costs, for the
    gates' current probabilities (or samples, A2). ``prices`` 'physical' puts true prices, in MACs, in place of C1, C2
    and C3, and any others may stand there. What they ask once per branch is part of ``macro``: macro gates close it."""
    dims, gates = dims_of(gated), stack_gates(gated, EXPECTED)
    heads, value_dims, neurons = joint = _joint(*gates)
    priced = _eq5(prices, dims)
    macro, branches = priced.head * heads, priced.attention + priced.ffn
    if branches:
        g, _, b, _ = gates
        macro = macro + priced.attention * (1 - (1 - g).prod(-1)).sum() + priced.ffn * b.sum()
    dense_macro = dims.depth * (dims.heads * priced.head + branches)
    return ExpectedCost(
        macro=macro,
        micro=priced.value_dim * value_dims + priced.neuron * neurons,
        macs=_expected(gates, joint, ledger.mac_prices(dims), gated),
        dense_macro=dense_macro,
        dense_micro=ledger.dense_cost(dims, priced) - dense_macro,
    )


@lru_cache
def _eq5(prices: str | ledger.Prices, dims: ledger.Dims) -> ledger.Prices:
    if isinstance(prices, ledger.Prices):
        return prices
    price_list = {"paper": ledger.paper_prices, "physical": ledger.true_prices}[prices]
    return price_list(dims.tokens, dims.dim, dims.head_dim, dims.fc1_rows)


def expected(gated: Any, prices: ledger.Prices) -> Tensor:
    """Return what extraction leaves by these prices, expected over the gates' probabilities; differentiable."""
    gates = stack_gates(gated, EXPECTED)
    return _expected(gates, _joint(*gates), prices, gated)


def _joint(g: Tensor, d: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the expected numbers of heads, value dimensions and neurons."""
    return g.sum(), (g * d.sum(-1)).sum(), (b * c.sum(-1)).sum()


def _expected(gates: tuple[Tensor, ...], joint: tuple[Tensor, ...], prices: ledger.Prices, gated: Any) -> Tensor:
    (g, d, b, c), (_, value_dims, neurons) = gates, joint
    # A head without dimensions goes too, so its fixed part is paid with probability E[g (1 - prod(1 - d))].
    alive = g * (1 - (1 - d).prod(-1))
    attn, before = gated.blocks[0].attn, getattr(gated, "given", None)  # a cut may have left fewer rows of Q and K
    share, rows = (1, value_dims) if before is None else (before.qk_share(alive), before.qk_rows(g, d))
    head_part = prices.head // attn.head_dim * rows if attn.cuts_qk else prices.head * (alive * share).sum()
    total = head_part + prices.value_dim * value_dims + prices.neuron * neurons + prices.constant
    if prices.attention:
        total = total + prices.attention * (1 - (1 - alive).prod(-1)).sum()
    if prices.ffn:
        total = total + prices.ffn * (b * (1 - (1 - c).prod(-1))).sum()
    return total
