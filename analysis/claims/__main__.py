"""``python -m analysis.claims [--results results]``: the verdicts, and what README.md says of them and the studies."""

from __future__ import annotations

import sys

import pandas as pd

from analysis.claims import ledger
from analysis.records.results import REPOSITORY, Results
from analysis.studies import words
from analysis.tables import render
from hiap.files import atomic_write
from hiap.train.arguments import Parser, results_root, told

README = REPOSITORY / "README.md"


def readme(text: str, found: pd.DataFrame, results: Results) -> str:
    """README.md with what is computed between its marks: the ledger's summary, and sentences on both studies."""
    shown = render.markdown(ledger.table(found)).split("\n\n", 2)[2]  # without title and panel heading
    parts = {
        "claims": shown,
        "evidence": words.at_papers_shape(results),
        "digits": words.on_digits(results),
        "realised": words.realised(results),
        "deploy": words.deployed(results),
    }
    for name, part in parts.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, _, rest = text.partition(start)
        _, _, after = rest.partition(end)
        text = f"{before}{start}\n{part.strip()}\n{end}{after}"
    return text


@told
def main(arguments: list[str] | None = None) -> int | None:
    parser = Parser(prog="python -m analysis.claims", description="Judge every claim of the paper.")
    parser.add_argument("--results", type=results_root, default=REPOSITORY / "results")
    options = parser.parse_args(arguments)
    found = ledger.verdicts(Results(options.results))
    render.save_frame(found, "claims", options.results, folder=".")
    render.save(ledger.table(found), "claims", options.results)
    if options.results.resolve() == README.parent / "results":
        atomic_write(README, readme(README.read_text(), found, Results(options.results)).encode())
    print(render.text(ledger.table(found)))
    print("Contradicted:", *ledger.contradictions(found), sep="\n- ")
    print("Rows of other papers, contradicted:", *ledger.contradictions(found, others=True), sep="\n- ")
    return None


if __name__ == "__main__":
    sys.exit(main())
