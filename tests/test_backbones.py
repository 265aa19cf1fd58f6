"""The whole way for every backbone: gate, two training steps, extract, save, load, ONNX."""

from __future__ import annotations

import pytest
import timm
import torch
from conftest import scatter_logits
from test_export import onnx_logits

import hiap

BACKBONES = {
    "deit_tiny_patch16_224": {},
    "deit_small_patch16_224": {},
    "deit_base_patch16_224": {"depth": 3},
    "vit_base_patch16_224": {"depth": 3},
    "deit_tiny_distilled_patch16_224": {},
    "vit_medium_patch16_reg4_gap_256": {"depth": 6},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_backbone_goes_the_whole_way(name, tmp_path):
    torch.manual_seed(0)
    # Small images and, for the wide ones, few blocks: what differs between backbones is the kind of block.
    model = timm.create_model(name, img_size=64, num_classes=10, **BACKBONES[name])
    gated = hiap.gate(model).train()
    scatter_logits(gated)
    optimizer = torch.optim.AdamW(gated.parameters(), lr=1e-4)
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([1, 2])
    before = [p.clone() for p in gated.parameters()]
    for _ in range(2):
        loss = torch.nn.functional.cross_entropy(gated(images), labels) + 1e-9 * hiap.expected_cost(gated).flops
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, gated.parameters(), strict=True))
    small = hiap.extract(gated.eval(), "padded").eval()
    hiap.save(small, tmp_path / "net")
    loaded = hiap.load(tmp_path / "net")
    with torch.no_grad():
        logits = small(images)
        assert (logits - gated(images)).abs().max() < 1e-4
        assert torch.equal(loaded(images), logits)
        assert (onnx_logits(loaded, images, tmp_path / "net.onnx") - logits).abs().max() < 1e-4
