"""The study at the widths and depth of DeiT-Small on made-up records: what is compared, judged and shown."""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_analysis import DENSE_MACS, made_up

from analysis.figures import heat_maps, intervals
from analysis.records import names
from analysis.records.results import Results
from analysis.stats import images
from analysis.studies import evidence, paired, words
from analysis.tables import ours, render
from hiap.train.config import ConfigError
from hiap.train.record import Folders, Metrics, Score, write

IMAGES = 2000
GAINS = {"vit_slim": 3.0, "taylor": 6.0, "uniform": -2.0, "uniform-noise": 0.0}


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "RESAMPLES", 500)


def put(root: Path, label: str, method: str, seed: int, level: float, grid: str = "evidence", **config: Any) -> None:
    """A finished run whose network gets images right whose difficulty, nearly the same for all runs, is below
    ``level`` per cent."""
    luck = np.random.default_rng(0).random(IMAGES) + 0.02 * np.random.default_rng([seed, len(label)]).random(IMAGES)
    hits = luck < level / 100
    target = config.get("budget", {}).get("target_macs", 1.0)
    macs = int((0.5 if isinstance(target, str) else target) * DENSE_MACS)
    record = made_up(label, method, seed, macs, 100 * hits.mean(), **config)
    bits = base64.b64encode(np.packbits(hits).tobytes()).decode()
    score = Score(top1=100 * hits.mean(), loss=1 - hits.mean(), n=IMAGES, correct=bits)
    record = record.model_copy(update={"grid": grid, "metrics": Metrics(extracted=score)})
    if "finetuned" in label:  # which leaves the network as small as it was
        size = record.size.model_copy(update={"macs": 10_000_000, "dense_macs": 10_000_000})
        record = record.model_copy(update={"size": size})
    write(record, Folders(root, grid, record.run_id))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for seed in range(3):
        put(tmp_path, "dense", "dense", seed, 90)
        put(tmp_path, "dense-noise", "hiap", seed, 91, penalty={"lambda_macro": 0})
        for target, cut in ((0.5, 50), (0.35, 65)):
            budget = {"target_macs": target}
            put(tmp_path, f"hiap-{cut}", "hiap", seed, 80, budget=budget)
            put(tmp_path, f"hiap-settled-{cut}", "hiap", seed, 82, budget={**budget, "settle": 0.6})
            for variant, gain in GAINS.items():
                own = {**budget, "noise": variant == "uniform-noise"}
                put(tmp_path, f"{variant}-{cut}", variant.split("-")[0], seed, 80 + gain, budget=own)
    for run in [r for r in Results(tmp_path).records() if r.label == "hiap-65"]:
        start = {"weights": f"run:{run.run_id}"}
        put(tmp_path, "hiap-finetuned-65", "dense", run.seed, 83, model=start, optim={"epochs": 3})
    return tmp_path


def test_hiap_is_held_against_every_variant_and_six_are_judged(root: Path) -> None:
    rows = evidence.against(evidence.load(Results(root))).set_index(["target", "variant"])
    assert list(rows.reset_index()) == list(evidence.AGAINST_COLUMNS)
    assert len(rows) == 2 * 5
    assert {key for key, row in rows.iterrows() if row["primary"]} == set(evidence.PRIMARY)
    assert rows.loc[(0.5, "taylor"), "difference"] == pytest.approx(-6, abs=1)
    assert rows.loc[(0.5, "taylor"), "decided"] is True
    assert rows.loc[(0.5, "taylor"), "p_holm"] > rows.loc[(0.5, "taylor"), "p"]
    assert rows.loc[(0.5, "uniform-noise"), "decided"] is False
    exploratory = rows[~rows["primary"].astype(bool)]
    assert exploratory[["p_holm", "decided"]].isna().all(axis=None)
    assert exploratory["low"].notna().all()


def test_a_primary_test_that_is_missing_still_counts(root: Path) -> None:
    """Six tests whatever has been run: else a half-finished study would judge more mildly."""
    runs = evidence.load(Results(root))
    only = evidence.against(runs[runs["label"].isin(["hiap-50", "taylor-50"])])
    assert len(only) == 1
    assert only["p_holm"].item() == pytest.approx(min(1.0, 6 * only["p"].item()))


def test_records_without_images_are_shown_and_not_compared(root: Path) -> None:
    runs = evidence.load(Results(root))
    runs["hits"] = None
    assert evidence.against(runs).empty
    assert evidence.finetuning(runs).empty
    rows = evidence.accuracies(runs)
    assert rows["top1"].notna().all()
    assert rows[["low", "high"]].isna().all(axis=None)
    assert "Target 35 %" in render.text(ours.at_papers_shape(runs))


