"""Methods against each other at equal MACs: means over seeds, and differences from HiAP on equal seeds and images."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from analysis.records import names, published
from analysis.records.results import require_one_each
from analysis.stats.seeds import LEVEL, half_width, holm
from analysis.studies import paired
from hiap.train.record import Record

CONTROLS = ("dense-continued", "dense-distilled", "dense-noise")  # trained on, with no price on any unit
REFERENCE = "hiap"  # the variant that all others are compared with
MEANS = (
    "macs",
    "macs_dense",
    "params",
    "top1",
    "top1_soft",
    "top1_hardened",
    "epochs",
    "steps",
    "train_macs",
    "seconds",
)
COMPARED = (
    "difference", "difference_low", "difference_high", "improvement", "improvement_low", "improvement_high",
    "equivalent", "p", "p_holm", "decided",
)  # fmt: skip


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per data set and label: means over seeds, ``n`` of them, and for n > 1 the half width of Student's 95 %
    interval of the mean top-1; ``sampling`` is the half width that the finite test set alone gives one accuracy.
    Dense first, then by falling MACs. Raises ``ConfigError`` if a label is used twice."""
    runs = require_one_each(runs.drop_duplicates("run_id"))
    groups = runs.astype(dict.fromkeys([*MEANS, "target"], float)).groupby(["data", "label", "method"], sort=False)
    table = groups[list(MEANS)].mean()
    table["target"] = groups["target"].first()
    table["n"] = groups.size()
    table["interval"] = groups["top1"].agg(half_width)
    table["test_images"] = groups["test_images"].first()
    table["measure"] = groups["measure"].first()
    table["sampling"] = 1.96 * (table["top1"] * (100 - table["top1"]) / table["test_images"]) ** 0.5
    table["reduction"] = 100 * (1 - table["macs"] / table["macs_dense"])
    found = table.reset_index()
    found["title"] = names.titles(found)
    found["pruned"] = found["method"] != "dense"
    order = found.sort_values(["pruned", "macs", "label"], ascending=[True, False, True], ignore_index=True)
    return order.drop(columns="pruned")


def study(runs: pd.DataFrame) -> pd.DataFrame:
    """``summary`` of ``paired.load`` with one row per target and variant, and each minus the reference at the same
    target: ``COMPARED``. All rows that are compared are one family for Holm's correction, and only after it is one
    ``decided``."""
    rows, of = names.with_variants(summary(runs)), dict(list(runs.groupby("label")))
    reference = rows[rows["variant"] == REFERENCE].set_index("target")["label"]
    found = []
    for row in rows.to_dict("records"):
        own = paired.accuracy(of[row["label"]])
        new: dict[str, object] = {"low": own.low, "high": own.high}
        if row["target"] in reference.index and row["variant"] != REFERENCE:
            new |= _compared(of[row["label"]], of[reference[row["target"]]])
        found.append(new)
    return judged(rows.join(pd.DataFrame(found, index=rows.index).reindex(columns=["low", "high", *COMPARED])))


def _compared(method: pd.DataFrame, reference: pd.DataFrame) -> dict[str, object]:
    found = paired.compare(method, reference)
    row: dict[str, object] = dict(paired.difference(found, method, reference).columns("difference"))
    if found:
        row |= {"equivalent": found.equivalent, "p": found.p, **found.improvement.columns("improvement")}
    return row


FLIPPED = {"difference": "difference", "difference_high": "low", "difference_low": "high"}


