"""Layouts and rounding keep the function; what they execute is what is counted."""

from __future__ import annotations

import pytest
import torch
from conftest import small_vit
from test_extraction import MODES, counted_macs, random_gated, relative

import hiap


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("multiple", [1, 4, 8])
def test_padding_and_rounding_keep_the_function_and_are_counted(images, mode, multiple):
    gated = random_gated(small_vit(), dims=mode)
    small = hiap.extract(gated, "padded", multiple)
    with torch.no_grad():
        assert relative(small(images), gated(images)) < 1e-5
    executed, ideal = hiap.macs(small, (1, 16, 16)), hiap.macs(small, (1, 16, 16), ideal=True)
    assert executed == counted_macs(small, (1, 16, 16)) >= ideal
    hiap.set_layout(small, "ragged")
    assert hiap.macs(small, (1, 16, 16)) == counted_macs(small, (1, 16, 16)) == ideal


def test_rounding_adds_closed_units_up_to_the_multiple():
    gated = random_gated(small_vit())
    exact, rounded = hiap.extract(gated), hiap.extract(gated, multiple=4)
    for before, after in zip(exact.blocks, rounded.blocks, strict=True):
        assert (before.attn is None) == (after.attn is None)
        if before.attn is not None:
            assert after.attn.value_dims == [-(-w // 4) * 4 for w in before.attn.value_dims]
        if before.mlp is not None:
            assert after.mlp.fc1.out_features == -(-before.mlp.fc1.out_features // 4) * 4
    assert hiap.extract(gated, multiple=1000).blocks[1].attn.value_dims[0] == 8, "no wider than the dense head"


def test_the_padded_layout_trains(images):
    gated = random_gated(small_vit())
    gradients = []
    for layout in ("ragged", "padded"):
        small = hiap.extract(gated, layout)
        small(images).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in small.parameters() if p.grad is not None]))
    assert relative(*gradients) < 1e-4
