"""Gates on a timm ViT (Eqs. 1-4), folded into the weights.

Eq. 1-2 scale head h's output by g[h] and its value dimension j by d[h, j]; both commute with the output projection, so
they scale that projection's columns. Eq. 4 scales neuron k by c[k] and the block by b: they scale fc2's columns. No
activation-sized tensor is made and fused attention stays, so a gated step costs what a dense step costs. The plain
activation-masking form is ``hiap.reference``; outputs and gradients agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hiap.backbones.families import copied, standard
from hiap.backbones.guard import UnsupportedModelError, require_plain, require_same, tell_hooks
from hiap.backbones.parts import open_norm
from hiap.backbones.sharded import write
from hiap.gates import CERTAIN, Gate, temperature
from hiap.options import GateConfig, checked


@dataclass
class BlockMask:
    """What is kept of one block: ``heads`` (H,), ``dims`` (H, Dh), ``ffn`` (), ``neurons`` (Dffn,); booleans."""

    heads: Tensor
    dims: Tensor
    ffn: Tensor
    neurons: Tensor

    def head_widths(self) -> list[int]:
        """Value dimensions of each head that is left."""
        return [width for width in (self.dims.sum(-1) * self.heads).tolist() if width]

    def neuron_count(self) -> int:
        """FFN neurons that are left; 0 if the block's gate is closed."""
        return int(self.neurons.sum()) * int(self.ffn)


class ColumnGatedLinear(torch.autograd.Function):
    """``x (weight * columns)^T + bias``: x (..., in), weight (out, in), columns (in,), bias (out,) or None.

    Autograd would keep the product of every layer until the backward pass, a second copy of the weights; it is cheap
    to make again, so only its factors are kept.
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
    """``attention`` with head gates g (H,) and dimension gates d (H, Dh). Input and output (B, N, D). ``attention`` is
    timm's, or one that ``hiap.backbones.families`` gives the same names, with a ``position`` and a ``norm`` if it has
    one of what goes to the output projection.

    Gates are of the dense network for good, so that costs and masks count in its terms. ``left`` numbers the
    ``num_heads`` of them whose weights are there, None for all (``hiap.beyond.shrinking``)."""

    standard = True
    left: Tensor | None

    def __init__(self, attention: Any, config: GateConfig, generator: torch.Generator, kind: type[Gate] = Gate):
        super().__init__()
        self.num_heads, self.head_dim, self.scale = attention.num_heads, attention.head_dim, attention.scale
        self.mode, self.bias_gated = config.dims, config.attn_bias == "gated"
        self.qkv, self.proj = attention.qkv, attention.proj
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm
        self.position = getattr(attention, "position", None)
        self.norm = None if isinstance(attention.norm, nn.Identity) else attention.norm
        self.attn_drop, self.proj_drop = attention.attn_drop, attention.proj_drop
        self.head_gate = kind((self.num_heads,), "macro", config, generator)
        self.value_gate = kind((self.num_heads, self.head_dim), "micro", config, generator)
        self.register_buffer("left", None, persistent=False)

    @property
    def cuts_qk(self) -> bool:
        """A4: whether a dimension that goes takes its rows of Q and K along."""
        return self.mode != "v"

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
            dropout_p=self.attn_drop.p if self.training else 0.0,
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
        """As timm's: for images of another size."""
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
    """timm's ``Mlp`` with a block gate b (1,) and neuron gates c (Dffn,). Input and output (B, N, D). ``left``: as in
    ``GatedAttention``, of the neurons."""

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
    """What a branch without units gives for x (B, N, D)."""
    return torch.zeros_like(x) if bias is None else bias.expand_as(x)


def gate(
    model: nn.Module,
    config: GateConfig | None = None,
    *,
    seed: int = 0,
    kind: type[Gate] = Gate,
    **options: Any,
) -> Any:
    """A copy of ``model`` whose attention and FFN carry gates; the model itself is left alone.

    ``config`` or keyword ``options`` are the fields of ``GateConfig`` (A1, A2, A4, A5, A6, A9); ``seed`` draws the
    noise of ``harden='sample'``; ``kind`` is another gate than the paper's, for baselines. The result is still what
    ``model`` is, a ``VisionTransformer``, ``Eva`` or ``Beit``: in training mode it samples its gates, in eval mode it
    runs the hardened ones. Raises ``UnsupportedModelError`` naming the first module without a gated form.
    """
    config = config or checked(GateConfig, options)
    check_supported(model, config)
    generator = torch.Generator().manual_seed(seed)
    gated: Any = copied(model)
    for block in gated.blocks:
        device = block.attn.proj.weight.device
        block.attn = GatedAttention(block.attn, config, generator, kind).to(device)
        block.mlp = GatedMlp(block.mlp, config, generator, kind).to(device)
    vars(gated)["no_weight_decay"] = Names(
        {*gated.no_weight_decay(), *(name for name, _ in gated.named_parameters() if name.endswith(".logit"))}
    )
    gated.train(model.training)
    tell_hooks(model, gated, "gate")
    require_same(model, gated, "gating", open_gates)
    require_removable(gated)
    return gated


