"""What to use: accuracy against the training that it takes, per budget, from none to ten epochs.

Every network of a pair at one target is a candidate, whatever made it; on the frontier is whoever nobody beats with
less training.
"""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd

from analysis.records import names
from analysis.records.results import Results
from analysis.studies import cuts, epochs, evidence, paired

COLUMNS = ("target", "label", "title", "n", "epochs", "train_macs", "top1", "low", "high", "frontier")


def candidates(runs: pd.DataFrame, least: int = 1) -> pd.DataFrame:
    """``COLUMNS``: each label with a target, means over its seeds (``least`` or more of them), by target and cost.
    ``runs``: ``evidence.load`` of a pair's grids, trained and untrained, with ``title``."""
    rows = []
    for (target, label, title), group in runs.dropna(subset="target").groupby(["target", "label", "title"], sort=False):
        if len(group) < least:
            continue
        found = paired.accuracy(group)
        rows.append((target, label, title, len(group), group["epochs"].mean(), group["train_macs"].mean(), *found[:3]))
    numbers = dict.fromkeys(("target", "epochs", "train_macs", "top1", "low", "high"), float)
    table = pd.DataFrame(rows, columns=list(COLUMNS[:-1])).astype(numbers)
    table = table.sort_values(["target", "train_macs", "top1"], ascending=[False, True, False], kind="stable")
    best = table.groupby("target")["top1"].cummax().groupby(table["target"]).shift(fill_value=float("-inf"))
    return table.assign(frontier=table["top1"] > best).reset_index(drop=True)


def recommended(table: pd.DataFrame, tmacs: float) -> pd.DataFrame:
    """Of each target the best candidate that takes at most so many TMACs of training."""
    within = table[table["train_macs"] <= tmacs * 1e12]
    return within.loc[within.groupby("target")["top1"].idxmax()].sort_values("target", ascending=False)


NETWORKS = 3  # at least, for a row


def source(results: Results) -> str:
    """The grid whose trained networks count: the study's, or the first look as long as that has too few seeds."""
    pair = evidence.SECOND
    return pair.grid if len(evidence.whole(evidence.load(results, pair.grid), pair)) >= NETWORKS else epochs.GRID


def load(results: Results) -> pd.DataFrame:
    """All networks with a target that were made of the same dense networks: trained (``source``), or cut and corrected
    (``cifar10_cut``)."""
    runs, bare = evidence.load(results, source(results)), cuts.load(results)
    trained = runs[runs["target"].notna() & ~names.controls(runs["title"])]
    rows = pd.concat([trained, bare[bare["corrected"]]], ignore_index=True)
    return rows[rows["seed"].isin(_alike(runs, paired.load(results, cuts.GRID)))]


def by_budget(results: Results, pair: evidence.Pair = evidence.SECOND) -> pd.DataFrame:
    """Top-1 at every budget: the methods of the primary tests and HiAP with least squares, trained, and of the same
    dense networks what the best ranking has without training. ``ranking``, ``title``, ``target``, ``epochs``, ``n``,
    ``top1``, ``low``, ``high``."""
    runs, bare = evidence.load(results, pair.grid), cuts.load(results)
    shown = [evidence.REFERENCE, f"{evidence.REFERENCE}-ls", *dict.fromkeys(name for _, name in pair.primary)]
    rows = evidence.accuracies(evidence.judged_seeds(runs, pair)).rename(columns={"variant": "ranking"})
    rows = rows[rows["ranking"].isin(shown) & rows["target"].notna()]
    bare = bare[bare["corrected"] & bare["seed"].isin(_alike(runs, paired.load(results, cuts.GRID)))]
    cut = cuts.accuracies(bare).sort_values("top1", ascending=False)
    cut = cut[cut["ranking"] == cut["ranking"].iloc[0]] if len(cut) else cut
    columns = ["ranking", "title", "target", "epochs", "n", "top1", "low", "high"]
    return pd.concat([rows[columns], cut.assign(epochs=0)[columns]], ignore_index=True)


