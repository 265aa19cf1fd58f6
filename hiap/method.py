"""How a network becomes smaller: a method is a list of stages, each one training phase of the one loop.

``hiap/`` holds plain training and HiAP; every other method is a file of ``baselines/`` with a function
``stages(config) -> list[Stage]``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from hiap import cost, gated_vit, ledger
from hiap.config import Config
from hiap.extraction import extract
from hiap.objective import feasibility, penalties
from hiap.selection import Ranking, keep_best, require_reachable


@dataclass
class Context:
    """What a stage may look at besides the network: the run's configuration, the MACs that it must reach (None if the
    method has no target), and the image (channels, height, width). ``scored``: images that a stage ran forward and
    backward to rank units; it adds them here, so that they are billed."""

    config: Config
    target_macs: int | None
    image: tuple[int, int, int]
    scored: int = 0


def remove(gated: Any) -> Any:
    """Extraction within a run: what is trained on executes exactly the MACs that it is billed for."""
    return extract(gated, layout="ragged")


class Stage:
    """One training phase; as it stands, plain training (a dense network, or fine-tuning)."""

    def __init__(self, name: str, epochs: int, before: int = 0, after: int = 0):
        """``before``, ``after``: epochs of other stages that share one schedule of rates with this one."""
        self.name, self.epochs, self.before, self.after = name, epochs, before, after

    def prepare(self, model: Any, context: Context) -> Any:
        """What is trained, made from what the previous stage left. Deterministic: a resumed run calls it again."""
        return model

    def recipe(self, config: Config) -> Config:
        """The configuration that this stage trains with, where a method has a schedule of its own."""
        return config

    def anneal(self, model: Any, progress: float) -> float | None:
        """Called before each step with ``progress`` in [0, 1); returns the temperature if there is one."""
        return None

    def terms(self, model: Any) -> dict[str, Tensor]:
        """Named terms that are added to the task loss."""
        return {}

    def log(self, model: Any) -> dict[str, float]:
        """Named values for the epoch's log."""
        return {}

    def harden(self, model: Any) -> None:
        """After the last step, before anything is measured: decide which gates are open, where 1/2 does not."""

    def finish(self, model: Any) -> Any:
        """What this stage leaves: a plain network."""
        return model


class Multipliers(nn.Module):
    """Dual variables of a constraint on MACs, kept with the network so that a resumed run has them."""

    value: Tensor
    progress: Tensor

    def __init__(self, count: int):
        super().__init__()
        self.register_buffer("value", torch.zeros(count))
        self.register_buffer("progress", torch.zeros(()))

    @torch.no_grad()
    def ascend(self, violation: Tensor, progress: float, rate: float) -> None:
        """Gradient ascent. A step is ``rate`` times the share of the run that went by times ``violation`` (count,), so
        that a run ten times longer takes steps a tenth as large."""
        self.value += rate * (progress - self.progress) * violation
        self.progress.fill_(progress)


class TargetedStage(Stage):
    """Gates and weights trained together, then hardened to the target by ``rank``: HiAP with a budget, and baselines
    that search. A subclass makes the gates (``gate``) and says which go first (``rank``). The wanted MACs fall from
    dense to the target over a share ``budget.ramp`` of the stage, linearly, as in CoFi."""

    def gate(self, model: Any, context: Context) -> Any:
        raise NotImplementedError

    def rank(self, model: Any) -> Ranking:
        raise NotImplementedError

    def prepare(self, model: Any, context: Context) -> Any:
        assert context.target_macs is not None
        self.dims, self.target = cost.dims_of(model), context.target_macs
        self.ramp = context.config.budget.ramp
        gated = self.gate(model, context)
        require_reachable(self.dims, self.rank(gated), self.target)
        return gated

    def excess(self, gated: Any, progress: float) -> Tensor:
        """Expected minus wanted MACs, as a share of dense."""
        dense = ledger.dense_macs(self.dims)
        wanted = dense + min(1.0, progress / self.ramp) * (self.target - dense)
        return (cost.expected_cost(gated).macs - wanted) / dense

    @torch.no_grad()
    def log(self, model: Any) -> dict[str, float]:
        return {"expected_macs": float(cost.expected_cost(model).macs)}

    def harden(self, model: Any) -> None:
        gated_vit.harden_to(model, keep_best(self.dims, self.rank(model), self.target))

    def finish(self, model: Any) -> Any:
        return remove(model)


