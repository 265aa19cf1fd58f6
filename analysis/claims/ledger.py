"""Every claim of the paper and a computed verdict.

``results/published/claims.csv`` states the claims, their tolerances and what answers them; it holds no verdict.
Verdicts:

- *confirmed*, *contradicted*: by a computation (``check``), or by at least ``SEEDS`` runs on the paper's data, if their
  interval lies wholly within the tolerance, or wholly outside.
- *implemented so*: what our implementation was built to do; that it does so is tested, and is no evidence about theirs.
- *insufficient seeds*: runs on the paper's data, too few or too spread to decide.
- *different setting*: answered with other data, hardware or rule than the paper's; ``agrees`` says with what outcome.
- *not run*: with the command that would answer it, or why none here can.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pandas as pd

from analysis.claims import runs as found_runs
from analysis.claims.checks import CHECKS, OWN, Noted
from analysis.claims.here import HERE
from analysis.records import published
from analysis.records.results import REPOSITORY, Results
from analysis.stats.seeds import half_width
from analysis.tables.render import Column, Panel, Table, number, words
from slurm import estimate, grid

SEEDS = 3
DECIDED = ("confirmed", "contradicted")
VERDICTS = (*DECIDED, "implemented so", "different setting", "insufficient seeds", "not run")
OTHERS = "other papers"  # rows that HiAP's tables print of others: judged too, and no claim of HiAP's paper
STATED = ("id", "place", "kind", "claim", "value", "unit", "tolerance", "direction")
KINDS = ("analytic", "theory", "structural", "accuracy", "speed")
SHORT = {"insufficient seeds": "Few seeds"}  # where a column is narrow
AGREES = dict(zip(DECIDED, ("yes", "no"), strict=True))


class Found(NamedTuple):
    """A verdict with the number behind it, if there is one, and the runs that gave it."""

    verdict: str
    evidence: str
    found: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    n: int = 0
    agrees: str = ""
    runs: str = ""
    commits: str = ""


def load() -> pd.DataFrame:
    """The claims as stated; an empty cell of text is ''."""
    claims = pd.read_csv(published.FOLDER / "claims.csv", dtype={"argument": str})
    texts = ["metric", "unit", "direction", "check", "argument", "answer", "here"]
    return claims.fillna(dict.fromkeys(texts, ""))


def verdicts(results: Results) -> pd.DataFrame:
    """One row per claim: what was claimed, what was ``found``, on how many runs (``n``), the ``verdict``, the
    ``evidence`` (function, runs, or command), and ids and commits of the runs."""
    rows = []
    for claim in load().to_dict("records"):
        found = judge(claim, results)
        numbers = {"found": found.found, "interval_low": found.low, "interval_high": found.high, "n": found.n}
        answer = {key: getattr(found, key) for key in ("verdict", "agrees", "evidence", "runs", "commits")}
        rows.append({**{key: claim[key] for key in STATED}, **numbers, **answer})
    return pd.DataFrame(rows)


def judge(claim: Mapping[Any, Any], results: Results) -> Found:
    here = _here(claim, results)
    if claim["check"]:
        found = _computed(claim)
        return found._replace(evidence=f"{found.evidence}; {_aside(here)}") if here else found
    if scores := found_runs.scores(claim, results):
        return _from_runs(claim, scores)
    if timing := found_runs.timing(claim, results):
        return _from_timing(claim, timing)
    planned_elsewhere = claim["answer"].startswith(found_runs.LAUNCH)  # those runs are what answered
    if here and claim["answer"] and here.verdict == "different setting" and not planned_elsewhere:
        return here._replace(evidence=f"{here.evidence}; in the paper's: {_how(claim)}")
    return here or Found("not run", _how(claim))


def _computed(claim: Mapping[Any, Any]) -> Found:
    value, note = CHECKS[claim["check"]](claim["argument"]), ""
    if isinstance(value, Noted):
        value, note = value
    holds = value if isinstance(value, bool) else _decide(value, value, claim) == "confirmed"
    verdict = "contradicted" if not holds else "implemented so" if claim["check"] in OWN else "confirmed"
    source = f"analysis.claims.checks.{claim['check']}"
    return Found(verdict, f"{source}: {note}" if note else source, float(value), agrees="yes" if holds else "no")


def _from_runs(claim: Mapping[Any, Any], scores: found_runs.Scores) -> Found:
    """By the mean over runs (of ``top1 difference`` and of curves: seeds) and Student's interval of it."""
    half, mean, n = half_width(scores.values), float(scores.values.mean()), len(scores.values)
    runs, commits = _named(scores.runs)
    outcome = _decide(mean - half, mean + half, claim) if n >= SEEDS else "insufficient seeds"
    evidence, verdict = f"grid {'/'.join(found_runs.selector(claim['answer']) or ())}", outcome
    if scores.other:
        verdict, evidence = _elsewhere(claim), f"{evidence}, with {scores.other}"
    if n < SEEDS:
        evidence += f"; {_more_seeds(claim)}"
    agrees = AGREES.get(outcome, "undecided")
    return Found(verdict, evidence, mean, mean - half, mean + half, n, agrees, runs, commits)


