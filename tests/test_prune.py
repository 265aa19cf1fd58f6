"""``hiap.prune``: any network, at its target, nearer to what it was than a cut alone, and refused in one line."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from conftest import small_vit
from torch import nn

import hiap
from hiap.backbones.count import value_dims
from hiap.backbones.evening import even, trimmed
from hiap.backbones.pruned import PrunedAttention
from hiap.gated_vit import masks, set_masks

IMAGE = (1, 16, 16)


def images(count: int = 96, size: tuple[int, ...] = IMAGE) -> torch.Tensor:
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(1))


def answering(**changes: Any) -> Any:
    model = small_vit(**changes)
    nn.init.normal_(model.head.weight)
    return model


def uneven(model: Any) -> Any:
    """Heads of different widths, one layer without attention, one without an FFN."""
    gated = hiap.gate(model, attn_bias="kept")
    kept = masks(gated)
    kept[0].heads[1] = False
    kept[0].dims[2, 3:] = False
    kept[1].dims[:] = False
    kept[1].neurons[40:] = False
    kept[2].neurons[:] = False
    set_masks(gated, kept)
    return hiap.extract(gated.eval())


@pytest.mark.parametrize("target", [{"target_macs": 0.5}, {"target_params": 0.6}, {"target_macs": 0.15}])
@pytest.mark.parametrize("layer_scale", [None, 0.1])
def test_it_lands_on_the_target_and_leaves_the_network_alone(target: dict[str, float], layer_scale: Any) -> None:
    model = answering(init_values=layer_scale).train()
    state = copy.deepcopy(model.state_dict())
    small = hiap.prune(model, images(), **target)
    counted = (hiap.macs(small, IMAGE), hiap.macs(model, IMAGE)) if "target_macs" in target else (
        hiap.params(small), hiap.params(model))  # fmt: skip
    share = next(iter(target.values()))
    assert 0.93 * share < counted[0] / counted[1] <= share
    assert not small.training
    assert model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert small(images(2)).isfinite().all()


def test_batches_labels_and_one_tensor_are_the_same_images() -> None:
    model, x = answering(), images(128)
    labelled = [(part, torch.zeros(len(part), dtype=torch.long)) for part in x.split(64)]
    found = [hiap.prune(model, given, target_macs=0.5).state_dict() for given in (x, x.split(64), labelled)]
    assert all(torch.equal(v, found[0][k]) for other in found[1:] for k, v in other.items())


def test_a_network_with_uneven_heads_is_evened_without_a_change_and_pruned_further() -> None:
    model = uneven(answering())
    whole = even(model)
    assert torch.allclose(whole(images()), model(images()), atol=1e-5)
    assert len({(tuple(value_dims(b)), b.mlp.fc2.in_features) for b in whole.blocks}) == 1
    small = hiap.prune(model, images(), target_macs=0.7)
    share = hiap.macs(small, IMAGE) / hiap.macs(model, IMAGE)
    assert 0.6 < share <= 0.7
    nothing = hiap.prune(model, images(), target_macs=0.999)
    assert hiap.macs(nothing, IMAGE) <= hiap.macs(model, IMAGE)
    assert torch.nn.functional.mse_loss(nothing(images()), model(images())) < 0.05 * model(images()).var()


def test_what_is_pruned_twice_can_be_saved(tmp_path: Any) -> None:
    small = hiap.prune(uneven(answering()), images(), target_macs=0.6)
    hiap.save(small, tmp_path / "small")
    assert torch.equal(hiap.load(tmp_path / "small")(images(2)), small(images(2)))


def test_dimensions_of_zeros_in_q_or_k_go_and_nothing_changes() -> None:
    model = uneven(answering())
    attn: Any = model.blocks[0].attn
    with torch.no_grad():
        attn.qkv.weight[1:4], attn.qkv.bias[1:4] = 0.0, 0.0
    wanted, before = model(images()), list(attn.qk_dims)
    found: Any = trimmed(model).blocks[0].attn
    assert found.qk_dims == [before[0] - 3, *before[1:]]
    for layout in ("padded", "ragged"):
        hiap.set_layout(model, layout)
        assert torch.allclose(model(images()), wanted, atol=1e-6)
    assert isinstance(found, PrunedAttention)


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "beit_base_patch16_224", "vit_tiny_patch16_224"])
def test_other_families(name: str) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"img_size": 28, "patch_size": 14, "embed_dim": 48, "depth": 2, "num_heads": 3}
    model = timm.create_model(name, num_classes=5, **sizes).eval()
    nn.init.normal_(model.head.weight)
    x = images(64, (3, 28, 28))
    small = hiap.prune(model, x, target_macs=0.5)
    assert hiap.macs(small, (3, 28, 28)) <= 0.5 * hiap.macs(model, (3, 28, 28))
    assert small(x).isfinite().all()


def test_bf16_networks_stay_bf16() -> None:
    small = hiap.prune(answering().bfloat16(), images(), target_macs=0.5)
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    assert small(images(2).bfloat16()).isfinite().all()


@pytest.mark.parametrize(
    ("given", "options", "line"),
    [
        (images(), {}, "set target_macs"),
        (images(), {"target_macs": 0.5, "target_params": 0.5}, "set one of them"),
        (images(), {"target_macs": 0.001}, "reachable"),
        (images(8, (3, 16, 16)), {"target_macs": 0.5}, "images: expected numbers"),
        (images(8, (1, 8, 8)), {"target_macs": 0.5}, "images: expected numbers"),
        (images(8).byte(), {"target_macs": 0.5}, "images: expected numbers"),
        ("folder", {"target_macs": 0.5}, "images: expected"),
        (3, {"target_macs": 0.5}, "images: expected a tensor"),
        ([], {"target_macs": 0.5}, "images: none"),
        (torch.zeros(8, *IMAGE), {"target_macs": 0.5}, "images: all values are 0"),
        (images().index_fill(0, torch.tensor([3]), torch.inf), {"target_macs": 0.5}, "numbers that are not finite"),
        (images(), {"target_macs": 0.5, "fisher": "labels"}, "expected class numbers .* not NoneType"),
        (
            [(images(8), torch.zeros(8, 1).long())],
            {"target_macs": 0.5, "fisher": "labels"},
            r"not torch.int64 \(8, 1\)",
        ),
        ([(images(8), torch.zeros(1).long())], {"target_macs": 0.5, "fisher": "labels"}, r"not torch.int64 \(1,\)"),
        ([(images(8), torch.rand(8))], {"target_macs": 0.5, "fisher": "labels"}, r"not torch.float32 \(8,\)"),
        ([(images(8), torch.arange(8) - 1)], {"target_macs": 0.5, "fisher": "labels"}, "-1 to 6; expected 0 to"),
        (images(), {"target_macs": 0.5, "fisher": "label"}, "fisher 'label': expected 'own', 'labels', 'none'"),
        (images(), {"target_macs": 0.5, "ridge": 0}, "ridge 0: expected a number above 0"),
        (images(), {"target_macs": 0.5, "ridge": "0.1"}, "ridge '0.1': expected a number above 0"),
    ],
)
def test_bad_input_is_one_line(given: Any, options: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        hiap.prune(answering(), given, **options)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (127 * images().abs(), r"images: values from .* normalised by the network's mean and std they lie between -1 "),
        (images().sigmoid(), r"images: values from 0.* to 0.*; normalised by"),
        (images(1), r"correct: \d+ tokens in all are too few to tell the \d+ units of a layer apart"),
    ],
)
def test_images_that_are_hardly_meant_are_told(given: torch.Tensor, line: str) -> None:
    model = answering()
    model.pretrained_cfg = {"mean": (0.5,), "std": (0.5,)}
    with pytest.warns(UserWarning, match=line):
        hiap.prune(model, given, target_macs=0.5)


def test_images_as_the_network_takes_them_are_no_doubt(recwarn: pytest.WarningsRecorder) -> None:
    model = answering()
    model.pretrained_cfg = {"mean": (0.5,), "std": (0.5,)}
    hiap.prune(model, images().clamp(-1, 1), target_macs=0.5)
    assert not recwarn.list


def test_networks_without_numbers_are_one_line() -> None:
    model = answering().to("meta")
    for action in (lambda: hiap.prune(model, images(), target_macs=0.5), lambda: hiap.extract(hiap.gate(model)),
                   lambda: hiap.save(model, "never")):  # fmt: skip
        with pytest.raises(hiap.UnsupportedModelError, match=r"on the device 'meta', without numbers; model\.to_empty"):
            action()
    with torch.inference_mode():
        model = answering()
    with pytest.raises(hiap.UnsupportedModelError, match=r"made under torch\.inference_mode"):
        hiap.gate(model)


def test_a_target_may_be_a_tensor_and_inference_mode_is_refused() -> None:
    model, seen = answering(), images()
    small = hiap.prune(model, seen, target_macs=torch.tensor(0.5))  # type: ignore[arg-type]
    assert hiap.macs(small, IMAGE) == hiap.macs(hiap.prune(model, seen, target_macs=0.5), IMAGE)
    with torch.inference_mode(), pytest.raises(ValueError, match=r"cannot run under torch\.inference_mode"):
        hiap.prune(model, seen, target_macs=0.5)


def test_what_is_no_vit_is_one_line() -> None:
    with pytest.raises(hiap.UnsupportedModelError, match="ResNet: expected a timm VisionTransformer"):
        hiap.prune(timm.create_model("resnet18"), images(), target_macs=0.5)