class SinglePhase(Stage):
    """HiAP: weights and gates together, then hardened and removed, without fine-tuning (section 3.4)."""

    def __init__(self, config: Config):
        epochs = round((config.budget.settle or 1.0) * config.optim.epochs)
        super().__init__("single-phase", epochs, after=config.optim.epochs - epochs)
        self.config = config

    def prepare(self, model: Any, context: Context) -> Any:
        return gated_vit.gate(model, self.config.gates, seed=self.config.seed)

    def anneal(self, model: Any, progress: float) -> float:
        return gated_vit.anneal(model, self.config.gates, progress)

    def terms(self, model: Any) -> dict[str, Tensor]:
        return {
            **penalties(model, self.config.penalty),
            "feasibility": feasibility(model, self.config.feasibility),
        }

    @torch.no_grad()
    def log(self, model: Any) -> dict[str, float]:
        return {"expected_macs": float(cost.expected_cost(model).macs), "travel": farthest(model, self.config)}

    def harden(self, model: Any) -> None:
        if self.config.gates.keep_head:
            gated_vit.keep_one_head(model)

    def finish(self, model: Any) -> Any:
        return remove(model)


def farthest(gated: Any, config: Config) -> float:
    """How far the logit that has gone farthest is from where it started."""
    gates = (gate for _, gate in gated_vit.named_gates(gated))
    return max(float((gate.logit.detach() - config.gates.start(gate.level)).abs().max()) for gate in gates)


class BudgetedSinglePhase(TargetedStage, SinglePhase):
    """HiAP with ``budget.target_macs``: ours, not the paper's. A small expected cost does not make the hardened network
    small (Proposition 2 holds only as gates turn certain), so the strength is found and the end is exact.

    The penalties of Eq. 7 are multiplied by one strength, whose logarithm follows the excess of the expected MACs; the
    ratio of macro to micro stays as set. At the end the threshold of 1/2 moves, alike for all gates, to where the
    extracted network fits; a unit below it may fill what is left."""

    # log(strength) = RATE * (integral of the excess over the run) + DAMP * excess. The second term, of an augmented
    # Lagrangian, lets go as soon as the target is passed: saturated gates hardly come back. Both set by how closely the
    # expected MACs follow, not by accuracy.
    RATE = 100.0
    DAMP = 50.0
    # Bounds of log(strength), a factor of 10,000. While gates are still on their way to the threshold the excess only
    # adds up; an integral at its bound says so, and starts again from 0 as soon as the excess changes its sign.
    LIMIT = math.log(1e4)

    def gate(self, model: Any, context: Context) -> Any:
        gated = SinglePhase.prepare(self, model, context)
        gated.dual = Multipliers(1)
        return gated

    def anneal(self, model: Any, progress: float) -> float:
        with torch.no_grad():
            excess, dual = self.excess(model, progress), model.dual
            wound_up = (dual.value.abs() >= self.LIMIT) & (dual.value * excess < 0)
            dual.value.masked_fill_(wound_up, 0.0)
            dual.ascend(excess, progress, self.RATE)
            dual.value.clamp_(-self.LIMIT, self.LIMIT)
            model.strength = (dual.value + self.DAMP * excess).clamp(-self.LIMIT, self.LIMIT).exp().squeeze()
        return SinglePhase.anneal(self, model, progress)

    def terms(self, model: Any) -> dict[str, Tensor]:
        strength = model.strength
        priced = {name: strength * term for name, term in penalties(model, self.config.penalty).items()}
        return {**priced, "feasibility": feasibility(model, self.config.feasibility)}

    def log(self, model: Any) -> dict[str, float]:
        return {**SinglePhase.log(self, model), "strength": float(model.strength)}

    def rank(self, model: Any) -> Ranking:
        return joint_ranking(model)

    def finish(self, model: Any) -> Any:
        del model.dual, model.strength
        return remove(model)


def joint_ranking(gated: Any) -> Ranking:
    """A unit's key is the smaller of its own logit and that of the head or FFN it belongs to: what a threshold common
    to all gates keeps. Units that a macro gate ties are ordered by their own logit."""
    g, d, b, c = gated_vit.stack_gates(gated, lambda gate: gate.logit.detach().cpu())
    g, b = g[..., None], b[:, None]
    own = torch.cat([d.flatten(), c.flatten()])
    joint = torch.cat([torch.minimum(g, d).flatten(), torch.minimum(b, c).flatten()])
    order = own.argsort(stable=True)
    order = order[joint[order].argsort(stable=True)]
    keys = torch.empty(len(order))
    keys[order] = torch.arange(len(order), dtype=keys.dtype)
    return Ranking(
        dims=keys[: d.numel()].view_as(d),
        neurons=keys[d.numel() :].view_as(c),
        cut_qk=gated.blocks[0].attn.cuts_qk,
        tied=torch.cat([(d >= g).flatten(), (c >= b).flatten()]),
    )


def stages(config: Config) -> list[Stage]:
    """The phases of ``config.method``."""
    if config.method == "dense":
        return [Stage("train", config.optim.epochs)]
    if config.method == "hiap":
        phase = SinglePhase(config) if config.budget.target_macs is None else BudgetedSinglePhase(config)
        return [phase, Stage("settled", phase.after, before=phase.epochs)] if phase.after else [phase]
    return import_module(f"baselines.{config.method}").stages(config)
