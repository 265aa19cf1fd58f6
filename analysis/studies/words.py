"""Sentences of README.md that compare methods, computed: which side of what HiAP is on is never typed by hand."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.records import bench, names, published
from analysis.records.names import METHODS, RUNTIMES, TARGETED, machines
from analysis.records.results import Results
from analysis.stats.seeds import LEVEL
from analysis.studies import comparisons, crossed, evidence, knobs, paired

AGAINST = {"uniform-noise": "Uniform under gate noise (control)", "uniform": "Uniform (exploratory)"}

CONTROL = f" ({names.CONTROL})"

Means = dict[str, dict[Any, Any]]  # a row of evidence.accuracies by its label
WIDTH = 125


def at_papers_shape(results: Results, pair: evidence.Pair = evidence.FIRST) -> str:
    """A pair's grid: a table of the primary tests, and what else the protocol asks to be said."""
    runs = evidence.load(results, pair.grid)
    if runs.empty:
        return f"Not run yet: `python slurm/launch_grid.py --grid {pair.grid}`."
    if len(evidence.whole(runs, pair)) < evidence.FEWEST:
        return _so_far(runs, pair)
    pair = evidence.joined(results, pair)
    runs = evidence.judged_seeds(runs, pair)
    means: Means = {row["label"]: row for row in evidence.accuracies(runs).to_dict("records")}
    compared = {(row["variant"], row["target"]): row for row in evidence.against(runs, pair).to_dict("records")}
    targets = sorted({target for target, _ in pair.primary}, reverse=True)
    head = f"| {TARGETED} minus | {' | '.join(f'{100 * t:.0f} % of the MACs' for t in targets)} |"
    lines = [head, "|:---|" + "---:|" * len(targets)]
    judged = [name for _, name in pair.primary]
    for variant in dict.fromkeys([*judged, *(name for name, _ in compared if name == "uniform")]):
        cells = [_cell(compared[variant, t]) if (variant, t) in compared else "-" for t in targets]
        lines.append(f"| {_against(variant, compared, pair, runs['seed'].nunique())} | {' | '.join(cells)} |")
    n, images = runs["seed"].nunique(), int(runs["test_images"].max())
    caption = (
        f"*Points of top-1 with 95 % intervals over {n} seeds and {images:,} test images. Ahead or behind: p below "
        f"{1 - LEVEL:.2f} after Holm's correction for {_family(pair)}; undecided: not so, even where the interval "
        f"leaves out zero. In brackets TMACs of training, the method's : those of {TARGETED}. "
        f"{len(runs)} runs on one {machines(runs['device_name'])}. {pair.note}".rstrip()
        + "*"
    )
    said = [_levels(means), *_trained_on(runs), *_shape(results, pair), *_explored(runs, pair), *_edges(results, pair)]
    return "\n\n".join(["\n".join(lines), textwrap.fill(caption, WIDTH), _items(said)])


def _family(pair: evidence.Pair) -> str:
    """'12 tests (6 of a pair that is not finished count as showing nothing)'."""
    missing = sum(map(math.isnan, pair.others or ()))
    more = f" ({missing} of a pair that is not finished count as showing nothing)" if missing else ""
    return f"{pair.tests} tests{more}"


def _against(variant: str, compared: Mapping[Any, Any], pair: evidence.Pair, seeds: int) -> str:
    """A method as the table names it; what is exploratory says if it is of fewer seeds, or has another's settings."""
    title = AGAINST.get(variant) or METHODS[variant]
    if any(name == variant for _, name in pair.primary):
        return title
    rows = [row for (name, _), row in compared.items() if name == variant]
    more = ["untuned"] if rows and pair.tuning in knobs.GRIDS else []
    n = pd.Series([row["n"] for row in rows])
    if len(n) and n.min() < seeds:
        more.append(f"{names.count(n)} seeds")
    return title.replace(")", f", {', '.join(more)})") if more else title


