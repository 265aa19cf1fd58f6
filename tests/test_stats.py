"""Intervals, comparisons and the study's rows, on numbers whose answers are known."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from test_analysis import DENSE_MACS, made_up

from analysis.figures import intervals
from analysis.records import names
from analysis.records.results import Results
from analysis.stats import seeds as statistics
from analysis.studies import budget, comparisons, paired
from analysis.tables import ours, render
from hiap.train.record import Folders, write


def seeds(*values: float, start: int = 0) -> pd.Series:
    return pd.Series(values, index=range(start, start + len(values)), dtype=float)


def test_a_mean_is_seeded_and_one_value_has_no_interval():
    values = seeds(81.0, 82.5, 80.2, 83.1, 81.7)
    first = statistics.mean(values)
    assert first == statistics.mean(values)
    assert first.mean == pytest.approx(81.7)
    assert first.n == 5
    assert values.min() < first.low < first.mean < first.high < values.max()
    alone = statistics.mean(seeds(80.0))
    assert (alone.mean, alone.n) == (80.0, 1)
    assert np.isnan([alone.low, alone.high]).all()


def test_five_seeds_cover_less_than_the_level_says():
    """The number in the module's docstring."""
    draws = np.random.default_rng(0).normal(size=(400, 5))
    covered = [(i := statistics.mean(row)).low <= 0 <= i.high for row in draws]
    assert 0.80 < np.mean(covered) < 0.88


def test_a_difference_is_paired_by_seed():
    """Seeds that differ much among each other, by the same amount for both: unpaired, nothing could be told."""
    reference = seeds(70.0, 80.0, 90.0, 75.0, 85.0)
    found = statistics.compare(reference + seeds(1.0, 1.1, 0.9, 1.0, 1.2), reference)
    assert found.decided
    assert found.difference.low > 0.9
    shuffled = reference.sample(frac=1, random_state=1)
    assert statistics.compare(shuffled, reference).difference.mean == 0


def test_nothing_is_decided_without_student_or_without_common_seeds():
    """The bootstrap's interval of few seeds excludes zero as soon as all are positive; Student's does not."""
    found = statistics.compare(seeds(0.1, 3.0), seeds(0.0, 0.0))
    assert found.difference.low < 0
    assert not found.decided
    five = statistics.compare(seeds(0.1, 0.1, 0.1, 0.1, 9.0), seeds(0.0, 0.0, 0.0, 0.0, 0.0))
    assert five.difference.low > 0
    assert not five.decided
    apart = statistics.compare(seeds(1.0), seeds(1.0, start=5))
    assert apart.difference.n == 0
    assert not apart.decided


def test_rounding_decides_nothing():
    found = statistics.compare(seeds(*[0.1 + 0.2] * 5), seeds(*[0.3] * 5))
    assert found.difference.mean > 0
    assert (found.difference.low, found.decided) == (0, False)


@pytest.mark.parametrize(
    ("label", "target", "name"),
    [("taylor-rounds-20", 0.8, "taylor-rounds"), ("hiap-33", 0.67, "hiap"), ("dense", None, "dense")],
)
def test_variant_is_the_label_without_its_budget(label, target, name):
    assert names.variant(label, target) == name


@pytest.fixture
def runs(tmp_path) -> pd.DataFrame:
    """Two targets, three seeds; l1 is a point better than HiAP at the first and absent at the second."""
    records = [made_up("dense", "dense", seed) for seed in range(3)]
    for seed, top1 in enumerate((80.0, 85.0, 83.0)):
        for share in (0.8, 0.5):
            budget = {"target_macs": share}
            name = f"{100 * (1 - share):.0f}"
            macs = int(DENSE_MACS * share) - 1000 * seed
            records.append(made_up(f"hiap-{name}", "hiap", seed, macs, top1, budget=budget))
            if share == 0.8:
                records.append(made_up(f"l1-{name}", "l1", seed, macs, top1 + 1 + 0.01 * seed, budget=budget))
    for record in records:
        write(record, Folders(tmp_path, "laptop", record.run_id))
    return answered(paired.load(Results(tmp_path), "laptop"))


