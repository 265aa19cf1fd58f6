"""Findings 8 and 11 to 13: Table 2 by its own arithmetic. Nothing is quoted but what ``Described`` names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy.optimize import linprog

from analysis.findings.costs import DEIT_SMALL, TRUE
from analysis.records import published
from hiap.budget.sizes import dense_params
from hiap.ledger import constant_macs

ROUNDING = 0.05  # half a unit of the last digit of 3.1 G and 15.0 M


def hiap_rows() -> list[tuple[float, float]]:
    """(GMACs, M parameters) of HiAP's networks as printed, the larger first."""
    rows = published.table(published.TABLE2).query("method == 'HiAP'")
    return list(rows[["gmacs", "params_m"]].itertuples(index=False, name=None))


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


def width(heads: float, value_dims: float, cut: Cut) -> float:
    """Attention dimensions of a block, the mean of its Q/K and its V dimensions: they cost equally many MACs, and
    parameters but for one bias in 770, so cost depends on their sum alone."""
    return heads * (value_dims + (DEIT_SMALL.head_dim if cut == "v" else value_dims)) / 2


def value_dims(width: float, heads: float, cut: Cut) -> float:
    """The inverse of ``width``: value dimensions of each head."""
    return 2 * width / heads - DEIT_SMALL.head_dim if cut == "v" else width / heads


def cost_of(live_ffns: int) -> tuple[np.ndarray, np.ndarray]:
    """(matrix, constant) that turn (width of a block, neurons of a live FFN) into (MACs, parameters)."""
    dims, d = DEIT_SMALL, DEIT_SMALL.dim
    qk, v, neuron = 2 * (d + 1), d + 1 + d, d + 1 + d  # parameters of one unit: rows with their bias, columns without
    gone = dims.depth - live_ffns  # FFNs that took their output bias along (A9)
    inner, hidden = dims.depth * dims.heads * dims.head_dim, dims.depth * dims.hidden
    rest = dense_params(dims) - inner * (qk + v) - hidden * neuron - gone * d
    macs = dims.depth * 2 * TRUE.value_dim, live_ffns * TRUE.neuron
    params = dims.depth * (qk + v), live_ffns * neuron
    return np.array([macs, params], dtype=float), np.array([constant_macs(dims), rest], dtype=float)


def feasible_region(gmacs: float, params_m: float, live_ffns: int = 11) -> pd.DataFrame:
    """Finding 8: corners, in order, of the parallelogram of all (``width``, ``neurons`` per live FFN) that cost what a
    row of Table 2 prints, to its last digit. Corners may lie outside what the network has."""
    matrix, constant = cost_of(live_ffns)
    signs = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    targets = np.array([gmacs * 1e9, params_m * 1e6]) + signs * ROUNDING * np.array([1e9, 1e6])
    return pd.DataFrame(np.linalg.solve(matrix, (targets - constant).T).T, columns=["width", "neurons"])


def width_range(
    gmacs: float, params_m: float, neurons: tuple[float, float], live_ffns: int = 11
) -> tuple[float, float] | None:
    """Smallest and largest ``width`` that costs what is printed with a mean number of ``neurons`` in this range; None
    if no width does."""
    matrix, constant = cost_of(live_ffns)
    scale = np.array([1e9, 1e6])
    printed = np.array([gmacs, params_m])
    rows, level = matrix / scale[:, None], constant / scale
    limits = np.concatenate([printed + ROUNDING - level, -(printed - ROUNDING - level)])
    bounds = [(0, DEIT_SMALL.heads * DEIT_SMALL.head_dim), neurons]
    ends = [linprog([sign, 0], A_ub=np.vstack([rows, -rows]), b_ub=limits, bounds=bounds) for sign in (1, -1)]
    return (float(ends[0].x[0]), float(ends[1].x[0])) if all(end.status == 0 for end in ends) else None


def fewest_value_dims(gmacs: float, params_m: float, cut: Cut, text: Described | None = None) -> float | None:
    """Fewest value dimensions per head with which the described architecture costs what is printed: as many heads and
    neurons in its ranges as suit that best. None: its range of neurons excludes it. ``text``: default as described."""
    text = text or Described()
    found = width_range(gmacs, params_m, text.neurons, text.live_ffns)
    return None if found is None else value_dims(found[0], text.heads[1], cut)


def narrow_share(value_dims: float) -> float:
    """The largest share of the heads that can be as narrow as described where the mean head keeps so many dimensions:
    the others keep all of theirs."""
    return (DEIT_SMALL.head_dim - value_dims) / (DEIT_SMALL.head_dim - Described().value_dims)


def table2_check() -> pd.DataFrame:
    """Table 2 with its arithmetic redone: ``recomputed`` change against the dense row; ``possible``: whether any
    choice of heads, dimensions and neurons of DeiT-Small has both the printed MACs and parameters."""
    rows = published.table(published.TABLE2)
    dense = rows.loc[rows["method"] == "Dense Baseline", "top1"].item()
    any_size = {"neurons": (0.0, float(DEIT_SMALL.hidden)), "live_ffns": DEIT_SMALL.depth}
    sizes = zip(rows["gmacs"], rows["params_m"], strict=True)
    return rows.assign(
        recomputed=(rows["top1"] - dense).round(2).where(rows["change"].notna()),
        reduction=100 * (1 - rows["gmacs"] / rows["gmacs"].max()),
        possible=[width_range(*printed, **any_size) is not None for printed in sizes],  # type: ignore[arg-type]
    )


# Finding 11: training budgets


