"""The single phase (section 3.4; its loss is Eq. 7) as an object that any training loop drives::

    pruner = Pruner(model, steps=len(loader) * epochs)  # of hiap.pruner; hiap.Pruner has a policy of ours
    optimizer = torch.optim.AdamW(pruner.param_groups(lr=5e-5, weight_decay=0.05))
    for images, labels in loader:
        loss = distillation_loss(pruner.model(images), labels, teacher(images)) + pruner.penalty()
        loss.backward(); optimizer.step(); optimizer.zero_grad(); pruner.step()
    small = pruner.finish()

Gate noise comes from torch's global generator, as dropout's does: a loop that must resume bit for bit calls
``pruner.seed_noise(part)`` before each forward pass (A10), or saves the generator's state with the rest.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from operator import index
from typing import Any

import torch
from torch import Tensor

from hiap.backbones.groups import check_rates, param_groups
from hiap.backbones.pruned import LAYOUTS
from hiap.backbones.seeds import noise_seed
from hiap.extraction import extract
from hiap.gated_vit import gate
from hiap.gates import anneal
from hiap.ledger import Prices
from hiap.objective import feasibility, penalties
from hiap.options import ConfigError, FeasibilityConfig, GateConfig, PenaltyConfig, distance_to_threshold, one_line


class PrunerError(RuntimeError):
    """Use of a pruner out of order; the message is one line and says what was expected."""


class Policy:
    """Three decisions of the phase, here as the paper takes them (strengths and thresholds as set); a subclass may take
    them in another way."""

    prices: Prices | None = None  # of units, in place of the ledger that ``PenaltyConfig`` names

    def __init__(self, gated: Any):
        """Look at a network that has just got its gates."""

    def scale(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the penalties of Eq. 7, 'macro' and 'micro', as they are to enter the loss."""
        return terms

    def update(self, gated: Any, progress: float) -> None:
        """Prepare the step at ``progress`` in [0, 1); 1: no step follows."""

    def harden(self, gated: Any) -> None:
        """Choose the masks: decide by ``hiap.gated_vit.harden_to`` what stays, where thresholds do not."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed policy needs: tensors and numbers, under other names than done, steps, model."""
        return {}

    def load_state_dict(self, gated: Any, state: Mapping[str, Any]) -> None:
        """Take over what ``state_dict`` gave; ``gated`` does not have its own state yet."""


