"""Masked = extracted, counter = FlopCounter, expected cost of decided gates = counted, folders round trip."""

from __future__ import annotations

import copy
import json

import pytest
import timm
import torch
from conftest import scatter_logits, small_vit
from torch.utils.flop_counter import FlopCounterMode

import hiap
from hiap import cost, gated_vit, ledger
from hiap.budget.prices import kept_cost
from hiap.formats.store import ARCHITECTURE, WEIGHTS, StoreError

MODES = ("v", "qkv", "v-cut-qkv")


def counted_macs(model, image):
    model = copy.deepcopy(model).requires_grad_(False)  # torch's counter trips over parameters that are expanded
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *image))
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2


def random_gated(model, seed=0, **options):
    """Random gates with, when there are enough blocks: no head left, heads open without dimensions, one dimension left;
    no neuron left in an open block, a closed block, one neuron left."""
    gated = hiap.gate(model, **options)
    scatter_logits(gated, seed)
    blocks = gated.blocks
    blocks[0].attn.head_gate.logit.data.fill_(-1)
    blocks[0].mlp.block_gate.logit.data.fill_(1)
    blocks[0].mlp.neuron_gate.logit.data.fill_(-1)
    blocks[1].attn.head_gate.logit.data.fill_(1)
    blocks[1].attn.value_gate.logit.data.fill_(-1)
    blocks[1].attn.value_gate.logit.data[-1, 3] = 1
    blocks[1].mlp.block_gate.logit.data.fill_(-1)
    blocks[2].attn.head_gate.logit.data.fill_(1)
    blocks[2].mlp.neuron_gate.logit.data.fill_(-1)
    blocks[2].mlp.neuron_gate.logit.data[5] = 1
    blocks[2].mlp.block_gate.logit.data.fill_(1)
    return gated.eval()


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("layout", ["ragged", "padded"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("attn_bias", ["gated", "kept"])
@pytest.mark.parametrize("seed", range(3))
def test_masked_equals_extracted_and_counted_macs(images, mode, attn_bias, seed, layout):
    gated = random_gated(small_vit(init_values=0.3, reg_tokens=2), seed, dims=mode, attn_bias=attn_bias)
    small = hiap.extract(gated, layout)
    with torch.no_grad():
        assert relative(small(images), gated(images)) < 1e-5
    if layout == "ragged":
        assert hiap.macs(small, (1, 16, 16)) == counted_macs(small, (1, 16, 16))
    assert hiap.params(small) < hiap.params(gated)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit_small_patch16_224"])
def test_masked_equals_extracted_on_the_papers_backbones(name):
    torch.manual_seed(0)
    gated = random_gated(timm.create_model(name).eval())
    small = hiap.extract(gated)
    batch = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        assert relative(small(batch), gated(batch)) < 1e-5
    assert hiap.macs(small, (3, 224, 224), executed=True) == counted_macs(small, (3, 224, 224))
    hiap.set_layout(small, "ragged")
    assert hiap.macs(small, (3, 224, 224)) == counted_macs(small, (3, 224, 224))


def test_qk_norm_survives_extraction(images):
    gated = random_gated(small_vit(qk_norm=True))
    with torch.no_grad():
        assert relative(hiap.extract(gated)(images), gated(images)) < 1e-5


def test_a_layer_with_all_gates_closed_is_the_identity():
    gated = random_gated(small_vit())
    gated.blocks[0].mlp.block_gate.logit.data.fill_(-1)
    x = torch.randn(2, 5, 32)
    assert torch.equal(gated.blocks[0](x), x)
    block = hiap.extract(gated).blocks[0]
    assert torch.equal(block(x), x)
    assert sum(p.numel() for p in block.parameters()) == 0, "its norms go too"


def test_v_cut_qkv_removes_what_was_never_gated_and_so_changes_the_function(images):
    """A4: section 3.4's text taken literally is not function-preserving; Eq. 3's reading is."""
    model = small_vit()
    for block in model.blocks:  # attention that depends on its input
        block.attn.qkv.weight.data *= 20
    kept = gated_vit.masks(random_gated(model))
    outputs = []
    for mode in ("v", "v-cut-qkv"):
        gated = hiap.gate(model, dims=mode).eval()
        gated_vit.set_masks(gated, kept)
        with torch.no_grad():
            outputs.append(hiap.extract(gated)(images))
    assert relative(outputs[1], outputs[0]) > 1e-3


def test_removing_one_unit_saves_its_true_price():
    model = timm.create_model("deit_small_patch16_224")
    dense = hiap.macs(model, (3, 224, 224))
    assert (dense, hiap.params(model)) == (4_598_882_304, 22_050_664)
    prices = ledger.true_prices(197, 384, 64)

    def saved(close):
        gated = hiap.gate(model)
        close(gated.blocks[4])
        return dense - hiap.macs(hiap.extract(gated), (3, 224, 224))

    assert saved(lambda b: b.attn.value_gate.logit.data[2, 7].fill_(-1)) == prices.value_dim == 190_105
    assert saved(lambda b: b.mlp.neuron_gate.logit.data[9].fill_(-1)) == prices.neuron
    assert saved(lambda b: b.attn.head_gate.logit.data[1].fill_(-1)) == prices.head + 64 * prices.value_dim
    assert saved(lambda b: b.mlp.block_gate.logit.data.fill_(-1)) == 1536 * prices.neuron


@pytest.mark.parametrize("mode", MODES)
def test_expected_macs_of_decided_gates_are_the_extracted_macs(mode):
    gated = random_gated(small_vit(), dims=mode)
    kept = gated_vit.masks(gated)
    gated_vit.set_masks(gated, kept)
    small = hiap.extract(gated)
    counted = hiap.macs(small, (1, 16, 16))
    assert hiap.expected_cost(gated).macs.item() == pytest.approx(counted, rel=1e-5)
    dims = cost.dims_of(gated)
    assert kept_cost(ledger.mac_prices(dims), kept, dims.head_dim, mode != "v") == counted


def test_expected_cost_is_eq_5_and_linear_in_the_joint_gates():
    gated = hiap.gate(small_vit())
    scatter_logits(gated)
    n, d, dh = 17, 32, 8
    c1, c2, c3 = 2 * n * d * 3 * dh + 2 * n * n * dh, 2 * n * d + 2 * n * n, 4 * n * d
    total = 0.0
    for b in gated.blocks:
        g, v = torch.sigmoid(b.attn.head_gate.logit), torch.sigmoid(b.attn.value_gate.logit)
        f, c = torch.sigmoid(b.mlp.block_gate.logit), torch.sigmoid(b.mlp.neuron_gate.logit)
        total += (c1 * g + c2 * (g[:, None] * v).sum(1)).sum() + c3 * (f * c).sum()
    assert hiap.expected_cost(gated).flops.item() == pytest.approx(total.item(), rel=1e-6)  # type: ignore[attr-defined]


def test_extraction_refuses_what_it_cannot_do():
    model = small_vit()
    with pytest.raises(ValueError, match="no gates"):
        hiap.extract(model)
    gated = hiap.gate(model)
    for b in gated.blocks:
        b.attn.head_gate.logit.data.fill_(-1)
    with pytest.raises(ValueError, match="no head is left"):
        hiap.extract(gated)
    with pytest.raises(ValueError, match="expected one of"):
        hiap.set_layout(model, "sideways")


@pytest.mark.parametrize("image", [(3, 16, 16), (1, 20, 16)])
def test_macs_refuse_an_image_that_does_not_fit(image):
    with pytest.raises(ValueError, match="the model takes"):
        hiap.macs(small_vit(), image)


def test_an_image_that_is_no_multiple_of_the_patch_is_counted_where_the_network_takes_it():
    model = small_vit(img_size=18)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 1, 18, 18))
    assert hiap.macs(model, (1, 18, 18)) == counter.get_total_flops() // 2


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("image", [(1, 16, 24), (1, 18, 16), (1, 16, 15)])
def test_macs_are_told_of_the_images_that_the_network_takes(padded, image):
    model = small_vit(dynamic_img_size=True, dynamic_img_pad=padded)
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, *image))
    except AssertionError:
        with pytest.raises(ValueError, match="the model takes whole patches"):
            hiap.macs(model, image)
    else:
        assert hiap.macs(model, image) == counter.get_total_flops() // 2


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qk_norm": True, "init_values": 0.1},
        {"class_token": False, "global_pool": "avg", "reg_tokens": 3, "no_embed_class": True},
        {"qkv_bias": False, "proj_bias": False, "pre_norm": True},
    ],
)
def test_folders_give_back_the_very_network(images, tmp_path, changes):
    model = small_vit(**changes)
    for saved in (model, hiap.extract(random_gated(model))):
        hiap.save(saved, tmp_path / "net")
        loaded = hiap.load(tmp_path / "net")
        assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in saved.state_dict().items())
        with torch.no_grad():
            assert torch.equal(loaded(images), saved(images))
        assert sorted(p.name for p in (tmp_path / "net").iterdir()) == [ARCHITECTURE, WEIGHTS]
    assert [p.name for p in tmp_path.iterdir()] == ["net"], "nothing temporary is left"
    hiap.save(model, tmp_path / "net")
    hiap.gate(hiap.load(tmp_path / "net"))  # a dense network from disk can be gated again


