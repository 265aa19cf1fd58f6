"""Findings 6, 7, 9 and 10: Figs. 4 to 9 held against each other."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
from scipy.interpolate import PchipInterpolator
from scipy.stats import spearmanr

from analysis.findings.costs import DEIT_SMALL, PAPER, TRUE
from analysis.records import published
from hiap.budget.sizes import dense_params
from hiap.ledger import attention_macs, constant_macs, ffn_macs

READ_AS_FULL = 1520  # the colour scale does not separate 1520 from 1536 neurons
READING = 0.005  # G, how exactly Fig. 4 was read off
MACRO_ONLY = 8  # figure of the run without micro penalty
# Ratio of Fig. 4 at the strengths of each of Figs. 5-9.
FIGURE_RATIOS = dict(zip(published.HEAT_MAPS, ("2:1", "5:1", "1.5:1", "macro-only", "micro-only"), strict=True))


# What the digitised runs end as


def final_sizes() -> pd.DataFrame:
    """MACs and parameters after the last epoch of Figs. 5-9. Upper bounds: the figures do not show value dimensions, so
    all are kept, and neurons from ``READ_AS_FULL`` up count as full (``macs_as_read``: they count as read). Norms stay;
    a part that is gone takes its biases along (A9)."""
    rows = []
    for figure in published.HEAT_MAPS:
        last = published.last_state(figure)
        heads = last["heads"].tolist()
        neurons = last["neurons"].where(last["neurons"] < READ_AS_FULL, DEIT_SMALL.hidden).tolist()
        row = {"figure": figure, "heads": sum(heads), "neurons": sum(neurons), "last_ffn_neurons": neurons[-1]}
        as_read = _macs(heads, last["neurons"].tolist())
        sizes = {"macs": _macs(heads, neurons), "macs_as_read": as_read, "params": _params(heads, neurons)}
        rows.append({**row, **sizes})
    return pd.DataFrame(rows)


def _macs(heads: list[int], neurons: list[int]) -> int:
    n, d, dh = DEIT_SMALL.tokens, DEIT_SMALL.dim, DEIT_SMALL.head_dim
    attention = sum(attention_macs(n, d, [dh] * h, [dh] * h) for h in heads)
    return constant_macs(DEIT_SMALL) + attention + sum(ffn_macs(n, d, k) for k in neurons)


def _params(heads: list[int], neurons: list[int]) -> int:
    dims, d, dh = DEIT_SMALL, DEIT_SMALL.dim, DEIT_SMALL.head_dim
    per_head, per_neuron = 3 * dh * (d + 1) + dh * d, d + 1 + d
    removed_heads = sum((dims.heads - h) * per_head + (d if h == 0 else 0) for h in heads)
    removed_neurons = sum((dims.hidden - k) * per_neuron + (d if k == 0 else 0) for k in neurons)
    return dense_params(dims) - removed_heads - removed_neurons


def final_widths() -> pd.DataFrame:
    """Last states of Figs. 5-9: ``figure``, ``width`` (attention dimensions of the mean block, all value dimensions
    kept), ``neurons`` per live FFN."""
    rows = []
    for figure in published.HEAT_MAPS:
        last = published.last_state(figure)
        live = last.loc[last["neurons"] > 0, "neurons"]
        rows.append((figure, last["heads"].mean() * DEIT_SMALL.head_dim, live.mean()))
    return pd.DataFrame(rows, columns=["figure", "width", "neurons"])


def reach() -> pd.DataFrame:
    """Fig. 4's points (``kind`` 'point') and the most that the last states of Figs. 5-9 can cost ('at most'), by
    ``series`` (ratio), in G (``x``)."""
    points = published.table("fig4_penalty_ratios").rename(columns={"ratio": "series", "gflops": "x"})
    sizes = final_sizes()
    ends = {"series": sizes["figure"].map(FIGURE_RATIOS), "x": sizes["macs"] / 1e9, "figure": sizes["figure"]}
    return pd.concat([points.assign(kind="point"), pd.DataFrame(ends).assign(kind="at most")], ignore_index=True)


# Finding 6: Fig. 8 against Fig. 4


def macro_only_reach() -> pd.DataFrame:
    """Finding 6: Fig. 4's macro-only points against the most that Fig. 8's last architecture can cost (MACs).

    ``reached``: whether it can be that point. ``closed_dims``: value dimensions of each head that would then have to be
    closed, on average, although their penalty is off. So Fig. 8 is not the 3.3 G run, which then has no heat map, and
    it is the 3.1 G run only if the heads lost two thirds of their value dimensions without being asked to (a third, if
    their Q and K dimensions went along, A4)."""
    last = final_sizes().set_index("figure").loc[MACRO_ONLY]
    points = published.table("fig4_penalty_ratios").query("ratio == 'macro-only'")["gflops"].to_numpy()
    reached = last["macs"] >= (points - READING) * 1e9
    closed = np.where(reached, (last["macs"] - points * 1e9) / TRUE.value_dim / last["heads"], np.nan)
    return pd.DataFrame({"point": points * 1e9, "largest": last["macs"], "reached": reached, "closed_dims": closed})


# Finding 7: lambda and heads


def head_pressure() -> pd.DataFrame:
    """Finding 7: what Eq. 7 pays for closing one head in Figs. 5-9, in FLOPs times lambda, and what was left.

    ``pressure`` = lambda_macro C1 + Dh lambda_micro C2 holds while all value dimensions of the head are open, ``least``
    = lambda_macro C1 when none is. ``ratio`` is lambda_macro / lambda_micro; ``heads``, ``neurons``: at the last epoch.
    Pressure does not order the heads; the ratio nearly does, as if the penalty were divided by the sum of both lambdas
    (unstated), or as if heads were worth more where more neurons are gone."""
    strengths = published.strengths()
    rows = strengths.join(final_sizes().set_index("figure")[["heads", "neurons"]]).reset_index()
    macro, micro = rows["lambda_macro"], rows["lambda_micro"]
    least = macro * PAPER.head
    pressure = least + micro * DEIT_SMALL.head_dim * PAPER.value_dim
    ratio = macro / micro.replace(0, np.nan)
    return rows.assign(least=least, pressure=pressure, ratio=ratio).fillna({"ratio": np.inf})


def heads_rank_correlation(rows: pd.DataFrame, column: str) -> float:
    """Spearman's correlation of a column of ``head_pressure`` with the heads that were left."""
    return float(spearmanr(rows[column], rows["heads"]).statistic)


