"""``python -m analysis.claims [--results results]``: the verdicts, and the computed blocks of README.md and docs/."""

from __future__ import annotations

import sys

from analysis.claims import blocks, ledger
from analysis.records.results import REPOSITORY, Results
from analysis.tables import render
from hiap.cli import parsers
from hiap.train.arguments import one_line_errors


@one_line_errors
def main(arguments: list[str] | None = None) -> int | None:
    options = parsers.claims().parse_args(arguments)
    found = ledger.verdicts(Results(options.results))
    render.save_frame(found, "claims", options.results, folder=".")
    render.save(ledger.table(found), "claims", options.results)
    if options.results.resolve() == REPOSITORY / "results":
        blocks.write(found, Results(options.results))
    print(render.text(ledger.table(found)))
    print("Contradicted:", *ledger.contradictions(found), sep="\n- ")
    print("Rows of other papers, contradicted:", *ledger.contradictions(found, others=True), sep="\n- ")
    return None


if __name__ == "__main__":
    sys.exit(main())