def _so_far(runs: pd.DataFrame, pair: evidence.Pair) -> str:
    """What has been measured of a pair with too few seeds for a test: means, and no side."""
    rows = evidence.accuracies(runs).dropna(subset="target")
    targets = sorted({target for target, _ in pair.primary}, reverse=True)
    lines = [f"| top-1, % (TMACs) | {' | '.join(f'{100 * t:.0f} % of the MACs' for t in targets)} |"]
    lines.append("|:---|" + "---:|" * len(targets))
    for variant in dict.fromkeys([evidence.REFERENCE, *(name for _, name in pair.primary)]):
        mine = rows[rows["variant"] == variant].set_index("target")
        cells = [
            f"{mine['top1'][t]:.1f} ({mine['train_macs'][t] / 1e12:.1f})" if t in mine.index else "-" for t in targets
        ]
        lines.append(f"| {TARGETED if variant == evidence.REFERENCE else METHODS[variant]} | {' | '.join(cells)} |")
    dense = runs.loc[runs["label"] == "dense"]
    caption = (
        f"*{pair.data}, dense {dense['top1'].mean():.1f} %; {len(evidence.whole(runs, pair))} of the "
        f"{evidence.FEWEST} seeds that a test needs: no side is taken.*"
    )
    return "\n".join(lines) + "\n\n" + textwrap.fill(caption, WIDTH)


def _items(sentences: list[str]) -> str:
    """A list, since nobody reads eight sentences of numbers in one paragraph."""
    return "\n".join(textwrap.fill(f"- {text}", WIDTH, subsequent_indent="  ") for text in sentences)


def _cell(row: Mapping[Any, Any]) -> str:
    verdict = f", {evidence.side(row)}" if row["primary"] else ""
    return f"{_ends(row)}{verdict} ({row['train_macs'] / 1e12:.1f} : {row['reference_train_macs'] / 1e12:.1f} TMACs)"


def _ends(row: Mapping[Any, Any]) -> str:
    return f"{row['difference']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"


def _levels(means: Means) -> str:
    hiap = [f"{_top1(means, f'hiap-{cut}')} at {100 - cut} %" for cut in (33, 50, 65, 75, 85) if f"hiap-{cut}" in means]
    rule = means.get("hiap-faithful")
    said = f"The dense network has {_top1(means, 'dense')}, {TARGETED} {', '.join(hiap)} of its MACs"
    if rule is not None:
        said += f", {_inside(rule['title'])} {rule['top1']:.2f} % at {100 * rule['macs_share']:.0f} %"
    return said + "."


def _trained_on(runs: pd.DataFrame) -> list[str]:
    """What as many epochs without any price do to the dense network, with each control's difference to it."""
    found = {label: paired.pair(runs, label, "dense") for label in comparisons.CONTROLS}
    shown = [
        f"{names.title(label, 'dense').removesuffix(CONTROL)} {_ends(paired.flat(pair))}"
        for label, pair in found.items()
        if pair
    ]
    if not shown:
        return []
    n = names.count(pd.Series([pair.difference.n for pair in found.values() if pair]))
    return [
        f"As many epochs with nothing pruned, minus the dense network ({n} seeds, exploratory): {'; '.join(shown)}."
    ]


def _inside(title: str) -> str:
    """'The paper's rule' where it does not begin a sentence."""
    return title.replace("The ", "the ", 1) if title.startswith("The ") else title


def _top1(means: Means, label: str) -> str:
    return f"{means[label]['top1']:.2f} %"


def _shape(results: Results, pair: evidence.Pair) -> list[str]:
    """Whether the last FFN goes, as in three of the paper's five figures."""
    gone, networks = evidence.last_ffns(results, pair.grid)
    if not networks:
        return []
    as_there = [str(figure) for figure in published.HEAT_MAPS if published.last_state(figure)["neurons"].iloc[-1] == 0]
    figures = f"Figs. {', '.join(as_there)}"
    runs = results.runs(pair.grid)
    aimed = runs.loc[runs["label"].isin(evidence.aimed_labels(runs)), "target"].unique()
    at = names.listed([f"{100 * target:.0f}" for target in sorted(aimed, reverse=True)])
    said = f"The last block's FFN is gone in {gone} of the {networks} networks at {at} % of the MACs"
    return [f"{said}, as in the paper's {figures}."]


