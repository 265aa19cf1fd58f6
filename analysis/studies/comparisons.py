"""Methods against each other at equal MACs: means over seeds, and differences from HiAP, paired by seed."""

from __future__ import annotations

import pandas as pd

from analysis.records import names, published
from analysis.stats import seeds
from analysis.stats.seeds import LEVEL, half_width, holm
from hiap.train.config import ConfigError
from hiap.train.record import Record

REFERENCE = "hiap"  # the variant that all others are compared with
MEANS = ("macs", "macs_dense", "params", "top1", "top1_soft", "top1_hardened", "epochs", "train_macs", "seconds")


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """One row per data set and label: means over seeds, ``n`` of them, and for n > 1 the half width of Student's 95 %
    interval of the mean top-1; ``sampling`` is the half width that the finite test set alone gives one accuracy.
    Dense first, then by falling MACs. Raises ``ConfigError`` if a label is used twice."""
    runs = runs.drop_duplicates("run_id")
    if (twice := runs.duplicated(["data", "label", "seed"], keep=False)).any():
        label, ids = runs.loc[twice, "label"].iloc[0], ", ".join(runs.loc[twice, "run_id"].head(2))
        raise ConfigError(f"label '{label}' names different runs of one seed ({ids}); choose a grid or rename one")
    groups = runs.astype(dict.fromkeys([*MEANS, "target"], float)).groupby(["data", "label", "method"], sort=False)
    table = groups[list(MEANS)].mean()
    table["target"] = groups["target"].first()
    table["n"] = groups.size()
    table["interval"] = groups["top1"].agg(half_width)
    table["test_images"] = groups["test_images"].first()
    table["sampling"] = 1.96 * (table["top1"] * (100 - table["top1"]) / table["test_images"]) ** 0.5
    table["reduction"] = 100 * (1 - table["macs"] / table["macs_dense"])
    found = table.reset_index()
    found["title"] = list(map(names.title, found["label"], found["method"]))
    found["pruned"] = found["method"] != "dense"
    order = found.sort_values(["pruned", "macs", "label"], ascending=[True, False, True], ignore_index=True)
    return order.drop(columns="pruned")


def study(runs: pd.DataFrame) -> pd.DataFrame:
    """``summary`` with one row per target and variant, and against the reference at the same target: columns ``low``,
    ``high``, ``difference``, ``difference_low``, ``difference_high``, ``improvement``, ``decided``; ``p`` and
    ``p_holm``, of Student's test before and after correction for all these comparisons; ``holm``: whether it is decided
    after it."""
    scores = seeds.scores_per_label(runs.drop_duplicates("run_id"))
    rows = names.with_variants(summary(runs))
    reference = rows[rows["variant"] == REFERENCE].set_index("target")["label"]
    found = []
    for row in rows.to_dict("records"):
        own = seeds.mean(scores[row["label"]])
        new = {"low": own.low, "high": own.high}
        if row["target"] in reference.index and row["variant"] != REFERENCE:
            against = seeds.compare(scores[row["label"]], scores[reference[row["target"]]])
            new |= against.difference.columns("difference")
            new |= {"improvement": against.improvement, "decided": against.decided, "p": against.p}
        found.append(new)
    wanted = ["low", "high", "difference", "difference_low", "difference_high", "improvement", "decided", "p"]
    rows = rows.join(pd.DataFrame(found, index=rows.index).reindex(columns=wanted))
    p = holm(rows["p"])  # all rows that have one are one family
    stands = (rows["decided"] == True) & (p < 1 - LEVEL)  # noqa: E712  (a column of objects)
    return rows.assign(p_holm=p, holm=stands.astype(object).where(rows["decided"].notna()))


def against(runs: pd.DataFrame, controls: list[str]) -> pd.DataFrame:
    """The reference at each target minus each control, paired by seed: columns ``target``, ``against``, ``n``,
    ``difference``, ``low``, ``high``, ``decided``."""
    scores = seeds.scores_per_label(runs)
    reference = _references(runs).drop_duplicates("label").sort_values("target", ascending=False)
    rows = []
    for label, target in zip(reference["label"], reference["target"], strict=True):
        for control in (name for name in controls if name in scores):
            found = seeds.compare(scores[label], scores[control])
            ends = found.difference
            row = {"target": target, "against": control, "n": ends.n, "difference": ends.mean}
            rows.append({**row, "low": ends.low, "high": ends.high, "decided": found.decided})
    return pd.DataFrame(rows)


def against_single_phase(longer: pd.DataFrame, short: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``study`` for methods that train ``longer``, compared with the reference of the ``short`` study."""
    runs = pd.concat([_references(short), longer[longer["method"] != REFERENCE]])
    rows = study(runs).dropna(subset="difference")
    columns = ["title", "target", "n", "epochs", "top1", "difference", "difference_low", "difference_high", "decided"]
    return rows[columns].sort_values(["target", "difference"], ascending=False, ignore_index=True)


def _references(runs: pd.DataFrame) -> pd.DataFrame:
    aimed = runs.dropna(subset="target")
    return aimed[[names.variant(*row) == REFERENCE for row in zip(aimed["label"], aimed["target"], strict=True)]]


def on_imagenet(runs: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds of pruned ImageNet ``runs`` for the picture of Table 2: ``name``, ``gmacs``, ``top1``."""
    pruned = runs[runs["method"] != "dense"]
    groups = pruned.groupby(["label", "method"], sort=False)[["macs", "top1"]].mean().reset_index()
    shown = list(map(names.title, groups["label"], groups["method"]))
    return pd.DataFrame({"name": shown, "gmacs": groups["macs"] / 1e9, "top1": groups["top1"]})


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
    ruled = [r for r in records if r.seed == 0 and r.config.budget.target_macs is None and r.size]
    return min(ruled, key=lambda r: abs(r.size.macs / r.size.dense_macs - share), default=None)  # type: ignore[union-attr]
