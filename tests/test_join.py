"""``hiap join``: a file of one's own is tuned, run and compared, at tiny size, with nothing of ours edited."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from conftest import tiny

from analysis import join
from analysis.records.results import REPOSITORY, Results
from analysis.stats import images
from hiap.cli.commands import main
from slurm import grid as grids

EXAMPLE = REPOSITORY / "examples" / "own_baseline.py"
TEMPLATE = grids.load(grids.find("join"))


def base() -> dict[str, Any]:
    """The tests' small network, from each seed's dense one."""
    sections = tiny("x").model_dump(
        include={"model", "data", "optim", "gates", "penalty", "distill"}, exclude_unset=True
    )
    return {**sections, "model": {**sections["model"], "weights": "run:dense"}, "run": {"tensorboard": False}}


def written(path: Path, **values: Any) -> Path:
    path.write_text(yaml.safe_dump({"about": "a test", "seeds": [0, 1], "base": base(), **values}, sort_keys=False))
    return path


@pytest.fixture
def template(tmp_path: Path) -> Path:
    validation = {"data.measure": "validation", "seeds": [0]}
    trial = {"like": ["mine"], "budget.target_macs": 0.8, "model.weights": "run:tune-dense", **validation}
    runs = {
        "dense": {"method": "dense", "model.weights": ""},
        "tune-slow": {**trial, "optim.lr": 1e-6},
        "tune-fast": {**trial, "optim.lr": 3e-3},
        "tune-dense": {"method": "dense", "model.weights": "", **validation},  # has not learned what tuning measures
        "mine-20": {"like": ["mine", "tuned"], "budget.target_macs": 0.8},
        "same_sizes-20": {"method": "same_sizes", "like": "tuned", "budget.target_macs": "run:mine-20"},
    }
    shared = {"mine": {"method": "set by hiap join", "options.images": 16}, "tuned": {}}
    return written(tmp_path / "template.yaml", name="tiny-join", shared=shared, runs=runs)


@pytest.mark.slow
def test_a_file_of_ones_own_gets_its_row(tmp_path, template, monkeypatch, capsys):
    monkeypatch.setattr(images, "RESAMPLES", 200)
    root = str(tmp_path / "results")
    budget = {"model.weights": "run:dense", "budget.target_macs": 0.8}
    others = {"dense": {"method": "dense", "model.weights": ""}, "uniform-20": {"method": "uniform", **budget}}
    first = written(tmp_path / "first.yaml", name="first", runs=others)
    assert main(["launch", "--grid", str(first), "--results", root, "--cluster", "debug"]) == 0
    (tmp_path / "my_rank.py").write_text(EXAMPLE.read_text())
    command = ["join", str(tmp_path / "my_rank.py"), "--grid", str(template), "--results", root, "--cluster", "debug"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "Chosen on validation images: tune-fast (edge of its range: optim.lr 0.003, the highest of 2)" in said
    assert "Both started from the same dense networks (2 seeds)." in said
    rows = pd.read_csv(tmp_path / "results" / "tables" / "join-my_rank.csv").set_index("title")
    assert set(rows.index) == {"* my_rank (yours)", "Uniform", "Same sizes, random units (control)"}
    assert (rows["n"] == 2).all()
    own, other = rows.loc["* my_rank (yours)"], rows.loc["Uniform"]
    assert own["top1"] - other["top1"] == pytest.approx(other["difference"])
    assert other["difference_low"] <= other["difference"] <= other["difference_high"]
    assert set(rows["verdict"].dropna()) <= {"ahead", "behind", "undecided"}
    chosen = {r.label: r.config for r in Results(root).finished("join-my_rank")}
    assert chosen["my_rank-20"].optim.lr == 3e-3
    assert chosen["my_rank-20"].data.measure == "test"  # of what was tried, only what differs is taken
    assert main(command) == 0  # again: everything is there
    assert "Chosen on validation images: tune-fast" in capsys.readouterr().out


def test_what_cannot_join_is_one_line(tmp_path, template, capsys):
    (tmp_path / "taylor.py").write_text(EXAMPLE.read_text())
    (tmp_path / "empty.py").write_text("KIND = ''\n")
    for method, message in (
        ("taylor", "expected the path of a .py file with a name of its own"),
        (str(tmp_path / "taylor.py"), "expected the path of a .py file with a name of its own"),
        (str(tmp_path / "empty.py"), "expected a function stages(config) in it"),
        (str(tmp_path / "none.py"), "No such file"),
    ):
        assert main(["join", method, "--grid", str(template), "--results", str(tmp_path / "r")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert error.count("\n") == 1
    assert main(["join", str(EXAMPLE), "--grid", "laptop", "--results", str(tmp_path / "r")]) == 2
    assert "expected 'mine' in its section shared" in capsys.readouterr().err
    on_test = tmp_path / "test.yaml"
    on_test.write_text(template.read_text().replace("data.measure: validation", "data.measure: test", 1))
    assert main(["join", str(EXAMPLE), "--grid", str(on_test), "--results", str(tmp_path / "t")]) == 2
    assert "chooses: expected data.measure=validation" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_the_pair_is_the_one_whose_dense_networks_are_pruned():
    """Grid join starts from, and is tuned like, what grids evidence and tune have; join_digits starts as study does."""
    settings = {"results": "x", "threads": 1}

    def starts(name: str, label: str) -> set[str]:
        file = grids.find(name)
        return {run.run_id for run in grids.expand(grids.load(file), file, settings) if run.label == label}

    assert starts("join", "dense") == starts("evidence", "dense")
    assert starts("join", "tune-dense") == starts("tune", "dense")
    assert starts("join_digits", "dense") == starts("study", "dense")


def test_labels_are_the_methods_own_and_references_follow():
    filled = join.filled(TEMPLATE, "mine.py", "my_rank", {"optim.lr": 1e-4})
    assert filled.shared["tuned"] == {"optim.lr": 1e-4}
    assert {"my_rank-50", "same_sizes-50", "tune-lr1e-4"} <= set(filled.runs)
    assert filled.runs["same_sizes-50"]["budget.target_macs"] == "run:my_rank-50"
    tried = join.tried(filled)
    assert tried["tune-lr1e-4-rounds"] == {"optim.lr": 1e-4, "budget.rounds": 3}
    assert tried["tune-lr5e-5"] == {"optim.lr": 5e-5}
    assert len(tried) == 6
    nested = filled.model_copy(
        update={
            "shared": {
                **filled.shared,
                "trial": {"budget": {"target_macs": 0.5}},
                "nowarm": {"optim": {"warmup_epochs": 0}},
            },
            "runs": {
                "tune-a": {"like": ["trial", "nowarm"], "optim": {"lr": 1e-3}},
                "tune-b": {"like": "trial", "optim": {"lr": 1e-4}},
            },
        }
    )
    assert join.tried(nested) == {"tune-a": {"optim.warmup_epochs": 0, "optim.lr": 1e-3}, "tune-b": {"optim.lr": 1e-4}}
