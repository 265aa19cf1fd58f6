"""The ledger: every claim has a verdict, every verdict is computed, and other data never confirm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fake_train import make_record

from analysis import cite
from analysis.claims import checks, ledger
from analysis.claims import runs as claim_runs
from analysis.claims.checks import CHECKS
from analysis.claims.here import HERE
from analysis.findings.registry import findings
from analysis.records import published
from analysis.records.results import REPOSITORY, Results
from analysis.studies import calibrate
from hiap.bench.run import Report, Row, Settings
from hiap.files import write_json
from hiap.train.config import Config, from_dict, parse_overrides
from hiap.train.record import BlockShape, EpochLog, Folders, Images, git_state, write
from slurm import grid, launch_grid

CLAIM = {
    "check": "", "argument": "", "answer": "g/hiap", "here": "", "dataset": "imagenet", "metric": "top1", "value": 80.0,
    "tolerance": 0.3, "direction": "", "kind": "accuracy", "reason": "",
}  # fmt: skip


@pytest.fixture(scope="module")
def found() -> pd.DataFrame:
    return ledger.verdicts(Results(REPOSITORY / "results"))


def runs(root: Path, scores: list[float], data: str = "imagenet", label: str = "hiap") -> None:
    for seed, top1 in enumerate(scores):
        values: dict[str, Any] = {"method": "hiap", "seed": seed, "data": {"name": data}, "model": {"weights": "hub"}}
        config = from_dict({**values, "run": {"grid": "g", "label": label, "results": str(root)}})
        write(make_record(config, "finished", top1=top1), Folders.of(config))


def test_every_claim_has_a_computed_verdict(found: pd.DataFrame) -> None:
    assert len(found) >= 80
    assert found["id"].is_unique
    assert set(found["verdict"]) <= set(ledger.VERDICTS)
    assert (found["evidence"] != "").all()
    assert "verdict" not in ledger.load().columns


def test_numeric_claims_have_tolerances_and_units_and_named_functions_exist() -> None:
    stated = ledger.load()
    numeric = stated[stated["value"].notna()]
    assert numeric["tolerance"].notna().all()
    assert set(stated["direction"]) <= {"", ">=", "<="}
    assert set(stated.loc[stated["check"] == "", "answer"][stated["value"].isna()]) <= {""}
    assert (numeric["reason"] != "").all(), "a tolerance without a reason"
    unanswered = stated[(stated["check"] == "") & (stated["answer"] == "") & (stated["here"] == "")]
    assert (unanswered["reason"] != "").all(), "out of reach without saying why"
    assert set(stated["check"]) - {""} <= set(CHECKS)
    assert set(stated["here"]) - {""} <= set(HERE)
    assert set(CHECKS) <= set(stated["check"]), "a check that no claim names"
    assert set(HERE) <= set(stated["here"])


def test_every_grid_label_and_command_that_a_claim_names_is_there() -> None:
    for answer in ledger.load()["answer"]:
        if answer.startswith(claim_runs.BENCH):
            Settings(**parse_overrides(claim_runs.command(answer).removeprefix(claim_runs.BENCH).split()))
        elif answer.startswith(claim_runs.TRAIN):
            from_dict(parse_overrides(answer.removeprefix(claim_runs.TRAIN).split()))
        elif answer:
            name, _, label = answer.partition("/")
            known = grid.load(grid.find(name)).runs
            assert len(grid.load(grid.find(name)).seeds) >= ledger.SEEDS, f"{name}: no verdict without an edit"
            assert any(claim_runs.named(other, label) for other in known), answer


def test_the_committed_ledger_is_what_is_computed(found: pd.DataFrame, tmp_path: Path) -> None:
    from analysis.tables.render import save_frame

    path = save_frame(found, "claims", tmp_path, folder=".")
    assert path.read_text() == (REPOSITORY / "results" / "claims.csv").read_text()


CASES = {
    "confirmed": [79.9, 80.0, 80.1],
    "contradicted": [75.0, 75.1, 75.2],
    "insufficient seeds": [80.0, 80.0],
}


@pytest.mark.parametrize(("verdict", "scores"), CASES.items())
def test_runs_on_the_papers_data_decide_both_ways(verdict: str, scores: list[float], tmp_path: Path) -> None:
    runs(tmp_path, scores)
    answer = ledger.judge(CLAIM, Results(tmp_path))
    assert answer.verdict == verdict
    assert answer.n == len(scores)


def test_a_spread_that_allows_both_decides_nothing(tmp_path: Path) -> None:
    runs(tmp_path, [78.0, 79.5, 81.0])
    assert ledger.judge({**CLAIM, "value": 80.0}, Results(tmp_path)).verdict == "insufficient seeds"


def test_a_mean_within_tolerance_with_an_interval_beyond_it_confirms_nothing(tmp_path: Path) -> None:
    runs(tmp_path, [79.5, 80.0, 80.5])
    found = ledger.judge(CLAIM, Results(tmp_path))
    assert found.found == 80.0
    assert found.verdict == "insufficient seeds"


@pytest.mark.parametrize(
    ("direction", "value", "verdict"),
    [(">=", 79.0, "confirmed"), (">=", 81.0, "contradicted"), ("<=", 81.0, "confirmed"), ("<=", 79.0, "contradicted")],
)
def test_a_one_sided_claim_is_judged_on_its_side(direction: str, value: float, verdict: str, tmp_path: Path) -> None:
    runs(tmp_path, [79.9, 80.0, 80.1])
    assert ledger.judge({**CLAIM, "direction": direction, "value": value}, Results(tmp_path)).verdict == verdict


def test_a_method_that_is_not_the_papers_never_confirms(tmp_path: Path) -> None:
    for seed in range(3):
        config = from_dict({"method": "hiap", "seed": seed, "data": {"name": "imagenet"}, "model": {"weights": "hub"},
                            "budget": {"target_macs": 0.5}, "run": {"grid": "g", "label": "hiap"}})  # fmt: skip
        write(make_record(config, "finished", top1=80.0), Folders(tmp_path, "g", config.run_id))
    found = ledger.judge(CLAIM, Results(tmp_path))
    assert (found.verdict, found.agrees, found.n) == ("different setting", "yes", 3)
    assert "not the paper's" in found.evidence
    assert len(found.runs.split()) == 3


def fabricate(config: Config, root: Path, macs: int = 10**6, top1: float = 70.0) -> None:
    """A finished run of this configuration whose numbers nobody measured."""
    record = make_record(config, "finished", top1=top1)
    assert record.size is not None
    log = EpochLog(stage="hiap", epoch=0, loss=1.0, lr=1e-3, heads=[3], neurons=[9], macs=macs)
    log.state["expected_macs"] = float(macs)
    found = {
        "size": record.size.model_copy(update={"macs": macs, "dense_macs": 10**10}),
        "metrics": record.metrics.model_copy(update={"dense": record.metrics.extracted}),
        "epochs": [log],
        "shape": [BlockShape(head_dims=[32, 16, 64], neurons=1300)] * 2,
    }
    write(record.model_copy(update=found), Folders(root, config.run.grid, config.run_id))


def fabricate_runs(claim: dict[str, Any], root: Path) -> None:
    """Runs that answer a claim; those of one grid at MACs from 1 to 8 G."""
    if claim["answer"].startswith(claim_runs.TRAIN):
        values = parse_overrides(claim["answer"].removeprefix(claim_runs.TRAIN).split())
        for seed in range(3):
            fabricate(from_dict({**values, "seed": seed}), root)
        return
    name, _, label = claim["answer"].partition("/")
    wanted = [label, *(claim["argument"].split() if claim["metric"] == "top1 difference" else [])]
    planned = [run for run in claim_runs.planned(name) if any(claim_runs.named(run.label, w) for w in wanted)]
    planned.sort(key=lambda run: run.config.seed)  # each seed has MACs on both sides of what is printed
    per = len(planned) // len({run.config.seed for run in planned})
    for i, run in enumerate(planned):
        beside = any(one.endswith("*") for one in wanted) and run.label in wanted  # a method within the curve's reach
        fabricate(run.config, root, macs=int(4.5e9 if beside else 1e9 + 7e9 * (i % per) / max(1, per - 1)))


def fabricate_report(claim: dict[str, Any], root: Path, device: str) -> None:
    values = parse_overrides(claim_runs.command(claim["answer"]).removeprefix(claim_runs.BENCH).split())
    settings = Settings(**values)
    sizes: dict[str, Any] = {"batch": settings.batches[0], "params": 1, "memory": 0, "throughput": 1.0}
    rows = [
        Row(name=name, layout="padded", macs=macs, executed_macs=macs, seconds=(t, t, t), ratio=(q, q, q), share=share,
            **sizes)
        for name, macs, t, q, share in (("dense", 100, 5.57e-3, 1.0, None),
                                        (f"{settings.topologies[0]}/padded", 50, 3.86e-3, 3.86 / 5.57, 0.99))
    ]  # fmt: skip
    config = from_dict({"method": "dense"})
    machine = make_record(config, "finished").environment.model_copy(
        update={"device": "cuda", "device_name": device, "commit": "1" * 40}
    )
    report = Report(mode="speed", settings=settings, environment=machine, started="", finished="", reference="dense",
                    rows=rows)  # fmt: skip
    write_json(root / "bench" / "any.json", report.model_dump(mode="json"))


ANSWERED = [claim for claim in ledger.load().to_dict("records") if claim["answer"]]


@pytest.mark.parametrize("claim", ANSWERED, ids=[claim["id"] for claim in ANSWERED])
def test_every_selector_can_give_a_verdict(claim: dict[str, Any], tmp_path: Path) -> None:
    before = ledger.judge(claim, Results(tmp_path / "empty")).verdict
    if claim["answer"].startswith(claim_runs.BENCH):
        fabricate_report(claim, tmp_path, f"{claim['dataset']}-SXM4-40GB")
    else:
        fabricate_runs(claim, tmp_path)
    found = ledger.judge(claim, Results(tmp_path))
    assert found.verdict not in ("not run", ""), before
    assert found.commits or found.runs
    assert found.evidence != ledger.how(claim)[1]


def test_a_report_decides_on_the_claims_device_only(tmp_path: Path) -> None:
    claim = next(claim for claim in ANSWERED if claim["id"] == "V3-04")
    fabricate_report(claim, tmp_path, "NVIDIA A100-SXM4-40GB")
    assert ledger.judge(claim, Results(tmp_path)).verdict == "confirmed"
    fabricate_report(claim, tmp_path, "another GPU")
    other = ledger.judge(claim, Results(tmp_path))
    assert (other.verdict, other.agrees) == ("different setting", "yes")
    assert "not A100" in other.evidence


def test_what_our_own_code_was_built_to_do_confirms_nothing(found: pd.DataFrame) -> None:
    stated = ledger.load()
    own = stated.loc[stated["check"].isin(checks.OWN) | stated["here"].isin(checks.OWN), "id"]
    assert "V3-03" in set(own), "a rule of ours that lands on its target by construction"
    assert set(found.set_index("id").loc[own, "verdict"]) == {"implemented so"}


def test_our_own_budget_rule_confirms_nothing_on_the_papers_data_either(tmp_path: Path) -> None:
    claim = next(claim for claim in ANSWERED if claim["id"] == "V3-03")
    fabricate_runs(claim, tmp_path)
    assert ledger.judge(claim, Results(tmp_path)).verdict == "implemented so"


def test_rows_of_other_papers_are_counted_apart(found: pd.DataFrame) -> None:
    others = found[found["kind"] == ledger.OTHERS]
    assert not others["place"].str.contains("HiAP").any()
    assert {"T2-27", "T2-36"} <= set(others.loc[others["verdict"] == "contradicted", "id"])
    counts = ledger.summary(found)
    assert counts.loc["all", "all"] == len(found) - len(others)
    assert counts.loc[ledger.OTHERS, "all"] == len(others)
    assert set(counts.index) == {*found["kind"], *ledger.SUMS, "all"}
    assert counts.loc[list(ledger.SUMS), "all"].sum() == counts.loc["all", "all"]
    assert counts.loc["need a run", ["self-consistent", "partly", "undecided"]].sum() == 0
    lines = list(ledger.contradictions(found))
    assert not any(line.startswith(("T2-27", "T2-36")) for line in lines)
    assert len(lines) == counts.loc["all", "contradicted"]
    assert len(list(ledger.contradictions(found, others=True))) == counts.loc[ledger.OTHERS, "contradicted"]


def test_a_share_says_of_how_many(found: pd.DataFrame) -> None:
    row = found.set_index("id").loc["X-01"]
    assert (row["found"], row["interval_high"], row["verdict"]) == (0.75, 1.0, "partly")
    assert ": 9 of 12 blocks after 10 epochs, 12 of 12 at the end; at laptop scale" in row["evidence"]


def test_early_and_deep_blocks_are_one_split(found: pd.DataFrame) -> None:
    neurons = published.heat_map(5).query("epoch == epoch.max()").set_index("block")["neurons"]
    rows = found.set_index("id")
    assert rows.loc["X-03", "found"] == pytest.approx(neurons.loc[0:5].mean())
    assert rows.loc["X-04", "found"] == pytest.approx(neurons.loc[6:10].mean()), "the last FFN is gone"
    assert rows.loc[["X-03", "X-04"], "agrees"].tolist() == ["yes", "no"]


def test_whether_fine_tuning_is_needed_is_answered_by_fine_tuning_alone(found: pd.DataFrame, tmp_path: Path) -> None:
    row = found.set_index("id").loc["X-14"]
    assert (row["verdict"], row["agrees"]) == ("different setting", "undecided"), "465 steps are undertraining"
    assert row["found"] > row["interval_low"] > 0.3, "the rule's own interval, undecided all the same"
    assert "undertrained, without a teacher; with a target, which is ours" in row["evidence"]
    without = ledger.judge({**ledger.load().set_index("id").loc["X-14"], "id": "X-14"}, Results(tmp_path))
    assert without.verdict == "not run"
    assert without.command.endswith("--grid imagenet_table2 --only hiap-faithful hiap-faithful-finetuned")


def test_findings_of_ours_are_no_claims_of_the_papers(found: pd.DataFrame) -> None:
    """Finding 14 and what nobody claims stand among the findings."""
    assert not {"X-19", "F4-17", "F4-18", "F6-03", "F8-03"} & set(found["id"])
    assert "one rate is stated" in findings()[14].said


def test_what_depends_on_an_open_reading_is_undecided(found: pd.DataFrame) -> None:
    rows = found.set_index("id")
    assert rows.loc[["T3-01", "F4-16"], "verdict"].tolist() == ["undecided", "undecided"]
    assert "convention unstated" in rows.loc["T3-01", "evidence"]
    assert rows.loc["F4-16", "interval_low"] == pytest.approx(0.29, abs=0.01)
    assert rows.loc["F4-16", "holds_for"] == "from 0.294 to below 1.09"
    assert rows.loc["E-04", "verdict"] == "self-consistent"
    assert "at the end; on the way some layer is empty" in rows.loc["E-04", "evidence"]
    assert rows.loc["T3-14", "agrees"] == "undecided"
    assert rows.loc["V3-04", "agrees"] == "undecided", "our reports disagree"


def test_arithmetic_and_self_consistency_confirm_nothing_of_the_method(found: pd.DataFrame) -> None:
    counts = ledger.summary(found)
    assert counts.loc["arithmetic", "all"] == 17
    assert counts.loc["self-consistency", "confirmed"] == 0
    assert set(found.loc[found["kind"] == "accuracy", "unit"]) <= {"%", "points"}, "heads and neurons are no accuracy"


def test_every_contradicted_row_is_contested(found: pd.DataFrame) -> None:
    rows = found[found["verdict"] == "contradicted"]
    assert len(rows)
    assert rows["contest"].str.startswith("Authors: ").all()
    assert rows["contest"].str.contains(" - ").all(), "and answered"


def test_a_verdict_says_within_which_tolerances_it_holds(found: pd.DataFrame) -> None:
    """Judged again with other tolerances: the same on the named side, another one beyond it."""
    numeric = found[found["verdict"].isin(ledger.DECIDED) & found["holds_for"].ne("")]
    assert len(numeric) > 20
    for claim in ledger.load().set_index("id").loc[numeric["id"]].reset_index().to_dict("records"):
        side, edge = numeric.set_index("id").loc[claim["id"], "holds_for"].split()
        inside, outside = (1.01, 0.98) if side == "from" else (0.98, 1.02)
        judged = [
            ledger._computed({**claim, "tolerance": float(edge) * by + (by > 1) * 1e-6}) for by in (inside, outside)
        ]
        assert judged[0].verdict == numeric.set_index("id").loc[claim["id"], "verdict"], claim["id"]
        assert float(edge) < 1e-6 or judged[1].verdict != judged[0].verdict, claim["id"]


NOT_RUN = sorted(
    {
        part
        for line in pd.read_csv(REPOSITORY / "results" / "claims.csv", keep_default_na=False)["command"]
        for part in line.split(" && ")
        if part
    }
)


@pytest.mark.slow
@pytest.mark.parametrize("command", NOT_RUN)
def test_commands_are_accepted_as_they_are_printed(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a site.yaml that says where the data lie, nothing else."""
    if command.startswith(claim_runs.BENCH):
        Settings(**parse_overrides(command.removeprefix(claim_runs.BENCH).split()))
        return
    monkeypatch.chdir(REPOSITORY)
    site = tmp_path / "site.yaml"
    site.write_text("data_root: $DATA\ndata_on_nodes: true\n")
    words = command.removeprefix("python slurm/launch_grid.py ").split()
    assert launch_grid.main([*words, "--dry-run", "--site", str(site), "--results", str(tmp_path)]) == 0
    assert "error" not in capsys.readouterr().err


