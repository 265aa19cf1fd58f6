"""Imports all that a run needs, also what PyTorch, scikit-learn and our own code import only when first asked: for a
process that others are forked from (``hiap.train.warm``), which then import nothing."""

from importlib.util import find_spec

import torch._dynamo

import hiap.train.run  # noqa: F401

# Of the study's packages: for the embedded digits, and for curves.
if find_spec("sklearn"):
    import sklearn.datasets  # noqa: F401
if find_spec("tensorboard"):
    import torch.utils.tensorboard  # noqa: F401
