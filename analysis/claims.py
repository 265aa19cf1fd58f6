"""The ledger: every claim of the paper and a computed verdict. ``python -m analysis.claims [--results results]``.

``results/published/claims.csv`` states the claims, their tolerances and what answers them; it holds no verdict. This
module writes ``results/claims.csv``. Verdicts:

- *confirmed*, *contradicted*: by a computation (``check``), or by at least ``SEEDS`` runs on the paper's data.
- *insufficient seeds*: runs on the paper's data, too few or too spread to decide.
- *different setting*: answered here on other data or hardware only; ``agrees`` says with what outcome.
- *not run*: with the command that would answer it, or why none here can.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis import collect, tables
from analysis.claim_checks import CHECKS, HERE
from hiap.record import atomic_write
from slurm import estimate, grid

SEEDS = 3
VERDICTS = ("confirmed", "contradicted", "different setting", "insufficient seeds", "not run")
KINDS = ("analytic", "theory", "structural", "accuracy", "speed")


class Found(NamedTuple):
    """A verdict with the number behind it, if there is one."""

    verdict: str
    evidence: str
    found: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    n: int = 0
    agrees: str = ""


def load() -> pd.DataFrame:
    """The claims as stated; an empty cell of text is ''."""
    claims = pd.read_csv(collect.PUBLISHED / "claims.csv", dtype={"argument": str})
    words = ["metric", "unit", "check", "argument", "answer", "here"]
    return claims.fillna(dict.fromkeys(words, ""))


def verdicts(root: str | Path) -> pd.DataFrame:
    """One row per claim: what was claimed, what was ``found``, on how many runs (``n``), the ``verdict``, and the
    ``evidence``: function, runs, or command."""
    rows = []
    for claim in load().to_dict("records"):
        found = judge(claim, Path(root))
        stated = {key: claim[key] for key in ("id", "place", "kind", "claim", "value", "unit", "tolerance")}
        numbers = {"found": found.found, "interval_low": found.low, "interval_high": found.high, "n": found.n}
        rows.append({**stated, **numbers, "verdict": found.verdict, "agrees": found.agrees, "evidence": found.evidence})
    return pd.DataFrame(rows)


def judge(claim: Mapping[Any, Any], root: Path) -> Found:
    if claim["check"]:
        value = CHECKS[claim["check"]](claim["argument"])
        holds = bool(value) if isinstance(value, bool) else _within(value, claim)
        source = f"analysis.claim_checks.{claim['check']}"
        return Found("confirmed" if holds else "contradicted", source, float(value), agrees=_yes(holds))
    if (scores := _scores(claim, root)) is not None and len(scores):
        return _from_runs(claim, scores)
    if claim["here"] and (answer := HERE[claim["here"]](root, claim["argument"])):
        numbers = (answer.found, answer.low, answer.high, answer.n)
        return Found("different setting", answer.source, *numbers, agrees=_yes(answer.agrees))
    return Found("not run", _how(claim))


def _from_runs(claim: Mapping[Any, Any], scores: pd.Series) -> Found:
    """Two-sided: confirmed if the mean lies within tolerance, contradicted if its interval lies wholly outside."""
    half = tables.half_width(scores)
    mean, n = float(scores.mean()), len(scores)
    numbers = (mean, mean - half, mean + half, n)
    evidence = f"{claim['answer']}: {', '.join(map(str, scores.index))}"
    if n < SEEDS:
        return Found("insufficient seeds", evidence, *numbers)
    if math.isnan(claim["value"]):  # a difference that should be above zero
        verdict = "confirmed" if mean - half > 0 else "contradicted" if mean + half < 0 else "insufficient seeds"
    elif _within(mean, claim):
        verdict = "confirmed"
    else:
        gap = abs(mean - claim["value"]) - claim["tolerance"]
        verdict = "contradicted" if gap > half else "insufficient seeds"
    return Found(verdict, evidence, *numbers)


def _scores(claim: Mapping[Any, Any], root: Path) -> pd.Series | None:
    """The claim's metric per run id, from finished runs of its grid and label on its data; None if no grid answers."""
    name, _, label = claim["answer"].partition("/")
    if not label or claim["answer"].startswith("python"):
        return None
    runs = collect.load(root, name)
    runs = runs[runs["data"] == claim["dataset"]]
    if label.endswith("*"):
        return _at(runs[runs["label"].str.startswith(label[:-1])], claim)
    if claim["metric"] == "top1 difference":
        return _difference(runs, claim["argument"])
    column = {"top1": "top1", "gap": "gap", "heads": "heads", "neurons": "neurons", "top1_dense": "top1_dense"}
    mine = runs[runs["label"] == label].set_index("run_id")
    if claim["metric"] == "miss":
        return 100 * (mine["macs_share"] - mine["target"])
    return mine[column[claim["metric"]]].astype(float).dropna() if claim["metric"] in column else None


