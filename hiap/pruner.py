"""The single phase (section 3.4) as an object that any training loop drives::

    pruner = hiap.Pruner(model, steps=len(loader) * epochs, target_macs=0.5)
    optimizer = torch.optim.AdamW(pruner.param_groups(lr=5e-5, weight_decay=0.05))
    for images, labels in loader:
        loss = hiap.distillation_loss(pruner.model(images), labels, teacher(images)) + pruner.penalty()
        loss.backward(); optimizer.step(); optimizer.zero_grad(); pruner.step()
    small = pruner.finish()

Gate noise comes from torch's global generator, as dropout's does: a loop that must resume bit for bit seeds it by the
step, or saves its state with the rest.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hiap import cost
from hiap.backbones.families import is_vit
from hiap.cost import Summary, latency_table, summary_of
from hiap.extraction import extract, kept_units
from hiap.gated_vit import (
    BlockMask,
    anneal,
    gate,
    gates_with_masks,
    harden_to,
    is_gated,
    keep_one_head,
    masks,
    named_gates,
    open_for_good,
)
from hiap.gates import CERTAIN, Gate
from hiap.ledger import LatencyTable
from hiap.objective import feasibility, penalties
from hiap.options import ConfigError, FeasibilityConfig, GateConfig, PenaltyConfig, checked, one_line
from hiap.pruned_vit import LAYOUTS
from hiap.selection import Target, joint_ranking, open_also, protected, target_of

LOOK = 10  # steps after which the logits must have moved: an optimiser's first rates may be 0


class PrunerError(RuntimeError):
    """A pruner that is used out of order; the message is one line and says what was expected."""


class Multipliers:
    """Dual variables of a constraint on cost, and how much of the run they have seen."""

    def __init__(self, count: int):
        self.value, self.progress = torch.zeros(count), torch.zeros(())

    @torch.no_grad()
    def ascend(self, violation: Tensor, progress: float, rate: float) -> None:
        """Gradient ascent. A step is ``rate`` times the share of the run that went by times ``violation`` (count,), so
        that a run ten times longer takes steps a tenth as large."""
        self.to(violation.device)
        self.value += rate * (progress - self.progress) * violation
        self.progress.fill_(progress)

    def to(self, device: torch.device) -> None:
        self.value, self.progress = self.value.to(device), self.progress.to(device)

    def state_dict(self) -> dict[str, Tensor]:
        return {"value": self.value, "progress": self.progress}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.value, self.progress = state["value"].clone(), state["progress"].clone()


class Budget:
    """A target for the single phase: ours, not the paper's. A small expected cost does not make the hardened network
    small (Proposition 2 holds only as gates turn certain), so the strength is found and the end is exact.

    The penalties of Eq. 7 are multiplied by one ``strength``, whose logarithm follows the excess of the expected cost;
    the ratio of macro to micro stays as set. The wanted cost falls from ``start``, what the gates expect at first, to
    the target over a share ``ramp`` of the phase, linearly. (From dense, as in CoFi, it would first lie above gates
    that start near the threshold, and what adds up meanwhile would hold the price down when it is needed.) At the end
    the threshold of 1/2 moves, alike for all gates, to where the extracted network fits; a unit below it may fill what
    is left."""

    # log(strength) = RATE * (integral of the excess over the run) + DAMP * excess. The second term, of an augmented
    # Lagrangian, lets go as soon as the target is passed: saturated gates hardly come back. Both set by how closely the
    # expected MACs follow, not by accuracy.
    RATE = 100.0
    DAMP = 50.0
    # Bounds of log(strength), a factor of 10,000. While gates are still on their way to the threshold the excess only
    # adds up; an integral at its bound says so, and starts again from 0 as soon as the excess changes its sign.
    LIMIT = math.log(1e4)

    def __init__(self, target: Target, ramp: float, start: float):
        self.target, self.ramp, self.start = target, ramp, start
        self.dual, self.strength = Multipliers(1), torch.ones(())

    @torch.no_grad()
    def update(self, gated: Any, progress: float) -> None:
        """Before the step at ``progress`` in [0, 1)."""
        excess, dual = self.target.excess(gated, progress / self.ramp, self.start), self.dual
        dual.to(excess.device)
        wound_up = (dual.value.abs() >= self.LIMIT) & (dual.value * excess < 0)
        dual.value.masked_fill_(wound_up, 0.0)
        dual.ascend(excess, progress, self.RATE)
        dual.value.clamp_(-self.LIMIT, self.LIMIT)
        self.strength = (dual.value + self.DAMP * excess).clamp(-self.LIMIT, self.LIMIT).exp().squeeze()

    def state_dict(self) -> dict[str, Tensor]:
        return {**self.dual.state_dict(), "strength": self.strength}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.dual.load_state_dict(state)
        self.strength = state["strength"].clone()


class Watch:
    """What tells whether a loop prunes: the mode of the gates, gradients of the penalty, steps of the optimiser. Each
    fault is told once, as a warning."""

    def __init__(self, model: Any):
        self.heard, self.calls, self.asleep, self.moved = False, 0, 0, 0
        self.version = self._version(model)
        self.told: set[str] = set()

    @staticmethod
    def _version(model: Any) -> int:
        """Changes whenever an optimiser, or anybody, writes a logit; read without waiting for the device."""
        return sum(gate.logit._version for _, gate in named_gates(model))

    def seen(self, model: Any) -> None:
        """What has been written so far was the pruner itself."""
        self.version = self._version(model)

    def listen(self, terms: Mapping[str, Tensor]) -> None:
        """Notice a gradient that comes back through one of ``terms``."""
        if not self.heard:
            for term in terms.values():
                if term.requires_grad:
                    term.register_hook(self._hear)

    def _hear(self, gradient: Tensor) -> None:
        self.heard = True

    def before(self, model: Any) -> None:
        """At each call of ``step``, before gates are written."""
        self.calls += 1
        self.moved += self._version(model) != self.version
        awake = any(gate.training for _, gate in named_gates(model))
        self.asleep = 0 if awake else self.asleep + 1

    def after(self, model: Any, look: int, priced: bool) -> None:
        """Behind it: look at the first ``look`` steps."""
        done = self.calls
        self.seen(model)
        if self.asleep == look:
            self._tell(
                f"step: the network has been in eval mode for {look} steps, in which its gates are not sampled and "
                "learn nothing of the task; call pruner.model.train() after each validation"
            )
        if done == look and priced and not self.heard:
            self._tell(f"step: no gradient has come through pruner.penalty() in {done} steps; add it to the loss")
        # Once may be something else: fused optimisers leave no mark, and a resumed loop writes everything.
        if done == look and 1 < self.moved <= look // 2:
            self._tell(
                f"step: called {done} times, while the optimiser wrote the gates {self.moved} times; call it once per "
                "optimiser step, and make the pruner with as many steps"
            )

    def _tell(self, line: str) -> None:
        if line not in self.told:
            self.told.add(line)
            warnings.warn(line, stacklevel=4)


class Pruner:
    """HiAP's single phase on a copy of ``model``: gates, penalties and annealing for ``steps`` optimiser steps, then
    the smaller network.

    ``model``: a timm ViT (``hiap/backbones/supported.csv`` has a list), or one that was pruned before, of
    which shares then are; anything else is an ``UnsupportedModelError`` that names the module. ``target_macs``,
    ``target_params`` or ``target_latency`` (microseconds of a batch): what the end must have at most, a number or,
    below 1, a share of dense; the penalties' strength is then found, and
    ``lambda_macro`` and ``lambda_micro`` say only its ratio. Without one it is the paper's rule: the two strengths
    decide what is left. ``latency``: the table, or its file, that predicts time (else ``penalty.latency_table``), for
    that target and for ``penalty.ledger='latency'``. ``gates``, ``penalty``, ``feasibility``: the options of
    ``hiap.options``; ``ramp``: see ``Budget``; ``keep``, units that must stay, and ``multiple``, in how many units at a
    time the end is cut: see ``hiap.extract``; ``seed`` draws the noise of ``gates.harden='sample'``; ``shrink``: a
    ``hiap.Shrink`` of its own, see ``cut``. Raises ``ConfigError`` (one line) for options that do not go together, for
    a target out of reach, and for a table of another network.

    ``pruner.model`` is the gated network (images (B, C, height, width) to logits (B, classes)); it may be moved, cast,
    compiled and wrapped in ``DistributedDataParallel``. Call ``step`` once per optimiser step, whatever number of
    batches that accumulates.
    """

    def __init__(
        self,
        model: Any,
        *,
        steps: int,
        target_macs: float | None = None,
        target_params: float | None = None,
        target_latency: float | None = None,
        latency: LatencyTable | str | os.PathLike[str] | None = None,
        lambda_macro: float | None = None,
        lambda_micro: float | None = None,
        gates: GateConfig | None = None,
        penalty: PenaltyConfig | None = None,
        feasibility: FeasibilityConfig | None = None,
        ramp: float = 0.5,
        keep: Mapping[str, Any] | None = None,
        multiple: int | None = None,
        seed: int = 0,
        shrink: Any = None,
    ):
        if not hasattr(steps, "__index__") or steps < 1:
            raise ConfigError(f"steps {steps!r}: expected the number of optimiser steps, 1 or more")
        if not 0 < ramp <= 1:
            raise ConfigError(f"ramp {ramp!r}: expected a share of the phase in (0, 1]")
        given = {"lambda_macro": lambda_macro, "lambda_micro": lambda_micro}
        chosen = {name: value for name, value in given.items() if value is not None}
        self.gates, self.feasibility = gates or GateConfig(), feasibility or FeasibilityConfig()
        self.prices = checked(PenaltyConfig, {**(penalty or PenaltyConfig()).model_dump(), **chosen})
        whole, target_macs, target_params = _evened(model, target_macs, target_params)
        self._again = whole is not model
        if self._again and any(getattr(block, "attn_constant", None) is not None for block in model.blocks):
            self.gates = self.gates.model_copy(update={"attn_bias": "kept"})  # else what is gone would give nothing
        self.model = gate(whole, self.gates, seed=seed)
        self._gone = _close_zeros(self.model) if self._again else None
        self.steps, self.done, self.keep = steps, 0, keep
        self._stay = protected(self.model, keep or {})
        self._finished = False
        table = latency or self.prices.latency_table
        self.latency = latency_table(self.model, table).prices if self.prices.ledger == "latency" else None
        target = target_of(self.model, target_macs, target_params, target_latency, table, multiple)
        self.multiple = target.multiple if target else multiple or 1
        self._threshold: list[BlockMask] | None = None  # what the gates left, once ``harden`` has rounded it
        self.budget = Budget(target, ramp, start=target.expected(self.model)) if target else None
        if target:
            if self.gates.harden == "sample":
                raise ConfigError("gates.harden 'sample' draws what is kept; with a target it must be 'probability'")
            target.require_reachable(joint_ranking(self.model, keep))
        self.shrink = shrink
        if shrink:
            shrink.begin(self.model)
        self._watch = Watch(self.model)
        self._first = {name: p.detach().clone() for name, p in self._vectors()}
        self._ready()

    def param_groups(
        self, lr: float, weight_decay: float = 0.0, gate_lr: float | None = None, layer_decay: float | None = None
    ) -> list[dict[str, Any]]:
        """Groups for a torch optimiser: matrices with ``weight_decay``, vectors without, and the gates' logits with
        the decay of ``gates.weight_decay`` and the rate ``gate_lr`` (else ``gates.lr``, else ``gates.travel`` over the
        steps, else ``lr``: A6). Each carries ``lr`` and ``lr_scale``, its ratio to ``lr``, which timm's schedulers
        multiply by. ``layer_decay`` lowers the weights' rates from the head to the stem, as timm does; the gates' rate
        stays. Warns if gates cannot get to their threshold at that rate."""
        travel = self.gates.travel
        rate = gate_lr or self.gates.lr or (travel / self.steps if travel else lr)
        way = min(self.gates.start("macro"), self.gates.start("micro"))
        if self._priced and rate * self.steps < way:
            warnings.warn(
                f"param_groups: a gate starts {way:.3g} from its threshold, and the rates of {self.steps:,} steps sum "
                f"to {rate * self.steps:.2g} at most; set gate_lr to {2 * way / self.steps:.2g} or more, or "
                "gates.travel",
                stacklevel=2,
            )
        return param_groups(self.model, lr, weight_decay, self.gates, rate / lr, layer_decay)

    def terms(self) -> dict[str, Tensor]:
        """The parts of ``penalty`` by name: 'macro' and 'micro' of Eq. 7, 'feasibility' of Eq. 8."""
        priced = penalties(self.model, self.prices, self.latency)
        if self.budget:
            priced = {name: self.budget.strength * term for name, term in priced.items()}
        terms = {**priced, "feasibility": feasibility(self.model, self.feasibility)}
        self._watch.listen(terms)
        self._require_finite(terms)
        return terms

    @property
    def _priced(self) -> bool:
        """Whether any unit has a price: not so in controls."""
        return bool(self.prices.lambda_macro or self.prices.lambda_micro)

    def _require_finite(self, terms: Mapping[str, Tensor]) -> None:
        """At once; on a device, where to look is to wait, at the first steps and at every tenth."""
        first = next(iter(terms.values()))
        if type(first) is not Tensor or torch.compiler.is_compiling():
            return
        if first.device.type != "cpu" and self.done >= LOOK and self.done % LOOK:
            return
        if bad := [f"{name} is {term.item()}" for name, term in terms.items() if not term.isfinite()]:
            raise PrunerError(
                f"penalty: {', '.join(bad)} at step {self.done + 1}: the gates or the strengths are not finite; a loss "
                "that diverged has reached the gates: lower the rates, or clip gradients"
            )

    def penalty(self) -> Tensor:
        """A differentiable scalar to add to the task loss, which is a mean over the batch. Where gradients of n batches
        accumulate, divide it by n as the loss."""
        return torch.stack(list(self.terms().values())).sum()

    def step(self) -> None:
        """After each optimiser step: temperature and strength of the next one."""
        if self.done == self.steps:
            raise PrunerError(f"step: all {self.steps} steps are done; make the pruner with as many as the loop has")
        self._watch.before(self.model)
        self.done += 1
        self._ready()
        look = min(LOOK, self.steps)
        self._watch.after(self.model, look, self._priced)
        if self.done == look and self.travel() == 0:
            raise PrunerError(
                f"step: no gate has moved in {self.done} steps; the optimiser must have what pruner.param_groups gives"
            )

    def cut(self, optimizer: torch.optim.Optimizer | None = None) -> list[Any]:
        """Ours, with ``shrink``: remove from ``model`` what is closed with certainty, at the end of an epoch, say. What
        was removed, [] if nothing: else wrap or compile ``model`` again. The state of ``optimizer`` follows."""
        if not self.shrink:
            raise PrunerError("cut: make the pruner with shrink=hiap.Shrink(...)")
        gone = self.shrink.look(self.model, optimizer)
        self._watch.seen(self.model)
        return gone

    def _ready(self) -> None:
        if self.keep:
            open_for_good(self.model, self._stay)
        if self.shrink:
            self.shrink.hold(self.model)
        if self.done < self.steps:
            progress = self.done / self.steps
            self.temperature = anneal(self.model, self.gates, progress)
            if self.budget:
                self.budget.update(self.model, progress)

    @torch.no_grad()
    def travel(self) -> float:
        """How far the logit that has gone farthest is from where it started; those that are held do not count."""
        ways = ((gate.alpha - self.gates.start(gate.level))[free].abs() for gate, free in self._free())
        return max((float(way.max()) for way in ways if way.numel()), default=0.0)

    @torch.no_grad()
    def near(self) -> float | None:
        """The share of gates that have come half of their way to the threshold, or farther; None where they start
        closed."""
        pairs = [(gate.alpha[free], self.gates.start(gate.level)) for gate, free in self._free()]
        if any(start <= 0 for _, start in pairs):
            return None
        came = torch.cat([(logit <= start / 2).flatten() for logit, start in pairs])
        return float(came.float().mean()) if came.numel() else None

    def _vectors(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Biases and norms that are trained, by name: small, and an optimiser step leaves none of them as it was."""
        for name, p in self.model.named_parameters():
            if type(p) is nn.Parameter and p.requires_grad and p.ndim == 1 and not name.endswith(".logit"):
                yield name, p

    def _untouched(self) -> bool:
        """Whether all weights are what they were when the pruner was made."""
        pairs = [(self._first[name], p.detach()) for name, p in self._vectors() if name in self._first]
        return bool(pairs) and all(one.shape == two.shape and torch.equal(one.to(two), two) for one, two in pairs)

    def _free(self) -> Iterator[tuple[Gate, Tensor]]:
        """Every gate with those of its units that nothing holds."""
        held = open_also(self._stay, self.shrink.gone()) if self.shrink else self._stay
        held = open_also(held, self._gone) if self._gone else held
        for one, stay in gates_with_masks(self.model, held):
            yield one, ~stay.to(one.logit.device)

    def harden(self) -> None:
        """Decide what stays without removing it: in eval mode ``model`` then computes what ``finish`` leaves."""
        if self.budget or self.keep:
            harden_to(self.model, self._kept())
        if self.gates.keep_head:
            keep_one_head(self.model)
        if not self.budget and self.multiple > 1:
            self._threshold = self._threshold or masks(self.model)
            harden_to(self.model, self._rounded())

    def finish(self, layout: str = LAYOUTS[0]) -> Any:
        """The smaller network, hardened and on the target, without fine-tuning: a plain ``VisionTransformer``, run in
        this layout (``hiap.pruned_vit``). Raises ``ValueError`` if the paper's rule has closed every head. Warns if no
        gate came near its threshold: what is kept was then decided by chance."""
        if self._finished:
            raise PrunerError("finish: done before; hiap.extract(pruner.model, ...) gives further networks")
        if self.done < self.steps:
            warnings.warn(f"finish: after {self.done} of {self.steps} steps the gates are not annealed", stacklevel=2)
        elif self._priced and self.near() == 0:
            start = min(self.gates.start("macro"), self.gates.start("micro"))
            warnings.warn(
                f"finish: no gate came half of its way to the threshold (the farthest went {self.travel():.2g} of "
                f"{start:.2g}), so what is kept was hardly learned; raise gate_lr, see that no scheduler sets one rate "
                "for all groups, that the penalty is added and that the network trains in train mode",
                stacklevel=2,
            )
        if self.done == self.steps and self._untouched():
            warnings.warn(
                "finish: no weight of pruner.model has changed; the task loss must be of pruner.model(images), and the "
                "optimiser must have what pruner.param_groups gives",
                stacklevel=2,
            )
        self.harden()
        small = extract(self.model, layout)
        if self._again:
            from hiap.beyond.evening import trimmed

            small = trimmed(small)
        self._finished = True
        return small

    def summary(self) -> Summary:
        """Of what ``finish`` would leave now, and of what the paper's rule leaves before ``multiple`` rounds it; and
        how far the gates have come and how certain they are, 1 where each is open or closed in every sample (without
        ``shrink``)."""
        if self.budget or self.multiple == 1:
            found = summary_of(self.model, self._kept(), self.multiple)
        else:
            found = summary_of(self.model, self._rounded(), self.multiple, self._threshold or self._kept())
        if self.shrink:  # what it holds closed has gone nowhere by itself
            return found
        logits = torch.cat([gate.alpha.detach()[free].flatten() for gate, free in self._free()])
        certainty = float((2 * torch.sigmoid(logits) - 1).abs().mean()) if len(logits) else 1.0
        return replace(found, travel=self.travel(), near=self.near(), certainty=certainty)

    def _kept(self) -> list[BlockMask]:
        kept = kept_units(self.model, self.budget.target if self.budget else None, self.keep)
        return live(kept, self._gone) if self._gone else kept

    def _rounded(self) -> list[BlockMask]:
        return kept_units(self.model, None, self.keep, self.multiple)

    def state_dict(self, model: bool = True) -> dict[str, Any]:
        """All that a resumed pruner needs: tensors and numbers. Without ``model`` the network's own state is left out,
        for loops that keep it anyway."""
        state: dict[str, Any] = {"done": self.done, "steps": self.steps}
        if self.budget:
            state["budget"] = self.budget.state_dict()
        if self.shrink:
            state["shrink"] = self.shrink.state_dict()
        return {**state, "model": self.model.state_dict()} if model else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state`` was taken. With ``shrink`` the network takes the state's sizes: make the optimiser
        afterwards. Raises ``PrunerError`` if it is of another model or phase."""
        if state["steps"] != self.steps or ("budget" in state) != (self.budget is not None):
            phase = f"{state['steps']} steps {'with' if 'budget' in state else 'without'} a target"
            raise PrunerError(f"load_state_dict: the state is of a phase of {phase}; make the pruner so")
        if ("shrink" in state) != bool(self.shrink):
            raise PrunerError(f"load_state_dict: the state is {'not ' * bool(self.shrink)}of a pruner with shrink")
        try:
            if self.shrink:
                self.shrink.load_state_dict(self.model, state["shrink"])
            self.model.load_state_dict(state.get("model", self.model.state_dict()))
        except RuntimeError as error:
            line = one_line(error)
            raise PrunerError(f"load_state_dict: the state is of another model: {line}") from None
        self.done = state["done"]
        if self.done < self.steps:
            self.temperature = anneal(self.model, self.gates, self.done / self.steps)
        if self.budget:
            self.budget.load_state_dict(state["budget"])
        self._watch = Watch(self.model)


def _evened(model: Any, macs: float | None, params: float | None) -> tuple[Any, float | None, float | None]:
    """A network that was pruned before with zeros where units are gone, so that its blocks are alike, and shares of it
    as numbers; any other, and its targets, as they are."""
    if not is_vit(model) or is_gated(model):  # told by ``gate``
        return model, macs, params
    from hiap.beyond.evening import even  # ours, and needed for such networks alone

    whole = even(model)
    if whole is not model:
        if isinstance(macs, float) and 0 < macs < 1:
            macs = round(macs * cost.macs(model, cost.image_of(model)))
        if isinstance(params, float) and 0 < params < 1:
            params = round(params * cost.params(model))
    return whole, macs, params


@torch.no_grad()
def zeros(model: Any) -> list[BlockMask]:
    """The heads, value dimensions and neurons of an evened network (gated or not) that give nothing."""
    gone = []
    for block in model.blocks:
        attn, mlp = block.attn, block.mlp
        dims = (attn.proj.weight == 0).all(0).view(attn.num_heads, attn.head_dim)
        neurons = (mlp.fc2.weight == 0).all(0)
        none = torch.zeros((), dtype=torch.bool, device=neurons.device)
        gone.append(BlockMask(heads=dims.all(-1), dims=dims, ffn=none, neurons=neurons))
    return gone


@torch.no_grad()
def _close_zeros(gated: Any) -> list[BlockMask]:
    """Close the gates of units that give nothing, for good; which they are."""
    gone = zeros(gated)
    for one, closed in gates_with_masks(gated, gone):
        one.logit.masked_fill_(closed.to(one.logit.device), -CERTAIN)
    return gone


def live(kept: list[BlockMask], gone: list[BlockMask]) -> list[BlockMask]:
    """``kept`` without units that are ``gone``: they may fill what is left of a target, and give nothing."""
    pairs = [(mask, mask.dims & ~zero.dims.to(mask.dims.device), zero) for mask, zero in zip(kept, gone, strict=True)]
    return [
        BlockMask(mask.heads & dims.any(-1), dims, mask.ffn, mask.neurons & ~zero.neurons.to(dims.device))
        for mask, dims, zero in pairs
    ]


def param_groups(
    model: Any,
    lr: float,
    weight_decay: float,
    gates: GateConfig | None = None,
    gate_lr_scale: float = 1.0,
    layer_decay: float | None = None,
) -> list[dict[str, Any]]:
    """See ``Pruner.param_groups``; ``model`` may be dense. Decay is on matrices only, timm's usual rule."""
    skip = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
    if layer_decay is not None:
        return _layer_groups(model, lr, weight_decay, gates, gate_lr_scale, layer_decay, skip)
    decay, plain, logits = [], [], []
    for name, p in model.named_parameters():
        if name.endswith(".logit"):
            logits.append(p)
        elif p.ndim < 2 or name in skip:
            plain.append(p)
        else:
            decay.append(p)
    gate_decay = gates.weight_decay if gates else 0.0
    groups = ((decay, weight_decay, 1.0), (plain, 0.0, 1.0), (logits, gate_decay, gate_lr_scale))
    return [
        {"params": params, "weight_decay": decayed, "lr": lr * scale, "lr_scale": scale}
        for params, decayed, scale in groups
        if params
    ]


def _layer_groups(
    model: Any,
    lr: float,
    weight_decay: float,
    gates: GateConfig | None,
    gate_lr_scale: float,
    layer_decay: float,
    skip: set[str],
) -> list[dict[str, Any]]:
    """timm's groups of layer decay, with the gates' logits in one of their own."""
    from timm.optim import param_groups_layer_decay

    if not 0 < layer_decay <= 1:
        raise ConfigError(f"layer_decay {layer_decay!r}: expected a factor in (0, 1]")
    logits = [p for name, p in model.named_parameters() if name.endswith(".logit") and p.requires_grad]
    ours = {id(p) for p in logits}
    groups = []
    for group in param_groups_layer_decay(model, weight_decay, no_weight_decay_list=skip, layer_decay=layer_decay):
        if params := [p for p in group["params"] if id(p) not in ours]:
            groups.append({**group, "params": params, "lr": lr * group["lr_scale"]})
    own = {"weight_decay": gates.weight_decay if gates else 0.0, "lr": lr * gate_lr_scale, "lr_scale": gate_lr_scale}
    return groups + ([{"params": logits, **own}] if logits else [])
