"""HiAP, a multi-granular stochastic auto-pruning framework for Vision Transformers (arXiv 2603.12222): a reproduction.

::

    pruner = hiap.Pruner(model, steps=1000, target_macs=0.5)  # the single phase, for any training loop: hiap.pruner
    gated = hiap.gate(model)                      # a timm VisionTransformer with gates folded into its weights
    cost = hiap.expected_cost(gated)              # Eq. 5 in FLOPs, and the true ledger in MACs
    small = hiap.extract(gated)                   # physically smaller, same function as gated.eval()
    hiap.save(small, "folder"); hiap.load("folder")
    hiap.macs(small, (3, 224, 224)), hiap.params(small)

Names are loaded on first use, so that tools which only read configurations and records start without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hiap.cost import ExpectedCost, expected_cost, macs, params
    from hiap.extraction import extract
    from hiap.formats.store import load, save
    from hiap.gated_vit import UnsupportedModelError, gate, named_gates
    from hiap.objective import distillation_loss
    from hiap.options import ConfigError, FeasibilityConfig, GateConfig, PenaltyConfig
    from hiap.pruned_vit import set_layout
    from hiap.pruner import Pruner, PrunerError

_HOME = {
    "Pruner": "pruner",
    "PrunerError": "pruner",
    "ConfigError": "options",
    "FeasibilityConfig": "options",
    "GateConfig": "options",
    "PenaltyConfig": "options",
    "distillation_loss": "objective",
    "gate": "gated_vit",
    "named_gates": "gated_vit",
    "UnsupportedModelError": "gated_vit",
    "expected_cost": "cost",
    "ExpectedCost": "cost",
    "macs": "cost",
    "params": "cost",
    "extract": "extraction",
    "set_layout": "extraction",
    "save": "formats.store",
    "load": "formats.store",
}

__all__ = [
    "ConfigError",
    "ExpectedCost",
    "FeasibilityConfig",
    "GateConfig",
    "PenaltyConfig",
    "Pruner",
    "PrunerError",
    "UnsupportedModelError",
    "distillation_loss",
    "expected_cost",
    "extract",
    "gate",
    "load",
    "macs",
    "named_gates",
    "params",
    "save",
    "set_layout",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hiap' has no attribute {name!r}")
    return getattr(import_module(f"hiap.{_HOME[name]}"), name)