class Pruner:
    """HiAP's single phase on a copy of ``model``: gates, penalties and annealing for ``steps`` optimiser steps, then
    the smaller network.

    ``pruner.model`` is the gated network (images (B, C, height, width) to logits (B, classes)); it may be moved, cast,
    compiled and wrapped in ``DistributedDataParallel``. Call ``step`` once per optimiser step, whatever number of
    batches that accumulates.

    Args:
        model: a timm ViT (``hiap/backbones/supported.csv`` has a list); anything else is an ``UnsupportedModelError``
            that names the module.
        steps: optimiser steps of the phase, 1 or more (else ``ConfigError``).
        gates, penalty, feasibility: the options of ``hiap.options``.
        seed: of the noise of ``gates.harden='sample'``, and of ``seed_noise``.
        policy: makes a ``Policy`` of the gated network.
    """

    def __init__(
        self,
        model: Any,
        steps: int,
        gates: GateConfig | None = None,
        penalty: PenaltyConfig | None = None,
        feasibility: FeasibilityConfig | None = None,
        seed: int = 0,
        policy: Callable[[Any], Policy] = Policy,
    ):
        if not hasattr(steps, "__index__") or steps < 1:
            raise ConfigError(f"steps {steps!r}: expected the number of optimiser steps, 1 or more")
        self.gates, self.strengths = gates or GateConfig(), penalty or PenaltyConfig()
        self.feasibility = feasibility or FeasibilityConfig()
        self.steps, self.done, self.seed = index(steps), 0, index(seed)
        self.model = gate(model, self.gates, seed=self.seed)
        self.policy = policy(self.model)
        self.policy.update(self.model, self._anneal())

    def param_groups(
        self,
        lr: float,
        weight_decay: float | None = None,
        gate_lr: float | None = None,
        layer_decay: float | None = None,
        summed: float | None = None,
    ) -> list[dict[str, Any]]:
        """Return groups for a torch optimiser: matrices with ``weight_decay``, vectors without, and the gates' logits
        with the decay of ``gates.weight_decay`` and the rate ``gate_lr`` (else ``gates.lr``, else what makes the rates
        of all steps sum to ``gates.travel``, else ``lr``: A6). Each carries its own ``lr``, which schedulers of torch
        and of timm scale, and ``rate_scale``, its ratio to ``lr``. Warns if gates cannot get to their threshold at that
        rate. Raises ``ConfigError`` for a rate or decay out of range.

        Args:
            lr, weight_decay: highest rate of the weights, and their decay (None: the optimiser's own).
            gate_lr: highest rate of the logits.
            layer_decay: lowers the weights' rates from the head to the stem, as timm does; the gates' rate stays.
            summed: rates of the weights over all steps, where a scheduler changes them; else ``lr`` at each.
        """
        check_rates(lr=lr, gate_lr=gate_lr, weight_decay=weight_decay)
        summed = lr * self.steps if summed is None else summed
        scale = self.gates.rate_scale(lr, summed) if gate_lr is None else gate_lr / lr
        far, way = scale * summed, distance_to_threshold(self.gates, self.strengths, nearest=True)
        if way is not None and far < 2 * way:  # no gate is pulled the same way at every step
            warnings.warn(
                f"param_groups: a gate starts {way:.3g} from its threshold, and the rates of {self.steps:,} steps sum "
                f"to {far:.2g}, not twice that; set gate_lr to {2 * way * lr / summed:.2g} or more, or gates.travel",
                stacklevel=2,
            )
        return param_groups(self.model, lr, weight_decay, self.gates.weight_decay, scale, layer_decay)

    def seed_noise(self, part: int = 0) -> None:
        """Seed torch's generator for the next forward pass, by ``seed`` and step: gates, dropout, drop path. A10:
        ``part``, which process or share of an accumulated batch it is, counts unless ``gates.noise`` is 'shared'."""
        torch.manual_seed(noise_seed(self.seed, self.gates.noise, 0, self.done, part))

    def terms(self) -> dict[str, Tensor]:
        """Return the parts of ``penalty`` by name: 'macro' and 'micro' of Eq. 7, 'feasibility' of Eq. 8."""
        priced = self.policy.scale(penalties(self.model, self.strengths, self.policy.prices))
        return {**priced, "feasibility": feasibility(self.model, self.feasibility)}

    def penalty(self) -> Tensor:
        """Return a differentiable scalar to add to the task loss, which is a mean over the batch. Where gradients of n
        batches accumulate, divide it by n as the loss."""
        return torch.stack(list(self.terms().values())).sum()

    def step(self) -> None:
        """Set temperature and policy for the next step; to be called after each optimiser step. Raises ``PrunerError``
        if all steps are done."""
        if self.done == self.steps:
            raise PrunerError(f"step: all {self.steps} steps are done; make the pruner with as many as the loop has")
        self.done += 1
        self.policy.update(self.model, self._anneal())

    def _anneal(self) -> float:  # returns the progress
        progress = self.done / self.steps
        if self.done < self.steps:
            self.temperature = anneal(self.model, self.gates, progress)
        return progress

    def harden(self) -> None:
        """Decide what stays without removing it: in eval mode ``model`` then computes what ``finish`` leaves."""
        self.policy.harden(self.model)

    def finish(self, layout: str = LAYOUTS[0]) -> Any:
        """Return the smaller network, hardened and without fine-tuning: a plain ``VisionTransformer``, run in this
        layout (``hiap.backbones.pruned``). Raises ``ValueError`` if every head is closed."""
        self.harden()
        return extract(self.model, layout=layout)

    def state_dict(self, model: bool = True) -> dict[str, Any]:
        """Return all that a resumed pruner needs: tensors and numbers. Without ``model`` the network's own state is
        left out, for loops that save it anyway."""
        state = {"done": self.done, "steps": self.steps, **self.policy.state_dict()}
        return {**state, "model": self.model.state_dict()} if model else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state`` was taken. Raises ``PrunerError`` if it is of another model or phase."""
        if state["steps"] != self.steps:
            raise PrunerError(f"load_state_dict: the state is of a phase of {state['steps']} steps; make the pruner so")
        try:
            self.policy.load_state_dict(self.model, state)
            self.model.load_state_dict(state.get("model", self.model.state_dict()))
        except RuntimeError as error:
            raise PrunerError(f"load_state_dict: the state is of another model: {one_line(error)}") from None
        self.done = state["done"]
        self._anneal()
