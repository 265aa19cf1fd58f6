"""Least squares behind the cut, crossed, and accuracy at every budget, on made-up records."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_evidence import put

from analysis.figures import cuts as figures
from analysis.records.results import Results
from analysis.stats import images
from analysis.studies import crossed, cuts, evidence, frontier


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Results:
    """Least squares adds 4 points to HiAP and 1 to OBS, which is 2 ahead of it without, at 50 % alone."""
    monkeypatch.setattr(images, "RESAMPLES", 500)
    half = {"target_macs": 0.5}
    for seed in range(3):
        put(tmp_path, "dense", "dense", seed, 90, grid="cifar10")
        put(tmp_path, "dense", "dense", seed, 90 - 5 * (seed == 2), grid=cuts.GRID)  # the last is another network
        for label, method, level in (
            ("hiap-50", "hiap", 70),
            ("hiap-ls-50", "hiap", 74),
            ("obs-50", "obs", 73),
            ("obs-no_ls-50", "obs", 72),
            ("taylor-50", "taylor", 71),
        ):
            own = {**half, "correct": 0 if label in ("hiap-50", "obs-no_ls-50") else 512}
            put(tmp_path, label, method, seed, level, grid="cifar10", budget=own)
        for ranking, level in (("obs_qk", 65), ("taylor", 60)):
            own = {**half, "correct": level}
            put(tmp_path, f"{ranking}-50-ls", "obs", seed, level, grid=cuts.GRID, budget=own)
    return Results(tmp_path)


def test_least_squares_is_on_both_sides_or_on_neither(results: Results) -> None:
    rows = crossed.rows(evidence.load(results, "cifar10")).set_index(["variant", "question"])["difference"]
    expected = {
        ("hiap", crossed.ADDS): 4,
        ("obs", crossed.ADDS): 1,
        ("obs", crossed.BOTH): 1,
        ("obs", crossed.NEITHER): -2,
        ("taylor", crossed.BOTH): 3,
    }
    assert set(rows.index) == set(expected), "what was not run has no row"
    assert rows.to_dict() == pytest.approx(expected, abs=0.6)


def test_the_table_has_a_column_for_what_was_run(results: Results, tmp_path: Path) -> None:
    shown = crossed.table(results)
    assert (
        shown.splitlines()[0]
        == "| points of top-1 | 50 %: gain | 50 %: lead, both with it | 50 %: lead, both without |"
    )
    taylor = next(line for line in shown.splitlines() if line.startswith("| Taylor"))
    assert taylor.split("|")[2].strip() == taylor.split("|")[4].strip() == "-"
    assert crossed.table(Results(tmp_path / "none")).startswith("Not run yet")


def test_at_every_budget_what_is_untrained_is_of_the_same_networks(results: Results) -> None:
    found = frontier.by_budget(results)
    assert set(found.loc[found["epochs"] > 0, "ranking"]) == {"hiap", "hiap-ls", "obs", "taylor"}
    bare = found[found["epochs"] == 0]
    assert bare["ranking"].tolist() == ["obs_qk"], "the best ranking alone"
    assert bare["n"].tolist() == [2]
    assert len(figures.by_budget(found, 90.0).axes[0].lines) == len(found) + 1
    lines = frontier.budgets(results).splitlines()
    assert lines[0] == "| top-1, % (networks) | 50 % |"
    assert len(lines) == 2 + len(found)
    assert lines[-1].startswith("| structured OBS, Q and K narrower too (ours), untrained | ")
    assert lines[-1].endswith(" (2) |")