def budgets(results: Results, pair: evidence.Pair = evidence.SECOND) -> str:
    """``by_budget`` as Markdown: a line a method, a column a budget."""
    found = by_budget(results, pair)
    if found.empty:
        return names.nothing(pair.grid)
    targets = sorted(found["target"].unique(), reverse=True)
    lines = [["top-1, % (networks)", *(f"{100 * target:.0f} %" for target in targets)]]
    lines += [[":---", *["---:"] * len(targets)]]
    for (title, trained), own in found.groupby(["title", "epochs"], sort=False):
        at = own.set_index("target")
        cells = [f"{at['top1'][t]:.1f} ({at['n'][t]})" if t in at.index else "-" for t in targets]
        lines.append([f"{title}, untrained" if trained == 0 else str(title), *cells])
    return names.table(lines)


def _alike(runs: pd.DataFrame, others: pd.DataFrame) -> list[int]:
    """Seeds whose dense networks give the same answers in both: one seed in another precision is another network."""
    dense, other = (rows[rows["label"] == "dense"].set_index("seed")["hits"] for rows in (runs, others))
    both = set(dense.index) & set(other.index)
    return [seed for seed in both if dense[seed] is not None and np.array_equal(dense[seed], other[seed])]


def lead(results: Results) -> str:
    """What the best cut leaves without any training beside HiAP with a target after its epochs, at every budget that
    has both, of the same dense networks."""
    found = candidates(load(results), NETWORKS)
    bare, hiap = found[found["epochs"] == 0], found[found["title"] == names.TARGETED]
    best = bare.loc[bare.groupby("target")["top1"].idxmax()]
    both = best.merge(hiap, on="target", suffixes=("", "_hiap")).sort_values("target", ascending=False)
    if both.empty:
        return names.nothing(source(results))
    cut, trained = (names.listed([f"{top1:.1f} %" for top1 in both[column]]) for column in ("top1", "top1_hiap"))
    least, most = (f"{both[column].max() / 1e12:.1f} TMACs" for column in ("train_macs", "train_macs_hiap"))
    how = names.listed(list(dict.fromkeys(both["title"])))
    shares = names.listed([f"{100 * target:.0f}" for target in both["target"]])
    text = (
        f"On CIFAR-10 (JPEG copies), of the same {names.count(both['n'])} dense networks: at {shares} % of the MACs a "
        "cut without any training "
        f"({how}; {least} at most) leaves {cut}; {names.TARGETED} after {names.count(both['epochs_hiap'])} epochs "
        f"({most}) {trained}. Exploratory."
    )
    return textwrap.fill(text, width=125)


def table(results: Results) -> str:
    """Markdown: of each target who is on the frontier, cheapest first."""
    grid, runs = source(results), load(results)
    found = candidates(runs, NETWORKS)
    if found.empty:
        return names.nothing(grid)
    lines = [
        "| MACs left | TMACs | epochs | what | top-1, % |",
        "| ---: | ---: | ---: | :--- | ---: |",
    ]
    for row in found[found["frontier"]].to_dict("records"):
        left, cost = f"{100 * row['target']:.0f} %", f"{row['train_macs'] / 1e12:.1f}"
        ends = "" if pd.isna(row["low"]) else f" [{row['low']:.1f}, {row['high']:.1f}]"
        lines.append(f"| {left} | {cost} | {row['epochs']:.0f} | {row['title']} | {row['top1']:.1f}{ends} |")
    trained = sorted(found.loc[found["epochs"] > 0, "target"].unique(), reverse=True)
    note = (
        f"Means of {names.count(found['n'])} networks with 95 % intervals, dense "
        f"{cuts.dense(results, grid, runs['seed']):.1f} %; the best of {len(found)} candidates. Trained: at "
        f"{names.listed([f'{100 * target:.0f}' for target in trained])} % alone."
    )
    return "\n".join([*lines, "", textwrap.fill(note, width=125)])
