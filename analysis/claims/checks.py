"""What answers a claim without a run: ``CHECKS``, named by ``results/published/claims.csv``, give a number, or whether
it holds, from equations, the printed values and the digitised figures."""

from __future__ import annotations

from collections.abc import Callable
from operator import truediv
from typing import NamedTuple

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer

import hiap
from analysis.findings import costs, gates, heat_maps, speed_limit, table2, theory
from analysis.findings.costs import PAPER, TRUE, WHOLE
from analysis.records import published
from analysis.tables import theirs
from baselines.vit_slim import SoftMask
from hiap import gated_vit
from hiap.train.config import GateConfig


class Noted(NamedTuple):
    """A value and what to know about it."""

    value: float | bool
    note: str


def gates_of(method: str) -> bool:
    """Whether the gates that this repository's implementation learns are those that Table 1 names."""
    gated = hiap.gate(_small()) if method == "hiap" else gated_vit.gate(_small(), kind=SoftMask)
    learned = {
        (gate.level, name.rsplit(".", 1)[-1]) for name, gate in gated_vit.named_gates(gated) if gate.logit.requires_grad
    }
    micro = {("micro", "value_gate"), ("micro", "neuron_gate")}
    return learned == (micro | {("macro", "head_gate"), ("macro", "block_gate")} if method == "hiap" else micro)


def _small() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=4, num_classes=10).eval()


def described_possible(argument: str) -> Noted:
    """'G M': whether some network as described, with heads of 32 value dimensions or fewer among the others, costs what
    is printed; the note has the largest share of such heads, where the others keep all of theirs."""
    gmacs, params = map(float, argument.split())
    shares = {}
    for name, cut in table2.CUTS.items():
        least = table2.fewest_value_dims(gmacs, params, cut)
        shares[name] = 0.0 if least is None else float(np.clip(table2.narrow_share(least), 0, 1))
    named = ", ".join(f"{100 * share:.0f} % ({name})" for name, share in shares.items())
    return Noted(any(share > 0 for share in shares.values()), f"so narrow can be, at most, of the heads: {named}")


def ahead_of_uniform(_: str) -> float:
    rows = published.table(published.TABLE3).set_index("method")["final_acc"]
    return float(rows["HiAP (Moderate)"] - rows["Uniform-Ratio"])


def macro_only_reaches(gmacs: str) -> bool:
    reach = heat_maps.macro_only_reach()
    return bool(reach.loc[np.isclose(reach["point"], float(gmacs) * 1e9), "reached"].item())


def heads_between(argument: str) -> Noted:
    """'figure epochs low high': the share of the blocks that have so many heads after so many epochs."""
    figure, epochs, low, high = map(int, argument.split())
    rows = published.heat_map(figure)
    within = rows.loc[rows["epoch"] == epochs - 1, "heads"].between(low, high)  # column 0: after the first epoch
    return Noted(float(within.mean()), f"{within.sum()} of {len(within)} blocks")


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


def lemma_1(_: str) -> bool:
    small = {granularity: theory.enumerate_networks(2, 2, 2, granularity) for granularity in theory.GRANULARITIES}
    return small["macro + micro"] > small["macro"]


def proposition_1(_: str) -> bool:
    rows = theory.proposition_1(PAPER)
    return bool(np.allclose(rows["enumerated"], rows["joint"]))


def proposition_2(_: str) -> Noted:
    two = gates.hardening_gap(gates=2).gap
    return Noted(gates.hardening_gap().gap, f"{two:.2f} where each unit is behind a macro and a micro gate")


def _last(figure: str, unit: str) -> int:
    """Of the whole network, at the end of one of Figs. 5-9."""
    return int(heat_maps.final_sizes().set_index("figure")[unit][int(figure)])


CHECKS: dict[str, Callable[[str], float | bool | Noted]] = {
    # Tables. An argument that is a number of a row counts from 0.
    "dense_gmacs": lambda _: costs.units().total_macs / 1e9,
    "dense_params": lambda _: costs.units().params / 1e6,
    "table2_change": lambda row: float(table2.table2_check()["recomputed"].iloc[int(row)]),
    "table2_possible": lambda row: bool(table2.table2_check()["possible"].iloc[int(row)]),
    "vit_slim_gmacs": lambda printed: float(table2.vit_slim_rows().set_index("gmacs")["formula"][float(printed)]),
    "cifar_mmacs": lambda _: sum(costs.cost_parts().values()) / 1e6,
    "table3_reduction": lambda row: float(theirs.table3()["reduction"].iloc[int(row)]),
    "quotient": lambda pair: truediv(*map(float, pair.split())),
    # Figures
    "undecided_falls": lambda _: bool((np.diff([*map(gates.undecided_share, gates.TEMPERATURES)]) <= 0).all()),
    "binary_share": lambda tau: 1 - gates.undecided_share(float(tau)),
    "two_to_one_best": lambda _: not (heat_maps.against_two_to_one()["ahead"] > 0).any(),
    "last_ffn_gone": lambda figure: _last(figure, "last_ffn_neurons") == 0,
    "last_ffn_always_gone": lambda _: bool((heat_maps.final_sizes()["last_ffn_neurons"] == 0).all()),
    "neurons_kept": lambda figure: 100 * _last(figure, "neurons") / WHOLE["neurons"],
    "heads_left": lambda figure: float(_last(figure, "heads")),
    "ffns_empty": lambda figure: bool((published.last_state(int(figure))["neurons"] == 0).any()),
    "never_empty": lambda _: all((published.heat_map(figure)["heads"] > 0).all() for figure in published.HEAT_MAPS),
    # Prices
    "eq5_over_macs": lambda _: costs.units().ratio,
    "value_dim_credit": lambda _: costs.value_dimension().share,
    "neuron_credit": lambda _: PAPER.neuron / 2 / TRUE.neuron,
    **{
        check.__name__: check
        for check in (
            gates_of, described_possible, ahead_of_uniform, heads_between,
            macro_only_reaches, open_at_the_start, extraction_exact, closed_layer_is_identity, lemma_1,
            proposition_1, proposition_2,
        )
    },
}  # fmt: skip
# Look at our implementation, which was built so. The last is a rule that lands on its target by construction.
OWN = {"gates_of", "closed_layer_is_identity", "budget_misses_here"}
