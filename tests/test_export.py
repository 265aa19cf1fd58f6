"""What leaves the project computes what stayed: ONNX, torch.export, torch.compile, stock timm, folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
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


def onnx_runtime(path: Path, batches: list[np.ndarray]) -> list[np.ndarray]:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [session.run(None, {"images": batch})[0] for batch in batches]


def openvino(path: Path, batches: list[np.ndarray]) -> list[np.ndarray]:
    ov = pytest.importorskip("openvino", reason="make openvino installs it")
    exact = {"INFERENCE_PRECISION_HINT": "f32"}  # by default it computes in bf16 where the processor can
    compiled = ov.compile_model(path, "CPU", exact)
    return [compiled({"images": batch})["logits"] for batch in batches]


RUNTIMES = {"onnxruntime": onnx_runtime, "openvino": openvino}


def onnx_logits(model: Any, images: torch.Tensor, path: Path) -> torch.Tensor:
    pytest.importorskip("onnxscript")
    export.to_onnx(model, path)
    return torch.from_numpy(onnx_runtime(path, [images.numpy()])[0])


def agrees(runtime: str, model: Any, images: torch.Tensor, path: Path, tolerance: float = 1e-4) -> None:
    """The exported file, loaded by ``runtime``, gives the network's logits, whatever the size of the batch."""
    pytest.importorskip("onnxscript")
    batches = [images, images[:1], torch.cat([images, images + 0.5])]
    export.to_onnx(model, path)
    for found, batch in zip(RUNTIMES[runtime](path, [b.numpy() for b in batches]), batches, strict=True):
        with torch.no_grad():
            assert (torch.from_numpy(found) - model(batch)).abs().max() < tolerance


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("layout", ["ragged", "padded"])
def test_onnx_takes_any_batch_and_agrees(images, tmp_path, layout, runtime):
    agrees(runtime, hiap.extract(random_gated(small_vit()), layout), images, tmp_path / "net.onnx")


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    "changes",
    [
        {"global_pool": "avg", "class_token": False, "reg_tokens": 2, "no_embed_class": True},
        {"qk_norm": True, "init_values": 0.1, "pre_norm": True},
        {"qkv_bias": False, "proj_bias": False, "num_classes": 0},
    ],
)
def test_other_backbones_agree_in_the_runtimes(images, tmp_path, changes, runtime):
    agrees(runtime, hiap.extract(random_gated(small_vit(**changes))), images, tmp_path / "net.onnx")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_network_with_whole_branches_gone_agrees_in_the_runtimes(images, tmp_path, runtime):
    """Blocks without attention, without an FFN, and without both, with what closed gates leave of biases."""
    gated = hiap.gate(small_vit(depth=4), attn_bias="kept")
    for block, gone in zip(gated.blocks, ("attn", "mlp", "both", "none"), strict=True):
        if gone in ("attn", "both"):
            block.attn.head_gate.logit.data.fill_(-1)
        if gone in ("mlp", "both"):
            block.mlp.block_gate.logit.data.fill_(-1)
    small = hiap.extract(gated)
    assert [(b.attn is None, b.mlp is None) for b in small.blocks] == [
        (True, False),
        (False, True),
        (True, True),
        (False, False),
    ]
    agrees(runtime, small, images, tmp_path / "net.onnx")


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


def test_heads_of_another_width_are_said_or_refused():
    """Attention whose scale is of narrower heads, as a network pruned elsewhere may have it."""
    whole = hiap.gate(small_vit()).eval()
    for block in whole.blocks:
        block.mlp.neuron_gate.logit.data[100:] = -1
    small = hiap.extract(whole)
    assert export.to_timm(small)[0]["num_heads"] == 4
    small.blocks[1].attn.scale = 4**-0.5  # of eight heads, half as wide
    with pytest.raises(export.ExportError, match=r"blocks\.1: its scale is of heads of 4 dimensions, it has some of 8"):
        export.to_timm(small)


def test_a_network_with_gates_is_not_exported_and_one_that_trains_goes_on(tmp_path):
    for form in (export.to_program, export.to_timm, lambda model: export.to_onnx(model, tmp_path / "a.onnx")):
        with pytest.raises(export.ExportError, match=r"carries gates.*pruner\.finish\(\)"):
            form(hiap.gate(small_vit()))
    model = small_vit().train()
    export.to_program(model)
    assert model.training
    assert model.blocks[0].training
    export.to_file(small_vit().to(memory_format=torch.channels_last), tmp_path / "a.safetensors")


def test_unequal_blocks_are_refused_by_name():
    with pytest.raises(export.ExportError, match=r"blocks\.0\.attn is gone"):
        export.to_timm(hiap.extract(random_gated(small_vit())))
    gated = hiap.gate(small_vit()).eval()
    gated.blocks[2].mlp.neuron_gate.logit.data[3] = -1
    with pytest.raises(export.ExportError, match=r"blocks\.2 keeps"):
        export.to_timm(hiap.extract(gated))


@pytest.mark.slow
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_deit_small_with_ragged_heads_agrees_in_the_runtimes(tmp_path, runtime):
    torch.manual_seed(0)
    small = ragged(timm.create_model("deit_small_patch16_224").eval())
    agrees(runtime, small, torch.randn(3, 3, 224, 224), tmp_path / "net.onnx")


@pytest.mark.slow
def test_deit_small_with_ragged_heads_agrees_everywhere(tmp_path):
    torch.manual_seed(0)
    small = ragged(timm.create_model("deit_small_patch16_224").eval())
    batch = torch.randn(3, 3, 224, 224)
    hiap.save(small, tmp_path / "net")
    with torch.no_grad():
        logits = small(batch)
        assert (export.to_program(small).module()(batch) - logits).abs().max() < 1e-5
        assert torch.equal(hiap.load(tmp_path / "net")(batch), logits)
