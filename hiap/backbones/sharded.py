"""Networks that FSDP2 (``torch.distributed.fsdp.fully_shard``) has taken apart: each process holds a part of every
parameter, and a module is of a class that torch made of its own. What the method asks of such a network (logits, and at
the end the weights) is gathered here, which all processes must do together."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

PER_INSTANCE = ("_parameters", "_buffers", "_modules", "forward", "_original_forward")


def own_type(module: Any) -> type:
    """Return the class that a module had before FSDP2."""
    kind = type(module)
    return kind.__bases__[1] if kind.__name__.startswith("FSDP") and len(kind.__bases__) == 2 else kind


def full_tensor_of(tensor: Any) -> Any:
    """Gather ``tensor`` if this process holds a part of it; gradients go back to the parts."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def write(tensor: Any, value: Tensor) -> None:
    """Write ``value``, which is whole and the same everywhere, into ``tensor`` or into this process's part of it."""
    if hasattr(tensor, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value.to(tensor.dtype), tensor.device_mesh, tensor.placements, src_data_rank=None)
    tensor.copy_(value)


@torch.no_grad()
def gathered(module: Any) -> Any:
    """Return the module itself; where this process holds parts of its weights, a plain copy with all of them; and where
    accelerate put mixed precision around its forward, a view of it as it was before."""
    if any(hasattr(parameter, "full_tensor") for parameter in module.parameters()):
        return _plain(module)
    if "_original_forward" not in vars(module):
        return module
    view = copy.copy(module)
    vars(view).pop("forward", None)
    vars(view).pop("_original_forward")
    return view


def _plain(module: Any) -> Any:
    kind = own_type(module)
    plain: Any = object.__new__(kind)
    for name, value in vars(module).items():
        if name in PER_INSTANCE or "composable" in name:
            continue
        vars(plain)[name] = type(value)() if name.endswith(("_hooks", "_hooks_with_kwargs")) else copy.deepcopy(value)
    parameters = module._parameters.items()
    vars(plain)["_parameters"] = {
        name: None if p is None else nn.Parameter(full_tensor_of(p.detach()).clone(), p.requires_grad)
        for name, p in parameters
    }
    vars(plain)["_buffers"] = {name: None if b is None else b.clone() for name, b in module._buffers.items()}
    vars(plain)["_modules"] = {name: None if m is None else _plain(m) for name, m in module._modules.items()}
    return plain
