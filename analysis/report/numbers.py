r"""Every number that ``paper/paper.tex`` may use, as TeX, by name: from records, benchmarks and findings.

``analysis.paper`` writes those that it does use.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pandas as pd

from analysis import pull
from analysis.claims import ledger
from analysis.findings.gates import sample_mean, sigmoid
from analysis.findings.registry import macros
from analysis.records import bench, names
from analysis.records.names import fixed
from analysis.records.results import Results, dense_units
from analysis.stats import seeds
from analysis.studies import budget, calibrate, comparisons, crossed, cuts, evidence, open_points, paired, scan
from hiap.train.config import Config, ConfigError

Numbers = dict[str, str]
NEEDED = ("study", "study_long", "evidence", "sensitivity", "a4", "budget", "ratios", "calibrate")
INTERVAL = {"difference": "diff", "low": "difflow", "high": "diffhigh"}
ENDS = {"difference": "diff", "difference_low": "difflow", "difference_high": "diffhigh"}  # columns under short names


class Answers(NamedTuple):
    """What several parts of the report show, computed once: the rows of grid ``study`` (``comparisons.study``), the
    ``readings`` (``open_points.measured``) and the ``verdicts`` of the ledger on these ``results``."""

    results: Results
    study: pd.DataFrame
    readings: pd.DataFrame
    verdicts: pd.DataFrame

    @classmethod
    def of(cls, results: Results) -> Answers:
        """Raises ``ConfigError`` where a grid that the report needs has not run."""
        for grid in NEEDED:
            if results.runs(grid).empty:
                raise ConfigError(names.nothing(grid))
        study = comparisons.study(paired.load(results, "study"))
        return cls(results, study, open_points.measured(results), ledger.verdicts(results))


def numbers(answers: Answers) -> Numbers:
    """Every number that the report may use, as TeX."""
    return {name: text for source in _sources(answers) for name, text in source.items()}


def _sources(answers: Answers) -> Iterator[Numbers]:
    results = answers.results
    short, longer = (paired.load(results, grid) for grid in ("study", "study_long"))
    yield of_study(short, answers.study, "study")
    yield of_study(longer, comparisons.study(longer), "long")
    yield _standing(comparisons.against_single_phase(longer, short), "single")
    yield of_evidence(results)
    yield of_cuts(results, cuts.GRID, "copies")
    yield of_cuts(results, cuts.PHOTOGRAPHS, "photographs")
    yield of_second(results)
    yield of_scan(results)
    yield of_gaps(short)
    yield of_budget(results)
    yield of_labels(results.runs("sensitivity"), "sensitivity")
    yield of_open_points(answers)
    yield of_ratios(results)
    yield macros()
    yield of_calibrate(results)
    yield of_pull(results)
    yield of_bench(bench.load(results))
    yield of_project(results)
    yield of_claims(answers.verdicts)


def _short(row: dict, key: str, columns: dict[str, str], digits: int = 2) -> Numbers:
    """``<key>.<short>`` of each column."""
    return {f"{key}.{short}": fixed(row[column], digits) for column, short in columns.items()}


def of_study(runs: pd.DataFrame, rows: pd.DataFrame, name: str) -> Numbers:
    """``<name>.<variant>.<kept>.top1``, ``.low``, ``.high``, ``.diff``, ``.difflow``, ``.diffhigh``, ``.macs``,
    ``.tmacs``; ``kept`` is the target in per cent, or 'free'."""
    found = {
        f"{name}.runs": str(len(runs)),
        f"{name}.seeds": str(runs["seed"].nunique()),
        f"{name}.images": fixed(runs["test_images"].max(), 0),
        f"{name}.targets": str(runs["target"].nunique()),
    }
    for row in rows.to_dict("records"):
        key = f"{name}.{row['variant']}.{_kept(row['target'])}"
        found |= _short(row, key, {"top1": "top1", "low": "low", "high": "high", **ENDS})
        found |= {f"{key}.macs": fixed(100 - row["reduction"], 1), f"{key}.tmacs": fixed(row["train_macs"] / 1e12)}
    return found | _standing(rows, name) | _controls(runs, name)


def _kept(target: float) -> str:
    return "free" if pd.isna(target) else f"{100 * target:.0f}"


def _standing(rows: pd.DataFrame, name: str) -> Numbers:
    """Of each budget (``kept.<kept>``), how many ``methods`` are compared with HiAP, and how many of them are decidedly
    ``better`` or ``worse``."""
    found = Numbers()
    for row in comparisons.standing(rows).to_dict("records"):
        kept = _kept(row["target"])
        counts = {"methods": row["methods"], "better": len(row["better"]), "worse": len(row["worse"])}
        found |= {f"kept.{kept}": kept, **{f"{name}.{kept}.{key}": str(count) for key, count in counts.items()}}
    return found


def _controls(runs: pd.DataFrame, name: str) -> Numbers:
    """HiAP with a target minus each control, which puts no price on any unit (``<name>.over.<control>.<kept>``):
    ``diff``, ``difflow``, ``diffhigh``, and in words whether it is decided."""
    found = Numbers()
    for row in comparisons.against(runs, comparisons.CONTROLS).to_dict("records"):
        key = f"{name}.over.{row['against']}.{_kept(row['target'])}"
        side = "above" if row["difference"] > 0 else "below"
        found |= _short(row, key, INTERVAL)
        found[f"{key}.words"] = f"decidedly {side}" if row["decided"] else "not decidedly above or below"
    return found


def of_evidence(results: Results) -> Numbers:
    """``evidence.<label>.top1``, ``.low``, ``.high``, ``.macs``, ``.tmacs``; ``evidence.minus.<variant>.<kept>.diff``,
    ``.difflow``, ``.diffhigh``: HiAP minus a variant at the same target, of primary tests with ``.words``;
    ``evidence.tuned.<label>.diff`` ...: what fine-tuning adds; ``evidence.settled.<kept>.diff`` ...: HiAP settled minus
    HiAP, with ``.bill``; ``evidence.settled.slim.diff`` ...: minus ViT-Slim at the smallest target;
    ``evidence.long.<method>.diff`` ...: HiAP minus a method there, both trained for longer."""
    runs = evidence.load(results)
    found = {
        "evidence.runs": str(len(runs)),
        "evidence.seeds": str(runs["seed"].nunique()),
        "evidence.images": fixed(runs["test_images"].max(), 0),
        "evidence.device": names.machines(runs["device_name"]),
        "evidence.tried": str(len(results.runs(evidence.TUNING).query("method != 'dense'"))),
        "evidence.primary": str(len(evidence.PRIMARY)),
    }
    for row in evidence.accuracies(runs).to_dict("records"):
        key = f"evidence.{row['label']}"
        found |= _short(row, key, {"top1": "top1", "low": "low", "high": "high"})
        found |= {f"{key}.macs": fixed(100 * row["macs_share"], 1), f"{key}.tmacs": fixed(row["train_macs"] / 1e12, 1)}
    for row in evidence.against(runs).to_dict("records"):
        key = f"evidence.minus.{row['variant']}.{_kept(row['target'])}"
        found |= _short(row, key, INTERVAL)
        if row["primary"]:
            found[f"{key}.words"] = _side(row)
    for row in evidence.finetuning(runs).to_dict("records"):
        found |= _short(row, f"evidence.tuned.{row['label']}", INTERVAL)
    for row in evidence.settled(runs).to_dict("records"):
        key = f"evidence.settled.{_kept(row['target'])}"
        found |= {**_short(row, key, INTERVAL), f"{key}.bill": fixed(row["bill"])}
    if pair := paired.pair(runs, "hiap-settled-65", "vit_slim-65"):
        found |= _short(paired.flat(pair), "evidence.settled.slim", INTERVAL)
    for row in evidence.longer(runs).to_dict("records"):
        found |= _short(row, f"evidence.long.{row['method']}", INTERVAL)
        found["evidence.long.epochs"] = f"{row['epochs']:g}"
    return (
        found | _judged_at_papers_shape(runs) | _tuned(results) | _untrained(results) | _left_at_papers_shape(results)
    )


def _side(row: dict[Any, Any]) -> str:
    """A primary test in words."""
    side = "ahead of" if row["difference"] > 0 else "behind"
    return f"decidedly {side}" if row["decided"] else "not decidedly ahead of or behind"


def _judged_at_papers_shape(runs: pd.DataFrame) -> Numbers:
    """``evidence.epochs``; ``evidence.slim.holm``: the corrected p-value against ViT-Slim at the smallest target, and
    without how many of its ``seeds``, each alone, it is ``undone``; ``evidence.rule.steps`` of the paper's rule."""
    rows = evidence.against(runs).set_index(["variant", "target"])
    undone, seeds_ = evidence.fragile(runs, "vit_slim", 0.35)
    rule = runs[runs["label"] == "hiap-faithful"]
    return {
        "evidence.epochs": f"{runs.loc[runs['variant'] == comparisons.REFERENCE, 'epochs'].mode().iloc[0]:g}",
        "evidence.slim.holm": fixed(float(str(rows.loc[("vit_slim", 0.35), "p_holm"])), 3),
        "evidence.slim.undone": str(undone),
        "evidence.slim.seeds": str(seeds_),
        "evidence.rule.steps": fixed(rule["steps"].mean(), 0),
    }


