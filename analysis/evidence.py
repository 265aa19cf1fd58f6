"""The study at the paper's shape, grid ``evidence``: its runs as results/PROTOCOL.md judges them.

Six differences are primary and share one Holm correction; every other one has an interval and no verdict.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import collect, findings, inference, stats, tables
from analysis.tables import Column, Panel, Table, number, signed

GRID, TUNING = "evidence", "tune"
# Of the protocol: HiAP at these targets against these variants. The family is these six, whatever has been run.
PRIMARY = tuple((target, against) for target in (0.5, 0.35) for against in ("vit_slim", "taylor", "uniform-noise"))
FINETUNED = "-finetuned"

AGAINST_COLUMNS = (
    "target", "variant", "title", "method", "n", "difference", "low", "high", "p", "p_holm", "primary", "decided",
    "improvement", "improvement_low", "improvement_high", "equivalent",
)  # fmt: skip


def load(root: str | Path, grid: str = GRID) -> pd.DataFrame:
    """``collect.load`` with ``variant``, ``title``, ``loss`` and ``hits``: which test images the extracted network got
    right, None where a record does not say."""
    runs = collect.load(root, grid)
    scores = {r.run_id: r.metrics.extracted for r in collect.records(root, grid) if r.status == "finished"}
    found = [scores[run_id] for run_id in runs["run_id"]]
    variants = list(map(stats.variant, runs["label"], runs["target"]))
    # A network that is fine-tuned starts from a pruned one; its share is still of the dense network's MACs.
    dense = runs["start"].map(runs.set_index("run_id")["macs_dense"]).fillna(runs["macs_dense"])
    return runs.assign(
        macs_dense=dense,
        macs_share=runs["macs"] / dense,
        variant=variants,
        title=list(map(_title, variants, runs["method"])),
        loss=[score.loss if score else np.nan for score in found],
        hits=pd.Series([score.hits() if score else None for score in found], index=runs.index, dtype=object),
    )


def _title(variant: str, method: str) -> str:
    return collect.title(variant, "hiap" if FINETUNED in variant else method)


def _hits(runs: pd.DataFrame) -> dict[int, Any]:
    return dict(zip(runs["seed"], runs["hits"], strict=True))


def accuracies(runs: pd.DataFrame) -> pd.DataFrame:
    """Per label the means over seeds of what was counted and measured; ``low``, ``high``: the two-way interval of
    top-1, missing for one seed or without knowing which images were right."""
    rows = []
    for (label, variant, title, method), group in runs.groupby(["label", "variant", "title", "method"], sort=False):
        row: dict[str, Any] = {"label": label, "variant": variant, "title": title, "method": method}
        row |= {"target": group["target"].iloc[0], "n": len(group)}
        row |= {key: group[key].mean() for key in ("macs_share", "params", "epochs", "train_macs", "top1")}
        found = inference.accuracy(_hits(group))
        rows.append({**row, "low": found.low if found else np.nan, "high": found.high if found else np.nan})
    columns = ["label", "variant", "title", "method", "target", "n", "macs_share", "params", "epochs", "train_macs"]
    return pd.DataFrame(rows, columns=[*columns, "top1", "low", "high"])


def against(runs: pd.DataFrame) -> pd.DataFrame:
    """HiAP minus every other variant at the same target; columns ``AGAINST_COLUMNS``. Only what can be compared image
    by image has a row. ``p_holm`` and ``decided`` are the primary tests' alone."""
    rows = []
    for target, group in runs.dropna(subset="target").groupby("target", sort=True):
        reference = _hits(group[group["variant"] == stats.REFERENCE])
        for (variant, title, method), own in group.groupby(["variant", "title", "method"], sort=False):
            found = inference.compare(reference, _hits(own)) if variant != stats.REFERENCE else None
            if found is not None:
                row = {"target": target, "variant": variant, "title": title, "method": method}
                rows.append({**row, "primary": (target, variant) in PRIMARY, **flat(found)})
    return _judged(pd.DataFrame(rows, columns=list(AGAINST_COLUMNS)))


def _judged(rows: pd.DataFrame) -> pd.DataFrame:
    """Holm over the six primary tests. One that cannot be made yet still counts, as one that shows nothing."""
    primary = rows["primary"].astype(bool)
    p = rows.loc[primary, "p"].to_numpy(dtype=float)
    missing = np.ones(max(0, len(PRIMARY) - len(p)))
    rows.loc[primary, "p_holm"] = inference.holm(np.concatenate([p, missing]))[: len(p)]
    decided = (rows["p_holm"].astype(float) < 1 - inference.LEVEL).astype(object)
    return rows.assign(decided=decided.where(primary, None))


def flat(found: inference.Comparison) -> dict[str, Any]:
    """A comparison as columns."""
    ends, wins = found.difference, found.improvement
    row = {"n": ends.n, "difference": ends.mean, "low": ends.low, "high": ends.high, "p": found.p}
    row |= {"improvement": wins.mean, "improvement_low": wins.low, "improvement_high": wins.high}
    return {**row, "equivalent": found.equivalent}


def pair(runs: pd.DataFrame, method: str, reference: str) -> inference.Comparison | None:
    """One label minus another, say 'hiap-settled-65' and 'vit_slim-65'."""
    own, other = (_hits(runs[runs["label"] == label]) for label in (method, reference))
    return inference.compare(own, other)


