"""What is left of a pruned network: attention whose heads differ in width, and blocks that lack a branch.

Heads of one layer may keep different numbers of value dimensions. The pruned attention stores exactly the rows and
columns that are left; ``layout`` says how it runs them:

- 'padded' (the default): all heads in one fused call, narrow ones padded with zeros. Executes more MACs in the
  attention products, never in a projection.
- 'ragged': heads of equal width together, one attention call per width. Executes exactly the MACs that are left, but
  torch's fused kernels ask for equal widths of q, k and v, so narrow values fall to the slow path.

Padded was the faster one in every case that was measured (``results/bench`` has the reports, ``python -m hiap.bench
speed`` makes one of your machine), so no choice is made per device.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from itertools import groupby
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from timm.models.beit import Beit
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hiap.backbones.parts import JoinedLinear, Position

LAYOUTS = ("padded", "ragged")
Width = TypeVar("Width")


class PrunedAttention(nn.Module):
    """Self-attention whose head i has ``qk_dims[i]`` query/key and ``value_dims[i]`` value dimensions; both lists are
    sorted, widest head first. Input and output (B, N, D). ``scale`` multiplies Q K^T, as trained. ``qkv_bias`` may say
    for each of Q, K and V whether it has one; ``position`` and ``norm`` are those of the attention it comes from."""

    standard = True

    def __init__(
        self,
        dim: int,
        qk_dims: list[int],
        value_dims: list[int],
        scale: float,
        qkv_bias: bool | tuple[bool, bool, bool] = True,
        proj_bias: bool = True,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        position: Position | None = None,
        norm: nn.Module | None = None,
    ):
        super().__init__()
        self.qk_dims, self.value_dims, self.scale = list(qk_dims), list(value_dims), scale
        widths = (sum(qk_dims), sum(qk_dims), sum(value_dims))
        self.qkv: Any
        if isinstance(qkv_bias, bool):
            self.qkv = nn.Linear(dim, sum(widths), bias=qkv_bias)
        else:
            self.qkv = JoinedLinear(nn.Linear(dim, w, bias=b) for w, b in zip(widths, qkv_bias, strict=True))
        self.q_norm, self.k_norm = q_norm or nn.Identity(), k_norm or nn.Identity()
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(sum(value_dims), dim, bias=proj_bias)
        self.proj_drop = nn.Dropout(proj_drop)
        self.position, self.norm = position, norm
        self.layout = LAYOUTS[0]
        self._groups = runs(zip(self.qk_dims, self.value_dims, strict=True))
        # CUDA's fused kernels load 8 numbers at a time and do not check that rows and slices start at a multiple of 8.
        self._unaligned = any(width % 8 for width in (*self.qk_dims, *self.value_dims))

    @property
    def num_heads(self) -> int:
        return len(self.value_dims)

    @property
    def head_dim(self) -> int:
        """Return the width that all heads have in common; 0 where they differ."""
        widths = {*self.qk_dims, *self.value_dims}
        return widths.pop() if len(widths) == 1 else 0

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, rope: Tensor | None = None
    ) -> Tensor:
        if self.head_dim and not self._unaligned:  # all alike: one view of all heads, whatever the layout
            q, k, v = _heads(self.qkv(x), 3 * self.num_heads).chunk(3, dim=1)
            x = self._attend(q, k, v, slice(0, self.num_heads), attn_mask, is_causal, rope)
        else:
            qk, values = sum(self.qk_dims), sum(self.value_dims)
            q, k, v = self.qkv(x).split([qk, qk, values], dim=-1)
            run = self._padded if self.layout == "padded" else self._ragged
            x = run(q, k, v, attn_mask, is_causal, rope)
        return self.proj_drop(self.proj(x if self.norm is None else self.norm(x)))

    def _ragged(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, rope: Tensor | None
    ) -> Tensor:
        outs, a, b, h = [], 0, 0, 0
        for count, (qk_width, v_width) in self._groups:
            qk, vs = slice(a, a := a + count * qk_width), slice(b, b := b + count * v_width)
            heads = slice(h, h := h + count)
            outs.append(self._attend_flat(q[..., qk], k[..., qk], v[..., vs], heads, mask, causal, rope))
        return torch.cat(outs, dim=-1) if len(outs) > 1 else outs[0]

    def _padded(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, rope: Tensor | None
    ) -> Tensor:
        # Zeros in q and k add nothing to the scores; zeros in v give columns that are dropped again.
        width = self._padded_width()
        q, k, v = (_widen(q, self.qk_dims, width), _widen(k, self.qk_dims, width), _widen(v, self.value_dims, width))
        x = self._attend_flat(q, k, v, slice(0, self.num_heads), mask, causal, rope)
        return _narrow(x, self.value_dims, width)

    def _padded_width(self) -> int:
        return max(*self.qk_dims, *self.value_dims)  # one for all: fused kernels want v as wide as q and k

    def padding(self) -> int:
        """Count the columns of zeros that the attention products run over in the present layout, in q, k (counted once)
        and v."""
        if self.layout == "ragged":
            return 0
        return 2 * self.num_heads * self._padded_width() - sum(self.qk_dims) - sum(self.value_dims)

    def _attend_flat(
        self, q: Tensor, k: Tensor, v: Tensor, at: slice, mask: Tensor | None, causal: bool, rope: Tensor | None
    ) -> Tensor:
        """Attend as ``_attend`` does, with heads that stand side by side, (B, N, sum of widths)."""
        if self._unaligned:
            q, k, v = _aligned(q), _aligned(k), _aligned(v)
        q, k, v = (_heads(t, at.stop - at.start) for t in (q, k, v))
        return self._attend(q, k, v, at, mask, causal, rope)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, at: slice, mask: Tensor | None, causal: bool, rope: Tensor | None
    ) -> Tensor:
        """Attend with q, k, v (B, H, N, width) of the heads ``at``; return (B, N, sum of v's widths)."""
        q, k = self.q_norm(q), self.k_norm(k)
        if self.position is not None:
            q, k, mask = self.position(q, k, mask, rope, at)
        dropout = getattr(self.attn_drop, "p", 0.0) if self.training else 0.0
        x = _scores_times_values(q, k, v, mask, dropout, causal, self.scale, self._unaligned)
        return x.transpose(1, 2).flatten(2)

    def set_window_size(self, window_size: tuple[int, int]) -> None:
        """Fit to images of another size, as timm's do; changes nothing unless scores have a bias by position."""
        if self.position is not None:
            self.position.set_window_size(window_size)

    def __prepare_scriptable__(self) -> Any:
        raise TypeError(
            "torch.jit.script: a pruned attention is not written in TorchScript; use torch.jit.trace, torch.export "
            "(hiap.formats.export.to_program) or torch.compile"
        )

    def extra_repr(self) -> str:
        return f"qk_dims={self.qk_dims}, value_dims={self.value_dims}, layout={self.layout}"


class PrunedBlock(nn.Module):
    """A transformer block whose attention or FFN may be gone (None), its norm with it. What is left of a gone branch is
    at most a constant vector (D,), the output bias that no closed gate multiplied (A9). Eva gives its blocks ``rope``,
    the angles of the positions, and Beit ``shared_rel_pos_bias``, which is None."""

    norm1: Any
    attn: Any
    ls1: Any
    drop_path1: Any
    norm2: Any
    mlp: Any
    ls2: Any
    drop_path2: Any
    attn_constant: Any
    mlp_constant: Any

    def __init__(self, parts: dict[str, nn.Module | None], constants: dict[str, Tensor | None]):
        super().__init__()
        for name in ("norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2"):
            setattr(self, name, parts[name])
        for name in ("attn_constant", "mlp_constant"):
            value = constants[name]
            trained = value is not None and (value.requires_grad or not isinstance(value, nn.Parameter))
            setattr(self, name, None if value is None else nn.Parameter(value.detach().clone(), trained))

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        rope: Tensor | None = None,
        shared_rel_pos_bias: None = None,
    ) -> Tensor:
        if self.attn is not None:
            turned = {} if rope is None else {"rope": rope}  # timm's plain attention takes none
            attn = self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal, **turned)
            x = x + self.drop_path1(self.ls1(attn))
        elif self.attn_constant is not None:
            x = x + self.attn_constant
        if self.mlp is not None:
            x = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        elif self.mlp_constant is not None:
            x = x + self.mlp_constant
        return x