@pytest.mark.parametrize(("column", "value"), [("measure", "validation"), ("measured", "b" * 64)])
def test_what_was_measured_on_other_images_is_not_compared(root: Path, column: str, value: str) -> None:
    runs = evidence.load(Results(root)).assign(measured="")
    known = runs.assign(measured="a" * 64)
    for frame in (runs, known, known.assign(measured=known["measured"].where(known["method"] != "taylor", ""))):
        assert paired.pair(frame, "hiap-50", "taylor-50") is not None
    known.loc[known["label"] == "taylor-50", column] = value
    with pytest.raises(ConfigError, match="measured on different images cannot be compared: hiap"):
        paired.pair(known, "hiap-50", "taylor-50")
    with pytest.raises(ConfigError, match="measured on different images"):
        paired.accuracy(known)


def test_no_records_give_empty_frames(tmp_path: Path) -> None:
    runs = evidence.load(Results(tmp_path))
    assert runs.empty
    for frame in (
        evidence.accuracies(runs),
        evidence.against(runs),
        evidence.finetuning(runs),
        evidence.machines(runs),
        evidence.longer(runs),
    ):
        assert frame.empty
    assert evidence.tuned(runs).empty
    assert set(evidence.blocks(Results(tmp_path), ["hiap-50"])["network"]) == {
        f"Fig. {n} of the paper" for n in range(5, 10)
    }


def test_fine_tuning_is_paired_with_the_network_that_it_starts_from(root: Path) -> None:
    (row,) = evidence.finetuning(evidence.load(Results(root))).to_dict("records")
    assert (row["label"], row["title"], row["target"], row["n"]) == ("hiap-65", names.TARGETED, 0.35, 3)
    assert row["low"] < row["difference"] < row["high"]
    assert row["difference"] == pytest.approx(3, abs=1)
    runs = evidence.load(Results(root))
    share = runs.loc[runs["label"] == "hiap-finetuned-65", "macs_share"]
    assert share.tolist() == pytest.approx([10_000_000 / DENSE_MACS] * 3), "of the dense network, not of its start"
    found = paired.pair(runs, "hiap-settled-65", "vit_slim-65")
    assert found is not None
    assert found.difference.mean == pytest.approx(-1, abs=1)


def test_the_table_says_what_is_judged_and_fits_the_page(root: Path) -> None:
    shown = render.text(ours.at_papers_shape(evidence.load(Results(root))))
    assert max(map(len, shown.splitlines())) <= render.TEXT_WIDTH
    half = shown.split("Target 50 %")[1].split("Target 35 %")[0]
    line = {
        name: next(row for row in half.splitlines() if row.startswith(name)) for name in ("Taylor", "Uniform, gate")
    }
    assert "below" in line["Taylor"]
    assert "undecided" in line["Uniform, gate"]
    assert "HiAP + target (ours), settled" in half
    assert "TMACs" in shown
    assert "finetuned" not in shown


def test_the_readme_takes_its_sides_from_the_records(root: Path) -> None:
    said = words.at_papers_shape(Results(root))
    rows = {line.split(" | ")[0].strip("| "): line for line in said.splitlines() if line.startswith("| ")}
    assert rows["Taylor"].count("behind") == 2
    assert rows["Uniform under gate noise (control)"].count("undecided") == 2
    assert "undecided" not in rows["Uniform (exploratory)"]
    assert rows["Taylor"].count("TMACs") == 2
    assert "(at 35 %)" in said
    assert "at 35 % for 1.00 of the training MACs" in said
    for seed in range(3):
        put(root, "taylor-50", "taylor", seed, 60, budget={"target_macs": 0.5})
    (line,) = [line for line in words.at_papers_shape(Results(root)).splitlines() if line.startswith("| Taylor")]
    assert line.index("ahead") < line.index("behind")


def test_without_records_the_readme_says_how_to_get_them(tmp_path: Path) -> None:
    assert "--grid evidence" in words.at_papers_shape(Results(tmp_path))
    assert words.on_digits(Results(tmp_path)) == ""


def test_ways_to_shrink_are_held_against_the_phase_without(tmp_path: Path) -> None:
    for seed in range(2):
        put(tmp_path, "fast", "hiap", seed, 80, grid="shrink", budget={"target_macs": 0.5})
        put(
            tmp_path,
            "fast-shrunk-10",
            "hiap",
            seed,
            82,
            grid="shrink",
            shrink={"after": 1},
            budget={"target_macs": 0.5},
        )
    put(tmp_path, "slow", "hiap", 0, 80, grid="shrink", gates={"lr": 0.1})
    put(tmp_path, "fast", "hiap", 7, 20, grid="shrink", budget={"target_macs": 0.5})  # without a partner
    (row,) = evidence.shrunk(evidence.load(Results(tmp_path), "shrink")).to_dict("records")
    assert (row["label"], row["n"], row["bill"]) == ("fast-shrunk-10", 2, 1.0)
    assert row["top1"] - row["without"] == pytest.approx(row["difference"])
    assert row["low"] < row["difference"] < row["high"]


