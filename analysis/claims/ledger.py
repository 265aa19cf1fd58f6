"""Every claim of the paper and a computed verdict.

``results/published/claims.csv`` states the claims, their tolerances with a reason each, what answers them, and how
their authors might contest a verdict: these words are typed, and they decide with what is computed. It holds no
verdict. Verdicts:

- *confirmed*, *contradicted*: by a computation (``check``), or by at least ``SEEDS`` runs on the paper's data, if their
  interval lies wholly within the tolerance, or wholly outside.
- *self-consistent*: the text agrees with the paper's own figure or table; nothing of ours is in it.
- *partly*, *undecided*: what is computed depends on a reading that the paper leaves open; in part of what the claim
  speaks of it holds, or nobody can say.
- *implemented so*: what our implementation was built to do; that it does so is tested, and is no evidence about theirs.
- *insufficient seeds*: runs on the paper's data, too few or too spread to decide.
- *different setting*: answered with other data, hardware or rule than the paper's; ``agrees`` says with what outcome.
- *not run*: with the ``command`` that would answer it.
- *out of reach*: no command can answer it, and why.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import pandas as pd

from analysis.claims import runs as found_runs
from analysis.claims.checks import CHECKS, OWN, Noted
from analysis.claims.here import HERE
from analysis.records import published
from analysis.records.results import REPOSITORY, Results
from analysis.stats.seeds import half_width
from analysis.tables.render import Column, Panel, Table, number, words
from slurm import estimate

SEEDS = 3
DECIDED = ("confirmed", "contradicted")
VERDICTS = (
    "confirmed", "self-consistent", "partly", "undecided", "contradicted", "implemented so", "different setting",
    "insufficient seeds", "not run", "out of reach",
)  # fmt: skip
OTHERS = "other papers"  # rows that HiAP's tables print of others: judged too, and no claim of HiAP's paper
TYPED = ("reason", "contest")  # words beside a claim: why this tolerance, and what the authors might say
STATED = ("id", "place", "kind", "claim", "value", "unit", "tolerance", "direction")
COMPUTED = ("arithmetic", "self-consistency", "analytic", "theory", "structural")  # kinds that need no run
TRAINED = ("topology", "budget", "accuracy", "speed")  # kinds that need one
KINDS = (*COMPUTED, *TRAINED)
SUMS = {"need no run": COMPUTED, "need a run": TRAINED}
SHORT = {"insufficient seeds": "Few seeds", "self-consistent": "Self-cons.", "implemented so": "Impl. so",
         "different setting": "Diff. setting", "confirmed": "Conf.", "contradicted": "Contrad.", "undecided": "Undec.",
         "out of reach": "No reach"}  # fmt: skip
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
    command: str = ""


def load() -> pd.DataFrame:
    """The claims as stated; an empty cell of text is ''."""
    claims = pd.read_csv(published.FOLDER / "claims.csv", dtype={"argument": str})
    texts = ["metric", "unit", "direction", "check", "argument", "answer", "here", *TYPED]
    return claims.fillna(dict.fromkeys(texts, ""))


def verdicts(results: Results, only: Collection[str] | None = None) -> pd.DataFrame:
    """One row per claim, or per id in ``only``: what was claimed, what was ``found``, on how many runs (``n``), the
    ``verdict``, the tolerances that it ``holds_for``, the ``evidence``, the ``command`` that would answer it, ids and
    commits of the runs, and the words beside it (``TYPED``)."""
    rows = []
    for claim in load().to_dict("records"):
        if only is not None and claim["id"] not in only:
            continue
        found = judge(claim, results)
        numbers = {"found": found.found, "interval_low": found.low, "interval_high": found.high, "n": found.n}
        answer = {key: getattr(found, key) for key in ("verdict", "agrees")} | {"holds_for": _holds(claim, found)}
        answer |= {key: getattr(found, key) for key in ("evidence", "command", "runs", "commits")}
        rows.append({**{key: claim[key] for key in STATED}, **numbers, **answer, **{key: claim[key] for key in TYPED}})
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
    if not claim["answer"]:
        return here or Found("out of reach", claim["reason"])
    command, note = how(claim)
    if here:
        return here._replace(evidence=f"{here.evidence}; in the paper's setting: {command} ({note})", command=command)
    return Found("not run", note, command=command)


def _computed(claim: Mapping[Any, Any]) -> Found:
    value = CHECKS[claim["check"]](claim["argument"])
    noted = value if isinstance(value, Noted) else Noted(value, "")
    outcome = _of_check(claim, noted)
    source = f"analysis.claims.checks.{claim['check']}"
    evidence = f"{source}: {noted.note}" if noted.note else source
    agrees = AGREES.get(outcome, "undecided")
    return Found(_worded(claim, outcome), evidence, float(noted.value), noted.low, noted.high, agrees=agrees)


def _of_check(claim: Mapping[Any, Any], noted: Noted) -> str:
    """'confirmed' or 'contradicted', or what a range over readings leaves: 'partly' or 'undecided'."""
    if isinstance(noted.value, bool):
        return "confirmed" if noted.value else "contradicted"
    ends = (noted.value, noted.value) if math.isnan(noted.low) else (noted.low, noted.high)
    outcome = _decide(*ends, claim)
    return outcome if outcome in DECIDED else "partly" if noted.partly else "undecided"


def _worded(claim: Mapping[Any, Any], outcome: str) -> str:
    """What confirms nothing is not called so: what we built so, and the paper's text beside its own figure."""
    if outcome != "confirmed":
        return outcome
    if claim["check"] in OWN:
        return "implemented so"
    return "self-consistent" if claim["kind"] == "self-consistency" else outcome


