"""The fourteen findings, each stated once: what the paper says, what follows, and the numbers behind it.

``FINDINGS`` feeds the table of numbers (``overview``), the report's sentences (``said``, ``found``) and its macros.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.findings import costs, gates, heat_maps, speed_limit, table2
from analysis.findings.costs import DEIT_SMALL, WHOLE
from analysis.records.names import fixed
from hiap.train.config import GateConfig
from hiap.train.reach import GROWN

OF_HEADS, OF_DIMS, OF_NEURONS = f"of {WHOLE['heads']}", f"of {DEIT_SMALL.head_dim}", f"of {DEIT_SMALL.hidden}"
TEN = 10  # epochs within which, says the text, heads have closed
BEATEN = "1.5:1"  # the ratio that finding 9 holds against 2:1
FIGURES = dict(zip(heat_maps.FIGURE_RATIOS, ("five", "six", "seven", "eight", "nine"), strict=True))  # in macros


class Number(NamedTuple):
    """``quantity``: its line in the table of numbers, ``macro``: its name in the report's prose, with so many
    ``digits``; '': it is not there."""

    quantity: str
    value: float
    unit: str = ""
    macro: str = ""
    digits: int = 2

    def __str__(self) -> str:
        return fixed(self.value, self.digits)


class Finding(NamedTuple):
    """``said`` by the paper, and ``found``, as TeX."""

    said: str
    found: str
    numbers: list[Number]


def flops_for_macs() -> Finding:
    units = costs.units()
    eq5 = Number("Eq. 5 over dense DeiT-Small", units.paper / 1e9, "GFLOPs", "units.paper", 3)
    true = Number("prunable part of dense DeiT-Small", units.prunable_macs / 1e9, "GMACs", "units.true", 3)
    ratio = Number("Eq. 5 / prunable MACs", units.ratio, "", "units.ratio", 0)
    dense = "dense DeiT-Small"
    macs = Number(dense, units.total_macs / 1e9, "GMACs", "units.total", 3)
    params = Number(dense, units.params / 1e6, "M parameters", "units.params")
    found = f"it counts {ratio} operations each: {eq5} G where {true} G can be pruned"
    return Finding("Eq. 5 counts MACs", found, [eq5, true, ratio, macs, params])


def value_dimensions() -> Finding:
    value = costs.value_dimension()
    credited = Number("credited by Eq. 5 for one value dimension", value.credited, "MACs", "value.credited", 0)
    saved = Number("saved by removing one value dimension", value.saved, "MACs", "value.saved", 0)
    share = Number("credited / saved", 100 * value.share, "%", "value.share", 0)
    found = f"with {share}\\,\\% of that, {credited} of {saved} MACs: V is the head's bill"
    return Finding("a value dimension is credited with what it costs", found, [credited, saved, share])


def ways_of_counting() -> Finding:
    model, parts, search = "CIFAR-10 model", costs.cost_parts(), costs.search_conventions()
    hits = search[search["hit"]]
    both, none = (hits[hits["attention_products"] == count] for count in (2, 0))
    kinds = {name: Number(f"{model}: {name}", macs / 1e6, "MMACs", f"cifar.{name}", 1) for name, macs in parts.items()}
    true = Number(f"{model}: all", sum(parts.values()) / 1e6, "MMACs", "cifar.true", 1)
    thop = Number(f"{model}: as thop counts", costs.thop_count() / 1e6, "MMACs", "cifar.thop", 1)
    counted = f"{true} M ({kinds['attention']} M of them attention's products)"
    return Finding(
        "4.6 G and 174.0 M are counted alike",
        f"the CIFAR-10 network has {counted}, {thop} M to a profiler that does not see these; 4.6 G includes them",
        [
            *kinds.values(),
            true,
            thop,
            Number("ways of counting that were tried", len(search), "", "search.tried", 0),
            Number("of them, round to 174.0 M", len(hits), "", "search.hits", 0),
            Number("of these, count both attention products", len(both), "", "search.hits.with", 0),
            Number("of these, with a whole MLP ratio", (both["mlp_ratio"] % 1 == 0).sum()),
            Number("", len(none), "", "search.hits.without", 0),
        ],
    )


def hardening() -> Finding:
    one, two = gates.hardening_gap(), gates.hardening_gap(gates=2)
    units, at = "ten units", f"at logit {gates.LOGIT:g}"
    expected = Number(f"{units} {at}: expected", one.expected, "units", "gap.one.expected")
    hardened = Number(f"{units} {at}: hardened", one.hardened, "units", "gap.one.hardened", 0)
    behind_two = Number(f"{units} behind two gates {at}: expected", two.expected, "units", "gap.two.expected")
    result = f"{expected} expected, {hardened} hardened; behind two gates {behind_two} expected"
    both_hardened = Number(f"{units} behind two gates {at}: hardened", two.hardened, "units")
    example = [Number("", gates.UNITS, "", "gap.units", 0), Number("", gates.LOGIT, "", "gap.logit", 1)]
    said = "hardening meets the expected cost as $\\tau$ falls"
    numbers = [expected, hardened, behind_two, both_hardened, *example]
    return Finding(said, f"{units} {at}, at any $\\tau$: {result}", numbers)


def undecided_samples() -> Finding:
    tau = gates.ANNEALED[1]
    quantity = f"samples in {gates.UNDECIDED} at logit 0, temperature {tau:g}"
    share = Number(quantity, 100 * gates.undecided_share(tau), "%", "undecided", 0)
    found = f"there {share}\\,\\% of the samples at logit 0 lie in {gates.UNDECIDED}"
    return Finding(f"$\\tau$ falls to a minimum near zero, in experiments {tau:g}", found, [share])


def macro_only() -> Finding:
    reach = heat_maps.macro_only_reach()
    most = Number("Fig. 8's last architecture, at most", reach["largest"].iloc[0] / 1e9, "GMACs", "macro.largest", 3)
    points = [
        Number(f"can it be Fig. 4's {point / 1e9:.1f} G point? (1 yes)", float(reached))
        for point, reached in zip(reach["point"], reach["reached"], strict=True)
    ]
    closed = Number("value dims per head then closed, penalty off", reach["closed_dims"].max(), OF_DIMS)
    missed = ", ".join(f"{point / 1e9:.1f} G" for point in reach.loc[~reach["reached"], "point"])
    found = f"that of Fig. 8 ends at {most} G at most, below the point at {missed}"
    return Finding("Figs. 4 and 8 show macro-only runs, perhaps the same", found, [most, *points, closed])


def price_of_a_head() -> Finding:
    pressure, numbers = heat_maps.head_pressure(), list[Number]()
    pairs, macro = heat_maps.contradictions(pressure), pressure[pressure["lambda_macro"] > 0]
    wrong = ", ".join(f"it is higher in Fig. {more} than in Fig. {less}, and more heads stay" for more, less in pairs)
    for row in pressure.to_dict("records"):
        shown, name, on_one = f"Fig. {row['figure']}", FIGURES[row["figure"]], row["pressure"] / 1e6
        numbers.append(Number(f"{shown}: pressure on one head", on_one, "λ MFLOPs", f"pressure.{name}", 1))
        numbers.append(Number(f"{shown}: heads left", row["heads"], OF_HEADS, f"heads.{name}", 0))
    for shown, column in (("pressure", "pressure"), ("λ ratio", "ratio")):
        found = heat_maps.heads_rank_correlation(macro, column)
        numbers.append(Number(f"rank correlation of {shown} and heads, Figs. 5-8", found))
    numbers.append(Number("pairs in which more pressure left more heads, surely", len(pairs)))
    return Finding("Eq. 7 puts a price on a head", f"{wrong}: a normalisation is unstated", numbers)


def described_network() -> Finding:
    text, numbers = table2.Described(), list[Number]()
    for printed in table2.hiap_rows():
        name, neurons = "{} G / {} M".format(*printed), table2.feasible_region(*printed)["neurons"]
        fewest = {label: table2.fewest_value_dims(*printed, cut) for label, cut in table2.CUTS.items()}
        numbers.append(Number(f"{name}: fewest neurons per live FFN", neurons.min(), OF_NEURONS))
        numbers.append(Number(f"{name}: most neurons per live FFN", neurons.max(), OF_NEURONS))
        numbers.append(Number(f"{name}: as many neurons as described possible? (1 yes)", None not in fewest.values()))
        wanted = f"{name}: fewest dims per head, {text.heads[1]} heads in every block"
        numbers += [
            Number(f"{wanted}, {label}", least, OF_DIMS) for label, least in fewest.items() if least is not None
        ]
    impossible = table2.table2_check().query("not possible")
    numbers.append(Number("rows of Table 2 that no choice of heads, dims and neurons gives", len(impossible)))
    gmacs, params = table2.hiap_rows()[0]
    dims = {cut: table2.fewest_value_dims(gmacs, params, cut) or np.nan for cut in table2.CUTS.values()}
    needed = {cut: Number("", value, "", f"fewest.{cut}", 1) for cut, value in dims.items()}
    narrow = [Number("", 100 * table2.narrow_share(value), "", f"narrow.{cut}", 0) for cut, value in dims.items()]
    names = ", ".join(f"{row['method']}'s at {row['gmacs']} G" for row in impossible.to_dict("records"))
    needs = f"if heads keep {needed['v']} of 64 dims in the mean (Q, K and V cut: {needed['qkv']})"
    numbers += [*needed.values(), *narrow, Number("", text.value_dims, "", "described.dims", 0)]
    said = f"{gmacs} G and {params} M are the described network's"
    return Finding(said, f"{needs}; no network has both sizes of {names}", numbers)


def best_ratio() -> Finding:
    points, numbers = heat_maps.against_two_to_one().query("ratio == @BEATEN").to_dict("records"), list[Number]()
    for row in points:
        macro = "" if numbers else "ahead.low"
        numbers.append(Number(f"{BEATEN} above the 2:1 line at {row['gflops']} G", row["ahead"], "points", macro, 1))
        for curve, macro in (("quadratic", "quadratic"), ("cubic", "cubic")):
            name = "" if any(n.macro == f"ahead.{macro}" for n in numbers) else f"ahead.{macro}"
            quantity = f"{BEATEN} above a {curve} 2:1 curve at {row['gflops']} G"
            numbers.append(Number(quantity, row[f"ahead_{curve}"], "points", name, 1))
        smooth = f"{BEATEN} above a smooth 2:1 curve at {row['gflops']} G"
        numbers.append(Number(smooth, row["ahead_smooth"], "points"))
    first = points[0]
    curves = f"{first['least']:.1f} to {first['most']:.1f} points at {first['gflops']} G"
    found = f"{BEATEN} is above it by {curves}, as one draws its curve; one run a point: undecided"
    return Finding("2:1 is the best ratio", found, numbers)


def last_ffn() -> Finding:
    ffn = heat_maps.last_ffn().set_index("figure")["neurons"]
    stays = " and ".join(map(str, ffn.index[ffn > 0]))
    numbers = [Number(f"Fig. {figure}: neurons of the last FFN", left, OF_NEURONS) for figure, left in ffn.items()]
    return Finding("the last FFN is always removed", f"it stays in Figs. {stays}", numbers)


def training_budgets() -> Finding:
    training, epochs = table2.rows_with_training(), table2.reported_epochs()["epochs"]
    rows = Number("rows of Tables 2 and 3", training["rows"].sum(), "", "told.rows", 0)
    state = Number("of them, state what training took", training["state"].sum(), "", "told.state", 0)
    fewest = Number("Table 2's methods elsewhere: fewest epochs", epochs.min(), "epochs")
    most = Number("Table 2's methods elsewhere: most epochs", epochs.max(), "epochs")
    return Finding("training budgets are critical", f"{state} of {rows} rows state one", [rows, state, fewest, most])


def vit_slims_formula() -> Finding:
    slim, numbers = table2.vit_slim_rows().to_dict("records"), list[Number]()
    for row in slim:
        at = f"ViT-Slim's {row['gmacs']} G / {row['params_m']} M at budget {row['share']:.1f}"
        macro = "" if numbers else "slim.formula"
        numbers.append(Number(f"{at}: its formula", row["formula"], "GMACs", macro))
        numbers.append(Number(f"{at}: plain", row["plain"], "GMACs"))
        numbers.append(Number(f"{at}: parameters", row["params"], "M"))
    said = f"ViT-Slim's {slim[0]['params_m']} M row costs {slim[0]['gmacs']} G"
    return Finding(said, f"{numbers[0]} G by its own formula", numbers)


def own_table() -> Finding:
    (larger, _), *_ = table2.hiap_rows()
    numbers: list[Number] = []
    for gmacs, group in table2.better_and_no_larger().groupby("hiap_gmacs"):
        macros = ("better.rows", "better.most") if gmacs == larger else ("", "")
        name, ahead = f"HiAP's {gmacs} G", group["ahead"].max()
        rows = Number(f"more accurate than {name} at no more MACs", len(group), "rows of Table 2", macros[0], 0)
        numbers += [rows, Number(f"the best of them is ahead of {name} by", ahead, "points", macros[1])]
    count, most = (number for number in numbers if number.macro)
    found = f"{count} rows beat its {larger} G at no more MACs, by up to {most}"
    return Finding("Table 2 compares HiAP with others", found, numbers)


def speed_limits() -> Finding:
    start = GateConfig().init_logit
    scheduled, cifar = (speed_limit.reach(phase) for phase in (speed_limit.FIGURES, speed_limit.CIFAR))
    grown, columns = speed_limit.grown(speed_limit.FIGURES, 1), speed_limit.first_columns().set_index("figure")
    most, first = 100 * speed_limit.most_open_start(), speed_limit.first_reach().query("rate == @speed_limit.RATE")
    full = speed_limit.reach(speed_limit.FIGURES, full=True)[0]
    epoch = Number("travel in an ImageNet epoch at the full rate", full, "logits", "limit.epoch")
    longest = Number("travel in all 200 epochs on CIFAR-10", cifar[-1], "logits", "limit.cifar")
    faster = f"the same if the gradient grows {GROWN:.0f}-fold meanwhile, at most"
    late = float(speed_limit.first_epoch(scheduled, start) or np.nan)
    numbers = [
        epoch,
        Number(faster, grown, "logits", "limit.grown"),
        Number("travel in the first epoch of 50, with warm-up", scheduled[0], "logits"),
        Number("travel in the first ten epochs of 50", scheduled[TEN - 1], "logits", "limit.ten", 1),
        Number("travel in all 50 epochs", scheduled[-1], "logits", "limit.all"),
        longest,
        Number("open at the start, at most, if closed after one epoch", most, "%", "limit.open", 0),
        Number("", 100 * float(gates.sigmoid(grown)), "%", "limit.open.grown", 0),
        Number("", TEN, "", "limit.ten.epochs", 0),
    ]
    for at, epochs in first.set_index("start")["full"].items():
        quantity, macro = (
            f"epochs to close a gate that starts at {at:g}, full rate",
            "limit.full" if at == start else "",
        )
        numbers.append(Number(quantity, float(epochs), "epochs", macro, 1))
    quantity = f"the same from our default, {start:g}, as scheduled"
    numbers.append(Number(quantity, late, "epochs", "limit.scheduled", 1))
    for figure, shown in columns.iterrows():
        at, name, neurons = f"Fig. {figure}", FIGURES[figure], 100 * shown["neurons_closed"]  # type: ignore[index]
        heads, share = f"{at}: heads closed after one epoch", f"{at}: neurons closed after one epoch"
        numbers.append(Number(heads, shown["heads_closed"], OF_HEADS, f"limit.heads.{name}", 0))
        numbers.append(Number(share, neurons, "%", f"limit.neurons.{name}", 0))
    closed = columns["heads_closed"]
    moves = f"it moves a logit by {epoch} in an epoch of ImageNet, by {longest} in all of Table 3's training"
    ends = f"Figs. 5 to 9 have {closed.min()} to {closed.max()} {OF_HEADS} heads closed after their first epoch"
    return Finding(f"one rate is stated, {RATE}", f"{moves}; {ends}", numbers)


RATE = "$5\\cdot10^{-5}$"  # ``speed_limit.RATE``
FINDINGS: tuple[Callable[[], Finding], ...] = (
    flops_for_macs, value_dimensions, ways_of_counting, hardening, undecided_samples, macro_only, price_of_a_head,
    described_network, best_ratio, last_ffn, training_budgets, vit_slims_formula, own_table, speed_limits,
)  # fmt: skip


@cache
def findings() -> dict[int, Finding]:
    """All fourteen by their number."""
    return {number: finding() for number, finding in enumerate(FINDINGS, start=1)}


def overview() -> pd.DataFrame:
    """Their numbers, one per row: ``finding``, ``quantity``, ``value``, ``unit``."""
    rows = [(n, *number[:3]) for n, finding in findings().items() for number in finding.numbers if number.quantity]
    return pd.DataFrame(rows, columns=["finding", "quantity", "value", "unit"]).astype({"value": float})


def macros() -> dict[str, str]:
    """Those that the report's prose may name, as TeX."""
    numbers = [number for finding in findings().values() for number in finding.numbers if number.macro]
    return {"limit.rate": RATE, **{number.macro: str(number) for number in numbers}}
