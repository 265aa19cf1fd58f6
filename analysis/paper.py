"""What ``paper/paper.tex`` includes: ``python -m analysis.paper [--results results]`` writes ``paper/numbers.tex`` and
the generated tables beside it.

The report's prose holds no number of its own. It says ``\\n{study.hiap.80.top1}``, and ``analysis.report.numbers``
computes what that is; only names that the report uses are written, and one that is not known is an error, as is a
number in the prose that is no macro (``analysis.report.prose``).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from analysis.claims import ledger
from analysis.records.results import REPOSITORY, Results
from analysis.report import parts as report
from analysis.report import prose
from analysis.report.numbers import Answers, Numbers, numbers
from analysis.tables import ours, render
from hiap.files import atomic_write
from hiap.train.arguments import Parser, one_line_errors, results_root
from hiap.train.config import ConfigError

PAPER = REPOSITORY / "paper"
USED = re.compile(r"\\n\{([^}]+)\}")


def used(tex: str) -> list[str]:
    """Names of numbers outside comments."""
    return sorted(set(USED.findall(re.sub(r"(?<!\\)%.*", "", tex))))


def definitions(tex: str, known: Numbers) -> str:
    """``numbers.tex`` for the names that ``tex`` uses. Raises ``ConfigError`` naming those that are not known, or of
    which the records say nothing."""
    if unknown := [name for name in used(tex) if known.get(name, "nan") == "nan"]:
        raise ConfigError(f"paper.tex uses numbers that are not computed: {', '.join(unknown)}")
    lines = [f"\\expandafter\\def\\csname n.{name}\\endcsname{{{known[name]}}}" for name in used(tex)]
    return "\n".join(["% Written by python -m analysis.paper.", *lines]) + "\n"


def parts(answers: Answers) -> dict[str, str]:
    """The generated tables by file name."""
    return {
        "study": render.latex(ours.compact(answers.study)),
        "claims": render.latex(ledger.table(answers.verdicts)),
        "findings": report.finding_table(),
        "open": report.open_table(answers),
        "commands": report.command_table(answers.results),
    }


@one_line_errors
def main(arguments: list[str] | None = None) -> int | None:
    parser = Parser(prog="python -m analysis.paper", description="Write what paper.tex includes.")
    parser.add_argument("--results", type=results_root, default=REPOSITORY / "results")
    parser.add_argument("--out", type=Path, default=PAPER, help="where to (default: paper/)")
    options = parser.parse_args(arguments)
    tex = (PAPER / "paper.tex").read_text(encoding="utf-8")
    if typed := list(prose.problems(tex)):
        raise ConfigError("paper.tex: " + "; ".join(typed))
    results = Results(options.results)
    if results.runs().empty:
        raise ConfigError(f"no finished run below {options.results / 'runs'}: the report has nothing to tell")
    answers = Answers.of(results)
    files = {"numbers": definitions(tex, numbers(answers)), **parts(answers)}
    for name, text in files.items():
        atomic_write(options.out / f"{name}.tex", text.encode())
    print(f"{len(used(tex))} numbers, {len(files) - 1} tables")
    return None


if __name__ == "__main__":
    sys.exit(main())
