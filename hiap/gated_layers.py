"""Gates in attention and FFN (Eqs. 1-4), folded into the weights.

Eqs. 1-3 scale head h's output by g[h] and its value dimension j by d[h, j]; both commute with the output projection, so
they scale that projection's columns. Eq. 4 scales neuron k by c[k] and the block by b: they scale fc2's columns. No
activation-sized tensor is made and fused attention stays, so a gated step costs what a dense step costs. The plain
activation-masking form is ``hiap.reference``; outputs and gradients agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import methodcaller
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiap.backbones.parts import open_norm
from hiap.gates import Gate
from hiap.options import GateConfig

EXPECTED = methodcaller("expected")  # for ``stack_gates``: E[gate] in Eqs. 5 and 8


@dataclass
class BlockMask:
    """Masks of one block, true for what stays: ``heads`` (H,), ``dims`` (H, Dh), ``ffn`` (), ``neurons`` (Dffn,)."""

    heads: Tensor
    dims: Tensor
    ffn: Tensor
    neurons: Tensor

    def map(self, value: Callable[..., Tensor], *others: BlockMask) -> BlockMask:
        """Return ``value`` of each of the four masks, given together with the same masks of ``others``."""
        return BlockMask(*map(value, *(vars(mask).values() for mask in (self, *others))))

    def head_widths(self) -> list[int]:
        """Return the value dimensions of each head that is left."""
        return [width for width in (self.dims.sum(-1) * self.heads).tolist() if width]

    def neuron_count(self) -> int:
        """Count the FFN neurons that are left; 0 if the block's gate is closed."""
        return int(self.neurons.sum()) * int(self.ffn)


class ColumnGatedLinear(torch.autograd.Function):
    """Product ``x (weight * columns)^T + bias``: x (..., in), weight (out, in), columns (in,), bias (out,) or None.

    Autograd would hold the product of every layer until the backward pass, a second copy of the weights; it is cheap
    to make again, so only its factors are held.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, columns: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, columns)
        ctx.bias_dtype = None if bias is None else bias.dtype
        return F.linear(x, weight * columns, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, columns = ctx.saved_tensors
        # Under autocast `grad` is bf16 while x and weight need not be.
        grad_x = (grad @ (weight * columns).to(grad.dtype)).to(x.dtype)
        rows = grad.flatten(0, -2)
        product = (rows.T @ x.flatten(0, -2).to(grad.dtype)).to(weight.dtype)  # gradient of weight * columns
        grad_columns = (product * weight).sum(0)
        grad_bias = None if ctx.bias_dtype is None else rows.sum(0).to(ctx.bias_dtype)
        return grad_x, product.mul_(columns), grad_columns, grad_bias


class GatedAttention(nn.Module):
    """Attention with head gates g (H,) and dimension gates d (H, Dh). Input and output (B, N, D). ``attention`` is
    timm's, or one that ``hiap.backbones.families`` gives the same names, with a ``position`` and a ``norm`` if it has
    one of what goes to the output projection.

    Gates have the dense network's shape for good, so that costs and masks count in its terms. ``left``: indices of the
    heads whose weights are still there; None, as in the paper, is all."""

    standard = True
    left: Tensor | None

    def __init__(self, attention: Any, config: GateConfig, generator: torch.Generator, kind: type[Gate] = Gate):
        super().__init__()
        self.num_heads, self.head_dim, self.scale = attention.num_heads, attention.head_dim, attention.scale
        self.mode, self.bias_gated = config.dims, config.attn_bias == "gated"
        self.cuts_qk = config.dims != "v"  # A4: whether a dimension that goes takes its rows of Q and K along
        self.qkv, self.proj = attention.qkv, attention.proj
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm
        self.position = getattr(attention, "position", None)
        self.norm = None if isinstance(attention.norm, nn.Identity) else attention.norm
        self.attn_drop, self.proj_drop = attention.attn_drop, attention.proj_drop
        self.head_gate = kind((self.num_heads,), "macro", config, generator)
        self.value_gate = kind((self.num_heads, self.head_dim), "micro", config, generator)
        self.register_buffer("left", None, persistent=False)

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, rope: Tensor | None = None
    ) -> Tensor:
        heads, dims = self.head_gate(), self.value_gate()
        output_bias = self._output_bias(heads)
        if self.left is not None:
            heads, dims = heads[self.left], dims[self.left]
            if not self.num_heads:
                return self.proj_drop(_constant(x, output_bias))
        weight, bias = self._qkv(dims)
        qkv = F.linear(x, weight, bias).unflatten(-1, (3, self.num_heads, self.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.position is not None:
            q, k, attn_mask = self.position(q, k, attn_mask, rope)
        x = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=attn_mask,
            dropout_p=getattr(self.attn_drop, "p", 0.0) if self.training else 0.0,
            is_causal=is_causal,
            scale=self.scale,  # as trained, whatever is removed later
        )
        x = x.transpose(1, 2).flatten(2)
        columns = (heads[:, None] * dims).flatten()  # g * d, Eqs. 1-3
        if self.norm is not None:
            x = open_norm(self.norm, x, columns)
        weight = self.proj.weight
        return self.proj_drop(ColumnGatedLinear.apply(x, weight, columns.to(weight.dtype), output_bias))

    def set_window_size(self, window_size: tuple[int, int]) -> None:
        """Adapt to images of another size, as timm's does."""
        if self.position is not None:
            self.position.set_window_size(window_size)

    def _qkv(self, dims: Tensor) -> tuple[Tensor, Tensor | None]:
        # A4: 'qkv' gates q and k too; 'v-cut-qkv' cuts them only when the gates harden, which is what makes it inexact.
        if not self.cuts_qk or (self.mode == "v-cut-qkv" and self.value_gate.training):
            return self.qkv.weight, self.qkv.bias
        rows = torch.cat([dims.flatten(), dims.flatten(), torch.ones_like(dims).flatten()]).to(self.qkv.weight.dtype)
        return self.qkv.weight * rows[:, None], None if self.qkv.bias is None else self.qkv.bias * rows

    def _output_bias(self, heads: Tensor) -> Tensor | None:
        # A9: the output bias belongs to no head. Gated by "any head open" it vanishes with the last one.
        if self.proj.bias is None or not self.bias_gated:
            return self.proj.bias
        return self.proj.bias * (1 - (1 - heads).prod()).to(self.proj.bias.dtype)