class Names:
    """A gated network's ``no_weight_decay``: timm's optimisers ask it, and logits have their own decay (A6)."""

    def __init__(self, names: set[str]):
        self.names = names

    def __call__(self) -> set[str]:
        return set(self.names)


def open_gates(gated: Any) -> Any:
    """A context in which every gate of a network is open, whatever has been learned; see ``decided``."""
    return decided(gated, [_of(mask, torch.ones_like) for mask in masks(gated)] if is_gated(gated) else [])


def require_removable(gated: Any) -> None:
    """Raise ``UnsupportedModelError`` unless extraction of half of the units, drawn at random, computes what closing
    their gates computes: an activation that mixes neurons, for example, shows before it is trained."""
    from hiap.extraction import built  # above this file; needed here so that nothing is refused after training

    if any(p.is_meta for p in gated.parameters()):
        return
    generator = torch.Generator().manual_seed(0)
    half = [_of(mask, lambda t: torch.rand(t.shape, generator=generator) < 0.5) for mask in masks(gated)]
    for mask in half:
        mask.heads[0] = mask.dims[0, 0] = mask.neurons[0] = True
        mask.ffn.fill_(True)
    require_same(gated, built(gated, half), "extraction", lambda model: decided(model, half))


def _of(mask: BlockMask, value: Callable[[Tensor], Tensor]) -> BlockMask:
    return BlockMask(*(value(t) for t in vars(mask).values()))


@contextmanager
def decided(gated: Any, kept: list[BlockMask]) -> Iterator[None]:
    """Within, the gates of a network, if it has any, are 1 and 0 as ``kept`` says."""
    pairs = gates_with_masks(gated, kept) if is_gated(gated) else ()
    hooks = [g.register_forward_hook(lambda _, args, out, keep=keep: keep.to(out).view_as(out)) for g, keep in pairs]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def check_supported(model: nn.Module, config: GateConfig | None = None) -> None:
    """Raise ``UnsupportedModelError`` unless ``model`` is a timm ViT that ``hiap.backbones.families`` has a form for,
    without gates, all its blocks alike, and with Q and K that may lose dimensions if ``config`` says so."""
    if is_gated(model):
        raise UnsupportedModelError("the model carries gates already: expected one without")
    form = standard(model)
    require_plain(model)
    given: Any = list(model.blocks)  # type: ignore[arg-type]
    sizes: Any = None
    for i, block in enumerate(form.blocks):
        if not block.attn.head_dim:
            raise UnsupportedModelError(
                f"blocks.{i}.attn: heads of different widths, as pruning left them; prune it again by hiap.Pruner or "
                "hiap.prune, or make it even first: hiap.beyond.evening.even"
            )
        if any(given[i] is given[j] for j in range(i)):
            raise UnsupportedModelError(f"blocks.{i}: the same module as an earlier block; expected one for each")
        size = block.attn.num_heads, block.attn.head_dim, block.mlp.fc2.in_features
        sizes = sizes or size
        if size != sizes:
            raise UnsupportedModelError(f"blocks.{i}: {size} heads, their width and neurons; blocks.0 has {sizes}")
        if config is None or config.dims == "v":
            continue
        if not isinstance(block.attn.q_norm, nn.Identity):
            raise UnsupportedModelError(
                f"blocks.{i}.attn.q_norm: gates.dims '{config.dims}' cannot cut normalised Q, K"
            )
        if getattr(block.attn, "position", None) is not None:
            raise UnsupportedModelError(
                f"blocks.{i}.attn.position: gates.dims '{config.dims}' cannot cut Q, K that depend on the position"
            )


def named_gates(gated: nn.Module) -> Iterator[tuple[str, Gate]]:
    """(name, gate) in network order, e.g. ('blocks.0.attn.head_gate', Gate); the parameter is ``gate.logit``."""
    return ((name, module) for name, module in gated.named_modules() if isinstance(module, Gate))


def is_gated(model: nn.Module) -> bool:
    return any(True for _ in named_gates(model))


def set_temperature(gated: nn.Module, tau: float) -> None:
    for _, g in named_gates(gated):
        g.tau.fill_(tau)