def test_removing_what_was_not_gated_changes_the_function() -> None:
    assert checks.extraction_exact("v")
    assert not checks.extraction_exact("v-cut-qkv")


def test_a_check_shows_the_answer_at_laptop_scale_too(found: pd.DataFrame) -> None:
    stated = ledger.load().set_index("id")
    both = stated[(stated["check"] != "") & (stated["here"] != "")].index
    assert len(both)
    assert found.set_index("id").loc[both, "evidence"].str.contains("at laptop scale").all()


@pytest.mark.parametrize(
    ("data", "classes", "said"),
    [
        ({}, claim_runs.CIFAR_CLASSES, ""),
        ({}, "c0" * 32, "copies of the images"),
        ({"train_size": 6_000}, claim_runs.CIFAR_CLASSES, "a part of the images"),
        ({"test_size": 1_000}, claim_runs.CIFAR_CLASSES, "a part of the images"),
        ({"measure": "validation"}, claim_runs.CIFAR_CLASSES, "validation images"),
    ],
)
def test_other_images_never_confirm(data: dict[str, Any], classes: str, said: str, tmp_path: Path) -> None:
    claim = {**CLAIM, "dataset": "cifar10"}
    images = Images(files="f" * 64, classes=classes, trained="t" * 64, measured="m" * 64)
    for seed in range(3):
        values = {
            "method": "dense",
            "seed": seed,
            "data": {"name": "cifar10", **data},
            "run": {"grid": "g", "label": "hiap"},
        }
        record = make_record(from_dict(values), "finished", top1=80.0).model_copy(update={"images": images})
        write(record, Folders(tmp_path, "g", record.run_id))
    found = ledger.judge(claim, Results(tmp_path))
    assert found.verdict == ("different setting" if said else "confirmed")
    assert said in found.evidence