def _tuned(results: Results) -> Numbers:
    """``evidence.edges`` of ``evidence.methods`` tuned methods end on the edge of a range."""
    rows = evidence.tuned(evidence.load(results, evidence.TUNING), results.finished(evidence.TUNING)).query("taken")
    return {"evidence.edges": str(int((rows["edge"] != "").sum())), "evidence.methods": str(len(rows))}


def _untrained(results: Results) -> Numbers:
    """``cut.<method>.<kept>.corrected`` and ``.alone``: top-1 right after the cut; ``cut.dense``, ``cut.images``."""
    untrained, runs = evidence.untrained(results, evidence.FIRST.untrained), results.runs(evidence.FIRST.untrained)
    found = {"cut.dense": fixed(runs.loc[runs["method"] == "dense", "top1"].mean())}
    found["cut.images"] = fixed(runs["test_images"].max(), 0)
    for row in untrained.to_dict("records"):
        how = "corrected" if row["corrected"] else "alone"
        found[f"cut.{row['method']}.{_kept(row['target'])}.{how}"] = fixed(row["top1"])
    return found


def _left_at_papers_shape(results: Results) -> Numbers:
    """``evidence.ffn.gone`` of ``evidence.ffn.all`` networks of HiAP with a target lack the last FFN;
    ``evidence.<label>.heads``, ``.neurons``: means per block."""
    left = evidence.blocks(results, [*evidence.aimed_labels(results.runs(evidence.GRID)), "hiap-faithful"])
    found = Numbers()
    for label, group in left.groupby("label"):
        if label:
            found |= {f"evidence.{label!s}.heads": fixed(group["heads"].mean(), 1)}
            found |= {f"evidence.{label!s}.neurons": fixed(group["neurons"].mean(), 0)}
    gone, networks = evidence.last_ffns(results)
    return found | {"evidence.ffn.gone": str(gone), "evidence.ffn.all": str(networks)}


