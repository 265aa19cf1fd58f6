"""How a network becomes smaller: a method is a list of stages, each one training phase of the one loop.

``hiap/`` holds plain training and HiAP; every other method is a file with a function
``stages(config) -> list[Stage]``, of ``baselines/`` or one's own (``hiap.train.methods``).
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

import torch
from torch import Tensor

from hiap import cost, gated_vit
from hiap.backbones import groups
from hiap.backbones.seeds import derive
from hiap.beyond.correction import correct
from hiap.beyond.shrinking import Shrink
from hiap.budget.pruner import Pruner, extract
from hiap.budget.selection import Ranking, Target
from hiap.data import loader as data
from hiap.train import methods
from hiap.train.config import Config
from hiap.train.reach import gate_scale, summed_rate


@dataclass
class Context:
    """Context of a stage: the run's configuration, the target that it must reach (None if the method has none), and the
    steps of an epoch. ``scored``: images that a stage ran forward and backward to rank units or, which costs no more,
    forward to correct what is left; it adds them here, so that they count as training cost."""

    config: Config
    target: Target | None = None
    steps_per_epoch: int = 1
    scored: int = 0


def remove(gated: Any) -> Any:
    """Extract within a run: what is trained on executes exactly the MACs that its cost counts."""
    return extract(gated, layout="ragged")


def looked_at(context: Context, count: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ``count`` training images without augmentation and their labels, in batches; each counts as training cost
    as it is taken."""
    config, size = context.config, min(count, context.config.optim.batch_size)
    batches = data.train_batches(
        data.unaugmented(config.data),
        config.model.img_size,
        batch_size=size,
        seed=derive(config.seed, "correct"),
        epoch=0,
        workers=config.run.workers,
    )
    left = count
    for images, labels in batches:
        context.scored += min(left, len(images))
        yield images[:left].to(device), labels[:left].to(device)
        if (left := left - len(images)) <= 0:
            return
    warnings.warn(
        f"{count - left:,} images were looked at, not {count:,}: there are no more whole batches", stacklevel=2
    )


def corrected(small: Any, before: Any, context: Context) -> Any:
    """Correct ``small`` towards the network ``before`` the cut on ``budget.correct`` training images, if any; return
    it."""
    count = context.config.budget.correct
    if not count:
        return small
    images = looked_at(context, count, next(small.parameters()).device)
    torch.manual_seed(derive(context.config.seed, "correct"))  # gates sample
    return correct(small, before, (x for x, _ in images))


class Stage:
    """Stage of a method, one training phase; as it stands, plain training (a dense network, or fine-tuning)."""

    def __init__(self, name: str, epochs: int, before: int = 0, after: int = 0):
        """Make a stage. ``before``, ``after``: epochs of other stages that share one schedule of rates with this
        one."""
        self.name, self.epochs, self.before, self.after = name, epochs, before, after

    def prepare(self, model: Any, context: Context) -> Any:
        """Return what is trained, made from what the previous stage left. Deterministic: a resumed run calls it
        again."""
        return model

    def recipe(self, config: Config) -> Config:
        """Return the configuration that this stage trains with, where a method has a schedule of its own."""
        return config

    def param_groups(self, model: Any, config: Config, per_epoch: int, total: int) -> list[dict[str, Any]]:
        """Return the optimiser's groups; the schedule of rates has ``total`` steps, ``per_epoch`` an epoch."""
        optim, scale = config.optim, gate_scale(config, per_epoch, total)
        return groups.param_groups(model, optim.lr, optim.weight_decay, config.gates.weight_decay, scale)

    def anneal(self, model: Any, progress: float) -> float | None:
        """Set the temperature before each step, with ``progress`` in [0, 1); return it, None if there is none."""
        return None

    def terms(self, model: Any) -> dict[str, Tensor]:
        """Return named terms that are added to the task loss."""
        return {}

    def log(self, model: Any) -> dict[str, float]:
        """Return named values for the epoch's log."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed stage needs besides the network and the optimiser: tensors and numbers."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what ``state_dict`` gave."""

    def cut(self, optimizer: torch.optim.Optimizer) -> list[Any]:
        """Remove, at the end of an epoch, what has become useless from the network in training, with its share of the
        optimiser's state; return what was removed (``hiap.beyond.shrinking.Change``)."""
        return []

    def harden(self, model: Any) -> None:
        """Decide, after the last step and before anything is measured, which gates are open, where it is not the
        threshold of 1/2 that does."""

    def finish(self, model: Any) -> Any:
        """Return what this stage leaves: a plain network."""
        return model