def test_damaged_and_foreign_folders_are_one_clear_line(tmp_path):
    folder = tmp_path / "net"
    with pytest.raises(StoreError, match=r"expected architecture\.json"):
        hiap.load(folder)
    hiap.save(small_vit(), folder)
    spec = json.loads((folder / ARCHITECTURE).read_text())
    weights = (folder / WEIGHTS).read_bytes()
    for change, message in (
        ({"version": 3}, "not format hiap-vit 2: version"),
        ({"version": 1}, "not format hiap-vit 1: KeyError"),
        ({"format": "onnx"}, "not format hiap-vit 2: format"),
        ({"import": "os"}, "not format hiap-vit 2: import"),
        ({"arguments": {**spec["arguments"], "patch_size": [8, 8]}}, "weights do not fit"),
        ({"arguments": {**spec["arguments"], "patch_size": [0, 0]}}, "not format hiap-vit 2: arguments.patch_size"),
        ({"arguments": {**spec["arguments"], "embed_dim": 0}}, "not format hiap-vit 2: arguments.embed_dim"),
        ({"arguments": {"checkpoint_path": "weights.pth"}}, "not format hiap-vit 2: arguments.checkpoint_path"),
        ({"arguments": {"pretrained": True}}, "not format hiap-vit 2: arguments.pretrained"),
        ({"parts": {"forward": {"is": "Identity"}}}, "forward: no part of a VisionTransformer"),
        ({"parts": {"head": {"is": "os.system", "command": "true"}}}, "weights do not fit"),
        ({"blocks": spec["blocks"][:2]}, "weights do not fit"),
        ({"blocks": [5]}, "not format hiap-vit 2: blocks.0"),
    ):
        (folder / ARCHITECTURE).write_text(json.dumps({**spec, **change}))
        with pytest.raises(StoreError, match=message) as error:
            hiap.load(folder)
        assert "\n" not in str(error.value)
    (folder / ARCHITECTURE).write_bytes(b"\xff\xfe")
    with pytest.raises(StoreError, match=r"expected architecture\.json and weights"):
        hiap.load(folder)
    (folder / ARCHITECTURE).write_text(json.dumps(spec))
    (folder / WEIGHTS).write_bytes(weights[: len(weights) // 2])
    with pytest.raises(StoreError, match=r"expected architecture\.json and weights"):
        hiap.load(folder)


def test_saving_over_somebody_elses_folder_is_refused(tmp_path):
    folder = tmp_path / "net"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match=r"thesis\.tex"):
        hiap.save(small_vit(), folder)
    assert (folder / "thesis.tex").read_text() == "years of work"
    assert [p.name for p in tmp_path.iterdir()] == ["net"]


def test_saving_a_gated_model_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(hiap.UnsupportedModelError, match="extract"):
        hiap.save(hiap.gate(small_vit()), tmp_path / "net")
    assert list(tmp_path.iterdir()) == []