def test_a_part_of_the_test_set_and_other_settings_than_the_grids_never_confirm(tmp_path: Path) -> None:
    claim, images = {**CLAIM, "dataset": "cifar10", "answer": "cifar10_table3/dense"}, "cifar10_table3"
    for seed in range(3):
        values = {"method": "dense", "seed": seed, "data": {"name": "cifar10"}, "optim": {"epochs": 1}}
        config = from_dict({**values, "run": {"grid": images, "label": "dense"}})
        record = make_record(config, "finished", top1=80.0)
        write(record, Folders(tmp_path / "other", images, record.run_id))
        assert record.metrics.extracted
        few = record.metrics.model_copy(update={"extracted": record.metrics.extracted.model_copy(update={"n": 500})})
        write(record.model_copy(update={"metrics": few}), Folders(tmp_path / "few", "g", record.run_id))
    found = ledger.judge(claim, Results(tmp_path / "other"))
    assert found.verdict == "different setting"
    assert "other settings than those of its grid" in found.evidence
    found = ledger.judge({**claim, "answer": "g/dense"}, Results(tmp_path / "few"))
    assert found.verdict == "different setting"
    assert "500 images, not the 10,000 of the published test set" in found.evidence


def test_other_data_never_answer_for_the_papers(tmp_path: Path) -> None:
    """Three runs that hit the number to the digit, on digits: the claim stays open."""
    runs(tmp_path, [80.0, 80.0, 80.0], data="affine-digits")
    assert claim_runs.scores(CLAIM, Results(tmp_path)) is None
    named = {**CLAIM, "answer": "cifar10_table3/hiap-33", "dataset": "cifar10"}
    assert ledger.judge(named, Results(tmp_path)).verdict == "not run"


