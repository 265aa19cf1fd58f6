"""Untrained cuts side by side: one table, the best first, and what structured OBS is ahead by."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats
from test_evidence import few, put  # noqa: F401

from analysis.records.results import Results
from analysis.studies import checklist, cuts, epochs
from hiap.train.record import Folders, write


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for seed in range(2):
        put(tmp_path, "dense", "dense", seed, 90, grid=cuts.GRID)
        for share, cut, lost in ((0.5, 50, 10), (0.35, 65, 30)):
            for ranking, method, gain in (("obs", "obs", 5), ("taylor", "taylor", 0), ("group_taylor", "peer", -5)):
                for end, correct in (("-ls", 512), ("", 0)):
                    level = 85 - lost + gain - (0 if correct else 40)
                    budget = {"target_macs": share, "correct": correct}
                    put(tmp_path, f"{ranking}-{cut}{end}", method, seed, level, grid=cuts.GRID, budget=budget)
    return tmp_path


def test_every_ranking_has_a_row_the_best_first(root: Path) -> None:
    shown = cuts.table(Results(root)).splitlines()
    assert shown[0] == "| top-1, %, with this share of the MACs | 50 % | 35 % |"
    titles = [line.split("|")[1].strip() for line in shown[2:5]]
    assert titles == ["structured OBS (ours)", "Taylor", "Torch-Pruning, GroupTaylor"]
    assert "(-5" in shown[3] or "(-4" in shown[3]
    assert shown[-1].startswith("Dense: 8") or shown[-1].startswith("Dense: 9")
    assert "2,000 test images" in shown[-1]


def test_rows_say_of_which_networks_they_are_where_that_differs(root: Path) -> None:
    put(root, "dense", "dense", 2, 90, grid=cuts.GRID)
    put(root, "obs-50-ls", "obs", 2, 80, grid=cuts.GRID, budget={"target_macs": 0.5, "correct": 512})
    shown = cuts.table(Results(root)).splitlines()
    assert shown[0] == "| top-1, %, with this share of the MACs | networks | 50 % | 35 % |"
    assert shown[2].startswith("| structured OBS (ours) | 3, 2 at 35 % | ")
    assert shown[3].startswith("| Taylor | 2 | ")
    assert "Each bracket is of the networks that both have" in shown[-1]


def test_differences_are_image_by_image_and_of_corrected_cuts_alone(root: Path) -> None:
    rows = cuts.against(cuts.load(Results(root))).set_index(["ranking", "target"])
    assert len(rows) == 4
    assert rows.loc[("taylor", 0.5), "difference"] == pytest.approx(5, abs=1)
    assert (rows["low"] <= rows["difference"]).all()
    assert (rows["difference"] <= rows["high"]).all()
    both = cuts.accuracies(cuts.load(Results(root)))
    assert len(both) == 2 * 3 * 2
    assert both[both["corrected"]]["top1"].min() > both[~both["corrected"]]["top1"].max()


def test_of_one_network_the_interval_is_that_of_paired_images_and_said_to_be(tmp_path: Path) -> None:
    budget = {"target_macs": 0.5, "correct": 512}
    put(tmp_path, "dense", "dense", 3, 90, grid=cuts.PHOTOGRAPHS)
    for ranking, level in (("obs", 80), ("taylor", 75)):
        put(tmp_path, f"{ranking}-50-ls", ranking, 3, level, grid=cuts.PHOTOGRAPHS, budget=budget)
    runs = cuts.load(Results(tmp_path), cuts.PHOTOGRAPHS)
    mine, other = (100.0 * runs["hits"].iloc[i] for i in (0, 1))
    expected = stats.ttest_rel(mine, other).confidence_interval(0.95)
    (row,) = cuts.against(runs).to_dict("records")
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high), rel=1e-3)
    assert (row["n"], row["difference"]) == (1, pytest.approx((mine - other).mean()))
    assert "over these images, which says nothing of other networks" in cuts.table(Results(tmp_path), cuts.PHOTOGRAPHS)
    put(tmp_path, "obs-50-ls", "obs", 4, 82, grid=cuts.PHOTOGRAPHS, budget=budget)  # a seed that one alone has
    (row,) = cuts.against(cuts.load(Results(tmp_path), cuts.PHOTOGRAPHS)).to_dict("records")
    assert pd.isna(row["low"]), "beside others an interval is over networks too, or there is none"


def test_without_records_it_says_how_to_make_them(tmp_path: Path) -> None:
    assert "--grid cifar10_cut" in cuts.table(Results(tmp_path))


def test_one_sentence_says_what_a_prune_leaves(root: Path) -> None:
    assert "--grid cifar10_cut" in cuts.sentence(Results(root)), "nothing yet"
    for share, cut, level in ((0.5, 50, 82), (0.25, 75, 60)):
        for ranking, method, lost in ((cuts.PRUNE, "obs", 0), ("taylor", "taylor", 8)):
            for seed in range(2):
                budget = {"target_macs": share, "correct": 512}
                put(root, f"{ranking}-{cut}-ls", method, seed, level - lost, grid=cuts.GRID, budget=budget)
    put(root, "taylor-50-ls", "taylor", 7, 10, grid=cuts.GRID, budget={"target_macs": 0.5, "correct": 512})
    said = " ".join(cuts.sentence(Results(root)).split())
    assert "2 networks" in said
    assert "% at 50 % and" in said
    assert said.endswith("%.")


def test_seconds_are_of_the_networks_that_were_timed(root: Path) -> None:
    assert cuts.seconds(cuts.load(Results(root))).empty, "older records have none"
    for path in root.glob(f"runs/{cuts.GRID}/obs*.json"):
        record = json.loads(path.read_text())
        stage = {"name": "fine-tune", "epochs": 0, "steps": 0, "images": 512, "seconds": 0.0, "train_macs": 1.0}
        record["stages"] = [{**stage, "pruning_seconds": 10.0 + record["seed"]}]
        path.write_text(json.dumps(record))
    timed = cuts.seconds(cuts.load(Results(root)))
    assert set(timed["ranking"]) == {"obs"}
    assert timed[["n", "seconds", "least", "most"]].to_numpy().tolist() == [[2, 10.5, 10, 11]] * 2


def test_the_checklist_says_yes_only_of_what_records_have(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    claims = pd.DataFrame({"verdict": ["not run", "confirmed"], "command": ["python -m x", ""]})
    of_records = slice(0, 2)
    nothing = checklist.rows(Results(tmp_path_factory.mktemp("empty")), claims)
    assert [met for _, met, _ in nothing[of_records]] == ["not yet", "not yet"]
    assert {met for question, met, _ in nothing if "scratch" in question or "masks" in question} == {"not yet"}
    some = checklist.rows(Results(root), claims)
    assert [met for _, met, _ in some[of_records]] == ["not yet", "in part"]  # no pair is whole, two budgets of five
    assert "CIFAR-10 26 of" in some[0][2]
    unanswered = checklist.rows(Results(root), claims.assign(command=""))
    assert [met for question, met, _ in unanswered if question == "A command for each claim"] == ["in part"]


def test_training_is_beside_the_untrained_cuts_of_the_same_networks(root: Path) -> None:
    assert "--grid cifar10_first" in epochs.table(Results(root)), "nothing yet"
    for seed in range(2):
        put(root, "dense", "dense", seed, 90, grid=epochs.GRID)
        for length, word in ((1, "-one"), (5, "")):
            for ranking, level in (("hiap", 70), ("obs", 80), ("taylor", 76)):
                keys = {"budget": {"target_macs": 0.5}, "optim": {"epochs": length}}
                put(root, f"{ranking}{word}-50", ranking, seed, level + length, grid=epochs.GRID, **keys)
    put(root, "taylor-50-ls", "taylor", 7, 10, grid=cuts.GRID, budget={"target_macs": 0.5, "correct": 512})
    for grid in (cuts.GRID, epochs.GRID):  # a made-up record has trained for so long as all others
        for record in Results(root).finished(grid):
            length = record.config.optim.epochs if grid == epochs.GRID else 0
            stages = [record.stages[0].model_copy(update={"epochs": length})]
            write(record.model_copy(update={"stages": stages}), Folders(root, grid, record.run_id))
    found = epochs.accuracies(epochs.load(Results(root))).set_index(["ranking", "epochs"])
    assert set(found.index) == {(r, n) for r in ("obs", "taylor") for n in (0, 1, 5)} | {("hiap", 1), ("hiap", 5)}
    assert found.loc[("obs", 5), "difference"] == pytest.approx(10, abs=1)
    assert found.loc[("taylor", 0), "n"] == 2, "of the networks that were trained too"
    shown = epochs.table(Results(root)).splitlines()
    assert shown[0] == "| top-1, %, at 50 % of the MACs | no training | 1 epoch | 5 epochs |"
    titles = [line.split("|")[1].strip() for line in shown[2:5]]
    assert titles == ["structured OBS (ours)", "Taylor", "HiAP + target (ours)"]
    assert "exploratory" in epochs.table(Results(root))
