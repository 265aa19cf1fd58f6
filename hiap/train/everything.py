"""Imports all that a run needs, also what PyTorch, scikit-learn and our own code import only when first asked, and
reads the code that records hold digests of: for a process that others are forked from (``hiap.train.warm``), which then
import nothing and read no code."""

from importlib.util import find_spec

import torch._dynamo

import hiap.train.run  # noqa: F401
from hiap.train import identity, methods

# Of the study's packages: for the embedded digits, and for curves.
if find_spec("sklearn"):
    import sklearn.datasets  # noqa: F401
if find_spec("tensorboard"):
    import torch.utils.tensorboard  # noqa: F401

# Kept by what each file says and when it was changed, a second of work for every record.
identity.imported()
for method in methods.known():
    identity.code_digest(method)