def from_reference(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``study`` that are compared, with the sign of all figures and tables: the reference minus the method
    (``difference``, ``low``, ``high``, ``improvement``), what either took to train, and ``judged``: all of them are."""
    own = rows[rows["variant"] == REFERENCE].set_index("target")["train_macs"]
    kept = rows.dropna(subset="difference").drop(columns=["low", "high"]).rename(columns=FLIPPED)
    for column in FLIPPED.values():
        kept[column] = -kept[column]
    bill = kept["target"].map(own)
    return kept.assign(improvement=1 - kept["improvement"], judged=True, reference_train_macs=bill, group="")


def judged(rows: pd.DataFrame) -> pd.DataFrame:
    """With ``p_holm`` and ``decided``, of all rows that have a ``p``."""
    p = pd.Series(holm(rows["p"]), rows.index)
    return rows.assign(p_holm=p, decided=(p < 1 - LEVEL).astype(object).where(p.notna(), None))


def standing(rows: pd.DataFrame) -> pd.DataFrame:
    """Per target of ``study``, the highest first: how many ``methods`` are compared with the reference, and the titles
    of those that are decided to be ``better`` or ``worse``. Another setting of HiAP is none of them."""
    counts, others = [], rows[rows["method"] != REFERENCE].dropna(subset=["target", "difference"])
    for target, group in others.groupby("target", sort=True):
        decided = group[group["decided"].eq(True)]
        better, worse = (
            decided.loc[mine, "title"].tolist() for mine in (decided["difference"] > 0, decided["difference"] <= 0)
        )
        counts.append({"target": target, "methods": len(group), "better": better, "worse": worse})
    return pd.DataFrame(counts[::-1], columns=["target", "methods", "better", "worse"])


def against(runs: pd.DataFrame, controls: Iterable[str]) -> pd.DataFrame:
    """The reference at each target minus each control: columns ``target``, ``against``, ``n``, ``difference``, ``low``,
    ``high``, ``p``, ``p_holm``, ``decided``."""
    rows, of = [], dict(list(runs.groupby("label")))
    reference = _references(runs).drop_duplicates("label").sort_values("target", ascending=False)
    for label, target in zip(reference["label"], reference["target"], strict=True):
        for control in (name for name in controls if name in of):
            found = paired.compare(of[label], of[control])
            ends = paired.difference(found, of[label], of[control])
            row = {"target": target, "against": control, "n": ends.n, "difference": ends.mean}
            rows.append({**row, "low": ends.low, "high": ends.high, "p": found.p if found else float("nan")})
    return judged(pd.DataFrame(rows, columns=["target", "against", "n", "difference", "low", "high", "p"]))


def against_single_phase(longer: pd.DataFrame, short: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``study`` for methods that train ``longer``, compared with the reference of the ``short`` study."""
    runs = pd.concat([_references(short), longer[longer["method"] != REFERENCE]])
    rows = study(runs).dropna(subset="difference")
    ends = ["difference", "difference_low", "difference_high"]
    columns = ["title", "method", "target", "n", "epochs", "top1", *ends, "decided"]
    return rows[columns].sort_values(["target", "difference"], ascending=False, ignore_index=True)


def _references(runs: pd.DataFrame) -> pd.DataFrame:
    aimed = runs.dropna(subset="target")
    return aimed[[names.variant(*row) == REFERENCE for row in zip(aimed["label"], aimed["target"], strict=True)]]


def on_imagenet(runs: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds of pruned ImageNet ``runs`` for the picture of Table 2: ``name``, ``gmacs``, ``top1``."""
    pruned = runs[runs["method"] != "dense"]
    groups = pruned.groupby(["label", "method"], sort=False)[["macs", "top1", "target"]].mean().reset_index()
    return pd.DataFrame({"name": names.titles(groups), "gmacs": groups["macs"] / 1e9, "top1": groups["top1"]})


def ratio_runs(runs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(means over seeds, seeds) of the grid ``ratios`` for Fig. 4: ``series``, ``label``, ``x`` (% of the dense MACs)
    and ``top1``. A label is the ratio, then the strength: '1.5to1-0.9'."""
    seeds = runs[runs["method"] == "hiap"].assign(x=100 * runs["macs_share"])
    seeds["series"] = [label.rpartition("-")[0].replace("to1", ":1") for label in seeds["label"]]
    means = seeds.groupby(["series", "label"], sort=False)[["x", "top1"]].mean().reset_index()
    return means, seeds[["series", "label", "seed", "x", "top1"]]


def nearest_run(records: list[Record]) -> Record | None:
    """Of the runs of seed 0 without a target, the one whose share of the dense MACs is nearest to that of HiAP's larger
    row in Table 2; None if there is none."""
    gmacs = published.table(published.TABLE2).set_index("method")["gmacs"]
    share = gmacs.loc["HiAP"].max() / gmacs.max()
    ruled = [r for r in records if r.seed == 0 and not r.config.budget.has_target and r.size]
    return min(ruled, key=lambda r: abs(r.size.macs / r.size.dense_macs - share), default=None)  # type: ignore[union-attr]
