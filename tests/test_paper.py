"""The report: no number in its prose but computed ones; generated parts. Then the notebooks as one page, and the
citation file."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import nbformat
import pytest
import yaml

from analysis import execute, paper
from analysis.findings.registry import findings
from analysis.records.results import REPOSITORY, Results
from analysis.report import __main__ as page
from analysis.report import numbers, parts, prose
from analysis.studies import open_points
from hiap.train.config import ConfigError
from slurm import grid

RESULTS = REPOSITORY / "results"
TEX = (paper.PAPER / "paper.tex").read_text()


@functools.cache
def answers() -> numbers.Answers:
    return numbers.Answers.of(Results(RESULTS))


def document(text: str) -> str:
    return (
        rf"\newcommand{{\half}}{{12}}\begin{{document}}{text}\begin{{thebibliography}}{{9}}2026\end{{thebibliography}}"
    )


def test_the_reports_prose_holds_no_number_of_its_own() -> None:
    assert list(prose.problems(TEX)) == []


@pytest.mark.parametrize(
    "text",
    [
        "HiAP reaches 83.6 there",
        r"at 80\,\% of the MACs",
        "seven baselines",
        "Twice the cost",
        r"\orig{80 \%} of the MACs",
        r"\orig{83.60}",
        r"$\alpha=0$",
        r"\caption{Of 5 seeds}",
        r"\section{Two studies}",
    ],
)
def test_a_typed_number_is_refused(text: str) -> None:
    assert len(list(prose.problems(document(text)))) == 1


@pytest.mark.parametrize(
    "text",
    [
        r"\n{study.hiap.80.top1}\,\% top-1",
        r"\orig{Table 2}, \orig{Figs. 5-9}, \orig{Figs. 6 and 7}, \orig{Eqs. 1-4}, \orig{A11}, \orig{v3}",
        r"\orig{3.1 G} and \orig{174.0 M} at \orig{1.5:1}",
        "nothing % but 12 in a comment",
        r"\includegraphics[width=0.5\linewidth]{fig2}\label{fig:2}\cite{key2}\texttt{08\_value}",
        "a third-party pruner, one phase",
    ],
)
def test_macros_places_and_names_are_let_through(text: str) -> None:
    assert list(prose.problems(document(text))) == []


def test_every_number_of_the_report_is_computed_and_an_unknown_one_is_named() -> None:
    known = numbers.numbers(answers())
    assert set(paper.used(TEX)) <= set(known)
    assert not [name for name in paper.used(TEX) if known[name] in ("nan", "$nan$")]
    with pytest.raises(ConfigError, match=r"not computed: study\.novel"):
        paper.definitions(r"\n{study.novel}", known)


def test_every_part_that_is_generated_is_used_and_the_other_way_round(tmp_path: Path) -> None:
    assert paper.main(["--results", str(RESULTS), "--out", str(tmp_path)]) == 0
    written = {path.stem for path in tmp_path.iterdir()}
    assert written == set(re.findall(r"\\input\{(\w+)\}", TEX))
    for path in tmp_path.iterdir():
        assert "nan" not in path.read_text(), path.name


def test_all_findings_and_all_open_points_have_a_line() -> None:
    assert list(findings()) == list(range(1, 15))
    assert all(finding.said in parts.finding_table() for finding in findings().values())
    assert [point.id for point in open_points.POINTS] == [f"A{i}" for i in range(1, 13)]
    assert all(bool(point.grid) != bool(point.reason) for point in open_points.POINTS)


def test_what_was_chosen_without_an_option_is_told_with_its_reason() -> None:
    shown = parts.open_table(answers())
    page = (REPOSITORY / "docs" / "open_points.md").read_text(encoding="utf-8")
    for choice in open_points.CHOICES:
        assert choice.reason[:30] in shown
    assert "0.953 against 0.786" in shown
    assert all(f"| {point.id} |" in page for point in open_points.POINTS)


def test_every_grid_is_listed_with_what_it_shows() -> None:
    assert set(parts.SHOWS) == {path.stem for path in grid.GRIDS.glob("*.yaml")}


@pytest.mark.parametrize(
    ("label", "in_grid", "base"),
    [
        ("A1-soft", "sensitivity", "default"),
        ("qkv", "a4", "v"),
        ("physical", "a4", "v"),
        ("v-cut-qkv", "a4", "v"),
        ("v-cut-qkv-micro", "a4", "v-micro"),
        ("physical-deep", "a4", "v-deep"),
        ("v-micro", "a4", "v-micro"),
    ],
)
def test_a_reading_is_paired_with_the_run_that_differs_in_it_alone(label: str, in_grid: str, base: str) -> None:
    assert open_points.base(label, in_grid) == base
    assert base in grid.load(grid.find(in_grid)).runs


# The notebooks as one page


def test_the_page_has_every_notebook_and_no_code(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    assert page.main(["--out", str(out)]) == 0
    html = out.read_text()
    notebooks = sorted(execute.FOLDER.glob("*.ipynb"))
    assert len(notebooks) > 10
    for path in notebooks:
        cells = nbformat.read(path, as_version=4).cells
        heading = next(cell.source for cell in cells if cell.cell_type == "markdown").splitlines()[0].lstrip("# ")
        assert f'id="{path.stem}"' in html, path.name
        assert html.count(heading.replace("&", "&amp;")) >= 2, f"{heading}: in the contents and above its text"
        imports = next(cell.source for cell in cells if cell.cell_type == "code").splitlines()
        assert next(line for line in imports if "import" in line) not in html, path.name
    assert not re.search(r'<(script|img|link)[^>]*(src|href)="(?!data:)', html), "the page needs other files"


# The citation file


def test_the_citation_file_has_what_a_citation_needs() -> None:
    cff = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    version = re.search(r'^version = "(.+)"', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    assert str(cff["version"]) == version[1]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", str(cff["date-released"]))
    assert {"title", "authors", "license", "references"} <= set(cff)
