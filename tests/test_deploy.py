"""Runtimes compute the network; ratios, shares and merged processes follow the clock; what is missing is told."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from shutil import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import small_vit
from test_extraction import random_gated

import hiap
from analysis import dictionary
from analysis.figures import costs, style
from analysis.records import bench
from analysis.records.results import REPOSITORY, Results
from analysis.studies import words
from hiap.backbones.pruned import PrunedAttention
from hiap.bench import clock, deploy, gpu, run, runtimes
from hiap.bench.report import Deployed, DeployReport, DeploySettings
from hiap.bench.runtimes import Network, missing
from hiap.beyond import token_merging

CPU = torch.device("cpu")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A dense network and a pruned one with heads of different widths."""
    hiap.save(small_vit(), tmp_path / "dense")
    hiap.save(hiap.extract(random_gated(small_vit())), tmp_path / "cut")
    return tmp_path / "dense", tmp_path / "cut"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("runtime", ["eager", "onnxruntime", "openvino"])
def test_a_runtime_gives_the_networks_logits(images, tmp_path, runtime, precision):
    if why := missing(runtime, precision, "cpu"):
        pytest.skip(why)
    model = hiap.extract(random_gated(small_vit()))
    network = Network(model, tmp_path, images, CPU, 1)
    with torch.inference_mode():
        found, expected = runtimes.RUNTIMES[runtime](network, precision, len(images))(images), model(images)
    error = float((found - expected).norm() / expected.norm())
    assert found.dtype == torch.float32
    assert error < {"fp32": 1e-5, "bf16": 0.03, "int8": 0.1}[precision]
    assert (error > 1e-4) is (precision != "fp32"), "something else is computed than in fp32"


def test_files_are_made_again_for_other_weights_or_images_only(images, tmp_path):
    made = Network(small_vit(), tmp_path, images, CPU, 1)
    changed = small_vit()
    changed.head.bias.data[0] += 1
    same, other = Network(small_vit(), tmp_path, images, CPU, 2), Network(changed, tmp_path, images, CPU, 1)
    assert made.file("a") == same.file("a") != other.file("a")
    assert made.file("a", images) == same.file("a", images) not in (made.file("a"), made.file("a", images + 1))


def test_every_network_is_compiled_however_many_there_are(monkeypatch):
    """Dynamo keeps 8 entries per code; a benchmark has more networks of one class."""
    graphs = []

    def count(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    class One(torch.nn.Module):
        def __init__(self, width: int):
            super().__init__()
            self.layer = torch.nn.Linear(3, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x)

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=count))
    for width in range(1, 11):
        runtimes.compiled(One(width))(torch.ones(2, 3))
    assert len(graphs) == 10


