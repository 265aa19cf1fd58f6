"""Findings 6 to 13: the paper's tables and figures held against each other, and all fourteen as one table.

Equations, tables and figures are those of arXiv 2603.12222 version 1. Nothing is quoted but what ``Described`` names:
numbers follow from ``hiap.ledger`` and from the reported values in ``results/published``.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy.interpolate import PchipInterpolator
from scipy.optimize import linprog
from scipy.stats import spearmanr

from analysis import collect, findings, speed_limit
from analysis.findings import DEIT_SMALL
from hiap.ledger import Dims, constant_macs, dense_params, paper_prices, true_prices

ROUNDING = 0.05  # half a unit of the last digit of 3.1 G and 15.0 M
READING = 0.005  # G, how exactly Fig. 4 was read off
MACRO_ONLY = 8  # figure of the run without micro penalty


# Finding 6: Fig. 8 against Fig. 4


def macro_only_reach(dims: Dims = DEIT_SMALL) -> pd.DataFrame:
    """Finding 6: Fig. 4's macro-only points against the most that Fig. 8's last architecture can cost (MACs).

    ``reached``: whether it can be that point. ``closed_dims``: value dimensions of each head that would then have to be
    closed, on average, although their penalty is off. So Fig. 8 is not the 3.3 G run, which then has no heat map, and
    it is the 3.1 G run only if the heads lost two thirds of their value dimensions without being asked to (a third, if
    their Q and K dimensions went along, A4)."""
    last = findings.final_sizes(dims).set_index("figure").loc[MACRO_ONLY]
    points = collect.published("fig4_penalty_ratios").query("ratio == 'macro-only'")["gflops"].to_numpy()
    per_dim = true_prices(dims.tokens, dims.dim, dims.head_dim).value_dim
    reached = last["macs"] >= (points - READING) * 1e9
    closed = np.where(reached, (last["macs"] - points * 1e9) / per_dim / last["heads"], np.nan)
    return pd.DataFrame({"point": points * 1e9, "largest": last["macs"], "reached": reached, "closed_dims": closed})


# Finding 7: lambda and heads


def head_pressure(dims: Dims = DEIT_SMALL) -> pd.DataFrame:
    """Finding 7: what Eq. 7 pays for closing one head in Figs. 5-9, in FLOPs times lambda, and what was left.

    ``pressure`` = lambda_macro C1 + Dh lambda_micro C2 holds while all value dimensions of the head are open, ``least``
    = lambda_macro C1 when none is. ``ratio`` is lambda_macro / lambda_micro; ``heads``, ``neurons``: at the last epoch.
    Pressure does not order the heads; the ratio nearly does, as if the penalty were divided by the sum of both lambdas
    (unstated), or as if heads were worth more where more neurons are gone."""
    prices = paper_prices(dims.tokens, dims.dim, dims.head_dim)
    strengths = collect.published("fig5_9_gate_heatmaps").groupby("figure")[["lambda_macro", "lambda_micro"]].first()
    rows = strengths.join(findings.final_sizes(dims).set_index("figure")[["heads", "neurons"]]).reset_index()
    macro, micro = rows["lambda_macro"], rows["lambda_micro"]
    least = macro * prices.head
    return rows.assign(
        least=least, pressure=least + micro * dims.head_dim * prices.value_dim, ratio=macro / micro.replace(0, np.nan)
    ).fillna({"ratio": np.inf})


def heads_rank_correlation(rows: pd.DataFrame, column: str) -> float:
    """Spearman's correlation of a column of ``head_pressure`` with the heads that were left."""
    return float(spearmanr(rows[column], rows["heads"]).statistic)


def contradictions(rows: pd.DataFrame) -> list[tuple[int, int]]:
    """Pairs of figures of which the first had more pressure on heads, however many value dimensions were open in
    either, and yet kept more heads."""
    both = itertools.permutations(rows.to_dict("records"), 2)
    return [(a["figure"], b["figure"]) for a, b in both if a["least"] > b["pressure"] and a["heads"] > b["heads"]]


# Finding 8: what can cost as much as Table 2 says


