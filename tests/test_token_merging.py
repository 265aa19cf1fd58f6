"""Merged tokens: nothing changes at 0, duplicates merge exactly, the class token never; MACs are what torch counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import small_vit
from test_extraction import MODES, counted_macs, random_gated

import hiap
from hiap.beyond import token_merging
from hiap.beyond.token_merging import MergingBlocks, merge, merge_tokens


def networks() -> dict[str, Any]:
    """A dense one, and extracted ones with branches that are gone; with registers and LayerScale."""
    dense = small_vit(init_values=0.3, reg_tokens=2)
    found: dict[str, Any] = {"dense": dense, "qk norm": small_vit(qk_norm=True)}
    for mode in MODES:
        for layout in ("padded", "ragged"):
            found[f"{mode} {layout}"] = hiap.extract(random_gated(dense, dims=mode, attn_bias="kept"), layout)
    return found


NETWORKS = networks()


@pytest.mark.parametrize("name", NETWORKS)
def test_without_merging_it_computes_what_the_network_computes(name: str, images: torch.Tensor) -> None:
    model = NETWORKS[name]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        assert torch.equal(merge_tokens(model, 0)(images), model(images))
        assert not torch.equal(merge_tokens(model, 4)(images), model(images))
        assert torch.equal(merge_tokens(model, 0)(images), model(images)), "the network itself is left alone"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("r", [0, 1, 4, [6, 0, 3], 100])
@pytest.mark.parametrize("name", NETWORKS)
def test_macs_are_what_torch_counts(name: str, r: Any) -> None:
    model = NETWORKS[name]
    counted = counted_macs(merge_tokens(model, r), (1, 16, 16))
    assert token_merging.macs(model, r, executed=True) == counted
    if r == 0:
        assert token_merging.macs(model, r) == hiap.macs(model, (1, 16, 16))
    else:
        assert token_merging.macs(model, 100) < hiap.macs(model, (1, 16, 16))


@pytest.mark.parametrize(("r", "left"), [(0, [16] * 3), (3, [13, 10, 7]), ([8, 0, 1], [8, 8, 7]), (100, [8, 4, 2])])
def test_tokens_become_fewer_as_asked_and_all_patches_are_accounted_for(r: Any, left: list[int]) -> None:
    model, seen = small_vit(reg_tokens=2), []
    hooks = [
        block.mlp.register_forward_hook(lambda _, args, out: seen.append(args[0].shape[1])) for block in model.blocks
    ]
    with torch.no_grad():
        merge_tokens(model, r)(torch.randn(2, 1, 16, 16))
    for hook in hooks:
        hook.remove()
    assert seen == [3 + patches for patches in left]


def test_a_view_that_merges_is_refused_elsewhere_in_one_line(tmp_path: Path) -> None:
    view = merge_tokens(small_vit(), 2)
    for use in (lambda: hiap.macs(view, (1, 16, 16)), lambda: hiap.save(view, tmp_path / "v"), lambda: hiap.gate(view)):
        with pytest.raises(hiap.UnsupportedModelError, match="the network merges tokens"):
            use()


def test_sizes_add_up_and_means_are_weighted() -> None:
    torch.manual_seed(0)
    x, size = torch.randn(5, 12, 8), torch.randint(1, 5, (5, 12)).float()
    merged, sizes = merge(x, x, size, 4, prefix=2)
    assert merged.shape == (5, 8, 8)
    assert torch.equal(sizes.sum(1), size.sum(1))
    assert torch.allclose((sizes[..., None] * merged).sum(1), (size[..., None] * x).sum(1), atol=1e-4)


def test_prefix_tokens_are_never_merged_however_alike() -> None:
    """Class and register tokens equal to patches, which are equal to each other."""
    x = torch.ones(2, 11, 4) + torch.cat([torch.zeros(2, 3, 4), 1e-3 * torch.randn(2, 8, 4)], 1)
    merged, size = merge(x, x, None, 4, prefix=3)
    assert torch.equal(merged[:, :3], x[:, :3])
    assert torch.equal(size[:, :3], torch.ones(2, 3))
    assert merged.shape[1] == 3 + 4


def test_the_most_similar_pairs_go() -> None:
    x = torch.tensor([[9.0, 9.0], [1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [-1.0, 0.0], [1.0, 0.1]])[None]
    merged, size = merge(x, x, None, 1, prefix=1)  # first set: 1, 3, 5; second: 2, 4
    assert torch.allclose(merged[0], torch.tensor([[9, 9], [1, 0], [1, 0.1], [0.05, 1], [-1, 0]]).float())
    assert size[0].tolist() == [1, 1, 1, 2, 1]


@pytest.mark.parametrize("pairs", [1, 3, 8])
def test_merging_duplicates_changes_nothing(pairs: int) -> None:
    """Equal patches without positions: merged in the first block, attention weighs them as the two that they were."""
    model = small_vit()
    model.pos_embed.data.zero_()
    for block in model.blocks:  # attention that depends on its input
        block.attn.qkv.weight.data *= 10
    patches = torch.randn(2, 16, 1, 4, 4)
    patches[:, 1 : 2 * pairs : 2] = patches[:, 0 : 2 * pairs : 2]
    images = patches.view(2, 4, 4, 4, 4).permute(0, 1, 3, 2, 4).reshape(2, 1, 16, 16)
    merging = merge_tokens(model, [pairs, 0, 0])
    with torch.no_grad():
        wanted, found = model(images), merging(images)
        assert torch.allclose(found, wanted, atol=1e-5)
        stream = model.norm_pre(model._pos_embed(model.patch_embed(images)))
        assert merging.blocks(stream).shape[1] == 17 - pairs
        images[:, :, :4, :4] += 1  # no duplicate any more
        assert not torch.allclose(merging(images), model(images), atol=1e-4)


def test_attention_without_the_weights_would_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above rests on: equal weights for all tokens give another output."""
    plain = token_merging._attend
    monkeypatch.setattr(token_merging, "_attend", lambda block, x, size, keys: plain(block, x, None, keys))
    with pytest.raises(AssertionError):
        test_merging_duplicates_changes_nothing(3)


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (torch.nn.Linear(2, 2), "Linear: expected a timm VisionTransformer"),
        (hiap.gate(small_vit()), "carries gates"),
        (small_vit(global_pool="avg"), "pooling 'avg' of all tokens"),
        (timm.create_model("eva02_tiny_patch14_224"), "Eva: expected a timm VisionTransformer"),
        (small_vit(block_fn=timm.models.vision_transformer.ParallelScalingBlock), "blocks.0 (ParallelScalingBlock)"),
    ],
)
def test_other_networks_are_refused_in_one_line(model: Any, line: str) -> None:
    with pytest.raises(hiap.UnsupportedModelError) as error:
        merge_tokens(model, 1)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("r", [-1, [1, 2], 0.5, [1, 1, -1]])
def test_a_schedule_that_is_none_is_one_line(r: Any) -> None:
    with pytest.raises(ValueError, match="expected a number, 0 or more, or one for each of 3 blocks"):
        merge_tokens(small_vit(), r)


def test_the_view_shares_parameters() -> None:
    model = small_vit()
    view = merge_tokens(model, 2)
    assert isinstance(view.blocks, MergingBlocks)
    assert {id(p) for p in view.parameters()} == {id(p) for p in model.parameters()}
    assert not isinstance(model.blocks, MergingBlocks)