def _at(runs: pd.DataFrame, claim: Mapping[Any, Any]) -> pd.Series | None:
    """Top-1 at the MACs (G) that the claim's argument names, between a ratio's runs, per seed."""
    found = {}
    for seed, group in runs.sort_values("macs").groupby("seed"):
        gmacs = group["macs"].to_numpy() / 1e9
        if len(group) > 1 and gmacs[0] <= float(claim["argument"]) <= gmacs[-1]:
            found[f"seed {seed}"] = np.interp(float(claim["argument"]), gmacs, group["top1"])
    return pd.Series(found, dtype=float)


def _difference(runs: pd.DataFrame, labels: str) -> pd.Series:
    first, second = (runs[runs["label"] == label].set_index("seed")["top1"] for label in labels.split())
    return (first - second).dropna().rename(index="seed {}".format)


def _within(value: float, claim: Mapping[Any, Any]) -> bool:
    return abs(value - claim["value"]) <= claim["tolerance"] + 1e-9


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def _how(claim: Mapping[Any, Any]) -> str:
    """The command that would answer it, with its GPU-hours where they are known."""
    answer = claim["answer"]
    if not answer:
        return "needs the compared method's own code, which this repository does not implement"
    if answer.startswith("python"):
        return str(answer)
    name, _, label = answer.partition("/")
    only = " ".join(sorted({run.label for run in _runs(name) if _named(run.label, label)}))
    hours = [estimate.gpu_hours(run.config, collect.REPOSITORY / "results" / "bench") for run in _runs(name)]
    mine = [h for run, h in zip(_runs(name), hours, strict=True) if _named(run.label, label)]
    known = [h[0] for h in mine if h is not None]
    cost = f"about {sum(known):,.0f} GPU-hours" if len(known) == len(mine) else "GPU-hours: no step was timed on a GPU"
    return f"python slurm/launch_grid.py --grid {name} --only {only} ({cost})"


def _named(label: str, wanted: str) -> bool:
    return label.startswith(wanted[:-1]) if wanted.endswith("*") else label == wanted


@cache
def _runs(name: str) -> list[grid.Run]:
    path = grid.find(name)
    return grid.expand(grid.load(path), path, {})


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """Claims by kind (rows) and verdict (columns)."""
    counts = pd.crosstab(found["kind"], found["verdict"]).reindex(index=KINDS, columns=VERDICTS, fill_value=0)
    counts["all"] = counts.sum(axis=1)
    counts.loc["all"] = counts.sum()
    return counts


def table(found: pd.DataFrame) -> tables.Table:
    """``summary`` for print."""
    columns = [tables.Column("kind", "Kind", left=True)]
    columns += [tables.Column(name, name.capitalize(), tables.number(0)) for name in (*VERDICTS, "all")]
    rows = summary(found).rename_axis("kind").reset_index()
    return tables.Table("Verdicts by kind of claim", tuple(columns), (tables.Panel("Number of claims", rows),))


def contradictions(found: pd.DataFrame) -> Iterator[str]:
    for row in found[found["verdict"] == "contradicted"].to_dict("records"):
        number = (
            "" if math.isnan(row["value"]) else f" (claimed {row['value']:g}, found {row['found']:.4g} {row['unit']})"
        )
        yield f"{row['id']}: {row['claim']}{number}"


README = collect.REPOSITORY / "README.md"
MARKS = ("<!-- claims -->", "<!-- /claims -->")


def readme(text: str, found: pd.DataFrame) -> str:
    """README.md with the ledger's summary between its marks."""
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    shown = tables.markdown(table(found)).split("\n\n", 2)[2]  # without title and panel heading
    return f"{before}{MARKS[0]}\n{shown.strip()}\n{MARKS[1]}{after}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m analysis.claims", description="Judge every claim of the paper.")
    parser.add_argument("--results", type=Path, default=collect.REPOSITORY / "results")
    options = parser.parse_args(arguments)
    found = verdicts(options.results)
    tables.save_frame(found, "claims", options.results, folder=".")
    tables.save(table(found), "claims", options.results)
    if options.results.resolve() == README.parent / "results":
        atomic_write(README, readme(README.read_text(), found).encode())
    print(tables.text(table(found)))
    print("Contradicted:", *contradictions(found), sep="\n- ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
