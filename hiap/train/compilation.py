"""``run.compile``: the network's forward and backward as generated code."""

from __future__ import annotations

from typing import Any

import torch

from hiap.options import one_line
from hiap.train.config import ConfigError


def compiled(forward: Any) -> Any:
    """Return ``forward`` as ``torch.compile`` makes it; it is compiled at its first call. Random numbers are drawn as
    without, so that gates sample alike: results differ by rounding alone. What was compiled before is let go: a process
    that makes many runs would come to the number of networks after which ``torch.compile`` gives up without a word."""
    torch._dynamo.reset()
    return torch.compile(forward, options={"fallback_random": True})


def check(device: torch.device) -> None:
    """Raise ``ConfigError`` if nothing can be compiled for ``device`` here."""
    try:
        if device.type == "cpu":
            from torch._inductor.cpp_builder import get_cpp_compiler

            get_cpp_compiler()
            return
        from torch.utils._triton import has_triton

        why = "" if has_triton() else "triton is missing, or too old for this GPU"
    except Exception as error:  # of whatever kind torch has for it in this version
        why = one_line(error)
    if why:
        raise ConfigError(f"run.compile: no compiler that torch.compile could use ({why}); set run.compile=false")
