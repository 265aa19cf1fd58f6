"""The training step: the same whatever compiles it; what the benchmark times is what runs do."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from conftest import small_vit, tiny

import hiap
from hiap.bench import run as bench
from hiap.bench import train as loops
from hiap.bench.settings import TrainSettings
from hiap.train import run as train
from hiap.train.record import Folders


def test_the_benchmark_trains_as_a_run_does(tmp_path, capsys):
    """Report and rows; and its dense loop learns what a loop written by hand learns."""
    hiap.save(small_vit(), tmp_path / "net")
    asked = [f"model={tmp_path / 'net'}", "batches=[8]", "rounds=3", "warmup=1", f"out={tmp_path}", "name=t"]
    assert bench.main(["train", "loops=[timm,dense,gated]", *asked]) == 0
    report = bench.TrainReport.model_validate(json.loads((tmp_path / "t.json").read_text()))
    assert [row.name for row in report.rows] == ["timm", "dense", "gated"]
    assert report.rows[0].ratio == (1, 1, 1)
    assert all(row.macs == report.rows[0].macs and row.throughput > 0 for row in report.rows)
    made = loops.loops(TrainSettings(model=str(tmp_path / "net"), loops=["timm", "dense"], batches=[8]), 8)
    for model, run in made.values():
        for _ in range(3):
            run()
        model.eval()
    by_timm, ours = (dict(model.named_parameters()) for model, _ in made.values())
    start = dict(small_vit().named_parameters())
    for name, p in ours.items():
        assert (p - by_timm[name]).abs().max() < 1e-6 < (p - start[name]).abs().max()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["loops=[timm]"], "loops: "),
        (["loops=[timm,timm]"], "expected each of them once"),
        (["loops=[timm,hiap]"], "loops"),
        (["compile=true"], "'train' has compiled loops"),
        (["model=resnet18"], "expected a timm VisionTransformer"),
        (["model=resnet18", "img_size=64"], "img_size 64: not of 'resnet18'"),
    ],
)
def test_the_benchmark_refuses_in_one_line(arguments, line, capsys):
    assert bench.main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert line in error
    assert error.count("\n") == 1


def test_no_compiler_is_one_line_before_anything_is_written(tmp_path, monkeypatch):
    import torch._inductor.cpp_builder as builder

    def missing() -> str:
        raise RuntimeError("no g++")

    monkeypatch.setattr(builder, "get_cpp_compiler", missing)
    with pytest.raises(train.ConfigError, match=r"run\.compile: no compiler .* \(no g\+\+\); set run\.compile=false"):
        train.run(tiny(tmp_path, run={"compile": True}))
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
def test_a_compiled_run_is_the_eager_one_but_for_rounding_and_compiles_once(tmp_path):
    """Gates inside the graph, which draws the same noise; annealing and checkpoints compile nothing anew."""
    sections = {
        "method": "hiap",
        "model": {"drop_path": 0.1},
        "optim": {"epochs": 2},
        "gates": {"keep_head": True},
        "penalty": {"lambda_macro": 0.03, "lambda_micro": 0.03},
        "run": {"evaluate_every": 1},
    }
    eager = train.run(tiny(tmp_path / "eager", **sections))
    torch._dynamo.utils.counters.clear()
    sections["run"] = {**sections["run"], "compile": True}
    compiled = train.run(tiny(tmp_path / "compiled", **sections))
    assert compiled.run_id == eager.run_id
    counts = torch._dynamo.utils.counters
    assert counts["stats"]["unique_graphs"] == 1
    assert not counts["graph_break"]
    for one, other in zip(eager.epochs, compiled.epochs, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-4)
        assert other.heads == one.heads
    assert compiled.metrics.extracted.top1 == pytest.approx(eager.metrics.extracted.top1, abs=2)
    assert Folders.of(tiny(tmp_path / "compiled", **sections)).model.exists()
