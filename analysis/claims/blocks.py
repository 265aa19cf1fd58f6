"""What is computed inside README.md and the pages below docs/: the text between ``<!-- name -->`` and
``<!-- /name -->``, wherever a page has these marks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pandas as pd

from analysis.claims import ledger
from analysis.records.results import REPOSITORY, Results
from analysis.studies import calibrate, checklist, crossed, cuts, evidence, frontier, knobs, overview, scan, words
from analysis.tables import render
from hiap.files import atomic_write
from hiap.train.config import ConfigError

Parts = Mapping[str, Callable[[], str]]


def parts(found: pd.DataFrame, results: Results) -> Parts:
    """Every block by name; computed when a page asks for it. ``found``: the ledger's verdicts."""
    return {
        "results": lambda: overview.table(results),
        "results-newest": lambda: overview.short(results),
        "verdict": lambda: overview.verdict(results),
        "verdict-newest": lambda: overview.brief(results),
        "claims": lambda: render.markdown(ledger.table(found)).split("\n\n", 2)[2],  # without title and panel heading
        "evidence": lambda: words.at_papers_shape(results),
        **{f"evidence-{pair.grid}": _at(results, pair) for pair in list(evidence.PAIRS)[1:]},  # one for each
        "digits": lambda: words.on_digits(results),
        "realised": lambda: words.realised(results),
        "deploy": lambda: words.deployed(results),
        "cuts": lambda: cuts.table(results),
        "photographs": lambda: cuts.table(results, cuts.PHOTOGRAPHS),
        "cut": lambda: cuts.sentence(results),
        "tuned": lambda: knobs.table(results),
        "tuned-photographs": lambda: knobs.table(results, knobs.AGAIN),
        "ranked": lambda: knobs.ranked(results),
        "readings": lambda: calibrate.table(results),
        "frontier": lambda: frontier.table(results),
        "budgets": lambda: frontier.budgets(results),
        "lead": lambda: frontier.lead(results),
        "crossed": lambda: crossed.table(results),
        "scan": lambda: scan.table(results),
        "checklist": lambda: checklist.table(results, found),
    }


def _at(results: Results, pair: evidence.Pair) -> Callable[[], str]:
    return lambda: words.at_papers_shape(results, pair)


def fill(text: str, computed: Parts) -> str:
    """``text`` with what is computed between its marks. Raises ``ConfigError`` where a mark has no end."""
    for name, part in computed.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if start in text:
            if text.count(start) != 1 or text.count(end) != 1:
                raise ConfigError(f"'{start}' needs one '{end}' behind it")
            before, _, rest = text.partition(start)
            text = f"{before}{start}\n{_plain(part().strip())}\n{end}{rest.partition(end)[2]}"
    return text


def _plain(text: str) -> str:
    """``text`` without a line that begins with '%', which is a comment in MyST, and without words that are parted at
    their hyphen, which would be shown with a gap: the rest moves to the line before."""
    return re.sub(r"(?<=\w)-\n( *)(\S+) ?", r"-\2\n\1", re.sub(r"\n( *)(%\S*) ?", r" \2\n\1", text))


def pages() -> Iterator[Path]:
    """What may hold marks: README.md and the pages of docs/, without what ``make docs`` builds below them."""
    yield REPOSITORY / "README.md"
    yield from sorted((REPOSITORY / "docs").glob("*.md"))


def write(found: pd.DataFrame, results: Results) -> list[Path]:
    """Fill every page that has marks; returns those that changed."""
    computed, changed = parts(found, results), []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (filled := fill(text, computed)) != text:
            atomic_write(page, filled.encode())
            changed.append(page)
    return changed
