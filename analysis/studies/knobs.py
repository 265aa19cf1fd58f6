"""Tuning one knob after the other: grids ``cifar10_tune`` and ``imagenette_tune``, by results/PROTOCOL.md, second part.

On the former, at two budgets, of each method first a knob of its own, then the weights' rate, each from the middle of
its range; on the latter, at one, the rate alone, around the one that the former took. A value's score is its mean
top-1 over the budgets; the best is taken where it beats the middle by ``MARGIN`` points.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter

import numpy as np
import pandas as pd

from analysis.records import names
from analysis.records.results import Results
from analysis.stats import seeds
from analysis.studies import paired

GRID, RANKED, AGAIN = "cifar10_tune", "cifar10_ranked", "imagenette_tune"
GRIDS = (GRID, AGAIN)
RATE = "optim.lr"
KNOBS = {"hiap": "gates.lr", "obs": "budget.rounds", "taylor": "budget.rounds", "vit_slim": "search.w_attn"}
MIDDLE = {"gates.lr": 0.2, "budget.rounds": 1, "search.w_attn": 6e-4, RATE: 1e-4}
TARGETS, AGAIN_TARGETS = (0.5, 0.35), (0.35,)
MARGIN = 0.5  # points of top-1
FEWEST = 3  # rates around the one that the former grid took
WORDS = {
    "gates.lr": "rate of the gates",
    "budget.rounds": "rounds",
    "search.w_attn": "weight of its penalty (heads)",
    RATE: "rate of the weights",
}
COLUMNS = ("method", "title", "knob", "value", "top1_50", "top1_35", "score", "taken", "edge")


def load(results: Results, grid: str = GRID) -> pd.DataFrame:
    """The tuned runs on validation images: ``method``, ``target``, ``top1`` and, of each, its method's own knob
    (``own``), the weights' rate (``rate``) and the ``seed``."""
    rows = []
    for record in results.finished(grid):
        method, score = record.config.name, record.metrics.extracted
        if method in KNOBS and score is not None:
            own, rate = (float(attrgetter(key)(record.config)) for key in (KNOBS[method], RATE))
            rows.append((method, record.config.budget.target_macs, own, rate, record.seed, score.top1))
    return pd.DataFrame(rows, columns=["method", "target", "own", "rate", "seed", "top1"])


def of_grid(results: Results, grid: str = GRID) -> pd.DataFrame:
    """``tried`` of a tuning grid: of ``AGAIN`` around the rates that ``GRID`` took."""
    if grid == GRID:
        return tried(load(results, grid))
    before = of_grid(results).query("taken and knob == @RATE")
    return tried(load(results, grid), dict(zip(before["method"], before["value"], strict=True)))


def tried(runs: pd.DataFrame, rates: Mapping[str, float] | None = None) -> pd.DataFrame:
    """Every value of every knob, ``COLUMNS``: top-1 at each budget (missing: not run), their mean, which is ``taken``,
    and whether that one ends its range (``edge``; two values have no inside). ``rates``: the middle of each method's,
    where the weights' rate alone was tuned."""
    found = []
    for method, own in KNOBS.items():
        mine = runs[runs["method"] == method]
        if rates is not None:
            own_rates = _scores(mine, "rate", RATE, rates.get(method, MIDDLE[RATE]), AGAIN_TARGETS)
            whole = len(own_rates.dropna(subset="score")) >= FEWEST  # till then nothing is taken
            found.append(
                own_rates.assign(method=method, taken=own_rates["taken"] & whole, edge=own_rates["edge"] & whole)
            )
            continue
        first = _scores(mine[mine["rate"] == MIDDLE[RATE]], "own", own, MIDDLE[own])
        found.append(first.assign(method=method))
        if first["taken"].any():
            chosen = first.loc[first["taken"], "value"].item()
            found.append(_scores(mine[mine["own"] == chosen], "rate", RATE, MIDDLE[RATE]).assign(method=method))
    rows = pd.concat(found, ignore_index=True)
    titles = [names.METHODS[name] if name != "hiap" else names.TARGETED for name in rows["method"]]
    return rows.assign(title=titles)[list(COLUMNS)]


def _scores(
    runs: pd.DataFrame, column: str, knob: str, middle: float, targets: tuple[float, ...] = TARGETS
) -> pd.DataFrame:
    means = {target: seeds.mean_on_common(own, column) for target, own in runs.groupby("target")}
    at = pd.DataFrame(means, index=sorted(runs[column].unique())).reindex(columns=list(TARGETS))
    rows = pd.DataFrame({"knob": knob, "value": at.index, "top1_50": at[0.5].array, "top1_35": at[0.35].array})
    rows["score"] = at[list(targets)].mean(axis=1, skipna=False).array
    best = take(dict(zip(rows["value"], rows["score"], strict=True)), middle)
    return rows.assign(taken=rows["value"] == best, edge=(rows["value"] == best) & rows["value"].isin(ends(at.index)))