def contradictions(rows: pd.DataFrame) -> list[tuple[int, int]]:
    """Pairs of figures of which the first had more pressure on heads, however many value dimensions were open in
    either, and yet kept more heads."""
    both = itertools.permutations(rows.to_dict("records"), 2)
    return [(a["figure"], b["figure"]) for a, b in both if a["least"] > b["pressure"] and a["heads"] > b["heads"]]


# Finding 9: is 2:1 optimal?


def against_two_to_one() -> pd.DataFrame:
    """Finding 9: Fig. 4's other points within the range of the 2:1 line. ``ahead``: points of top-1 above the line
    between its neighbours, which for a concave curve is a chord below it. Four points do not say what the curve is, so
    it stands beside a monotone cubic (``ahead_smooth``), a quadratic (``ahead_quadratic``) and the cubic through all
    four (``ahead_cubic``); ``least`` and ``most`` of them all."""
    points = published.table("fig4_penalty_ratios")
    line = points[points["ratio"] == "2:1"].sort_values("gflops")
    x, y = line["gflops"].to_numpy(), line["top1"].to_numpy()
    others = points[(points["ratio"] != "2:1") & points["gflops"].between(x[0], x[-1])].reset_index(drop=True)
    at = others["gflops"].to_numpy()
    curves = {
        "ahead": np.interp(at, x, y),
        "ahead_smooth": PchipInterpolator(x, y)(at),
        "ahead_quadratic": np.polyval(np.polyfit(x, y, 2), at),
        "ahead_cubic": np.polyval(np.polyfit(x, y, 3), at),
    }
    found = others.assign(**{name: others["top1"] - curve for name, curve in curves.items()})
    return found.assign(least=found[list(curves)].min(axis=1), most=found[list(curves)].max(axis=1))


# Finding 10: the last FFN


def last_ffn() -> pd.DataFrame:
    """Finding 10: the last block's FFN in Figs. 5-9: ``neurons`` at the last epoch, and from which ``epoch`` on it is
    gone for good (missing: never)."""
    rows = []
    for figure in published.HEAT_MAPS:
        gates = published.heat_map(figure)
        last = gates[gates["block"] == gates["block"].max()].set_index("epoch")["neurons"].sort_index()
        alive = last.index[last > 0]
        gone = None if last.iloc[-1] else alive.max() + 1 if len(alive) else 0
        rows.append((figure, last.iloc[-1], gone))
    return pd.DataFrame(rows, columns=["figure", "neurons", "epoch"]).astype({"epoch": "Int64"})
