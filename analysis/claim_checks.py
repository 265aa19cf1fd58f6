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
from analysis import bench, calibrate, claim_runs, collect, findings, findings_runs, speed_limit, stats, theory
from baselines.vit_slim import SoftMask
from hiap import gated_vit, ledger
from hiap.gates import Gate
from hiap.ledger import dense_macs, paper_prices, true_prices
from hiap.train.config import GateConfig
from hiap.train.record import BlockShape, Record


class Noted(NamedTuple):
    """A value and what to know about it."""

    value: float | bool
    note: str


# Analytic


def gates_of(method: str) -> bool:
    """Whether the gates that this repository's implementation learns are those that Table 1 names."""
    model = _small()
    gated = hiap.gate(model) if method == "hiap" else gated_vit.gate(model, kind=SoftMask)
    learned = {(gate.level, name.rsplit(".", 1)[-1]) for name, gate in gated_vit.named_gates(gated) if _learned(gate)}
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
    return ledger.dense_params(findings.DEIT_SMALL) / 1e6


def table2_change(row: str) -> float:
    return float(findings_runs.table2_check()["recomputed"].iloc[int(row)])


def table2_possible(row: str) -> bool:
    return bool(findings_runs.table2_check()["possible"].iloc[int(row)])


def described_possible(argument: str) -> Noted:
    """'G M': whether some network as described, with heads of 32 value dimensions or fewer among the others, costs what
    is printed; the note has the largest share of such heads, where the others keep all of theirs."""
    gmacs, params = map(float, argument.split())
    narrow, full = findings_runs.Described().value_dims, findings.DEIT_SMALL.head_dim
    shares = {}
    for name, cut in findings_runs.CUTS.items():
        least = findings_runs.fewest_value_dims(gmacs, params, cut)
        shares[name] = 0.0 if least is None else float(np.clip((full - least) / (full - narrow), 0, 1))
    named = ", ".join(f"{100 * share:.0f} % ({name})" for name, share in shares.items())
    return Noted(any(share > 0 for share in shares.values()), f"so narrow can be, at most, of the heads: {named}")


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


def heads_between(argument: str) -> Noted:
    """'figure epochs low high': the share of the blocks that have so many heads after so many epochs."""
    figure, epochs, low, high = map(int, argument.split())
    gates = collect.published_heatmap(figure)
    within = gates.loc[gates["epoch"] == epochs - 1, "heads"].between(low, high)  # column 0: after the first epoch
    return Noted(float(within.mean()), f"{within.sum()} of {len(within)} blocks")


def neurons_kept(figure: str) -> float:
    rows = findings.final_sizes().set_index("figure")
    return float(100 * rows["neurons"][int(figure)] / findings.WHOLE["neurons"])


def heads_left(figure: str) -> float:
    return float(findings.final_sizes().set_index("figure")["heads"][int(figure)])


def ffns_empty(figure: str) -> bool:
    return bool((collect.published_heatmap(int(figure)).query("epoch == epoch.max()")["neurons"] == 0).any())


def open_at_the_start(_: str) -> Noted:
    """With what probability a gate can have started open, at most, that Figs. 5-9 show closed after one epoch."""
    one, all_ = speed_limit.reach(speed_limit.FIGURES, full=True)[0], speed_limit.reach(speed_limit.CIFAR)[-1]
    grown = speed_limit.grown(speed_limit.FIGURES, 1)
    closed = ", ".join(str(heads) for heads in speed_limit.first_columns()["heads_closed"])
    note = (
        f"a steady gradient moves a logit by {one:.2f} in that epoch, one that grows a thousandfold by {grown:.2f} at "
        f"most (by {all_:.2f} in all of Table 3's training); closed are {closed} of 72 heads (Figs. 5 to 9)"
    )
    return Noted(speed_limit.most_open_start(), note)


def never_empty(_: str) -> bool:
    return all((collect.published_heatmap(figure)["heads"] > 0).all() for figure in findings.FIGURES)


# The method and its theory


@torch.no_grad()
def extraction_exact(removed: str) -> bool:
    """A small network with random gates of Eq. 3, on V, in float64: does removing V alone, or Q, K and V
    ('v-cut-qkv'), leave what the masked network computes?"""
    masked, cut = (hiap.gate(_small().double(), GateConfig(dims=dims)).eval() for dims in ("v", removed))  # type: ignore[arg-type]
    for (_, gate), (_, same) in zip(gated_vit.named_gates(masked), gated_vit.named_gates(cut), strict=True):
        same.logit.copy_(gate.logit.normal_())
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    return bool(torch.allclose(masked(images), hiap.extract(cut)(images), rtol=1e-10, atol=1e-10))


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


