"""The study at the paper's shape, grid ``evidence``: its runs as results/PROTOCOL.md judges them.

Six differences are primary and share one Holm correction; every other one has an interval and no verdict.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.records import names, published
from analysis.records.results import Results, topology
from analysis.stats.seeds import LEVEL, holm
from analysis.studies import paired
from analysis.studies.comparisons import REFERENCE

GRID, TUNING = "evidence", "tune"


class Pair(NamedTuple):
    """One pair of data and network: its ``grid``, the grids of its ``tuning`` and of its ``untrained`` cuts, ``data``
    and ``network`` as a reader knows them, the ``primary`` tests of its protocol (target, variant), and what has to be
    said wherever its numbers stand (``note``)."""

    grid: str
    data: str
    network: str
    tuning: str = ""
    untrained: str = ""
    primary: tuple[tuple[float, str], ...] = ()
    note: str = ""


# Of the protocol: HiAP at these targets against these variants. The family is these six, whatever has been run.
PRIMARY = tuple((target, against) for target in (0.5, 0.35) for against in ("vit_slim", "taylor", "uniform-noise"))
FIRST = Pair(GRID, "Fashion-MNIST at 56 pixels", "ViT-S/14, 17 tokens", TUNING, "after_cut", PRIMARY)
PAIRS = (FIRST,)  # another study is one more line here
CONTROLS = ("uniform-noise",)  # no method that anybody would choose: what gate noise alone does
FINETUNED, LONGER = "-finetuned", "-long-"
ASIDE = (FINETUNED, "-long", "-other", "-lower-rate")  # tables have them, the figure of all methods does not

AGAINST_COLUMNS = (
    "target", "variant", "title", "method", "n", "difference", "low", "high", "p", "p_holm", "primary", "decided",
    "improvement", "improvement_low", "improvement_high", "equivalent",
)  # fmt: skip


def load(results: Results, grid: str = GRID) -> pd.DataFrame:
    """``paired.load`` with ``variant`` and ``title``."""
    runs = paired.load(results, grid)
    # A network that is fine-tuned starts from a pruned one; its share is still of the dense network's MACs.
    dense = runs["start"].map(runs.set_index("run_id")["macs_dense"]).fillna(runs["macs_dense"])
    rows = names.with_variants(runs.assign(macs_dense=dense, macs_share=runs["macs"] / dense))
    tuned = rows["variant"].astype(str).str.contains(FINETUNED)  # by method dense
    return rows.assign(title=rows["title"].where(~tuned, [names.title(name, "hiap") for name in rows["variant"]]))


def accuracies(runs: pd.DataFrame) -> pd.DataFrame:
    """Per label the means over seeds of what was counted and measured; ``low``, ``high``: the two-way interval of
    top-1, missing for one seed or without knowing which images were right."""
    rows = []
    for (label, variant, title, method), group in runs.groupby(["label", "variant", "title", "method"], sort=False):
        row: dict[str, Any] = {"label": label, "variant": variant, "title": title, "method": method}
        row |= {"target": group["target"].iloc[0], "n": len(group)}
        row |= {key: group[key].mean() for key in ("macs_share", "params", "epochs", "train_macs", "top1")}
        found = paired.accuracy(group)
        rows.append({**row, "low": found.low, "high": found.high})
    columns = ["label", "variant", "title", "method", "target", "n", "macs_share", "params", "epochs", "train_macs"]
    return pd.DataFrame(rows, columns=[*columns, "top1", "low", "high"])


def plotted(runs: pd.DataFrame) -> pd.DataFrame:
    """``accuracies`` of the runs that are not ``ASIDE``."""
    return accuracies(runs[~aside(runs["label"])])


def aside(labels: pd.Series) -> pd.Series:
    """Which labels or variants are ``ASIDE``."""
    return labels.astype(str).str.contains("|".join(ASIDE))


def against(runs: pd.DataFrame, pair: Pair = FIRST) -> pd.DataFrame:
    """HiAP minus every other variant at the same target; columns ``AGAINST_COLUMNS``. Only what can be compared image
    by image has a row. ``p_holm`` and ``decided`` are the primary tests' alone, over those of this pair."""
    return judged(differences(runs, pair), len(pair.primary))


