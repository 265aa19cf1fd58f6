"""Least squares behind the cut, crossed: what it adds to each method of a pair's primary tests, and HiAP with a target
against each where both have it and where neither has. Exploratory."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.records import names
from analysis.records.results import Results
from analysis.studies import evidence, paired
from analysis.studies.comparisons import REFERENCE

WITH, WITHOUT = "ls", "no_ls"  # forms of labels: HiAP's own form is without, that of all others with
ADDS, BOTH, NEITHER = "adds", "both", "neither"
HEADS = {ADDS: "gain", BOTH: "lead, both with it", NEITHER: "lead, both without"}
COLUMNS = ("target", "variant", "title", "question", "n", "difference", "low", "high")


def rows(runs: pd.DataFrame, pair: evidence.Pair = evidence.SECOND) -> pd.DataFrame:
    """A row per target, method and ``question``, ``COLUMNS``: what least squares ``adds`` to the method, and HiAP with
    a target minus the method where ``both`` or ``neither`` have it; only what was run on two seeds or more."""
    found = []
    for target in sorted({target for target, _ in pair.primary}, reverse=True):
        cut = f"{100 * (1 - target):.0f}"
        hiap = {True: f"{REFERENCE}-{WITH}-{cut}", False: f"{REFERENCE}-{cut}"}
        asked = [(REFERENCE, ADDS, hiap[True], hiap[False])]
        for variant in (name for at, name in pair.primary if at == target):
            own = {True: f"{variant}-{cut}", False: f"{variant}-{WITHOUT}-{cut}"}
            asked.append((variant, ADDS, own[True], own[False]))
            asked += [(variant, how, hiap[has], own[has]) for how, has in ((BOTH, True), (NEITHER, False))]
        for variant, question, one, other in asked:
            if difference := paired.pair(runs, one, other):
                title = names.title(variant, variant, target)
                row = {"target": target, "variant": variant, "title": title, "question": question}
                found.append({**row, **paired.flat(difference)})
    return pd.DataFrame(found, columns=list(COLUMNS))


def is_form(variants: pd.Series) -> pd.Series:
    """Which variants are a method with or without least squares where its own form is the other."""
    return variants.astype(str).str.endswith((f"-{WITH}", f"-{WITHOUT}"))


def sentence(runs: pd.DataFrame, pair: evidence.Pair = evidence.SECOND) -> str:
    """HiAP with a target minus the methods where neither has least squares; '' where nothing of it was run."""
    found = rows(runs, pair)
    found = found[found["question"] == NEITHER]
    bills = runs.groupby("label")["train_macs"].mean() / 1e12
    said = []
    for target in map(float, found["target"].unique()):
        own = found[found["target"] == target]
        cut = f"{100 * (1 - target):.0f}"
        shown = [f"minus {row['title']} {_ends(row)}" for row in own.to_dict("records")]
        paid = max(bills[f"{name}-{WITHOUT}-{cut}"] for name in own["variant"])
        costs = f"for {bills[f'{REFERENCE}-{cut}']:.0f} against {paid:.0f} TMACs"
        said.append(f"at {100 * target:.0f} %, {names.TARGETED} {', '.join(shown)}, {costs}")
    if not said:
        return ""
    return f"Without it on either side ({names.count(found['n'])} seeds, untuned, exploratory): {'; '.join(said)}."


def table(results: Results, pair: evidence.Pair = evidence.SECOND) -> str:
    """Markdown: a line per method; at each budget what least squares adds, and the differences. A column of nothing is
    left out."""
    found = rows(evidence.load(results, pair.grid), pair)
    if found.empty:
        return f"Not run yet: labels `hiap-{WITH}-50`, `obs-{WITHOUT}-50` and their like of grid `{pair.grid}`."
    asked = {(target, question) for target, question in zip(found["target"], found["question"], strict=True)}
    columns = [(t, q) for t in dict.fromkeys(found["target"]) for q in (ADDS, BOTH, NEITHER) if (t, q) in asked]
    cells = {(row["title"], row["target"], row["question"]): _ends(row) for row in found.to_dict("records")}
    head = [f"{100 * target:.0f} %: {HEADS[question]}" for target, question in columns]
    lines = [f"| points of top-1 | {' | '.join(head)} |", "| --- |" + " ---: |" * len(head)]
    for title in dict.fromkeys(found["title"]):
        lines.append(f"| {title} | {' | '.join(cells.get((title, *column), '-') for column in columns)} |")
    caption = (
        f"*Gain: what least squares behind the cut adds to the method. Lead: {names.TARGETED} minus the method. "
        f"{names.count(found['n'])} seeds, 95 % intervals over seeds and test images; -: not run; exploratory, and "
        "forms other than a method's own are untuned.*"
    )
    return "\n".join([*lines, "", textwrap.fill(caption, 125)])


def _ends(row: Mapping[Any, Any]) -> str:
    return f"{row['difference']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}]"