def test_prices_are_held_against_the_papers_at_the_same_time(tmp_path: Path) -> None:
    for seed in range(2):
        put(tmp_path, "macs-50", "hiap", seed, 80, grid="latency", budget={"target_macs": 0.5})
    for seed in range(3):
        put(tmp_path, "time-50", "hiap", seed, 82, grid="latency", penalty={"ledger": "physical"})
    rows = evidence.priced(evidence.load(Results(tmp_path), "latency")).set_index("label")
    assert rows.loc["time-50", ["n", "paired"]].tolist() == [3, 2]
    assert rows.loc["time-50", "low"] < rows.loc["time-50", "difference"] < rows.loc["time-50", "high"]
    assert rows.loc["macs-50", "paired"] == 0
    assert evidence.priced(evidence.load(Results(tmp_path / "none"), "latency")).empty


def test_figures_show_every_row(root: Path) -> None:
    runs = evidence.load(Results(root))
    rows = evidence.drawn(runs)
    fig = intervals.forest(rows)
    assert [ax.get_title("left") for ax in fig.axes] == ["50 % of the MACs", "35 % of the MACs"]
    assert {line.get_markerfacecolor() for line in fig.axes[0].lines[1:]} >= {"black", "white"}
    shown = {label.get_text() for label in fig.axes[0].get_yticklabels()}
    assert shown == {intervals.OWN, evidence.OWN, *rows["title"]}
    assert set(rows.loc[rows["judged"], "variant"]) == {"vit_slim", "taylor", "uniform-noise"}
    blocks = evidence.blocks(Results(root), ["hiap-50", "hiap-65"])
    pictures = heat_maps.blocks(blocks)
    assert [label.get_text() for label in pictures.axes[0].get_yticklabels()][:2] == [
        "HiAP + target (ours), 50 %, n = 3",
        "HiAP + target (ours), 35 %, n = 3",
    ]
    assert len(pictures.axes[0].get_yticklabels()) == 7


def test_blocks_are_shown_seed_by_seed(root: Path) -> None:
    rows = evidence.blocks(Results(root), ["hiap-50"]).query("label == 'hiap-50'")
    assert sorted(rows["seed"].unique()) == [0, 1, 2]
    rows = rows.set_index(["seed", "block"])
    assert rows.loc[(1, 0), ["heads", "dims", "neurons"]].tolist() == [3, 21, 300]
    assert rows.loc[(2, 1), ["heads", "dims", "neurons"]].tolist() == [1, 32, 0]


def test_pairs_are_judged_apart_or_as_one_family(root: Path) -> None:
    runs = evidence.load(Results(root))
    pair = evidence.FIRST._replace(primary=((0.5, "taylor"),))
    rows = evidence.against(runs, pair)
    tested = rows[rows["primary"].astype(bool)]
    assert tested["variant"].tolist() == ["taylor"]
    assert tested["p_holm"].item() == tested["p"].item(), "a family of one"


