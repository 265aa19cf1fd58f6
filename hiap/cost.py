"""What a network costs: expected cost of a gated model in any ledger, and counted MACs, parameters and time.

The prices are in ``hiap.ledger``; here they meet modules and tensors.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import flop_counter

from hiap import ledger
from hiap.backbones import families
from hiap.backbones.families import channels, fc1_rows, is_vit, pool_macs, standard, stem_macs
from hiap.backbones.parts import biases, is_norm
from hiap.gated_vit import BlockMask, masks, stack_gates
from hiap.options import ConfigError
from hiap.pruned_vit import PrunedAttention, PrunedBlock

# torch's counter knows the fused attention kernels of CUDA but not the CPU's, and would count those products as free.
_CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
if _CPU_ATTENTION not in flop_counter.flop_registry:

    @flop_counter.register_flop_formula(_CPU_ATTENTION)
    def _cpu_attention_flops(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return flop_counter.sdpa_flop_count(query, key, value)


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
        """Eq. 5."""
        return self.macro + self.micro


@dataclass(frozen=True)
class Uncut:
    """Sizes and prices of parameters of the network that a gated one was before weights were removed. ``gated.uncut``
    has it, so that expected and kept costs go on counting in its terms."""

    dims: ledger.Dims
    param_prices: ledger.Prices


def remember_uncut(gated: Any) -> None:
    """Before the first cut."""
    if not hasattr(gated, "uncut"):
        gated.uncut = Uncut(dims_of(gated), param_prices(gated))


def dims_of(model: Any) -> ledger.Dims:
    """Sizes of a (gated) timm ViT with dense blocks."""
    if hasattr(model, "uncut"):
        return model.uncut.dims
    embed, block = model.patch_embed, standard(model).blocks[0]
    (rows, columns), grid = embed.img_size, embed.grid_size
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
        classes=families.classes(model),
        prefix=model.num_prefix_tokens,
        classifiers=_classifiers(model),
        fc1_rows=fc1_rows(block.mlp),
        columns=None if columns == rows else columns,
    )
    constant = constant_macs(model, (dims.channels, rows, columns), dims.tokens)
    return replace(dims, extra=constant - ledger.constant_macs(dims))


def expected_cost(gated: Any, prices: str | ledger.Prices = "paper") -> ExpectedCost:
    """Eq. 5 by Proposition 1 (linear in the joint gates, which are independent) and the true ledger, for the gates'
    current probabilities (or samples, A2). ``prices`` 'physical' puts true prices, in MACs, in place of C1, C2, C3, and
    any others may stand there. What they ask once per branch is part of ``macro``: macro gates close a branch."""
    dims, gates = dims_of(gated), stack_gates(gated, lambda gate: gate.expected())
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


def _eq5(prices: str | ledger.Prices, dims: ledger.Dims) -> ledger.Prices:
    if isinstance(prices, ledger.Prices):
        return prices
    price_list = {"paper": ledger.paper_prices, "physical": ledger.true_prices}[prices]
    return price_list(dims.tokens, dims.dim, dims.head_dim, dims.fc1_rows)


def expected(gated: Any, prices: ledger.Prices) -> Tensor:
    """What extraction leaves by these prices, expected over the gates' present probabilities; differentiable."""
    gates = stack_gates(gated, lambda gate: gate.expected())
    return _expected(gates, _joint(*gates), prices, gated)