def differences(runs: pd.DataFrame, pair: Pair = FIRST) -> pd.DataFrame:
    """``against`` before anything is judged."""
    rows = []
    for target, group in runs.dropna(subset="target").groupby("target", sort=True):
        reference = group[group["variant"] == REFERENCE]
        for (variant, title, method), own in group.groupby(["variant", "title", "method"], sort=False):
            found = paired.compare(reference, own) if variant != REFERENCE else None
            if found is not None:
                row = {"target": target, "variant": variant, "title": title, "method": method}
                rows.append({**row, "primary": (target, variant) in pair.primary, **paired.flat(found)})
    return pd.DataFrame(rows, columns=list(AGAINST_COLUMNS))


def judged(rows: pd.DataFrame, family: int) -> pd.DataFrame:
    """Holm over the primary tests among ``rows``, which may be several pairs' ``differences``. One of the ``family``
    that cannot be made yet still counts, as one that shows nothing."""
    primary = rows["primary"].astype(bool)
    p = rows.loc[primary, "p"].to_numpy(dtype=float)
    missing = np.ones(max(0, family - len(p)))
    rows.loc[primary, "p_holm"] = holm(np.concatenate([p, missing]))[: len(p)]
    decided = (rows["p_holm"].astype(float) < 1 - LEVEL).astype(object)
    return rows.assign(decided=decided.where(primary, None))