@dataclass(frozen=True)
class Described:
    """What the text says of the pruned DeiT-Small: ranges per block; the last FFN is gone; value dimensions go from 64
    to ``value_dims`` or fewer."""

    heads: tuple[int, int] = (2, 4)
    neurons: tuple[int, int] = (1200, 1400)
    value_dims: int = 32
    live_ffns: int = 11


Cut = Literal["v", "qkv"]  # A4: only value dimensions go (Eq. 3), or those of Q, K and V alike (section 3.4)
CUTS: dict[str, Cut] = {"only V cut": "v", "Q, K and V cut": "qkv"}


def width(heads: float, value_dims: float, cut: Cut, dims: Dims = DEIT_SMALL) -> float:
    """Attention dimensions of a block, the mean of its Q/K and its V dimensions: they cost equally many MACs, and
    parameters but for one bias in 770, so cost depends on their sum alone."""
    return heads * (value_dims + (dims.head_dim if cut == "v" else value_dims)) / 2


def value_dims(width: float, heads: float, cut: Cut, dims: Dims = DEIT_SMALL) -> float:
    """The inverse of ``width``: value dimensions of each head."""
    return 2 * width / heads - dims.head_dim if cut == "v" else width / heads


def cost_of(live_ffns: int, dims: Dims = DEIT_SMALL) -> tuple[np.ndarray, np.ndarray]:
    """(matrix, constant) that turn (width of a block, neurons of a live FFN) into (MACs, parameters)."""
    prices, d = true_prices(dims.tokens, dims.dim, dims.head_dim), dims.dim
    qk, v, neuron = 2 * (d + 1), d + 1 + d, d + 1 + d  # parameters of one unit: rows with their bias, columns without
    gone = dims.depth - live_ffns  # FFNs that took their output bias along (A9)
    inner, hidden = dims.depth * dims.heads * dims.head_dim, dims.depth * dims.hidden
    rest = dense_params(dims) - inner * (qk + v) - hidden * neuron - gone * d
    matrix = [
        [dims.depth * 2 * prices.value_dim, live_ffns * prices.neuron],
        [dims.depth * (qk + v), live_ffns * neuron],
    ]
    return np.array(matrix, dtype=float), np.array([constant_macs(dims), rest], dtype=float)


def feasible_region(gmacs: float, params_m: float, live_ffns: int = 11, dims: Dims = DEIT_SMALL) -> pd.DataFrame:
    """Finding 8: corners, in order, of the parallelogram of all (``width``, ``neurons`` per live FFN) that cost what a
    row of Table 2 prints, to its last digit. Corners may lie outside what the network has."""
    matrix, constant = cost_of(live_ffns, dims)
    signs = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    targets = np.array([gmacs * 1e9, params_m * 1e6]) + signs * ROUNDING * np.array([1e9, 1e6])
    return pd.DataFrame(np.linalg.solve(matrix, (targets - constant).T).T, columns=["width", "neurons"])


def width_range(
    gmacs: float, params_m: float, neurons: tuple[float, float], live_ffns: int = 11, dims: Dims = DEIT_SMALL
) -> tuple[float, float] | None:
    """Smallest and largest ``width`` that costs what is printed with a mean number of ``neurons`` in this range; None
    if no width does."""
    matrix, constant = cost_of(live_ffns, dims)
    scale = np.array([1e9, 1e6])
    printed = np.array([gmacs, params_m])
    rows, level = matrix / scale[:, None], constant / scale
    limits = np.concatenate([printed + ROUNDING - level, -(printed - ROUNDING - level)])
    bounds = [(0, dims.heads * dims.head_dim), neurons]
    ends = [linprog([sign, 0], A_ub=np.vstack([rows, -rows]), b_ub=limits, bounds=bounds) for sign in (1, -1)]
    return (float(ends[0].x[0]), float(ends[1].x[0])) if all(end.status == 0 for end in ends) else None


