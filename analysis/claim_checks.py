"""What answers a claim of ``results/published/claims.csv``: functions that compute, named there.

``CHECKS`` need no run: a number, or whether it holds, from equations, the printed values and the digitised figures.
``HERE`` answer at laptop scale from committed records: not the paper's data or hardware, and said so.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from timm.models.vision_transformer import VisionTransformer

import hiap
from analysis import bench, collect, findings, findings_runs, stats, theory
from baselines.vit_slim import SoftMask
from hiap import gated_vit
from hiap.gates import Gate
from hiap.ledger import dense_macs, paper_prices, true_prices

# Analytic


def gates_of(method: str) -> bool:
    """Whether the gates that this repository's implementation learns are those that Table 1 names."""
    model = _small()
    gated = hiap.gate(model) if method == "hiap" else gated_vit.gate(model, kind=SoftMask)
    learned = {(gate.kind, name.rsplit(".", 1)[-1]) for name, gate in gated_vit.named_gates(gated) if _learned(gate)}
    micro = {("micro", "value_gate"), ("micro", "neuron_gate")}
    return learned == (micro | {("macro", "head_gate"), ("macro", "block_gate")} if method == "hiap" else micro)


def _learned(gate: Gate) -> bool:
    return gate.logit.requires_grad


def _small() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=4, num_classes=10).eval()


def dense_gmacs(_: str) -> float:
    return dense_macs(findings.DEIT_SMALL) / 1e9


def dense_params(_: str) -> float:
    return findings.parameters(findings.DEIT_SMALL) / 1e6


def table2_change(row: str) -> float:
    return float(findings_runs.table2_check()["recomputed"].iloc[int(row)])


def table2_possible(row: str) -> bool:
    return bool(findings_runs.table2_check()["possible"].iloc[int(row)])


def described_dims(printed: str) -> float:
    """Fewest value dimensions per head with which the described architecture costs what is printed."""
    gmacs, params = map(float, printed.split())
    found = findings_runs.fewest_value_dims(gmacs, params, "v")
    return float("nan") if found is None else found


def described_neurons(printed: str) -> bool:
    gmacs, params = map(float, printed.split())
    return findings_runs.width_range(gmacs, params, findings_runs.Described().neurons) is not None


def vit_slim_gmacs(printed: str) -> float:
    return float(findings_runs.vit_slim_rows().set_index("gmacs")["formula"][float(printed)])


def cifar_mmacs(_: str) -> float:
    return sum(findings.cost_parts().values()) / 1e6


def table3_reduction(row: str) -> float:
    macs = collect.published("table3_cifar10_vit_tiny")["mmacs"]
    return float(100 * (1 - macs.iloc[int(row)] / macs.iloc[0]))


def ahead_of_uniform(_: str) -> float:
    rows = collect.published("table3_cifar10_vit_tiny").set_index("method")["final_acc"]
    return float(rows["HiAP (Moderate)"] - rows["Uniform-Ratio"])


def quotient(pair: str) -> float:
    numerator, denominator = map(float, pair.split())
    return numerator / denominator


# Figures


def undecided_falls(_: str) -> bool:
    shares = [findings.undecided_share(tau) for tau in (2.0, 1.0, 0.5, 0.1)]
    return shares == sorted(shares, reverse=True)


def binary_share(tau: str) -> float:
    return 1 - findings.undecided_share(float(tau))


def two_to_one_best(_: str) -> bool:
    return not (findings_runs.against_two_to_one()["ahead"] > 0).any()


def macro_only_reaches(gmacs: str) -> bool:
    reach = findings_runs.macro_only_reach()
    return bool(reach.loc[np.isclose(reach["point"], float(gmacs) * 1e9), "reached"].item())


def last_ffn_gone(figure: str) -> bool:
    return bool(findings_runs.last_ffn().set_index("figure")["neurons"][int(figure)] == 0)


def last_ffn_always_gone(_: str) -> bool:
    return bool((findings_runs.last_ffn()["neurons"] == 0).all())


def heads_between(argument: str) -> bool:
    """'figure epoch low high': whether every block has so many heads at that epoch."""
    figure, epoch, low, high = map(int, argument.split())
    gates = collect.published_heatmap(figure)
    return bool(gates.loc[gates["epoch"] == epoch, "heads"].between(low, high).all())


def mean_neurons(argument: str) -> float:
    """'figure first last': mean neurons of these blocks' FFNs that are left, at the last epoch."""
    figure, first, last = map(int, argument.split())
    gates = collect.published_heatmap(figure)
    rows = gates[(gates["epoch"] == gates["epoch"].max()) & gates["block"].between(first, last - 1)]
    return float(rows.loc[rows["neurons"] > 0, "neurons"].mean())