IMAGES = 10_000


def answered(runs: pd.DataFrame) -> pd.DataFrame:
    """Networks that get the easiest images right, as many as their top-1 says."""
    right = [np.arange(IMAGES) < round(IMAGES * top1 / 100) for top1 in runs["top1"]]
    return runs.assign(hits=pd.Series(right, index=runs.index, dtype=object), originals=None)


def test_the_study_compares_at_the_same_target_only(runs):
    rows = comparisons.study(runs).set_index("label")
    assert rows.loc["l1-20", "difference"] == pytest.approx(1.01)
    assert rows.loc["l1-20", "decided"] is True
    assert rows.loc[["dense", "hiap-20", "hiap-50"], "difference"].isna().all()
    assert rows.loc["hiap-20", "title"] == "HiAP + target (ours)"
    assert (rows["n"] == 3).all()
    assert rows.loc["l1-20", "improvement"] == 1


def test_without_images_a_difference_is_shown_and_nothing_is_decided(runs):
    rows = comparisons.study(runs.assign(hits=None)).set_index("label")
    assert rows.loc["l1-20", "difference"] == pytest.approx(1.01)
    assert rows.loc["l1-20", ["difference_low", "p", "p_holm", "decided"]].isna().all()
    verdicts = render.values(ours.study(rows.reset_index()))["verdict"]
    assert set(verdicts) == {""}
    alone = comparisons.study(runs[runs["seed"] == 0]).set_index("label")
    assert alone.loc["l1-20", "difference"] == pytest.approx(1.0)
    assert np.isnan(alone.loc["l1-20", "difference_low"])
    intervals.forest(comparisons.from_reference(alone.reset_index())).draw_without_rendering()