def test_a_point_of_a_curve_is_interpolated_per_seed(tmp_path: Path) -> None:
    for label, top1, macs in (("r-1", 70.0, 50_000), ("r-2", 80.0, 100_000)):
        config = from_dict({"method": "hiap", "data": {"name": "imagenet"}, "model": {"weights": "hub"},
                            "penalty": {"lambda_macro": macs / 1e5},
                            "run": {"grid": "g", "label": label, "results": str(tmp_path)}})  # fmt: skip
        record = make_record(config, "finished", top1=top1)
        assert record.size is not None
        write(record.model_copy(update={"size": record.size.model_copy(update={"macs": macs})}), Folders.of(config))
    middle = claim_runs.scores({**CLAIM, "answer": "g/r-*", "argument": "7.5e-05"}, Results(tmp_path))
    assert middle is not None
    assert middle.values.tolist() == [75.0]
    assert claim_runs.scores({**CLAIM, "answer": "g/r-*", "argument": "2e-04"}, Results(tmp_path)) is None


def test_the_figures_are_answered_by_runs_of_that_shape(found: pd.DataFrame) -> None:
    """Judged by the claims' own tolerances, as another setting, with the command for the paper's."""
    rows = found[found["id"].str.fullmatch("F[5-9]-0[12]")].set_index("id")
    assert set(rows["verdict"]) == {"different setting"}
    assert rows["command"].str.contains("python slurm/launch_grid.py --grid imagenet_topology --only fig").all()
    apart = (rows["found"] - rows["value"]).abs() <= rows["tolerance"]
    assert rows["agrees"].map({"yes": True, "no": False}).tolist() == apart.tolist()
    assert rows["found"].loc["F8-02"] == sum(
        block.neurons for block in calibrate.taken(Results(REPOSITORY / "results"))[8].shape or []
    )