def allow_gaps(model: Any) -> None:
    """Let ``set_input_size`` of a Beit, which asks the attention of each block for its window, pass over blocks that
    have none."""
    if isinstance(model, Beit) and any(block.attn is None for block in model.blocks):
        vars(model)["set_input_size"] = _OverGaps(model)


class _OverGaps:
    """``set_input_size`` of a network some of whose blocks have no attention; it goes along in copies and pickles,
    where a method that is bound to an instance is looked up by its name."""

    def __init__(self, model: Any):
        self.__self__ = model

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        model = self.__self__
        blocks = model.blocks
        model.blocks = nn.Sequential(*(block for block in blocks if block.attn is not None))
        try:
            type(model).set_input_size(model, *args, **kwargs)
        finally:
            model.blocks = blocks


def _aligned(x: Tensor) -> Tensor:
    return x.contiguous() if x.is_cuda else x


def _scores_times_values(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, causal: bool, scale: float, unaligned: bool
) -> Tensor:
    # Heads of such widths get their gradient as a slice that starts anywhere, at which cuDNN's backward fails (seen
    # on an H100, PyTorch 2.11).
    odd = q.is_cuda and torch.is_grad_enabled() and (unaligned or v.shape[-1] != q.shape[-1])
    with sdpa_kernel(SDPBackend.MATH) if odd else nullcontext():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale)