def _joint(g: Tensor, d: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Expected numbers of heads, value dimensions and neurons."""
    return g.sum(), (g * d.sum(-1)).sum(), (b * c.sum(-1)).sum()


def _expected(gates: tuple[Tensor, ...], joint: tuple[Tensor, ...], prices: ledger.Prices, gated: Any) -> Tensor:
    (g, d, b, c), (_, value_dims, neurons) = gates, joint
    # A head without dimensions goes too, so its fixed part is paid with probability E[g (1 - prod(1 - d))].
    alive = g * (1 - (1 - d).prod(-1))
    attn = gated.blocks[0].attn
    head_part = prices.head // attn.head_dim * value_dims if attn.cuts_qk else prices.head * alive.sum()
    total = head_part + prices.value_dim * value_dims + prices.neuron * neurons + prices.constant
    if prices.attention:
        total = total + prices.attention * (1 - (1 - alive).prod(-1)).sum()
    if prices.ffn:
        total = total + prices.ffn * (b * (1 - (1 - c).prod(-1))).sum()
    return total


def kept_cost(prices: ledger.Prices, kept: list[BlockMask], head_dim: int, cut_qk: bool = False) -> int:
    """What extraction by these masks leaves; ``cut_qk``: Q and K lose the dimensions too (A4)."""
    total = prices.constant
    for mask in kept:
        widths, neurons = mask.head_widths(), mask.neuron_count()
        total += prices.head // head_dim * sum(widths) if cut_qk else prices.head * len(widths)
        total += prices.value_dim * sum(widths) + prices.attention * bool(widths)
        total += prices.neuron * neurons + prices.ffn * bool(neurons)
    return total


def latency_table(model: Any, latency: ledger.LatencyTable | str | os.PathLike[str] | None) -> ledger.LatencyTable:
    """The latency table, given as such or by its file, for this dense or gated ViT. Raises ``ConfigError`` if there is
    none, or if it is of another network."""
    if not latency:
        raise ConfigError("latency: expected a table of this network, a report of python -m hiap.bench latency")
    table = latency if isinstance(latency, ledger.LatencyTable) else ledger.read_latency(latency)
    table.require_fits(dims_of(model))
    return table


def priced(model: Any, prices: ledger.Prices, head_dim: int) -> int:
    """What a dense or extracted ViT costs at these prices of the network that it was pruned from, whose heads had
    ``head_dim`` dimensions."""
    total = prices.constant
    for block in _blocks(model):
        widths = value_dims(block)
        neurons = block.mlp.fc2.in_features if block.mlp is not None else 0
        total += prices.head // head_dim * sum(qk_dims(block)) + prices.value_dim * sum(widths)
        total += prices.attention * bool(widths) + prices.neuron * neurons + prices.ffn * bool(neurons)
    return total


def hardened_macs(gated: Any) -> int:
    """MACs of what extraction would leave of a gated model as it is now."""
    dims = dims_of(gated)
    return kept_cost(ledger.mac_prices(dims), masks(gated), dims.head_dim, gated.blocks[0].attn.cuts_qk)


def param_prices(model: Any) -> ledger.Prices:
    """Learnable scalars that keeping one unit of a dense or gated ViT costs: biases with their rows, and with the last
    head of a layer or neuron of an FFN its norm, its LayerScale and its output bias (attention's where A9 gates it)."""
    if hasattr(model, "uncut"):
        return model.uncut.param_prices
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
    """Learnable scalars that a norm over prunable units has for each."""
    return sum(p.ndim for p in _parameters(norm))


@dataclass(frozen=True)
class BlockSize:
    """What is left of a block: heads, their value dimensions, FFN neurons; MACs of an image and parameters."""

    heads: int
    value_dims: int
    neurons: int
    macs: int
    params: int


@dataclass(frozen=True)
class Summary:
    """What is left of a network, and of what; ``str`` gives a table. ``multiple``: in how many units at a time it is
    cut; ``threshold``: what the gates' threshold alone leaves, where it was rounded to multiples afterwards. Of a
    pruner's gates: ``travel`` of the one that went farthest, the share that came ``near`` their threshold, and their
    mean ``certainty``."""

    blocks: list[BlockSize]
    macs: int
    params: int
    dense_macs: int
    dense_params: int
    multiple: int = 1
    threshold: Summary | None = None
    travel: float | None = None
    near: float | None = None
    certainty: float | None = None

    @property
    def counts(self) -> str:
        """Value dimensions, neurons and MACs in one line."""
        value_dims, neurons = (sum(getattr(b, name) for b in self.blocks) for name in ("value_dims", "neurons"))
        return f"{value_dims} value dims, {neurons} neurons, {self.macs / 1e6:.2f} M MACs"

    def __str__(self) -> str:
        rows = [
            f"{i:5} {b.heads:6} {b.value_dims:11} {b.neurons:8} {b.macs / 1e6:8.2f} {b.params / 1e6:9.3f}"
            for i, b in enumerate(self.blocks)
        ]
        macs = f"{self.macs / 1e6:.2f} M MACs ({self.macs / self.dense_macs:.1%} of dense)"
        params = f"{self.params / 1e6:.3f} M parameters ({self.params / self.dense_params:.1%})"
        lines = [
            "block  heads  value dims  neurons   M MACs  M params",
            *rows,
            f"in all {macs}, {params}{self._gates()}",
        ]
        if self.threshold:
            lines += [f"threshold {self.threshold.counts}", f"in multiples of {self.multiple}: {self.counts}"]
        return "\n".join(lines)

    def _gates(self) -> str:
        if self.travel is None:
            return ""
        near = "" if self.near is None else f", {self.near:.0%} came half of their way to the threshold"
        return f"; gates went {self.travel:.2g} at most{near}, certainty {self.certainty:.2f}"


def summary_of(
    gated: Any, kept: list[BlockMask], multiple: int = 1, threshold: list[BlockMask] | None = None
) -> Summary:
    """What extraction of a gated model by these masks leaves; the rest as in ``Summary``."""
    dims, cut_qk = dims_of(gated), gated.blocks[0].attn.cuts_qk
    in_macs, in_params = ledger.mac_prices(dims), param_prices(gated)

    def spent(prices: ledger.Prices, masks: list[BlockMask]) -> int:
        return kept_cost(prices, masks, dims.head_dim, cut_qk)

    blocks = [
        BlockSize(
            heads=len(mask.head_widths()),
            value_dims=sum(mask.head_widths()),
            neurons=mask.neuron_count(),
            macs=spent(replace(in_macs, constant=0), [mask]),
            params=spent(replace(in_params, constant=0), [mask]),
        )
        for mask in kept
    ]
    return Summary(
        blocks=blocks,
        macs=spent(in_macs, kept),
        params=spent(in_params, kept),
        dense_macs=ledger.dense_macs(dims),
        dense_params=in_params.constant + ledger.dense_cost(dims, in_params),
        multiple=multiple,
        threshold=summary_of(gated, threshold) if threshold else None,
    )


def macs(model: nn.Module, image: tuple[int, int, int], executed: bool = False) -> int:
    """Multiply-adds of one image (channels, height, width) through a dense, gated or extracted ViT.

    Counted analytically from the modules. ``executed`` adds the zeros that layout 'padded' multiplies and then equals
    ``torch.utils.flop_counter`` / 2 to the last MAC; without it, what is left of the network however it is run. A gated
    model executes all weights that it has, so closed ones count. Raises ``ValueError`` if the image does not fit.
    """
    if not is_vit(model):
        raise ValueError(f"{type(model).__name__}: expected a timm VisionTransformer, dense, gated or extracted")
    vit: Any = model
    (depth, height, width), embed = image, vit.patch_embed
    if depth != channels(embed):
        raise ValueError(f"image has {depth} channels, the model takes {channels(embed)}")
    if not getattr(vit, "dynamic_img_size", False) and (height, width) != tuple(embed.img_size):
        raise ValueError(f"image is {height}x{width}, the model takes {embed.img_size[0]}x{embed.img_size[1]}")
    rows, columns = embed.dynamic_feat_size((height, width))
    tokens = rows * columns + vit.num_prefix_tokens
    return constant_macs(vit, image, tokens) + sum(_block_macs(block, tokens, executed) for block in _blocks(vit))


def _blocks(model: Any) -> Any:
    """Blocks with the names that are counted here, of a dense or extracted ViT."""
    return model.blocks if any(isinstance(block, PrunedBlock) for block in model.blocks) else standard(model).blocks


def constant_macs(model: Any, image: tuple[int, int, int], tokens: int) -> int:
    """MACs before and after the blocks."""
    return stem_macs(model.patch_embed, image) + pool_macs(model, tokens) + families.head_macs(model, tokens)


@dataclass(frozen=True)
class Left:
    """What is left of one block: value dimensions of each head, FFN neurons, MACs of an image and parameters."""

    dims: tuple[int, ...]
    neurons: int
    macs: int
    params: int


def image_of(model: Any) -> tuple[int, int, int]:
    """(channels, height, width) of the images that a ViT was built for."""
    return (channels(model.patch_embed), *model.patch_embed.img_size)


def left(model: Any) -> list[Left]:
    """Of each block of a dense or extracted ViT, at its own image size."""
    rows, columns = model.patch_embed.grid_size
    tokens = rows * columns + model.num_prefix_tokens
    return [
        Left(
            dims=tuple(value_dims(block)),
            neurons=block.mlp.fc2.in_features if block.mlp is not None else 0,
            macs=_block_macs(block, tokens, executed=False),
            params=params(block),
        )
        for block in model.blocks
    ]


def value_dims(block: Any) -> list[int]:
    """Value dimensions of each head of a dense or extracted block; [] if its attention is gone."""
    attn = block.attn
    if attn is None:
        return []
    return list(getattr(attn, "value_dims", None) or [attn.head_dim] * attn.num_heads)


def qk_dims(block: Any) -> list[int]:
    """Query (or key) dimensions of each head of a dense or extracted block; [] if its attention is gone."""
    attn = block.attn
    return [] if attn is None else getattr(attn, "qk_dims", None) or [attn.head_dim] * attn.num_heads


def params(model: nn.Module) -> int:
    """Number of learnable scalars (gate logits not counted: they never leave training)."""
    return sum(p.numel() for name, p in model.named_parameters() if not name.endswith(".logit"))


def _block_macs(block: Any, n: int, executed: bool) -> int:
    return attention_macs(block, n, executed) + ffn_macs(block, n)


def attention_macs(block: Any, n: int, executed: bool = False) -> int:
    """MACs of the attention branch of a dense, gated or extracted block with ``n`` tokens."""
    attn = block.attn
    if attn is None or not attn.num_heads:
        return 0
    total = ledger.attention_macs(n, attn.qkv.in_features, qk_dims(block), value_dims(block))
    return total + n * n * attn.padding() if executed and isinstance(attn, PrunedAttention) else total


def ffn_macs(block: Any, n: int) -> int:
    """MACs of its FFN with ``n`` tokens."""
    mlp = block.mlp
    if mlp is None or not mlp.fc2.in_features:
        return 0
    return ledger.ffn_macs(n, mlp.fc1.in_features, mlp.fc2.in_features, fc1_rows(mlp))


def _classifiers(model: Any) -> int:
    """Classifiers of one pooled token; one that looks at two counts twice."""
    linear = (head for head in families.heads(model) if isinstance(head, nn.Linear))
    return sum(head.in_features // model.embed_dim for head in linear)
