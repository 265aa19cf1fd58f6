"""A network that was pruned is pruned again: by HiAP, to a share of what it was, with the function that it had."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from conftest import scatter_logits, small_vit
from test_extraction import relative

import hiap

IMAGE = (1, 16, 16)


def once(seed: int = 0) -> Any:
    """Uneven heads, the last block without its FFN, the first without its attention."""
    gated = hiap.gate(small_vit())
    scatter_logits(gated, seed)
    gated.blocks[0].attn.head_gate.logit.data.fill_(-1)
    gated.blocks[0].mlp.block_gate.logit.data.fill_(1)
    gated.blocks[1].mlp.block_gate.logit.data.fill_(1)
    gated.blocks[1].attn.head_gate.logit.data.fill_(1)
    gated.blocks[2].mlp.block_gate.logit.data.fill_(-1)
    return hiap.extract(gated).eval()


def test_heads_of_different_widths_are_told_by_gate() -> None:
    first = once()
    for block in (first.blocks[0], first.blocks[2]):
        block.attn, block.mlp = first.blocks[1].attn, first.blocks[1].mlp
        for part in ("norm1", "ls1", "drop_path1", "norm2", "ls2", "drop_path2"):
            setattr(block, part, getattr(first.blocks[1], part))
    with pytest.raises(hiap.UnsupportedModelError, match=r"blocks\.0\.attn: heads of different widths.*hiap\.prune"):
        hiap.gate(first)


def test_it_starts_as_it_was(images: torch.Tensor) -> None:
    first = once()
    pruner = hiap.Pruner(first, steps=3)
    with torch.no_grad():
        assert relative(pruner.model.eval()(images), first(images)) < 1e-5
        same = hiap.extract(pruner.model)
        assert relative(same(images), first(images)) < 1e-5
    assert hiap.macs(same, IMAGE) == hiap.macs(first, IMAGE)


def test_it_lands_on_a_share_of_what_it_was(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    first = once()
    pruner = hiap.Pruner(first.train(), steps=12, target_macs=0.6, multiple=1)
    optimizer = torch.optim.AdamW(pruner.param_groups(lr=1e-3, gate_lr=0.6))
    for _ in range(12):
        labels = torch.arange(4)
        (hiap.distillation_loss(pruner.model(images), labels) + pruner.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    assert pruner.travel() < 12 * 0.6 * 1.1, "what was gone has gone nowhere"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = pruner.finish().eval()
    assert 0.57 < hiap.macs(second, IMAGE) / hiap.macs(first, IMAGE) <= 0.6
    with torch.no_grad():
        assert relative(second(images), pruner.model.eval()(images)) < 1e-5
    third = hiap.Pruner(second, steps=1, target_macs=0.9)
    assert third.model.eval()(images).shape == (4, 10)