def test_pairs_of_one_family_share_one_correction(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, runs = Results(root), evidence.load(Results(root))
    one = evidence.FIRST._replace(primary=((0.5, "taylor"),), family="ours")
    other = evidence.FIRST._replace(grid="later", family="ours")
    monkeypatch.setattr(evidence, "PAIRS", (one, other))
    with pytest.raises(ValueError, match="shares its correction"):
        evidence.against(runs, one)
    alone = evidence.joined(results, one)
    assert alone.tests == 7
    assert all(map(math.isnan, alone.others or ())), "no test of the other was made"
    rows = evidence.against(runs, alone)
    assert rows["p_holm"].dropna().item() == pytest.approx(7 * rows.loc[rows["primary"].astype(bool), "p"].item())
    smaller = alone._replace(others=(1e-9,) * 6)
    rows = evidence.against(runs, smaller)
    assert rows["p_holm"].dropna().item() == pytest.approx(rows.loc[rows["primary"].astype(bool), "p"].item())


def test_what_is_not_trained_stands_in_the_table(root: Path) -> None:
    for label, level, correct in (("taylor-50", 20, 0), ("taylor-50-corrected", 70, 512)):
        put(root, label, "taylor", 0, level, grid="after_cut", budget={"target_macs": 0.5, "correct": correct})
    cuts = evidence.untrained(Results(root), "after_cut")
    assert cuts.set_index("corrected")["title"].to_dict() == {False: "Taylor, cut alone", True: "Taylor, least squares"}
    assert (cuts["low"] < cuts["top1"]).all()
    shown = render.text(ours.at_papers_shape(evidence.load(Results(root)), evidence.FIRST, cuts))
    assert "untrained: 50 % of the MACs; 2,000 validation images" in shown
    assert "Taylor, least squares" in shown


def test_a_setting_at_the_end_of_its_range_is_named(tmp_path: Path) -> None:
    for lr, level in ((0.02, 60), (0.05, 65), (0.1, 70)):
        put(tmp_path, f"hiap-lr{lr}", "hiap", 0, level, "tune", gates={"lr": lr})
    for lr, level in ((1e-4, 60), (2e-4, 70), (4e-4, 65)):
        put(tmp_path, f"taylor-lr{lr}", "taylor", 0, level, "tune", optim={"lr": lr})
    results = Results(tmp_path)
    rows = evidence.tuned(evidence.load(results, "tune"), results.finished("tune")).query("taken").set_index("tuned")
    assert rows["edge"].to_dict() == {"hiap": "gates.lr 0.1, the highest of 3", "taylor": ""}


def test_a_fragile_test_is_counted_without_each_seed(root: Path) -> None:
    undone, seeds = evidence.fragile(evidence.load(Results(root)), "taylor", 0.5)
    assert seeds == 3
    assert 0 <= undone <= 3
    assert evidence.fragile(evidence.load(Results(root)), "uniform-noise", 0.5)[0] == 3, "never decided"


def test_the_best_configuration_of_each_method_is_taken(tmp_path: Path) -> None:
    put(tmp_path, "dense", "dense", 0, 99, "tune")
    for label, level, lr in (("hiap-lr0.02", 70, 0.02), ("hiap-lr0.05", 75, 0.05), ("settled-0.4", 60, 0.07)):
        put(tmp_path, label, "hiap", 0, level, "tune", gates={"lr": lr})
    put(tmp_path, "taylor-lr1e-4", "taylor", 0, 50, "tune", budget={"target_macs": 0.5})
    rows = evidence.tuned(evidence.load(Results(tmp_path), "tune"))
    assert rows[rows["taken"]]["label"].tolist() == ["hiap-lr0.05", "settled-0.4", "taylor-lr1e-4"]
    assert len(rows) == 4
    equal = evidence.load(Results(tmp_path), "tune").assign(top1=50.0)
    equal["loss"] = equal["label"].map({"hiap-lr0.02": 0.1}).fillna(0.2)
    assert "hiap-lr0.02" in set(evidence.tuned(equal).query("taken")["label"])


def test_a_seed_on_two_types_of_processor_is_seen(root: Path) -> None:
    runs = evidence.load(Results(root))
    runs.loc[runs.index[0], "device_name"] = "another"
    seen = evidence.machines(runs)
    assert isinstance(seen, pd.DataFrame)
    assert (seen["device"] == "a processor, another").sum() == 1
    assert seen["runs"].sum() == len(runs)


def test_controls_have_the_target_of_the_run_whose_sizes_they_have(tmp_path: Path) -> None:
    grid, epochs = evidence.SECOND.grid, {"optim": {"epochs": 9}}
    for seed in range(3):
        put(tmp_path, "dense", "dense", seed, 90, grid)
        budget = {"target_macs": 0.5}
        put(tmp_path, "hiap-50", "hiap", seed, 80, grid, budget=budget)
        hiap = next(r for r in Results(tmp_path).finished(grid) if (r.label, r.seed) == ("hiap-50", seed))
        start = {"weights": f"run:{hiap.run_id}", "scratch": True}
        put(tmp_path, "same_sizes-50", "same_sizes", seed, 70, grid, budget={"target_macs": f"run:{hiap.run_id}"})
        put(tmp_path, "scratch-50", "dense", seed, 50, grid, model=start)
        put(tmp_path, "obs_qk-50", "obs", seed, 85, grid, budget=budget, options={"queries": True})
        put(tmp_path, "obs-cost-50", "obs", seed, 86, grid, budget=budget, **epochs)
    runs = evidence.load(Results(tmp_path), grid)
    rows = evidence.against(runs, evidence.joined(Results(tmp_path), evidence.SECOND)).set_index("variant")
    assert set(rows.index) == {"same_sizes", "scratch", "obs_qk", "obs-cost"}
    assert (rows["target"] == 0.5).all()
    assert rows["title"]["same_sizes"] == "Same sizes, random units (control)"
    assert rows["title"]["scratch"] == "Same shape from scratch (control)"
    assert rows["title"]["obs_qk"] == names.VARIANTS["obs_qk"]
    assert rows["title"]["obs-cost"] == "structured OBS (ours), for the TMACs of HiAP + target"
    longer = runs.assign(epochs=runs["epochs"].where(runs["variant"] != "obs-cost", 9))  # a made-up record has one bill
    assert evidence.as_long(rows.reset_index(), longer).tolist() == [name != "obs-cost" for name in rows.index]
