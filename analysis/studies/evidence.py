"""The study at the widths and depth of DeiT-Small, grid ``evidence``: its runs as results/PROTOCOL.md judges them.

Six differences are primary and share one Holm correction; every other one has an interval and no verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.records import names, published
from analysis.records.results import AS, Results, topology
from analysis.stats.seeds import LEVEL, holm
from analysis.studies import knobs, paired
from analysis.studies.comparisons import REFERENCE
from hiap.train.record import Record

GRID, TUNING = "evidence", "tune"


class Pair(NamedTuple):
    """One pair of data and network: its ``grid``, the grids of its ``tuning`` and of its ``untrained`` cuts, ``data``
    and ``network`` as a reader knows them, the ``primary`` tests of its protocol (target, variant), what has to be
    said wherever its numbers stand (``note``), and the name of the ``family`` of pairs whose tests share one Holm
    correction ('': its own). ``others``: their p-values, as ``joined`` finds them; NaN is a test that was not made."""

    grid: str
    data: str
    network: str
    tuning: str = ""
    untrained: str = ""
    primary: tuple[tuple[float, str], ...] = ()
    note: str = ""
    family: str = ""
    others: tuple[float, ...] | None = None

    @property
    def tests(self) -> int:
        """How many tests its Holm correction counts."""
        return len(self.primary) + len(self.others or ())


# Of the protocol: HiAP at these targets against these variants. The family is these six, whatever has been run.
PRIMARY = tuple((target, against) for target in (0.5, 0.35) for against in ("vit_slim", "taylor", "uniform-noise"))
FIRST = Pair(GRID, "Fashion-MNIST at 56 pixels", "ViT-S/14, 17 tokens", TUNING, "after_cut", PRIMARY)
AGAINST = tuple((target, against) for target in (0.5, 0.35) for against in ("obs", "taylor", "vit_slim"))
ON_CIFAR = "CIFAR-10 (JPEG copies) at 56 pixels"
LEAST_SQUARES = "All but HiAP + target (ours) have least squares behind the cut."
SEEN = (
    "The network has probably seen these photographs, without labels: accuracies are too high in absolute terms, "
    "differences between methods from one start are not touched."
)
PART = "the protocol's second part"
SECOND = Pair("cifar10", ON_CIFAR, "ViT-S/14, 17 tokens", "cifar10_tune", "cifar10_cut", AGAINST, LEAST_SQUARES, PART)
THIRD = Pair(
    "imagenette", "Imagenette at 112 pixels", "ViT-S/14, 65 tokens", "imagenette_tune", "imagenette_cut", AGAINST,
    f"{LEAST_SQUARES} {SEEN}", PART,
)  # fmt: skip
PAIRS = (FIRST, SECOND, THIRD)  # another study is one more line here
FEWEST = 3  # seeds that a primary test needs
LATER, OWN = "with twice the epochs for both", "other forms of HiAP + target"  # groups of lines of the figure
FINETUNED, LONGER, SCRATCH = "-finetuned", "-long-", "scratch"
ASIDE = (FINETUNED, "-long", "-other", "-lower-rate")  # tables have them, the figure of all methods does not

AGAINST_COLUMNS = (
    "target", "variant", "title", "method", "n", "difference", "low", "high", "p", "p_holm", "primary", "decided",
    "improvement", "improvement_low", "improvement_high", "equivalent", "train_macs", "reference_train_macs",
)  # fmt: skip


def load(results: Results, grid: str = GRID) -> pd.DataFrame:
    """``paired.load`` with ``variant`` and ``title``. A control that was given another run's MACs, or shape, has that
    run's target."""
    runs = paired.load(results, grid)
    if len(runs):
        aims = runs.drop_duplicates("label").set_index("label")["target"]
        given = runs["target"].fillna(runs["budget"].str.removeprefix(AS).map(aims))
        scratch = runs["label"].str.startswith(SCRATCH)
        runs = runs.assign(target=given.where(~scratch, runs["start"].map(runs.set_index("run_id")["target"])))
    rows = names.with_variants(runs)
    tuned = rows["variant"].astype(str).str.contains(FINETUNED)  # by method dense
    aimed = ["faithful" not in name or None for name in rows["variant"]]
    ours = [names.title(name, "hiap", target) for name, target in zip(rows["variant"], aimed, strict=True)]
    return rows.assign(title=rows["title"].where(~tuned, ours))


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


