"""Findings 6 to 14, section 4 of the paper, and the figures about them. Expected values are written out here, from the
paper's equations, and not taken from the functions under test."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy import integrate

from analysis.figures import accuracy, style
from analysis.figures import costs as cost_pictures
from analysis.figures import gates as gate_pictures
from analysis.figures import heat_maps as maps
from analysis.findings import costs, gates, heat_maps, registry, speed_limit, table2, theory
from analysis.records import names, published
from analysis.records.results import MACS_COLUMNS, block_units
from analysis.studies import comparisons
from analysis.tables import render, theirs
from hiap.ledger import Prices

N, D, H, DH, DFFN, L = 197, 384, 6, 64, 1536, 12  # DeiT-Small
STEM = 196 * 768 * D + D * 1000  # patch embedding and classifier


def macs(qk: float, v: float, neurons: float) -> float:
    """MACs of a DeiT-Small with these many Q/K dimensions, value dimensions and neurons in all."""
    return STEM + (2 * N * D + N * N) * (qk + v) + 2 * N * D * neurons


def params(qk: float, v: float, neurons: float, ffns: int) -> float:
    rest = 768 * D + D + N * D + D + 2 * D + D * 1000 + 1000 + L * (4 * D + D) + ffns * D  # with biases of proj and fc2
    return rest + 2 * (D + 1) * qk + (2 * D + 1) * v + (2 * D + 1) * neurons


def test_the_two_ways_of_counting_agree_on_the_dense_network() -> None:
    inner = L * H * DH
    assert macs(inner, inner, L * DFFN) == costs.units().total_macs
    assert params(inner, inner, L * DFFN, L) == costs.units().params


# Findings


def test_finding_6_the_macro_only_run_is_below_one_of_its_points() -> None:
    reach = heat_maps.macro_only_reach()
    assert (reach["largest"] == macs(16 * DH, 16 * DH, L * DFFN)).all()
    assert round(reach["largest"].iloc[0] / 1e9, 3) == 3.236
    assert reach["reached"].tolist() == [True, False]
    closed = 16 * (DH - reach["closed_dims"].iloc[0])
    assert macs(16 * DH, closed, L * DFFN) == pytest.approx(3.1e9)


def test_finding_7_pressure_does_not_order_the_heads() -> None:
    rows = heat_maps.head_pressure().set_index("figure")
    c1, c2 = 2 * N * D * 3 * DH + 2 * N * N * DH, 2 * N * D + 2 * N * N
    assert rows.loc[7, "pressure"] == pytest.approx(1.2 * c1 + 64 * 0.8 * c2)
    assert (rows["pressure"] / 1e6).round(1).tolist() == [37.2, 36.9, 52.5, 51.0, 22.0]
    assert rows["heads"].tolist() == [34, 20, 33, 16, 72]
    macro = rows.loc[[5, 6, 7, 8]]
    # ranks 2 1 4 3 against 4 2 3 1: Spearman's 1 - 6 sum d^2 / (n (n^2 - 1)) = 1 - 6 * 10 / 60
    assert heat_maps.heads_rank_correlation(macro, "pressure") == pytest.approx(0)
    assert heat_maps.heads_rank_correlation(macro, "ratio") == pytest.approx(-0.8)
    assert heat_maps.contradictions(rows.reset_index()) == [(7, 6)]


@pytest.mark.parametrize(("row", "lowest", "highest"), [((3.1, 15.0), 958, 1251), ((2.5, 12.3), 801, 1094)])
def test_finding_8_corners_cost_what_is_printed(row: tuple[float, float], lowest: int, highest: int) -> None:
    region = table2.feasible_region(*row)
    assert (round(region["neurons"].min()), round(region["neurons"].max())) == (lowest, highest)
    for corner in region.to_dict("records"):
        width, neurons = L * corner["width"], 11 * corner["neurons"]
        assert abs(macs(width, width, neurons) / 1e9 - row[0]) == pytest.approx(0.05)
        assert abs(params(width, width, neurons, 11) / 1e6 - row[1]) == pytest.approx(0.05)


def test_finding_8_the_described_architecture_is_outside() -> None:
    text = table2.Described()
    for cut, qk, least in (("v", DH, 35.6), ("qkv", 32, 49.8)):
        found = table2.fewest_value_dims(3.1, 15.0, cut)  # type: ignore[arg-type]
        assert found == pytest.approx(least, abs=0.05)
        assert found > text.value_dims
        heads = L * text.heads[1]  # as much as is described, and still too few parameters or too few MACs
        sizes = [
            (macs(heads * qk, heads * 32, 11 * k), params(heads * qk, heads * 32, 11 * k, 11)) for k in text.neurons
        ]
        assert not any(abs(m / 1e9 - 3.1) <= 0.05 and abs(p / 1e6 - 15.0) <= 0.05 for m, p in sizes)
        assert table2.fewest_value_dims(2.5, 12.3, cut) is None  # type: ignore[arg-type]


def test_finding_8_the_inside_of_the_region_costs_what_is_printed_and_the_outside_does_not() -> None:
    region = table2.feasible_region(3.1, 15.0)
    middle = region.mean()
    low, high = table2.width_range(3.1, 15.0, (middle["neurons"], middle["neurons"])) or (math.nan, math.nan)
    assert low < middle["width"] < high
    for width, inside in ((low + 1e-6, True), (high - 1e-6, True), (low - 1, False), (high + 1, False)):
        size = macs(L * width, L * width, 11 * middle["neurons"]), params(*[L * width] * 2, 11 * middle["neurons"], 11)  # type: ignore[call-arg]
        assert bool(abs(size[0] / 1e9 - 3.1) <= 0.05 and abs(size[1] / 1e6 - 15.0) <= 0.05) is inside
    assert table2.width_range(3.1, 15.0, (1260, 1400)) is None


def test_widths_and_value_dims_are_inverse() -> None:
    for cut in table2.CUTS.values():
        assert table2.value_dims(table2.width(3, 20, cut), 3, cut) == pytest.approx(20)
    assert table2.width(6, 64, "v") == table2.width(6, 64, "qkv") == D


def test_table_2_one_row_has_no_network() -> None:
    rows = table2.table2_check()
    assert (rows["change"].dropna() == rows["recomputed"].dropna()).all()
    impossible = rows[~rows["possible"]]
    assert impossible[["method", "params_m"]].values.tolist() == [["GOHSP", 11.1]]
    spent = params(0, 0, 0, L)  # attention has the most MACs per parameter, so it is kept first
    inner = L * H * DH
    neurons = (11.15e6 - spent - (4 * D + 3) * inner) / (2 * D + 1)
    assert macs(inner, inner, neurons) < 2.75e9


def test_finding_9_one_point_five_to_one_is_ahead_once_for_sure() -> None:
    rows = heat_maps.against_two_to_one().query("ratio == '1.5:1'")
    assert rows["gflops"].tolist() == [1.8, 2.5, 2.9]
    assert rows["ahead"].iloc[0] == pytest.approx(67.9 - (64.5 + 3 / 8 * (71.8 - 64.5)))
    assert rows["ahead"].round(1).tolist() == [0.7, -0.8, 0.3]
    assert rows["ahead_smooth"].iloc[0] > 0.5
    assert rows["least"].iloc[0] == pytest.approx(0.29, abs=0.01), "the quadratic"
    assert rows["most"].iloc[0] == pytest.approx(1.09, abs=0.01), "the cubic"
    assert rows["ahead_smooth"].iloc[2] < 0


def test_finding_10_the_last_ffn_stays_in_two_figures() -> None:
    rows = heat_maps.last_ffn().set_index("figure")
    assert rows.index[rows["neurons"] > 0].tolist() == rows.index[rows["epoch"].isna()].tolist() == [6, 8]
    assert (rows["epoch"].dropna() == 0).all()


def test_finding_11_no_row_states_its_training(monkeypatch: pytest.MonkeyPatch) -> None:
    assert table2.rows_with_training()["rows"].tolist() == [11, 6]
    assert table2.rows_with_training()["state"].tolist() == [0, 0]
    known = table2.reported_epochs()
    assert dict(zip(known["method"], known["epochs"], strict=True)) == {
        "ViT-Slim": 350,
        "S2ViT": 600,
        "HiAP": 200,
        "WDPruning": 100,
    }
    told = pd.DataFrame({"method": ["a", "b"], "epochs": [300, None]})
    monkeypatch.setattr(published, "table", lambda name: told)
    assert table2.rows_with_training()["state"].tolist() == [1, 1]


def test_finding_12_vit_slim_by_its_own_formula() -> None:
    rows = table2.vit_slim_rows()
    assert rows["share"].tolist() == [0.7, 0.6]
    assert rows["formula"].round(2).tolist() == [3.24, 2.79]
    assert rows["params"].round(2).tolist() == [15.67, 13.54]
    inner, hidden = 0.7 * L * H * DH, 0.7 * L * DFFN
    assert rows["plain"].iloc[0] == pytest.approx(macs(inner, inner, hidden) / 1e9)
    assert rows["params"].iloc[0] == pytest.approx(params(inner, inner, hidden, L) / 1e6)
    assert table2.vit_slim(1.0)[1] == costs.units().params


def test_finding_13_who_is_ahead_of_hiap() -> None:
    rows = table2.better_and_no_larger()
    assert (rows["hiap_gmacs"] == 3.1).all()
    assert set(rows.query("gmacs >= 3.0")["method"]) == {"S2ViT", "ViT-Slim", "GOHSP"}
    assert len(rows) == 5
    assert rows["ahead"].max() == pytest.approx(0.88)


def test_finding_14_sums_the_rates() -> None:
    one, run = speed_limit.reach(speed_limit.FIGURES, full=True), speed_limit.reach(speed_limit.FIGURES)
    assert one[0] == pytest.approx(5004 * 5e-5)
    assert one[-1] == pytest.approx(50 * 5004 * 5e-5)
    # warm-up over 5 epochs takes half of what full rate would, a cosine over 45 as well
    assert run[4] == pytest.approx(2.5 * 5004 * 5e-5, rel=1e-3)
    assert run[-1] == pytest.approx(25 * 5004 * 5e-5, rel=1e-3) == pytest.approx(6.26, abs=0.01)
    assert run[[0, 9]] == pytest.approx([0.025, 1.86], abs=0.005)
    assert speed_limit.reach(speed_limit.CIFAR)[-1] == pytest.approx(100 * 195 * 5e-5, rel=1e-3)
    assert one[0] < speed_limit.grown(speed_limit.FIGURES, 1) < 0.5
    assert 0.98 < speed_limit.grown(speed_limit.CIFAR) < 3


def test_finding_14_holds_starts_and_rates_against_the_first_columns() -> None:
    first = speed_limit.first_reach().set_index(["rate", "start"])
    assert first.loc[5e-5, "full"].tolist() == [1, 1, 4, 12]
    assert first.loc[5e-5, "scheduled"].tolist() == [2, 4, 7, 15]
    assert first["full"].loc[5e-3].max() == 1
    assert (first["full"] <= first["scheduled"]).all()
    assert speed_limit.first_epoch(np.array([0.1, 0.2]), 0.3) is None
    shown = speed_limit.first_columns()
    assert shown["heads_closed"].tolist() == [17, 50, 19, 65, 0]
    assert round(100 * shown["neurons_closed"].iloc[-1]) == 71
    assert speed_limit.most_open_start() == pytest.approx(1 / (1 + math.exp(-0.2502)))


@pytest.mark.parametrize(("tau", "logit"), [(2.0, 3.0), (1.0, -1.0), (0.5, 0.7)])
def test_the_mean_of_a_soft_sample_is_that_of_its_density(tau: float, logit: float) -> None:
    mean, _ = integrate.quad(lambda z: z * float(gates.sample_density(np.array(z), tau, logit)), 0, 1)
    assert gates.sample_mean(tau, logit) == pytest.approx(mean, abs=1e-5)


def test_the_closed_form_is_not_the_mean_of_soft_gates() -> None:
    assert gates.sample_mean(2.0, 3.0) == pytest.approx(0.786, abs=5e-4)
    assert float(gates.sigmoid(3.0)) == pytest.approx(0.953, abs=5e-4)
    assert gates.sample_mean(0.01, 3.0) == pytest.approx(float(gates.sigmoid(3.0)), abs=1e-3)


def test_the_overview_has_all_fourteen() -> None:
    rows = registry.overview()
    assert list(rows) == ["finding", "quantity", "value", "unit"]
    assert rows["finding"].unique().tolist() == list(range(1, 15))
    assert not rows.duplicated(["finding", "quantity", "unit"]).any()
    assert rows["value"].notna().all()
    values = rows.set_index("quantity")["value"]
    assert values["Fig. 8's last architecture, at most"] == pytest.approx(3.236, abs=5e-4)
    assert values["2.5 G / 12.3 M: fewest neurons per live FFN"] == pytest.approx(801, abs=0.5)


# Section 4


@pytest.mark.parametrize(("tau", "logit"), [(2.0, 0.0), (1.0, 0.0), (0.5, 0.0), (0.5, 1.5), (2.0, -1.0)])
def test_the_density_integrates_to_the_shares(tau: float, logit: float) -> None:
    def share(low: float, high: float) -> float:
        return float(integrate.quad(lambda z: float(gates.sample_density(np.array(z), tau, logit)), low, high)[0])

    assert share(0, 1) == pytest.approx(1, abs=1e-6)
    assert share(0.05, 0.95) == pytest.approx(gates.undecided_share(tau, logit), abs=1e-6)
    assert share(0.5, 1) == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-6)


def test_the_density_is_uniform_at_temperature_one_and_symmetric_at_logit_zero() -> None:
    z = np.linspace(0.01, 0.99, 99)
    assert gates.sample_density(z, 1.0) == pytest.approx(np.ones(99))
    assert gates.sample_density(z, 0.3) == pytest.approx(gates.sample_density(1 - z, 0.3))
    assert gates.sample_density(np.array([0.5]), 2.0)[0] == pytest.approx(2.0)


def test_lemma_1_counts() -> None:
    for heads, head_dim, hidden in ((1, 2, 2), (2, 2, 3)):
        counts = [theory.enumerate_networks(heads, head_dim, hidden, g) for g in theory.GRANULARITIES]
        assert counts == [2 ** (heads + 1), *[2 ** (heads * head_dim + hidden)] * 2]
    rows = theory.counting(costs.DEIT_SMALL).set_index("granularity")["bits"]
    assert rows.tolist() == [L * (H + 1), L * (H * DH + DFFN), L * (H * DH + DFFN)]


def test_proposition_1_holds_for_every_joint_distribution() -> None:
    prices = Prices(head=7, value_dim=3, neuron=2)
    rows = theory.proposition_1(prices, probability=0.3).set_index("gates")
    assert rows["enumerated"].to_numpy() == pytest.approx(rows["joint"].to_numpy())
    # independent: 2 heads (7 * 0.3 + 2 * 3 * 0.09) + 4 neurons 2 * 0.09, of 2 (7 + 6) + 8
    assert rows.loc["independent", "joint"] == pytest.approx((2 * (2.1 + 0.54) + 0.72) / 34)
    assert rows.loc["independent", "marginals"] == pytest.approx(rows.loc["independent", "joint"])
    assert rows.loc["all or none", "joint"] == pytest.approx(0.3)
    assert rows.loc["all or none", "marginals"] < 0.2


def test_proposition_2_fails_by_up_to_a_half_and_three_quarters() -> None:
    near = np.array([1e-9])
    assert theory.gap(near, 1)["gap"].item() == pytest.approx(0.5)
    assert theory.gap(near, 2)["gap"].item() == pytest.approx(0.75)
    assert theory.gap(-near, 2)["gap"].item() == pytest.approx(-0.25)
    for count in (1, 2):
        logit = theory.certain_logit(0.01, count)  # type: ignore[arg-type]
        assert theory.gap(np.array([logit]), count)["gap"].item() == pytest.approx(0.01)  # type: ignore[arg-type]


# Tables and figures


def runs() -> pd.DataFrame:
    """Runs that nobody made."""
    rows: list[dict[str, Any]] = [
        {"method": "dense", "label": "dense", "seed": 0, "macs_share": 1.0, "top1": 90.0, "target": None}
    ]
    for label, share in (("2to1-0.9", 0.8), ("2to1-1.8", 0.6), ("macro-only-0.9", 0.9)):
        rows += [
            {"method": "hiap", "label": label, "seed": s, "macs_share": share + s / 100, "top1": 80 + s, "target": None}
            for s in (0, 2)
        ]
    return pd.DataFrame(rows).assign(macs=lambda frame: 4.6e9 * frame["macs_share"])


def test_table_1_names_what_runs_here() -> None:
    rows = theirs.table1(runs()).panels[0].rows.set_index("method")
    assert rows["here"].dropna().to_dict() == {"ViT-Slim": "vit_slim", "HiAP": "hiap"}
    assert rows["runs"].dropna().to_dict() == {"ViT-Slim": 0, "HiAP": 6}
    others = theirs.other_methods(runs()).set_index("method")["runs"]
    assert others["Dense"] == 1
    assert len(others) + 2 == len(names.METHODS)


def test_table_2_is_shown_with_its_check() -> None:
    shown = render.markdown(theirs.table2())
    assert "| HiAP | 12.3 | 2.5 | 45.7 | 77.95 | -1.90 | -1.90 | yes |" in shown
    assert shown.count("| no |") == 1


def test_rows_for_the_picture_hold_each_report_once() -> None:
    ours = comparisons.on_imagenet(runs())
    assert ours["top1"].tolist() == [81.0, 81.0, 81.0]
    rows = table2.reports(ours)
    assert not rows.query("kind != 'ours'").duplicated(["gmacs", "top1"]).any()
    assert rows["kind"].value_counts().to_dict() == {"related": 9, "table": 8, "ours": 3, "HiAP": 2, "dense": 1}
    assert "UPop, 360 ep." in set(rows["name"])


def test_ratio_runs_are_averaged_over_seeds() -> None:
    means, seeds = comparisons.ratio_runs(runs())
    assert means["series"].tolist() == ["2:1", "2:1", "macro-only"]
    assert means["x"].to_numpy() == pytest.approx([81, 61, 91])
    assert len(seeds) == 6


def test_labels_are_spread_as_little_as_needed() -> None:
    heights = np.array([1.0, 5.0, 1.0, 1.1])
    placed = accuracy.spaced(heights, 0.5)
    assert placed[1] == 5.0
    assert np.diff(np.sort(placed)).min() >= 0.5 - 1e-9
    assert placed[[0, 2, 3]].mean() == pytest.approx(heights[[0, 2, 3]].mean())


def figures() -> dict[str, Figure]:
    means, seeds = comparisons.ratio_runs(runs())
    dense = block_units(costs.DEIT_SMALL)
    shape = pd.DataFrame({"block": [0, 1], "heads": [2, 0], "neurons": [1200, 0]})
    known = shape.assign(head_dims=[[40, 10], []])
    networks = [maps.Topology("one", shape, dense), maps.Topology("two", known, dense)]
    regions = {"a": table2.feasible_region(3.1, 15.0), "b": table2.feasible_region(2.5, 12.3)}
    paths = {"none": pd.DataFrame(columns=list(MACS_COLUMNS))}
    return {
        "fig2": gate_pictures.fig2(gates.densities()),
        "fig2_undecided": gate_pictures.undecided(gates.undecided(points=5)),
        "fig3": maps.fig3(networks),
        "fig4": accuracy.fig4(means, "MACs (%)", "top-1 (%)", seeds),
        "gap": gate_pictures.hardening(theory.gaps(), paths),
        "speed_limit": gate_pictures.speed_limit(published.totals(), speed_limit.first_reach()),
        "feasible": cost_pictures.feasible(regions, heat_maps.final_widths(), table2.Described()),
        "table2": accuracy.table2(table2.reports(pd.DataFrame(columns=["name", "gmacs", "top1"]))),
    }


def test_figures_have_units_and_no_text_over_another_or_the_edge(tmp_path: Path) -> None:
    for name, figure in figures().items():
        shared = name in ("fig3", "speed_limit")  # one axis below all panels
        assert all(ax.get_xlabel() or shared for ax in figure.axes), name
        assert any(ax.get_ylabel() for ax in figure.axes), name
        figure.draw_without_rendering()
        boxes = [t.get_window_extent() for ax in figure.axes for t in ax.texts if t.get_text().strip()]
        for i, box in enumerate(boxes):
            assert box.x0 >= 0, name
            assert box.x1 <= figure.bbox.x1, name
            assert not any(box.padded(-1).overlaps(other) for other in boxes[:i]), name
        style.save(figure, name, pd.DataFrame({"a": [1]}), tmp_path)
    assert len(list((tmp_path / "figures").glob("*.pdf"))) == len(figures())
