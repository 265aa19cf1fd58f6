"""``python -m analysis.claims [--results results]``: the verdicts, and their summary in README.md."""

from __future__ import annotations

import sys

import pandas as pd

from analysis.claims import ledger
from analysis.records.results import REPOSITORY, Results
from analysis.tables import render
from hiap.files import atomic_write
from hiap.train.arguments import Parser, results_root, told

README = REPOSITORY / "README.md"
MARKS = ("<!-- claims -->", "<!-- /claims -->")


def readme(text: str, found: pd.DataFrame) -> str:
    """README.md with the ledger's summary between its marks."""
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    shown = render.markdown(ledger.table(found)).split("\n\n", 2)[2]  # without title and panel heading
    return f"{before}{MARKS[0]}\n{shown.strip()}\n{MARKS[1]}{after}"


@told
def main(arguments: list[str] | None = None) -> int | None:
    parser = Parser(prog="python -m analysis.claims", description="Judge every claim of the paper.")
    parser.add_argument("--results", type=results_root, default=REPOSITORY / "results")
    options = parser.parse_args(arguments)
    found = ledger.verdicts(Results(options.results))
    render.save_frame(found, "claims", options.results, folder=".")
    render.save(ledger.table(found), "claims", options.results)
    if options.results.resolve() == README.parent / "results":
        atomic_write(README, readme(README.read_text(), found).encode())
    print(render.text(ledger.table(found)))
    print("Contradicted:", *ledger.contradictions(found), sep="\n- ")
    print("Rows of other papers, contradicted:", *ledger.contradictions(found, others=True), sep="\n- ")
    return None


if __name__ == "__main__":
    sys.exit(main())
