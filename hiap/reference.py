"""Eqs. 1-4 as the paper writes them: activations multiplied by gates. Slow and readable; ``hiap.gated_layers`` folds
the gates into the weights instead, and tests hold the two equal, outputs and gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def forward(gated: Any, images: Tensor, gates: list[dict[str, Tensor]]) -> Tensor:
    """Return the logits of a gated ViT whose block l uses ``gates[l]``: g (H,), d (H, Dh), b (), c (Dffn,)."""
    x = gated.patch_embed(images)
    x = gated.norm_pre(gated.patch_drop(gated._pos_embed(x)))
    for block, gate in zip(gated.blocks, gates, strict=True):
        x = x + block.ls1(attention(block.attn, block.norm1(x), gate["g"], gate["d"]))
        x = x + block.ls2(ffn(block.mlp, block.norm2(x), gate["b"], gate["c"]))
    return gated.forward_head(gated.norm(x))


def attention(attn: Any, x: Tensor, g: Tensor, d: Tensor) -> Tensor:
    """Eqs. 1-3: head h contributes ``g[h] softmax(Q K^T / sqrt(Dh)) (V * d[h])``."""
    batch, n, _ = x.shape
    qkv = attn.qkv(x).reshape(batch, n, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
    q, k, v = qkv[0], qkv[1], qkv[2]
    if attn.mode == "qkv":
        q, k = q * d[:, None], k * d[:, None]
    scores = attn.q_norm(q) @ attn.k_norm(k).transpose(-2, -1) * attn.head_dim**-0.5
    heads = g[:, None, None] * (scores.softmax(-1) @ (v * d[:, None]))
    out = heads.transpose(1, 2).reshape(batch, n, -1) @ attn.proj.weight.T
    if attn.proj.bias is None:
        return out
    return out + attn.proj.bias * (1 - torch.prod(1 - g) if attn.bias_gated else 1.0)


def ffn(mlp: Any, x: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Eq. 4: ``b (phi(x W1) * c) W2``, the output bias inside the gated block (A9)."""
    hidden = mlp.act(mlp.fc1(x)) * c
    out = hidden @ mlp.fc2.weight.T
    return b * (out if mlp.fc2.bias is None else out + mlp.fc2.bias)
