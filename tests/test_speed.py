"""Layouts and rounding keep the function; what they execute is what is counted; the bench reports what it ran."""

from __future__ import annotations

import json
import time
from functools import partial

import pytest
import timm
import torch
from conftest import small_vit
from test_extraction import MODES, counted_macs, random_gated, relative

import hiap
from analysis.records import published
from hiap import cost, gated_vit, ledger
from hiap.bench import gpu, topologies
from hiap.bench import run as bench
from hiap.bench.clock import alternate
from hiap.bench.report import Timing
from hiap.bench.settings import TrainSettings
from hiap.budget.sizes import known_dims
from hiap.objective import penalties
from hiap.train.config import Config, ConfigError, PenaltyConfig, parse_overrides
from hiap.train.device import cpu_has_bf16


@pytest.mark.parametrize("mode", MODES)
def test_padding_keeps_the_function_and_is_counted(images, mode):
    gated = random_gated(small_vit(), dims=mode)
    small = hiap.extract(gated, "padded")
    with torch.no_grad():
        assert relative(small(images), gated(images)) < 1e-5
    executed, ideal = hiap.macs(small, (1, 16, 16), executed=True), hiap.macs(small, (1, 16, 16))
    assert executed == counted_macs(small, (1, 16, 16)) >= ideal
    hiap.set_layout(small, "ragged")
    assert hiap.macs(small, (1, 16, 16), executed=True) == counted_macs(small, (1, 16, 16)) == ideal


def test_the_padded_layout_trains(images):
    gated = random_gated(small_vit())
    gradients = []
    for layout in ("ragged", "padded"):
        small = hiap.extract(gated, layout)
        small(images).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in small.parameters() if p.grad is not None]))
    assert relative(*gradients) < 1e-4


def test_the_true_ledger_prices_what_removal_saves():
    """A closed value dimension lowers the penalty by its share of the true dense MACs, and by less in the paper's."""
    model = small_vit()
    dims = cost.dims_of(model)
    true = ledger.true_prices(dims.tokens, dims.dim, dims.head_dim)
    fallen = {}
    for prices in ("paper", "physical"):
        config = PenaltyConfig(lambda_macro=1, lambda_micro=1, ledger=prices)
        gated = hiap.gate(model).eval()
        kept = gated_vit.masks(gated)
        gated_vit.set_masks(gated, kept)
        before = sum(penalties(gated, config).values()).item()
        assert before == pytest.approx(1, abs=1e-6)
        for mask in kept:
            mask.dims[:, 0] = False
        gated_vit.set_masks(gated, kept)
        fallen[prices] = before - sum(penalties(gated, config).values()).item()
    share = dims.depth * dims.heads * true.value_dim / ledger.dense_cost(dims, true)
    assert fallen["physical"] == pytest.approx(share, rel=1e-4)
    assert fallen["paper"] < 0.7 * fallen["physical"]
    assert Config(penalty=PenaltyConfig(ledger="paper")).run_id == Config().run_id


def test_bench_alternates_and_reports(tmp_path, capsys):
    topologies = "topologies=[full,random:0,random:1]"
    quick = ["model=vit_tiny_patch16_224", "batches=[1]", "rounds=3", "warmup=1", f"out={tmp_path}", "name=quick"]
    assert bench.main(["speed", topologies, *quick]) == 0
    report = bench.Report.model_validate(json.loads((tmp_path / "quick.json").read_text()))
    rows = {row.name: row for row in report.rows}
    assert set(rows) == {"dense", "full/padded"} | {
        f"{name}/{layout}" for name in ("random:0", "random:1") for layout in ("ragged", "padded")
    }
    assert rows["dense"].ratio[1] == 1
    ragged, padded = rows["random:1/ragged"], rows["random:1/padded"]
    assert ragged.executed_macs == ragged.macs == padded.macs < padded.executed_macs < rows["dense"].macs
    assert padded.share == pytest.approx((1 - padded.ratio[1]) / (1 - padded.macs / rows["dense"].macs), abs=1e-3)
    assert all(row.memory > 0 and row.throughput > 0 for row in report.rows)
    assert "quick.json" in capsys.readouterr().out


@pytest.mark.slow
def test_a_rehearsal_makes_every_report_with_what_it_has_on_a_gpu(tmp_path):
    """All but sizes, and bf16 where this CPU has none; the loops of training are all there between the two reports."""
    own = {"batches", "model", "img_size", "topologies", "widths", "gmacs", "loops", "precision"}
    before = time.monotonic()
    assert bench.main(["gpu", "rehearse=true", "budget=1200", str(tmp_path)]) == 0
    print(f"{time.monotonic() - before:.0f} s for {len(gpu.REPORTS)} reports")
    assert {path.stem for path in tmp_path.glob("*.json")} == {*gpu.REPORTS}
    loops = set()
    for name, call in gpu.REPORTS.items():
        found = json.loads((tmp_path / f"{name}.json").read_text())
        mode, *words = call.split()
        asked = parse_overrides(words)
        assert found["mode"] == mode
        assert {k: v for k, v in found["settings"].items() if k in asked.keys() - own} == {
            k: v for k, v in asked.items() if k not in own
        }
        if cpu_has_bf16() and "precision" in asked:
            assert found["settings"]["precision"] == asked["precision"]
        assert len(found["rows"]) > 1
        assert all(row["seconds"][1] > 0 for row in found["rows"])
        loops |= {row["name"] for row in found["rows"]} if mode == "train" else set()
        if mode == "deploy":
            assert {row["runtime"] for row in found["rows"]} == set(asked["runtimes"])
    assert loops == set(TrainSettings().loops)


