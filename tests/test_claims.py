"""The ledger: every claim has a verdict, every verdict is computed, and other data never confirm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fake_train import make_record

from analysis import cite, claims, collect
from analysis.claim_checks import CHECKS, HERE
from hiap.config import from_dict
from hiap.record import Folders, write
from slurm import grid

CLAIM = {
    "check": "", "argument": "", "answer": "g/hiap", "here": "", "dataset": "imagenet", "metric": "top1", "value": 80.0,
    "tolerance": 0.3,
}  # fmt: skip


@pytest.fixture(scope="module")
def found() -> pd.DataFrame:
    return claims.verdicts(collect.REPOSITORY / "results")


def runs(root: Path, scores: list[float], data: str = "imagenet", label: str = "hiap") -> None:
    for seed, top1 in enumerate(scores):
        values: dict[str, Any] = {"method": "hiap", "seed": seed, "data": {"name": data}, "model": {"weights": "hub"}}
        config = from_dict({**values, "run": {"grid": "g", "label": label, "results": str(root)}})
        write(make_record(config, "finished", top1=top1), Folders.of(config))


def test_every_claim_has_a_computed_verdict(found: pd.DataFrame) -> None:
    assert len(found) >= 80
    assert found["id"].is_unique
    assert set(found["verdict"]) <= set(claims.VERDICTS)
    assert (found["evidence"] != "").all()
    assert "verdict" not in claims.load().columns


def test_numeric_claims_have_tolerances_and_units_and_named_functions_exist() -> None:
    stated = claims.load()
    numeric = stated[stated["value"].notna()]
    assert numeric["tolerance"].notna().all()
    assert set(stated["check"]) - {""} <= set(CHECKS)
    assert set(stated["here"]) - {""} <= set(HERE)
    assert set(CHECKS) <= set(stated["check"]), "a check that no claim names"
    assert set(HERE) <= set(stated["here"])


def test_every_grid_and_label_that_a_claim_names_is_there() -> None:
    for answer in claims.load()["answer"]:
        if "/" in answer and not answer.startswith("python"):
            name, _, label = answer.partition("/")
            known = grid.load(grid.find(name)).runs
            assert any(claims._named(other, label) for other in known), answer


def test_the_committed_ledger_is_what_is_computed(found: pd.DataFrame, tmp_path: Path) -> None:
    from analysis.tables import save_frame

    path = save_frame(found, "claims", tmp_path, folder=".")
    assert path.read_text() == (collect.REPOSITORY / "results" / "claims.csv").read_text()


CASES = {
    "confirmed": [79.9, 80.0, 80.1],
    "contradicted": [75.0, 75.1, 75.2],
    "insufficient seeds": [80.0, 80.0],
}


@pytest.mark.parametrize(("verdict", "scores"), CASES.items())
def test_runs_on_the_papers_data_decide_both_ways(verdict: str, scores: list[float], tmp_path: Path) -> None:
    runs(tmp_path, scores)
    answer = claims.judge(CLAIM, tmp_path)
    assert answer.verdict == verdict
    assert answer.n == len(scores)


def test_a_spread_that_allows_both_decides_nothing(tmp_path: Path) -> None:
    runs(tmp_path, [78.0, 79.5, 81.0])
    assert claims.judge({**CLAIM, "value": 80.0}, tmp_path).verdict == "insufficient seeds"


def test_other_data_never_answer_for_the_papers(tmp_path: Path) -> None:
    """Three runs that hit the number to the digit, on digits: the claim stays open."""
    runs(tmp_path, [80.0, 80.0, 80.0], data="affine-digits")
    found = claims._scores(CLAIM, tmp_path)
    assert found is not None
    assert found.empty
    named = {**CLAIM, "answer": "cifar10_table3/hiap-33", "dataset": "cifar10"}
    assert claims.judge(named, tmp_path).verdict == "not run"


def test_a_point_of_a_curve_is_interpolated_per_seed(tmp_path: Path) -> None:
    for label, top1, macs in (("r-1", 70.0, 50_000), ("r-2", 80.0, 100_000)):
        config = from_dict({"method": "hiap", "data": {"name": "imagenet"}, "model": {"weights": "hub"},
                            "penalty": {"lambda_macro": macs / 1e5},
                            "run": {"grid": "g", "label": label, "results": str(tmp_path)}})  # fmt: skip
        record = make_record(config, "finished", top1=top1)
        assert record.size is not None
        write(record.model_copy(update={"size": record.size.model_copy(update={"macs": macs})}), Folders.of(config))
    middle = claims._scores({**CLAIM, "answer": "g/r-*", "argument": "7.5e-05"}, tmp_path)
    assert middle is not None
    assert middle.tolist() == [75.0]
    outside = claims._scores({**CLAIM, "answer": "g/r-*", "argument": "2e-04"}, tmp_path)
    assert outside is not None
    assert outside.empty


def test_what_no_grid_answers_is_not_run_and_says_why() -> None:
    answer = claims.judge({**CLAIM, "answer": ""}, Path("/nowhere"))
    assert (answer.verdict, answer.evidence) == (
        "not run",
        "needs the compared method's own code, which this repository does not implement",
    )


def test_a_row_and_a_claim_can_be_cited(capsys: pytest.CaptureFixture[str]) -> None:
    assert cite.main(["study/hiap-20"]) == 0
    shown = capsys.readouterr().out
    assert "5 seeds, 5,000 test images" in shown
    assert shown.count("hiap-") > 5
    assert "@misc{hiap-reproduction-study-hiap-20," in shown
    assert cite.main(["E-01@0123456789"]) == 0
    assert "verdict   contradicted" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "near"), [("study/hiap-21", "study/hiap-20"), ("E-0", "E-0")])
def test_an_unknown_id_is_one_line(name: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cite.main([name]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert near in error