def test_a_benchmark_of_trained_networks_says_how_to_get_them() -> None:
    claim = next(claim for claim in ANSWERED if claim["id"] == "X-09")
    first, second = ledger.how(claim)[0].split(" && ")
    assert first == "python slurm/launch_grid.py --grid cifar10_table3 --only dense hiap-33"
    assert second.startswith(claim_runs.BENCH)


def test_what_no_grid_answers_is_not_run_and_says_why() -> None:
    why = "needs the compared method's own code, which this repository does not implement"
    answer = ledger.judge({**CLAIM, "answer": "", "reason": why}, Results(Path("/nowhere")))
    assert (answer.verdict, answer.evidence, answer.command) == ("out of reach", why, "")


def test_a_row_and_a_claim_can_be_cited(capsys: pytest.CaptureFixture[str]) -> None:
    assert cite.main(["study/hiap-20"]) == 0
    shown = capsys.readouterr().out
    assert "5 seeds, 5,000 test images" in shown
    assert shown.count("hiap-") > 5
    assert "@misc{hiap-reproduction-study-hiap-20," in shown
    head = git_state()[0]
    assert cite.main([f"E-01@{head[:10]}"]) == 0
    shown = capsys.readouterr().out
    assert "verdict   contradicted" in shown
    assert f"id        E-01@{head[:10]}" in shown