def test_short_calls_are_timed_with_caches_of_their_own() -> None:
    """Of a network that is slow whenever the other one ran before it, the slow call is not what is reported."""
    clock, before = [0.0], [""]

    def run(name: str, warm: float, cold: float) -> None:
        clock[0] += warm if before[0] == name else cold
        before[0] = name

    runs = {name: partial(run, name, warm, cold) for name, warm, cold in (("dense", 4e-3, 4e-3), ("small", 2e-3, 8e-3))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.perf_counter", lambda: clock[0])
        _, ratios = alternate(runs, "dense", Timing(rounds=3, warmup=1), torch.device("cpu"))
    assert ratios["small"] == pytest.approx([0.5] * 3)


@pytest.mark.parametrize("name", ["fig5@3.1", "fig5@2.5", "uniform@3.1"])
@pytest.mark.parametrize("removed", ["v", "qkv"])
def test_a_topology_at_given_macs_lands_just_below(name, removed):
    dense = timm.create_model("deit_small_patch16_224").eval()
    small = topologies.load(name, 48 if topologies.takes_width(name) else None, dense, 8, removed)
    target = float(name.split("@")[1]) * 1e9
    assert 0.99 * target < hiap.macs(small, (3, 224, 224)) <= target
    for block in small.blocks:
        assert block.mlp is None or block.mlp.fc1.out_features % 8 == 0


@pytest.mark.parametrize("multiple", [1, 8, 1000])
def test_a_topology_is_rounded_up_to_no_more_than_there_is(multiple):
    small = topologies.load("fig5", 36, timm.create_model("deit_small_patch16_224").eval(), multiple)
    heads, neurons = topologies.LAST_EPOCH["fig5"]
    for block, count, wide in zip(small.blocks, heads, neurons, strict=True):
        assert block.attn.value_dims == [min(64, -(-36 // multiple) * multiple)] * count
        assert (block.mlp.fc1.out_features if block.mlp else 0) == min(1536, -(-wide // multiple) * multiple)


def test_figures_scale_to_wider_backbones():
    small, base = (known_dims(f"deit_{size}_patch16_224") for size in ("small", "base"))
    for wide, narrow in zip(topologies.digitised("fig5", base), topologies.digitised("fig5", small), strict=True):
        assert wide == [2 * n for n in narrow]


def test_the_last_epochs_are_those_of_the_published_heat_maps() -> None:
    deit = known_dims("deit_small_patch16_224")
    assert deit is not None
    for figure in published.HEAT_MAPS:
        last = published.last_state(figure)
        assert topologies.digitised(f"fig{figure}", deit) == (last["heads"].tolist(), last["neurons"].tolist())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["speed", "topologies=[fig5@many]"], "expected GMACs behind the @"),
        (["speed", "topologies=[fig5@0.5]"], "attention alone has"),
        ([], "expected one of speed, steps, peer, input"),
        (["speed", "batch=4"], "unknown key 'batch' (did you mean 'batches'?)"),
        (["speed", "model=vit_tyni"], "not a timm model"),
        (["speed", "topologies=[uniform@]"], "expected GMACs behind the @"),
        (["speed", "model=resnet18"], "expected a timm VisionTransformer"),
        (["speed", "model=vit_tiny_patch16_224", "topologies=[fig5]"], "is of a DeiT-Small"),
        (["speed", "clock=cpu", "threads=2"], "clock 'cpu' needs"),
        (["speed", "topologies=[fig4]"], "expected fig5 ... fig9"),
        (["speed", "model=vit_tiny_patch16_224", "widths=[wide]"], "widths"),
    ],
)
def test_bench_refuses_in_one_line(arguments, line, capsys):
    assert bench.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert line in error
    assert error.count("\n") == 1


def test_a_folder_of_another_image_size_is_refused(tmp_path):
    hiap.save(small_vit(), tmp_path / "small")
    with pytest.raises(ConfigError, match="expected one cut from it"):
        topologies.load(str(tmp_path / "small"), None, small_vit(img_size=32))


@pytest.mark.slow
def test_input_is_read_at_the_speed_of_timms_loader(tmp_path):
    """A smoke test with a wide margin; the figure is in results/bench."""
    options = ["images=32", "batches=[16]", "workers=[0]", "rounds=3", "warmup=1", f"out={tmp_path}", "name=i"]
    assert bench.main(["input", *options]) == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "i.json").read_text())["rows"]}
    assert rows["hiap/0"]["batch"] == 32
    assert rows["hiap/0"]["ratio"][1] < 1.5