def of_cuts(results: Results, grid: str, name: str) -> Numbers:
    """``<name>.dense``, ``.networks``, ``.images``; of corrected cuts without training ``<name>.<ranking>.<kept>`` and,
    behind ``.diff``, what structured OBS is ahead of it by."""
    runs = cuts.load(results, grid)
    if runs.empty:
        return {}
    found = {
        f"{name}.dense": fixed(cuts.dense(results, grid), 1),
        f"{name}.networks": str(runs["seed"].nunique()),
        f"{name}.images": fixed(runs["test_images"].max(), 0),
    }
    for row in cuts.accuracies(runs[runs["corrected"]]).to_dict("records"):
        found[f"kept.{_kept(row['target'])}"] = _kept(row["target"])
        found[f"{name}.{row['ranking']}.{_kept(row['target'])}"] = fixed(row["top1"], 1)
    for row in cuts.against(runs).to_dict("records"):
        found |= _short(row, f"{name}.{row['ranking']}.{_kept(row['target'])}", INTERVAL, 1)
    return found


def of_second(results: Results) -> Numbers:
    """``second.dense``, ``.seeds``, ``.epochs``, ``.primary`` tests of a ``.family``; ``second.<variant>.<kept>``: mean
    top-1, and ``.tmacs``; ``second.minus.<variant>.<kept>.diff``, ``.difflow``, ``.diffhigh``: HiAP with a target minus
    it, of primary tests with ``.words``; ``second.<question>.<variant>.<kept>``, with the same ends: least squares
    crossed (``crossed.rows``)."""
    pair = evidence.joined(results, evidence.SECOND)
    runs = evidence.load(results, pair.grid)
    if len(seeds_ := evidence.whole(runs, pair)) < evidence.FEWEST:
        return {}
    runs = evidence.judged_seeds(runs, pair)
    found = {
        "second.dense": fixed(runs.loc[runs["label"] == "dense", "top1"].mean(), 1),
        "second.dense.tmacs": fixed(runs.loc[runs["label"] == "dense", "train_macs"].mean() / 1e12, 1),
        "second.seeds": str(len(seeds_)),
        "second.primary": str(len(pair.primary)),
        "second.family": str(pair.tests),
        "second.epochs": f"{runs.loc[runs['variant'] == evidence.REFERENCE, 'epochs'].mode().iloc[0]:g}",
    }
    for row in evidence.accuracies(runs).dropna(subset="target").to_dict("records"):
        kept = _kept(row["target"])
        key = f"second.{row['variant']}.{kept}"
        found |= {f"kept.{kept}": kept, key: fixed(row["top1"], 1), f"{key}.tmacs": fixed(row["train_macs"] / 1e12, 1)}
    for row in evidence.against(runs, pair).to_dict("records"):
        key = f"second.minus.{row['variant']}.{_kept(row['target'])}"
        found |= _short(row, key, INTERVAL, 1)
        if row["primary"]:
            found[f"{key}.words"] = _side(row)
    found |= {"second.crossed.seeds": names.count(ran["n"])} if len(ran := crossed.rows(runs, pair)) else {}
    for row in ran.to_dict("records"):
        key = f"second.{row['question']}.{row['variant']}.{_kept(row['target'])}"
        found |= _short(row, key, INTERVAL, 1)
    return found


