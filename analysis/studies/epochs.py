"""What training adds behind a cut: grid ``cifar10_first`` and, of the same networks, the untrained cuts of
``cuts.GRID``. Exploratory: nothing of it was tuned on its images.

A label is '<ranking>-<what goes, in %>', with '-one' before the share for one epoch. Differences are from HiAP with a
target.
"""

from __future__ import annotations

import re
import textwrap

import numpy as np
import pandas as pd

from analysis.records import names
from analysis.records.results import Results
from analysis.studies import cuts, knobs, paired

GRID, REFERENCE = "cifar10_first", "hiap"
COLUMNS = ("ranking", "title", "target", "epochs", "n", "train_macs", "top1", "low", "high",
           "difference", "difference_low", "difference_high")  # fmt: skip


def load(results: Results, grid: str = GRID, untrained: str = cuts.GRID, everywhere: bool = False) -> pd.DataFrame:
    """``paired.load`` of the trained runs with a target and, at the same targets (``everywhere``: at all) from the same
    dense networks, of the corrected cuts without training (``epochs`` 0), with ``ranking`` and ``title``."""
    trained = paired.load(results, grid)
    trained = trained[trained["target"].notna()]
    ranking = trained["label"].str.replace(re.compile(r"(-one)?-\d+$"), "", regex=True)
    titles = [names.TARGETED if name == REFERENCE else cuts.title(name) for name in ranking]
    trained = trained.assign(ranking=ranking, title=titles)
    bare = cuts.load(results, untrained)
    same = bare["corrected"] & bare["seed"].isin(trained["seed"])
    same &= everywhere | bare["target"].isin(trained["target"])
    return pd.concat([trained, bare[same & bare["ranking"].isin(ranking)]], ignore_index=True)


def accuracies(runs: pd.DataFrame) -> pd.DataFrame:
    """Per ranking, target and epochs: mean top-1 over the networks with its interval, what training took, and the
    difference from HiAP at the same target after as many epochs, image by image, where there is one: ``COLUMNS``."""
    rows = []
    for (ranking, title, target, epochs), own in runs.groupby(["ranking", "title", "target", "epochs"], sort=False):
        found = paired.accuracy(own)
        alike = (runs["ranking"] == REFERENCE) & (runs["target"] == target) & (runs["epochs"] == epochs)
        gap = (np.nan, np.nan, np.nan)
        if ranking != REFERENCE and alike.any():
            gap = paired.difference(paired.compare(own, runs[alike]), own, runs[alike])[:3]
        row = (ranking, title, target, epochs, len(own), own["train_macs"].mean())
        rows.append((*row, found.mean, found.low, found.high, *gap))
    return pd.DataFrame(rows, columns=list(COLUMNS)).sort_values(["target", "ranking", "epochs"], ignore_index=True)


def table(results: Results) -> str:
    """Markdown: top-1 of every method after so many epochs, best after the longest training first."""
    runs = load(results)
    if not (runs["ranking"] == REFERENCE).any():
        return names.nothing(GRID)
    found = accuracies(runs)
    lengths = sorted(int(n) for n in found["epochs"].unique())
    head = [{0: "no training", 1: "1 epoch"}.get(n, f"{n} epochs") for n in lengths]
    lines = [f"| top-1, %, at 50 % of the MACs | {' | '.join(head)} |", "| :--- |" + " ---: |" * len(lengths)]
    last = found[found["epochs"] == lengths[-1]].sort_values("top1", ascending=False)
    for ranking, title in zip(last["ranking"], last["title"], strict=True):
        own = found[found["ranking"] == ranking].set_index("epochs")
        lines.append(f"| {title} | {' | '.join(_cell(own, n) for n in lengths)} |")
    return "\n".join([*lines, "", _note(results, runs, found)])


def _note(results: Results, runs: pd.DataFrame, found: pd.DataFrame) -> str:
    dense, networks, images = cuts.dense(results, GRID), names.count(found["n"]), runs["test_images"].iloc[0]
    text = (
        f"Dense: {dense:.1f} %. {networks} networks, {images:,.0f} test images. In brackets: minus HiAP + target "
        "(ours) after as many epochs, in points, with an interval of 95 % over networks and images; and the TMACs of "
        f"training, search and teacher. All but HiAP have least squares behind the cut; {_how(results)}."
    )
    return textwrap.fill(text, width=125)


def _cell(own: pd.DataFrame, epochs: float) -> str:
    if epochs not in own.index:
        return "-"
    row = own.loc[epochs]
    cost = f"{row['train_macs'] / 1e12:.1f} TMACs"
    if pd.isna(row["difference"]):
        return f"{row['top1']:.1f} ({cost})"
    ends = "" if pd.isna(row["difference_low"]) else f", {row['difference_low']:+.1f} to {row['difference_high']:+.1f}"
    return f"{row['top1']:.1f} ({row['difference']:+.1f}{ends}; {cost})"


def _how(results: Results) -> str:
    """What has to be said of the setting: nothing was tuned, or how far from it tuning came out since then."""
    tuned, records = knobs.of_grid(results), results.finished(GRID)
    cuts_ = {record.config.name for record in records} - {REFERENCE}
    rates = tuned.loc[tuned["taken"] & (tuned["knob"] == knobs.RATE) & tuned["method"].isin(cuts_), "value"]
    used = {record.config.optim.lr for record in records if record.config.name in set(tuned["method"])}
    if rates.nunique() != 1 or len(used) != 1 or rates.iloc[0] in used:
        return "untuned, exploratory"
    whose = names.listed([names.METHODS[name] for name in sorted(cuts_ & set(tuned["method"]))])
    return f"exploratory, cuts at {used.pop() / rates.iloc[0]:g} times the rate that tuning then took for {whose}"