class GatedMlp(nn.Module):
    """FFN, timm's ``Mlp``, with a block gate b (1,) and neuron gates c (Dffn,). Input and output (B, N, D). ``left``:
    as in ``GatedAttention``, of the neurons."""

    standard = True
    left: Tensor | None

    def __init__(self, mlp: Any, config: GateConfig, generator: torch.Generator, kind: type[Gate] = Gate):
        super().__init__()
        self.fc1, self.act, self.drop1, self.fc2, self.drop2 = mlp.fc1, mlp.act, mlp.drop1, mlp.fc2, mlp.drop2
        self.norm = None if isinstance(mlp.norm, nn.Identity) else mlp.norm
        self.block_gate = kind((1,), "macro", config, generator)  # FSDP2 shards no scalars
        self.neuron_gate = kind((mlp.fc2.in_features,), "micro", config, generator)
        self.register_buffer("left", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        block, neurons = self.block_gate(), self.neuron_gate()
        weight, bias = self.fc2.weight, self.fc2.bias
        bias = None if bias is None else bias * block.to(bias.dtype)  # A9: b gates the whole output, bias included
        if self.left is not None:
            neurons = neurons[self.left]
            if not len(neurons):
                return self.drop2(_constant(x, bias))
        x = self.drop1(self.act(self.fc1(x)))
        if self.norm is not None:
            x = open_norm(self.norm, x, neurons)
        columns = (block * neurons).to(weight.dtype)  # b * c, Eq. 4
        return self.drop2(ColumnGatedLinear.apply(x, weight, columns, bias))


def _constant(x: Tensor, bias: Tensor | None) -> Tensor:
    """Return what a branch without units gives for x (B, N, D)."""
    return torch.zeros_like(x) if bias is None else bias.expand_as(x)


def named_gates(gated: nn.Module) -> Iterator[tuple[str, Gate]]:
    """Yield (name, gate) in network order, e.g. ('blocks.0.attn.head_gate', Gate); the parameter is ``gate.logit``."""
    return ((name, module) for name, module in gated.named_modules() if isinstance(module, Gate))


def is_gated(model: nn.Module) -> bool:
    return any(True for _ in named_gates(model))


def gates_of(block: Any) -> tuple[Gate, Gate, Gate, Gate]:
    """Return a block's gates: g (H,), d (H, Dh), b (1,), c (Dffn,)."""
    return block.attn.head_gate, block.attn.value_gate, block.mlp.block_gate, block.mlp.neuron_gate


def masks(gated: Any) -> list[BlockMask]:
    """Return the hardened gates, one ``BlockMask`` per block."""
    found = ([gate.hardened() for gate in gates_of(block)] for block in gated.blocks)
    return [BlockMask(heads, dims, ffn.squeeze(), neurons) for heads, dims, ffn, neurons in found]


def stack_gates(gated: Any, value: Callable[[Gate], Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return ``value`` of every gate, block by block: g (L, H), d (L, H, Dh), b (L,), c (L, Dffn)."""
    g, d, b, c = list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
    for block in gated.blocks:
        g.append(value(block.attn.head_gate))
        d.append(value(block.attn.value_gate))
        b.append(value(block.mlp.block_gate).squeeze())
        c.append(value(block.mlp.neuron_gate))
    return torch.stack(g), torch.stack(d), torch.stack(b), torch.stack(c)


def gates_with_masks(gated: Any, kept: list[BlockMask]) -> Iterator[tuple[Gate, Tensor]]:
    """Yield every gate with what ``kept`` says of its units, block by block."""
    for block, mask in zip(gated.blocks, kept, strict=True):
        yield from zip(gates_of(block), (mask.heads, mask.dims, mask.ffn.reshape(1), mask.neurons), strict=True)


@contextmanager
def decided(gated: Any, kept: list[BlockMask]) -> Iterator[None]:
    """Let the gates of a network, if it has any, be 1 and 0 as ``kept`` says."""
    with ExitStack() as stack:
        for g, stay in gates_with_masks(gated, kept) if is_gated(gated) else ():
            stack.enter_context(g.register_forward_hook(lambda _, args, out, stay=stay: stay.to(out).view_as(out)))
        yield