def set_layout(model: nn.Module, layout: str) -> None:
    """Choose how an extracted model runs heads of different widths: 'padded' or 'ragged'. Raises ``ValueError`` for
    another."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r}: expected one of {', '.join(LAYOUTS)}")
    for module in model.modules():
        if isinstance(module, PrunedAttention):
            module.layout = layout


def runs(widths: Iterable[Width]) -> list[tuple[int, Width]]:
    """Return run lengths: [(64, 64), (64, 32), (64, 32)] -> [(1, (64, 64)), (2, (64, 32))]."""
    return [(len(list(same)), width) for width, same in groupby(widths)]


def _heads(x: Tensor, count: int) -> Tensor:
    """Bring (B, N, H * width) to (B, H, N, width)."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def _widen(x: Tensor, widths: list[int], width: int) -> Tensor:
    """Bring (B, N, sum(widths)), head after head, to (B, N, H * width) with zeros behind each head's columns."""
    if min(widths) == width:
        return x
    if min(widths) == max(widths):
        return F.pad(x.unflatten(-1, (len(widths), -1)), (0, width - widths[0])).flatten(-2)
    zeros = x.new_zeros(1).expand(*x.shape[:-1], width)
    pieces = [t for head, w in zip(x.split(widths, -1), widths, strict=True) for t in (head, zeros[..., : width - w])]
    return torch.cat(pieces, -1)


def _narrow(x: Tensor, widths: list[int], width: int) -> Tensor:
    """Undo ``_widen``."""
    if min(widths) == width:
        return x
    heads = x.unflatten(-1, (len(widths), width))
    if min(widths) == max(widths):
        return heads[..., : widths[0]].flatten(-2)
    return torch.cat([head[..., :w] for head, w in zip(heads.unbind(-2), widths, strict=True)], -1)


# What looks at shapes or devices stays a call where torch.fx traces a network, for feature extractors and quantisation.
for _name in ("_aligned", "_scores_times_values", "_widen", "_narrow"):
    torch.fx.wrap(_name)
