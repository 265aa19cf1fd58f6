"""Physical removal: a gated model becomes a smaller plain one that computes the same function, and a folder on disk.

Heads of one layer may keep different numbers of value dimensions. The extracted attention stores exactly the rows and
columns that are left; ``layout`` says how it runs them:

- 'ragged': heads of equal width together, one attention call per width. Executes exactly the MACs that are left.
- 'padded': all heads in one call, narrow ones padded with zeros, so that fused attention stays. Executes more MACs in
  the attention product (never in a projection).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

from hiap.gated_vit import BlockMask, GatedAttention, GatedMlp, is_gated, masks

LAYOUTS = ("ragged", "padded")


class PrunedAttention(nn.Module):
    """Self-attention whose head i has ``qk_dims[i]`` query/key and ``value_dims[i]`` value dimensions; both lists are
    sorted, widest head first. Input and output (B, N, D). ``scale`` multiplies Q K^T, as trained."""

    def __init__(
        self,
        dim: int,
        qk_dims: list[int],
        value_dims: list[int],
        scale: float,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ):
        super().__init__()
        self.qk_dims, self.value_dims, self.scale = list(qk_dims), list(value_dims), scale
        self.qkv = nn.Linear(dim, 2 * sum(qk_dims) + sum(value_dims), bias=qkv_bias)
        self.q_norm, self.k_norm = q_norm or nn.Identity(), k_norm or nn.Identity()
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(sum(value_dims), dim, bias=proj_bias)
        self.proj_drop = nn.Dropout(proj_drop)
        self.layout = "ragged"
        self._groups = _runs(list(zip(self.qk_dims, self.value_dims, strict=True)))
        for name, widths in (("_qk_pad", self.qk_dims), ("_v_pad", self.value_dims)):
            pad, keep = _padding(widths)
            self.register_buffer(name, pad, persistent=False)
            self.register_buffer(name.replace("pad", "keep"), keep, persistent=False)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        qk, v = sum(self.qk_dims), sum(self.value_dims)
        q, k, v = self.qkv(x).split([qk, qk, v], dim=-1)
        run = self._padded if self.layout == "padded" else self._ragged
        return self.proj_drop(self.proj(run(q, k, v, attn_mask, is_causal)))

    def _ragged(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        outs, a, b = [], 0, 0
        for count, (qk_width, v_width) in self._groups:
            qk, vs = slice(a, a := a + count * qk_width), slice(b, b := b + count * v_width)
            outs.append(self._attend(q[..., qk], k[..., qk], v[..., vs], count, mask, causal))
        return torch.cat(outs, dim=-1) if len(outs) > 1 else outs[0]

    def _padded(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        # Zeros in q and k add nothing to the scores; zeros in v give columns that are dropped again.
        heads, width = len(self.qk_dims), self.qk_dims[0]
        if min(self.qk_dims) < width:
            q, k = (F.pad(t, (0, 1)).index_select(-1, self._qk_pad) for t in (q, k))
        if min(self.value_dims) < self.value_dims[0]:
            v = F.pad(v, (0, 1)).index_select(-1, self._v_pad)
        v_width = max(self.value_dims[0], width)
        if v_width > self.value_dims[0]:  # equal widths of q, k and v are what the fused kernels ask for
            v = F.pad(v.unflatten(-1, (heads, -1)), (0, v_width - self.value_dims[0])).flatten(-2)
        x = self._attend(q, k, v, heads, mask, causal).unflatten(-1, (heads, v_width))
        x = x[..., : self.value_dims[0]].flatten(-2)
        return x if min(self.value_dims) == self.value_dims[0] else x.index_select(-1, self._v_keep)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None, causal: bool) -> Tensor:
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        x = F.scaled_dot_product_attention(
            self.q_norm(q),
            self.k_norm(k),
            v,
            attn_mask=mask,
            dropout_p=self.attn_drop.p if self.training else 0.0,
            is_causal=causal,
            scale=self.scale,
        )
        return x.transpose(1, 2).flatten(2)

    def extra_repr(self) -> str:
        return f"qk_dims={self.qk_dims}, value_dims={self.value_dims}, layout={self.layout}"


class PrunedBlock(nn.Module):
    """A pre-norm transformer block whose attention or FFN may be gone (None), its norm with it. What is left of a gone
    branch is at most a constant vector (D,), the output bias that no closed gate multiplied (A9)."""

    def __init__(self, parts: dict[str, nn.Module | None], constants: dict[str, Tensor | None]):
        super().__init__()
        for name in ("norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2"):
            setattr(self, name, parts[name])
        for name in ("attn_constant", "mlp_constant"):
            value = constants[name]
            setattr(self, name, None if value is None else nn.Parameter(value.detach().clone()))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if self.attn is not None:
            attn = self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal)
            x = x + self.drop_path1(self.ls1(attn))
        elif self.attn_constant is not None:
            x = x + self.attn_constant
        if self.mlp is not None:
            x = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        elif self.mlp_constant is not None:
            x = x + self.mlp_constant
        return x


@torch.no_grad()
def extract(gated: Any, layout: str = "ragged") -> Any:
    """The plain, smaller ``VisionTransformer`` that computes what ``gated.eval()`` computes. No fine-tuning.

    ``layout`` (see the module docstring) can be changed later with ``set_layout``. Raises ``ValueError`` if the model
    carries no gates, or if no head and no neuron is left anywhere (nothing would look at the image).
    """
    if not is_gated(gated):
        raise ValueError("extract: the model carries no gates; call hiap.gate first")
    kept = masks(gated)
    if not any((m.heads[:, None] & m.dims).any() for m in kept):
        raise ValueError("extract: no head is left in any layer, so no patch would reach the classifier")
    # The blocks are rebuilt from slices; everything else is copied (the memo keeps deepcopy from copying dense blocks).
    model = copy.deepcopy(gated, {id(gated.blocks): gated.blocks})
    blocks = [_extract_block(b, m) for b, m in zip(gated.blocks, kept, strict=True)]
    model.blocks = nn.Sequential(*blocks)
    set_layout(model, layout)
    return model.train(gated.training)


def set_layout(model: nn.Module, layout: str) -> None:
    """How an extracted model runs its ragged heads: 'ragged' or 'padded'."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r}: expected one of {', '.join(LAYOUTS)}")
    for module in model.modules():
        if isinstance(module, PrunedAttention):
            module.layout = layout