def finetuning(runs: pd.DataFrame) -> pd.DataFrame:
    """What three more epochs add to every network that HiAP left: ``label`` of the network, ``title``, ``n``,
    ``difference``, ``low``, ``high``."""
    rows = []
    for label in (name for name in dict.fromkeys(runs["label"]) if FINETUNED in name):
        start = label.replace(FINETUNED, "")
        found = pair(runs, label, start)
        if found is not None:
            row = runs[runs["label"] == start].iloc[0]
            rows.append({"label": start, "title": row["title"], "target": row["target"], **flat(found)})
    columns = ["label", "title", "target", "n", "difference", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def blocks(root: str | Path, labels: list[str], grid: str = GRID) -> pd.DataFrame:
    """What is left of each block: means over seeds of ``heads``, ``dims`` per head left and ``neurons`` of our
    ``labels``, then the last epoch of the paper's Figs. 5 to 9, a different setting; ``network``, ``n``, ``block``."""
    shapes = [
        collect.topology(record).assign(label=record.label, seed=record.seed)
        for record in collect.records(root, grid)
        if record.status == "finished" and record.label in labels
    ]
    rows = []
    if shapes:
        found = pd.concat(shapes)
        found["dims"] = [np.mean(kept) if kept else np.nan for kept in found["head_dims"]]
        means = found.groupby(["label", "block"])[["heads", "dims", "neurons"]].mean()
        counts = found.groupby("label")["seed"].nunique()
        for label in (name for name in labels if name in counts):
            rows.append(means.loc[label].reset_index().assign(network=label, n=counts[label]))
    for figure in findings.FIGURES:
        last = collect.published_heatmap(figure).query("epoch == epoch.max()")
        rows.append(last[["block", "heads", "neurons"]].assign(network=f"Fig. {figure}", n=1, dims=np.nan))
    columns = ["network", "n", "block", "heads", "dims", "neurons"]
    return pd.concat([frame[columns] for frame in rows], ignore_index=True)


def machines(runs: pd.DataFrame) -> pd.DataFrame:
    """Types of CPU of each seed, which should be one: ``seed``, ``runs``, ``device``."""
    groups = runs.groupby("seed")
    devices = groups["device_name"].agg(collect.machines)
    return pd.DataFrame({"runs": groups.size(), "device": devices}).reset_index()


def tuned(runs: pd.DataFrame) -> pd.DataFrame:
    """Grid ``tune``: its configurations by validation top-1 within their method (``settled`` is one of its own), and
    which is ``taken``: the highest, of equal ones that with the lower loss."""
    runs = runs[runs["method"] != "dense"]
    names = runs["method"].where(~runs["label"].str.startswith("settled"), "hiap-settled")
    rows = runs.assign(tuned=names).sort_values(["tuned", "top1", "loss"], ascending=[True, False, True])
    rows["taken"] = ~rows.duplicated("tuned")
    return rows[["tuned", "label", "top1", "loss", "macs_share", "taken"]].reset_index(drop=True)


RESULT_COLUMNS = (
    Column("title", "Method", left=True),
    Column("share", "MACs %", number(1)),
    Column("top1", "Top-1 %", number(2)),
    Column("low", "low", number(2)),
    Column("high", "high", number(2)),
    Column("difference", "HiAP -", signed(2)),
    Column("difference_low", "low", signed(2)),
    Column("difference_high", "high", signed(2)),
    Column("improvement", "P", number(2)),
    Column("verdict", "", left=True),
    Column("n", "n", number(0)),
)
NOTES = (
    "low, high: 95 %, by a bootstrap over seeds and test images. HiAP -: HiAP minus the method, on the same seeds and "
    "images; P: probability that HiAP wins on a seed.",
    "above, below: HiAP, decided by a primary test after Holm's correction for six; undecided: a primary test that is "
    "not; all others are exploratory. =: equivalent within 0.3 points.",
)


def table(runs: pd.DataFrame) -> Table:
    """``accuracies`` with ``against``, one panel per target; ``finetuning`` shows the networks that it left out."""
    ends = {"difference_low": "low", "difference_high": "high"}
    compared = against(runs)
    compared["verdict"] = [_verdict(row) for row in compared.to_dict("records")]
    compared = compared.assign(**{new: compared[old] for new, old in ends.items()})
    wanted = ["target", "variant", "difference", *ends, "improvement", "verdict"]
    rows = accuracies(runs).merge(compared[wanted], how="left", on=["target", "variant"])
    rows = rows[~rows["label"].str.contains(FINETUNED)].sort_values("top1", ascending=False)
    rows = rows.assign(share=100 * rows["macs_share"], verdict=rows["verdict"].astype(object).fillna(""))
    panels = [Panel("No target", free)] if len(free := rows[rows["target"].isna()]) else []
    for target in sorted(rows["target"].dropna().unique(), reverse=True):
        panels.append(Panel(f"Target {100 * target:.0f} % of the dense MACs", rows[rows["target"] == target]))
    return tables.Table("Pruning a pretrained ViT-S on Fashion-MNIST", RESULT_COLUMNS, tuple(panels), NOTES)


def _verdict(row: dict[Any, Any]) -> str:
    side = "above" if row["difference"] > 0 else "below"
    verdict = (side if row["decided"] else "undecided") if row["primary"] else ""
    return " ".join(filter(None, (verdict, "=" if row["equivalent"] else "")))
