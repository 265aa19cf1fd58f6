"""What README.md and the documentation say of all results at once: a table of what the paper prints beside what was
measured here, and what the tests say of who is ahead of whom. Every number and every side is computed."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pandas as pd

from analysis.records import bench, names, published
from analysis.records.results import Results
from analysis.stats.seeds import Interval
from analysis.studies import budget, crossed, evidence, paired

WIDTH = 125
OURS = names.TARGETED
REALISED = "deploy_deit_small_cpu"  # the report of Fig. 5's heads in a DeiT-Small
DIGITS = "study"  # the study on handwritten digits
HEAD = ("", "In the paper", "Measured here", "On what")
SIDES = {"ahead": "ahead of", "behind": "behind", "undecided": "undecided against"}
HEADS = (HEAD, (":---",) * len(HEAD))
NOTHING = "No comparison has been run yet."


class Line(NamedTuple):
    """One quantity: as the paper prints it, as ``measured`` here, and ``on`` what."""

    what: str
    printed: str
    measured: str
    on: str


def judged(results: Results) -> tuple[evidence.Pair, ...]:
    """The pairs with enough seeds for their primary tests."""
    seeds = {pair: evidence.whole(evidence.load(results, pair.grid), pair) for pair in evidence.PAIRS}
    return tuple(pair for pair, found in seeds.items() if len(found) >= evidence.FEWEST)


def newest(results: Results) -> tuple[evidence.Pair, ...]:
    """The last of those that are ``judged``, which is all that README has room for."""
    return judged(results)[-1:]


def table(results: Results, pairs: Sequence[evidence.Pair] | None = None) -> str:
    """The lines of ``pairs``, by default those that are ``judged``, as Markdown; what no record answers is left out."""
    newest_first = judged(results)[::-1] if pairs is None else pairs
    return names.table([*HEADS, *_lines(results, newest_first)])


def short(results: Results) -> str:
    """``table`` with each question answered on the newest pair alone that answers it."""
    lines = dict[str, Line]()
    for line in _lines(results, judged(results)[::-1]):
        lines.setdefault(re.sub(r", at [\d, and]+ % of the MACs", "", line.what), line)
    return names.table([*HEADS, *lines.values()])


def _lines(results: Results, pairs: Sequence[evidence.Pair]) -> Iterator[Line]:
    for pair in pairs:
        runs = evidence.judged_seeds(evidence.load(results, pair.grid), pair)
        if len(runs):
            yield from _trained(runs, pair, only=len(pairs) == 1)
    yield from _last_ffn(results, pairs)
    yield from _budgets(results)
    yield from _timed(results)


def _trained(runs: pd.DataFrame, pair: evidence.Pair, only: bool) -> Iterator[Line]:
    """Differences in points of top-1 that the paper prints, each on this pair, the ``only`` one of the table or not."""
    table2, table3 = (published.table(name) for name in (published.TABLE2, published.TABLE3))
    third = table3.set_index("method")["final_acc"].groupby(level=0).max()
    slim = table2.set_index(["method", "gmacs"])["top1"]
    wanted = (
        (
            "dense",
            (third["HiAP (Moderate)"], third["HiAP (Aggressive)"]),
            third["Dense Baseline"],
            "CIFAR-10",
            (33, 50),
        ),
        ("uniform", (third["HiAP (Moderate)"],), third["Uniform-Ratio"], "CIFAR-10", (33,)),
        ("ViT-Slim", (slim["HiAP", 3.1],), slim["ViT-Slim", 3.1], "ImageNet", (33,)),
    )
    for title, own, theirs, data, cuts in wanted:
        label = title.lower().replace("-", "_")
        others = [label if title == "dense" else f"{label}-{cut}" for cut in cuts]
        found = [paired.pair(runs, f"hiap-{cut}", other) for cut, other in zip(cuts, others, strict=True)]
        there = [
            (100 - cut, top1 - theirs, one.difference) for cut, top1, one in zip(cuts, own, found, strict=True) if one
        ]
        if there:
            what = f"Top-1 minus {title}'s, at {names.listed([str(left) for left, *_ in there])} % of the MACs"
            printed = f"{', '.join(f'{gain:+.2f}' for _, gain, _ in there)} ({data})"
            n = names.count(pd.Series([difference.n for *_, difference in there]))
            yield Line(what, printed, ", ".join(_points(difference) for *_, difference in there), _on(pair, n, only))
        if title == "dense":
            yield from _rule(runs, pair, only)
    tuned = evidence.finetuning(runs).dropna(subset="target").sort_values("target", ascending=False)
    tuned = tuned[~tuned["label"].str.contains("settled")]  # another form of HiAP
    if len(tuned):
        gained = ", ".join(_points(Interval(*row)) for row in tuned[["difference", "low", "high", "n"]].to_numpy())
        budgets = ", ".join(f"{100 * target:.0f}" for target in tuned["target"])
        what = f"Gain from three more epochs, no teacher, at {budgets} %"
        yield Line(what, "not needed", gained, _on(pair, names.count(tuned["n"]), only))


def _last_ffn(results: Results, pairs: Sequence[evidence.Pair]) -> Iterator[Line]:
    found = [
        (gone, networks, _short(pair))
        for pair in pairs
        for gone, networks in [evidence.last_ffns(results, pair.grid)]
        if networks
    ]
    if found:
        ends = [published.last_state(figure)["neurons"].iloc[-1] == 0 for figure in published.HEAT_MAPS]
        digits, few = evidence.last_ffns(results, DIGITS)
        named = [*found, *([(digits, few, "digits")] if few else [])]
        lost = names.listed([f"{gone} of {networks} on {where}" for gone, networks, where in named])
        printed = f"always (text); {sum(ends)} of {len(ends)} figures"
        yield Line("The last FFN is removed", printed, lost, f"{OURS}, networks")


def _rule(runs: pd.DataFrame, pair: evidence.Pair, only: bool) -> Iterator[Line]:
    rule = runs[runs["label"] == "hiap-faithful"]
    if one := paired.pair(runs, "hiap-faithful", "dense"):
        ends = f"{_points(one.difference)} at {100 * rule['macs_share'].mean():.0f} %"
        told = _on(pair, one.difference.n, only, f"the paper's rule, {rule['steps'].mean():.0f} steps")
        yield Line("Top-1 minus dense's, where the paper's rule ends", "as above", ends, told)


def _points(ends: Interval) -> str:
    return f"{ends.mean:+.2f} [{ends.low:+.2f}, {ends.high:+.2f}]"


def _on(pair: evidence.Pair, n: object, only: bool, what: str = OURS) -> str:
    return ", ".join([what, *([] if only else [_short(pair)]), f"{n} seeds"])


def _short(pair: evidence.Pair) -> str:
    """The data without their size."""
    return pair.data.partition(" at ")[0]


def _budgets(results: Results) -> Iterator[Line]:
    runs, misses = results.runs("budget"), budget.rule_misses(results, "budget")
    if runs.empty:
        return
    data, aimed = runs["data"].iloc[0], runs.dropna(subset="target")
    ends = f"off by {misses.min():+.1f} to {misses.max():+.1f} % of dense"
    yield Line(
        "Hardened minus expected MACs", "0 (Proposition 2)", ends, f"the paper's rule, {data}, {len(misses)} runs"
    )
    short, above = budget.landings(aimed)["shortfall"].max(), int((aimed["macs_share"] > aimed["target"]).sum())
    found = f"at most {short:.2f} % of dense below, {above or 'none'} above"
    yield Line("Ends at a target", "steered there (version 3)", found, f"our budget rule, {data}, {len(aimed)} runs")


def _timed(results: Results) -> Iterator[Line]:
    """Speed of the networks that keep Fig. 5's heads."""
    rows = bench.deploy(results)
    rows = rows[(rows["report"] == REALISED) & rows["share"].notna()]
    if rows.empty:
        return
    where = f"{rows['setting'].iloc[0].split(',')[0]}, CPU; DeiT-Small with Fig. 5's heads"
    fp32 = rows[(rows["batch"] == 1) & (rows["precision"] == "fp32")]
    speed = f"{fp32['own'].min():.2f} to {fp32['own'].max():.2f} times at {100 * fp32['cut'].iloc[0]:.0f} % fewer"
    yield Line(
        "Faster than dense at 33.1 % fewer MACs, batch 1",
        "1.44 times (a GPU)",
        speed,
        f"{where}, fp32, {fp32['runtime'].nunique()} runtimes",
    )
    shares = f"{100 * rows['share'].min():.0f} to {100 * rows['share'].max():.0f} %"
    yield Line(
        "Time saved, in % of the MACs saved", "over 90 % (A100, version 3)", f"{shares}; {_everywhere(results)}", where
    )