class TargetedStage(Stage):
    """Stage of a baseline that searches: gates and weights are trained together, then hardened to the target by
    ``rank``. A subclass makes the gates (``gate``) and says which go first (``rank``). The wanted cost falls from dense
    to the target over a share ``budget.ramp`` of the stage, linearly, as in CoFi."""

    def gate(self, model: Any, context: Context) -> Any:
        """Return a copy of ``model`` with the method's gates."""
        raise NotImplementedError

    def rank(self, model: Any) -> Ranking:
        """Return the ranking by which units stay."""
        raise NotImplementedError

    def prepare(self, model: Any, context: Context) -> Any:
        assert context.target is not None
        self.context, self.target, self.ramp = context, context.target, context.config.budget.ramp
        gated = self.gate(model, context)
        self.target.require_reachable(self.rank(gated))
        return gated

    def excess(self, gated: Any, progress: float) -> Tensor:
        """Return expected minus wanted cost, as a share of dense."""
        return self.target.excess(gated, progress / self.ramp)

    @torch.no_grad()
    def log(self, model: Any) -> dict[str, float]:
        return {"expected_macs": float(cost.expected_cost(model).macs)}

    def harden(self, model: Any) -> None:
        gated_vit.harden_to(model, self.target.keep_best(self.rank(model)))

    def finish(self, model: Any) -> Any:
        return corrected(remove(model), model, self.context)


class SinglePhase(Stage):
    """Stage of HiAP: what ``hiap.Pruner`` does in any loop, in this one."""

    def __init__(self, config: Config):
        self.config, self.whole = config, round((config.budget.settle or 1.0) * config.optim.epochs)
        epochs = config.optim.stop_after or self.whole
        super().__init__("single-phase", epochs, after=config.optim.epochs - epochs)

    def prepare(self, model: Any, context: Context) -> Any:
        self.context = context
        config, wanted = self.config, context.target.amount if context.target else None
        self.steps = self.epochs * context.steps_per_epoch
        self.pruner = Pruner(
            model,
            steps=self.whole * context.steps_per_epoch,
            target_macs=None if config.budget.target_macs is None else wanted,
            target_params=None if config.budget.target_params is None else wanted,
            target_latency=config.budget.target_latency,
            gates=config.gates,
            penalty=config.penalty,
            feasibility=config.feasibility,
            ramp=config.budget.ramp,
            multiple=config.budget.multiple,
            seed=config.seed,
            shrink=Shrink(config.shrink.below, config.shrink.after) if config.shrink.after else None,
        )
        return self.pruner.model

    def param_groups(self, model: Any, config: Config, per_epoch: int, total: int) -> list[dict[str, Any]]:
        summed = summed_rate(config, total, per_epoch, total)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ``check_reach`` has said it by the names that a run knows
            return self.pruner.param_groups(config.optim.lr, config.optim.weight_decay, summed=summed)

    def anneal(self, model: Any, progress: float) -> float:
        # The loop calls this before a step and a plain loop steps after it. Between the two nothing changes but that
        # logs and checkpoints here still hold what the last step was taken with.
        if round(progress * self.steps) > self.pruner.done:
            self.pruner.step()
        return self.pruner.temperature

    def terms(self, model: Any) -> dict[str, Tensor]:
        return self.pruner.terms()

    @torch.no_grad()
    def log(self, model: Any) -> dict[str, float]:
        found = {"expected_macs": float(cost.expected_cost(model).macs), "travel": self.pruner.travel()}
        return found | ({"strength": float(self.pruner.budget.strength)} if self.pruner.budget else {})

    def cut(self, optimizer: torch.optim.Optimizer) -> list[Any]:
        return self.pruner.cut(optimizer) if self.pruner.shrink else []

    def harden(self, model: Any) -> None:
        self.pruner.step()
        self.pruner.harden()

    def finish(self, model: Any) -> Any:
        # A phase that is looked at before its end has no end to finish.
        small = self.pruner.finish(layout="ragged") if self.epochs == self.whole else remove(model)
        return corrected(small, model, self.context)

    def state_dict(self) -> dict[str, Any]:
        return self.pruner.state_dict(model=False)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.pruner.load_state_dict(state)


def stages(config: Config) -> list[Stage]:
    """Return the phases of ``config.method``."""
    if config.method == "dense":
        return [Stage("train", config.optim.trained, after=config.optim.epochs - config.optim.trained)]
    if config.method == "hiap":
        phase = SinglePhase(config)
        return [phase, Stage("settled", phase.after, before=phase.epochs)] if config.budget.settle else [phase]
    return _module(config.method).stages(config)


def options(config: Config) -> dict[str, Any]:
    """Return what the method's file declares, with what the run was given."""
    return methods.options(config.method, config.options)


def _module(method: str) -> Any:
    """Return the method's file, executed: a module of ``baselines``, or the file that the user has named."""
    found = methods.find(method)
    assert found is not None
    if not methods.is_path(method):
        return import_module(f"baselines.{found.file.stem}")
    spec = spec_from_file_location(f"hiap_method_{found.file.stem}", found.file.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