def _explored(runs: pd.DataFrame, pair: evidence.Pair) -> list[str]:
    """Exploratory comparisons, with intervals and without a verdict."""
    said = [*_controls(runs, pair), *_behind(runs, pair)]
    tuned = evidence.finetuning(runs).sort_values("target", ascending=False)
    if len(tuned):
        own = tuned["label"].str.contains("settled")
        shown = [f"{_ends(row)} ({_name(row['target'])})" for row in tuned[~own].to_dict("records")]
        shown += [f"{_ends(row)} (settled, {_name(row['target'])})" for row in tuned[own].to_dict("records")]
        said.append(
            "Three more epochs without a teacher, which the paper leaves out, add "
            f"{', '.join(shown)}; {names.count(tuned['n'])} seeds. What they would add with a teacher was not measured."
        )
    longer = evidence.longer(runs).to_dict("records")
    if longer:
        differences = ", ".join(f"{_ends(row)} ({METHODS[row['method']]})" for row in longer)
        epochs, at = f"{longer[0]['epochs']:g} epochs for both", _name(longer[0]["target"])
        bills = ", ".join(f"{row['train_macs'] / 1e12:.1f}" for row in longer)
        said.append(
            f"With {epochs} ({names.count(pd.Series([row['n'] for row in longer]))} seeds), {TARGETED} {at} minus the "
            f"method is {differences}, for {longer[0]['reference_train_macs'] / 1e12:.1f} against {bills} TMACs."
        )
    settled = [
        f"{_ends(row)} {_name(row['target'])} for {row['bill']:.2f} of the training MACs"
        for row in evidence.settled(runs).to_dict("records")
    ]
    if settled:
        said.append(f"Gates that settle early and leave the rest to the small network (ours): {', '.join(settled)}.")
    return said


def _controls(runs: pd.DataFrame, pair: evidence.Pair) -> list[str]:
    """What no one would choose, at the same target: units without sizes, sizes without units, a shape alone."""
    rows = evidence.against(runs, pair)
    mine = names.controls(rows["title"]) & ~rows["primary"].astype(bool)
    mine &= rows["target"].isin({target for target, _ in pair.primary})
    rows = rows[mine].sort_values(["target", "difference"], ascending=False)
    said = []
    for _, own in rows.groupby("target", sort=False):
        shown = [f"{row['title'].removesuffix(CONTROL)} {_ends(row)}" for row in own.to_dict("records")]
        how = f"Controls {_name(own['target'].iloc[0])} (exploratory, {names.count(own['n'])} seeds)"
        said.append(f"{how}, {TARGETED} minus: {'; '.join(shown)}.")
    return said


def _behind(runs: pd.DataFrame, pair: evidence.Pair) -> list[str]:
    """Exploratory comparisons at equal epochs whose whole interval is below zero, which a reader must not miss."""
    rows = evidence.against(runs, pair)
    mine = (rows["method"] == evidence.REFERENCE) | rows["primary"].astype(bool)
    mine |= names.controls(rows["title"]) | crossed.is_form(rows["variant"])
    rows = rows[~mine & evidence.as_long(rows, runs) & (rows["high"] < 0)].sort_values("target", ascending=False)
    shown = [
        f"{row['title']} {_name(row['target'])} {_ends(row)} ({row['n']} seeds, {row['train_macs'] / 1e12:.1f} : "
        f"{row['reference_train_macs'] / 1e12:.1f} TMACs)"
        for row in rows.to_dict("records")
    ]
    return [f"Exploratory, {TARGETED} is behind {names.listed(shown)}."] if shown else []


def _name(target: float) -> str:
    """'at 50 %', or what has no target."""
    return "the paper's rule, which is undertrained" if pd.isna(target) else f"at {100 * target:.0f} %"


def _edges(results: Results, pair: evidence.Pair) -> list[str]:
    """Which tuned settings end their range."""
    if pair.tuning in knobs.GRIDS:
        return [knobs.sentence(results, pair.tuning)]
    tuned = evidence.tuned(evidence.load(results, pair.tuning), results.finished(pair.tuning))
    taken = tuned[tuned["taken"]]
    at = taken[taken["edge"] != ""]
    if at.empty:
        return []
    shown = "; ".join(
        f"{names.title(name, name.split('-')[0], 0.5)}: {edge}"
        for name, edge in zip(map(str, at["tuned"]), at["edge"], strict=True)
    )
    return [f"Of {len(taken)} tuned methods {len(at)} end on the edge of a range, which was not extended ({shown})."]


DEPLOYED = "deploy_vit_small_cpu"  # the report of pretrained networks, with their accuracy


