"""Uses that once ended in a wrong number without a word: found by people who tried to break the library."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.layers import SwiGLU
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import hiap
from hiap import gated_vit
from hiap.backbones.errors import UnsupportedModelError
from hiap.budget import prices
from hiap.options import ConfigError

IMAGES, IMAGE = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0)), (3, 32, 32)
TINY: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}


def vit(kind: Any = VisionTransformer, **sizes: Any) -> Any:
    torch.manual_seed(0)
    model = kind(**{**TINY, **sizes})
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


def phase(look: bool, **options: Any) -> int:
    """MACs after a phase, which was looked at on its way or not."""
    pruner = hiap.Pruner(vit().train(), steps=30, lambda_macro=1.0, lambda_micro=1.0, **options)
    optimizer = torch.optim.AdamW(pruner.param_groups(lr=1e-3, gate_lr=0.3))
    labels = torch.arange(8) % 5
    for step in range(30):
        torch.manual_seed(step)
        (hiap.distillation_loss(pruner.model(IMAGES[:8]), labels) + pruner.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
        if look and step == 3:
            pruner.harden()
    return hiap.macs(pruner.finish(), IMAGE)


@pytest.mark.parametrize("options", [{"multiple": 2}, {"keep": {"blocks.0.attn": [0]}}])
def test_to_look_at_a_phase_decides_nothing(options: dict[str, Any]) -> None:
    left = phase(look=False, **options)
    assert left < hiap.macs(vit(), IMAGE)
    assert phase(look=True, **options) == left


def test_a_correction_is_the_same_inside_autocast() -> None:
    model = vit().eval()
    small = hiap.extract(hiap.gate(model), target_macs=0.5).eval()
    plain = hiap.correct(copy.deepcopy(small), model, IMAGES)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = hiap.correct(copy.deepcopy(small), model, IMAGES)
    assert torch.equal(plain(IMAGES), mixed(IMAGES))


def test_a_correction_that_fails_leaves_the_network_as_it_was() -> None:
    model = vit().eval()
    small = hiap.extract(hiap.gate(model), target_macs=0.8).eval()
    before = copy.deepcopy(small.state_dict())
    with torch.no_grad():
        model.blocks[1].mlp.fc2.bias.fill_(float("inf"))
    with pytest.raises(ValueError, match="not finite"):
        hiap.correct(small, model, IMAGES)
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())


@pytest.mark.parametrize(
    ("change", "said"),
    [({"images": IMAGES[:0]}, "no images"), ({"ridge": "x"}, "ridge x"), ({"ridge": float("inf")}, "ridge inf")],
)
def test_a_correction_of_nothing_is_refused(change: dict[str, Any], said: str) -> None:
    model = vit().eval()
    small = hiap.extract(hiap.gate(model), target_macs=0.8).eval()
    with pytest.raises(ValueError, match=said):
        hiap.correct(small, model, **{"images": IMAGES, **change})
    with pytest.raises(ValueError, match="extract it first"):
        hiap.correct(hiap.gate(model), model, IMAGES)


def test_a_branch_that_gives_nothing_is_corrected_by_nothing() -> None:
    model = vit(act_layer=nn.ReLU).eval()
    with torch.no_grad():
        model.blocks[0].mlp.fc1.bias.fill_(-50)
    assert hiap.macs(hiap.prune(model, IMAGES, target_macs=0.9), IMAGE) < hiap.macs(model, IMAGE)


def test_what_a_file_cannot_hold_is_told_or_refused(tmp_path: Path) -> None:
    model = vit().eval()
    model.head.register_forward_hook(lambda _, args, output: output / 4)
    with pytest.warns(UserWarning, match="hooks of head are not taken along"):
        hiap.save(model, tmp_path / "hooked")
    model = vit().eval()
    model.forward_head = MethodType(lambda self, x, pre_logits=False: self.head(x.mean(1)), model)
    with pytest.raises(UnsupportedModelError, match="its forward_head was replaced on this instance"):
        hiap.save(model, tmp_path / "bound")


class Neck(VisionTransformer):
    def __init__(self, **sizes: Any):
        super().__init__(**sizes)
        self.neck = nn.Sequential(nn.Linear(32, 64), nn.Linear(64, 32))


def test_a_part_that_no_count_knows_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"neck .*cost is not known"):
        hiap.macs(vit(Neck), IMAGE)
    model = vit()
    model.patch_embed.proj.stride = (4, 4)
    with pytest.raises(UnsupportedModelError, match="expected patches side by side"):
        hiap.macs(model, IMAGE)


def test_a_parametrized_layer_of_the_head_is_counted() -> None:
    model, plain = vit(), vit()
    last = nn.utils.parametrizations.weight_norm(nn.Linear(40, 5))
    model.head = nn.Sequential(nn.Linear(32, 40), nn.GELU(), last)
    assert hiap.macs(model, IMAGE) - hiap.macs(plain, IMAGE) == 32 * 40 + 40 * 5 - 32 * 5


@pytest.mark.parametrize("image", [(3, -32, 32), (3, 0, 0), (3, 32.0, 32)])
def test_an_image_without_a_size_is_refused(image: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        hiap.macs(vit(dynamic_img_size=True), image)


def test_an_image_that_is_padded_to_whole_patches_counts_as_such() -> None:
    model, image = vit(img_size=36, dynamic_img_size=True, dynamic_img_pad=True), (3, 36, 36)
    small = hiap.prune(model, torch.randn(16, *image), target_macs=0.5)
    assert hiap.macs(small, image) / hiap.macs(model, image) == pytest.approx(0.5, abs=0.01)
    gated = hiap.gate(model)
    for _, gate in hiap.named_gates(gated):
        nn.init.constant_(gate.logit, 20.0)
    assert float(hiap.expected_cost(gated).macs.detach()) == pytest.approx(hiap.macs(model, image))


def test_a_target_of_other_images_is_refused() -> None:
    pruner = hiap.Pruner(vit().train(), steps=2, target_macs=0.5)
    pruner.model.set_input_size(img_size=96)
    with pytest.raises(ConfigError, match="made for 17 tokens an image, and the network has 145 now"):
        pruner.harden()
    pruner = hiap.Pruner(vit().train(), steps=2, target_params=0.5)
    pruner.model.reset_classifier(9)
    with pytest.raises(ConfigError, match="made for 5 classes, and the network has 9 now"):
        pruner.harden()


def test_a_network_with_gates_has_nothing_to_show() -> None:
    with pytest.raises(ConfigError, match="still has its gates"):
        hiap.show(hiap.gate(vit()))


def test_gates_are_of_full_precision_whatever_the_default_is() -> None:
    torch.set_default_dtype(torch.bfloat16)
    try:
        gated = hiap.gate(VisionTransformer(**TINY))
    finally:
        torch.set_default_dtype(torch.float32)
    assert {gate.logit.dtype for _, gate in hiap.named_gates(gated)} == {torch.float32}


@pytest.mark.parametrize("name", ["vit_giant_patch14_dinov2", "vit_giant_patch14_reg1_tipsv2"])
def test_plain_attention_beside_a_gated_ffn_can_be_pruned(name: str) -> None:
    if not timm.is_model(name):
        pytest.skip("not in this timm")
    model = timm.create_model(name, num_classes=5, img_size=28, embed_dim=48, depth=2, num_heads=3)
    small = hiap.prune(model, torch.randn(16, 3, 28, 28), target_macs=0.5)
    assert hiap.macs(small, (3, 28, 28)) <= 0.5 * hiap.macs(model, (3, 28, 28))


def test_a_beit_without_an_attention_survives_a_pickle() -> None:
    gated = hiap.gate(vit(Beit, use_rel_pos_bias=True).eval())
    nn.init.constant_(gated.blocks[1].attn.head_gate.logit, -5.0)
    file = io.BytesIO()
    torch.save(hiap.extract(gated), file)
    file.seek(0)
    for found in (again := torch.load(file, weights_only=False), copy.deepcopy(again)):
        found.set_input_size(img_size=64)
        assert found(torch.randn(1, 3, 64, 64)).shape == (1, 5)
        assert len(found.blocks) == 2


def test_weights_that_are_frozen_stay_so_where_halves_are_joined() -> None:
    model = vit(mlp_layer=SwiGLU)
    for name, p in model.named_parameters():
        p.requires_grad_(name.endswith("bias"))
    found = {name: p.requires_grad for name, p in hiap.gate(model).named_parameters() if "fc1" in name}
    assert found == {name: name.endswith("bias") for name in found}


def test_every_module_keeps_its_mode() -> None:
    model = vit().train()
    model.patch_embed.eval()
    small = hiap.extract(hiap.gate(model), target_macs=0.8)
    hiap.correct(small, model, IMAGES)
    for one in (hiap.Pruner(model, steps=2).model, model, small):
        assert not one.patch_embed.training
        assert one.training
        assert one.blocks[0].training


def test_a_shrink_is_one_pruners() -> None:
    shrink = hiap.Shrink()
    hiap.Pruner(vit().train(), steps=2, target_macs=0.5, shrink=shrink)
    with pytest.raises(ConfigError, match=r"make a hiap\.Shrink for each"):
        hiap.Pruner(vit().train(), steps=2, target_macs=0.5, shrink=shrink)


def test_a_wrapped_network_is_named_as_such() -> None:
    with pytest.raises(UnsupportedModelError, match=r"give what it wraps: model\._orig_mod"):
        hiap.extract(torch.compile(hiap.gate(vit()), backend="eager"))


def test_dropout_that_was_taken_out_is_none() -> None:
    model = vit()
    for block in model.blocks:
        block.attn.attn_drop = block.attn.proj_drop = block.mlp.drop1 = nn.Identity()
    assert hiap.macs(hiap.prune(model, IMAGES, target_macs=0.5), IMAGE) <= 0.5 * hiap.macs(model, IMAGE)


class WithAdapter(nn.Linear):
    def __init__(self, layer: nn.Linear):
        super().__init__(layer.in_features, layer.out_features)
        self.load_state_dict(layer.state_dict())
        self.down = nn.Linear(layer.in_features, 2)


def test_what_is_put_on_gated_layers_is_refused_or_told() -> None:
    pruner = hiap.Pruner(vit().train(), steps=4, target_macs=0.6)
    pruner.model.blocks[1].attn.qkv.register_forward_hook(lambda *_: None)
    with pytest.warns(UserWarning, match=r"blocks\.1\.attn\.qkv: has hooks; .* not called"):
        pruner.penalty()
    pruner = hiap.Pruner(vit().train(), steps=4, target_macs=0.6)
    pruner.model.blocks[0].mlp.fc1 = WithAdapter(pruner.model.blocks[0].mlp.fc1)
    with pytest.raises(UnsupportedModelError, match=r"blocks\.0\.mlp\.fc1 .* put adapters on the network that"):
        pruner.penalty()


def test_nothing_is_written_into_weights_that_are_computed() -> None:
    model = vit().eval()
    small = hiap.extract(hiap.gate(model), target_macs=0.8).eval()
    for block in small.blocks:
        nn.utils.parametrizations.weight_norm(block.mlp.fc2)
    with pytest.raises(UnsupportedModelError, match=r"blocks\.0\.mlp\.fc2: its weights are computed"):
        hiap.correct(small, model, IMAGES)
    nn.utils.parametrizations.weight_norm(model.blocks[1].attn.qkv)
    with pytest.raises(UnsupportedModelError, match=r"blocks\.1\.attn\.qkv: its weights are computed"):
        hiap.prune(model, IMAGES, target_macs=0.5)


def test_shared_weights_have_no_price_in_parameters() -> None:
    model = vit(depth=3)
    for block in model.blocks[1:]:
        block.mlp.fc1.weight = model.blocks[0].mlp.fc1.weight
    hiap.Pruner(model.train(), steps=4, target_macs=0.6)  # MACs are each block's own
    with pytest.raises(UnsupportedModelError, match=r"blocks\.1\.mlp\.fc1\.weight is blocks\.0\.mlp\.fc1\.weight, too"):
        prices.param_prices(model)


@pytest.mark.parametrize("where", ["norm1", "ls2", "drop_path1"])
def test_a_map_that_no_count_knows_is_refused(where: str) -> None:
    model = vit()
    for block in model.blocks:
        setattr(block, where, nn.Sequential(getattr(block, where), nn.Linear(32, 32)))
    with pytest.raises(UnsupportedModelError, match=rf"blocks\.0\.{where}\.1 \(Linear\): a layer whose cost"):
        hiap.macs(model, IMAGE)


class Affine(nn.Module):
    def __init__(self, count: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(count)), nn.Parameter(torch.ones(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight + self.bias


def test_a_branch_that_goes_leaves_what_the_map_behind_it_makes_of_nothing() -> None:
    model = vit()
    for block in model.blocks:
        block.ls1, block.ls2 = Affine(32), Affine(32)
    gated = hiap.gate(model)
    kept = gated_vit.masks(gated)
    for part in (kept[0].heads, kept[0].dims, kept[1].ffn, kept[1].neurons):
        part.fill_(False)
    gated_vit.set_masks(gated, kept)
    gated.eval()
    torch.testing.assert_close(hiap.extract(gated).eval()(IMAGES), gated(IMAGES))


def test_steps_of_any_integer_can_be_resumed() -> None:
    def pruner() -> hiap.Pruner:
        return hiap.Pruner(vit().train(), steps=np.int64(4), seed=np.int64(1), target_macs=0.6)

    first, file = pruner(), io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    pruner().load_state_dict(torch.load(file, weights_only=True))