def _everywhere(results: Results) -> str:
    """The same in all reports, other processors, smaller precisions and networks of few tokens among them."""
    columns = ["report", "share"]
    rows = pd.concat([bench.realised(results)[columns], bench.deploy(results)[columns].dropna()])
    low, high = 100 * rows["share"].min(), 100 * rows["share"].max()
    return f"{low:.0f} to {high:.0f} % in all {rows['report'].nunique()} reports"


# The sentences


def verdict(results: Results, pairs: Sequence[evidence.Pair] = evidence.PAIRS) -> str:
    """Per pair a paragraph, the newest first: what the tests that were fixed beforehand say of HiAP + target (ours),
    with the training bills, and exploratory differences, without a verdict."""
    joined = [evidence.joined(results, pair) for pair in reversed(pairs)]
    said = [_tested(evidence.load(results, pair.grid), pair) for pair in joined]
    paragraphs = [textwrap.fill(text, WIDTH, break_on_hyphens=False) for text in filter(None, said)]
    return "\n\n".join(paragraphs) or NOTHING


def brief(results: Results) -> str:
    """The tests that were fixed beforehand for the newest pair that is judged, as a table of Markdown: a line a method,
    a column a budget, and what training to the smallest took; below it what has to be said beside it."""
    if not (pairs := newest(results)):
        return NOTHING
    pair = evidence.joined(results, pairs[0])
    runs = evidence.judged_seeds(evidence.load(results, pair.grid), pair)
    rows = evidence.against(runs, pair)
    rows = rows[rows["primary"].astype(bool) & ~names.controls(rows["title"])]
    targets = sorted(rows["target"].unique(), reverse=True)
    found = rows.to_dict("records")
    cells = {(row["title"], row["target"]): f"{row['difference']:+.1f}, {evidence.side(row)}" for row in found}
    last = rows[rows["target"] == targets[-1]].set_index("title")[["train_macs", "reference_train_macs"]] / 1e12
    bill = f"TMACs, to {100 * targets[-1]:.0f} % (its own: {last['reference_train_macs'].iloc[0]:.1f})"
    lines = [[f"{OURS} minus", *(f"at {100 * target:.0f} %" for target in targets), bill]]
    lines += [[":---", *["---:"] * (len(targets) + 1)]]
    for title in dict.fromkeys(rows["title"]):
        paid = f"{last['train_macs'][title]:.1f}" if title in last.index else "-"
        lines.append([title, *(cells.get((title, target), "-") for target in targets), paid])
    said = [
        f"{_short(pair)}, {_epochs(runs)} epochs, {names.count(rows['n'])} seeds; ahead or behind: by "
        "tests fixed beforehand, after Holm's correction.",
        pair.note,
        crossed.sentence(runs, pair) if pair.note else "",
    ]
    return f"{names.table(lines)}\n\n{textwrap.fill(' '.join(filter(None, said)), WIDTH, break_on_hyphens=False)}"


