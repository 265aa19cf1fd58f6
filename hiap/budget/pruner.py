"""``hiap.Pruner`` and ``hiap.extract``: the paper's phase and its extraction, with targets and what else is ours."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hiap import extraction, options, pruner
from hiap.backbones.evening import even, trimmed
from hiap.backbones.families import is_vit, require_vit
from hiap.backbones.guard import require_numbers
from hiap.backbones.pruned import LAYOUTS
from hiap.backbones.sharded import gathered
from hiap.budget.latency import LatencyTable
from hiap.budget.options import GateConfig, PenaltyConfig
from hiap.budget.policy import Policy
from hiap.budget.selection import kept_units, require_used, target_of
from hiap.budget.summary import Summary
from hiap.budget.watch import LOOK, Watch
from hiap.gated_layers import is_gated, named_gates
from hiap.options import ConfigError, FeasibilityConfig, Section, checked
from hiap.pruner import PrunerError


class _Gated:
    """Attribute that refuses what is no ViT: a network that was wrapped or compiled. Reading it costs nothing, since
    there is no ``__get__``."""

    def __set__(self, owner: Any, value: Any) -> None:
        if not is_vit(value):
            raise PrunerError(
                f"pruner.model: {type(value).__name__}; keep the network itself there, and what wraps or compiles it "
                "under a name of its own"
            )
        vars(owner)["model"] = value


class Pruner(pruner.Pruner):
    """HiAP's single phase on a copy of ``model``: gates, penalties and annealing for ``steps`` optimiser steps, then
    the smaller network. ``hiap.pruner`` has the paper's; here are its targets, its checks and what else is ours.

    ``pruner.model`` is the gated network (images (B, C, height, width) to logits (B, classes)); it may be moved, cast,
    compiled and wrapped in ``DistributedDataParallel``. Call ``step`` once per optimiser step, whatever number of
    batches that accumulates. Raises ``ConfigError`` (one line) for options that do not go together, for a target out of
    reach, and for a table of another network.

    Args:
        model: a timm ViT (``hiap/backbones/supported.csv`` has a list), or one that was pruned before (a
            share is then one of that); anything else is an ``UnsupportedModelError`` that names the module.
        steps: optimiser steps of the phase.
        target_macs, target_params, target_latency: what the end must have at most (microseconds of a batch for the
            last), a number or, below 1, a share of dense; the penalties' strength is then found, and ``lambda_macro``
            and ``lambda_micro`` say only its ratio. Without one it is the paper's rule: the two strengths decide what
            is left.
        latency: the table, or its file, that predicts time (else ``penalty.latency_table``), for that target and for
            ``penalty.ledger='latency'``.
        lambda_macro, lambda_micro: the strengths of ``penalty``.
        gates, penalty, feasibility: the options of ``hiap.budget.options`` and ``hiap.options``.
        ramp: share of the phase over which the wanted cost falls to the target (``hiap.budget.controller``).
        keep, multiple: units that must stay, and in how many units at a time the end is cut, as in ``hiap.extract``.
        seed: of the noise of ``gates.harden='sample'``, and of ``seed_noise``.
        shrink: a ``hiap.Shrink`` of its own, see ``cut``.
    """

    policy: Policy
    model: Any = _Gated()

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
        gates: options.GateConfig | None = None,
        penalty: options.PenaltyConfig | None = None,
        feasibility: FeasibilityConfig | None = None,
        ramp: float = 0.5,
        keep: Mapping[str, Any] | None = None,
        multiple: int | None = None,
        seed: int = 0,
        shrink: Any = None,
    ):
        _require_options(gates=gates, penalty=penalty, feasibility=feasibility)
        if not isinstance(ramp, int | float) or not 0 < ramp <= 1:
            raise ConfigError(f"ramp {ramp!r}: expected a share of the phase in (0, 1]")
        given = {"lambda_macro": lambda_macro, "lambda_micro": lambda_micro}
        chosen = {name: value for name, value in given.items() if value is not None}
        prices = checked(PenaltyConfig, {**(penalty or PenaltyConfig()).model_dump(), **chosen})
        gates = gates or GateConfig()
        whole = even(model) if is_vit(model) and not is_gated(model) else model  # what is none is refused by ``gate``
        self._finished, again = False, whole is not model
        if again and any(getattr(block, "attn_constant", None) is not None for block in model.blocks):
            gates = gates.model_copy(update={"attn_bias": "kept"})  # else what is gone would give nothing
        targets = {"target_macs": target_macs, "target_params": target_params, "target_latency": target_latency}
        policy = partial(
            Policy,
            gates=gates,
            penalty=prices,
            targets=targets,
            latency=latency,
            ramp=ramp,
            keep=keep,
            multiple=multiple,
            shrink=shrink,
            zeros=again,
        )
        super().__init__(whole, steps, gates, prices, feasibility, seed, policy)
        self.budget, self.shrink, self.multiple = self.policy.budget, shrink, self.policy.multiple
        self._priced = bool(prices.lambda_macro or prices.lambda_micro)  # not so in controls
        self._watch = Watch(self.model, self.budget is not None)
        self._first = {name: p.detach().clone() for name, p in self._vectors()}

    def terms(self) -> dict[str, Tensor]:
        terms = super().terms()
        self._watch.listen(terms, self.done)
        return terms

    def step(self) -> None:
        """Set temperature and strength for the next step; to be called after each optimiser step. Warns of a loop that
        does not prune. Raises ``PrunerError`` if nothing has written a gate in the first ``LOOK`` steps, or all steps
        are done."""
        self._watch.before()
        super().step()
        look = min(LOOK, self.steps)
        self._watch.after(look, self._priced, lambda: self.policy.free(self.model))
        if self.done == look and self.travel() == 0:
            self._watch.still(self.done)

    def cut(self, optimizer: torch.optim.Optimizer | None) -> list[Any]:
        """Remove, with ``shrink``, from ``model`` what is closed with certainty, at the end of an epoch, say. Return
        what was removed, [] if nothing: else wrap or compile ``model`` again. ``optimizer`` takes the layers that are
        new, and its state follows; None: nothing is trained any more, or an optimiser is made anew."""
        if not self.shrink:
            raise PrunerError("cut: make the pruner with shrink=hiap.Shrink(...)")
        self.policy.undecide(self.model)
        gone = self.shrink.cut(self.model, optimizer)
        self._watch.seen()
        return gone

    @torch.no_grad()
    def travel(self) -> float:
        """Return how far the logit that has gone farthest is from where it started; held ones do not count."""
        ways = ((gate.alpha - self.gates.start(gate.level))[free].abs() for gate, free in self.policy.free(self.model))
        return max((float(way.max()) for way in ways if way.numel()), default=0.0)

    @torch.no_grad()
    def near(self) -> float | None:
        """Return the share of gates that have come half of their way to the threshold, or farther; None where they
        start closed."""
        pairs = [(gate.alpha[free], self.gates.start(gate.level)) for gate, free in self.policy.free(self.model)]
        if any(start <= 0 for _, start in pairs):
            return None
        came = torch.cat([(logit <= start / 2).flatten() for logit, start in pairs])
        return float(came.float().mean()) if came.numel() else None

    def _vectors(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield biases and norms that are trained, by name: small, and an optimiser step leaves none of them as it
        was."""
        for name, p in self.model.named_parameters():
            if type(p) is nn.Parameter and p.requires_grad and p.ndim == 1 and not name.endswith(".logit"):
                yield name, p

    def _untouched(self) -> bool:
        """Tell whether all weights are what they were when the pruner was made."""
        pairs = [(self._first[name], p.detach()) for name, p in self._vectors() if name in self._first]
        return bool(pairs) and all(one.shape == two.shape and torch.equal(one.to(two), two) for one, two in pairs)

    def finish(self, layout: str = LAYOUTS[0]) -> Any:
        """Return the smaller network, hardened and on the target, without fine-tuning: a plain ``VisionTransformer``,
        run in this layout (``hiap.backbones.pruned``). Raises ``ValueError`` if the paper's rule has closed every head.
        Warns if no gate came near its threshold: what is kept was then decided by chance. Raises ``PrunerError`` if
        called again."""
        if self._finished:
            raise PrunerError("finish: done before; hiap.extract(pruner.model, ...) gives further networks")
        # Warnings are of this file: whoever calls this may be a framework's loop, which says nothing to its reader.
        if self.done < self.steps:
            warnings.warn(f"finish: after {self.done} of {self.steps} steps the gates are not annealed", stacklevel=1)
        elif self._priced and self.near() == 0:
            start = min(self.gates.start("macro"), self.gates.start("micro"))
            warnings.warn(
                f"finish: no gate came half of its way to the threshold (the farthest went {self.travel():.2g} of "
                f"{start:.2g}), so what is kept was hardly learned; raise gate_lr, see that no scheduler sets one rate "
                "for all groups, that the penalty is added and that the network trains in train mode",
                stacklevel=1,
            )
        if self.done == self.steps and self._untouched():
            warnings.warn(
                "finish: no weight of pruner.model has changed; the task loss must be of pruner.model(images), and the "
                "optimiser must have what pruner.param_groups gives",
                stacklevel=1,
            )
        self._watch.end()
        self.harden()
        small = extract(self.model, layout)
        self._finished = True
        return small

    def summary(self) -> Summary:
        """Return sizes of what ``finish`` would leave now, and of what the paper's rule leaves before ``multiple``
        rounds it; and how far the gates have come and how certain they are, 1 where each is open or closed in every
        sample (without ``shrink``)."""
        found = self.policy.summary(self.model)
        if self.shrink:  # what it holds closed has gone nowhere by itself
            return found
        logits = torch.cat([gate.alpha.detach()[free].flatten() for gate, free in self.policy.free(self.model)])
        certainty = float((2 * torch.sigmoid(logits) - 1).abs().mean()) if len(logits) else 1.0
        return replace(found, travel=self.travel(), near=self.near(), certainty=certainty)

    def _made(self) -> dict[str, Any]:
        """Return, by name, what a phase cannot go on without: plain values."""
        target = self.budget and self.budget.target
        aim = {"target": f"{target.amount} {target.prices.unit}"} if target else {}
        gates = self.gates.model_dump(mode="json", exclude={"lr", "travel", "weight_decay"})
        return {f"gates.{name}": value for name, value in gates.items()} | aim

    def state_dict(self, model: bool = True) -> dict[str, Any]:
        return {**super().state_dict(model), "made": self._made()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state`` was taken. With ``shrink`` the network takes the state's sizes: make the optimiser
        afterwards. Raises ``PrunerError`` if it is of another model or phase."""
        _require_state(state)
        if state["steps"] != self.steps or ("budget" in state) != (self.budget is not None):
            phase = f"{state['steps']} steps {'with' if 'budget' in state else 'without'} a target"
            raise PrunerError(f"load_state_dict: the state is of a phase of {phase}; make the pruner so")
        if ("shrink" in state) != bool(self.shrink):
            raise PrunerError(f"load_state_dict: the state is {'not ' * bool(self.shrink)}of a pruner with shrink")
        if others := [
            f"{name} {then!r}" for name, then in state.get("made", {}).items() if self._made().get(name) != then
        ]:
            raise PrunerError(f"load_state_dict: the state is of a phase with {', '.join(others)}; make the pruner so")
        super().load_state_dict(state)
        self._watch.end()
        self._watch = Watch(self.model, self.budget is not None)


def _require_options(**given: Any) -> None:
    """Raise ``ConfigError`` for options that are none, a dictionary for example."""
    for name, value in given.items():
        if value is not None and not isinstance(value, Section):
            raise ConfigError(f"{name}: expected a section of hiap.options, not {type(value).__name__}")


def _require_state(state: Any) -> None:
    """Raise ``PrunerError`` for what no pruner's ``state_dict`` gave, a network's for example."""
    steps, done = (state.get(name) if isinstance(state, Mapping) else None for name in ("steps", "done"))
    if not isinstance(steps, int) or not isinstance(done, int) or not 0 <= done <= steps:
        raise PrunerError(f"load_state_dict: steps {steps}, done {done}; expected what pruner.state_dict() gave")


@torch.no_grad()
def extract(
    gated: Any,
    layout: str = LAYOUTS[0],
    multiple: int | None = None,
    *,
    target_macs: float | None = None,
    target_params: float | None = None,
    target_latency: float | None = None,
    latency: LatencyTable | str | os.PathLike[str] | None = None,
    keep: Mapping[str, Any] | None = None,
) -> Any:
    """Return the plain, smaller ViT, of the class that was gated, that computes what ``gated.eval()`` computes. No
    fine-tuning, and the gated model is left alone, so one trained model serves any number of targets. Raises
    ``ValueError`` if the model carries no gates, or if no head is left anywhere (nothing would look at the image),
    ``ConfigError`` for a target out of reach, and ``UnsupportedModelError`` if what is left computes something else
    (``hiap.backbones.guard``).

    Args:
        gated: from ``hiap.gate`` or ``pruner.model``.
        layout: see ``hiap.backbones.pruned``; can be changed later with ``set_layout``.
        multiple: each head keeps a multiple of so many value dimensions and each FFN of so many neurons, the best, or
            all of them: matrix kernels lose time to odd sizes. Unset, with a target it is 16, fewer in small networks
            (``hiap.budget.selection.fitting_multiple``), and without one it is 1. Set without a target, the threshold's
            numbers go to the nearest multiple; units just below it stay or just above it go, with their own weights, so
            that the function is no longer that of ``gated.eval()``.
        target_macs, target_params, target_latency: a number (of microseconds of a batch for the last) or a share of
            dense below 1: instead of the threshold of 1/2 the one that lands at most ``multiple`` units below the
            target (the first of a branch pays for the branch).
        latency: the table, or the file that has it, that predicts time.
        keep: protects units: ``{"blocks.0.attn": [0, 2], "blocks.1.mlp": True, "blocks.5": True}`` keeps two heads, an
            FFN and a whole block.
    """
    if not is_gated(gated):
        raise ValueError("extract: the model carries no gates; call hiap.gate first")
    require_vit(gated)
    require_numbers(gated)
    plain = gathered(gated)
    require_used(latency, target_latency is not None)
    target = target_of(plain, target_macs, target_params, target_latency, latency, multiple)
    if target and all(
        gate.logit.numel() < 2 or bool((gate.logit == gate.logit.flatten()[0]).all()) for _, gate in named_gates(plain)
    ):
        warnings.warn("extract: the gates have learned nothing, so their order decides what stays", stacklevel=2)
    small = extraction.extract(gated, kept_units(plain, target, keep, multiple or 1), layout)
    return trimmed(small) if hasattr(gated, "given") else small
