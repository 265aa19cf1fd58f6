"""Training bills, open points and figures of both. Records are made up, in tmp folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from test_analysis import EPOCHS, made_up, put, root  # noqa: F401  (a fixture)

from analysis.figures import accuracy, costs, gates, intervals
from analysis.findings import heat_maps
from analysis.records import published
from analysis.records.results import REPOSITORY, Results
from analysis.studies import comparisons, open_points, paired, training
from hiap.train.record import BlockShape

RESULTS = REPOSITORY / "results"


def test_a_bill_holds_own_and_inherited_training_apart(root: Path) -> None:  # noqa: F811
    rows = training.totals(Results(root), "laptop").set_index("label")
    dense, ours = rows.loc["dense"], rows.loc["hiap-moderate"]
    assert (dense["start_train_macs"], dense["teacher"]) == (0, False)
    assert ours["start_train_macs"] == dense["train_macs"]
    assert (ours["epochs"], ours["start_epochs"], ours["n"], ours["stages"]) == (EPOCHS, EPOCHS, 2, "hiap")
    assert ours["teacher"]
    assert ours["train_macs"] == pytest.approx(3.0 * 20_990_000 * 7_680)
    assert training.totals(Results(root), "another").empty


def test_the_committed_bills_add_up_to_the_runs() -> None:
    rows, runs = training.totals(Results(RESULTS), "study"), Results(RESULTS).runs("study")
    assert (rows["train_macs"] * rows["n"]).sum() == pytest.approx(runs["train_macs"].sum())
    assert (rows["seconds"] * rows["n"]).sum() == pytest.approx(runs["seconds"].sum())
    assert set(rows["label"]) == set(runs["label"])


def reading(label: str, seed: int, top1: float, **config: Any) -> Any:
    record = made_up(label, "hiap", seed, top1=top1, **config)
    return record.model_copy(update={"grid": "sensitivity"})


def test_readings_are_paired_with_the_default_by_seed(tmp_path: Path) -> None:
    for seed, (default, soft) in enumerate(((80.0, 79.0), (82.0, 81.2), (84.0, 83.1))):
        put(tmp_path, reading("default", seed, default))
        put(tmp_path, reading("A1-soft", seed, soft, gates={"forward": "soft"}))
    found = open_points.measured(Results(tmp_path))
    assert found[["point", "label", "n"]].values.tolist() == [["A1", "A1-soft", 3]]
    assert found["difference"].item() == pytest.approx(-0.9)
    summary = open_points.summary(found).set_index("point")
    assert summary.loc["A1", ["readings", "where", "reason"]].tolist() == [1, "sensitivity", ""]
    assert summary.loc["A2", "reason"].endswith("--grid sensitivity")
    assert summary.loc["A9", "reason"]
    assert open_points.measured(Results(tmp_path / "empty")).empty


def test_layers_that_lost_all_heads_are_counted(tmp_path: Path) -> None:
    emptied = [BlockShape(head_dims=[], neurons=10), BlockShape(head_dims=[32], neurons=0)]
    put(tmp_path, reading("default", 0, 80.0))
    put(tmp_path, reading("default", 1, 80.0).model_copy(update={"shape": emptied}))
    assert open_points.emptied_layers(Results(tmp_path)) == (1, 2)


# Figures


def test_a_point_beyond_its_bar_is_one_that_cannot_be_that_run() -> None:
    rows = heat_maps.reach()
    macro = rows[rows["series"] == "macro-only"]
    end = macro.loc[macro["kind"] == "at most", "x"].item()
    beyond = macro.loc[macro["kind"] == "point", "x"] - heat_maps.READING > end
    assert beyond.tolist() == [not reached for reached in heat_maps.macro_only_reach()["reached"]]
    assert set(rows["series"]) == set(costs.RATIOS)


def test_the_strengths_of_figs_5_to_9_have_the_ratios_of_fig_4() -> None:
    strengths = published.strengths()
    for figure, name in heat_maps.FIGURE_RATIOS.items():
        macro, micro = strengths.loc[figure]
        if name.endswith("only"):
            assert (micro if name == "macro-only" else macro) == 0
        else:
            assert macro / micro == pytest.approx(float(name.removesuffix(":1")))


def test_totals_end_where_the_last_states_do() -> None:
    totals = published.totals().query("epoch == epoch.max()").set_index("figure")
    assert totals["heads"].tolist() == heat_maps.final_sizes()["heads"].tolist()


def figures() -> dict[str, Figure]:
    rows = comparisons.study(paired.load(Results(RESULTS), "study"))
    return {
        "reach": costs.reach(heat_maps.reach()),
        "ahead": accuracy.ahead(heat_maps.against_two_to_one()),
        "gate_totals": gates.totals(published.totals()),
        "study_forest": intervals.forest(comparisons.from_reference(rows)),
        "bill": costs.training_per_target(training.totals(Results(RESULTS), "study")),
    }


def test_figures_have_units_and_no_text_leaves_them() -> None:
    for name, figure in figures().items():
        assert figure.get_supxlabel() or all(ax.get_xlabel() for ax in figure.axes), name
        figure.draw_without_rendering()
        box = figure.get_tightbbox()
        assert box.x0 >= -0.02, name
        assert box.x1 <= figure.get_figwidth() + 0.02, name