def deployed(results: Results) -> str:
    """A table of the fastest runtime for each network and precision, and top-1 there."""
    rows = bench.deploy(results)
    rows = rows[(rows["report"] == DEPLOYED) & rows["fastest"]]
    if rows.empty:
        return "Not measured yet: `python -m hiap.bench deploy`."
    batches, shown = sorted(rows["batch"].unique()), list[list[str]]()
    for (network, precision), group in rows.groupby(["network", "precision"], sort=False):
        one = group.set_index("batch")
        fast = [f"{one['best'][b]:.2f} ({RUNTIMES[one['runtime'][b]]})" if b in one.index else "-" for b in batches]
        right, left = one["top1"].dropna(), 100 * (1 - one["cut"].iloc[0])
        name = names.network(str(network))
        shown.append([name, f"{left:.0f} %", str(precision), *fast, f"{right.iloc[0]:.2f} %" if len(right) else "-"])
    head = ["Network", "MACs", "Precision", *(f"Batch {batch}" for batch in batches), "Top-1"]
    lines: list[list[str]] = [head, [":---", "---:", ":---", *["---:"] * (len(batches) + 1)], *shown]
    table = names.table(lines)
    caption = (
        f"*Times the dense network in fp32 in its fastest runtime, in the runtime that is fastest for the row; "
        f"{rows['setting'].iloc[0]}; top-1 on validation images.*"
    )
    return f"{table}\n\n{textwrap.fill(caption, WIDTH)}"


REALISED = "deploy_deit_small_cpu"  # the report of Fig. 5's heads in a DeiT-Small


def realised(results: Results) -> str:
    """Which share of the multiply-adds removed is time saved, in each runtime."""
    rows = bench.deploy(results)
    rows = rows[(rows["report"] == REALISED) & rows["share"].notna()]
    if rows.empty:
        return "Not measured yet: `python -m hiap.bench deploy topologies=[fig5@3.1] multiple=16`."
    parts = []
    for (runtime, precision), group in rows.groupby(["runtime", "precision"], sort=False):
        cells = [f"{row['share']:.2f} ({row['worst']:.2f})" for row in group.sort_values("batch").to_dict("records")]
        parts.append(f"{RUNTIMES[str(runtime)]} {precision} {' and '.join(cells)}")
    batches, cut = " and ".join(map(str, sorted(rows["batch"].unique()))), 100 * rows["cut"].iloc[0]
    said = (
        f"Of the multiply-adds that Fig. 5's heads remove from a DeiT-Small ({cut:.0f} %, widths in multiples of 16), "
        f"the share that is time saved, at batch {batches}, median and in brackets the worst of several processes: "
    )
    return textwrap.fill(f"{said}{'; '.join(parts)} ({rows['setting'].iloc[0]}).", WIDTH)


def on_digits(results: Results) -> str:
    """Grids ``study`` and ``study_long``: which pruned variants HiAP with a target is ahead of and behind at each
    budget, and what its gates' rate has to do with it."""
    short, longer = (paired.load(results, grid) for grid in ("study", "study_long"))
    found = {"equal epochs": comparisons.study(short), "longer recipes": comparisons.study(longer)}
    found = {said: comparisons.standing(rows).set_index("target") for said, rows in found.items() if len(rows)}
    targets = sorted({target for rows in found.values() for target in rows.index}, reverse=True)
    heads = [f"{said}: {side}" for said in found for side in ("ahead of", "behind", "of")]
    lines = [["MACs left", *heads], ["---:", *[":---", ":---", "---:"] * len(found)]]
    for target in targets:
        cells = [f"{100 * target:.0f} %"]
        for rows in found.values():
            row: dict[str, Any] = {"worse": [], "better": [], "methods": 0}
            row |= dict(rows.loc[target]) if target in rows.index else {}
            cells += [", ".join(row["worse"]) or "-", ", ".join(row["better"]) or "-", f"{row['methods']}"]
        lines.append(cells)
    if not targets:
        return ""
    caption = f"*{TARGETED} against other pruned variants, decided after Holm's correction.*"
    return "\n\n".join(filter(None, [names.table(lines), caption, _items(_faster_gates(short))]))


def _faster_gates(runs: pd.DataFrame) -> list[str]:
    """Of grid ``study``: HiAP with four times the gates' rate at the deepest cut; found on these test images, so
    exploratory."""
    label = "hiap-rate-0.2-65"
    others = {"hiap-65": "itself at 0.05", "random-65": "random", "vit_slim-65": METHODS["vit_slim"]}
    found = {title: pair for other, title in others.items() if (pair := paired.pair(runs, label, other))}
    shown = ", ".join(f"{_ends(paired.flat(pair))} ({title})" for title, pair in found.items())
    if not shown:
        return []
    return [
        f"With 0.2 for the gates' rate instead of 0.05 and nothing else changed, {TARGETED} at 35 % minus the other is "
        f"{shown}; that rate was chosen by these test images."
    ]
