"""What HiAP is called: a run with a target is ours and says so, in README, documentation, report, tables and figures;
and nothing is said to be equal in cost without the cost."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from analysis.claims import blocks
from analysis.records.results import REPOSITORY

TABLES = ("study", "study_long", "study_compact", "evidence", "bill_study", "bill_study_long")  # of runs with a target
PICTURES = ("study_forest", "study_long_forest", "evidence_forest", "evidence_blocks", "bill_study", "bill_study_long")
SIDE = r"is (decidedly |not )*(ahead|behind|above|below)"
RESULT = rf"({SIDE}|minus|-(?= )|reaches|has \d|takes \d|at \d+ ?%|\d+\.\d+ ?%|settled)"
BARE = re.compile(rf"HiAP(?! \+ target)( \([a-z-]+\))?,? {RESULT}")


def prose() -> Iterator[tuple[Path, str]]:
    """Pages and the report as one line each paragraph; TeX's numbers as they are printed."""
    for path in [*blocks.pages(), REPOSITORY / "paper" / "paper.tex", REPOSITORY / "results" / "README.md"]:
        text = re.sub(r"\\n\{[^}]*\}(\\,\\%)?", "1.0 %", path.read_text())
        for paragraph in re.split(r"\n\s*\n", text):
            yield path, " ".join(paragraph.split())


def test_no_bare_hiap_where_a_target_was_set_in_prose() -> None:
    found = [
        (path.name, text[max(0, m.start() - 40) : m.end() + 20]) for path, text in prose() for m in BARE.finditer(text)
    ]
    assert found == []


@pytest.mark.parametrize("name", TABLES)
def test_no_bare_hiap_in_tables(name: str) -> None:
    for suffix in ("md", "txt", "tex"):
        text = (REPOSITORY / "results" / "tables" / f"{name}.{suffix}").read_text()
        assert not re.search(r"HiAP(?! *\+ *target)(?! *\+$)(?!\s*\+\s*target)", text), (name, suffix)
    assert "HiAP" in text


@pytest.mark.parametrize("name", PICTURES)
def test_no_bare_hiap_in_figures(name: str) -> None:
    """What a figure shows is what its CSV names."""
    rows = pd.read_csv(REPOSITORY / "results" / "figures" / f"{name}.csv")
    shown = set(rows["network" if name == "evidence_blocks" else "title"].dropna())
    assert not [title for title in shown if re.match(r"HiAP(?! \+ target)", title)]
    assert name == "study_long_forest" or any(
        title.startswith(("HiAP + target", "The paper's rule")) for title in shown
    )


def test_equal_cost_is_never_said_without_the_cost() -> None:
    for path, text in prose():
        for sentence in re.split(r"(?<=[.?!]) ", text):
            if re.search(r"equal (training )?cost|same cost", sentence, re.IGNORECASE):
                assert "MACs" in sentence, (path.name, sentence)


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("HiAP is not ahead of Taylor", True), ("HiAP minus Taylor is", True), ("HiAP at 35 % has", True),
        ("HiAP has 88.3 %", True), ("HiAP (settled) minus", True), ("HiAP + target (ours) is ahead of it", False),
        ("HiAP prunes in one phase", False),
    ],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(text: str, bare: bool) -> None:
    assert (BARE.search(text) is not None) is bare
