"""What results/PROTOCOL.md promises of its second part, held against the grids and every record that there is."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from analysis.records.results import REPOSITORY, Results
from hiap.train.record import Record
from slurm import grid as grids

GRIDS = REPOSITORY / "slurm" / "grids"
BUDGETS = {"33": 0.67, "50": 0.5, "65": 0.35, "75": 0.25, "85": 0.15}
PRIMARY = ("hiap", "obs", "taylor", "vit_slim")
RANKINGS = ("obs", "taylor", "uniform", "l1", "random", "group_taylor")
OUT_OF_REACH = ("75", "85")  # of l1, which removes neurons alone: a third of the MACs stays
STUDY = ("cifar10_tune", "cifar10_cut", "cifar10", "imagenette")


@cache
def runs_of(name: str) -> list[Any]:
    """Every run that a grid makes, with its configuration."""
    path = GRIDS / f"{name}.yaml"
    return grids.expand(grids.load(path), path, {"results": "results", "grid": name}, data_root="somewhere")


def seeds(name: str) -> dict[str, set[int]]:
    found: dict[str, set[int]] = defaultdict(set)
    for run in runs_of(name):
        found[run.label].add(run.config.seed)
    return found


def records(*names: str) -> list[Record]:
    results = Results(REPOSITORY / "results")
    return [record for name in names for record in results.finished(name)]


def test_primary_cells_have_five_seeds_and_others_three() -> None:
    found = seeds("cifar10")
    for method in PRIMARY:
        for cut in BUDGETS:
            assert len(found[f"{method}-{cut}"]) == (5 if cut in ("50", "65") else 3), f"{method}-{cut}"
    assert all(len(found[label]) >= 3 for label in found)
    small = seeds("imagenette")
    assert all(len(small[f"{method}-{cut}"]) == 3 for method in PRIMARY for cut in ("50", "65"))


def test_every_untrained_cell_is_there() -> None:
    found = seeds("cifar10_cut")
    cells = [(ranking, cut) for ranking in RANKINGS for cut in BUDGETS if ranking != "l1" or cut not in OUT_OF_REACH]
    for ranking, cut in cells:
        assert found[f"{ranking}-{cut}-ls"] == {0, 1, 2, 3, 4, 5}
        assert found[f"{ranking}-{cut}"] == {0, 3}
    small = seeds("imagenette")
    assert all(small[f"cut-{ranking}-{cut}"] == {0} for ranking, cut in cells)


@pytest.mark.parametrize("name", ["cifar10", "imagenette"])
def test_methods_differ_in_nothing_but_what_the_protocol_says(name: str) -> None:
    """Same start, images, epochs, batch, schedule and teacher for the four primary methods at each budget."""
    shared = ("model", "data", "distill")
    for run in runs_of(name):
        config = run.config
        if re.fullmatch(rf"({'|'.join(PRIMARY)})-\d\d", run.label):
            first = next(
                other.config for other in runs_of(name) if other.label == "obs-50" and other.config.seed == config.seed
            )
            assert all(getattr(config, part) == getattr(first, part) for part in shared), run.label
            assert (config.optim.epochs, config.optim.batch_size) == (5, 64)
            assert config.budget.target_macs == BUDGETS[run.label[-2:]]
            assert config.budget.correct == (0 if config.name == "hiap" else 512)


def test_every_promised_run_of_the_study_is_in_its_grid() -> None:
    found = seeds("cifar10")
    forms = [f"{method}-no_ls-{cut}" for method in ("taylor", "obs", "vit_slim") for cut in (50, 65)]
    forms += ["hiap-ls-50", "hiap-ls-65"]
    others = [f"{name}-{cut}" for name in ("uniform", "l1", "random", "cofi", "group_taylor") for cut in (50, 65)]
    controls = ["same_sizes-50", "same_sizes-ramp-50", "hiap_uniform-50", "scratch-50", "scratch-cost-50"]
    controls += ["dense-continued", "dense-distilled", "dense-noise", "uniform-50", "uniform-noise-50"]
    scan = [f"faithful-x{factor}" for factor in ("0.25", "0.5", "1", "2", "4")]
    cost = [f"{name}-cost-{cut}" for name in ("obs", "taylor", "vit_slim") for cut in (50, 65)]
    use = [f"{m}-{n}-{cut}" for m in ("obs", "taylor", "hiap") for n in ("one", "three", "ten") for cut in (50, 75)]
    assert {*forms, *others, *controls, *scan, *cost, *use} <= set(found)


def test_equal_cost_is_hiaps_as_far_as_whole_epochs_go() -> None:
    """By records: an epoch of a pruned network costs its share of the MACs, the one look at its teacher a third."""
    dense, teacher = 1.0, 1 / 3
    hiap = 5 * dense + teacher
    for cut, share in (("50", 0.5), ("65", 0.35)):
        epochs = {r.label: r.config.optim.epochs for r in runs_of("cifar10") if r.label.endswith(f"-cost-{cut}")}
        for name in ("obs", "taylor"):
            assert epochs[f"{name}-cost-{cut}"] * share + teacher == pytest.approx(hiap, rel=0.04)
        slim = 2 * dense + (epochs[f"vit_slim-cost-{cut}"] - 2) * share + teacher
        assert slim == pytest.approx(hiap, rel=0.04)
        if cut == "50":
            assert epochs["scratch-cost-50"] * share == pytest.approx(hiap + 5 * dense, rel=0.04)


def test_nothing_is_tuned_on_test_images_and_nothing_else_is_measured_on_others() -> None:
    assert {run.config.data.measure for run in runs_of("cifar10_tune")} == {"validation"}
    for name in ("cifar10", "cifar10_cut", "imagenette"):
        assert {run.config.data.measure for run in runs_of(name)} == {"test"}, name


@pytest.mark.parametrize("name", STUDY)
def test_records_are_of_runs_that_the_grid_has(name: str) -> None:
    wanted = {run.run_id for run in runs_of(name)}
    assert {record.run_id for record in records(name)} <= wanted


def test_a_seeds_runs_belong_to_one_type_of_device() -> None:
    for name in STUDY:
        devices: dict[int, set[str]] = defaultdict(set)
        for record in records(name):
            devices[record.seed].add(record.environment.device_name)
        for found in devices.values():  # records before 2026-11-29 have a processor's name without its instructions
            bare = {device for device in found if f"{device} (" in " ".join(found)}
            assert len(found - bare) == 1, (name, dict(devices))


def test_a_seeds_runs_have_one_precision() -> None:
    for name in STUDY:
        found: dict[int, set[str]] = defaultdict(set)
        for run in runs_of(name):
            found[run.config.seed].add(run.config.optim.precision)
        assert all(len(precisions) == 1 for precisions in found.values()), name


def test_all_saw_the_same_images() -> None:
    for name in ("cifar10_cut", "cifar10", "imagenette"):
        seen = {(r.images.trained, r.images.measured) for r in records(name) if r.images is not None}
        assert len(seen) <= 1, name


def test_records_name_no_folder_of_a_machine() -> None:
    assert {record.config.data.root for record in records(*STUDY)} <= {""}


def test_records_were_made_from_committed_code() -> None:
    for record in records(*STUDY):
        assert record.environment.commit, record.run_id
        assert not record.environment.dirty, record.run_id


def test_what_is_changed_afterwards_is_dated() -> None:
    text = Path(REPOSITORY / "results" / "PROTOCOL.md").read_text(encoding="utf-8")
    deviations = text.split("## Deviations of the second part")[1].strip()
    assert deviations == "None yet." or all(
        re.match(r"\d{4}-\d\d-\d\d", line) for line in re.findall(r"^- (.*)", deviations, re.MULTILINE)
    )
