"""HiAP, a multi-granular stochastic auto-pruning framework for Vision Transformers (arXiv 2603.12222): a reproduction.

The paper is the files of this folder, in the order to read them:

    options       the open points of the paper that are options of the method, with our reasons (A1-A10 but A8)
    gates         Gumbel-Sigmoid gates and their annealing                                      (Eq. 6)
    reference     gated attention and FFN as printed: slow, readable                            (Eqs. 1-4)
    gated_layers  the same folded into the weights; masks
    ledger        prices: the paper's and the true ones; arithmetic without torch               (Eq. 5)
    cost          expected cost of a gated network
    objective     distillation, the macro and micro penalties, feasibility                      (Eqs. 7-8)
    extraction    physical removal
    gated_vit     a timm ViT with gates: gate, anneal, harden
    pruner        the single phase as one object: gate, penalty, step, finish                   (section 3.4)

They need ``hiap.backbones`` alone, which gives all ViTs of timm one form, and counts and guards it. What is ours is in
the other folders, ``hiap.budget`` first. ``__init__.pyi`` lists the public names, loaded on first use, so that tools
that only read records start without torch; ``hiap.Pruner`` and ``hiap.extract`` are those of ``hiap.budget.pruner``.
"""

from __future__ import annotations

_home: dict[str, str] = {}  # a public name and its module, read on first use: `import hiap` is to cost nothing


def __getattr__(name: str) -> object:
    from importlib import import_module

    if not _home:
        _home.update(import_module("hiap.files.stub").names(__file__))
    if name == "__all__":
        return sorted(_home)
    if name not in _home:
        raise AttributeError(f"module 'hiap' has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(_home[name]), name)
    return found