def proposition_2(_: str) -> Noted:
    two = findings.hardening_gap(0.1, gates=2).gap
    return Noted(findings.hardening_gap(0.1).gap, f"{two:.2f} where each unit is behind a macro and a micro gate")


CHECKS: dict[str, Callable[[str], float | bool | Noted]] = {
    f.__name__: f
    for f in (
        gates_of, dense_gmacs, dense_params, table2_change, table2_possible, described_possible, vit_slim_gmacs,
        cifar_mmacs, table3_reduction, ahead_of_uniform, quotient, undecided_falls, binary_share, two_to_one_best,
        macro_only_reaches, last_ffn_gone, last_ffn_always_gone, heads_between, neurons_kept, heads_left, ffns_empty,
        open_at_the_start, never_empty, extraction_exact, closed_layer_is_identity,
        eq5_over_macs, value_dim_credit, neuron_credit, lemma_1, proposition_1, proposition_2,
    )
}  # fmt: skip
# Look at our implementation, which was built so. The last is a rule that lands on its target by construction.
OWN = {"gates_of", "closed_layer_is_identity", "budget_misses_here"}


# At laptop scale


class Answer(NamedTuple):
    """``found`` with its interval over ``n`` runs, whether it ``agrees`` with the claim (None: as the claim's own value
    and tolerance say), its ``source``, and the ``runs`` behind it (``run_id``, ``commit``), if any."""

    found: float
    low: float
    high: float
    n: int
    agrees: bool | None
    source: str
    runs: pd.DataFrame | None = None


def ahead_here(root: Path, argument: str) -> Answer | None:
    """'a b': top-1 of grid study's label a minus label b's, paired by seed; agrees if decidedly above zero."""
    first, second = argument.split()
    runs = collect.load(root, "study")
    scores = {label: runs[runs["label"] == label].set_index("seed")["top1"] for label in (first, second)}
    if any(score.empty for score in scores.values()):
        return None
    found = stats.compare(scores[first], scores[second])
    difference = found.difference
    both = runs[runs["label"].isin([first, second])]
    return Answer(*difference, found.decided and difference.mean > 0, f"grid study: {first}, {second}", both)


def dims_here(root: Path, _: str) -> Answer | None:
    """Share of the heads left that keep half of their value dimensions or fewer."""
    runs = collect.load(root, "study")
    rows = runs[runs["label"] == "hiap-faithful"]
    if rows.empty:
        return None
    found = stats.mean(claim_runs.METRICS["share of narrow heads"](root, "study", rows))
    return Answer(*found, found.low >= 0.5, "grid study: hiap-faithful", rows)


def neurons_of_fig5_here(_: Path, half: str) -> Answer:
    """Mean neurons of the FFNs left in the first or the second half of Fig. 5's blocks, at the last epoch: one split,
    fixed beforehand, because among all of them there is one for nearly every number."""
    neurons = collect.published_heatmap(5).query("epoch == epoch.max()")["neurons"].to_numpy()
    middle = len(neurons) // 2
    part = neurons[:middle] if half == "first" else neurons[middle:]
    found, nan = float(part[part > 0].mean()), float("nan")
    ends = f"0 to {middle - 1}" if half == "first" else f"{middle} to {len(neurons) - 1}"
    source = f"digitised Fig. 5, another of the paper's runs: blocks {ends}"
    return Answer(found, nan, nan, 0, None, source)


def _at_strengths(root: Path, figures: list[int], metric: claim_runs.Metric) -> Answer | None:
    """A number of the runs with the paper's rule at the strengths of these figures, in a network of its shape: the mean
    over them, which the claim's own tolerance judges."""
    records = calibrate.taken(root)
    if not all(figure in records for figure in figures):
        return None
    names = ", ".join(str(figure) for figure in figures)
    source = f"grid calibrate: reading {calibrate.TAKEN} at the strengths of Fig. {names}, one seed"
    runs = collect.load(root, calibrate.GRID)
    mine = runs[runs["label"].isin([records[figure].label for figure in figures])]
    values, nan = metric(root, calibrate.GRID, mine), float("nan")
    return Answer(float(values.mean()), nan, nan, len(values), None, source, mine)


