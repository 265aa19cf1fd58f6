"""Networks right after their cut, before any training, on equal footing: grid ``cifar10_cut`` and its like.

A label is '<ranking>-<what goes, in %>' and ends in '-ls' where least squares corrected what is left.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from analysis.records import names
from analysis.records.results import Results
from analysis.studies import paired

GRID, PHOTOGRAPHS, REFERENCE = "cifar10_cut", "imagenette_cut", "obs"
TITLES = {**names.METHODS, **names.VARIANTS, "l1": "l1, all layers"}
COLUMNS = ("ranking", "title", "target", "corrected", "n", "top1", "low", "high")
SECONDS = ("ranking", "title", "target", "n", "top1", "seconds", "least", "most")
PRUNE = "obs_qk_16"  # what ``hiap prune`` does by default
AGAINST = ("ranking", "title", "target", "n", "difference", "low", "high")


def load(results: Results, grid: str = GRID) -> pd.DataFrame:
    """The cut networks of a grid: what ``paired.load`` has, with ``ranking``, ``corrected`` and ``title``."""
    runs = paired.load(results, grid)
    parts = runs["label"].str.extract(re.compile(r"^(?P<ranking>.+)-\d+(?P<corrected>-ls)?$"))
    rows = runs.assign(ranking=parts["ranking"], corrected=parts["corrected"].notna())
    rows = rows[rows["ranking"].notna() & (runs["method"] != "dense")]
    return rows.assign(title=list(map(title, rows["ranking"])))


def title(ranking: str) -> str:
    """A ranking as a reader knows it."""
    return TITLES.get(ranking, ranking)


def dense(results: Results, grid: str = GRID, seeds: Iterable[int] | None = None) -> float:
    """Mean top-1 of the dense networks of these seeds, by default of all that were cut."""
    runs = results.runs(grid)
    whole = runs["label"] == "dense"
    wanted = runs.loc[~whole, "seed"] if seeds is None else seeds
    return float(runs.loc[whole & runs["seed"].isin(wanted), "top1"].mean())


def accuracies(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean top-1 over the seeds of each ranking at each target, corrected or not, with its interval: ``COLUMNS``."""
    rows = []
    for (ranking, title, target, corrected), group in runs.groupby(
        ["ranking", "title", "target", "corrected"], sort=False
    ):
        found = paired.accuracy(group)
        rows.append((ranking, title, target, corrected, found.n, found.mean, found.low, found.high))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def seconds(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean top-1 of each ranking at each target, corrected, and what ranking, cutting and correcting took: mean, least
    and most of the networks whose records have it: ``SECONDS``."""
    timed = runs[runs["corrected"] & runs["pruning_seconds"].notna()]
    rows = []
    for (ranking, title, target), group in timed.groupby(["ranking", "title", "target"], sort=False):
        took = group["pruning_seconds"].astype(float)
        rows.append((ranking, title, target, len(group), group["top1"].mean(), took.mean(), took.min(), took.max()))
    return pd.DataFrame(rows, columns=list(SECONDS))


def against(runs: pd.DataFrame, reference: str = REFERENCE) -> pd.DataFrame:
    """``reference`` minus every other ranking at the same target, both corrected, image by image: ``AGAINST``. Where
    all are of one network the interval is over test images alone."""
    rows, one = [], runs["seed"].nunique() == 1
    for target, group in runs[runs["corrected"]].groupby("target", sort=False):
        mine = group[group["ranking"] == reference]
        for (ranking, title), other in group.groupby(["ranking", "title"], sort=False):
            if ranking != reference and len(mine):
                if one:
                    found = paired.over_images(mine, other)
                else:
                    found = paired.difference(paired.compare(mine, other), mine, other)
                rows.append((ranking, title, target, found.n, found.mean, found.low, found.high))
    return pd.DataFrame(rows, columns=list(AGAINST))


def table(results: Results, grid: str = GRID) -> str:
    """Markdown: top-1 of every ranking with least squares behind the cut, by what is left of the MACs, the best ranking
    first (where most of them are), and in brackets how far it is from ``REFERENCE``."""
    runs = load(results, grid)
    if runs.empty:
        return names.nothing(grid)
    found, ahead = accuracies(runs[runs["corrected"]]), against(runs)
    targets = sorted(found["target"].unique(), reverse=True)
    first = dense(results, grid)
    tops = found.pivot_table(index=["ranking", "title"], columns="target", values="top1")
    corrected = runs[runs["corrected"]]
    seeds = corrected.groupby("ranking")[["seed", "target"]].apply(_seeds)
    uneven = corrected.groupby(["ranking", "target"])["seed"].agg(frozenset).nunique() > 1  # then each row says which
    head = ["top-1, %, with this share of the MACs", *["networks"] * uneven, *(f"{100 * t:.0f} %" for t in targets)]
    lines = [_row(*head), _row("---", *["---:"] * (len(head) - 1))]
    common = max(targets, key=lambda t: tops[t].count())  # where most rankings are
    best = tops.sort_values(common, ascending=False)
    for (ranking, title), row in zip(best.index, best.to_dict("records"), strict=True):
        cells = [_cell(row, ahead[ahead["ranking"] == ranking], target) for target in targets]
        lines.append(_row(str(title), *[seeds[ranking]] * uneven, *cells))
    networks = runs["seed"].nunique()
    of = f"{networks} trainings of one pretrained network" if networks > 1 else "one network"
    test = f"{_precisions(results, grid)}{runs['test_images'].iloc[0]:,.0f} test images"
    over = "networks and images" if networks > 1 else "these images, which says nothing of other networks"
    behind = f"In brackets: this ranking minus structured OBS, in points, with an interval of 95 % over {over}."
    if uneven:
        behind += " Each bracket is of the networks that both have; of three, the interval is Student's, and wide."
    return "\n".join([*lines, "", f"Dense: {first:.1f} % ({of}; {test}). {behind}"])


def _seeds(runs: pd.DataFrame) -> str:
    """How many networks there are, '6', or where targets differ '6, 3 at 67 and 35 %'."""
    counts = runs.groupby("target")["seed"].nunique().sort_index(ascending=False)
    usual = counts.max()
    fewer = [
        f"{count} at {names.listed([f'{100 * float(str(target)):.0f}' for target in own.index])} %"
        for count, own in counts[counts < usual].groupby(counts)
    ]
    return ", ".join([f"{usual}", *fewer[::-1]])


def _precisions(results: Results, grid: str) -> str:
    """'3 in bf16, 3 in fp32; ' where the networks of some seeds are in one and some in the other; else ''."""
    found = Counter({record.seed: record.config.optim.precision for record in results.finished(grid)}.values())
    return ", ".join(f"{found[name]} in {name}" for name in sorted(found)) + "; " if len(found) > 1 else ""


def sentence(results: Results, grid: str = GRID) -> str:
    """What ``hiap prune`` leaves without training, beside Taylor with the same correction and the dense networks, of
    the seeds that have them all."""
    runs, shares = load(results, grid), (0.5, 0.25)
    tops = runs[runs["corrected"] & runs["target"].isin(shares) & runs["ranking"].isin([PRUNE, "taylor"])]
    by_seed = tops.pivot_table(index="seed", columns=["ranking", "target"], values="top1")
    if by_seed.shape[1] < 2 * len(shares) or (both := by_seed.dropna()).empty:
        return names.nothing(grid)
    mean, whole = both.mean(), dense(results, grid, both.index)
    own = " and ".join(f"{mean[PRUNE, t]:.1f} % at {100 * t:.0f} %" for t in shares) + " of the MACs"
    other = " and ".join(f"{mean['taylor', t]:.1f} %" for t in shares)
    data = f"CIFAR-10 (JPEG copies), ViT-S, 56 pixels, {len(both)} networks, dense {whole:.1f} %"
    text = (
        f"Without training (exploratory; {data}), `hiap prune` (widths in multiples of 16) keeps {own}, Taylor (any "
        f"widths, the same least squares) {other}."
    )
    return textwrap.fill(text, width=125)


def _cell(row: Mapping[Any, float], ahead: pd.DataFrame, target: float) -> str:
    if pd.isna(row.get(target)):
        return "-"
    own = ahead[ahead["target"] == target]
    text = f"{row[target]:.1f}"
    if own.empty:
        return text
    gap = own.iloc[0]
    ends = "" if pd.isna(gap["low"]) else f", {-gap['high']:+.1f} to {-gap['low']:+.1f}"
    return f"{text} ({-gap['difference']:+.1f}{ends})"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