def anneal(gated: nn.Module, config: GateConfig, progress: float) -> float:
    """Set and return the temperature at ``progress`` in [0, 1]."""
    tau = temperature(config, progress)
    set_temperature(gated, tau)
    return tau


@contextmanager
def sampling(gated: nn.Module) -> Iterator[None]:
    """Within, the gates sample as in training whatever the mode of the rest of the network (the 'soft' evaluation)."""
    modes = [(g, g.training) for _, g in named_gates(gated)]
    try:
        for g, _ in modes:
            g.train()
        yield
    finally:
        for g, mode in modes:
            g.train(mode)


def masks(gated: Any) -> list[BlockMask]:
    """The hardened gates, one ``BlockMask`` per block."""
    return [
        BlockMask(
            heads=b.attn.head_gate.hardened(),
            dims=b.attn.value_gate.hardened(),
            ffn=b.mlp.block_gate.hardened().squeeze(),
            neurons=b.mlp.neuron_gate.hardened(),
        )
        for b in gated.blocks
    ]


def set_masks(gated: Any, kept: list[BlockMask]) -> None:
    """Close and open gates by hand, for good: this is how baselines decide."""
    for g, keep in gates_with_masks(gated, kept):
        g.fix(keep)


def harden_to(gated: Any, kept: list[BlockMask]) -> None:
    """Decide by hand how gates harden, e.g. to meet a target; what they have learned stays."""
    for g, keep in gates_with_masks(gated, kept):
        g.harden_to(keep)


def stack_gates(gated: Any, value: Callable[[Gate], Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``value`` of every gate, block by block: g (L, H), d (L, H, Dh), b (L,), c (L, Dffn)."""
    attn, mlp = [block.attn for block in gated.blocks], [block.mlp for block in gated.blocks]
    return (
        torch.stack([value(layer.head_gate) for layer in attn]),
        torch.stack([value(layer.value_gate) for layer in attn]),
        torch.stack([value(layer.block_gate).squeeze() for layer in mlp]),
        torch.stack([value(layer.neuron_gate) for layer in mlp]),
    )


def keep_one_head(gated: Any) -> None:
    """If no head is left, harden to the one with the largest logit, with the dimensions of it that are open (its best
    one, if none is)."""
    kept = masks(gated)
    if any(bool((m.heads & m.dims.any(-1)).any()) for m in kept):
        return
    logits = stack_gates(gated, lambda gate: gate.alpha.detach())[0]
    block, head = divmod(int(logits.argmax()), logits.shape[1])
    kept[block].heads[head] = True
    if not kept[block].dims[head].any():
        kept[block].dims[head, gated.blocks[block].attn.value_gate.alpha[head].argmax()] = True
    harden_to(gated, kept)


@torch.no_grad()
def open_for_good(gated: Any, stay: list[BlockMask]) -> None:
    """Open the gates of these units in every sample; the others are left as they are."""
    for g, mask in gates_with_masks(gated, stay):
        write(g.logit, g.alpha.masked_fill(mask.to(g.logit.device), CERTAIN))


def still_there(gated: Any, kept: list[BlockMask]) -> list[BlockMask]:
    """``kept`` without the units whose weights are gone. A head or FFN without units keeps its gate, which may hold an
    output bias open (A9)."""
    there = []
    for block, mask in zip(gated.blocks, kept, strict=True):
        attn, mlp = block.attn, block.mlp
        heads, neurons = present(attn.left, mask.heads), present(mlp.left, mask.neurons)
        there.append(
            BlockMask(
                heads=mask.heads & (heads | attn.head_gate.hardened().to(heads.device)),
                dims=mask.dims & heads[:, None],
                ffn=mask.ffn & (neurons.any() | mlp.block_gate.hardened().squeeze().to(neurons.device)),
                neurons=mask.neurons & neurons,
            )
        )
    return there


def present(left: Tensor | None, like: Tensor) -> Tensor:
    """Booleans (K,) as ``like``: whose weights are there, by ``GatedAttention.left`` or ``GatedMlp.left``."""
    if left is None:
        return torch.ones_like(like)
    return torch.zeros_like(like).index_fill(0, left.to(like.device), True)


def gates_with_masks(gated: Any, kept: list[BlockMask]) -> Iterator[tuple[Gate, Tensor]]:
    """Every gate with what ``kept`` says of its units, block by block."""
    for block, mask in zip(gated.blocks, kept, strict=True):
        yield block.attn.head_gate, mask.heads
        yield block.attn.value_gate, mask.dims
        yield block.mlp.block_gate, mask.ffn.reshape(1)
        yield block.mlp.neuron_gate, mask.neurons
