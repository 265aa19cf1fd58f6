"""What answers a claim at laptop scale: ``HERE``, named by ``results/published/claims.csv``, from committed records.
Not the paper's data or hardware, and said so."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.claims.runs import METRICS, Metric, of_record
from analysis.records import bench, published
from analysis.records.results import Results
from analysis.stats import seeds
from analysis.studies import budget, calibrate, evidence, open_points, paired
from hiap.train.record import BlockShape, Record

NAN = float("nan")


class Answer(NamedTuple):
    """``found`` with its interval over ``n`` runs, whether it ``agrees`` with the claim ('yes', 'no' or 'undecided';
    None: as the claim's own value and tolerance say of the interval, or of ``found`` where there is none), its
    ``source``, and the ``runs`` behind it (``run_id``, ``commit``), if any."""

    found: float
    low: float
    high: float
    n: int
    agrees: str | None
    source: str
    runs: pd.DataFrame | None = None


def _side(low: float, high: float, edge: float) -> str:
    """Whether an interval lies above an edge, below it, or across."""
    return "yes" if low >= edge else "no" if high < edge else "undecided"


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def ahead_here(results: Results, argument: str) -> Answer | None:
    """'a b': top-1 of HiAP at b's target minus label b's, on the same seeds and images; by the interval before any
    correction. Grid evidence answers where it has both, a pretrained network of the paper's widths and depth, else
    grid study, a small one."""
    second = argument.split()[1]
    first = f"hiap-{second.rpartition('-')[2]}"
    small, large = (_ahead(results, grid, first, second) for grid in ("study", evidence.GRID))
    if large and small:
        aside = f"in the small network of {small.source} {small.found:.2f} [{small.low:.2f}, {small.high:.2f}]"
        return large._replace(source=f"{large.source}; {aside}")
    return large or small


def _ahead(results: Results, grid: str, first: str, second: str) -> Answer | None:
    runs = evidence.load(results, grid)
    both = runs[runs["label"].isin([first, second])]
    source = f"grid {grid}: {first} (a target, ours), {second}"
    found = paired.pair(both, first, second)
    if found is None:
        return None
    ends = found.difference
    return Answer(*ends, _side(ends.low, ends.high, 0.0), source, both)


def finetuning_here(results: Results, _: str) -> Answer | None:
    """What three more epochs without a teacher add to the networks of the paper's rule; those with a target, ours, are
    named too. The rule's were trained for a few hundred steps, so that what they gain is also what was still missing:
    whatever comes out, the claim stays undecided."""
    runs = evidence.load(results)
    rule, tuned = "hiap-faithful", f"hiap-faithful{evidence.FINETUNED}"
    gained = {row["label"]: row for row in evidence.finetuning(runs).to_dict("records")}
    if rule not in gained:
        return None
    found = gained.pop(rule)
    others = ", ".join(
        f"{label} {row['difference']:+.2f} [{row['low']:.2f}, {row['high']:.2f}]" for label, row in gained.items()
    )
    steps = runs.loc[runs["label"] == rule, "steps"].mean()
    own = f"after {steps:,.0f} steps, undertrained"
    source = f"grid evidence: {tuned} minus {rule}, {own}, without a teacher; with a target, which is ours: {others}"
    mine = runs[runs["label"].isin([rule, tuned])]
    ends = found["difference"], found["low"], found["high"]
    return Answer(*ends, found["n"], "undecided", source, mine)


def cut_qkv_here(results: Results, _: str) -> Answer | None:
    """What it costs in top-1 that rows of Q and K go which no gate had closed, beside gating and cutting V alone."""
    rows = open_points.measured(results)
    row = rows[rows["label"] == "v-cut-qkv"]
    if row.empty:
        return None
    one = row.iloc[0]
    source = "grid a4: top-1 of v-cut-qkv minus v, points; training goes on after no cut, so this is all of the loss"
    ends = one["difference"], one["difference_low"], one["difference_high"]
    return Answer(
        float(ends[0]), float(ends[1]), float(ends[2]), int(one["n"]), "no" if ends[2] < 0 else "undecided", source
    )


def dims_here(results: Results, _: str) -> Answer | None:
    """Share of the heads left that keep half of their value dimensions or fewer."""
    rows = results.runs("study").query("label == 'hiap-faithful'")
    if rows.empty:
        return None
    found = seeds.mean(METRICS["share of narrow heads"](results, "study", rows))
    return Answer(*found, _side(found.low, found.high, 0.5), "grid study: hiap-faithful", rows)


def neurons_of_fig5_here(_: Results, half: str) -> Answer:
    """Mean neurons of the FFNs left in the first or the second half of Fig. 5's blocks, at the last epoch: one split,
    fixed beforehand, because among all of them there is one for nearly every number."""
    neurons = published.last_state(5)["neurons"].to_numpy()
    middle = len(neurons) // 2
    start, end = (0, middle) if half == "first" else (middle, len(neurons))
    part = neurons[start:end]
    source = f"digitised Fig. 5, another of the paper's runs: blocks {start} to {end - 1}"
    return Answer(float(part[part > 0].mean()), NAN, NAN, 0, None, source)


def _at_strengths(results: Results, figures: str, metric: Metric) -> Answer | None:
    """A number of the runs with the paper's rule at the strengths of these figures, in a network of its shape: the mean
    over them, which the claim's own tolerance judges."""
    records, numbers = calibrate.taken(results), [int(figure) for figure in figures.split()]
    if not all(number in records for number in numbers):
        return None
    source = (
        f"grid calibrate: reading {calibrate.TAKEN} at the strengths of Fig. {', '.join(map(str, numbers))}, one seed"
    )
    runs = results.runs(calibrate.GRID)
    mine = runs[runs["label"].isin([records[number].label for number in numbers])]
    values = metric(results, calibrate.GRID, mine)
    return Answer(float(values.mean()), NAN, NAN, len(values), None, source, mine)


def neurons_share_here(results: Results, figure: str) -> Answer | None:
    """Per cent of the dense network's."""
    found = _at_strengths(results, figure, METRICS["neurons"])
    return found and found._replace(found=100 * found.found / calibrate.FULL["neurons"])


def last_ffns_here(results: Results, figures: str) -> Answer | None:
    """The share of the runs in which the last block's FFN is gone."""
    found = _at_strengths(results, figures, of_record(lambda record: _shape(record)[-1].neurons == 0))
    return found and found._replace(agrees=_yes(found.found == 1))


def ffns_empty_here(results: Results, figure: str) -> Answer | None:
    """How many FFNs are gone."""
    gone = of_record(lambda record: sum(block.neurons == 0 for block in _shape(record)))
    found = _at_strengths(results, figure, gone)
    return found and found._replace(agrees=_yes(found.found > 0))


def heads_between_here(results: Results, argument: str) -> Answer | None:
    """As ``heads_between``, after the same share of the training."""
    figure, epochs, low, high = map(int, argument.split())

    def share(record: Record) -> float:
        look = next(look for look in record.gates if look.step * calibrate.COLUMNS >= epochs * look.steps)
        return float(np.mean([low <= heads <= high for heads in look.heads]))

    return _at_strengths(results, str(figure), of_record(share))


def never_empty_here(results: Results, figures: str) -> Answer | None:
    """The share of the runs in which no layer is without heads at the end."""
    whole = of_record(lambda record: all(block.head_dims for block in _shape(record)))
    found = _at_strengths(results, figures, whole)
    return found and found._replace(agrees=_yes(found.found == 1))


def _shape(record: Record) -> list[BlockShape]:
    assert record.shape is not None
    return record.shape


def two_to_one_best_here(results: Results, _: str) -> Answer | None:
    """Largest lead of another ratio's mean over the line between the means of 2:1, within its range."""
    runs = results.runs("ratios").query("method == 'hiap'")
    if runs.empty:
        return None
    means = runs.groupby("label")[["macs_share", "top1"]].mean()
    mine = means.index.str.startswith("2to1")
    line, others = means[mine].sort_values("macs_share"), means[~mine]
    inside = others[others["macs_share"].between(line["macs_share"].iloc[0], line["macs_share"].iloc[-1])]
    lead = (inside["top1"] - np.interp(inside["macs_share"], line["macs_share"], line["top1"])).max()
    source = "grid ratios: largest lead over 2:1, points"
    return Answer(float(lead), NAN, NAN, len(runs), None, source, runs)


def rule_misses_here(results: Results, _: str) -> Answer | None:
    """Extracted minus expected MACs of the paper's rule, per cent of dense: the largest in size."""
    misses, runs = budget.rule_misses(results, "budget"), results.runs("budget")
    return _farthest(misses, "grid budget: rule-*", runs.loc[misses.index])


def budget_misses_here(results: Results, _: str) -> Answer | None:
    runs = results.runs("budget").dropna(subset="target")
    return _farthest(100 * (runs["macs_share"] - runs["target"]), "grid budget: hiap-*; our budget rule", runs)


def _farthest(misses: pd.Series, source: str, runs: pd.DataFrame) -> Answer | None:
    """The miss (% of dense) that is farthest from 0; agrees within half a per cent."""
    if misses.empty:
        return None
    low, high = float(misses.min()), float(misses.max())
    worst = low if -low > high else high
    return Answer(worst, low, high, len(misses), _yes(abs(worst) <= 0.5), source, runs)


def realised_share_here(results: Results, _: str) -> Answer | None:
    """The realised shares of Fig. 5's heads in a DeiT-Small, of every report on a CPU: all runtimes, precisions and
    batches; ``found``: their median."""
    rows = bench.realised(results)
    if rows.empty:
        return None
    of = rows.groupby(["precision", "batch"])["share"].agg(["min", "max"])
    ends = "; ".join(f"{name}, batch {batch}: {low:.2f} to {high:.2f}" for (name, batch), low, high in of.itertuples())
    shares = rows["share"]
    source = f"{rows['report'].nunique()} reports of results/bench, all on CPUs, not an A100: {ends}"
    low, high = float(shares.min()), float(shares.max())
    return Answer(float(shares.median()), low, high, len(shares), _side(low, high, 0.9), source)


HERE: dict[str, Callable[[Results, str], Answer | None]] = {
    "heads_here": lambda results, figure: _at_strengths(results, figure, METRICS["heads"]),
    "neurons_here": lambda results, figure: _at_strengths(results, figure, METRICS["neurons"]),
    **{
        answer.__name__: answer
        for answer in (
            ahead_here, finetuning_here, dims_here, neurons_of_fig5_here, neurons_share_here, last_ffns_here,
            ffns_empty_here, heads_between_here, never_empty_here, two_to_one_best_here, rule_misses_here,
            budget_misses_here, realised_share_here, cut_qkv_here,
        )
    },
}  # fmt: skip
