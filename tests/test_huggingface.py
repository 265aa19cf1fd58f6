"""Classifiers, feature extractors and backbones of transformers, randomly initialised: as timm's with equal outputs,
pruned, and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import scatter_logits, small_vit
from test_extraction import relative

import hiap
from hiap.formats.export import ExportError
from hiap.formats.huggingface import _place

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16, "patch_size": 4}
FFN = {"intermediate_size": 48}
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ViT": ("ViTConfig", "ViTForImageClassification", FFN | {"hidden_act": "gelu_new"}),
    "ViT without biases of Q, K, V": ("ViTConfig", "ViTForImageClassification", FFN | {"qkv_bias": False}),
    "DeiT": ("DeiTConfig", "DeiTForImageClassification", FFN),
    "DeiT with two heads": ("DeiTConfig", "DeiTForImageClassificationWithTeacher", FFN),
    "DINOv2": ("Dinov2Config", "Dinov2ForImageClassification", {"mlp_ratio": 2, "layerscale_value": 0.3}),
    "DINOv2, gated FFN": ("Dinov2Config", "Dinov2ForImageClassification", {"use_swiglu_ffn": True}),
    "DINOv2 with registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersForImageClassification", {}),
    "SigLIP": ("SiglipConfig", "SiglipForImageClassification", FFN),
}


def theirs(kind: str, **changes: Any) -> Any:
    """With random biases, scales and tokens, which start at 0 or 1."""
    config, cls, own = KINDS[kind]
    sizes: dict[str, Any] = {**SIZES, **own, **changes}
    torch.manual_seed(0)
    if kind == "SigLIP":
        made = transformers.SiglipConfig(vision_config=sizes, num_labels=5)
    else:
        made = getattr(transformers, config)(**sizes, num_labels=5)
    model = getattr(transformers, cls)(made).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def pictures() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_equal_there_and_back(kind, pictures):
    model = theirs(kind)
    ours = hiap.from_transformers(model)
    again = hiap.to_transformers(ours, model)
    assert type(again) is type(model)
    with torch.no_grad():
        logits = model(pictures).logits
        assert relative(ours(pictures), logits) < 1e-5
        assert relative(again(pictures).logits, logits) < 1e-5
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_pruned_one_is_saved_and_goes_back_with_fewer_neurons(kind, pictures, tmp_path):
    model = theirs(kind)
    gated = hiap.gate(hiap.from_transformers(model)).eval()
    for block in gated.blocks:
        block.attn.head_gate.logit.data[1] = -1
        block.attn.value_gate.logit.data[2, 5:] = -1
        block.mlp.neuron_gate.logit.data[24:] = -1
    small = hiap.extract(gated)
    hiap.save(small, tmp_path / "net")
    loaded = hiap.load(tmp_path / "net")
    back = hiap.to_transformers(loaded, model)
    with torch.no_grad():
        assert torch.equal(loaded(pictures), small(pictures))
        assert relative(back(pictures).logits, gated(pictures)) < 1e-5
    narrower = back.state_dict() if "DINOv2" not in kind else {}  # its configuration knows multiples of 32 here
    assert all(v.shape[0] == 24 for k, v in narrower.items() if ".layers." in k and k.endswith("fc1.weight"))


EXTRACTORS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ViT": ("ViTConfig", "ViTModel", FFN),
    "DeiT": ("DeiTConfig", "DeiTModel", FFN),
    "DINOv2": ("Dinov2Config", "Dinov2Model", {"mlp_ratio": 2, "layerscale_value": 0.3}),
    "DINOv2's backbone": ("Dinov2Config", "Dinov2Backbone", {"use_swiglu_ffn": True, "out_features": ["stage2"]}),
    "DINOv2 with registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", {}),
    "CLIP": ("CLIPVisionConfig", "CLIPVisionModel", FFN),
    "CLIP with projection": ("CLIPVisionConfig", "CLIPVisionModelWithProjection", FFN | {"projection_dim": 8}),
    "SigLIP": ("SiglipVisionConfig", "SiglipVisionModel", FFN),
}


def outputs(model: Any, pictures: torch.Tensor) -> list[torch.Tensor]:
    """Tokens first where the network gives them."""
    given = model(pictures)
    named = ("last_hidden_state", "pooler_output", "image_embeds", "feature_maps")
    found = [given[name] for name in named if getattr(given, name, None) is not None]
    return [tensor for value in found for tensor in (value if isinstance(value, (list, tuple)) else [value])]


@pytest.mark.parametrize("kind", EXTRACTORS)
def test_features_are_equal_there_and_back_and_when_pruned(kind, pictures, tmp_path):
    config, cls, own = EXTRACTORS[kind]
    torch.manual_seed(0)
    model = getattr(transformers, cls)(getattr(transformers, config)(**SIZES, **own)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ours = hiap.from_transformers(model)
    with torch.no_grad():
        theirs, tokens = outputs(model, pictures), ours(pictures)
        if "Backbone" not in cls:
            assert relative(tokens, theirs[0]) < 1e-5
        else:
            assert relative(tokens[:, 1:].mT.unflatten(-1, (4, 4)), theirs[0]) < 1e-5
        for again, before in zip(outputs(hiap.to_transformers(ours, model), pictures), theirs, strict=True):
            assert relative(again, before) < 1e-5
    pruner = hiap.Pruner(ours, steps=2, target_macs=0.7)
    for block in pruner.model.blocks:
        block.mlp.neuron_gate.logit.data[-8:] = -1
    small = hiap.extract(pruner.model.eval())
    hiap.save(small, tmp_path / "net")
    small = hiap.load(tmp_path / "net")
    back = hiap.to_transformers(small, model)
    with torch.no_grad():
        if "Backbone" not in cls:
            assert relative(outputs(back, pictures)[0], pruner.model(pictures)) < 1e-5
        assert not torch.allclose(outputs(back, pictures)[0], theirs[0])


def test_a_network_of_transformers_is_told_the_way():
    with pytest.raises(hiap.UnsupportedModelError, match=r"ViTModel: .*hiap\.from_transformers") as error:
        hiap.Pruner(transformers.ViTModel(transformers.ViTConfig(**SIZES, **FFN)), steps=3)
    assert "\n" not in str(error.value)


def test_what_is_ragged_or_foreign_does_not_go_and_is_one_line():
    model = theirs("ViT")
    gated = hiap.gate(hiap.from_transformers(model)).eval()
    scatter_logits(gated)
    gated.blocks[0].attn.head_gate.logit.data[0] = gated.blocks[1].attn.head_gate.logit.data[0] = 1
    gated.blocks[0].mlp.block_gate.logit.data.fill_(1)
    gated.blocks[1].mlp.block_gate.logit.data.fill_(1)
    with pytest.raises(ExportError, match=r"blocks\.1 keeps \d+ neurons and blocks\.0 \d+"):
        hiap.to_transformers(hiap.extract(gated), model)
    with pytest.raises(ExportError, match="DeiTForImageClassification wants"):
        hiap.to_transformers(hiap.from_transformers(model), theirs("DeiT"))
    with pytest.raises(ExportError, match="Linear: expected one of ViTForImageClassification"):
        hiap.to_transformers(small_vit(), torch.nn.Linear(2, 2))
    with pytest.raises(hiap.UnsupportedModelError, match="Linear: expected one of ViTForImageClassification"):
        hiap.from_transformers(torch.nn.Linear(2, 2))
    with pytest.raises(hiap.UnsupportedModelError, match="hidden_act 'gelu_fast': expected one of"):
        hiap.from_transformers(theirs("ViT", hidden_act="gelu_fast"))


OTHER_FORMS: dict[str, dict[str, Any]] = {
    "LayerScale": {"init_values": 0.3},
    "norms of Q and K": {"qk_norm": True},
    "another activation": {"act_layer": torch.nn.ReLU},
    "another pooling": {"global_pool": "avg", "fc_norm": False},
}


@pytest.mark.parametrize("form", OTHER_FORMS)
def test_what_the_class_has_no_place_for_does_not_get_lost(form):
    sizes = {"in_chans": 3, "num_classes": 5, "depth": 2, "mlp_ratio": 1.5}
    hiap.to_transformers(small_vit(**sizes), theirs("ViT"))
    model = small_vit(**sizes, **OTHER_FORMS[form])
    torch.nn.init.normal_(model.head.weight)
    with pytest.raises(ExportError, match="computes something else with these weights"):
        hiap.to_transformers(model.train(), theirs("ViT"))
    assert model.training


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("vit.encoder.layer.3.attention.attention.key.bias", ("blocks.3.attn.qkv.bias", 1, 3)),
        ("vit.encoder.layer.3.attention.output.dense.weight", ("blocks.3.attn.proj.weight", 0, 1)),
        ("vit.encoder.layer.3.output.dense.weight", ("blocks.3.mlp.fc2.weight", 0, 1)),
        ("dinov2.encoder.layer.0.mlp.weights_in.weight", ("blocks.0.mlp.fc1.weight", 0, 1)),
        ("vision_model.head.attention.in_proj_weight", None),
    ],
)
def test_names_of_version_4_are_known(name, place):
    assert _place(name) == place