def ends(values: Iterable[float]) -> list[float]:
    """The lowest and the highest of what was tried; none where fewer than three were, which have no inside."""
    tried = sorted(set(values))
    return [tried[0], tried[-1]] if len(tried) > 2 else []


def take(scores: dict[float, float], middle: float) -> float:
    """The value with the highest score, unless ``middle`` is within ``MARGIN`` of it; NaN without any score."""
    known = {value: score for value, score in scores.items() if not np.isnan(score)}
    if not known:
        return np.nan
    best = max(known, key=known.__getitem__)
    return middle if middle in known and known[best] - known[middle] <= MARGIN else best


def table(results: Results, grid: str = GRID) -> str:
    """Markdown: every value tried, its validation top-1 at each budget that was run, and which were taken."""
    if load(results, grid).empty:
        return names.nothing(grid)
    rows = of_grid(results, grid)
    scores = {"top1_50": "top-1 at 50 %", "top1_35": "top-1 at 35 %", "score": "mean"}
    scores = {column: head for column, head in scores.items() if grid == GRID or column == "top1_35"}
    lines = [
        ["method", "knob", "value", *scores.values(), "taken"],
        [":---", ":---", *["---:"] * (1 + len(scores)), ":---"],
    ]
    for row in rows.to_dict("records"):
        shown = [_shown(row[column], 2 if column == "score" else 1) for column in scores]
        mark = "yes, at the edge" if row["edge"] else "yes" if row["taken"] else ""
        lines.append([row["title"], WORDS[row["knob"]], f"{row['value']:g}", *shown, mark])
    return f"{names.table(lines)}\n\n{textwrap.fill(sentence(results, grid), 125)}"


def _shown(value: float, digits: int) -> str:
    return "-" if np.isnan(value) else f"{value:.{digits}f}"


def sentence(results: Results, grid: str = GRID) -> str:
    """What was taken of each method, and what of it ends its range."""
    rows = of_grid(results, grid)
    taken = rows[rows["taken"]]
    if taken.empty:
        return "Nothing is tuned yet."
    values = [f"{WORDS[key]} {value:g}" for key, value in zip(taken["knob"], taken["value"], strict=True)]
    groups = taken.assign(words=values).groupby("title", sort=False)["words"]
    shown = [f"{title}: {names.listed(list(words))}" for title, words in groups]
    ends = taken.loc[taken["edge"], "title"].nunique()
    said = f"Taken: {'; '.join(shown)}. Of {taken['title'].nunique()} methods {ends or 'none'} takes the end of a range"
    kept = list(_ahead_at_an_end(rows))
    more = f"; less than half a point ahead of the middle, which stays, at an end: {names.listed(kept)}" if kept else ""
    return f"{said}{more}."


def _ahead_at_an_end(rows: pd.DataFrame) -> Iterator[str]:
    """Knobs whose best value ends its range and was not taken."""
    for (title, knob), own in rows.groupby(["title", "knob"], sort=False):
        scored = own.dropna(subset="score").sort_values("score").to_dict("records")
        if scored and not scored[-1]["taken"] and scored[-1]["value"] in ends(own["value"]):
            yield f"{title}, {WORDS[str(knob)]} {scored[-1]['value']:g}"


def ranked(results: Results) -> str:
    """What HiAP gains from gates that start in the order of structured OBS (grid ``RANKED``), on the network, the
    images and with the settings that tuning took."""
    own, plain = paired.load(results, RANKED), paired.load(results, GRID)
    plain = plain[plain["label"].str.startswith(f"hiap-gates{MIDDLE['gates.lr']:g}-")] if len(plain) else plain
    said = []
    for target in TARGETS:
        both = [runs[(runs["target"] == target) & (runs["method"] != "dense")] for runs in (own, plain)]
        if all(len(runs) for runs in both):
            gain = paired.over_images(*both)
            tops = [runs["top1"].item() for runs in both]
            said.append(
                f"{tops[0]:.1f} % at {100 * target:.0f} % of the MACs, where {tops[1]:.1f} % is left by gates that all "
                f"start alike ({gain.mean:+.1f} [{gain.low:+.1f}, {gain.high:+.1f}])"
            )
    if not said:
        return names.nothing(RANKED)
    text = (
        f"Gates that start in the order of structured OBS (`method=hiap_ranked`, ours; exploratory) leave "
        f"{names.listed(said)}; one seed, intervals over its validation images: other seeds may differ by as much."
    )
    return textwrap.fill(text, 125)
