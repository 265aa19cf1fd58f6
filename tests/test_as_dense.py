"""What a dense network can, the pruned one can, or says in one line why not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import scatter_logits, small_vit
from test_extraction import relative
from test_families import small
from timm.models.beit import Beit
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

import hiap
from hiap.formats import export


def pruned(model: Any = None, layout: str = "padded") -> Any:
    gated = hiap.gate(model or small_vit())
    scatter_logits(gated)
    for block in gated.blocks:
        block.attn.head_gate.logit.data[0] = block.mlp.block_gate.logit.data[0] = 1
    return hiap.extract(gated, layout=layout).eval()


@pytest.mark.parametrize("layout", ["padded", "ragged"])
def test_fx_traces_it_and_features_come_out(images: torch.Tensor, layout: str) -> None:
    left = pruned(layout=layout)
    assert torch.equal(torch.fx.symbolic_trace(left)(images), left(images))
    found = create_feature_extractor(left, ["blocks.1", "head"])(images)
    assert found["blocks.1"].shape == (4, 17, 32)
    assert torch.equal(found["head"], left(images))


def test_fx_quantises_it(images: torch.Tensor) -> None:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_fx

    left = pruned()
    assert relative(prepare_fx(left, get_default_qconfig_mapping("x86"), (images,))(images), left(images)) < 1e-5


def test_it_exports_and_traces(images: torch.Tensor) -> None:
    left = pruned()
    assert relative(torch.export.export(left, (images,)).module()(images), left(images)) < 1e-5
    assert relative(torch.jit.freeze(torch.jit.trace(left, images))(images), left(images)) < 1e-5


def test_script_says_what_to_take_instead() -> None:
    with pytest.raises(TypeError, match=r"torch\.jit\.script: .* torch\.jit\.trace") as error:
        torch.jit.script(pruned())
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore")
def test_quantised_it_runs_and_is_not_saved(images: torch.Tensor, tmp_path: Any) -> None:
    left = pruned()
    quantised = torch.ao.quantization.quantize_dynamic(left, {nn.Linear}, dtype=torch.qint8)
    assert relative(quantised(images), left(images)) < 0.2
    with pytest.raises(hiap.UnsupportedModelError, match=r"\.Linear\): .*quantise afterwards") as error:
        hiap.save(quantised, tmp_path / "net")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "net").exists()


def test_onnx_in_bfloat16_is_refused_before_it_is_written(tmp_path: Any) -> None:
    with pytest.raises(export.ExportError, match=r"bfloat16.*\.float\(\)"):
        export.to_onnx(pruned().bfloat16(), tmp_path / "net.onnx")
    assert not (tmp_path / "net.onnx").exists()


@pytest.mark.parametrize("family", ["EVA-02", "DINOv3", "BEiT", "mixed angles"])
def test_other_image_sizes_fit_as_they_fit_the_dense_network(family: str, tmp_path: Any) -> None:
    dense = small(family).float()
    gated = hiap.gate(dense)
    left = hiap.extract(gated)  # every unit kept
    nets = [copy.deepcopy(dense), gated, left]
    for network in nets:
        network.set_input_size(img_size=(32, 32))
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        wanted = nets[0](images)
        assert relative(gated(images), wanted) < 1e-5
        assert relative(left(images), wanted) < 1e-5
        hiap.save(left, tmp_path / "net")
        assert relative(hiap.load(tmp_path / "net")(images), wanted) < 1e-5
    if isinstance(dense, Beit):
        assert left.blocks[0].attn.position.window == (8, 8)


def test_a_beit_without_some_attention_takes_other_image_sizes(tmp_path: Any) -> None:
    gated = hiap.gate(small("BEiT").float()).eval()
    with torch.no_grad():
        gated.blocks[0].attn.head_gate.logit.fill_(-9)
    left = hiap.extract(gated)
    assert left.blocks[0].attn is None
    hiap.save(left, tmp_path / "net")
    networks = {"extracted": left, "copied": copy.deepcopy(left), "loaded": hiap.load(tmp_path / "net")}
    gated.set_input_size(img_size=(32, 32))
    images = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        wanted = gated(images)
        for name, network in networks.items():
            network.set_input_size(img_size=(32, 32))
            assert len(network.blocks) == len(gated.blocks), name
            assert relative(network(images), wanted) < 1e-5, name
