"""The launcher: nothing starts before everything is checked, nothing finished is lost or run twice."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import fake_train
import pytest
import yaml

from hiap.budget.sizes import dense_params, known_dims
from hiap.data import fashion_mnist
from hiap.data import loader as data
from hiap.files import write_json
from hiap.formats import store
from hiap.ledger import dense_macs
from hiap.train.config import ON_DISK, Config, ConfigError, check_needs, from_dict
from hiap.train.reach import check_reach
from hiap.train.record import EpochLog, Folders, GateLog, Metrics, Record, read, summary, write
from slurm import estimate, grid, launch_grid, page, report, submission
from slurm.grid import GRIDS, expand, load, select
from slurm.site import Site

REPOSITORY = Path(__file__).parents[1]
BASE = {
    "model": {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2},
    "data": {"name": "digits"},
    "optim": {"epochs": 1},
    "gates": {"lr": 2.0},
}
RUNS = {
    "uniform": {"method": "uniform", "model.weights": "run:dense", "budget.target_macs": "run:hiap"},
    "hiap": {"method": "hiap", "model.weights": "run:dense"},
    "dense": {"method": "dense"},
}


def write_grid(folder: Path, **changes: object) -> Path:
    values = {"name": "tiny", "about": "a test", "base": BASE, "runs": RUNS, **changes}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def runs_of(path: Path, results: Path, *labels: str) -> list[grid.Run]:
    return select(expand(load(path), path, {"results": str(results)}), list(labels))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in for ``hiap.train.run``, here and in child processes; returns the log of starts and ends."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import sys, fake_train\nsys.modules['hiap.train.run'] = sys.modules['hiap.train.everything'] = fake_train\n"
    )
    path = os.pathsep.join([str(tmp_path / "site"), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setitem(sys.modules, "hiap.train.run", fake_train)
    return tmp_path / "log"


def launch(path: Path, *options: str, cluster: str = "debug") -> int:
    results = path.parent / "out"
    return launch_grid.main(["--grid", str(path), "--results", str(results), "--cluster", cluster, *options])


def start(path: Path, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "slurm/launch_grid.py", "--grid", str(path), "--cluster", "local"]
    command += ["--results", str(path.parent / "out")]
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def events(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def wait_for(condition: object, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


# Grid files to runs


def test_references_become_run_ids_of_the_same_seed_and_needs_come_first(tmp_path: Path) -> None:
    runs = runs_of(write_grid(tmp_path, seeds=[0, 1]), tmp_path)
    assert [(r.label, r.config.seed) for r in runs] == [(n, s) for n in ("dense", "hiap", "uniform") for s in (0, 1)]
    dense, _, hiap, hiap1, uniform, _ = runs
    assert uniform.config.model.weights == f"run:{dense.run_id}"
    assert uniform.config.budget.target_macs == f"run:{hiap.run_id}"
    assert uniform.needs == (dense, hiap)
    assert [r.stage for r in runs] == [0, 0, 1, 1, 2, 2]
    assert hiap1.run_id != hiap.run_id
    assert hiap1.needs[0].config.seed == 1
    assert {r.config.run.label for r in runs} == set(RUNS)


def test_a_run_may_have_fewer_seeds_and_share_settings(tmp_path: Path) -> None:
    shared = {"tuned": {"gates.lr": 0.05, "optim": {"lr": 0.5}}, "short": {"optim.epochs": 2}}
    both = {**RUNS["hiap"], "like": ["tuned", "short"], "optim.lr": 0.25, "seeds": [1]}
    written = write_grid(tmp_path, seeds=[0, 1], shared=shared, runs={**RUNS, "both": both})
    runs = runs_of(written, tmp_path)
    (run,) = [run for run in runs if run.label == "both"]
    assert len(runs) == 7
    assert (run.config.seed, run.needs[0].config.seed) == (1, 1)
    assert (run.config.gates.lr, run.config.optim.lr, run.config.optim.epochs) == (0.05, 0.25, 2)
    assert all(run.config.gates.lr == 2.0 for run in runs if run.label != "both")


def test_one_seed_can_be_chosen_with_what_it_needs(tmp_path: Path) -> None:
    runs = runs_of(write_grid(tmp_path, seeds=[0, 1]), tmp_path)
    assert [(r.label, r.config.seed) for r in select(runs, ["hiap"], [1])] == [("dense", 1), ("hiap", 1)]
    assert len(select(runs, [], [0])) == 3
    with pytest.raises(ConfigError, match="no seed 7"):
        select(runs, [], [7])


def test_hints_and_folders_do_not_change_run_ids(tmp_path: Path) -> None:
    one = runs_of(write_grid(tmp_path), tmp_path / "a")
    two = runs_of(write_grid(tmp_path, jobs=7, threads=3, name="other"), tmp_path / "b")
    assert [r.run_id for r in one] == [r.run_id for r in two]


def test_only_takes_what_the_chosen_runs_need(tmp_path: Path) -> None:
    assert [r.label for r in runs_of(write_grid(tmp_path), tmp_path, "hiap")] == ["dense", "hiap"]


@pytest.mark.parametrize("path", sorted(GRIDS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_grid_in_the_repository_is_valid(path: Path) -> None:
    loaded = load(path)
    assert loaded.name == path.stem
    runs = expand(loaded, path, {})
    assert len(runs) == sum(len(own.get("seeds", loaded.seeds)) for own in loaded.runs.values())
    assert loaded.published
    for run in runs:
        check_needs(run.config)
        check_reach(run.config, estimate.steps_per_epoch(run.config), loaded.closes_by)
        if run.config.data.name in ON_DISK:
            assert "data.root is empty" in report_of(run.config)
        elif run.config.data.name != "fashion-mnist" or has_fashion():
            data.check(run.config.data, run.config.model.img_size)


def has_fashion() -> bool:
    try:
        return bool(fashion_mnist.find())
    except ConfigError:
        return False


def test_a_reading_stands_between_base_and_run_and_its_gates_are_for_hiap_alone(tmp_path: Path) -> None:
    runs = {"dense": {"method": "dense"}, "a": {"method": "hiap", "model.weights": "run:dense", "gates.lr": 0.5},
            "b": {"method": "uniform", "model.weights": "run:dense", "budget.target_macs": 0.5}}  # fmt: skip
    dense, a, b = runs_of(write_grid(tmp_path, reading="calibrated", runs=runs), tmp_path)
    assert a.config.gates.init_macro == 0.2
    assert a.config.gates.lr == 0.5
    assert b.config.gates.init_macro is None
    assert not a.config.distill.t_squared
    assert not b.config.distill.t_squared, "what all distil with is the same"
    with pytest.raises(ConfigError, match="unknown reading 'calibratd' \\(did you mean 'calibrated'"):
        runs_of(write_grid(tmp_path, reading="calibratd"), tmp_path)
    assert dense.run_id
    shared = {"ours": {"method": "hiap"}, "other": {"method": "uniform", "budget.target_macs": 0.5}}
    runs = {"a": {"like": "ours"}, "b": {"like": "other"}}
    a, b = runs_of(
        write_grid(tmp_path, reading="calibrated", base={"method": "l1"}, shared=shared, runs=runs), tmp_path
    )
    assert (a.config.gates.init_macro, b.config.gates.init_macro) == (0.2, None), "of the method that it comes to"


def test_keys_of_seeds_are_laid_over_those_of_the_grid_that_is_extended(tmp_path: Path) -> None:
    parent = write_grid(tmp_path, seeds=[0, 1, 2], by_seed={1: {"optim": {"precision": "bf16"}}})
    own = {"name": "child", "extends": str(parent), "about": "a test"}
    (tmp_path / "child.yaml").write_text(yaml.safe_dump({**own, "by_seed": {2: {"optim.epochs": 3}}}))
    child = load(tmp_path / "child.yaml")
    assert child.by_seed == {1: {"optim": {"precision": "bf16"}}, 2: {"optim": {"epochs": 3}}}


def test_a_grid_that_extends_another_lays_its_keys_over_it_however_they_are_written(tmp_path: Path) -> None:
    own = {"name": "more", "extends": "evidence", "about": "a test"}
    own |= {"base": {"model.img_size": 112}, "shared": {"hiap": {"gates": {"lr": None, "travel": 9}}}}
    own["runs"] = {"hiap-50": {"budget.ramp": 0.9}, "lr0.5": {"method": "dense", "optim.epochs": 7, "seeds": [0]}}
    path = tmp_path / "more.yaml"
    path.write_text(yaml.safe_dump(own))
    parent, child = load(grid.find("evidence")), load(path)
    assert set(child.runs) == {*parent.runs, "lr0.5"}, "a dot in a name is no key of a key"
    assert (child.threads, child.name, child.seeds) == (parent.threads, "more", parent.seeds)
    mine = {run.label: run.config for run in expand(child, path, {}) if run.config.seed == 0}
    theirs = {run.label: run.config for run in expand(parent, path, {}) if run.config.seed == 0}
    assert (mine["hiap-50"].gates.travel, mine["hiap-50"].budget.ramp, mine["hiap-65"].gates.travel) == (9, 0.9, 9)
    assert mine["taylor-50"].optim == theirs["taylor-50"].optim
    assert {config.model.img_size for config in mine.values()} == {112}
    for name in ({}, {"name": "evidence"}):
        path.write_text(yaml.safe_dump({**{key: own[key] for key in own if key != "name"}, **name}))
        with pytest.raises(ConfigError, match="name: expected one of its own: other runs than those of grid evidence"):
            load(path)
    path.write_text(yaml.safe_dump({**own, "seeds": [True]}))
    with pytest.raises(ConfigError, match="seeds"):
        load(path)
    path.write_text(yaml.safe_dump({**own, "extends": "evidance"}))
    with pytest.raises(ConfigError, match="no grid 'evidance'"):
        load(path)


def test_keys_of_a_seed_lie_over_all_runs_of_that_seed_alone(tmp_path: Path) -> None:
    plain = {run.config.seed: run for run in runs_of(write_grid(tmp_path, seeds=[0, 3]), tmp_path)}
    found = {
        run.config.seed: run
        for run in runs_of(write_grid(tmp_path, seeds=[0, 3], by_seed={3: {"optim.precision": "bf16"}}), tmp_path)
    }
    assert found[0].run_id == plain[0].run_id
    assert found[3].run_id != plain[3].run_id
    assert (found[0].config.optim.precision, found[3].config.optim.precision) == ("fp32", "bf16")
    assert found[3].config.optim.model_copy(update={"precision": "fp32"}) == plain[3].config.optim
    for keys, message in (({4: {"optim.epochs": 1}}, "by_seed: 4 is none of the seeds"),
                          ({3: {"seed": 1}}, "by_seed: 3: seed cannot be set in a grid"),
                          ({3: {"optim.epoch": 1}}, "optim.epoch")):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            runs_of(write_grid(tmp_path, seeds=[0, 3], by_seed=keys), tmp_path)


def test_a_grid_whose_gates_cannot_close_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for changes, message in (({"base": {**BASE, "gates": {"lr": 0.1}}}, "too slow to prune: a gate starts 3"),
                             ({"closes_by": 1, "base": {**BASE, "optim": {"epochs": 50}, "gates": {"travel": 9}}},
                              "too slow to prune within 1 epoch")):  # fmt: skip
        assert launch_grid.main(["--grid", str(write_grid(tmp_path, **changes)), "--dry-run"]) == 2
        shown = capsys.readouterr().err
        assert "run 'hiap': " + message in shown
        assert shown.count("\n") == 1


def report_of(config: Config) -> str:
    with pytest.raises(ConfigError) as caught:
        data.check(config.data, config.model.img_size)
    return str(caught.value)


def test_the_bill_comes_also_where_the_data_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch_grid.main(["--grid", "imagenet_table2", "--dry-run"]) == 2
    shown = capsys.readouterr()
    assert "GPU-hours" in shown.out
    assert "data.root is empty" in shown.err


# Bad input

BAD = {
    "unknown shared settings": (
        {"shared": {"tuned": {}}, "runs": {"a": {"like": "tunde"}}},
        [],
        ["'a'", "tunde", "'tuned'"],
    ),
    "seeds that the grid lacks": ({"runs": {"a": {"seeds": [3]}}}, [], ["'a'", "seeds", "[0]", "[3]"]),
    "a need without the seed": (
        {"seeds": [0, 1], "runs": {**RUNS, "dense": {"method": "dense", "seeds": [0]}}},
        [],
        ["'dense'", "no seed 1"],
    ),
    "unknown grid key": ({"sedes": [0]}, [], ["tiny.yaml", "sedes", "'seeds'"]),
    "unknown config key": (
        {"runs": {"a": {"penalty.lamda_macro": 1}}},
        [],
        ["tiny.yaml", "'a'", "penalty.lamda_macro", "'penalty.lambda_macro'"],
    ),
    "wrong type": ({"runs": {"a": {"model.depth": "four"}}}, [], ["tiny.yaml", "'a'", "model.depth", "'four'"]),
    "wrong type of a grid key": ({"seeds": "0, 1"}, [], ["tiny.yaml", "seeds", "list"]),
    "no runs": ({"runs": {}}, [], ["tiny.yaml", "runs"]),
    "unknown label": ({"runs": {"dense": {}, "b": {"model.weights": "run:dens"}}}, [], ["'b'", "dens", "'dense'"]),
    "circle": (
        {"runs": {"a": {"model.weights": "run:b"}, "b": {"model.weights": "run:a"}}},
        [],
        ["tiny.yaml", "circle", "a -> b"],
    ),
    "same run twice": ({"runs": {"a": {}, "b": {}}}, [], ["tiny.yaml", "'a' and 'b'"]),
    "key of the launcher": ({"runs": {"a": {"run": {"label": "x"}}}}, [], ["'a'", "run.label"]),
    "seed in a run": ({"runs": {"a": {"seed": 3}}}, [], ["'a'", "seeds"]),
    "missing data": ({"base": {"data": {"name": "cifar10", "root": "/no/such"}}}, [], ["'dense'", "/no/such", "cifar"]),
    "negative lambda": ({"runs": {"a": {"penalty": {"lambda_macro": -1}}}}, [], ["penalty.lambda_macro", "-1"]),
    "zero epochs": ({"runs": {"a": {"optim": {"epochs": 0}}}}, [], ["optim.epochs", "0"]),
    "no teacher": ({"runs": {"a": {"method": "hiap"}}}, [], ["'a'", "set model.weights or distill.teacher"]),
    "no target": ({"runs": {"a": {"method": "l1", "distill.alpha": 0}}}, [], ["'a'", "set budget.target_macs"]),
    "unwritable results": ({}, ["--results", "/proc/results"], ["--results /proc/results", "/proc"]),
    "results in a file": ({}, ["--results", __file__ + "/x"], ["--results", "Not a directory"]),
    "unknown --only": ({}, ["--only", "dens"], ["--only", "'dens'", "'dense'"]),
    "a budget of nothing": ({}, ["--budget", "0"], ["--budget", "at least 1 second"]),
    "packs of runs that several processes share": ({"pack": 2, "processes": 2}, [], ["tiny.yaml", "pack 2"]),
    "no jobs": ({}, ["--jobs", "0"], ["--jobs", "at least 1"]),
    "unknown option": ({}, ["--job-count", "3"], ["--job-count"]),
    "unknown grid": ({}, ["--grid", "labtop"], ["labtop", "laptop"]),
    "no such file": ({}, ["--grid", "/no/such.yaml"], ["/no/such.yaml"]),
    "no slurm": ({}, ["--cluster", "slurm"], ["scontrol ping"]),
}


@pytest.mark.parametrize(("changes", "options", "parts"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line_and_writes_nothing(
    changes: dict, options: list[str], parts: list[str], tmp_path: Path, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch(write_grid(tmp_path, **changes), *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    for part in parts:
        assert part in error
    assert not (tmp_path / "out").exists()
    assert not events(fake)


@pytest.mark.parametrize(
    ("text", "part"),
    [("name: [", "not YAML"), ("", "expected a grid"), ("name: a\nruns:\n  x: {}\n  x: {}\n", "'x' is given twice")],
)
def test_bad_yaml_is_one_line(text: str, part: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=part) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_broken_record_is_reported_not_overwritten(
    tmp_path: Path, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_grid(tmp_path)
    record = runs_of(path, tmp_path / "out")[0].folders.record
    record.parent.mkdir(parents=True)
    record.write_text("{")
    assert launch(path) == 2
    assert str(record) in capsys.readouterr().err
    assert record.read_text() == "{"
    assert not events(fake)


# Execution


def test_runs_follow_what_they_need_and_are_done_once(tmp_path: Path, fake: Path) -> None:
    path = write_grid(tmp_path)
    assert launch(path) == 0
    assert [e.split()[1] for e in events(fake) if e.startswith("end")] == ["dense", "hiap", "uniform"]
    assert launch(path) == 0
    assert Counter(e.split()[0] for e in events(fake)) == {"start": 3, "end": 3}


def test_a_network_that_did_not_travel_with_its_record_is_made_again_where_it_is_needed(
    tmp_path: Path, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = {"method": "dense", "model.weights": "run:hiap"}
    path = write_grid(tmp_path, runs={**RUNS, "tuned": tuned})
    assert launch(path) == 0
    of = {run.label: run.folders for run in runs_of(path, tmp_path / "out")}
    shutil.rmtree(tmp_path / "out" / "work")  # as in a fresh clone
    assert launch(path) == 0
    assert len(events(fake)) == 8, "nothing is made again where nothing is to be done"
    of["tuned"].record.unlink()
    write(read(of["hiap"].record).model_copy(update={"metrics": Metrics()}), of["hiap"])
    capsys.readouterr()
    assert launch(path) == 0
    assert [e.split()[1] for e in events(fake)[8:] if e.startswith("start")] == ["dense", "hiap", "tuned"]
    out = capsys.readouterr().out
    assert out.count("its record is here, its network is not") == 2
    assert "hiap: recorded None % (), now 91.25 % (); runs from before belong to the earlier one" in out
    assert not any(folders.earlier.exists() for folders in of.values())


@pytest.mark.parametrize("cluster", ["debug", "local"])
def test_a_failure_stops_only_what_needs_it(
    cluster: str, tmp_path: Path, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {
        "dense": {"method": "dense"},
        "bad": {"method": "hiap", "model.weights": "run:dense"},
        "after-bad": {"method": "l1", "model.weights": "run:dense", "budget.target_macs": "run:bad"},
        "after-after": {"method": "l1", "model.weights": "run:dense", "budget.target_macs": "run:after-bad"},
        "good": {"method": "hiap", "model.weights": "run:dense", "gates.init_logit": 2},
        "wrong": {"method": "dense", "optim.lr": 1},
    }
    assert launch(write_grid(tmp_path, runs=runs, jobs=3), cluster=cluster) == 1
    out = capsys.readouterr().out
    assert "bad: failed (FloatingPointError: the loss is nan)" in out
    assert "wrong: failed (" in out
    assert "this cannot be run)" in out
    assert "after-bad: not run (needs bad)" in out
    assert "after-after: not run (needs after-bad)" in out
    assert {e.split()[1] for e in events(fake) if e.startswith("end")} == {"dense", "good"}
    assert len(list((tmp_path / "out" / "runs" / "tiny").glob("*.json"))) == 3  # two finished, one failed


def test_a_process_that_is_killed_is_a_failure(tmp_path: Path, fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(write_grid(tmp_path, runs={"dies": {"method": "dense"}}), cluster="local") == 1
    assert "dies: failed" in capsys.readouterr().out


def test_jobs_run_side_by_side_and_never_more_than_asked(
    tmp_path: Path, fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_SECONDS", "0.6")
    runs = {f"r{i}": {"method": "dense", "optim.lr": i + 1} for i in range(3)}
    assert launch(write_grid(tmp_path, runs=runs, threads=5), "--jobs", "2", cluster="local") == 0
    active = most = 0
    for event in events(fake):
        active += 1 if event.startswith("start") else -1
        most = max(most, active)
    assert most == 2
    assert all(event.endswith(" 5") for event in events(fake) if event.startswith("end"))  # OMP_NUM_THREADS
    assert "OMP_NUM_THREADS" not in os.environ or os.environ["OMP_NUM_THREADS"] != "5"


def test_a_run_that_kills_its_process_takes_no_other_with_it(tmp_path: Path, fake: Path) -> None:
    runs = {label: {"method": "dense", "optim.lr": i + 1} for i, label in enumerate(("dies", "a", "dies-too", "b"))}
    assert launch(write_grid(tmp_path, runs=runs), "--jobs", "2", cluster="local") == 1
    assert {e.split()[1] for e in events(fake) if e.startswith("end")} == {"a", "b"}


def test_several_runs_on_a_gpu_share_it_by_mps_where_there_is_one(
    tmp_path: Path, fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    control = tmp_path / "bin" / "nvidia-cuda-mps-control"
    control.write_text(f'#!/bin/sh\n[ "$1" = -d ] && read_=start || read read_\necho $read_ >> {fake}\n')
    control.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.setenv("FAKE_SECONDS", "0.5")
    runs = {f"r{i}": {"method": "dense", "optim.lr": i + 1} for i in range(4)}
    assert launch(write_grid(tmp_path, runs=runs), "--jobs", "4", cluster="local") == 0
    assert (events(fake)[0], events(fake)[-1]) == ("start", "quit")
    ends = [e.split()[3:] for e in events(fake) if e.startswith("end")]
    assert sorted(gpu for gpu, _ in ends) == ["5", "5", "7", "7"]
    assert all(Path(pipes).name.startswith("mps-") for _, pipes in ends)
    assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    fake.unlink()
    assert (
        launch(write_grid(tmp_path, runs={"s": {"method": "dense", "optim.lr": 9}}), "--jobs", "2", cluster="local")
        == 0
    )
    assert (len(events(fake)), events(fake)[0]) == (2, "start s"), "one on each needs none"


@pytest.mark.parametrize("cluster", ["debug", "local"])
def test_a_launcher_with_a_budget_stops_in_time_and_goes_on_later(
    cluster: str, tmp_path: Path, fake: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = {f"r{i}": {"method": "dense", "optim.lr": i + 1} for i in range(20)}
    path = write_grid(tmp_path, runs=runs)
    monkeypatch.setenv("FAKE_SECONDS", "0.3")
    begin = time.monotonic()
    assert launch(path, "--budget", "4", cluster=cluster) == 124
    assert time.monotonic() - begin < 4.5
    done = sum(run.finished for run in runs_of(path, tmp_path / "out"))
    assert done < 20, "however many a busy machine gets through"
    assert f"--budget 4: {done} of 20 runs are finished; launch again to go on" in capsys.readouterr().out
    monkeypatch.setenv("FAKE_SECONDS", "0")
    assert launch(path, "--budget", "100", cluster=cluster) == 0
    assert all(run.finished for run in runs_of(path, tmp_path / "out"))
    assert Counter(e.split()[1] for e in events(fake) if e.startswith("end")) == dict.fromkeys(runs, 1)
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_killed_launcher_started_again_runs_nothing_twice(tmp_path: Path, fake: Path) -> None:
    path = write_grid(tmp_path)
    dense = runs_of(path, tmp_path / "out")[0]
    fake_train.leave(fake_train.make_record(dense.config, "finished"))
    first = start(path, FAKE_SECONDS="1")
    wait_for(lambda: "start hiap" in events(fake))
    first.kill()  # its job lives on
    first.communicate()
    second = start(path, FAKE_SECONDS="0")
    out, _ = second.communicate(timeout=20)
    assert second.returncode == 0, out
    assert Counter(e.split()[1] for e in events(fake) if e.startswith("start")) == {"hiap": 1, "uniform": 1}


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_launcher_leaves_no_process_and_keeps_what_is_finished(
    number: int, status: int, tmp_path: Path, fake: Path
) -> None:
    path = write_grid(tmp_path, runs={"dense": {"method": "dense"}, "slow": {"model.weights": "run:dense"}})
    dense, slow = runs_of(path, tmp_path / "out")
    fake_train.leave(fake_train.make_record(dense.config, "finished"))
    launcher = start(path, FAKE_SECONDS="60")
    wait_for(lambda: "start slow" in events(fake))
    launcher.send_signal(number)
    out, _ = launcher.communicate(timeout=20)
    assert launcher.returncode == status, out
    assert "Traceback" not in out
    with (slow.folders.work / "lock.0").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if the job still lives
    assert dense.finished
    assert not slow.finished


def test_slurm_gets_one_array_per_stage_after_all_that_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slurm.executors import Slurm

    for command, script in {
        "srun": "",
        "sbatch": f"echo 1 >> {tmp_path}/n; n=$(wc -l < {tmp_path}/n); echo Submitted batch job $n",
        "squeue": f"test -e {tmp_path}/down && exit 1; seq -f %.0f_0 $(wc -l < {tmp_path}/n)",
    }.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / command).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / command).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    runs = runs_of(write_grid(tmp_path, seeds=[0, 1]), tmp_path)
    executor = Slurm(tmp_path / "logs", None)
    executor.submit(runs)
    scripts = [(tmp_path / "logs" / f"{i}_submission.sh").read_text() for i in (1, 2, 3)]
    assert all("--array=0-1" in script for script in scripts)
    assert [re.findall("dependency=(.*)", script) for script in scripts] == [[], ["afterany:1"], ["afterany:1:2"]]
    later = Slurm(tmp_path / "logs", None)  # another launcher knows the jobs of the first
    assert [later.alive(run) for run in runs] == [run.config.seed == 0 for run in runs]  # of each array, only _0 queues
    (tmp_path / "down").touch()
    assert all(Slurm(tmp_path / "logs", None).alive(run) for run in runs)  # no answer is no reason to give a run up


SINFO = """\
cpu*|10|64|256000|(null)|2-00:00:00
gpu|4|48|512000|gpu:a100:4(S:0-1)|1-12:30:00
gpu|2|48|512000|gpu:h100:8|12:00:00
mixed|2|16|64000|gpu:4|infinite
mixed|2|64|64000|(null)|infinite
"""
TOO_MUCH = {
    "partition": ({"partition": "gpus"}, "cpu", 1, "partition 'gpus': the cluster has cpu, gpu, mixed"),
    "nodes": ({"partition": "gpu", "processes_per_node": 1}, "cpu", 7, "at most 6 nodes, not 7"),
    "nodes that have it all": (
        {"partition": "gpu", "processes_per_node": 8, "cpus_per_task": 1},
        "cuda",
        24,
        "at most 2 nodes with 8 CPUs per node (cpus_per_task), 8 GPUs per node, not 3",
    ),
    "CPUs and GPUs on different nodes": (
        {"partition": "mixed", "cpus_per_task": 9},
        "cuda",
        4,
        "at most 0 nodes with 36 CPUs per node (cpus_per_task), 4 GPUs per node, not 1",
    ),
    "GPUs of a type": ({"partition": "gpu", "gpu_type": "a100"}, "cuda", 8, "at most 4 a100 GPUs per node, not 8"),
    "uneven": ({"partition": "gpu", "processes_per_node": 4}, "cpu", 5, "processes 5: cannot be spread evenly"),
    "CPUs": ({"cpus_per_task": 9}, "cpu", 8, "at most 64 CPUs per node (cpus_per_task), not 72"),
    "memory": ({"mem_gb": 40}, "cpu", 8, "at most 256000 MB of memory per node (mem_gb), not 327680"),
    "GPUs on a partition without": ({}, "cuda", 1, "partition 'cpu' offers at most 0 GPUs per node, not 1"),
    "time": ({"partition": "gpu", "time_min": 2191}, "cuda", 8, "at most 2190 minutes (time_min), not 2191"),
}


@pytest.fixture
def sinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sinfo").write_text(f"#!/bin/sh\ncat <<END\n{SINFO}END\n")
    (tmp_path / "bin" / "sinfo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


@pytest.mark.parametrize(("settings", "device", "processes", "part"), TOO_MUCH.values(), ids=TOO_MUCH.keys())
def test_what_no_partition_has_is_one_line(
    settings: dict, device: str, processes: int, part: str, tmp_path: Path, sinfo: None
) -> None:
    path = write_grid(tmp_path, base={**BASE, "run": {"device": device}})
    with pytest.raises(ConfigError, match=re.escape(part)):
        submission.check_resources(runs_of(path, tmp_path), Site(**settings), processes)


def test_what_the_cluster_has_is_accepted(tmp_path: Path, sinfo: None) -> None:
    path = write_grid(tmp_path, base={**BASE, "run": {"device": "cuda"}})
    site = Site(partition="gpu", mem_gb=60, cpus_per_task=6, time_min=2190)
    submission.check_resources(runs_of(path, tmp_path), site, 16)
    submission.check_resources(runs_of(path, tmp_path), Site(partition="gpu", processes_per_node=1), 6)  # 4 + 2 nodes
    submission.check_resources(runs_of(path, tmp_path), Site(partition="gpu", gpu_type="h100"), 8)


def test_a_dry_run_with_a_site_shows_the_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_grid(tmp_path, processes=4, base={**BASE, "run": {"device": "cuda"}})
    site = tmp_path / "site.yaml"
    site.write_text(
        "partition: gpu\nprocesses_per_node: 2\nmem_gb: 3\ntime_min: 77\nsetup: [module load cuda]\n"
        "gpu_type: a100\nsbatch: {exclude: n7, exclusive: true}\nresults: elsewhere\n"
    )
    assert launch(path, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "with the settings of slurm/site.example.yaml as there is no slurm/site.yaml" in out
    assert "#SBATCH --cpus-per-task=1\n" in out  # the threads of a run on SLURM, not of this machine's share
    assert launch(path, "--dry-run", "--site", str(site)) == 0
    out = capsys.readouterr().out
    for line in (
        "partition=gpu",
        "nodes=2",
        "ntasks-per-node=2",
        "gpus-per-node=a100:2",
        "exclude=n7",
        "exclusive",
        "mem=6144M",
        "time=77",
        "array=0-0%1",
    ):
        assert f"#SBATCH --{line}\n" in out
    assert "\nmodule load cuda\n" in out
    assert not (tmp_path / "out").exists()


BAD_SITES = {
    "unknown key": ("partion: gpu", "unknown key 'partion' (did you mean 'partition'?)"),
    "wrong type": ("time_min: long", "time_min"),
    "no mapping": ("[1]", "expected a site with the keys partition"),
    "not YAML": ("a: [", "not YAML"),
}


@pytest.mark.parametrize(("text", "part"), BAD_SITES.values(), ids=BAD_SITES.keys())
def test_a_bad_site_is_one_line(text: str, part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "site.yaml").write_text(text)
    assert launch(write_grid(tmp_path), "--site", str(tmp_path / "site.yaml")) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert part in error
    assert not (tmp_path / "out").exists()


# What is shown


def test_status_collect_and_resubmit_read_what_runs_wrote(
    tmp_path: Path, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {"dense": RUNS["dense"], "bad": {"method": "hiap", "model.weights": "run:dense"}}
    path = write_grid(tmp_path, runs=runs)
    assert launch(path, "--resubmit", "failed") == 2
    assert "no run of this grid has failed" in capsys.readouterr().err
    assert launch(path) == 1
    dense, bad = runs_of(path, tmp_path / "out")
    write_json(bad.folders.status, {"state": "failed", "error": "the loss is nan", "node": "n7", "updated": ""})
    capsys.readouterr()
    assert launch(path, "--status") == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"dense +0 +finished +3 +91.25", lines[2])
    assert re.match(r"bad +0 +failed .* n7 +the loss is nan", lines[3])
    assert lines[-1] == "1 finished, 1 failed"
    assert launch(path, "--collect") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == ["dense"]
    assert launch(path, "--resubmit", "failed") == 1
    assert [e for e in events(fake) if e.startswith("start")] == ["start dense", "start bad", "start bad"]
    assert len(list(dense.folders.runs.glob(f"{bad.run_id}.failed-*.json"))) == 2


def long_record(config: Config) -> Record:
    """With as many numbers as a run of the paper's has."""
    log = EpochLog(stage="train", epoch=0, loss=1.0, terms={"task": 1.0}, lr=0.1, tau=1.0, head_dims=[[64] * 6] * 12)
    record = fake_train.make_record(config, "finished")
    return record.model_copy(update={"epochs": [log.model_copy(update={"epoch": i}) for i in range(200)]})