def test_images_of_one_original_decide_less(runs):
    """The same answers; if all that differ show one original, its luck may be all there is."""
    alone = comparisons.study(runs).set_index("label").loc["l1-20"]
    together = runs.assign(originals=[np.arange(IMAGES) // 500] * len(runs))
    clustered = comparisons.study(together).set_index("label").loc["l1-20"]
    assert clustered["difference"] == alone["difference"]
    assert clustered["difference_low"] < alone["difference_low"]
    assert (alone["decided"], clustered["decided"]) == (True, False)


def test_the_study_table_says_what_is_decided_and_fits_the_page(runs):
    text = render.text(ours.study(comparisons.study(runs)))
    assert max(map(len, text.splitlines())) <= render.TEXT_WIDTH
    assert next(line for line in text.splitlines() if "l1 FFN" in line).split()[-2] == "below"
    assert "Target 80 %" in text
    assert "Target 50 %" in text


def test_only_what_holm_keeps_is_decided_and_filled(runs):
    """A clear difference stays among any number of others; one whose p is below 0.05 by itself does not."""
    l1 = runs[runs["label"] == "l1-20"]
    others = [
        l1.assign(label=f"{method}-20", method=method, run_id=[method + i for i in "abc"], top1=l1["top1"] + shift)
        for method, shift in (("taylor", np.array([-0.3, 0.4, 0.1])), ("cofi", np.array([-3.0, 2.0, 0.0])))
    ]
    rows = comparisons.study(answered(pd.concat([runs, *others], ignore_index=True))).set_index("label")
    three = ["l1-20", "taylor-20", "cofi-20"]
    assert rows.loc[three, "decided"].tolist() == [True, False, False]
    assert rows.loc["taylor-20", "p"] < 0.05 < rows.loc["taylor-20", "p_holm"]
    assert rows.loc["l1-20", "p_holm"] == pytest.approx(3 * rows.loc["l1-20", "p"])
    assert rows.loc[["dense", "hiap-20"], ["p", "p_holm", "decided"]].isna().all(axis=None)
    verdicts = render.values(ours.study(rows.reset_index())).set_index("title")["verdict"]
    assert verdicts[["l1 FFN", "Taylor", "CoFi"]].tolist() == ["below", "", ""]
    fig = intervals.forest(comparisons.from_reference(rows.reset_index()))
    assert {line.get_markerfacecolor() for line in fig.axes[0].lines if line.get_marker() == "s"} == {"black", "white"}


def test_figures_show_every_compared_row(runs):
    rows = comparisons.study(runs)
    fig = intervals.forest(comparisons.from_reference(rows))
    assert len(fig.axes) == 1  # a target at which nothing is compared has no panel
    assert [label.get_text() for label in fig.axes[0].get_yticklabels()] == [intervals.OWN, "l1 FFN"]
    bills = [f"{macs / 1e12:.2f}" for macs in rows[rows["target"] == 0.8].sort_values("method")["train_macs"]]
    assert [text.get_text() for text in fig.axes[0].texts if text.get_text() != "TMACs"] == bills[::-1]


def test_one_sign_in_tables_and_figures(runs):
    rows = comparisons.study(runs)
    flipped = comparisons.from_reference(rows).set_index("label").loc["l1-20"]
    plain = rows.set_index("label").loc["l1-20"]
    assert flipped["difference"] == -plain["difference"] == pytest.approx(-1.01)
    assert (flipped["low"], flipped["high"]) == (-plain["difference_high"], -plain["difference_low"])
    assert flipped["low"] <= flipped["difference"] <= flipped["high"]
    shown = render.values(ours.study(rows)).set_index("title").loc["l1 FFN"]
    assert shown["difference"] == flipped["difference"]
    assert shown["improvement"] == 0


def test_a_method_far_below_is_written_at_the_edge_and_hides_no_other(runs):
    far = answered(runs.assign(top1=runs["top1"].where(runs["method"] != "l1", 30.0)))
    near = runs[runs["label"] == "l1-20"].assign(label="taylor-20", method="taylor", run_id=["a", "b", "c"])
    rows = comparisons.study(pd.concat([far, near], ignore_index=True))
    fig = intervals.forest(comparisons.from_reference(rows))
    (text,) = (text for text in fig.axes[0].texts if "→" in text.get_text())
    assert re.fullmatch(r"\+5\d\.\d \[\d\d\.\d, \d\d\.\d\] →", text.get_text()), "never without its interval"
    fig.draw_without_rendering()
    box, axis = text.get_window_extent(), fig.axes[0].get_window_extent()
    assert axis.x0 < box.x0
    assert box.x1 < axis.x1
    assert fig.axes[0].get_xlim()[1] < 10


def test_an_axis_holds_the_intervals_of_all_that_is_drawn_on_it(runs):
    """A method beyond what the axis was made for, but within the interval of one that it was made for."""
    shifts = {"taylor": np.array([2.0, 3.5, 5.5]), "cofi": np.array([3.0, 4.1, 5.4])}
    l1 = runs[runs["label"] == "l1-20"]
    others = [
        l1.assign(label=f"{method}-20", method=method, run_id=[method + i for i in "abc"], top1=l1["top1"] - 1 + shift)
        for method, shift in shifts.items()
    ]
    rows = comparisons.study(answered(pd.concat([runs, *others], ignore_index=True)))
    ends = rows.set_index("label").loc[["taylor-20", "cofi-20"], ["difference", "difference_high"]]
    assert len(ends) == 2
    assert intervals.forest(comparisons.from_reference(rows)).axes[0].get_xlim()[0] <= -ends["difference_high"].max()


def test_landings_keep_the_worst_seed(runs):
    landed = budget.landings(runs).set_index("label")
    assert landed.loc["hiap-50", "shortfall"] == pytest.approx(100 * 2000 / DENSE_MACS, abs=1e-5)
    assert landed.loc["hiap-50", "overshoot"] <= 0
    assert "dense" not in landed.index


def test_a_strength_tuned_by_hand_is_judged_on_other_seeds():
    shares = {"weak": (0.71, 0.75, 0.70), "strong": (0.52, 0.49, 0.58)}
    ruled = pd.DataFrame(
        [{"label": k, "seed": s, "macs_share": v} for k, values in shares.items() for s, v in enumerate(values)]
    )
    hand = budget.by_hand(ruled, [0.7, 0.5]).set_index("label")
    assert hand.loc["strong", ["tuned", "low", "high"]].tolist() == pytest.approx([2, -1, 8])
    assert hand.loc["weak", ["tuned", "low", "high"]].tolist() == pytest.approx([1, 0, 5])
    assert hand["n"].tolist() == [2, 2]
    assert hand["within"].tolist() == [True, False], "0.5 lies below the ladder's end of 0.52"


def frame(**scores: tuple[float | None, tuple[float, ...]]) -> pd.DataFrame:
    """Runs of label -> (target, top-1 per seed), with what ``comparisons.against`` looks at."""
    rows = [
        {"label": label.replace("_", "-"), "target": target, "seed": s, "top1": v}
        for label, (target, values) in scores.items()
        for s, v in enumerate(values)
    ]
    return answered(pd.DataFrame(rows))


def test_controls_are_paired_with_the_reference_at_each_target():
    runs = frame(
        hiap_20=(0.8, (81.0, 82.0, 83.0)),
        hiap_50=(0.5, (79.0, 80.0, 81.0)),
        hiap_faithful=(None, (99.0, 99.0, 99.0)),
        dense_noise=(None, (80.0, 81.1, 81.9)),
    )
    found = comparisons.against(runs, ["dense-noise", "absent"]).set_index("target")
    assert found.index.tolist() == [0.8, 0.5], "highest target first, and nothing for what has none"
    assert found["difference"].tolist() == pytest.approx([1.0, -1.0])
    assert found["n"].tolist() == [3, 3]
    assert found["decided"].tolist() == [True, True]


def test_longer_recipes_are_held_against_the_short_single_phase(runs):
    longer = answered(runs.assign(top1=runs["top1"] + 5.0))
    found = comparisons.against_single_phase(longer, runs).set_index("title")
    assert not any("HiAP" in title for title in found.index)
    rows = comparisons.study(runs).dropna(subset="difference")
    assert [found.loc["l1 FFN", "difference"]] == pytest.approx(
        (rows.loc[rows["title"] == "l1 FFN", "difference"] + 5.0).tolist()
    )


@pytest.mark.parametrize(
    ("label", "method", "shown"),
    [
        ("hiap-faithful", "hiap", "The paper's rule, our reading"),
        ("dense-noise", "hiap", "Dense, gate noise (control)"),
        ("dense", "dense", "Dense"),
        ("2to1-1.8", "hiap", "2:1, strength 1.8"),
        ("uniform-noise", "uniform", "Uniform, gate noise (control)"),
        ("hiap-faithful-soft", "hiap", "The paper's rule, our reading, soft"),
        ("taylor-rounds", "taylor", "Taylor (in rounds)"),
    ],
)
def test_controls_are_named_for_what_they_are(label, method, shown):
    assert names.title(label, method) == shown


def test_hiap_with_a_target_says_that_the_target_is_ours():
    assert names.title("hiap-settled", "hiap", 0.5) == "HiAP + target (ours), settled"
    assert names.title("hiap-faithful", "hiap", np.nan, 465.0) == "The paper's rule, our reading, 465 steps"
    assert names.title("taylor", "taylor", 0.5) == "Taylor"


def test_three_seeds_of_a_large_spread_have_students_interval():
    found = statistics.Interval(80.0, 79.5, 80.5, 3)
    spread = statistics.widened(found, seeds(78.0, 80.0, 82.0))
    half = statistics.half_width([78.0, 80.0, 82.0])
    assert (spread.low, spread.high) == pytest.approx((80 - half, 80 + half))
    assert statistics.widened(found, seeds(79.99, 80.0, 80.01)) == found, "their images' luck is the wider one"
    five = found._replace(n=5)
    assert statistics.widened(five, seeds(70, 75, 80, 85, 90)) == five, "as the protocol has it"
    three = statistics.mean(seeds(78.0, 80.0, 82.0))
    assert (three.low, three.high) == pytest.approx((80 - half, 80 + half)), "no caller has to think of it"