def of_scan(results: Results) -> Numbers:
    """``scan.strengths``, ``.dense``, ``.least``, ``.most`` (share of the MACs); ``scan.<kept>`` read between two
    strengths, ``.diff`` to HiAP with a target on the same networks; ``scan.x<factor>``, ``.macs`` and ``.times``."""
    runs = paired.load(results, scan.GRID)
    points = scan.curve(runs)
    if points.empty:
        return {}
    found = {
        "scan.strengths": str(points["factor"].nunique()),
        "scan.dense": fixed(cuts.dense(results, scan.GRID, points["seed"].unique()), 1),
        "scan.least": fixed(100 * points["macs_share"].min(), 0),
        "scan.most": fixed(100 * points["macs_share"].max(), 0),
    }
    for row in scan.at_targets(runs).to_dict("records"):
        found[f"scan.{_kept(row['target'])}"] = fixed(row["top1"], 1)
        found[f"scan.{_kept(row['target'])}.diff"] = fixed(row["difference"], 1)
    for row in points.groupby("factor", as_index=False).mean().to_dict("records"):
        found[f"scan.x{row['factor']:g}"] = fixed(row["top1"], 1)
        found[f"scan.x{row['factor']:g}.times"] = fixed(row["factor"], 0)
        found[f"scan.x{row['factor']:g}.macs"] = fixed(100 * row["macs_share"], 0)
    return found