def _from_timing(claim: Mapping[Any, Any], timing: found_runs.Timing) -> Found:
    """Decides for the paper only on the claim's device; ``low`` and ``high`` are those of ``found_runs.Timing``."""
    outcome = _decide(timing.low, timing.high, claim)
    here = claim["dataset"] in timing.device
    numbers = (timing.found, timing.low, timing.high, timing.n)
    evidence = f"{timing.report} on {timing.device}{'' if here else ', not ' + claim['dataset']}"
    verdict = outcome if here else "different setting"
    return Found(verdict, evidence, *numbers, AGREES.get(outcome, "undecided"), commits=timing.commit[:10])


def _here(claim: Mapping[Any, Any], results: Results) -> Found | None:
    """The answer at laptop scale."""
    if not claim["here"] or not (answer := HERE[claim["here"]](results, claim["argument"])):
        return None
    found, agreed = answer.found, answer.agrees
    if agreed is None:
        agreed = _decide(found, found, claim) == "confirmed"
    numbers = (found, answer.low, answer.high, answer.n, "yes" if agreed else "no")
    return Found(_elsewhere(claim), answer.source, *numbers, *_named(answer.runs))


def _elsewhere(claim: Mapping[Any, Any]) -> str:
    """The verdict where it is not the paper's runs that answer."""
    return "implemented so" if claim["here"] in OWN else "different setting"


def _aside(here: Found) -> str:
    ends = "" if math.isnan(here.low) else f" [{here.low:.4g}, {here.high:.4g}]"
    return f"at laptop scale {here.found:.4g}{ends}, n = {here.n}, agrees: {here.agrees} ({here.evidence})"


def _named(runs: pd.DataFrame | None) -> tuple[str, str]:
    """Ids and commits of runs."""
    if runs is None:
        return "", ""
    return " ".join(sorted(runs["run_id"])), " ".join(sorted({commit[:10] for commit in runs["commit"]}))


def _decide(low: float, high: float, claim: Mapping[Any, Any]) -> str:
    """Where the interval lies: within what the claim allows, outside, or across its edge."""
    slack = claim["tolerance"] + 1e-9
    least = -math.inf if claim["direction"] == "<=" else claim["value"] - slack
    most = math.inf if claim["direction"] == ">=" else claim["value"] + slack
    if least <= low and high <= most:
        return "confirmed"
    return "contradicted" if high < least or low > most else "insufficient seeds"


def _how(claim: Mapping[Any, Any]) -> str:
    """The command that would answer it, with its GPU-hours where they are known."""
    answer = claim["answer"]
    if not answer:
        return "needs the compared method's own code, which this repository does not implement"
    if answer.startswith("python"):
        note = f" (and seeds 1 to {SEEDS - 1})" if answer.startswith(found_runs.TRAIN) else ""
        if answer.startswith(found_runs.LAUNCH):
            note = " (other data, so the answer will be 'different setting')"
        return found_runs.needs(answer) + found_runs.command(answer) + note
    name, _, label = answer.partition("/")
    runs = [run for run in found_runs.planned(name) if found_runs.named(run.label, label)]
    hours = [estimate.gpu_hours(run.config, REPOSITORY / "results" / "bench") for run in runs]
    known = [h[0] for h in hours if h is not None]
    cost = f"about {sum(known):,.0f} GPU-hours" if len(known) == len(runs) else "GPU-hours: no step was timed on a GPU"
    notes = [cost]
    if any(run.config.method == "hiap" and run.config.budget.target_macs is not None for run in runs):
        notes.append("its budget rule is ours, so the answer will be 'different setting'")
    if len(grid.load(grid.find(name)).seeds) < SEEDS:
        notes.append(_more_seeds(claim))
    only = " ".join(sorted({run.label for run in runs}))
    return f"python slurm/launch_grid.py --grid {name} --only {only} ({'; '.join(notes)})"


def _more_seeds(claim: Mapping[Any, Any]) -> str:
    name, label = found_runs.selector(claim["answer"]) or ("", "")
    wanted = f"'seeds: {list(range(SEEDS))}' in slurm/grids/{name}.yaml"
    return f"a verdict needs {SEEDS} seeds: {wanted}, then {label} again"


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """Claims by kind (rows) and verdict (columns); what ``OTHERS`` has stands below the sum and is not in it."""
    names = [*KINDS, OTHERS]
    counts = pd.crosstab(found["kind"], found["verdict"]).reindex(index=names, columns=VERDICTS, fill_value=0)
    counts["all"] = counts.sum(axis=1)
    counts.loc["all"] = counts.loc[list(KINDS)].sum()
    return counts.loc[[*KINDS, "all", OTHERS]]


def table(found: pd.DataFrame) -> Table:
    """``summary`` for print."""
    shown = (Column(name, SHORT.get(name, name.capitalize()), number(0)) for name in (*VERDICTS, "all"))
    rows = summary(found).rename_axis("kind").reset_index()
    rows["kind"] = rows["kind"].replace(OTHERS, f"({OTHERS})")
    return Table("Verdicts by kind of claim", (words("kind", "Kind"), *shown), (Panel("Number of claims", rows),))


def contradictions(found: pd.DataFrame, others: bool = False) -> Iterator[str]:
    """One line for each contradicted claim of HiAP's paper, or of the rows that it prints of ``others``."""
    found = found[(found["kind"] == OTHERS) == others]
    for row in found[found["verdict"] == "contradicted"].to_dict("records"):
        unit = f" {row['unit']}" if row["unit"] else ""
        numbers = f" (claimed {row['direction']}{row['value']:g}, found {row['found']:.4g}{unit})"
        yield f"{row['id']}: {row['claim']}{'' if math.isnan(row['value']) else numbers}"