def fewest_value_dims(gmacs: float, params_m: float, cut: Cut, text: Described | None = None) -> float | None:
    """Fewest value dimensions per head with which the described architecture costs what is printed: as many heads and
    neurons in its ranges as suit that best. None: its range of neurons excludes it. ``text``: default as described."""
    text = text or Described()
    found = width_range(gmacs, params_m, text.neurons, text.live_ffns)
    return None if found is None else value_dims(found[0], text.heads[1], cut)


def table2_check(dims: Dims = DEIT_SMALL) -> pd.DataFrame:
    """Table 2 with its arithmetic redone: ``recomputed`` change against the dense row; ``possible``: whether any
    choice of heads, dimensions and neurons of DeiT-Small has both the printed MACs and parameters."""
    rows = collect.published("table2_deit_small")
    dense = rows.loc[rows["method"] == "Dense Baseline", "top1"].item()
    whole = (0.0, float(dims.hidden))
    return rows.assign(
        recomputed=(rows["top1"] - dense).round(2).where(rows["change"].notna()),
        reduction=100 * (1 - rows["gmacs"] / rows["gmacs"].max()),
        possible=[
            width_range(g, p, whole, dims.depth, dims) is not None
            for g, p in zip(rows["gmacs"], rows["params_m"], strict=True)
        ],
    )


# Finding 9: is 2:1 optimal?


def against_two_to_one() -> pd.DataFrame:
    """Finding 9: Fig. 4's other points within the range of the 2:1 line. ``ahead``: points of top-1 above the line
    between its neighbours; ``ahead_smooth``: above a monotone cubic through the same four points. The lead of 1.5:1 at
    1.8 G holds for both, that at 2.9 G only for the straight line."""
    points = collect.published("fig4_penalty_ratios")
    line = points[points["ratio"] == "2:1"].sort_values("gflops")
    x, y = line["gflops"].to_numpy(), line["top1"].to_numpy()
    others = points[(points["ratio"] != "2:1") & points["gflops"].between(x[0], x[-1])].reset_index(drop=True)
    return others.assign(
        ahead=others["top1"] - np.interp(others["gflops"], x, y),
        ahead_smooth=others["top1"] - PchipInterpolator(x, y)(others["gflops"]),
    )


# Finding 10: the last FFN


def last_ffn() -> pd.DataFrame:
    """Finding 10: the last block's FFN in Figs. 5-9: ``neurons`` at the last epoch, and from which ``epoch`` on it is
    gone for good (missing: never)."""
    rows = []
    for figure in findings.FIGURES:
        gates = collect.published_heatmap(figure)
        last = gates[gates["block"] == gates["block"].max()].sort_values("epoch")
        alive = last.loc[last["neurons"] > 0, "epoch"]
        neurons = last["neurons"].iloc[-1]
        gone = None if neurons else 0 if alive.empty else alive.max() + 1
        rows.append({"figure": figure, "neurons": neurons, "epoch": gone})
    return pd.DataFrame(rows).astype({"epoch": "Int64"})


# Finding 11: training budgets


def rows_with_training() -> pd.DataFrame:
    """Finding 11: ``rows`` of each of the paper's tables of results, and how many ``state`` what their training took.
    (HiAP's own 200 epochs stand in the text; those of the methods it is compared with do not.)"""
    rows = []
    for table in ("table2_deit_small", "table3_cifar10_vit_tiny"):
        frame = collect.published(table)
        stating = [column for column in frame if re.search("epoch|hours|training", str(column))]
        rows.append({"table": table, "rows": len(frame), "state": int(frame[stating].notna().any(axis=1).sum())})
    return pd.DataFrame(rows)


def epochs(notes: pd.Series) -> list[int]:
    """Numbers of epochs in notes such as '50 search + 300 retrain', added up; 0 where there is none."""
    return [sum(map(int, re.findall(r"\d+", str(note)))) for note in notes]


def reported_epochs() -> pd.DataFrame:
    """Epochs that other sources report for Table 2's methods on DeiT-Small, all stages that they name added up."""
    known = collect.published("related_results").query("backbone == 'DeiT-S'").dropna(subset="epochs_and_notes")
    known = known.assign(epochs=epochs(known["epochs_and_notes"])).query("epochs > 0")
    methods = collect.published("table2_deit_small")["method"].unique()
    named = [next((m for m in methods if name.startswith(m)), None) for name in known["method"]]
    return known.assign(method=pd.Series(named, known.index)).dropna(subset="method")[
        ["method", "gmacs", "top1", "epochs"]
    ]


