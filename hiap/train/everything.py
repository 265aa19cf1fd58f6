"""Imports all that a run needs, also what PyTorch, scikit-learn and our own code import only when first asked: for a
process that others are forked from (``hiap.warm``), which then import nothing."""

import sklearn.datasets  # noqa: F401
import torch._dynamo
import torch.utils.tensorboard  # noqa: F401

import hiap.train.run  # noqa: F401