def _tested(runs: pd.DataFrame, pair: evidence.Pair) -> str:
    runs = evidence.judged_seeds(runs, pair)
    rows = evidence.against(runs, pair)
    control = names.controls(rows["title"]) | (rows["method"] == evidence.REFERENCE) | crossed.is_form(rows["variant"])
    rows = rows[~control & (evidence.as_long(rows, runs) | rows["primary"].astype(bool))]
    rows = rows[rows["target"].isin({target for target, _ in pair.primary}) & ~evidence.aside(rows["variant"])]
    tested = rows[rows["primary"].astype(bool)]
    if tested.empty:
        return ""
    sides = {side: dict[str, list[tuple[str, str]]]() for side in SIDES.values()}
    for row in tested.sort_values("target", ascending=False).to_dict("records"):
        shown = (f"{100 * row['target']:.0f}", f"{row['difference']:+.1f}")
        sides[SIDES[evidence.side(row)]].setdefault(row["title"], []).append(shown)
    found = [f"{side} {names.listed(list(map(_at, whom.items())))}" for side, whom in sides.items() if whom]
    seeds, others = names.count(tested["n"]), rows[~rows["primary"].astype(bool)]
    said = [
        f"On {_short(pair)} after {_epochs(runs)} epochs, by tests fixed beforehand ({seeds} seeds, Holm's "
        f"correction), {OURS} is {', and '.join(found)} points; "
        f"{_bill(runs, list(dict.fromkeys(tested['title'])), tested['target'].min())}.",
        _exploratory(others, int(tested["n"].max())),
        pair.note,
        crossed.sentence(runs, pair) if pair.note else "",
    ]
    return " ".join(filter(None, said))


