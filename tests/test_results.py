"""What is committed below ``results/``: every record, report and column is what its schema says."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from analysis import dictionary
from analysis.records.results import REPOSITORY, Results
from hiap.bench import report
from hiap.train.config import ConfigError
from hiap.train.record import Record, read

RESULTS = REPOSITORY / "results"
RECORDS = sorted(RESULTS.glob("runs/*/*.json"))
REPORTS = sorted(RESULTS.glob("bench/*.json"))


@pytest.fixture(scope="module")
def records() -> dict[Path, Record]:
    """All of them; reading validates against the schema."""
    return {path: read(path) for path in RECORDS}


def test_every_record_lies_where_its_configuration_says(records: dict[Path, Record]) -> None:
    assert records
    for path, record in records.items():
        assert record.run_id == record.config.run_id, path
        assert record.grid == record.config.run.grid == path.parent.name, path
        assert record.seed == record.config.seed, path
        failed = re.fullmatch(rf"{record.run_id}\.failed-\d+", path.stem) is not None
        assert (record.status == "failed") is failed, path
        assert failed or path.stem == record.run_id, path


def test_an_option_that_is_gone_is_read_where_it_was_off(tmp_path: Path) -> None:
    text = next(text for path in RECORDS if '"hidden": 0.0' in (text := path.read_text()))
    old = tmp_path / "record.json"
    old.write_text(text)
    assert read(old).config.run_id == read(old).run_id
    old.write_text(text.replace('"hidden": 0.0', '"hidden": 0.5'))
    with pytest.raises(ConfigError, match="hidden") as refused:
        read(old)
    assert "\n" not in str(refused.value)


def test_every_finished_record_has_sane_sizes_and_scores(records: dict[Path, Record]) -> None:
    for path, record in records.items():
        if record.status == "finished":
            size, scores = record.size, record.metrics
            assert size is not None, path
            assert 0 < size.macs <= size.dense_macs, path
            assert 0 < size.params <= size.dense_params, path
            assert scores.extracted is not None, path
            assert 0 <= scores.extracted.top1 <= 100, path
            assert record.stages, path
            assert all(stage.train_macs > 0 or not stage.epochs for stage in record.stages), path
            assert record.environment.commit, path


def test_no_run_ends_above_its_target() -> None:
    runs = Results(RESULTS).runs().dropna(subset="target")
    assert len(runs)
    above = runs[runs["macs_share"] > runs["target"] + 1e-9]
    assert above[["grid", "label", "seed", "macs_share", "target"]].values.tolist() == []


def test_a_label_has_one_configuration_but_for_the_seed_and_where_it_starts(records: dict[Path, Record]) -> None:
    """A precision may belong to a seed (``by_seed`` of a grid)."""
    found: dict[tuple[str, str], set[str]] = {}
    for record in records.values():
        config = record.config.model_dump_json(
            exclude={"seed": True, "run": True, "model": {"weights"}, "data": {"root"}, "optim": {"precision"}}
        )
        found.setdefault((record.grid, record.label), set()).add(re.sub(r"run:\w+-\w+", "run:", config))
    assert {name: len(configs) for name, configs in found.items() if len(configs) > 1} == {}


@pytest.mark.parametrize("path", REPORTS, ids=[path.stem for path in REPORTS])
def test_every_benchmark_report_is_one(path: Path) -> None:
    found = report.read(path)
    assert found.rows
    assert found.environment.commit
    assert all(row.seconds[0] <= row.seconds[1] <= row.seconds[2] for row in found.rows)
    assert any(row.name.startswith(found.reference) for row in found.rows)


def test_every_column_of_every_csv_is_described() -> None:
    assert list(dictionary.problems(RESULTS)) == []


def test_a_column_that_is_not_described_or_not_of_its_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    pd.DataFrame({"seed": [0.5], "novel": [1]}).to_csv(tmp_path / "tables" / "a.csv", index=False)
    assert list(dictionary.problems(tmp_path)) == [
        "tables/a.csv: column 'seed': expected whole numbers, not 0.5",
        "tables/a.csv: column 'novel' is not in dictionary.yaml",
    ]