def aside(labels: pd.Series) -> pd.Series:
    """Which labels or variants are ``ASIDE``."""
    return labels.astype(str).str.contains("|".join(ASIDE))


def against(runs: pd.DataFrame, pair: Pair = FIRST) -> pd.DataFrame:
    """HiAP minus every other variant at the same target; columns ``AGAINST_COLUMNS``. Only what can be compared image
    by image has a row. ``p_holm`` and ``decided`` are the primary tests' alone, over the family of this pair."""
    return judged(differences(runs, pair), pair)


def joined(results: Results, pair: Pair) -> Pair:
    """The pair with the p-values of the tests that share its Holm correction, without which it is not judged."""
    family = [other for other in PAIRS if pair.family and other.family == pair.family and other.grid != pair.grid]
    return pair._replace(others=tuple(p for other in family for p in _p_values(results, other)))


def _p_values(results: Results, pair: Pair) -> list[float]:
    rows = differences(load(results, pair.grid), pair)
    own = rows.loc[rows["primary"].astype(bool)].set_index(["target", "variant"])["p"]
    return [float(own.get(test, np.nan)) for test in pair.primary]


def as_long(rows: pd.DataFrame, runs: pd.DataFrame) -> pd.Series:
    """Which ``rows``, by their variant, are of networks that trained for as many epochs as HiAP with a target."""
    epochs = runs.groupby("variant")["epochs"].mean()
    return rows["variant"].map(epochs) == epochs.get(REFERENCE)


def whole(runs: pd.DataFrame, pair: Pair) -> list[int]:
    """The seeds that have every run of the primary tests that any seed has: those are judged, and no other."""
    keys = {(target, name) for target, against in pair.primary for name in (REFERENCE, against)}
    mine = [key in keys for key in zip(runs["target"], runs["variant"], strict=True)]
    own = runs[pd.Series(mine, runs.index, dtype=bool)]
    own = own.drop_duplicates(["target", "variant", "seed"])
    counts = own["seed"].value_counts()
    return sorted(counts.index[counts == len(own.drop_duplicates(["target", "variant"]))])


def judged_seeds(runs: pd.DataFrame, pair: Pair) -> pd.DataFrame:
    """``runs`` of the seeds that are ``whole``, where they are enough to be judged: means beside tests are of the same
    networks."""
    seeds = whole(runs, pair)
    return runs[runs["seed"].isin(seeds)] if len(seeds) >= FEWEST else runs


def differences(runs: pd.DataFrame, pair: Pair = FIRST) -> pd.DataFrame:
    """``against`` before anything is judged. Primary is a test on ``FEWEST`` seeds or more that are ``whole``."""
    rows, seeds = [], whole(runs, pair)
    for target, group in runs.dropna(subset="target").groupby("target", sort=True):
        reference = group[group["variant"] == REFERENCE]
        for (variant, title, method), own in group.groupby(["variant", "title", "method"], sort=False):
            primary = (target, variant) in pair.primary and len(seeds) >= FEWEST
            own = own[own["seed"].isin(seeds)] if primary else own
            found = paired.compare(reference, own) if variant != REFERENCE else None
            if found is not None:
                row = {"target": target, "variant": variant, "title": title, "method": method}
                row |= {"train_macs": own["train_macs"].mean()}
                row |= {"reference_train_macs": reference["train_macs"].mean()}
                rows.append({**row, "primary": primary, **paired.flat(found)})
    return pd.DataFrame(rows, columns=list(AGAINST_COLUMNS))