def _extract_block(block: Any, mask: BlockMask) -> PrunedBlock:
    attn, attn_constant = _extract_attention(block.attn, mask)
    mlp, mlp_constant = _extract_mlp(block.mlp, mask)
    keep = copy.deepcopy
    parts = {
        "norm1": keep(block.norm1) if attn else None,
        "attn": attn,
        "ls1": keep(block.ls1) if attn else None,
        "drop_path1": keep(block.drop_path1) if attn else None,
        "norm2": keep(block.norm2) if mlp else None,
        "mlp": mlp,
        "ls2": keep(block.ls2) if mlp else None,
        "drop_path2": keep(block.drop_path2) if mlp else None,
    }
    constants = {
        "attn_constant": None if attn_constant is None else block.ls1(attn_constant),
        "mlp_constant": None if mlp_constant is None else block.ls2(mlp_constant),
    }
    return PrunedBlock(parts, constants)


def _extract_attention(attn: GatedAttention, mask: BlockMask) -> tuple[PrunedAttention | None, Tensor | None]:
    """The surviving attention, or what is left of its output when no head survives."""
    dims = mask.dims & mask.heads[:, None]
    widths = dims.sum(-1)
    # Widest first, stable, so that heads of equal width stand together.
    order = [h for h in widths.argsort(descending=True, stable=True).tolist() if widths[h]]
    bias_open = attn.proj.bias is not None and (not attn.bias_gated or bool(mask.heads.any()))
    if not order:
        return None, attn.proj.bias if bias_open else None
    size, device = attn.head_dim, dims.device
    values = torch.cat([h * size + dims[h].nonzero().flatten() for h in order])
    qk = (
        values
        if attn.mode != "v"
        else torch.cat([torch.arange(h * size, (h + 1) * size, device=device) for h in order])
    )
    value_dims = [int(widths[h]) for h in order]
    pruned = PrunedAttention(
        attn.qkv.in_features,
        value_dims if attn.mode != "v" else [size] * len(order),
        value_dims,
        attn.scale,
        qkv_bias=attn.qkv.bias is not None,
        proj_bias=bias_open,
        q_norm=copy.deepcopy(attn.q_norm),
        k_norm=copy.deepcopy(attn.k_norm),
        attn_drop=attn.attn_drop.p,
        proj_drop=attn.proj_drop.p,
    ).to(attn.qkv.weight)
    inner = attn.num_heads * size
    rows = torch.cat([qk, inner + qk, 2 * inner + values])
    _slice_linear(pruned.qkv, attn.qkv, rows=rows)
    _slice_linear(pruned.proj, attn.proj, columns=values)
    return pruned, None


def _extract_mlp(mlp: GatedMlp, mask: BlockMask) -> tuple[Mlp | None, Tensor | None]:
    """The surviving FFN, or what is left of its output: the open block's bias when no neuron survives (A9)."""
    if not mask.ffn:
        return None, None
    neurons = mask.neurons.nonzero().flatten()
    if not len(neurons):
        return None, mlp.fc2.bias
    pruned = Mlp(
        mlp.fc1.in_features,
        len(neurons),
        mlp.fc2.out_features,
        bias=(mlp.fc1.bias is not None, mlp.fc2.bias is not None),
        drop=(mlp.drop1.p, mlp.drop2.p),
    ).to(mlp.fc1.weight)
    pruned.act = copy.deepcopy(mlp.act)
    _slice_linear(pruned.fc1, mlp.fc1, rows=neurons)
    _slice_linear(pruned.fc2, mlp.fc2, columns=neurons)
    return pruned, None


def _slice_linear(to: nn.Linear, source: nn.Linear, rows: Tensor | None = None, columns: Tensor | None = None) -> None:
    weight = source.weight if rows is None else source.weight[rows]
    to.weight.copy_(weight if columns is None else weight[:, columns])
    if to.bias is not None:
        to.bias.copy_(source.bias if rows is None else source.bias[rows])


def _runs(widths: list[tuple[int, int]]) -> list[tuple[int, tuple[int, int]]]:
    """Run lengths: [(64, 64), (64, 32), (64, 32)] -> [(1, (64, 64)), (2, (64, 32))]."""
    runs: list[tuple[int, tuple[int, int]]] = []
    for width in widths:
        if runs and runs[-1][1] == width:
            runs[-1] = (runs[-1][0] + 1, width)
        else:
            runs.append((1, width))
    return runs


def _padding(widths: list[int]) -> tuple[Tensor, Tensor]:
    """Index of ragged columns into padded ones (the last index is a zero column), and of the real ones among those."""
    total, width, pad, start = sum(widths), max(widths), [], 0
    for w in widths:
        pad += [*range(start, start + w), *[total] * (width - w)]
        start += w
    return torch.tensor(pad), torch.tensor([i for i, column in enumerate(pad) if column < total])