def heads_here(root: Path, figure: str) -> Answer | None:
    return _at_strengths(root, [int(figure)], claim_runs.METRICS["heads"])


def neurons_here(root: Path, figure: str) -> Answer | None:
    return _at_strengths(root, [int(figure)], claim_runs.METRICS["neurons"])


def neurons_share_here(root: Path, figure: str) -> Answer | None:
    """Per cent of the dense network's."""
    found = neurons_here(root, figure)
    return found and found._replace(found=100 * found.found / calibrate.FULL["neurons"])


def last_ffns_here(root: Path, figures: str) -> Answer | None:
    """The share of the runs in which the last block's FFN is gone."""

    def gone(record: Record) -> bool:
        return _shape(record)[-1].neurons == 0

    found = _at_strengths(root, [int(f) for f in figures.split()], claim_runs.of_record(gone))
    return found and found._replace(agrees=found.found == 1)


def ffns_empty_here(root: Path, figure: str) -> Answer | None:
    """How many FFNs are gone."""

    def gone(record: Record) -> int:
        return sum(block.neurons == 0 for block in _shape(record))

    found = _at_strengths(root, [int(figure)], claim_runs.of_record(gone))
    return found and found._replace(agrees=found.found > 0)


def heads_between_here(root: Path, argument: str) -> Answer | None:
    """As ``heads_between``, after the same share of the training."""
    figure, epochs, low, high = map(int, argument.split())

    def share(record: Record) -> float:
        look = next(look for look in record.gates if look.step * calibrate.COLUMNS >= epochs * look.steps)
        return float(np.mean([low <= heads <= high for heads in look.heads]))

    return _at_strengths(root, [figure], claim_runs.of_record(share))


def never_empty_here(root: Path, figures: str) -> Answer | None:
    """The share of the runs in which no layer is without heads at the end."""

    def whole(record: Record) -> bool:
        return all(block.head_dims for block in _shape(record))

    found = _at_strengths(root, [int(f) for f in figures.split()], claim_runs.of_record(whole))
    return found and found._replace(agrees=found.found == 1)


def _shape(record: Record) -> list[BlockShape]:
    assert record.shape is not None
    return record.shape


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
    nan, source = float("nan"), "grid ratios: largest lead over 2:1, points"
    return Answer(float(lead), nan, nan, len(runs), bool(lead <= 0), source, runs)


def rule_misses_here(root: Path, _: str) -> Answer | None:
    """Extracted minus expected MACs of the paper's rule, per cent of dense: the largest in size."""
    misses, runs = stats.rule_misses(root, "budget"), collect.load(root, "budget")
    return None if misses.empty else _farthest(misses, "grid budget: rule-*", runs.loc[misses.index])


def budget_misses_here(root: Path, _: str) -> Answer | None:
    runs = collect.load(root, "budget").dropna(subset="target")
    if runs.empty:
        return None
    return _farthest(100 * (runs["macs_share"] - runs["target"]), "grid budget: hiap-*; our budget rule", runs)


def _farthest(misses: pd.Series, source: str, runs: pd.DataFrame) -> Answer:
    """The miss (% of dense) that is farthest from 0; agrees within half a per cent."""
    low, high = float(misses.min()), float(misses.max())
    worst = low if -low > high else high
    return Answer(worst, low, high, len(misses), abs(worst) <= 0.5, source, runs)


def realised_share_here(root: Path, _: str) -> Answer | None:
    """The smallest realised share over the widths of the CPU benchmark."""
    rows = bench.load(root)
    rows = rows[(rows["report"] == "deit_small_cpu_fp32_b16") & rows["share"].notna()]
    if rows.empty:
        return None
    low, high = float(rows["share"].min()), float(rows["share"].max())
    return Answer(low, low, high, len(rows), low >= 0.9, "results/bench/deit_small_cpu_fp32_b16.json; a CPU, not A100")


HERE: dict[str, Callable[[Path, str], Answer | None]] = {
    f.__name__: f
    for f in (
        ahead_here, dims_here, neurons_of_fig5_here, heads_here, neurons_here, neurons_share_here, last_ffns_here,
        ffns_empty_here, heads_between_here, never_empty_here, two_to_one_best_here, rule_misses_here,
        budget_misses_here, realised_share_here,
    )
}  # fmt: skip
