r"""What the report's prose may hold: ``problems`` finds every number that is not a macro.

A number of ours is ``\n{name}``, computed. ``\orig{...}`` names a place in the paper that is reproduced, one of its
symbols' values, or a number that it prints. Counts in words are numbers too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from analysis.records import published

PLACE = re.compile(
    r"v[13]|A\d{1,2}|(Tables?|Figs?\.|Eqs?\.|Sections?|Lemma|Propositions?) \d+(-\d+| (and|to) \d+)?(, \d+)*"
)
WORDS = re.compile(
    r"\b(two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fifteen|sixteen|twenty|dozen|hundred|thousand|"
    r"twice|thrice|thirds?(?!-party)|quarters?)\b",
    re.IGNORECASE,
)
# What may hold digits without stating a number: names, keys, lengths, and TeX that is not shown.
HIDDEN = (
    r"\\(?:label|ref|cite|input|bibitem|texttt|url|includegraphics|vspace|hspace)(?:\[[^\]]*\])?\{[^}]*\}",
    r"\\begin\{(?:tabular|minipage|figure|table|thebibliography)\}(?:\[[^\]]*\])?(?:\{[^}]*\})*",
    r"\\n\{[^}]*\}",
    r"\b[Tt]op-1\b",
)


def body(tex: str) -> str:
    """The document without comments, preamble and bibliography."""
    tex = re.sub(r"(?<!\\)%.*", "", tex)
    tex = tex.partition(r"\begin{document}")[2]
    return re.sub(r"\\begin\{thebibliography\}.*?\\end\{thebibliography\}", "", tex, flags=re.DOTALL)


def printed() -> set[str]:
    """Numbers of the paper's tables and Fig. 4 as ``\\orig`` may name them: '3.1 G', '174.0 M', '1.5:1'."""
    table2, table3 = published.table(published.TABLE2), published.table(published.TABLE3)
    fig4 = published.table("fig4_penalty_ratios")
    gmacs = {f"{value:.1f} G" for value in [*table2["gmacs"], *fig4["gflops"]]}
    params = {f"{value:.1f} M" for value in [*table2["params_m"], *table3["mmacs"]]}
    return gmacs | params | set(fig4["ratio"])


def problems(tex: str) -> Iterator[str]:
    """One line for every number in the prose that is not a macro, and every ``\\orig`` that is not the paper's."""
    text, known = body(tex), printed()
    for content in re.findall(r"\\orig\{([^}]*)\}", text):
        if not PLACE.fullmatch(content) and content not in known:
            yield f"\\orig{{{content}}}: neither a place in the paper nor a number that it prints"
    for pattern in (*HIDDEN, r"\\orig\{[^}]*\}"):
        text = re.sub(pattern, " ", text)
    for number, line in enumerate(text.splitlines(), start=1):
        for found in [*re.finditer(r"\d[\d.,]*", line), *WORDS.finditer(line)]:
            around = line[max(0, found.start() - 30) : found.end() + 20].strip()
            yield f"'{found.group()}' is not a macro (line {number} of the body: ... {around} ...)"