def of_gaps(runs: pd.DataFrame) -> Numbers:
    """``gap.<label>.mean``, ``.low``, ``.high``: extracted minus soft top-1."""
    rows = seeds.mean_per_label(runs, ["gap"]).to_dict("records")
    ends = {"gap": "mean", "gap_low": "low", "gap_high": "high"}
    return {key: text for row in rows for key, text in _short(row, f"gap.{row['label']}", ends).items()}


def of_budget(results: Results) -> Numbers:
    runs, misses = results.runs("budget"), budget.rule_misses(results, "budget")
    aimed, ruled = runs.dropna(subset="target"), budget.ruled(runs)
    hand = budget.by_hand(ruled, sorted(aimed["target"].unique())).query("within")
    return {
        "budget.runs": str(len(aimed)),
        "budget.targets": str(aimed["target"].nunique()),
        "budget.seeds": str(aimed["seed"].nunique()),
        "budget.above": str(int((aimed["macs_share"] > aimed["target"]).sum())),
        "budget.shortfall": fixed(budget.landings(aimed)["shortfall"].max(), 3),
        "budget.rule.low": fixed(misses.min(), 1),
        "budget.rule.high": fixed(misses.max(), 1),
        "budget.strengths": str(ruled["label"].nunique()),
        "budget.hand.targets": str(len(hand)),
        "budget.hand.tuned": fixed(hand["tuned"].abs().max(), 1),
        "budget.hand.low": fixed(hand["low"].min(), 1),
        "budget.hand.high": fixed(hand["high"].max(), 1),
    }


def of_labels(runs: pd.DataFrame, grid: str) -> Numbers:
    """``<grid>.<label>.top1`` and ``.macs`` (per cent of dense), means over seeds."""
    found = {f"{grid}.seeds": str(runs["seed"].nunique())}
    for label, row in runs.groupby("label")[["top1", "macs_share"]].mean().iterrows():
        found |= {f"{grid}.{label}.top1": fixed(row["top1"]), f"{grid}.{label}.macs": fixed(100 * row["macs_share"], 1)}
    return found


def of_open_points(answers: Answers) -> Numbers:
    """``open.<label>.diff``, ``.difflow``, ``.diffhigh``: top-1 of a reading against the default, paired by seed; and
    how many of the floors' readings (A7) leave the default's networks as they are; ``soft``: the mean of a soft gate's
    samples at our start and the first temperature, which the closed form is not (A2)."""
    found, config = Numbers(), Config().gates
    for row in answers.readings.to_dict("records"):
        found |= _short(row, f"open.{row['label']}", ENDS)
    runs = answers.results.runs("sensitivity")
    sizes = {str(label): group.set_index("seed")["macs"].sort_index() for label, group in runs.groupby("label")}
    floors = [label for label in sizes if label.startswith("A7-")]
    empty, gated = open_points.emptied_layers(answers.results)
    return found | {
        "open.points": str(len(open_points.POINTS)),
        "open.measured": str(answers.readings["point"].nunique()),
        "a4.seeds": str(answers.results.runs("a4")["seed"].nunique()),
        "open.floors": str(len(floors)),
        "open.floors.same": str(sum(sizes[label].equals(sizes["default"]) for label in floors)),
        "open.emptied": str(empty),
        "open.gated": str(gated),
        "soft.mean": fixed(sample_mean(config.tau_start, config.init_logit), 3),
        "soft.closed": fixed(float(sigmoid(config.init_logit)), 3),
    }


