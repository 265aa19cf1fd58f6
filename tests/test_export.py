"""What leaves the project computes what stayed: ONNX, torch.export, torch.compile, stock timm, folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import scatter_logits, small_vit
from test_extraction import random_gated

import hiap
from hiap.formats import export


def ragged(model: Any, layout: str = "padded", **options: Any) -> Any:
    gated = hiap.gate(model, **options).eval()
    scatter_logits(gated)
    return hiap.extract(gated, layout).eval()


def onnx_logits(model: Any, images: torch.Tensor, path: Path) -> torch.Tensor:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    export.to_onnx(model, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


@pytest.mark.parametrize("layout", ["ragged", "padded"])
def test_onnx_takes_any_batch_and_agrees(images, tmp_path, layout):
    small = hiap.extract(random_gated(small_vit()), layout)
    with torch.no_grad():
        assert (onnx_logits(small, images, tmp_path / "net.onnx") - small(images)).abs().max() < 1e-4


def test_an_opset_that_torch_would_raise_silently_is_refused(tmp_path):
    with pytest.raises(export.ExportError, match="opset 17: expected 18"):
        export.to_onnx(small_vit(), tmp_path / "net.onnx", opset=17)


@pytest.mark.parametrize("layout", ["ragged", "padded"])
def test_torch_export_takes_any_batch_and_agrees(images, layout):
    small = hiap.extract(random_gated(small_vit()), layout)
    program = export.to_program(small).module()
    with torch.no_grad():
        for batch in (images, images[:1]):
            assert (program(batch) - small(batch)).abs().max() < 1e-5


def test_the_network_compiles_without_a_graph_break(images):
    small = hiap.extract(random_gated(small_vit()), "padded")
    with torch.no_grad():
        assert torch.equal(torch.compile(small, fullgraph=True, backend="eager")(images), small(images))


@pytest.mark.parametrize(("dims", "width"), [("v", 64), ("v", 40), ("qkv", 40)])
def test_blocks_of_equal_ffn_load_into_stock_timm(images, dims, width):
    gated = hiap.gate(timm.create_model("vit_tiny_patch16_224", img_size=32, in_chans=1).eval(), dims=dims)
    for block in gated.blocks:
        block.attn.head_gate.logit.data[-1] = -1
        block.attn.value_gate.logit.data[:, width:] = -1
        block.mlp.neuron_gate.logit.data[331:] = -1
    small = hiap.extract(gated.eval())
    arguments, state = export.to_timm(small)
    stock = timm.create_model("vit_tiny_patch16_224", img_size=32, in_chans=1, **arguments).eval()
    stock.load_state_dict(state)
    batch = torch.nn.functional.interpolate(images, 32)
    with torch.no_grad():
        assert (stock(batch) - small(batch)).abs().max() < 1e-5


def test_unequal_blocks_are_refused_by_name():
    with pytest.raises(export.ExportError, match=r"blocks\.0\.attn is gone"):
        export.to_timm(hiap.extract(random_gated(small_vit())))
    gated = hiap.gate(small_vit()).eval()
    gated.blocks[2].mlp.neuron_gate.logit.data[3] = -1
    with pytest.raises(export.ExportError, match=r"blocks\.2 keeps"):
        export.to_timm(hiap.extract(gated))


@pytest.mark.slow
def test_deit_small_with_ragged_heads_agrees_everywhere(tmp_path):
    torch.manual_seed(0)
    small = ragged(timm.create_model("deit_small_patch16_224").eval())
    batch = torch.randn(3, 3, 224, 224)
    hiap.save(small, tmp_path / "net")
    with torch.no_grad():
        logits = small(batch)
        assert (onnx_logits(small, batch, tmp_path / "net.onnx") - logits).abs().max() < 1e-4
        assert (export.to_program(small).module()(batch) - logits).abs().max() < 1e-5
        assert torch.equal(hiap.load(tmp_path / "net")(batch), logits)