def judged(rows: pd.DataFrame, pair: Pair) -> pd.DataFrame:
    """Holm over the primary tests among a pair's ``differences`` and those of its family. One that cannot be made yet
    still counts, as one that shows nothing. Raises ``ValueError`` where the family's tests are not known."""
    if pair.family and pair.others is None:
        raise ValueError(f"{pair.grid} shares its correction with other pairs: pass evidence.joined(results, pair)")
    primary = rows["primary"].astype(bool)
    p = rows.loc[primary, "p"].to_numpy(dtype=float)
    missing = np.ones(max(0, len(pair.primary) - len(p)))
    others = np.nan_to_num(np.array(pair.others or (), dtype=float), nan=1.0)
    rows.loc[primary, "p_holm"] = holm(np.concatenate([p, missing, others]))[: len(p)]
    decided = (rows["p_holm"].astype(float) < 1 - LEVEL).astype(object)
    return rows.assign(decided=decided.where(primary, None))


def side(row: Mapping[Any, Any]) -> str:
    """Where a test puts HiAP with a target: 'ahead' or 'behind', or 'undecided'."""
    return ("ahead" if row["difference"] > 0 else "behind") if row["decided"] else "undecided"


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
    ``low``, ``high``, ``epochs``, and what either took to train."""
    rows, means = [], runs.groupby("label")[["train_macs", "epochs"]].mean()
    for other in (name for name in dict.fromkeys(runs["label"]) if LONGER in name):
        method, _, cut = other.partition(LONGER)
        label = f"{REFERENCE}{LONGER}{cut}"
        if method != REFERENCE and (found := paired.pair(runs, label, other)):
            row = {"method": method, "target": 1 - int(cut) / 100, **paired.flat(found), **dict(means.loc[other])}
            rows.append({**row, "reference_train_macs": means["train_macs"][label]})
    bills = ["epochs", "train_macs", "reference_train_macs"]
    return pd.DataFrame(rows, columns=["method", "target", "n", "difference", "low", "high", *bills])


def drawn(runs: pd.DataFrame, pair: Pair = FIRST) -> pd.DataFrame:
    """The lines of the figure of all methods: ``against`` at equal epochs, then the pairs that both have twice as many,
    then other forms of HiAP (``group``). ``judged``: a primary test."""
    rows = against(runs, pair)
    rows = rows[as_long(rows, runs) | rows["primary"].astype(bool)]
    rows = rows[~aside(rows["variant"]) | (rows["method"] == REFERENCE)]
    own = (rows["method"] == REFERENCE) & ~rows["variant"].str.contains("long")
    rows = rows[(rows["method"] != REFERENCE) | own].assign(group="", judged=rows["primary"].astype(bool))
    rows.loc[own, "group"] = OWN
    later = longer(runs)
    later = later.assign(title=[names.METHODS[name] for name in later["method"]], group=LATER, judged=False)
    return pd.concat([rows, later], ignore_index=True) if len(later) else rows.reset_index(drop=True)


def untrained(results: Results, grid: str) -> pd.DataFrame:
    """Networks right after their cut, before any training (grid ``after_cut`` and its like): ``title``, ``method``,
    ``target``, ``corrected`` (by least squares behind the cut), ``macs_share``, ``train_macs``, ``n``, ``top1``, and
    what a test set of ``test_images`` leaves open of it (``low``, ``high``)."""
    runs = results.runs(grid)
    runs = runs[runs["method"] != "dense"]
    keys, means = ["method", "target", "corrected"], ["macs_share", "train_macs", "top1", "test_images"]
    rows = runs.assign(corrected=runs["label"].str.endswith("-corrected")).astype(dict.fromkeys(means, float))
    found = rows.groupby(keys, sort=False)[means].mean().reset_index()
    half = 1.96 * (found["top1"] * (100 - found["top1"]) / found["test_images"]) ** 0.5
    how = found["corrected"].map({True: "least squares", False: "cut alone"})
    shown = [f"{names.METHODS.get(name, name)}, {words}" for name, words in zip(found["method"], how, strict=True)]
    n = rows.groupby(keys, sort=False).size().to_numpy()
    return found.assign(title=shown, n=n, low=found["top1"] - half, high=found["top1"] + half)


def fragile(runs: pd.DataFrame, variant: str, target: float, pair: Pair = FIRST) -> tuple[int, int]:
    """Without how many of its seeds, each left out alone, a primary test would not be decided; and how many it has."""
    primary = runs[runs["variant"].isin({REFERENCE, *(name for _, name in pair.primary)})]
    seeds = sorted(primary.loc[(primary["variant"] == variant) & (primary["target"] == target), "seed"])
    undone = 0
    for seed in seeds:
        rows = against(primary[primary["seed"] != seed], pair)
        row = rows[(rows["variant"] == variant) & (rows["target"] == target)]
        undone += not bool(row["decided"].item())
    return undone, len(seeds)


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
    """What is left of each block, seed by seed: ``heads``, ``dims`` per head left and ``neurons`` of our ``labels``,
    then the last epoch of the paper's Figs. 5 to 9, a different setting; ``network`` as a reader knows it, ``label``,
    ``seed``, ``block``."""
    runs, rows = load(results, grid), []
    for label in labels:
        named = _network(runs[runs["label"] == label])
        for record in (found for found in results.finished(grid) if found.label == label):
            shape = topology(record)
            dims = [np.mean(kept) if kept else np.nan for kept in shape["head_dims"]]
            rows.append(shape.assign(network=named, label=label, seed=record.seed, dims=dims))
    for figure in published.HEAT_MAPS:
        last = published.last_state(figure)[["block", "heads", "neurons"]]
        rows.append(last.assign(network=f"Fig. {figure} of the paper", label="", seed=0, dims=np.nan))
    columns = ["network", "label", "seed", "block", "heads", "dims", "neurons"]
    return pd.concat([frame[columns] for frame in rows], ignore_index=True)


def _network(runs: pd.DataFrame) -> str:
    return "" if runs.empty else f"{runs['title'].iloc[0]}, {100 * runs['macs_share'].mean():.0f} %"


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


def tuned(runs: pd.DataFrame, records: Iterable[Record] = ()) -> pd.DataFrame:
    """Grid ``tune``: its configurations by validation top-1 within their method (``settled`` is one of its own), and
    which is ``taken``: the highest, of equal ones that with the lower loss. ``edge``: which of its settings ends its
    range, as ``records`` have them, where three values or more were tried."""
    runs = runs[runs["method"] != "dense"]
    names = runs["method"].where(~runs["label"].str.startswith("settled"), "hiap-settled")
    rows = runs.assign(tuned=names).sort_values(["tuned", "top1", "loss"], ascending=[True, False, True])
    rows["taken"] = ~rows.duplicated("tuned")
    settings = {record.run_id: dict(_numbers(record.config.model_dump())) for record in records}
    edges = {}
    for _, group in rows.groupby("tuned"):
        tried = [settings.get(run_id, {}) for run_id in group["run_id"]]
        edges[group["run_id"].iloc[0]] = "; ".join(_edges(tried[0], tried))
    rows["edge"] = rows["run_id"].map(edges).fillna("")
    return rows[["tuned", "label", "top1", "loss", "macs_share", "taken", "edge"]].reset_index(drop=True)


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Settings of a configuration that are numbers, as 'section.key'."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{key}", float(value)


def _edges(taken: Mapping[str, float], tried: list[dict[str, float]]) -> Iterator[str]:
    for key, value in taken.items():
        values = sorted({one[key] for one in tried if key in one})
        if value in knobs.ends(values):
            end = "lowest" if value == values[0] else "highest"
            yield f"{key} {value:g}, the {end} of {len(values)}"