def of_ratios(results: Results) -> Numbers:
    """Of each ratio at its strongest price (``ratios.<series>.strength``): ``macs`` in per cent of dense, ``top1``, and
    the means of ``heads`` and of ``neurons`` that are left, in per cent of the dense network's."""
    runs = results.runs("ratios").query("method == 'hiap'")
    parts = runs["label"].str.rpartition("-")
    runs = runs.assign(series=parts[0], strength=parts[2].astype(float))
    record = results.gated("ratios")[0]
    full = {unit: len(record.shape or []) * count for unit, count in dense_units(record).items()}
    found = {"ratios.strengths": str(runs["strength"].nunique()), "ratios.seeds": str(runs["seed"].nunique())}
    for series, group in runs.groupby("series"):
        mine = group[group["strength"] == group["strength"].max()]
        shares = {unit: 100 * mine[unit].mean() / full[unit] for unit in ("heads", "neurons")}
        values = {**shares, "macs": 100 * mine["macs_share"].mean(), "top1": mine["top1"].mean()}
        found |= {f"ratios.{series}.{name}": fixed(value, 1) for name, value in values.items()}
        found[f"ratios.{series}.strength"] = f"{mine['strength'].max():g}"
    return found


def of_calibrate(results: Results) -> Numbers:
    """``calibrate.*``: how many readings, and the distances from Figs. 5-9, whole and after the first epoch;
    ``ends.*``: how many by what is left at the end, the ``measure`` of the one that the rule takes, of the ``nearest``,
    and of the ``old``, taken by curves."""
    near = calibrate.distances(calibrate.curves(results)).set_index("reading")
    whole, first = near["distance"], near["first"].sort_values()
    looks = next(iter(calibrate.taken(results).values())).gates
    ends = calibrate.ends(results)
    best, by_reading = ends.iloc[0], ends.set_index("reading")
    nearest = ends.sort_values("measure").iloc[0]
    left = {"measure": fixed(best["measure"]), "heads": fixed(best["heads"]), "neurons": fixed(best["neurons"])}
    left |= {
        "readings": str(len(ends)),
        "headless": str(best["without_heads"]),
        "old": fixed(by_reading["measure"][calibrate.TAKEN]),
    }
    left |= {
        "old.headless": str(by_reading["without_heads"][calibrate.TAKEN]),
        "words": _in_tex(calibrate.words(best["reading"])),
        "nearest": fixed(nearest["measure"]),
        "nearest.words": _in_tex(calibrate.words(nearest["reading"])),
        "nearest.headless": str(nearest["without_heads"]),
    }
    return {
        **{f"ends.{name}": text for name, text in left.items()},
        "calibrate.readings": str(len(near)),
        "calibrate.steps": str(looks[-1].steps),
        "calibrate.near": fixed(whole.min()),
        "calibrate.taken": fixed(whole[calibrate.TAKEN]),
        "calibrate.old": fixed(whole[calibrate.BEFORE]),
        "calibrate.first": fixed(first[calibrate.TAKEN]),
        "calibrate.first.next": fixed(first.drop(calibrate.TAKEN).min()),
        "calibrate.first.old": fixed(first[calibrate.BEFORE]),
    }


def _in_tex(words: str) -> str:
    return words.replace("T²", "$T^2$")


def of_pull(results: Results) -> Numbers:
    """``pull.<network>.<kind>``: the median pull of task and price on each kind of gate."""
    names_of = {network.title: name for name, network in pull.NETWORKS.items()}
    return {
        f"pull.{names_of[row['network']]}.{row['kind'].replace(' ', '-')}": fixed(row["both_middle"])
        for row in pull.load(results).to_dict("records")
    }


