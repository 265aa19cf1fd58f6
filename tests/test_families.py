"""Families of ViTs beside the plain one: masked = extracted, counted = measured, saved, loaded, as for a plain one."""

from __future__ import annotations

import csv
import inspect
from functools import partial
from typing import Any

import pytest
import timm
import torch
from conftest import scatter_logits, small_vit
from test_extraction import counted_macs, relative
from timm.layers import GluMlp, Mlp, RmsNorm, SwiGLU
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from timm.models.vitamin import GeGluMlp

import hiap
from hiap import cost, gated_vit, ledger
from hiap.backbones.parts import TokenAndMean, open_norm
from hiap.budget.prices import hardened_macs, kept_cost, param_prices
from hiap.budget.selection import kept_units
from hiap.budget.summary import block_shapes
from hiap.formats import export, supported
from hiap.formats.store import StoreError

SIZES: dict[str, Any] = {
    "img_size": 16,
    "patch_size": 4,
    "in_chans": 1,
    "num_classes": 10,
    "embed_dim": 32,
    "depth": 3,
    "num_heads": 4,
}
FAMILIES: dict[str, tuple[type, dict[str, Any]]] = {
    "attention pool": (VisionTransformer, {"global_pool": "map", "class_token": False, "act_layer": "gelu_tanh"}),
    "packed GLU": (VisionTransformer, {"mlp_layer": partial(GluMlp, gate_last=False), "init_values": 0.3}),
    "GLU, gate last": (VisionTransformer, {"mlp_layer": GluMlp}),
    "SwiGLU apart": (VisionTransformer, {"mlp_layer": SwiGLU, "embed_norm_layer": RmsNorm, "norm_layer": RmsNorm}),
    "GeGLU with a norm": (VisionTransformer, {"mlp_layer": partial(GeGluMlp, act_layer="gelu")}),
    "inner norms": (VisionTransformer, {"scale_attn_norm": True, "scale_mlp_norm": True, "proj_bias": False}),
    "norms behind": (VisionTransformer, {"block_fn": ResPostBlock, "init_values": 0.3}),
    "EVA": (Eva, {}),
    "EVA-02": (Eva, {"use_rot_pos_emb": True, "qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True}),
    "EVA-02 CLIP": (Eva, {"use_rot_pos_emb": True, "scale_attn_inner": True, "ref_feat_shape": (3, 3)}),
    "EVA, norms behind": (Eva, {"use_post_norm": True, "global_pool": "token"}),
    "DINOv3": (
        Eva,
        {"use_rot_pos_emb": True, "rope_type": "dinov3", "rope_rotate_half": True, "use_abs_pos_emb": False}
        | {"num_reg_tokens": 2, "init_values": 0.3, "dynamic_img_size": True, "swiglu_mlp": True, "swiglu_align_to": 8},
    ),
    "mixed angles": (Eva, {"use_rot_pos_emb": True, "rope_type": "mixed", "attn_type": "rope", "qk_norm": True}),
    "PE": (
        Eva,
        {"use_rot_pos_emb": True, "attn_type": "rope", "global_pool": "map", "use_pre_transformer_norm": True}
        | {"rope_grid_offset": 1.0, "rope_grid_indexing": "xy", "attn_pool_num_heads": 2},
    ),
    "BEiT": (Beit, {"use_rel_pos_bias": True, "use_abs_pos_emb": False, "init_values": 0.3}),
}


def made(cls: Any, **changes: Any) -> Any:
    """Skips what an older timm does not have."""
    if missing := changes.keys() - inspect.signature(cls).parameters.keys():
        pytest.skip(f"{cls.__name__} of timm {timm.__version__} has no {missing}")
    return cls(**SIZES, **changes)


def small(family: str) -> Any:
    """In double precision, and with random biases, scales and tables: timm starts them at 0 or 1."""
    cls, changes = FAMILIES[family]
    torch.manual_seed(0)
    model = made(cls, **changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
            if "qkv" in name or "_proj" in name:
                parameter.mul_(4)  # attention that depends on its input
    return model.eval().double()


def random_gated(model: Any, seed: int, **options: Any) -> Any:
    """Random gates; the first block loses its attention, the second its FFN."""
    gated = hiap.gate(model, **options)
    scatter_logits(gated, seed)
    gated.double().blocks[0].attn.head_gate.logit.data.fill_(-1)
    gated.blocks[0].mlp.block_gate.logit.data.fill_(1)
    gated.blocks[1].mlp.block_gate.logit.data.fill_(-1)
    for block in gated.blocks[1:]:
        block.attn.head_gate.logit.data[:2] = 1
    return gated.eval()


@pytest.fixture
def pictures(images: torch.Tensor) -> torch.Tensor:
    return images.double()


@pytest.mark.parametrize("layout", ["ragged", "padded"])
@pytest.mark.parametrize("attn_bias", ["gated", "kept"])
@pytest.mark.parametrize("family", FAMILIES)
def test_masked_is_extracted_and_counted_is_measured(family, attn_bias, layout, pictures):
    model = small(family)
    for seed in range(2):
        gated = random_gated(model, seed, attn_bias=attn_bias)
        with torch.no_grad():
            masked = gated(pictures)
            small_net = hiap.extract(gated, layout)
            assert type(small_net) is type(model)
            assert relative(small_net(pictures), masked) < 1e-10
        assert relative(masked, model(pictures).detach()) > 1e-3, "the gates must matter"
        executed = hiap.macs(small_net, (1, 16, 16), executed=True)
        assert executed == counted_macs(small_net.float(), (1, 16, 16))


@pytest.mark.parametrize("family", FAMILIES)
def test_rounded_to_multiples_masked_is_extracted(family, pictures):
    gated = random_gated(small(family), 1)
    small_net = hiap.extract(gated, multiple=4)
    gated_vit.harden_to(gated, kept_units(gated, multiple=4))
    with torch.no_grad():
        assert relative(small_net(pictures), gated(pictures)) < 1e-10
    assert all(width % 4 == 0 for block in block_shapes(small_net) for width in (*block.head_dims, block.neurons))


@pytest.mark.parametrize("attn_bias", ["gated", "kept"])
@pytest.mark.parametrize("family", FAMILIES)
def test_prices_are_what_is_left(family, attn_bias):
    model = small(family).float()
    gated, dims = random_gated(model, 3, attn_bias=attn_bias), cost.dims_of(model)
    kept, left = gated_vit.masks(gated), hiap.extract(gated)
    assert kept_cost(ledger.mac_prices(dims), kept, dims.head_dim) == hiap.macs(left, (1, 16, 16))
    assert kept_cost(param_prices(gated), kept, dims.head_dim) == hiap.params(left)
    assert ledger.dense_macs(dims) == hiap.macs(model, (1, 16, 16)) == counted_macs(model, (1, 16, 16))
    assert hiap.params(gated) == hiap.params(model)
    gated_vit.set_masks(gated, kept)
    assert hiap.expected_cost(gated).macs.item() == pytest.approx(hiap.macs(left, (1, 16, 16)), rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_open_gates_change_nothing_and_a_pruner_meets_its_target(family, pictures):
    model = small(family)
    gated = hiap.gate(model).double().eval()
    with torch.no_grad():
        assert relative(gated(pictures), model(pictures)) < 1e-10
    pruner = hiap.Pruner(model.float().train(), steps=3, target_macs=0.6)
    optimizer = torch.optim.AdamW(pruner.param_groups(lr=1e-3))
    for _ in range(3):
        loss = pruner.model(pictures.float()).square().mean() + pruner.penalty()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in pruner.model.parameters())
        optimizer.step()
        pruner.step()
    left, dense = hiap.macs(pruner.finish(), (1, 16, 16)), hiap.macs(model, (1, 16, 16))
    assert 0.55 * dense < left <= 0.6 * dense


@pytest.mark.parametrize("family", FAMILIES)
def test_folders_give_back_the_very_network_which_can_be_gated(family, pictures, tmp_path):
    model = small(family).float()
    extracted = hiap.extract(random_gated(model, 1).float())
    for saved in (model, extracted):
        hiap.save(saved, tmp_path / "net")
        loaded = hiap.load(tmp_path / "net")
        assert hiap.params(loaded) == hiap.params(saved)
        with torch.no_grad():
            assert relative(loaded(pictures.float()), saved(pictures.float())) < 1e-6
    hiap.save(model, tmp_path / "net")
    hiap.gate(hiap.load(tmp_path / "net"))


def test_a_table_of_scores_leaves_with_its_heads_and_keeps_timms_name():
    gated = random_gated(small("BEiT").float(), 0)
    gated.blocks[2].attn.head_gate.logit.data[:] = torch.tensor([1.0, -1.0, -1.0, 1.0])
    gated.blocks[2].attn.value_gate.logit.data.fill_(1)
    attn = hiap.extract(gated).blocks[2].attn
    table = gated.blocks[2].attn.position.relative_position_bias_table
    assert torch.equal(attn.position.relative_position_bias_table, table[:, [0, 3]])
    assert "blocks.2.attn.position.relative_position_bias_table" in gated.no_weight_decay()


def test_a_norm_over_open_units_is_the_norm_of_those_that_are_left():
    torch.manual_seed(0)
    x, kept = torch.randn(2, 3, 12), torch.tensor([1.0, 0, 1, 1, 0, 1, 1, 0, 0, 1, 1, 1])
    for norm in (torch.nn.LayerNorm(12), RmsNorm(12)):
        torch.nn.init.normal_(norm.weight)
        assert torch.allclose(open_norm(norm, x, torch.ones(12)), norm(x), atol=1e-6)
        alone = x[..., kept.bool()]
        mean = alone.mean(-1, keepdim=True) if isinstance(norm, torch.nn.LayerNorm) else 0
        expected = (alone - mean) / ((alone - mean).square().mean(-1, keepdim=True) + norm.eps).sqrt()
        assert torch.allclose(
            open_norm(norm, x, kept)[..., kept.bool()], expected * norm.weight[kept.bool()], atol=1e-6
        )
        assert open_norm(norm, x, torch.zeros(12)).isfinite().all()


def test_heads_that_share_k_and_v_are_refused():
    shared = made(Eva, attn_type="rope", qkv_fused=False, num_kv_heads=2)
    with pytest.raises(hiap.UnsupportedModelError, match=r"blocks\.0\.attn \(AttentionRope\): heads that share"):
        hiap.gate(shared)


def test_what_the_families_cannot_do_is_one_line(tmp_path):
    with pytest.raises(hiap.UnsupportedModelError, match=r"blocks\.0\.attn\.position: gates\.dims 'qkv' cannot cut"):
        hiap.gate(small("DINOv3"), dims="qkv")
    with pytest.raises(hiap.UnsupportedModelError, match="rel_pos_bias"):
        hiap.gate(Beit(**SIZES, use_shared_rel_pos_bias=True))
    with pytest.raises(hiap.UnsupportedModelError, match=r"blocks\.0: a branch is gone"):
        hiap.gate(hiap.extract(random_gated(small("EVA"), 0)))
    mixed = small_vit()
    mixed.blocks[1].mlp = Mlp(32, 64)
    with pytest.raises(hiap.UnsupportedModelError, match=r"blocks\.1: .* blocks\.0 has"):
        hiap.gate(mixed)
    with pytest.raises(export.ExportError, match="Eva: expected a timm VisionTransformer"):
        export.to_timm(hiap.extract(random_gated(small("EVA"), 0)))
    hybrid = timm.create_model("vit_tiny_r_s16_p8_224", depth=1, img_size=64)
    hybrid.pretrained_cfg = {}
    with pytest.raises(hiap.UnsupportedModelError, match=r"patch_embed \(HybridEmbed\)"):
        hiap.save(hybrid, tmp_path / "net")


@pytest.mark.parametrize("stem", ["os.system", "hf-hub:somebody/model", "resnet18"])
def test_a_stem_is_an_entry_of_timm_or_nothing(stem, tmp_path):
    folder = tmp_path / "net"
    hiap.save(timm.create_model("vit_tiny_r_s16_p8_224", depth=1, img_size=64), folder)
    text = (folder / "architecture.json").read_text()
    (folder / "architecture.json").write_text(text.replace("vit_tiny_r_s16_p8_224", stem))
    with pytest.raises(StoreError, match="weights do not fit the architecture") as error:
        hiap.load(folder)
    assert "\n" not in str(error.value)


def test_the_class_token_beside_the_mean_pools_as_dinov2_does(pictures, tmp_path):
    model: Any = small_vit(reg_tokens=2)
    model.attn_pool, model.pool_include_prefix, model.head = TokenAndMean(3), True, torch.nn.Linear(64, 10)
    left = hiap.extract(random_gated(model, 0).float())
    assert hiap.macs(left, (1, 16, 16), executed=True) == counted_macs(left, (1, 16, 16))
    hiap.save(left, tmp_path / "net")
    with torch.no_grad():
        assert torch.equal(hiap.load(tmp_path / "net")(pictures.float()), left(pictures.float()))


def test_images_need_not_be_square():
    model = VisionTransformer(**{**SIZES, "img_size": (16, 24)}).eval()
    gated = random_gated(model, 0).float()
    left = hiap.extract(gated)
    assert hiap.macs(left, (1, 16, 24)) == hardened_macs(gated)
    assert ledger.dense_macs(cost.dims_of(model)) == counted_macs(model, (1, 16, 24))


KINDS = ["vit_base_patch16_siglip_224", "vit_giant_patch14_dinov2", "aimv2_large_patch14_224", "beit3_base_patch16_224"]
KINDS += ["vit_base_patch16_dinov3_qkvb", "vit_base_patch16_rope_mixed_224", "eva02_base_patch16_clip_224"]
KINDS += ["vit_pe_core_tiny_patch16_384", "beit_base_patch16_224", "vitamin_small_224", "vit_tiny_r_s16_p8_224"]


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_an_entry_of_timm_goes_the_whole_way(name, tmp_path):
    pytest.importorskip("onnxruntime")
    with torch.device("meta"):
        model = timm.create_model(name, depth=2)
    found = supported.go(supported.small(name, model), tmp_path / "net", onnx=True)
    assert (found["MACs"], found["parameters"]) == (0, 0)
    assert max(found["extracted"], found["loaded"]) < 1e-5
    assert found["onnx"] < 1e-4


@pytest.mark.slow
def test_the_table_is_what_timm_has():
    """Of another version of timm than the committed table's, the entries that both have."""
    ours = {row["entry"]: row for row in csv.DictReader(supported.TABLE.read_text().splitlines())}
    now = {row["entry"]: row for row in csv.DictReader(supported.table().splitlines())}
    both = ours.keys() & now.keys()
    assert len(both) > 200
    assert {name: ours[name] for name in both} == {name: now[name] for name in both}
    assert sum(row["supported"] == "yes" for row in ours.values()) >= 250