def rows_with_training() -> pd.DataFrame:
    """Finding 11: ``rows`` of each of the paper's tables of results, and how many ``state`` what their training took.
    (HiAP's own 200 epochs stand in the text; those of the methods it is compared with do not.)"""
    rows = []
    for table in (published.TABLE2, published.TABLE3):
        frame = published.table(table)
        stating = [column for column in frame if re.search("epoch|hours|training", str(column))]
        rows.append({"table": table, "rows": len(frame), "state": int(frame[stating].notna().any(axis=1).sum())})
    return pd.DataFrame(rows)


def epochs(notes: pd.Series) -> list[int]:
    """Numbers of epochs in notes such as '50 search + 300 retrain', added up; 0 where there is none."""
    return [sum(map(int, re.findall(r"\d+", str(note)))) for note in notes]


def reported_epochs() -> pd.DataFrame:
    """Epochs that other sources report for Table 2's methods on DeiT-Small, all stages that they name added up."""
    known = published.table("related_results").query("backbone == 'DeiT-S'").dropna(subset="epochs_and_notes")
    known = known.assign(epochs=epochs(known["epochs_and_notes"])).query("epochs > 0")
    methods = published.table(published.TABLE2)["method"].unique()
    named = [next((m for m in methods if name.startswith(m)), None) for name in known["method"]]
    known = known.assign(method=pd.Series(named, known.index)).dropna(subset="method")
    return known[["method", "gmacs", "top1", "epochs"]]


# Finding 12: ViT-Slim by its own formula


INNER = DEIT_SMALL.heads * DEIT_SMALL.head_dim


def vit_slim(share: float) -> tuple[float, float]:
    """(MACs, parameters) when ViT-Slim keeps this share of all head dimensions (of Q, K and V) and of all neurons, by
    the formula of its code: biases count, a norm 2 and a softmax 5 per element, scaling 1; no class token."""
    dims, n, d, inner, hidden = DEIT_SMALL, DEIT_SMALL.patches, DEIT_SMALL.dim, share * INNER, share * DEIT_SMALL.hidden
    attention = n * d * 3 * inner + 3 * n * inner + 2 * n * n * inner + 6 * dims.heads * n * n + n * inner * d + n * d
    ffn = n * (2 * d * hidden + d + hidden)
    return dims.depth * (2 * n * d + attention + ffn) + constant_macs(dims), plain(share)[1]


def plain(share: float) -> tuple[float, float]:
    """The same by multiply-adds."""
    matrix, constant = cost_of(DEIT_SMALL.depth)
    macs, params = matrix @ (share * INNER, share * DEIT_SMALL.hidden) + constant
    return float(macs), float(params)


def vit_slim_rows() -> pd.DataFrame:
    """Finding 12: Table 2's ViT-Slim rows (``gmacs``, ``params_m``) beside what its formula (``formula``) and plain
    multiply-adds (``plain``) give at the ``share``, a multiple of 0.1, whose parameters come nearest. Both in G."""
    rows = published.table(published.TABLE2).query("method == 'ViT-Slim'")[["gmacs", "params_m", "top1"]]
    every = np.arange(1, 11) / 10
    shares = [min(every, key=lambda share: abs(plain(share)[1] / 1e6 - printed)) for printed in rows["params_m"]]
    formula, params = zip(*map(vit_slim, shares), strict=True)
    counted = [plain(share)[0] / 1e9 for share in shares]
    rows = rows.reset_index(drop=True)
    return rows.assign(share=shares, formula=np.array(formula) / 1e9, plain=counted, params=np.array(params) / 1e6)


# Finding 13: HiAP's place in its own table


def better_and_no_larger() -> pd.DataFrame:
    """Finding 13: rows of Table 2 that are more accurate than a HiAP row at no more MACs; ``hiap_gmacs`` names it,
    ``ahead`` is by how many points."""
    rows = published.table(published.TABLE2)
    ours, others = (rows[(rows["method"] == "HiAP") == mine] for mine in (True, False))
    pairs = others.merge(ours[["gmacs", "top1"]].add_prefix("hiap_"), how="cross")
    found = pairs[(pairs["gmacs"] <= pairs["hiap_gmacs"]) & (pairs["top1"] > pairs["hiap_top1"])]
    return found.assign(ahead=found["top1"] - found["hiap_top1"]).sort_values(["hiap_gmacs", "top1"], ignore_index=True)


def reports(ours: pd.DataFrame) -> pd.DataFrame:
    """Table 2 as printed, DeiT-Small's other reports that are not quotes of these, and ``ours`` (``name``, ``gmacs``,
    ``top1``; empty where nothing has run), each of a ``kind``. Epochs follow the name where the source has them."""
    printed = published.table(published.TABLE2)
    kinds = printed["method"].map({"Dense Baseline": "dense", "HiAP": "HiAP"}).fillna("table")
    table = printed.assign(kind=kinds, name=printed["method"])[["name", "gmacs", "top1", "kind"]]
    other = published.table("related_results").query("backbone == 'DeiT-S'")
    pairs = set(zip(table["gmacs"], table["top1"], strict=True))
    fresh = [pair not in pairs for pair in zip(other["gmacs"], other["top1"], strict=True)]
    trained = zip(other["method"], epochs(other["epochs_and_notes"]), strict=True)
    names = [f"{method}, {count} ep." if count else method for method, count in trained]
    related = other.assign(name=names, kind="related")[fresh][["name", "gmacs", "top1", "kind"]]
    return pd.concat([frame for frame in (table, related, ours.assign(kind="ours")) if len(frame)], ignore_index=True)