def neurons_kept(figure: str) -> float:
    rows = findings.final_sizes().set_index("figure")
    dims = findings.DEIT_SMALL
    return float(100 * rows["neurons"][int(figure)] / (dims.depth * dims.hidden))


def heads_left(figure: str) -> float:
    return float(findings.final_sizes().set_index("figure")["heads"][int(figure)])


def ffns_empty(figure: str) -> bool:
    return bool((collect.published_heatmap(int(figure)).query("epoch == epoch.max()")["neurons"] == 0).any())


def rows_with_training(_: str) -> float:
    told = findings_runs.rows_with_training()
    return float(100 * told["state"].sum() / told["rows"].sum())


def pressure_orders_heads(_: str) -> float:
    pressure = findings_runs.head_pressure()
    return findings_runs.heads_rank_correlation(pressure[pressure["lambda_macro"] > 0], "pressure")


def never_empty(_: str) -> bool:
    return all((collect.published_heatmap(figure)["heads"] > 0).all() for figure in findings.FIGURES)


# The method and its theory


@torch.no_grad()
def extraction_exact(_: str) -> bool:
    """On a small network with random gates, in float64."""
    gated = hiap.gate(_small().double()).eval()
    for _name, gate in gated_vit.named_gates(gated):
        gate.logit.normal_()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    return bool(torch.allclose(gated(images), hiap.extract(gated)(images), rtol=1e-10, atol=1e-10))


@torch.no_grad()
def closed_layer_is_identity(_: str) -> bool:
    gated = hiap.gate(_small()).eval()
    for _name, gate in gated_vit.named_gates(gated.blocks[0]):
        gate.logit.fill_(-1.0)
    x = torch.randn(2, 17, 32)
    return bool(torch.equal(gated.blocks[0](x), x))


def eq5_over_macs(_: str) -> float:
    return findings.units().ratio


def value_dim_credit(_: str) -> float:
    return findings.value_dimension().share


def neuron_credit(_: str) -> float:
    n, d, dh = findings.DEIT_SMALL.tokens, findings.DEIT_SMALL.dim, findings.DEIT_SMALL.head_dim
    return paper_prices(n, d, dh).neuron / 2 / true_prices(n, d, dh).neuron


def lemma_1(_: str) -> bool:
    small = {kind: theory.enumerate_networks(2, 2, 2, kind) for kind in theory.GRANULARITIES}
    return small["macro + micro"] > small["macro"]


def proposition_1(_: str) -> bool:
    dims = findings.DEIT_SMALL
    rows = theory.proposition_1(paper_prices(dims.tokens, dims.dim, dims.head_dim))
    return bool(np.allclose(rows["enumerated"], rows["joint"]))


def proposition_2(gates: str) -> float:
    return findings.hardening_gap(0.1, gates=2 if gates == "2" else 1).gap


CHECKS: dict[str, Callable[[str], float | bool]] = {
    f.__name__: f
    for f in (
        gates_of, dense_gmacs, dense_params, table2_change, table2_possible, described_dims, described_neurons,
        vit_slim_gmacs, cifar_mmacs, table3_reduction, ahead_of_uniform, quotient, undecided_falls, binary_share,
        two_to_one_best, macro_only_reaches, last_ffn_gone, last_ffn_always_gone, heads_between, mean_neurons,
        neurons_kept, heads_left, ffns_empty, rows_with_training, pressure_orders_heads, never_empty, extraction_exact,
        closed_layer_is_identity, eq5_over_macs, value_dim_credit, neuron_credit, lemma_1, proposition_1, proposition_2,
    )
}  # fmt: skip


# At laptop scale


class Answer(NamedTuple):
    """``found`` with its interval over ``n`` runs, whether it ``agrees`` with the claim, and its ``source``."""

    found: float
    low: float
    high: float
    n: int
    agrees: bool
    source: str


def ahead_here(root: Path, argument: str) -> Answer | None:
    """'a b': top-1 of grid study's label a minus label b's, paired by seed; agrees if decidedly above zero."""
    first, second = argument.split()
    runs = collect.load(root, "study")
    scores = {label: runs[runs["label"] == label].set_index("seed")["top1"] for label in (first, second)}
    if any(score.empty for score in scores.values()):
        return None
    found = stats.compare(scores[first], scores[second])
    difference = found.difference
    return Answer(*difference, found.decided and difference.mean > 0, f"grid study: {first}, {second}")


def gap_here(root: Path, _: str) -> Answer | None:
    runs = collect.load(root, "study")
    gaps = runs.loc[runs["label"] == "hiap-faithful", "gap"]
    if gaps.empty:
        return None
    found = stats.mean(gaps)
    return Answer(*found, found.low > -0.3, "grid study: hiap-faithful")


