"""Training bills, open points and the figures of ``report_plots``. Records are made up, in tmp folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from test_analysis import EPOCHS, made_up, put, root  # noqa: F401  (a fixture)

from analysis import bills, collect, findings, findings_runs, open_points, report_plots, stats
from hiap.train.record import BlockShape

RESULTS = collect.REPOSITORY / "results"


def test_a_bill_holds_own_and_inherited_training_apart(root: Path) -> None:  # noqa: F811
    rows = bills.totals(root, "laptop").set_index("label")
    dense, ours = rows.loc["dense"], rows.loc["hiap-moderate"]
    assert (dense["start_train_macs"], dense["teacher"]) == (0, False)
    assert ours["start_train_macs"] == dense["train_macs"]
    assert (ours["epochs"], ours["start_epochs"], ours["n"], ours["stages"]) == (EPOCHS, EPOCHS, 2, "hiap")
    assert ours["teacher"]
    assert ours["train_macs"] == pytest.approx(3.0 * 20_990_000 * 7_680)
    assert bills.totals(root, "another").empty


def test_the_committed_bills_add_up_to_the_runs() -> None:
    rows, runs = bills.totals(RESULTS, "study"), collect.load(RESULTS, "study")
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
    found = open_points.measured(tmp_path)
    assert found[["point", "label", "n"]].values.tolist() == [["A1", "A1-soft", 3]]
    assert found["difference"].item() == pytest.approx(-0.9)
    summary = open_points.summary(found).set_index("point")
    assert summary.loc["A1", ["readings", "where", "reason"]].tolist() == [1, "sensitivity", ""]
    assert summary.loc["A2", "reason"].endswith("--grid sensitivity")
    assert summary.loc["A9", "reason"]
    assert open_points.measured(tmp_path / "empty").empty


def test_layers_that_lost_all_heads_are_counted(tmp_path: Path) -> None:
    emptied = [BlockShape(head_dims=[], neurons=10), BlockShape(head_dims=[32], neurons=0)]
    put(tmp_path, reading("default", 0, 80.0))
    put(tmp_path, reading("default", 1, 80.0).model_copy(update={"shape": emptied}))
    assert open_points.emptied_layers(tmp_path) == (1, 2)


# Figures


def test_a_point_beyond_its_bar_is_one_that_cannot_be_that_run() -> None:
    rows = report_plots.reach_data()
    macro = rows[rows["series"] == "macro-only"]
    end = macro.loc[macro["kind"] == "at most", "x"].item()
    beyond = macro.loc[macro["kind"] == "point", "x"] - findings_runs.READING > end
    assert beyond.tolist() == [not reached for reached in findings_runs.macro_only_reach()["reached"]]
    assert set(rows["series"]) == set(report_plots.RATIOS)


def test_the_strengths_of_figs_5_to_9_have_the_ratios_of_fig_4() -> None:
    strengths = collect.published("fig5_9_gate_heatmaps").groupby("figure")[["lambda_macro", "lambda_micro"]].first()
    for figure, name in report_plots.FIGURE_RATIOS.items():
        macro, micro = strengths.loc[figure]
        if name.endswith("only"):
            assert (micro if name == "macro-only" else macro) == 0
        else:
            assert macro / micro == pytest.approx(float(name.removesuffix(":1")))


def test_totals_end_where_the_last_states_do() -> None:
    totals = report_plots.gate_totals_data().query("epoch == epoch.max()").set_index("figure")
    assert totals["heads"].tolist() == findings.final_sizes()["heads"].tolist()


def figures() -> dict[str, Figure]:
    rows = stats.study(collect.load(RESULTS, "study"))
    return {
        "reach": report_plots.reach(report_plots.reach_data()),
        "ahead": report_plots.ahead(findings_runs.against_two_to_one()),
        "gate_totals": report_plots.gate_totals(report_plots.gate_totals_data()),
        "study_pareto": report_plots.study_pareto(rows),
        "bill": report_plots.bill(bills.totals(RESULTS, "study")),
    }


def test_figures_have_units_and_no_text_leaves_them() -> None:
    for name, figure in figures().items():
        assert all(ax.get_xlabel() for ax in figure.axes), name
        figure.draw_without_rendering()
        box = figure.get_tightbbox()
        assert box.x0 >= -0.02, name
        assert box.x1 <= figure.get_figwidth() + 0.02, name