def test_a_citation_says_which_commits_were_dirty_and_gives_a_command_that_works(tmp_path: Path) -> None:
    runs = pd.DataFrame({"commit": ["a" * 40, "b" * 40, "b" * 40], "dirty": [False, False, True]})
    assert cite._commits(runs) == ["a" * 10, "b" * 10 + " (dirty: the code differed from it)"]
    folder = tmp_path / "runs" / "mine"  # a grid of one's own, given by its path
    folder.mkdir(parents=True)
    for path in (REPOSITORY / "results" / "runs" / "laptop").glob("hiap-*.json"):
        (folder / path.name).write_text(path.read_text().replace('"laptop"', '"mine"'))
    results = Results(tmp_path)
    found = results.runs("mine")
    command = cite.rerun(results, "mine", found["label"].iloc[0], found.iloc[:1])
    assert command.startswith("python -m hiap.train model.")
    config = from_dict(parse_overrides(command.split()[3:]))
    assert config.run_id == found["run_id"].iloc[0]
    assert cite.rerun(results, "study", "hiap-20", found) == "hiap launch --grid study --only hiap-20"


def test_another_commit_is_refused_with_the_command_that_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cite.main(["E-01@0123456789"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "git checkout 0123456789" in error


def test_a_claim_answered_by_runs_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert cite.main(["T3-14"]) == 0
    shown = capsys.readouterr().out
    both = Results(REPOSITORY / "results").runs("evidence").query("label in ('hiap-33', 'uniform-33')")
    assert len(both) == 10
    assert all(run_id in shown for run_id in both["run_id"])
    assert all(commit[:10] in shown for commit in both["commit"])


def test_bibtex_has_no_bare_special_character() -> None:
    entry = cite.bibtex("study/vit_slim-20", "study/vit_slim-20@0", "72.8 % of a_b & c")
    note = next(line for line in entry.splitlines() if "note" in line)
    assert r"72.8 \% of a\_b \& c" in note
    assert r"vit\_slim-20@0" in note


@pytest.mark.parametrize(("name", "near"), [("study/hiap-21", "study/hiap-20"), ("E-0", "E-0")])
def test_an_unknown_id_is_one_line(name: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cite.main([name]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert near in error