# Seconds of one call, dense and cut: eager fp32, eager int8, onnxruntime fp32, onnxruntime int8.
SECONDS = {("eager", "fp32"): (8, 6), ("eager", "int8"): (4, 3.6), ("onnxruntime", "fp32"): (5, 3),
           ("onnxruntime", "int8"): (2, 1)}  # fmt: skip


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runtimes that only take time, on a clock of their own."""
    now = [0.0]

    def prepare(runtime: str, network: Network, precision: str, batch: int) -> Any:
        pruned = any(isinstance(m, PrunedAttention) for m in network.model.modules())

        def call(images: torch.Tensor) -> torch.Tensor:
            now[0] += SECONDS[runtime, precision][pruned] * batch
            return torch.zeros(batch, 10)

        return call

    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(deploy, "RUNTIMES", {r: partial(prepare, r) for r in ("eager", "onnxruntime")})
    monkeypatch.setattr(deploy, "missing", lambda *_: "")


def settings_of(dense: Path, cut: Path, **changes: Any) -> DeploySettings:
    two = {"runtimes": ["eager", "onnxruntime"], "precisions": ["int8", "fp32"], "batches": [2], "rounds": 3}
    return DeploySettings(model=str(dense), networks={"cut": str(cut)}, **{**two, **changes})


@pytest.mark.usefixtures("played")
def test_ratios_and_shares_are_those_of_the_clock(folders):
    report = deploy.deploy(settings_of(*folders))
    rows = {row.name: row for row in report.rows}
    cut = 1 - rows["cut/eager/fp32"].macs / rows["dense/eager/fp32"].macs
    assert 0 < cut < 1
    for (runtime, precision), both in SECONDS.items():
        for name, seconds in zip(("dense", "cut"), both, strict=True):
            row = rows[f"{name}/{runtime}/{precision}"]
            assert row.seconds == pytest.approx([2 * seconds] * 3)
            assert row.ratio[1] == pytest.approx(seconds / SECONDS[runtime, "fp32"][0])
            assert row.against_best[1] == pytest.approx(seconds / 5), "ONNX Runtime is the fastest in fp32"
            assert row.against_same is not None
            assert row.against_same[1] == pytest.approx(seconds / both[0])
            assert row.share == (None if name == "dense" else pytest.approx((1 - seconds / both[0]) / cut, abs=1e-3))
    first = next(line for line in deploy.lines(report) if "cut" in line and "int8" in line)
    assert first.split()[1:] == ["cut", "onnxruntime", "int8", "2000.00", "5.00", "5.00", f"{0.5 / cut:.3f}"]


@pytest.mark.usefixtures("played")
def test_of_several_processes_the_fastest_runtime_is_one(folders):
    """Where processes disagree about it, all are held against the one that is the fastest over all."""
    one = deploy.deploy(settings_of(*folders))
    other = one.model_copy(deep=True)
    for row in other.rows:  # a process in which ONNX Runtime took three times as long
        if row.runtime == "onnxruntime":
            row.against_best = tuple(3 * x for x in row.against_best)
    best = next(row for row in other.rows if row.name == "dense/eager/fp32").against_best[1]
    for row in other.rows:
        row.against_best = tuple(x / best for x in row.against_best)
    merged = {row.name: row for row in deploy.merged([one, other, one]).rows}
    assert merged["dense/onnxruntime/fp32"].against_best == (1, 1, 1)
    assert merged["dense/eager/fp32"].against_best == pytest.approx((1.6 * 2 / 3, 1.6, 1.6), abs=1e-5)


@pytest.mark.usefixtures("played")
def test_the_worst_process_is_told(folders):
    one = deploy.deploy(settings_of(*folders))
    worse = one.model_copy(deep=True)
    for row in worse.rows:
        row.share = None if row.share is None else row.share - 0.25
    found = deploy.merged([one, worse, one])
    rows = {row.name: row for row in found.rows}
    for before in one.rows:
        row = rows[before.name]
        assert row.share == before.share, "the processes' median"
        assert row.worst == (None if before.share is None else before.share - 0.25)
    assert one.rows[0].worst is None
    assert any(f"{row.share:.3f} ({row.worst:.3f})" in line for line in deploy.lines(found) for row in rows.values()
               if row.share is not None)  # fmt: skip


@pytest.mark.usefixtures("played")
def test_accuracy_is_measured_by_the_first_process_alone(folders, tmp_path, monkeypatch):
    children = []

    def start(child: list[str], **_: Any) -> None:
        children.append(child)
        assert run.main(child[3:]) == 0

    monkeypatch.setattr(run, "subprocess", SimpleNamespace(run=start, DEVNULL=None))
    dense, cut = folders
    asked = ["batches=[2]", "rounds=3", "runtimes=[eager,onnxruntime]", "precisions=[fp32,int8]", "data=digits"]
    two = [*asked, "test_size=4", "processes=2", f"out={tmp_path}", "name=two"]
    assert run.main(["deploy", f"model={dense}", f"networks.cut={cut}", *two]) == 0
    report = DeployReport.model_validate_json((tmp_path / "two.json").read_text())
    assert report.settings.processes == 2
    assert all(row.score is not None and row.score.n == 4 for row in report.rows)
    assert ["test_size=0" in child for child in children] == [False, True]
    assert len({next(word for word in child if word.startswith("files=")) for child in children}) == 1


@pytest.mark.usefixtures("played")
def test_the_notebook_shows_the_runtime_to_take(folders, tmp_path):
    (tmp_path / "bench").mkdir()
    for name in ("one", "two"):
        report = deploy.deploy(settings_of(*folders, batches=[1, 2]))
        (tmp_path / "bench" / f"{name}.json").write_text(report.model_dump_json())
    results = Results(tmp_path)
    assert bench.load(results).empty, "other reports have other columns"
    rows = bench.deploy(results)
    take = rows[rows["fastest"] & (rows["report"] == "two") & (rows["batch"] == 2)].set_index(["network", "precision"])
    assert set(take["runtime"]) == {"onnxruntime"}
    assert take["best"].to_dict() == {
        (name, precision): pytest.approx(5 / SECONDS["onnxruntime", precision][name == "cut"])
        for name in ("dense", "cut")
        for precision in ("fp32", "int8")
    }
    assert (rows["best_low"] <= rows["best"]).all()
    figure = costs.deploy(rows)
    assert len(figure.axes) == 4
    (tmp_path / "bench" / f"{words.DEPLOYED}.json").write_text(report.model_dump_json())
    said = words.deployed(Results(tmp_path))
    best = {n: 5 / SECONDS["onnxruntime", "int8"][n == "cut"] for n in ("dense", "cut")}
    for line in (f"| Dense | 100 % | int8 | {best['dense']:.2f} (ONNX Runtime)", f"| int8 | {best['cut']:.2f} (ONNX"):
        assert line in said
    assert said.count("\n| ") == 5
    figure.draw_without_rendering()
    ends = rows.groupby(["report", "batch"])["best_high"].max()
    assert all(ax.get_xlim()[1] > end for ax, end in zip(figure.axes, ends, strict=True)), "nothing lies outside"
    assert figure.get_tightbbox().x1 <= figure.get_figwidth() + 0.02
    style.save(figure, "deploy", rows, tmp_path)
    assert list(dictionary.problems(tmp_path)) == []


def test_without_a_deploy_report_there_is_nothing_to_show(tmp_path):
    (tmp_path / "bench").mkdir()
    copy(REPOSITORY / "results" / "bench" / "steps_vit_tiny_cpu.json", tmp_path / "bench")
    assert len(bench.deploy(Results(tmp_path))) == 0


def test_deploy_from_networks_to_report(folders, tmp_path, monkeypatch, capsys):
    """Two real runtimes; OpenVINO is not there."""
    found = runtimes.find_spec
    monkeypatch.setattr(runtimes, "find_spec", lambda name: None if name == "openvino" else found(name))
    quick = ["batches=[4]", "rounds=3", "warmup=1", "runtimes=[eager,onnxruntime,openvino]", "precisions=[fp32,int8]"]
    data = ["data=digits", "test_size=32", "calibration=16", f"out={tmp_path}", "name=quick"]
    dense, cut = folders
    assert run.main(["deploy", f"model={dense}", f"networks.cut={cut}", *quick, *data]) == 0
    report = DeployReport.model_validate(json.loads((tmp_path / "quick.json").read_text()))
    rows = {row.name: row for row in report.rows}
    assert set(rows) == {
        f"{n}/{r}/{p}" for n in ("dense", "cut") for r in ("eager", "onnxruntime") for p in ("fp32", "int8")
    }
    assert all(row.score is not None and row.score.n == 32 for row in report.rows)
    assert rows["cut/eager/fp32"].score.correct == rows["cut/onnxruntime/fp32"].score.correct
    assert report.left_out == ["openvino: openvino is not installed (the extra 'runtimes' has it)"]
    assert "onnxruntime" in report.environment.libraries
    assert "left out: openvino: " in capsys.readouterr().out


def test_tokens_are_merged_in_every_network_beside_it(folders, tmp_path):
    (tmp_path / "bench").mkdir()
    dense, cut = folders
    quick = ["batches=[4]", "rounds=3", "warmup=1", "runtimes=[eager]", "precisions=[fp32]", "merge=[0.5,1]"]
    data = ["data=digits", "test_size=32", "calibration=16", f"out={tmp_path / 'bench'}", "name=both"]
    assert run.main(["deploy", f"model={dense}", f"networks.cut={cut}", *quick, *data]) == 0
    rows = bench.deploy(Results(tmp_path)).set_index(["network", "merged"])
    assert set(rows.index) == {(name, pairs) for name in ("dense", "cut") for pairs in (0, 0.5, 1)}
    small = hiap.load(cut)
    assert rows.loc[("cut", 0.0), "macs"] == hiap.macs(small, (1, 16, 16))
    assert rows.loc[("cut", 0.5), "macs"] == token_merging.macs(small, [0, 1, 0, 1][: len(small.blocks)])
    assert rows.loc[("cut", 1.0), "macs"] == token_merging.macs(small, 1)
    assert rows["top1"].notna().all()
    figure = costs.merging(rows.reset_index())
    assert {text.get_text() for text in figure.axes[0].texts} == {"0", "0.5", "1"}
    style.save(figure, "deploy_merging", rows.reset_index(), tmp_path)
    assert list(dictionary.problems(tmp_path)) == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["merge=[0]"], "merge"),
        (["precisions=[int8]"], "expected fp32 among them"),
        (["networks={dense: x}"], "networks 'dense': that is the name of another"),
        (["networks={a: nowhere}"], "nowhere: no such folder; expected"),
        (
            ["model={cut}", "networks={a: {dense}}", "data=fashion-mnist", "root=nowhere"],
            "must be a folder with the four",
        ),
        (["data=digits", "topologies=[full]"], "data 'digits': 10 classes of square images with 1 channel(s)"),
        (
            ["networks={a: {dense}}"],
            "a: images and classes (1, 16, 16, 10); expected the dense network's (3, 224, 224, 1000)",
        ),
        (["compile=true"], "unknown key 'compile'"),
    ],
)
def test_deploy_refuses_in_one_line(arguments, line, folders, capsys):
    arguments = [a.replace("{dense}", str(folders[0])).replace("{cut}", str(folders[1])) for a in arguments]
    model = [] if arguments[0].startswith("model") else ["model=vit_tiny_patch16_224"]
    assert run.main(["deploy", *model, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert line in error


def test_what_a_process_refuses_is_one_line(folders, tmp_path, capfd):
    """Only the processes read the networks."""
    asked = ["deploy", f"model={folders[0]}", f"networks.a={tmp_path / 'nowhere'}", "processes=2", f"out={tmp_path}"]
    assert run.main(asked) == 2
    error = capfd.readouterr().err
    assert "Traceback" not in error
    assert error.strip().splitlines()[-1].startswith("error: ")
    assert not list(tmp_path.glob("*.json"))


def test_gpu_goes_on_past_what_fails_and_keeps_what_is_there(folders, tmp_path, monkeypatch, capfd):
    reports = {
        "bad": "speed topologies=[fig4]",
        "good": f"speed model={folders[0]} topologies=[{folders[1]}] batches=[1] rounds=3 warmup=1",
    }
    monkeypatch.setattr(gpu, "REPORTS", reports)
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    monkeypatch.setattr(gpu, "_without", lambda: "")
    assert run.main(["gpu", str(tmp_path), "minutes=1.0e-9"]) == 0
    assert "not done in 1e-09 minutes: bad, good; the same command goes on" in capfd.readouterr().out
    assert run.main(["gpu", str(tmp_path)]) == 1
    assert "failed: bad: error: topology 'fig4': expected fig5" in capfd.readouterr().err
    written = (tmp_path / "good.json").read_bytes()
    monkeypatch.setattr(gpu, "REPORTS", {"good": "nothing that runs"})
    assert run.main(["gpu", str(tmp_path)]) == 0
    assert (tmp_path / "good.json").read_bytes() == written


def test_gpus_reports_are_calls_that_the_benchmark_takes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, call in gpu.REPORTS.items():
        run.parse([*call.split(), "device=cuda", f"name={name}"])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "gpu: "),
        (["minutes=no"], "minutes: expected a number above 0, not"),
        (["hours=1"], "unknown key 'hours'"),
        (["a", "b"], "expected one folder"),
    ],
)
def test_gpu_refuses_in_one_line(arguments, line, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "_without", lambda: "no CUDA device here")
    assert run.main(["gpu", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert line in error


def test_a_row_without_its_dense_twin_has_no_share():
    row = Deployed(name="cut/eager/int8", network="cut", runtime="eager", precision="int8", batch=1, macs=1, params=1,
                   seconds=(1, 1, 1), throughput=1, ratio=(1, 1, 1), against_best=(1, 1, 1),
                   against_same=None)  # fmt: skip
    dense = row.model_copy(update={"name": "dense/eager/fp32", "network": "dense", "macs": 2, "precision": "fp32"})
    assert [one.share for one in deploy._shared([dense, row])] == [None, None]