def finetuning(runs: pd.DataFrame) -> pd.DataFrame:
    """What three more epochs add to every network that HiAP left: ``label`` of the network, ``title``, ``n``,
    ``difference``, ``low``, ``high``."""
    rows = []
    for label in (name for name in dict.fromkeys(runs["label"]) if FINETUNED in name):
        start = label.replace(FINETUNED, "")
        found = paired.pair(runs, label, start)
        if found is not None:
            row = runs[runs["label"] == start].iloc[0]
            rows.append({"label": start, "title": row["title"], "target": row["target"], **paired.flat(found)})
    columns = ["label", "title", "target", "n", "difference", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def targets(runs: pd.DataFrame) -> list[float]:
    """The budgets of the reference, the highest first."""
    return sorted(map(float, runs.loc[runs["variant"] == REFERENCE, "target"].dropna().unique()), reverse=True)


def settled(runs: pd.DataFrame) -> pd.DataFrame:
    """HiAP settled minus HiAP at each budget: ``target``, ``n``, ``difference``, ``low``, ``high``, and ``bill``: its
    training MACs over HiAP's."""
    rows, bills = [], runs.groupby("label")["train_macs"].mean()
    for target in targets(runs):
        other, label = (f"{name}-{100 * (1 - target):.0f}" for name in (REFERENCE, f"{REFERENCE}-settled"))
        if found := paired.pair(runs, label, other):
            rows.append({"target": target, "bill": bills[label] / bills[other], **paired.flat(found)})
    return pd.DataFrame(rows, columns=["target", "n", "difference", "low", "high", "bill"])


def longer(runs: pd.DataFrame) -> pd.DataFrame:
    """HiAP minus every ``method`` that has twice the epochs too, at the same ``target``: ``n``, ``difference``,
    ``low``, ``high``."""
    rows = []
    for other in (name for name in dict.fromkeys(runs["label"]) if LONGER in name):
        method, _, cut = other.partition(LONGER)
        if method != REFERENCE and (found := paired.pair(runs, f"{REFERENCE}{LONGER}{cut}", other)):
            rows.append({"method": method, "target": 1 - int(cut) / 100, **paired.flat(found)})
    return pd.DataFrame(rows, columns=["method", "target", "n", "difference", "low", "high"])


def shrunk(runs: pd.DataFrame) -> pd.DataFrame:
    """Grid ``shrink``: each way to shrink while it trains ('fast-shrunk-10') beside the phase that does not ('fast'),
    on the ``n`` seeds that have both. ``label``, means of ``top1`` and ``without``, ``bill`` (training MACs over those
    without) with its range over seeds, and ``difference`` of top-1 with ``low``, ``high`` where two seeds or more allow
    an interval."""
    rows = []
    tops, bills = (runs.pivot_table(index="seed", columns="label", values=key) for key in ("top1", "train_macs"))
    for label in (name for name in tops.columns if "-" in name and name.split("-")[0] in tops.columns):
        start = label.split("-")[0]
        both = tops[[label, start]].dropna()
        ratios = (bills[label] / bills[start])[both.index]
        top1, without = both[label].mean(), both[start].mean()
        row = {"label": label, "n": len(both), "top1": top1, "without": without}
        row |= {"bill": ratios.mean(), "bill_low": ratios.min(), "bill_high": ratios.max()}
        pair = [runs[runs["label"] == name] for name in (label, start)]
        ends = paired.difference(paired.compare(*pair), *pair)
        rows.append({**row, "difference": ends.mean, "low": ends.low, "high": ends.high})
    columns = ["label", "n", "top1", "without", "bill", "bill_low", "bill_high", "difference", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def priced(runs: pd.DataFrame) -> pd.DataFrame:
    """Grid ``latency``: gates that pay in time, or in the MACs that a unit saves ('physical'), minus gates that pay by
    the paper's prices, at equal predicted time. ``label``, ``n``, means of ``top1`` and ``macs_share`` over all seeds,
    and over the ``paired`` ones ``difference``, ``low``, ``high`` of top-1."""
    rows, means = [], runs.groupby("label")[["top1", "macs_share"]].mean()
    for label in means.index:
        ledger, _, cut = label.partition("-")
        found = paired.pair(runs, label, f"macs-{cut}") if ledger in ("time", "physical") else None
        ends = (found.difference.n, *found.difference[:3]) if found else (0, np.nan, np.nan, np.nan)
        own = {"label": label, "n": int((runs["label"] == label).sum()), **dict(means.loc[label])}
        rows.append({**own, **dict(zip(("paired", "difference", "low", "high"), ends, strict=True))})
    columns = ["label", "n", "top1", "macs_share", "paired", "difference", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def blocks(results: Results, labels: list[str], grid: str = GRID) -> pd.DataFrame:
    """What is left of each block: means over seeds of ``heads``, ``dims`` per head left and ``neurons`` of our
    ``labels``, then the last epoch of the paper's Figs. 5 to 9, a different setting; ``network``, ``n``, ``block``."""
    shapes = [
        topology(record).assign(label=record.label, seed=record.seed)
        for record in results.finished(grid)
        if record.label in labels
    ]
    rows = []
    if shapes:
        found = pd.concat(shapes)
        found["dims"] = [np.mean(kept) if kept else np.nan for kept in found["head_dims"]]
        means = found.groupby(["label", "block"])[["heads", "dims", "neurons"]].mean()
        counts = found.groupby("label")["seed"].nunique()
        for label in (name for name in labels if name in counts):
            rows.append(means.loc[label].reset_index().assign(network=label, n=counts[label]))
    for figure in published.HEAT_MAPS:
        last = published.last_state(figure)[["block", "heads", "neurons"]]
        rows.append(last.assign(network=f"Fig. {figure}", n=1, dims=np.nan))
    columns = ["network", "n", "block", "heads", "dims", "neurons"]
    return pd.concat([frame[columns] for frame in rows], ignore_index=True)


def last_ffns(results: Results, grid: str = GRID) -> tuple[int, int]:
    """Of how many networks of HiAP with a target the last block's FFN is gone, and how many there are; no heads' own
    budget is among them, where nothing else was cut."""
    runs = results.runs(grid)
    aimed = set(runs.loc[[label in aimed_labels(runs) for label in runs["label"]], "run_id"])
    shapes = [record.shape for record in results.finished(grid) if record.run_id in aimed and record.shape]
    return sum(shape[-1].neurons == 0 for shape in shapes), len(shapes)


def aimed_labels(runs: pd.DataFrame) -> list[str]:
    """HiAP's labels with a target that all methods share: those that the deepest-cutting baseline has too."""
    shared = set(runs.loc[runs["method"] == "vit_slim", "target"].dropna())
    rows = runs[runs["target"].isin(shared) & (runs["method"] == REFERENCE)].sort_values("target", ascending=False)
    plain = [names.variant(*row) == REFERENCE for row in zip(rows["label"], rows["target"], strict=True)]
    return list(dict.fromkeys(rows.loc[plain, "label"]))


def machines(runs: pd.DataFrame) -> pd.DataFrame:
    """Types of CPU of each seed, which should be one: ``seed``, ``runs``, ``device``."""
    groups = runs.groupby("seed")["device_name"]
    return pd.DataFrame({"runs": groups.size(), "device": groups.agg(names.machines)}).reset_index()


def tuned(runs: pd.DataFrame) -> pd.DataFrame:
    """Grid ``tune``: its configurations by validation top-1 within their method (``settled`` is one of its own), and
    which is ``taken``: the highest, of equal ones that with the lower loss."""
    runs = runs[runs["method"] != "dense"]
    names = runs["method"].where(~runs["label"].str.startswith("settled"), "hiap-settled")
    rows = runs.assign(tuned=names).sort_values(["tuned", "top1", "loss"], ascending=[True, False, True])
    rows["taken"] = ~rows.duplicated("tuned")
    return rows[["tuned", "label", "top1", "loss", "macs_share", "taken"]].reset_index(drop=True)
