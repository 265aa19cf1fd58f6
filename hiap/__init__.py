"""HiAP, a multi-granular stochastic auto-pruning framework for Vision Transformers (arXiv 2603.12222): a reproduction.

The method is the files of this folder. Below it they need only ``hiap.backbones``, which reads other families of ViTs
into the one form that they know and which a reader may leave out. In the order to read them:

    options      the open points of the paper that are options of the method, with our reasons (A1 ... A9)
    gates        Gumbel-Sigmoid gates and their annealing                                      (Eq. 6)
    reference    gated attention and FFN as printed: slow, readable                            (Eqs. 1-4)
    gated_vit    the same on a timm ViT, folded into the weights
    ledger       prices: the paper's and the true ones; arithmetic without torch               (Eq. 5)
    cost         expected cost of a gated network, counted cost of any
    objective    distillation, the macro and micro penalties, feasibility                      (Eqs. 7-8)
    selection    which units stay: landing on a target
    pruned_vit   what is left: attention with heads of different widths, blocks without a branch
    extraction   physical removal
    pruner       the single phase as one object: gate, penalty, step, finish                   (section 3.4)
    files        writing a file whole or not at all

``hiap.backbones`` says which ViTs these files take, and gives all of them one form. Around the method: ``hiap.beyond``
(ours: least squares after a cut, cuts while gates train, merging tokens), ``hiap.formats`` (save, load, export, show,
push), ``hiap.data``, and ``hiap.train`` and ``hiap.bench``, which run from the command line. The public names, loaded
on first use so that tools which only read records start without torch:

    pruner = hiap.Pruner(model, steps=1000, target_macs=0.5)  # for any training loop
    loss = hiap.distillation_loss(pruner.model(images), labels, teacher(images)) + pruner.penalty()
    small = pruner.finish()                                   # a smaller plain module
    small = hiap.prune(model, images, target_macs=0.5)        # in a minute, without training (ours)
    hiap.extract(pruner.model, target_macs=0.4)               # the same logits at another target
    hiap.save(small, "folder"); hiap.load("folder")           # safetensors and JSON; card={...}: a model card with it
    hiap.push("folder", "owner/name"); hiap.load("owner/name")
    print(hiap.show("folder", dense="deit_small_patch16_224"))  # what is left per block; a picture in notebooks
    hiap.macs(small, (3, 224, 224)), hiap.params(small)
    gated = hiap.gate(model); hiap.expected_cost(gated)       # the parts by hand
    hiap.to_transformers(hiap.from_transformers(m), like=m)   # a classifier of transformers as timm's, and back
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own takes as long to import as all of this
if TYPE_CHECKING:
    from typing import Any

    from hiap.backbones.huggingface import from_transformers, to_transformers
    from hiap.beyond.correction import correct
    from hiap.beyond.pruning import prune
    from hiap.beyond.shrinking import Shrink
    from hiap.cost import ExpectedCost, expected_cost, macs, params
    from hiap.extraction import extract
    from hiap.formats.hub import push
    from hiap.formats.show import show
    from hiap.formats.store import load, save
    from hiap.gated_vit import UnsupportedModelError, gate, named_gates
    from hiap.objective import distillation_loss, feature_loss
    from hiap.options import ConfigError, FeasibilityConfig, GateConfig, PenaltyConfig
    from hiap.pruned_vit import set_layout
    from hiap.pruner import Pruner, PrunerError

_HOME = {
    "Shrink": "beyond.shrinking",
    "correct": "beyond.correction",
    "prune": "beyond.pruning",
    "Pruner": "pruner",
    "PrunerError": "pruner",
    "ConfigError": "options",
    "FeasibilityConfig": "options",
    "GateConfig": "options",
    "PenaltyConfig": "options",
    "distillation_loss": "objective",
    "feature_loss": "objective",
    "gate": "gated_vit",
    "named_gates": "gated_vit",
    "UnsupportedModelError": "gated_vit",
    "expected_cost": "cost",
    "ExpectedCost": "cost",
    "macs": "cost",
    "params": "cost",
    "extract": "extraction",
    "from_transformers": "backbones.huggingface",
    "to_transformers": "backbones.huggingface",
    "set_layout": "extraction",
    "save": "formats.store",
    "load": "formats.store",
    "push": "formats.hub",
    "show": "formats.show",
}

__all__ = [
    "ConfigError",
    "ExpectedCost",
    "FeasibilityConfig",
    "GateConfig",
    "PenaltyConfig",
    "Pruner",
    "PrunerError",
    "Shrink",
    "UnsupportedModelError",
    "correct",
    "distillation_loss",
    "expected_cost",
    "extract",
    "feature_loss",
    "from_transformers",
    "gate",
    "load",
    "macs",
    "named_gates",
    "params",
    "prune",
    "push",
    "save",
    "set_layout",
    "show",
    "to_transformers",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hiap' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"hiap.{_HOME[name]}"), name)
