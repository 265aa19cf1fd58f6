"""Folders of ``hiap.save``: what version 1 wrote is read, and a name stands for what it builds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import small_vit
from test_families import FAMILIES, SIZES, made, random_gated, small
from test_losses import mixed
from timm.layers import Mlp
from timm.models.deit import VisionTransformerDistilled
from torch import nn

import hiap
from hiap.backbones.evening import trimmed
from hiap.backbones.parts import TokenAndMean
from hiap.formats.store import ARCHITECTURE, StoreError

OLD = Path(__file__).with_name("version1.json")  # what hiap 0.3.0 wrote of these networks


def cut(model: Any) -> Any:
    return hiap.extract(random_gated(model, 1).float()).eval()


def token_beside_mean() -> Any:
    model: Any = small_vit(reg_tokens=2)
    model.attn_pool, model.pool_include_prefix, model.head = TokenAndMean(3), True, nn.Linear(64, 10)
    return cut(model)


def narrow_queries() -> Any:
    left = hiap.extract(hiap.gate(small_vit()))
    with torch.no_grad():
        for block in left.blocks:
            block.attn.qkv.weight[:64].unflatten(0, (2, 4, 8))[:, 1:, 5:] = 0
            block.attn.qkv.bias[:64].unflatten(0, (2, 4, 8))[:, 1:, 5:] = 0
    return trimmed(left).eval()


def with_a_head() -> Any:
    model: Any = small_vit()
    model.head = mixed()
    return model.eval()


def with_rates() -> Any:
    rates = {"drop_rate": 0.1, "pos_drop_rate": 0.15, "patch_drop_rate": 0.25, "proj_drop_rate": 0.2}
    rates |= {"attn_drop_rate": 0.3, "drop_path_rate": 0.4}
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 3}
    model: Any = timm.create_model(
        "vit_tiny_patch16_224", **sizes, **rates, dynamic_img_size=True, dynamic_img_pad=True
    )
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": ("a", "b", "c"), "label_descriptions": {"a": "A"}}
    return cut(model)


def two_heads() -> Any:
    torch.manual_seed(0)
    return cut(made(VisionTransformerDistilled))


NETWORKS: dict[str, Callable[[], Any]] = {
    **{family: lambda family=family: cut(small(family).float()) for family in FAMILIES},
    "dense": small_vit,
    "dense EVA-02": lambda: small("EVA-02").float(),
    "dense BEiT": lambda: small("BEiT").float(),
    "norms of Q and K, no class token": lambda: cut(
        small_vit(qk_norm=True, init_values=0.1, class_token=False, global_pool="avg", reg_tokens=3, pre_norm=True)
    ),
    "token beside mean": token_beside_mean,
    "narrow queries": narrow_queries,
    "layers for a head": with_a_head,
    "rates, labels, frozen": with_rates,
    "two heads": two_heads,
    "stem": lambda: timm.create_model("vit_tiny_r_s16_p8_224", depth=2, img_size=64, num_classes=5).eval(),
}


def images_for(model: Any) -> torch.Tensor:
    height, width = model.patch_embed.img_size
    size = (2, hiap.backbones.families.channels(model.patch_embed), height, width)
    return torch.randn(size, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", NETWORKS)
def test_what_version_1_wrote_is_read_and_written_again(name: str, tmp_path: Path) -> None:
    model = NETWORKS[name]()
    images = images_for(model)
    hiap.save(model, tmp_path / "net")
    old = json.loads(OLD.read_text())[name]
    (tmp_path / "net" / ARCHITECTURE).write_text(json.dumps(old))
    read = hiap.load(tmp_path / "net")
    hiap.save(read, tmp_path / "again")
    again = hiap.load(tmp_path / "again")
    for network in (read, again):
        assert type(network) is type(model)
        assert [type(m) for m in network.blocks.modules()] == [type(m) for m in read.blocks.modules()]
        assert old.get("frozen", []) == [n for n, p in network.named_parameters() if not p.requires_grad]
        assert network.pretrained_cfg["num_classes"] == old["num_classes"]
        assert list(network.pretrained_cfg.get("mean", [])) == (old.get("pixels") or {}).get("mean", [])
        assert network.pretrained_cfg.get("label_names") == old.get("label_names")
        with torch.no_grad():
            assert torch.equal(network(images), model(images))


def test_a_network_of_timm_is_its_name_its_arguments_and_what_is_left(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=3, reg_tokens=2).eval()
    hiap.save(hiap.extract(random_gated(model, 1)).float(), tmp_path / "net")
    said = json.loads((tmp_path / "net" / ARCHITECTURE).read_text())
    assert said["model"] == "vit_tiny_patch16_224"
    assert said["arguments"].items() >= {"img_size": [32, 32], "num_classes": 3, "reg_tokens": 2}.items()
    again = hiap.load(tmp_path / "net")
    assert again.pretrained_cfg["architecture"] == "vit_tiny_patch16_224"
    assert said["blocks"][0]["is"] == "PrunedBlock"
    assert "attn" not in said["blocks"][0]
    assert [b["attn"]["value_dims"] for b in said["blocks"][1:]] == [b.attn.value_dims for b in again.blocks[1:]]


def renamed(model: Any) -> None:
    model.pretrained_cfg = {**model.pretrained_cfg, "architecture": "vit_tiny_patch16_siglip_gap_224"}


def other_layers(model: Any) -> None:
    model.norm, model.blocks[0].mlp.act = nn.LayerNorm(192, eps=1e-3), nn.ReLU()
    model.blocks[1].mlp = Mlp(192, 100, act_layer=nn.SiLU)


@pytest.mark.parametrize("change", [renamed, other_layers, lambda model: model.set_input_size(img_size=(48, 32))])
def test_a_name_never_stands_for_another_network(change: Callable[[Any], None], tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2).eval()
    change(model)
    hiap.save(model, tmp_path / "net")
    images, again = images_for(model), hiap.load(tmp_path / "net")
    with torch.no_grad():
        assert torch.equal(again(images), model(images))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda m: setattr(m.patch_embed, "strict_img_size", False), r"patch_embed\.strict_img_size: False cannot be"),
        (lambda m: setattr(m, "num_prefix_tokens", 0), "num_prefix_tokens: 0 cannot be described"),
        (lambda m: setattr(m, "norm", nn.Tanh()), r"norm \(Tanh\): has no description"),
        (lambda m: setattr(m, "norm", nn.LayerNorm(192, elementwise_affine=False)), "norm.bias: shape None cannot"),
        (lambda m: m.add_module("extra", nn.Linear(2, 2)), "extra: no part of a VisionTransformer"),
    ],
)
def test_what_a_description_would_lose_is_refused_in_one_line(
    change: Callable[[Any], None], line: str, tmp_path: Path
) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2)
    change(model)
    with pytest.raises(hiap.UnsupportedModelError, match=line) as error:
        hiap.save(model, tmp_path / "net")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "net").exists()


def test_angles_of_other_settings_are_refused(tmp_path: Path) -> None:
    model = small("EVA-02")
    model.rope.pos_embed.mul_(2)
    with pytest.raises(hiap.UnsupportedModelError, match=r"rope\.pos_embed: made with settings"):
        hiap.save(model, tmp_path / "net")


@pytest.mark.parametrize("field", ["embed_dim", "blocks", "layout", "img_size"])
def test_a_damaged_version_1_is_one_line(field: str, tmp_path: Path) -> None:
    hiap.save(small_vit(), tmp_path / "net")
    for value in ("a word", -1, [], {"heads": "many"}):
        old = {**json.loads(OLD.read_text())["dense"], field: value}
        (tmp_path / "net" / ARCHITECTURE).write_text(json.dumps(old))
        with pytest.raises(StoreError, match=r"not format hiap-vit 1|do not fit") as error:
            hiap.load(tmp_path / "net")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", ["EVA-02", "DINOv3", "BEiT"])
def test_a_network_in_bfloat16_comes_back_in_it(family: str, tmp_path: Path) -> None:
    model = cut(small(family).float()).bfloat16()
    hiap.save(model, tmp_path / "net")
    again, images = hiap.load(tmp_path / "net"), images_for(model).bfloat16()
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        assert torch.equal(again(images), model(images))


def test_every_size_is_still_in_version_1_words() -> None:
    assert set(json.loads(OLD.read_text())) == set(NETWORKS)
    assert SIZES["embed_dim"] == 32
