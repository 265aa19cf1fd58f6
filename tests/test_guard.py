"""Layers are what they compute: whatever a layer does beside its weights is refused, by name, before it is trained."""

from __future__ import annotations

import copy
import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import scatter_logits, small_vit
from test_extraction import relative
from test_families import FAMILIES, small
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import hiap
from hiap.backbones import guard


class Adapter(nn.Module):
    """As peft's LoRA layer stands in the place of a linear map, and its weight reads as the base layer's."""

    def __init__(self, base_layer: Any):
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base_layer.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base_layer.out_features, bias=False)})
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features

    weight = property(lambda self: self.base_layer.weight)
    bias = property(lambda self: self.base_layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Mixing(nn.Module):
    """An activation that is none: neurons depend on each other."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x) + x.roll(1, -1)


class Quiet(nn.Dropout):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x


def put(model: Any, name: str, make: Callable[[Any], nn.Module]) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, make(model.get_submodule(name)))


def doubled(layer: Any) -> Any:
    new = Doubled(layer.in_features, layer.out_features, bias=layer.bias is not None)
    new.load_state_dict(layer.state_dict())
    return new


def patched(name: str, forward: Callable[[Any], Any]) -> Callable[[Any], None]:
    def act(model: Any) -> None:
        module = model.get_submodule(name) if name else model
        module.forward = forward(module)

    return act


def twice(module: Any) -> Any:
    old = module.forward
    return lambda *args, **kwargs: 2 * old(*args, **kwargs)


def bound(module: Any) -> Any:
    return types.MethodType(lambda self, x, **kwargs: type(self).forward(self, x, **kwargs), module)


def hooked(name: str, **kind: bool) -> Callable[[Any], None]:
    def act(model: Any) -> None:
        module = model.get_submodule(name)
        if kind.get("before"):
            module.register_forward_pre_hook(lambda m, args: (args[0] + 1,))
        else:
            module.register_forward_hook(lambda m, args, out: out * 1.5)

    return act


LINEAR = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    **{
        f"adapter on {name}": (lambda m, n=name: put(m, f"blocks.1.{n}", Adapter), rf"blocks\.1\.{name}.*merge|{name}")
        for name in LINEAR
    },
    **{
        f"subclass as {name}": (
            lambda m, n=name: put(m, f"blocks.1.{n}", doubled),
            rf"blocks\.1\.{name} \(Doubled\): expected torch\.nn\.Linear",
        )
        for name in LINEAR
    },
    **{
        f"mask on {name}": (
            lambda m, n=name: prune.l1_unstructured(m.get_submodule(f"blocks.1.{n}"), "weight", 0.5),
            rf"blocks\.1\.{name}.* torch\.nn\.utils\.prune\.remove",
        )
        for name in LINEAR
    },
    **{
        f"hook on {name or 'block'}": (hooked(f"blocks.1.{name}".rstrip(".")), rf"blocks\.1.*would change|{name}")
        for name in (*LINEAR, "attn", "mlp", "")
    },
    "hook before a block": (hooked("blocks.1", before=True), r"blocks\.1"),
    "adapter on the head": (lambda m: put(m, "head", Adapter), r"head \(Adapter\): an adapter; merge it first"),
    "mask on the head": (lambda m: prune.l1_unstructured(m.head, "weight", 0.5), r"head \(Linear\): a mask"),
    "old weight norm": (lambda m: nn.utils.weight_norm(m.blocks[1].attn.proj), r"blocks\.1\.attn\.proj.*weight_norm"),
    "patched attention": (patched("blocks.1.attn", twice), r"blocks\.1\.attn \(Attention\): its forward was replaced"),
    "patched block": (patched("blocks.1", twice), r"blocks\.1 \(Block\): its forward was replaced"),
    "patched and bound": (patched("blocks.1.mlp", bound), r"blocks\.1\.mlp \(Mlp\): its forward was replaced"),
    "patched network": (patched("", twice), r"the model \(VisionTransformer\): its forward was replaced"),
    "other activation": (lambda m: put(m, "blocks.1.mlp.act", lambda _: Mixing()), r"blocks\.1\.mlp"),
    "other dropout": (lambda m: put(m, "blocks.1.attn.proj_drop", lambda _: Quiet(0.0)), r"proj_drop \(Quiet\)"),
    "patched head": (
        lambda m: setattr(m, "forward_head", lambda x, pre_logits=False: m.head(x[:, 0])),
        r"the model \(VisionTransformer\): its forward_head was replaced on this instance; a copy would",
    ),
    "weights of a run that diverged": (
        lambda m: m.blocks[1].mlp.fc1.weight.data[0, 0].fill_(float("nan")),
        r"blocks\.1\.mlp\.fc1\.weight: has numbers that are not finite",
    ),
    "no blocks": (lambda m: setattr(m, "blocks", nn.Sequential()), r"blocks: there are none"),
    "one block twice": (lambda m: m.blocks.__setitem__(2, m.blocks[1]), r"blocks\.2: the same module"),
    "half-precision integers": (
        lambda m: torch.ao.quantization.quantize_dynamic(m, {nn.Linear}, dtype=torch.qint8, inplace=True),
        r"blocks\.0\.attn\.qkv .*prune first, quantise afterwards",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", REFUSED)
def test_what_weights_do_not_say_is_refused_by_name_before_training(case: str) -> None:
    model = small_vit()
    act, line = REFUSED[case]
    act(model)
    with pytest.raises(hiap.UnsupportedModelError, match=line) as error:
        hiap.Pruner(model, steps=3)
    assert "\n" not in str(error.value)
    assert "blocks.0" not in str(error.value) or "quantise" in str(error.value), "the module that is at fault"


def unused_scale(model: Any) -> None:
    """timm's fused attention does not read it."""
    model.blocks[1].attn.scale = 3.0


def split_heads(model: Any) -> None:
    """Q that is normalised over all heads at once is no longer Q of one head."""

    class Together(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(1, keepdim=True) if x.shape[1] == 4 else x

    model.blocks[1].attn.q_norm = Together()


@pytest.mark.parametrize("act", [unused_scale, split_heads])
def test_the_numbers_find_what_no_check_of_types_knows(act: Callable[[Any], None]) -> None:
    model = small_vit()
    act(model)
    with pytest.raises(hiap.UnsupportedModelError, match="would change what the network computes"):
        hiap.gate(model)


def test_a_block_that_is_no_longer_what_it_was_is_found_when_it_is_extracted(images: Tensor) -> None:
    gated = hiap.gate(small_vit())
    scatter_logits(gated)
    gated.blocks[2].register_forward_hook(lambda m, args, out: out + 1)
    with pytest.raises(hiap.UnsupportedModelError, match=r"blocks\.2: extraction"), pytest.warns(match="hooks"):
        hiap.extract(gated)


def parametrized(model: Any) -> Any:
    for block in model.blocks:
        for layer in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
            parametrizations.weight_norm(layer)
    return model


def test_a_parametrized_weight_is_what_it_computes_and_goes_on_learning(images: Tensor) -> None:
    model = parametrized(small_vit())
    gated = hiap.gate(model)
    with torch.no_grad():
        for network in (model, gated):
            for name, p in network.named_parameters():
                if name.endswith("original0"):
                    p.mul_(1.5)
        wanted = model(images)
        assert relative(gated(images), wanted) < 1e-5
        assert relative(hiap.extract(gated)(images), wanted) < 1e-5


@pytest.mark.filterwarnings("error")
def test_looking_changes_nothing(images: Tensor) -> None:
    model = small_vit().train()
    model.blocks[1].eval()
    modes = [m.training for m in model.modules()]
    before = torch.get_rng_state()
    gated = hiap.gate(model)
    small_one = hiap.extract(gated)
    assert torch.equal(before, torch.get_rng_state())
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for net in (model, gated, small_one) for m in net.modules())
    assert all(p.grad is None for p in gated.parameters())


def test_running_statistics_stay(images: Tensor) -> None:
    model = small_vit()

    class Counting(nn.Identity):
        seen: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.seen += len(x)
            return x

    model.norm_pre = Counting()
    gated = hiap.gate(model)
    assert model.norm_pre.seen == gated.norm_pre.seen == 0


def test_a_hook_that_only_looks_is_told(images: Tensor) -> None:
    model = small_vit()
    seen: list[Tensor] = []
    model.blocks[0].attn.register_forward_hook(lambda m, args, out: seen.append(out))
    with pytest.warns(UserWarning, match=r"gate: hooks of blocks\.0\.attn are not taken along"):
        hiap.gate(model)


def test_a_network_that_does_not_run_is_told_and_not_refused() -> None:
    model = small_vit()
    model.head = nn.Linear(7, 3)
    with pytest.warns(UserWarning, match="not verified on random images"):
        hiap.gate(model)


def test_answers_that_overflow_are_told_as_nothing_was_compared() -> None:
    model = small_vit()
    nn.init.constant_(model.head.bias, 3e38)
    nn.init.constant_(model.head.weight, 1e38)
    with pytest.warns(UserWarning, match=r"gating: not verified on random images .*not finite in torch\.float32"):
        hiap.gate(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_false_alarm_in_less_than_single_precision(family: str, dtype: torch.dtype) -> None:
    gated = hiap.gate(small(family).to(dtype))
    scatter_logits(gated)
    gated.blocks[0].attn.head_gate.logit.data[0] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hiap.extract(gated)


def test_it_runs_each_network_on_two_images_and_no_more_than_twice() -> None:
    model, count = small_vit(), {"images": 0}
    model.patch_embed.register_forward_hook(lambda m, args, out: count.update(images=count["images"] + len(out)))
    hiap.gate(model)
    # The given one, the gated one with open and with closed gates, the extracted one: less than a pass of a batch.
    assert count["images"] == 4 * guard.IMAGES


def test_compiled_networks_are_not_compiled_for_it() -> None:
    model = small_vit()
    calls: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        calls.append(1)
        return graph.forward

    model.compile(backend=backend)
    hiap.gate(model)
    assert not calls


def test_what_accelerate_put_on_the_network_stays_behind(images: Tensor) -> None:
    """``Accelerator.prepare`` replaces the forward of the instance by one with autocast."""
    gated = hiap.gate(small_vit())
    scatter_logits(gated)
    want = gated(images)
    gated._original_forward = gated.forward
    inner = gated.forward.__func__
    gated.forward = types.MethodType(lambda self, x: torch.autocast("cpu", torch.bfloat16)(inner)(self, x), gated)
    with pytest.warns(UserWarning, match="extract: a forward that was put on the network"):
        left = hiap.extract(gated)
    assert "forward" in vars(gated)
    assert not {"forward", "_original_forward"} & vars(left).keys()
    assert relative(left(images), want) < 1e-5


def test_copies_of_the_case_stay_apart(images: Tensor) -> None:
    model = small_vit()
    gated = hiap.gate(model)
    with torch.no_grad():
        gated.head.weight.zero_()
    assert model.head.weight.abs().sum() > 0
    assert copy.deepcopy(gated)(images).shape == (4, 10)


@pytest.mark.parametrize("case", ["patched block", "patched network", "patched and bound"])
def test_what_weights_do_not_say_is_not_saved(case: str, tmp_path: Any) -> None:
    model = hiap.extract(hiap.gate(small_vit()))
    act, line = REFUSED[case]
    act(model)
    with pytest.raises(hiap.UnsupportedModelError, match=line.replace(r"\(Block\)", r"\(PrunedBlock\)")) as error:
        hiap.save(model, tmp_path / "net")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "net").exists()


def test_a_hook_is_told_when_a_network_is_saved(tmp_path: Any) -> None:
    model = hiap.extract(hiap.gate(small_vit()))
    hooked("blocks.1.attn")(model)
    with pytest.warns(UserWarning, match=r"save: hooks of blocks\.1\.attn are not taken along"):
        hiap.save(model, tmp_path / "net")


class Adapted(nn.Module):
    """A map with an adapter beside it, as peft's: it has the map's sizes."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base_layer, self.down = base, nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)
        self.in_features, self.out_features, self.bias, self.weight = (
            base.in_features,
            base.out_features,
            base.bias,
            base.weight,
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.up(self.down(x))


@pytest.mark.parametrize("place", ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"])
def test_a_pruned_network_with_an_adapter_is_not_counted_as_one_without(place: str) -> None:
    small = hiap.extract(hiap.gate(small_vit()).eval())
    before = hiap.macs(small, (1, 16, 16))
    branch, name = place.split(".")
    part = getattr(small.blocks[1], branch)
    setattr(part, name, Adapted(getattr(part, name)))
    with pytest.raises(hiap.UnsupportedModelError, match=rf"blocks\.1\.{branch}\.{name} .*merge") as error:
        hiap.macs(small, (1, 16, 16))
    assert "\n" not in str(error.value)
    assert before > 0


@pytest.mark.parametrize("place", ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"])
def test_an_adapter_inside_a_network_names_its_cure(place: str) -> None:
    model = small_vit()
    branch, name = place.split(".")
    part = getattr(model.blocks[1], branch)
    setattr(part, name, Adapted(getattr(part, name)))
    with pytest.raises(hiap.UnsupportedModelError, match=rf"blocks\.1\.{branch}\.{name} \(Adapted\).*merge_and_unload"):
        hiap.gate(model)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.optim.swa_utils.AveragedModel, torch.compile])
def test_a_wrapper_names_what_it_wraps(wrap: Callable[[nn.Module], Any]) -> None:
    with pytest.raises(hiap.UnsupportedModelError, match=r"give what it wraps: model\.(module|_orig_mod)$"):
        hiap.gate(wrap(small_vit()))


def test_weights_that_blocks_share_are_told_when_they_part(images: Tensor) -> None:
    model = small_vit()
    model.blocks[1].mlp.fc1.weight = model.blocks[0].mlp.fc1.weight
    gated = hiap.gate(model)
    assert gated.blocks[1].mlp.fc1.weight is gated.blocks[0].mlp.fc1.weight
    with pytest.warns(UserWarning, match=r"extract: blocks\.0\.mlp\.fc1\.weight, blocks\.1.* shared a weight"):
        left = hiap.extract(gated)
    assert relative(left.eval()(images), model.eval()(images)) < 1e-5


def test_a_bound_method_of_the_network_goes_with_its_copy(images: Tensor) -> None:
    def doubled_head(self: Any, x: Tensor, pre_logits: bool = False) -> Tensor:
        return 2 * self.head(x[:, 0])

    model = small_vit()
    model.forward_head = types.MethodType(doubled_head, model)
    left = hiap.extract(hiap.gate(model)).eval()
    nn.init.zeros_(left.head.weight)
    nn.init.zeros_(left.head.bias)
    assert not left(images).any()  # its own head, not the dense network's
    assert model.eval()(images).any()