MEASURED = """
import re, sys
from slurm import launch_grid
status = launch_grid.main()
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) // 1024, end="", file=sys.stderr)
sys.exit(status)
"""
LIMITS = {"--dry-run": 10.0, "--status": 5.0, "--collect": 20.0}  # seconds of this machine's processors


def plain_seconds(out: Path) -> float:
    """Seconds of this processor, as fast as it is and as shared as it is now, to read these records plainly."""
    begin = time.process_time()
    for record in out.rglob("*.json"):
        json.loads(record.read_bytes())
    return time.process_time() - begin


@pytest.mark.parametrize("count", [500, pytest.param(5000, marks=pytest.mark.slow)])
def test_a_large_grid_is_looked_at_in_seconds(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_grid(tmp_path, seeds=list(range(count)), runs={"dense": RUNS["dense"]})
    runs = runs_of(path, tmp_path / "out")
    text = write(long_record(runs[0].config), runs[0].folders).read_text()
    for run in runs[1:]:
        run.folders.record.write_text(text)
    command = [sys.executable, "-c", MEASURED, "--grid", str(path), "--results", str(tmp_path / "out")]
    for option, most in LIMITS.items():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([*command, option], cwd=REPOSITORY, capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(option, count, f"{spent:.1f} s of processor time, {done.stderr} MB")
        assert int(done.stderr) < 500
        assert spent < most / 5000 * max(count, 2500) or spent < 1.5 * plain_seconds(tmp_path / "out")
        assert len(done.stdout.splitlines()) >= count


@pytest.mark.parametrize("compact", [False, True], ids=["as written", "laid out otherwise"])
def test_a_summary_says_what_the_record_says(compact: bool, tmp_path: Path) -> None:
    (run,) = runs_of(write_grid(tmp_path, runs={"dense": RUNS["dense"]}), tmp_path / "out")
    record = long_record(run.config)
    gates = [GateLog(step=1, steps=9, heads=[1], neurons=[2], macs=3, expected_macs=4)]
    path = write(record.model_copy(update={"gates": gates, "resumed": 7}), run.folders)
    if compact:
        path.write_text(read(path).model_dump_json())
    found = summary(path).model_dump()
    assert found == read(path).model_dump(include=set(found))


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    path = write_grid(tmp_path, seeds=list(range(2000)), runs={"dense": RUNS["dense"]})
    command = f"{sys.executable} slurm/launch_grid.py --grid {path} --results {tmp_path} --dry-run"
    done = subprocess.run(["sh", "-c", f"{command} | head -n 1"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stderr == ""


def test_the_table_holds_the_records(tmp_path: Path, fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launch(write_grid(tmp_path))
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split() for line in lines if re.match(r"(dense|hiap|uniform) +0 ", line)}
    assert rows["hiap"][1:] == ["0", "91.25", "90.50", "91.25", "1.00", "50.0%", "0.020", "M", "3", "12"]
    assert rows["uniform"][1:] == ["0", "91.25", "1.00", "50.0%", "0.020", "M", "3", "12"]
    assert f"records: {tmp_path / 'out' / 'runs' / 'tiny'}" in lines
    # A line that names a folder is as long as the folder's name.
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 100


def test_the_table_compares_with_a_published_record(tmp_path: Path) -> None:
    path = write_grid(tmp_path)
    ours, published = runs_of(path, tmp_path / "out"), runs_of(path, tmp_path / "published")
    for run in ours:
        fake_train.leave(fake_train.make_record(run.config, "finished"))
    assert "published" not in report.results(ours, tmp_path / "published")
    write(fake_train.make_record(published[1].config, "finished", top1=88.5), published[1].folders)
    lines = report.results(ours, tmp_path / "published").splitlines()
    assert lines[0].endswith("published")
    assert lines[3].endswith("88.50")
    assert not lines[2].endswith("88.50")


def test_progress_is_updated_in_place_on_a_terminal_and_told_once_elsewhere(tmp_path: Path, fake: Path) -> None:
    path = write_grid(tmp_path)
    command = [sys.executable, "slurm/launch_grid.py", "--grid", str(path), "--cluster", "debug", "--results"]
    main, terminal = pty.openpty()
    subprocess.run([*command, str(tmp_path / "a")], cwd=REPOSITORY, stdout=terminal, check=True)
    shown = os.read(main, 100_000).decode()
    assert shown.count("\x1b[3A") >= 3
    plain = subprocess.run([*command, str(tmp_path / "b")], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "\x1b" not in plain.stdout
    assert len(re.findall(r"^hiap +finished +top-1 91.25 % in 12 s$", plain.stdout, re.MULTILINE)) == 1


def test_the_status_page_shows_what_moves_what_failed_and_what_is_left(tmp_path: Path, fake: Path) -> None:
    path = write_grid(tmp_path, runs={**RUNS, "bad": {"method": "dense", "optim.lr": 0.5}})
    assert launch(path) == 1
    text = (tmp_path / "out" / "work" / "tiny" / "status.html").read_text()
    assert "3 finished, 1 failed" in text
    assert "<li><b>bad</b> FloatingPointError: the loss is nan</li>" in text
    assert text.count("top-1 91.25 %") == 3
    runs = runs_of(path, tmp_path / "out")
    status = {"state": "running", "epoch": 1, "epochs": 4, "eta_s": 90.0, "node": "n7<"}
    write_json(runs[1].folders.status, status)
    states = ["finished", "running", "waiting", "waiting"]
    text = page.html("tiny", [report.Progress(run, state) for run, state in zip(runs, states, strict=True)])  # type: ignore[arg-type]
    assert "width: 25%" in text
    assert "<td>1 min 30 s</td><td>n7&lt;</td>" in text
    assert "About 37 s to go" in text, "three as long as the finished one, one at a time"
    assert "http" not in text.replace("http-equiv", ""), "it loads nothing"
    ElementTree.fromstring(text.removeprefix("<!doctype html>\n").replace('<meta charset="utf-8">', "").replace(
        '<meta http-equiv="refresh" content="30">', "").replace("<br>", ""))  # fmt: skip


def test_dry_run_lists_the_order_and_starts_nothing(
    tmp_path: Path, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_grid(tmp_path)
    dense = runs_of(path, tmp_path / "out")[0]
    write(fake_train.make_record(dense.config, "finished"), dense.folders)
    assert launch(path, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "dense: its record is here, its network is not" in out
    rows = [line.split() for line in out.splitlines() if re.match(r"(dense|hiap|uniform) ", line)]
    assert [row[0] for row in rows] == ["dense", "hiap", "uniform"]
    assert [row[2] for row in rows] == [run.run_id for run in runs_of(path, tmp_path / "out")]
    assert rows[0][3] == "finished"
    assert rows[2][3:8] == ["would", "run", "dense,", "hiap", "1"]
    assert not events(fake)
    assert not (tmp_path / "out" / "work").exists()


def test_dry_run_imports_no_torch(tmp_path: Path) -> None:
    path = write_grid(tmp_path)
    script = (
        "import sys; from slurm.launch_grid import main\n"
        f"status = main(['--grid', {str(path)!r}, '--results', {str(tmp_path)!r}, '--dry-run'])\n"
        "heavy = {'torch', 'timm', 'sklearn', 'pandas'} & set(sys.modules)\n"
        "sys.exit(status or ', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Cost


def test_training_cost_counts_backward_and_teacher() -> None:
    values = {**BASE, "method": "dense", "optim": {"epochs": 3, "batch_size": 100}}
    dense = from_dict(values)
    size = estimate.dims(dense)
    assert size is not None
    per_image = dense_macs(size)
    assert estimate.train_macs(dense) == 3 * per_image * 3 * 1300  # 1,352 images, incomplete batch left out
    assert estimate.train_macs(from_dict({**values, "method": "hiap"})) == 4 * per_image * 3 * 1300
    for method in ("hiap", "hiap_uniform", "hiap_ranked"):  # they train the dense network to the end
        aimed = from_dict({**values, "method": method, "budget": {"target_macs": 0.5}})
        assert estimate.train_macs(aimed) == 4 * per_image * 3 * 1300
    asked_once = from_dict({**values, "method": "hiap", "distill": {"precompute": True}})
    assert estimate.train_macs(asked_once) == 3 * per_image * 3 * 1300 + per_image * 1352
    half = {**values, "method": "uniform", "budget": {"target_macs": 0.5}, "distill": {"alpha": 0}}
    assert estimate.train_macs(from_dict(half)) == 1.5 * per_image * 3 * 1300
    noisy = {**half, "budget": {"target_macs": 0.5, "noise": True}}
    assert estimate.train_macs(from_dict(noisy)) == 3 * per_image * 3 * 1300, "masked to the end"


def test_another_teacher_has_its_own_cost_or_none(tmp_path: Path) -> None:
    values = {**BASE, "optim": {"epochs": 3, "batch_size": 100}}
    plain = estimate.train_macs(from_dict({**values, "method": "dense", "distill": {"alpha": 0}})) or 0
    for method in ("dense", "hiap"):
        of = {name: {**values, "method": method, "distill": {"teacher": name}} for name in ("regnety_160", "run:x")}
        assert [estimate.train_macs(from_dict(one)) for one in of.values()] == [None, None]
        known = from_dict({**values, "method": method, "distill": {"teacher": "deit_small_patch16_224"}})
        teacher = known_dims("deit_small_patch16_224", known.model.img_size, 10, 1)
        assert teacher is not None
        assert estimate.train_macs(known) == plain + dense_macs(teacher) * 3 * 1300


def test_a_network_that_brings_other_sizes_has_no_bill(tmp_path: Path) -> None:
    for width, known in ((BASE["model"]["embed_dim"], True), (BASE["model"]["embed_dim"] * 2, False)):
        brought = {"arguments": {"embed_dim": width}, "blocks": [{}] * BASE["model"]["depth"]}
        write_json(tmp_path / "architecture.json", brought)
        config = from_dict({**BASE, "model": {**BASE["model"], "weights": str(tmp_path)}})
        assert (estimate.dims(config) is not None) == known


def test_gpu_hours_come_from_measured_steps_of_the_same_network(tmp_path: Path) -> None:
    config = from_dict({"model": {"name": "deit_small_patch16_224", "img_size": 224}, "data": {"name": "imagenet"}})
    assert estimate.gpu_hours(config, tmp_path) is None
    row = {"name": "dense", "macs": 4_598_882_304, "throughput": 1000.0}
    settings = {"device": "cuda", "model": "deit_small_patch16_224", "precision": "fp32"}
    timed = {"mode": "steps", "settings": settings, "rows": [row], "environment": {"device_name": "X"}}
    for name, change in {
        "a": {"device": "cpu"},
        "b": {"precision": "bf16"},
        "c": {"model": "deit_base_patch16_224"},
    }.items():
        write_json(tmp_path / f"{name}.json", {**timed, "settings": {**settings, **change}})
    write_json(tmp_path / "deploy.json", {**timed, "mode": "deploy", "settings": {"device": "cuda"}})  # no precision
    assert estimate.gpu_hours(config, tmp_path) is None
    write_json(tmp_path / "d.json", timed)
    hours, device = estimate.gpu_hours(config, tmp_path) or (0.0, "")
    images = 200 * (1_281_167 // 256) * 256
    assert hours == pytest.approx(images * 4 / 3 / 1000 / 3600)  # the teacher's forward adds a third
    assert device == "X"


def test_cost_of_an_unlisted_model_is_unknown() -> None:
    config = from_dict({"model": {"name": "vit_large_patch16_224", "img_size": 224}})
    assert estimate.train_macs(config) is None
    assert estimate.disk_bytes(config) is None


def test_parameter_estimate_is_exact_for_a_built_network() -> None:
    from hiap import cost
    from hiap.train.start import build

    config: Config = from_dict(BASE)
    size = estimate.dims(config)
    assert size is not None
    model = build(config.model, 1, 10, Folders("/nowhere", "g", "r")).model
    assert dense_params(size) == cost.params(model)
    assert dense_macs(size) == cost.macs(model, (1, 8, 8))


def test_what_another_grid_has_finished_is_copied_and_billed_as_done(
    tmp_path: Path, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    other = write_grid(tmp_path / "other", name="other", runs={"start": RUNS["dense"]})
    (twin,) = runs_of(other, tmp_path / "out")
    fake_train.leave(fake_train.make_record(twin.config, "finished"))
    path = write_grid(tmp_path)
    dense = runs_of(path, tmp_path / "out")[0]
    assert launch(path, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "finished in other" in out
    assert "2 of them to do" in out
    assert launch(path, "--status") == 0
    assert re.search(r"^dense .* finished .* in grid other$", capsys.readouterr().out, re.MULTILINE)
    assert not dense.finished
    assert launch(path) == 0
    assert [e for e in events(fake) if e.startswith("start")] == ["start hiap", "start uniform"]
    record = read(dense.folders.record)
    assert (record.grid, record.label, record.config.run.label) == ("tiny", "dense", "dense")
    assert record.metrics == read(twin.folders.record).metrics
    assert dense.folders.sibling(dense.run_id).model == twin.folders.model, "where the weights are"


def test_a_finished_run_that_is_called_otherwise_now_has_its_new_label(
    tmp_path: Path, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch(write_grid(tmp_path)) == 0
    renamed = write_grid(tmp_path, runs={"whole": RUNS["dense"]})
    (run,) = runs_of(renamed, tmp_path / "out")
    assert run.finished
    capsys.readouterr()
    assert launch(renamed) == 0
    assert "whole: was labelled 'dense' here; its record is relabelled" in capsys.readouterr().out
    record = read(run.folders.record)
    assert (record.label, record.config.run.label, record.run_id) == ("whole", "whole", run.run_id)
    assert not [event for event in events(fake) if event == "start whole"], "nothing is run again"


def test_what_is_shown_of_a_run_that_is_made_again_is_the_new_one(tmp_path: Path, fake: Path) -> None:
    path = write_grid(tmp_path)
    assert launch(path) == 0
    record = runs_of(path, tmp_path / "out")[0].folders.record
    before = report.finished_summary(record).top1
    again = json.loads(record.read_text())
    again["metrics"]["extracted"]["top1"] = 1.25
    os.utime(record, ns=(0, 0))
    record.write_text(json.dumps(again, indent=1))
    assert before != "1.25"
    assert report.finished_summary(record).top1 == "1.25"


def test_the_gpu_bill_sums_what_was_measured_and_names_the_rest(tmp_path: Path) -> None:
    row = {"name": "dense", "macs": 4_598_882_304, "throughput": 1000.0}
    settings = {"device": "cuda", "model": "deit_small_patch16_224", "precision": "fp32"}
    timed = {"mode": "steps", "settings": settings, "rows": [row], "environment": {"device_name": "X"}}
    write_json(tmp_path / "a.json", timed)
    timm = {"img_size": 224, **dict.fromkeys(("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio"))}
    names = {"small": "deit_small_patch16_224", "base": "deit_base_patch16_224"}
    runs = {label: {"method": "dense", "model": {**timm, "name": name}} for label, name in names.items()}
    runs["plain"] = {"method": "dense", "model": {"img_size": 32}}
    base = {"run": {"device": "cuda"}, "data": {"name": "imagenet"}}
    shown = report.dry_run(runs_of(write_grid(tmp_path, base=base, runs=runs), tmp_path), tmp_path)
    assert "GPU-hours on X, from the step times in results/bench, for 1 of 3 runs." in shown
    assert "python -m hiap.bench steps model=deit_base_patch16_224 device=cuda precision=fp32" in shown
    assert "model=vit" not in shown


REALISTIC = EpochLog(
    stage="hiap",
    epoch=0,
    loss=3.2,
    terms=dict.fromkeys(("task", "macro", "micro", "feasibility"), 0.123456789),
    lr=1e-5,
    tau=1.0,
    heads=[6] * 12,
    head_dims=[[64] * 6] * 12,
    neurons=[1536] * 12,
    macs=4_598_882_304,
)


def test_status_of_500_records_with_long_gate_trajectories_is_quick(tmp_path: Path) -> None:
    path = write_grid(tmp_path, seeds=list(range(500)), runs={"dense": RUNS["dense"]})
    for run in runs_of(path, tmp_path / "out"):
        record = fake_train.make_record(run.config, "finished").model_dump(mode="json")
        write_json(run.folders.record, record | {"epochs": [REALISTIC.model_dump(mode="json")] * 160})
    assert run.folders.record.stat().st_size > 200_000
    command = [sys.executable, "slurm/launch_grid.py", "--grid", str(path), "--results", str(tmp_path / "out")]
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([*command, "--status"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - begin
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{seconds:.2f} s, {spent:.2f} s of a processor")
    assert spent < 2 or spent < 1.5 * plain_seconds(tmp_path / "out")
    assert done.stdout.endswith("500 finished\n")


def test_a_grid_looks_at_its_data_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "0.JPEG").touch()
    base = {"data": {"name": "imagenet", "root": str(tmp_path)}, "model": {"img_size": 32}}
    runs = runs_of(write_grid(tmp_path, base=base, runs={"dense": RUNS["dense"]}, seeds=list(range(9))), tmp_path)
    looks, scan = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: looks.append(path) or scan(path))  # type: ignore[func-returns-value]
    for run in runs:
        data.check(run.config.data, run.config.model.img_size)
    assert len(looks) <= 3 + 4 + 1, "train and val, their classes, and which classes there are once more"


def measured(run: grid.Run) -> tuple[object, ...]:
    """What a run's record says, but for when and how long, and its weights to the bit."""
    record = read(run.folders.record)
    weights = (run.folders.model / store.WEIGHTS).read_bytes()
    return record.metrics, record.size, record.epochs, record.shape, record.gates, weights


@pytest.mark.slow
def test_forked_runs_leave_what_a_process_each_leaves(tmp_path: Path) -> None:
    base = {**BASE, "optim": {"epochs": 2}, "gates": {"travel": 7, "keep_head": True}}
    path = write_grid(tmp_path, base=base, runs={label: RUNS[label] for label in ("dense", "hiap")}, threads=1)
    assert launch(path, "--jobs", "2", cluster="local") == 0
    found = runs_of(path, tmp_path / "out")
    for run in expand(load(path), path, {"results": str(tmp_path / "apart"), "threads": 1}):
        options = [f"{key}={json.dumps(value)}" for key, value in flat(run.config.model_dump(exclude_unset=True))]
        subprocess.run([sys.executable, "-m", "hiap.train", *options], cwd=REPOSITORY, check=True)
    apart = runs_of(path, tmp_path / "apart")
    assert [measured(run) for run in found] == [measured(run) for run in apart]


def flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        yield from flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]


@pytest.mark.slow
def test_a_budget_that_is_over_in_the_middle_of_a_run_changes_nothing_of_it(tmp_path: Path) -> None:
    base = {**BASE, "optim": {"epochs": 100}, "gates": {"travel": 7, "keep_head": True}}
    path = write_grid(tmp_path, base=base, runs={label: RUNS[label] for label in ("dense", "hiap")}, threads=1)
    stops = 0
    while (status := launch(path, "--budget", "3")) == launch_grid.OVER:
        stops += 1
        assert stops < 100
    assert status == 0
    found, whole = runs_of(path, tmp_path / "out"), runs_of(path, tmp_path / "whole")
    assert launch_grid.main(["--grid", str(path), "--results", str(tmp_path / "whole"), "--cluster", "debug"]) == 0
    assert stops > 0
    assert sum(read(run.folders.record).resumed for run in found) > 0
    assert [measured(run) for run in found] == [measured(run) for run in whole]


def test_a_second_checkout_launches_its_own_code_and_grids(tmp_path: Path) -> None:
    """Run as a file by an environment in which another checkout is installed."""
    for folder in ("hiap", "slurm", "baselines"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "slurm" / "grids" / "own.yaml").write_text(
        "name: own\nabout: a\npublished: p\nseeds: [0]\n"
        "runs: {d: {method: dense, data.name: digits, model.img_size: 16}}\n"
    )
    command = [
        sys.executable,
        tmp_path / "slurm" / "launch_grid.py",
        "--grid",
        "own",
        "--dry-run",
        "--cluster",
        "local",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path.parent, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"({tmp_path.name}/slurm/grids/own.yaml)" in " ".join(done.stdout.split())