def dims_here(root: Path, _: str) -> Answer | None:
    runs = collect.load(root, "study")
    rows = runs[runs["label"] == "hiap-faithful"]
    if rows.empty:
        return None
    found = stats.mean(rows["value_dims"] / rows["heads"])
    dense = collect.dense_units(collect.gated_records(root, "study")[0])["mean_dims"]
    return Answer(*found, found.high <= dense / 2, f"grid study: hiap-faithful, of {dense} per head")


def _alone(root: Path, kind: str) -> pd.DataFrame:
    runs = collect.load(root, "ratios")
    return runs[runs["label"].str.startswith(f"{kind}-only")]


def neurons_kept_here(root: Path, _: str) -> Answer | None:
    rows = _alone(root, "macro")
    return None if rows.empty else _of_dense(root, rows, "neurons", 99.0)


def heads_kept_here(root: Path, _: str) -> Answer | None:
    rows = _alone(root, "micro")
    return None if rows.empty else _of_dense(root, rows, "heads", 100.0)


def _of_dense(root: Path, rows: pd.DataFrame, column: str, least: float) -> Answer:
    """Per cent of the dense network's units; agrees if the mean reaches ``least``."""
    records = collect.gated_records(root, "ratios")
    depth = len(records[0].shape or [])
    found = stats.mean(100 * rows[column] / (depth * collect.dense_units(records[0])[column]))
    return Answer(*found, found.mean >= least, f"grid ratios: {', '.join(sorted(set(rows['label'])))}; % of dense")


def ffns_empty_here(root: Path, _: str) -> Answer | None:
    """Share of micro-only runs in which a whole FFN is gone."""
    gone = [
        any(block.neurons == 0 for block in record.shape or [])
        for record in collect.gated_records(root, "ratios")
        if record.label.startswith("micro-only")
    ]
    if not gone:
        return None
    share = float(np.mean(gone))
    return Answer(share, float("nan"), float("nan"), len(gone), share > 0, "grid ratios: micro-only, share of runs")


def two_to_one_best_here(root: Path, _: str) -> Answer | None:
    """Largest lead of another ratio's mean over the line between the means of 2:1, within its range."""
    runs = collect.load(root, "ratios")
    runs = runs[runs["method"] == "hiap"]
    if runs.empty:
        return None
    means = runs.groupby("label")[["macs_share", "top1"]].mean()
    mine = means.index.str.startswith("2to1")
    line, others = means[mine].sort_values("macs_share"), means[~mine]
    inside = others[others["macs_share"].between(line["macs_share"].iloc[0], line["macs_share"].iloc[-1])]
    lead = (inside["top1"] - np.interp(inside["macs_share"], line["macs_share"], line["top1"])).max()
    return Answer(
        float(lead), float("nan"), float("nan"), len(runs), bool(lead <= 0), "grid ratios: largest lead over 2:1"
    )


def rule_misses_here(root: Path, _: str) -> Answer | None:
    """Extracted minus expected MACs of the paper's rule, per cent of dense: the largest in size."""
    misses = stats.rule_misses(root, "budget")
    return None if misses.empty else _farthest(misses, "grid budget: rule-*")


def budget_misses_here(root: Path, _: str) -> Answer | None:
    runs = collect.load(root, "budget").dropna(subset="target")
    if runs.empty:
        return None
    return _farthest(100 * (runs["macs_share"] - runs["target"]), "grid budget: hiap-*; our budget rule")


def _farthest(misses: pd.Series, source: str) -> Answer:
    """The miss (% of dense) that is farthest from 0; agrees within half a per cent."""
    low, high = float(misses.min()), float(misses.max())
    worst = low if -low > high else high
    return Answer(worst, low, high, len(misses), abs(worst) <= 0.5, source)


def realised_share_here(root: Path, _: str) -> Answer | None:
    """The smallest realised share over the widths of the CPU benchmark."""
    rows = bench.load(root)
    rows = rows[(rows["report"] == "deit_small_cpu_fp32_b16") & rows["share"].notna()]
    if rows.empty:
        return None
    low, high = float(rows["share"].min()), float(rows["share"].max())
    return Answer(low, low, high, len(rows), low >= 0.9, "results/bench/deit_small_cpu_fp32_b16.json; a CPU")


HERE: dict[str, Callable[[Path, str], Answer | None]] = {
    f.__name__: f
    for f in (
        ahead_here, gap_here, dims_here, neurons_kept_here, heads_kept_here, ffns_empty_here, two_to_one_best_here,
        rule_misses_here, budget_misses_here, realised_share_here,
    )
}  # fmt: skip
