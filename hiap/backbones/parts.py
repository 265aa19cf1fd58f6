"""Modules that only some families of ViTs need; gated, extracted and stored networks share them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import RmsNorm, apply_rot_embed_cat, resize_rel_pos_bias_table
from timm.models.beit import gen_relative_position_index
from torch import Tensor, nn


class JoinedLinear(nn.Module):
    """Linear maps of one input, one below the other, read as if they were one: Q, K and V of which not all have a bias,
    or the two halves of a gated FFN. Input (..., in), output (..., sum of the parts' outputs)."""

    def __init__(self, parts: Iterable[nn.Linear]):
        super().__init__()
        self.parts: Any = nn.ModuleList(parts)

    @property
    def in_features(self) -> int:
        return self.parts[0].in_features

    @property
    def out_features(self) -> int:
        return sum(part.out_features for part in self.parts)

    @property
    def weight(self) -> Tensor:
        return torch.cat([part.weight for part in self.parts])

    @property
    def bias(self) -> Tensor | None:
        """Return the joined bias, with zeros where a part has none; None if no part has one."""
        if all(part.bias is None for part in self.parts):
            return None
        missing = [part.weight.new_zeros(part.out_features) for part in self.parts]
        return torch.cat(
            [zeros if part.bias is None else part.bias for part, zeros in zip(self.parts, missing, strict=True)]
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


def biases(qkv: Any) -> tuple[bool, bool, bool]:
    """Tell for Q, K and V of a linear map to all three whether it has a bias."""
    if isinstance(qkv, JoinedLinear):
        query, key, value = (part.bias is not None for part in qkv.parts)
        return query, key, value
    return (qkv.bias is not None,) * 3


class Glu(nn.Module):
    """Activation of a gated FFN: (..., 2 K) to (..., K), one half times the other, which goes through ``act``."""

    def __init__(self, act: nn.Module, gate_last: bool):
        super().__init__()
        self.act, self.gate_last = act, gate_last

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return first * self.act(second) if self.gate_last else self.act(first) * second


class Position(nn.Module):
    """Base of what tells attention, beside the embedding, where a token is. Called with q, k (B, H, N, Dh), the mask
    that there is and the angles that the model made for the block; returns q, k and mask. ``at`` says which of the
    heads these are."""

    def forward(
        self, q: Tensor, k: Tensor, mask: Tensor | None, rope: Tensor | None, at: slice = slice(None)
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        raise NotImplementedError

    def of_heads(self, heads: list[int]) -> Position:
        """Return the same for these heads of an attention only, in this order."""
        raise NotImplementedError

    def padded(self, heads: int) -> Position:
        """Return the same for so many heads, of which the new ones give nothing."""
        raise NotImplementedError

    def set_window_size(self, window: tuple[int, int]) -> None:
        """Fit to images of so many patches; what the model itself makes anew needs nothing."""


class Rotary(Position):
    """Rotates q and k of all tokens but the first ``prefix``: pairs of dimensions that stand together, or, with
    ``halves``, half of the dimensions apart. ``heads``: rows of the model's angles, where each head
    has its own; None where all share them."""

    def __init__(self, prefix: int, halves: bool, heads: list[int] | None = None):
        super().__init__()
        self.prefix, self.halves, self.heads = prefix, halves, heads

    def forward(
        self, q: Tensor, k: Tensor, mask: Tensor | None, rope: Tensor | None, at: slice = slice(None)
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        if rope is None:
            return q, k, mask
        if self.heads is not None:
            rope = rope[..., self.heads[at], :, :]
        return self._rotate(q, rope), self._rotate(k, rope), mask

    def _rotate(self, x: Tensor, rope: Tensor) -> Tensor:
        half = {"half": True} if self.halves else {}
        rotated = apply_rot_embed_cat(x[:, :, self.prefix :], rope, **half)
        return torch.cat([x[:, :, : self.prefix], rotated], dim=2).type_as(x)

    def of_heads(self, heads: list[int]) -> Rotary:
        return Rotary(self.prefix, self.halves, None if self.heads is None else [self.heads[h] for h in heads])

    def padded(self, heads: int) -> Rotary:
        own = self.heads
        return Rotary(self.prefix, self.halves, own and own + own[:1] * (heads - len(own)))

    def extra_repr(self) -> str:
        return f"prefix={self.prefix}, halves={self.halves}, heads={self.heads}"


class RelativeBias(Position):
    """Bias that BEiT adds to the scores: a table (distances, H), read by how far apart two tokens of the ``window``
    are. It has timm's name, by which timm keeps it from decaying."""

    index: Tensor

    def __init__(self, window: tuple[int, int], heads: int):
        super().__init__()
        self.window = (int(window[0]), int(window[1]))
        index = gen_relative_position_index(self.window)
        self.register_buffer("index", index, persistent=False)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(_distances(self.window), heads))

    def forward(
        self, q: Tensor, k: Tensor, mask: Tensor | None, rope: Tensor | None, at: slice = slice(None)
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        scores = self.relative_position_bias_table[:, at][self.index.flatten()].unflatten(0, self.index.shape)
        bias = scores.permute(2, 0, 1).contiguous()[None].type_as(q)  # (1, H, N, N)
        return q, k, bias if mask is None else mask + bias

    def set_window_size(self, window: tuple[int, int]) -> None:
        old, self.window = self.window, (int(window[0]), int(window[1]))
        if old == self.window:
            return
        table, distances = self.relative_position_bias_table, _distances(self.window)
        resized = resize_rel_pos_bias_table(
            table.detach(),
            new_window_size=self.window,
            new_bias_shape=(distances, table.shape[1]),
            old_window_size=old,
        )
        self.relative_position_bias_table = nn.Parameter(resized, table.requires_grad)
        self.index = gen_relative_position_index(self.window).to(self.index.device)

    def of_heads(self, heads: list[int]) -> RelativeBias:
        return self._with(self.relative_position_bias_table.detach()[:, heads].clone())

    def padded(self, heads: int) -> RelativeBias:
        table = self.relative_position_bias_table.detach()
        return self._with(F.pad(table, (0, heads - table.shape[1])))

    def _with(self, table: Tensor) -> RelativeBias:
        own = self.relative_position_bias_table
        chosen = RelativeBias(self.window, table.shape[1]).to(own)
        chosen.index = self.index
        chosen.relative_position_bias_table = nn.Parameter(table, own.requires_grad)
        return chosen


def _distances(window: tuple[int, int]) -> int:
    return (2 * window[0] - 1) * (2 * window[1] - 1) + 3


class TokenAndMean(nn.Module):
    """Pooling of DINOv2, whose classifier looks at the class token beside the mean of the patches: (B, N, D) to (B, 2
    D)."""

    def __init__(self, prefix: int):
        super().__init__()
        self.prefix = prefix

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, 0], x[:, self.prefix :].mean(dim=1)], dim=-1)


def open_norm(norm: Any, x: Tensor, openness: Tensor) -> Tensor:
    """Apply ``norm`` (LayerNorm or RmsNorm over K units) to x (..., K) with each unit counted in mean and variance as
    far as it is open, in [0, 1] (K,). With gates of 0 and 1 that is the norm over the units that are left, as
    extraction leaves it; with all open it is the norm itself."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    share = openness.to(wide.dtype) / openness.sum().clamp_min(1e-6)
    mean = (wide * share).sum(-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else 0.0
    wide = wide - mean
    wide = wide * torch.rsqrt((wide.square() * share).sum(-1, keepdim=True) + norm.eps) * norm.weight
    return (wide if getattr(norm, "bias", None) is None else wide + norm.bias).type_as(x)


def is_norm(module: Any) -> bool:
    """Tell whether ``module`` is a LayerNorm or an RmsNorm."""
    return isinstance(module, (nn.LayerNorm, RmsNorm))


def rate(dropout: nn.Module) -> float:
    """Return the share that a dropout drops; 0 of one that does nothing (``nn.Identity``)."""
    return float(getattr(dropout, "p", 0.0))


def narrowed_norm(norm: Any, units: Tensor) -> Any:
    """Return a copy of ``norm`` over these of its units."""
    narrow = type(norm)(len(units), eps=norm.eps).to(norm.weight)
    for name, value in norm.named_parameters():
        getattr(narrow, name).requires_grad_(value.requires_grad).data.copy_(value[units])
    return narrow


def slice_linear(to: Any, source: Any, rows: Tensor | None = None, columns: Tensor | None = None) -> None:
    """Give ``to`` these rows and columns of ``source``, of its type, and trained where they were."""
    for name in ("weight", "bias"):
        value = getattr(source, name)
        if value is None or (name == "bias" and to.bias is None):
            setattr(to, name, None)
            continue
        value = value if rows is None else value[rows]
        value = value if columns is None or name == "bias" else value[:, columns]
        setattr(to, name, nn.Parameter(value.detach().clone(), is_trained(source, name)))
    to.out_features, to.in_features = to.weight.shape


def is_trained(layer: Any, name: str) -> bool:
    """Tell whether ``layer`` learns this tensor, or what it is computed from (``torch.nn.utils.parametrize``)."""
    if isinstance(layer, JoinedLinear):
        return any(p is not None and p.requires_grad for part in layer.parts for p in (getattr(part, name),))
    if name in layer._parameters:
        return bool(layer._parameters[name].requires_grad)
    return any(p.requires_grad for p in layer.parametrizations[name].parameters())