# Finding 12: ViT-Slim by its own formula


def vit_slim(share: float, dims: Dims = DEIT_SMALL) -> tuple[float, float]:
    """(MACs, parameters) when ViT-Slim keeps this share of all head dimensions (of Q, K and V) and of all neurons, by
    the formula of its code: biases count, a norm 2 and a softmax 5 per element, scaling 1; no class token."""
    n, d, inner, hidden = dims.patches, dims.dim, share * dims.heads * dims.head_dim, share * dims.hidden
    attention = n * d * 3 * inner + 3 * n * inner + 2 * n * n * inner + 6 * dims.heads * n * n + n * inner * d + n * d
    ffn = n * (2 * d * hidden + d + hidden)
    macs = dims.depth * (2 * n * d + attention + ffn) + constant_macs(dims)
    matrix, constant = cost_of(dims.depth, dims)
    return macs, float((matrix @ (inner, hidden) + constant)[1])


def vit_slim_rows(dims: Dims = DEIT_SMALL) -> pd.DataFrame:
    """Finding 12: Table 2's ViT-Slim rows (``gmacs``, ``params_m``) beside what its formula (``formula``) and plain
    multiply-adds (``plain``) give at the ``share``, a multiple of 0.1, whose parameters come nearest. Both in G."""
    rows = collect.published("table2_deit_small").query("method == 'ViT-Slim'")
    matrix, constant = cost_of(dims.depth, dims)
    shares = np.arange(1, 11) / 10
    out = []
    for row in rows.to_dict("records"):
        share = min(shares, key=lambda s: abs(vit_slim(s, dims)[1] / 1e6 - row["params_m"]))
        formula, params = vit_slim(share, dims)
        plain = (matrix @ (share * dims.heads * dims.head_dim, share * dims.hidden) + constant)[0]
        printed = {name: row[name] for name in ("gmacs", "params_m", "top1")}
        out.append({**printed, "share": share, "formula": formula / 1e9, "plain": plain / 1e9, "params": params / 1e6})
    return pd.DataFrame(out)


# Finding 13: HiAP's place in its own table


def better_and_no_larger() -> pd.DataFrame:
    """Finding 13: rows of Table 2 that are more accurate than a HiAP row at no more MACs; ``hiap_gmacs`` names it,
    ``ahead`` is by how many points."""
    rows = collect.published("table2_deit_small")
    ours, others = (rows[(rows["method"] == "HiAP") == mine] for mine in (True, False))
    pairs = others.merge(ours[["gmacs", "top1"]].add_prefix("hiap_"), how="cross")
    found = pairs[(pairs["gmacs"] <= pairs["hiap_gmacs"]) & (pairs["top1"] > pairs["hiap_top1"])]
    return found.assign(ahead=found["top1"] - found["hiap_top1"]).sort_values(["hiap_gmacs", "top1"], ignore_index=True)


# All fourteen (the last is ``analysis.speed_limit``'s)


def overview() -> pd.DataFrame:
    """The numbers of all fourteen findings, one per row: ``finding``, ``quantity``, ``value``, ``unit``."""
    later = [*_figures(), *_table2(), *_comparisons(), *speed_limit.rows()]
    frame = pd.DataFrame(later, columns=["finding", "quantity", "value", "unit"]).astype({"value": float})
    return pd.concat([findings.overview(), frame]).sort_values("finding", kind="stable", ignore_index=True)


Row = tuple[int, str, float, str]
OF_HEADS = f"of {DEIT_SMALL.depth * DEIT_SMALL.heads}"
OF_DIMS, OF_NEURONS = f"of {DEIT_SMALL.head_dim}", f"of {DEIT_SMALL.hidden}"


