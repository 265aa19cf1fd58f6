"""How a knob's value is taken from validation scores (analysis/studies/knobs.py), by results/PROTOCOL.md."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pandas as pd
import pytest
from test_evidence import put

from analysis.records.results import REPOSITORY, Results
from analysis.studies import knobs
from slurm import grid as grids


def test_the_middle_stays_unless_another_is_better_by_the_margin() -> None:
    assert knobs.take({0.1: 70.0, 0.2: 71.0, 0.4: 71.5}, 0.2) == 0.2
    assert knobs.take({0.1: 70.0, 0.2: 71.0, 0.4: 71.6}, 0.2) == 0.4
    assert knobs.take({0.1: 72.0, 0.2: 71.0, 0.4: 71.6}, 0.2) == 0.1


def test_a_value_without_a_score_is_never_taken() -> None:
    assert knobs.take({0.2: 71.0, 0.4: math.nan}, 0.2) == 0.2
    assert math.isnan(knobs.take({0.4: math.nan}, 0.2))


def runs(*rows: tuple[str, float, float, float, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["method", "target", "own", "rate", "top1"]).assign(seed=0)


def test_values_are_compared_on_the_seeds_that_all_have() -> None:
    rows = runs(*[("obs", t, own, 1e-4, 70.0 + own) for t in knobs.TARGETS for own in (1, 3)])
    more = rows[rows["own"] == 3].assign(seed=1, top1=60.0)  # the better value alone, on a harder seed
    found = knobs.tried(pd.concat([rows, more], ignore_index=True)).set_index("value")
    assert found.loc[3, "taken"]
    assert found.loc[3, "score"] == 73.0


def test_the_second_knob_is_judged_at_the_value_of_the_first_that_was_taken() -> None:
    values = [(own, 1e-4, 70 + 10 * own) for own in (0.1, 0.2, 0.4)]
    values += [(0.4, 5e-5, 80.0), (0.2, 2e-4, 99.0)]  # the last belongs to no sweep: its first knob was not taken
    found = knobs.tried(runs(*[("hiap", t, own, rate, top1) for t in knobs.TARGETS for own, rate, top1 in values]))
    rates = found[found["knob"] == knobs.RATE]
    assert list(rates["value"]) == [5e-5, 1e-4]
    assert list(found.loc[found["taken"], "value"]) == [0.4, 5e-5]
    assert list(found.loc[found["edge"], "value"]) == [0.4]  # two values have no inside


def test_a_value_that_was_left_out_at_one_budget_has_no_score() -> None:
    rows = [("obs", t, own, 1e-4, 70.0) for t in knobs.TARGETS for own in (1, 3) if (t, own) != (0.5, 3)]
    found = knobs.tried(runs(*rows)).set_index("value")
    assert math.isnan(found.loc[3, "score"])
    assert found.loc[1, "taken"]


def test_photographs_tune_the_rate_alone_around_what_the_second_pair_took() -> None:
    rows = runs(*[("obs", 0.35, 1, rate, top1) for rate, top1 in ((1e-4, 80.0), (5e-5, 79.6), (2.5e-5, 79.0))])
    found = knobs.tried(rows, {"obs": 5e-5}).set_index("value")
    assert found["score"].to_dict() == found["top1_35"].to_dict()
    assert found.loc[5e-5, "taken"], "the middle is within half a point"
    found = knobs.tried(rows, {"obs": 2.5e-5}).set_index("value")
    assert found.loc[1e-4, ["taken", "edge"]].all()
    assert not knobs.tried(rows[:2], {"obs": 5e-5})["taken"].any(), "not before all three were tried"


def test_the_middles_are_what_the_protocol_prints_bold() -> None:
    text = (REPOSITORY / "results" / "PROTOCOL.md").read_text(encoding="utf-8")
    table = text.partition("## Tuning: grid `cifar10_tune`")[2].partition("## Study")[0]
    assert "0.1, **0.2**, 0.4 | 5e-5, **1e-4**, 2e-4" in table
    assert "rounds **1**, 3" in table
    assert "(6e-4, 1.5e-4) times 1/3, **1**, 3" in table
    assert knobs.MIDDLE == {"gates.lr": 0.2, "budget.rounds": 1, "search.w_attn": 6e-4, knobs.RATE: 1e-4}


@pytest.mark.parametrize(("study", "tuning"), [("cifar10", knobs.GRID), ("imagenette", knobs.AGAIN)])
def test_the_study_has_what_tuning_took(study: str, tuning: str) -> None:
    """Every primary run has the values taken; until its own grid took one, what the one before did, or the middle."""
    taken: dict[object, float] = {}
    for grid in dict.fromkeys((knobs.GRID, tuning)):
        found = knobs.of_grid(Results(), grid).query("taken")
        taken |= dict(zip(zip(found["method"], found["knob"], strict=True), found["value"], strict=True))
    path = REPOSITORY / "slurm" / "grids" / f"{study}.yaml"
    for run in grids.expand(grids.load(path), path, {"results": "results"}, data_root="somewhere"):
        method, _, cut = run.label.partition("-")
        if method in knobs.KNOBS and cut in ("50", "65"):
            for knob in (knobs.KNOBS[method], knobs.RATE):
                section, _, key = knob.partition(".")
                value = getattr(getattr(run.config, section), key)
                assert value == pytest.approx(taken.get((method, knob), knobs.MIDDLE[knob])), (run.label, knob)
            if method == "vit_slim":
                assert run.config.search.lr == run.config.optim.lr


def test_what_an_ordered_start_adds_is_told_at_each_budget_that_was_run(tmp_path: Path) -> None:
    assert "--grid cifar10_ranked" in knobs.ranked(Results(tmp_path)), "nothing yet"
    put(tmp_path, "hiap-gates0.2-65", "hiap", 0, 70, knobs.GRID, budget={"target_macs": 0.35})
    put(tmp_path, "hiap-gates0.4-65", "hiap", 0, 90, knobs.GRID, budget={"target_macs": 0.35}, gates={"lr": 0.4})
    put(tmp_path, "hiap_ranked-65", "hiap_ranked", 0, 75, knobs.RANKED, budget={"target_macs": 0.35})
    said = " ".join(knobs.ranked(Results(tmp_path)).split())
    assert "at 35 % of the MACs" in said
    assert "at 50 %" not in said
    assert re.search(r"\(\+[45]\.\d \[\+\d\.\d, \+\d\.\d\]\)", said)