def _holds(claim: Mapping[Any, Any], found: Found) -> str:
    """The tolerances with which what was found would be judged the same; '' for yes or no, and where nothing was
    found."""
    if math.isnan(claim["value"]) or math.isnan(found.found):
        return ""
    ends = [found.found] if math.isnan(found.low) else [found.low, found.high]
    over = {">=": [claim["value"] - end for end in ends], "<=": [end - claim["value"] for end in ends]}
    apart = over.get(claim["direction"], [abs(end - claim["value"]) for end in ends])
    across = not claim["direction"] and min(ends) <= claim["value"] <= max(ends)
    least, most = 0.0 if across else max(0.0, min(apart)), max(0.0, *apart)
    if found.agrees == "yes":
        return f"from {most:.3g}"
    return f"below {most if across else least:.3g}" if found.agrees == "no" else f"from {least:.3g} to below {most:.3g}"


def _from_runs(claim: Mapping[Any, Any], scores: found_runs.Scores) -> Found:
    """By the mean over runs (of ``top1 difference`` and of curves: seeds) and Student's interval of it."""
    half, mean, n = half_width(scores.values), float(scores.values.mean()), len(scores.values)
    runs, commits = _named(scores.runs)
    outcome = _decide(mean - half, mean + half, claim) if n >= SEEDS else "insufficient seeds"
    evidence, verdict = f"grid {'/'.join(found_runs.selector(claim['answer']) or ())}", outcome
    if scores.other:
        verdict, evidence = _elsewhere(claim), f"{evidence}, with {scores.other}"
    if n < SEEDS:
        evidence += f"; a verdict needs {SEEDS} seeds"
    agrees = AGREES.get(outcome, "undecided")
    return Found(verdict, evidence, mean, mean - half, mean + half, n, agrees, runs, commits)


def _from_timing(claim: Mapping[Any, Any], timing: found_runs.Timing) -> Found:
    """Decides for the paper only on the claim's device; ``low`` and ``high`` are those of ``found_runs.Timing``."""
    outcome = _decide(timing.low, timing.high, claim)
    here = found_runs.on_device(claim, timing)
    numbers = (timing.found, timing.low, timing.high, timing.n)
    evidence = f"{timing.report} on {timing.device}{'' if here else ', not ' + claim['dataset']}"
    verdict = outcome if here else "different setting"
    return Found(verdict, evidence, *numbers, AGREES.get(outcome, "undecided"), commits=timing.commit[:10])


def _here(claim: Mapping[Any, Any], results: Results) -> Found | None:
    """The answer at laptop scale."""
    if not claim["here"] or not (answer := HERE[claim["here"]](results, claim["argument"])):
        return None
    agreed = answer.agrees
    if agreed is None:
        ends = (answer.found, answer.found) if math.isnan(answer.low) else (answer.low, answer.high)
        agreed = AGREES.get(_decide(*ends, claim), "undecided")
    numbers = (answer.found, answer.low, answer.high, answer.n, agreed)
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


def how(claim: Mapping[Any, Any]) -> tuple[str, str]:
    """The command that would answer it, and what it costs where that is known."""
    answer = claim["answer"]
    if answer.startswith("python"):
        return found_runs.needs(answer) + found_runs.command(answer), "minutes, where the device is"
    name, _, label = answer.partition("/")
    wanted = [label, *(claim["argument"].split() if claim["metric"] == "top1 difference" else [])]
    runs = [run for run in found_runs.planned(name) if any(found_runs.named(run.label, one) for one in wanted)]
    hours = [estimate.gpu_hours(run.config, REPOSITORY / "results" / "bench") for run in runs]
    known = [h[0] for h in hours if h is not None]
    cost = f"about {sum(known):,.0f} GPU-hours" if len(known) == len(runs) else "GPU-hours: no step was timed on a GPU"
    return f"{found_runs.LAUNCH}{name} --only {' '.join(sorted({run.label for run in runs}))}", cost


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """Claims by kind (rows) and verdict (columns), those that need no run and those that do with a sum each, then all;
    what ``OTHERS`` has stands below the sum and is not in it."""
    counts = pd.crosstab(found["kind"], found["verdict"])
    counts = counts.reindex(index=[*KINDS, OTHERS], columns=VERDICTS, fill_value=0)
    counts["all"] = counts.sum(axis=1)
    for name, kinds in (*SUMS.items(), ("all", KINDS)):
        counts.loc[name] = counts.loc[list(kinds)].sum()
    return counts.loc[[*COMPUTED, *list(SUMS)[:1], *TRAINED, *list(SUMS)[1:], "all", OTHERS]]


def table(found: pd.DataFrame) -> Table:
    """``summary`` for print, without verdicts that nothing has."""
    counts = summary(found)
    counts = counts.loc[:, (counts != 0).any()]
    shown = (Column(name, SHORT.get(name, name.capitalize()), number(0)) for name in map(str, counts))
    rows = counts.rename_axis("kind").reset_index()
    sums = {OTHERS: f"({OTHERS})", **{name: f"= {name}" for name in (*SUMS, "all")}}
    rows["kind"] = rows["kind"].replace(sums)
    return Table("Verdicts by kind of claim", (words("kind", "Kind"), *shown), (Panel("Number of claims", rows),))


def contradictions(found: pd.DataFrame, others: bool = False) -> Iterator[str]:
    """One line for each contradicted claim of HiAP's paper, or of the rows that it prints of ``others``."""
    found = found[(found["kind"] == OTHERS) == others]
    for row in found[found["verdict"] == "contradicted"].to_dict("records"):
        unit = f" {row['unit']}" if row["unit"] else ""
        numbers = f" (claimed {row['direction']}{row['value']:g}, found {row['found']:.4g}{unit})"
        yield f"{row['id']}: {row['claim']}{'' if math.isnan(row['value']) else numbers}"