def _figures() -> list[Row]:
    reach, pressure, ffn = macro_only_reach(), head_pressure(), last_ffn()
    macro = pressure[pressure["lambda_macro"] > 0]
    rows: list[Row] = [(6, "Fig. 8's last architecture, at most", reach["largest"].iloc[0] / 1e9, "GMACs")]
    for point in reach.itertuples():
        rows.append((6, f"can it be Fig. 4's {point.point / 1e9:.1f} G point? (1 yes)", float(point.reached), ""))  # type: ignore[operator, arg-type]
    rows.append((6, "value dims per head then closed, penalty off", reach["closed_dims"].max(), OF_DIMS))
    for row in pressure.to_dict("records"):
        rows.append((7, f"Fig. {row['figure']}: pressure on one head", row["pressure"] / 1e6, "λ MFLOPs"))
        rows.append((7, f"Fig. {row['figure']}: heads left", row["heads"], OF_HEADS))
    rows.append((7, "rank correlation of pressure and heads, Figs. 5-8", heads_rank_correlation(macro, "pressure"), ""))
    rows.append((7, "rank correlation of λ ratio and heads, Figs. 5-8", heads_rank_correlation(macro, "ratio"), ""))
    rows.append((7, "pairs in which more pressure left more heads, surely", len(contradictions(pressure)), ""))
    rows += [(10, f"Fig. {r.figure}: neurons of the last FFN", r.neurons, OF_NEURONS) for r in ffn.itertuples()]  # type: ignore[misc]
    return rows


def _table2() -> list[Row]:
    rows: list[Row] = []
    for row in collect.published("table2_deit_small").query("method == 'HiAP'").to_dict("records"):
        name, printed = f"{row['gmacs']} G / {row['params_m']} M", (row["gmacs"], row["params_m"])
        region = feasible_region(*printed)
        rows.append((8, f"{name}: fewest neurons per live FFN", region["neurons"].min(), OF_NEURONS))
        rows.append((8, f"{name}: most neurons per live FFN", region["neurons"].max(), OF_NEURONS))
        fewest = {label: fewest_value_dims(*printed, cut) for label, cut in CUTS.items()}
        rows.append((8, f"{name}: as many neurons as described possible? (1 yes)", None not in fewest.values(), ""))
        wanted = f"{name}: fewest dims per head, {Described().heads[1]} heads in every block"
        rows += [(8, f"{wanted}, {label}", least, OF_DIMS) for label, least in fewest.items() if least is not None]
    impossible = (~table2_check()["possible"]).sum()
    rows.append((8, "rows of Table 2 that no choice of heads, dims and neurons gives", impossible, ""))
    slim = vit_slim_rows()
    for row in slim.to_dict("records"):
        at = f"ViT-Slim's {row['gmacs']} G / {row['params_m']} M at budget {row['share']:.1f}"
        rows += [(12, f"{at}: its formula", row["formula"], "GMACs"), (12, f"{at}: plain", row["plain"], "GMACs")]
        rows.append((12, f"{at}: parameters", row["params"], "M"))
    for gmacs, group in better_and_no_larger().groupby("hiap_gmacs"):
        rows.append((13, f"more accurate than HiAP's {gmacs} G at no more MACs", len(group), "rows of Table 2"))
        rows.append((13, f"the best of them is ahead of HiAP's {gmacs} G by", group["ahead"].max(), "points"))
    return rows


def _comparisons() -> list[Row]:
    training, epochs = rows_with_training(), reported_epochs()["epochs"]
    rows: list[Row] = []
    for row in against_two_to_one().query("ratio == '1.5:1'").to_dict("records"):
        rows.append((9, f"1.5:1 above the 2:1 line at {row['gflops']} G", row["ahead"], "points"))
        rows.append((9, f"1.5:1 above a smooth 2:1 curve at {row['gflops']} G", row["ahead_smooth"], "points"))
    rows.append((11, "rows of Tables 2 and 3", training["rows"].sum(), ""))
    rows.append((11, "of them, state what training took", training["state"].sum(), ""))
    rows.append((11, "Table 2's methods elsewhere: fewest epochs", epochs.min(), "epochs"))
    rows.append((11, "Table 2's methods elsewhere: most epochs", epochs.max(), "epochs"))
    return rows