def of_bench(rows: pd.DataFrame) -> Numbers:
    """Shares of the cut that the clock shows, steps with gates, and ``peer.<kind>.low``, ``.high``: time over
    Torch-Pruning's, over all budgets (``peer.gmacs``) and widths."""
    main, peer = (rows[rows["report"] == name] for name in ("deit_small_cpu_fp32_b16", "peer_deit_small_cpu"))
    parts = peer["name"].str.split("/", expand=True)
    speed = rows[(rows["mode"] == "speed") & rows["name"].str.startswith("fig5") & (rows["layout"] == "padded")]
    shares = {
        f"{name}.{batch}": mine["share"].dropna() for (name, batch), mine in speed.groupby(["precision", "batch"])
    }
    cut = shares["fp32.16"]
    found = {
        **{f"speed.{key}.low": fixed(mine.min()) for key, mine in shares.items()},
        **{f"speed.{key}.high": fixed(mine.max()) for key, mine in shares.items()},
        "speed.dense": fixed(main.set_index("name")["ratio"].to_dict()["full"], 3),
        "speed.batch": str(main["batch"].max()),
        "speed.share.low": fixed(cut.min()),
        "speed.share.high": fixed(cut.max()),
        "bench.reports": str(rows["report"].nunique()),
        "bench.cuda": str(rows.loc[rows["device"] == "cuda", "report"].nunique()),
        "peer.gmacs": " and ".join(sorted(parts[1].unique(), reverse=True)),
    }
    for report, name in (("steps_deit_small_cpu", "steps.small"), ("steps_vit_tiny_cpu", "steps.tiny")):
        pair = rows[rows["report"] == report].set_index("name")
        memory = pair["memory_mib"].to_dict()
        found[f"{name}.time"] = fixed(pair["ratio"].to_dict()["gated"], 3)
        found[f"{name}.memory"] = fixed(memory["gated"] / memory["dense"], 3)
    for kind in ("fig5", "uniform-qkv", "uniform-v"):
        ratios = peer.loc[parts[0].str.startswith(kind), "ratio"]
        found |= {f"peer.{kind}.low": fixed(ratios.min()), f"peer.{kind}.high": fixed(ratios.max())}
    return found


def of_claims(everything: pd.DataFrame) -> Numbers:
    """``everything``: the ``ledger.verdicts``."""
    verdicts = everything[everything["kind"] != ledger.OTHERS]
    counts = verdicts["verdict"].value_counts()
    trained = verdicts.loc[verdicts["kind"].isin(ledger.TRAINED), "verdict"]
    return {
        "claims.all": str(len(verdicts)),
        "claims.others": str(len(everything) - len(verdicts)),
        **{f"claims.{name}": str(counts.get(name, 0)) for name in ledger.VERDICTS},
        "claims.trained": str(len(trained)),
        "claims.computed": str(len(verdicts) - len(trained)),
        "claims.arithmetic": str(int((verdicts["kind"] == "arithmetic").sum())),
        "claims.own figures": str(int((verdicts["kind"] == "self-consistency").sum())),
        "claims.decided": str(int(trained.isin(ledger.DECIDED).sum())),
    }


def of_project(results: Results) -> Numbers:
    """What is committed, and the defaults of what the paper leaves open."""
    runs, config = results.runs().drop_duplicates("run_id"), Config()  # a start may serve several grids
    hours = runs["seconds"] / 3600
    return {
        "runs.all": fixed(len(runs), 0),
        "runs.hours": fixed(hours[runs["device"] == "cpu"].sum(), 1),
        "runs.hours.gpu": fixed(hours[runs["device"] != "cpu"].sum(), 1),
        "runs.machines": names.machines(runs["device_name"]),
        "runs.threads": str(max(record.environment.threads for record in results.records())),
        "runs.disk": fixed(sum(path.stat().st_size for path in results.root.glob("runs/*/*.json")) / 1e6, 1),
        "methods.baselines": str(len(set(runs["method"]) - {"dense", "hiap"})),
        "default.init": fixed(config.gates.init_logit, 0),
        "default.open": fixed(float(sigmoid(config.gates.init_logit))),
        "default.tau.start": fixed(config.gates.tau_start, 1),
        "default.tau.end": fixed(config.gates.tau_end, 1),
        "default.alpha": fixed(config.distill.alpha, 1),
        "default.temperature": fixed(config.distill.temperature, 0),
    }