def _at(whom: tuple[str, list[tuple[str, str]]]) -> str:
    """'Taylor at 50 and 35 % (-0.3, -0.4)'."""
    title, shown = whom
    return f"{title} at {names.listed([cut for cut, _ in shown])} % ({', '.join(points for _, points in shown)})"


def _exploratory(rows: pd.DataFrame, seeds: int) -> str:
    """Differences that nothing was fixed for beforehand, by method, and of how many seeds where they are fewer."""
    if rows.empty:
        return ""
    targets = sorted(rows["target"].unique(), reverse=True)
    shown = []
    for title, own in rows.groupby("title", sort=False):
        at = own.set_index("target")["difference"]
        limits = [f"{100 * at.index[0]:.0f} % alone"] if len(at) < len(targets) else []
        limits += [f"{names.count(own['n'])} seeds"] if own["n"].min() < seeds else []
        told = f" ({', '.join(limits)})" if limits else ""
        shown.append(f"{title} {' and '.join(f'{at[t]:+.2f}' for t in targets if t in at.index)}{told}")
    cuts = names.listed([f"{100 * target:.0f}" for target in targets])
    return f"Exploratory differences in points, at {cuts} %: from {names.listed(shown)}."


def _epochs(runs: pd.DataFrame) -> str:
    return f"{runs.loc[runs['variant'] == evidence.REFERENCE, 'epochs'].mode().iloc[0]:g}"


def _bill(runs: pd.DataFrame, titles: list[str], target: float) -> str:
    """The training MACs at a target, of HiAP with one and of these."""
    rows = evidence.accuracies(runs).dropna(subset="target")
    mine = rows[(rows["target"] == target) & ~evidence.aside(rows["variant"])]
    paid = mine.set_index("title")["train_macs"] / 1e12
    own = paid[mine.loc[mine["variant"] == evidence.REFERENCE, "title"].item()]
    theirs = names.listed([f"with {title} {paid[title]:.1f}" for title in titles if title in paid])
    return f"training to {100 * target:.0f} % takes {own:.1f} TMACs, {theirs}"
