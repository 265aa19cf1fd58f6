"""What ``paper/paper.tex`` includes: ``python -m analysis.paper [--results results]`` writes ``paper/numbers.tex`` and
the generated tables beside it.

The report's prose holds no number of its own. It says ``\\n{study.hiap.80.top1}``, and ``analysis.paper_numbers``
computes what that is; only names that the report uses are written, and one that is not known is an error, as is a
number in the prose that is no macro (``analysis.prose``).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd

from analysis import claims, collect, paper_parts, prose, stats, tables
from analysis.paper_numbers import Numbers, numbers
from hiap.files import atomic_write
from hiap.train.arguments import Parser, results_root, told
from hiap.train.config import ConfigError

PAPER = collect.REPOSITORY / "paper"
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


def parts(root: Path, verdicts: pd.DataFrame) -> dict[str, str]:
    """The generated tables by file name; ``verdicts`` as in ``paper_numbers.numbers``."""
    study = collect.load(root, "study")
    return {
        "study": tables.latex(tables.compact(stats.study(study))),
        "claims": tables.latex(claims.table(verdicts)),
        "findings": paper_parts.finding_table(),
        "open": paper_parts.open_table(root),
        "commands": paper_parts.command_table(root),
    }


def main(arguments: list[str] | None = None) -> int:
    return told(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int | None:
    parser = Parser(prog="python -m analysis.paper", description="Write what paper.tex includes.")
    parser.add_argument("--results", type=results_root, default=collect.REPOSITORY / "results")
    parser.add_argument("--out", type=Path, default=PAPER, help="where to (default: paper/)")
    options = parser.parse_args(arguments)
    tex = (PAPER / "paper.tex").read_text()
    if typed := list(prose.problems(tex)):
        raise ConfigError("paper.tex: " + "; ".join(typed))
    if collect.load(options.results).empty:
        raise ConfigError(f"no finished run below {options.results / 'runs'}: the report has nothing to tell")
    verdicts = claims.verdicts(options.results)
    files = {"numbers": definitions(tex, numbers(options.results, verdicts)), **parts(options.results, verdicts)}
    for name, text in files.items():
        atomic_write(options.out / f"{name}.tex", text.encode())
    print(f"{len(used(tex))} numbers, {len(files) - 1} tables")
    return 0


if __name__ == "__main__":
    sys.exit(main())
