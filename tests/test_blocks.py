"""The computed blocks of README.md and docs/: marks are filled wherever they stand, and nothing else is touched."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_evidence import few, root  # noqa: F401  (fixtures: made-up records of grid evidence)

from analysis.claims import blocks, ledger
from analysis.records import names
from analysis.records.results import Results
from analysis.studies import evidence, overview
from hiap.train.config import ConfigError


def test_marks_are_filled_and_the_rest_stays() -> None:
    asked = []
    computed = {"a": lambda: "new", "b": lambda: asked.append("b") or "never"}
    text = "before\n<!-- a -->\nold\n<!-- /a -->\nafter <!-- c -->"
    assert blocks.fill(text, computed) == text.replace("old", "new")
    assert asked == [], "what no page asks for is not computed"
    with pytest.raises(ConfigError, match="needs one '<!-- /a -->'"):
        blocks.fill("<!-- a -->\nold", computed)


def test_every_mark_of_a_page_is_a_block() -> None:
    known = blocks.parts(ledger.load(), Results(Path("/nowhere")))
    for page in blocks.pages():
        for line in page.read_text().splitlines():
            if line.startswith("<!-- ") and not line.startswith("<!-- /"):
                assert line[5:-4] in known, (page, line)


def test_the_sentence_takes_its_sides_from_the_records(root: Path) -> None:  # noqa: F811
    said = " ".join(overview.verdict(Results(root)).split())
    at = r"at 50 and 35 % \(-\d\.\d, -\d\.\d\)"
    assert re.search(re.escape(names.TARGETED) + f" is behind ViT-Slim {at} and Taylor {at} points; training", said)
    assert re.search(r"training to 35 % takes [\d.]+ TMACs, with \S+ [\d.]+ and with \S+ [\d.]+\.", said)
    assert "Exploratory differences in points, at 50 and 35 %: from Uniform +" in said
    assert "gate noise" not in said, "a control is no method"


def test_the_table_has_the_papers_number_beside_ours_and_on_what(root: Path) -> None:  # noqa: F811
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in overview.table(Results(root)).splitlines()
    ]
    assert rows[0] == list(overview.HEAD)
    assert all(len(row) == 4 for row in rows)
    half = next(row for row in rows if row[0].startswith("Top-1 minus dense's, at "))
    assert half[1].endswith("-3.25 (CIFAR-10)")
    assert half[3] == f"{names.TARGETED}, 3 seeds"
    two = (evidence.FIRST, evidence.FIRST._replace(grid="later", data="photographs"))
    assert f"{names.TARGETED}, Fashion-MNIST, 3 seeds" in overview.table(Results(root), two), "named where several"


def test_the_short_table_answers_each_question_once(root: Path, monkeypatch) -> None:  # noqa: F811
    both = (evidence.FIRST, evidence.FIRST._replace(data="photographs"))  # the same records, as of another pair
    monkeypatch.setattr(overview, "judged", lambda results: both)
    questions = [line.split("|")[1] for line in overview.table(Results(root)).splitlines()]
    short = overview.short(Results(root)).splitlines()
    assert set(questions) == {line.split("|")[1] for line in short}
    assert len(questions) > len(set(questions)) == len(short)
    assert "Fashion-MNIST, 3 seeds" not in "".join(short)


def test_readme_has_the_newest_pair_with_records(root: Path, monkeypatch) -> None:  # noqa: F811
    results, other = Results(root), evidence.FIRST._replace(grid="later", data="photographs")
    assert overview.newest(results) == (evidence.FIRST,)
    monkeypatch.setattr(evidence, "PAIRS", (evidence.FIRST, other))
    assert overview.newest(results) == (evidence.FIRST,), "without a record it is not there"
    known = blocks.parts(ledger.load(), results)
    brief = known["verdict-newest"]().splitlines()
    assert brief[0].startswith(f"| {names.TARGETED} minus | at 50 % | at 35 % | TMACs, to 35 % (its own: ")
    rows = [line for line in brief if line.startswith(("| Taylor", "| ViT-Slim"))]
    assert len(rows) == 2
    assert all(re.fullmatch(r"\|[^|]+(\| -\d\.\d, behind ){2}\| [\d.]+ \|", row) for row in rows)
    assert "gate noise" not in "".join(brief), "a control is no method"
    assert known["evidence-later"]().startswith("Not run yet")
    monkeypatch.setattr(evidence, "PAIRS", (other, evidence.FIRST))
    assert overview.newest(results) == (evidence.FIRST,)


def test_without_records_nothing_is_claimed(tmp_path: Path) -> None:
    assert overview.verdict(Results(tmp_path)) == overview.brief(Results(tmp_path)) == overview.NOTHING
    assert "points" not in overview.table(Results(tmp_path))
