"""The device that a run trains on. One that was asked for and cannot be used is an error, never a silent CPU run."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from hiap.options import one_line
from hiap.train.config import ConfigError

if TYPE_CHECKING:
    import torch


def visible_gpus() -> list[str]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES names, else all that this machine has; whether PyTorch can use them is
    another matter."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [gpu for gpu in chosen.split(",") if gpu not in ("", "-1", "NoDevFiles")]
    return [str(i) for i, _ in enumerate(sorted(Path("/dev").glob("nvidia[0-9]*")))]


def pick_device(name: str) -> torch.device:
    """Return the device; 'auto' is CUDA where this process has been given a GPU. Raises ``ConfigError`` if that, or
    'cuda', is of no use."""
    import torch

    if name == "cpu" or (name == "auto" and not visible_gpus() and not torch.cuda.is_available()):
        return torch.device("cpu")
    if why := unusable():
        raise ConfigError(f"run.device '{name}': {why}; to train without it, set run.device=cpu")
    return torch.device("cuda")


def unusable() -> str:
    """Return why this PyTorch cannot use the GPU; '' if it can."""
    import torch

    built = f"PyTorch {torch.__version__}"
    if not visible_gpus() and not torch.cuda.is_available():
        return "no CUDA device here"
    if torch.version.cuda is None and torch.version.hip is None:
        return f"{built} is built for CPUs"
    if not torch.cuda.is_available():
        why = _complaint()
        return f"{built} for CUDA {torch.version.cuda} cannot use it ({why}); `make setup CUDA=12` serves old drivers"
    capability, known = torch.cuda.get_device_capability(), torch.cuda.get_arch_list()
    if torch.version.hip is None and not runs_on(capability, known):
        name = f"{torch.cuda.get_device_name()} (sm_{capability[0]}{capability[1]})"
        return f"{built} for CUDA {torch.version.cuda} has no code for {name}; `make setup CUDA=12` serves old GPUs"
    return ""


def runs_on(capability: tuple[int, int], known: list[str]) -> bool:
    """Tell whether code for one of the architectures ``known`` ('sm_80', 'sm_90a', 'compute_120') runs on such a GPU:
    binary code within its generation, intermediate code on all later ones. True where nothing is known."""
    for arch in known:
        kind, _, digits = arch.partition("_")
        made_for = divmod(int(re.sub(r"\D", "", digits) or 0), 10)
        if made_for <= capability and (kind == "compute" or made_for[0] == capability[0]):
            return True
    return not known


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Let networks run forward in ``precision``; 'fp32' changes nothing."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    # On a CPU, PyTorch's fused attention goes backward in bf16 2 to 4 times as slowly as the plain formula does: at 17
    # tokens it took a fifth of a training step.
    plain = device.type == "cpu" and precision != "fp32"
    with (
        torch.autocast(device.type, dtype, enabled=precision != "fp32"),
        sdpa_kernel(SDPBackend.MATH) if plain else nullcontext(),
    ):
        yield


def has_bf16() -> bool:
    """Tell whether the GPU computes in bf16, and does not emulate it."""
    import torch

    return torch.version.hip is not None or torch.cuda.get_device_capability() >= (8, 0)


def cpu_has_bf16() -> bool:
    """Tell whether this processor multiplies in bf16. One that only emulates it takes tens of times as long as in
    fp32."""
    import torch

    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def check_precision(precision: str, device: torch.device) -> None:
    """Raise ``ConfigError`` for bf16 on a GPU that has none: PyTorch would emulate it, at a fraction of the speed. On
    such a CPU it is told, since a run may have been begun elsewhere, or be short."""
    import torch

    if precision != "bf16":
        return
    if device.type == "cuda" and not has_bf16():
        raise ConfigError(f"optim.precision 'bf16': {torch.cuda.get_device_name()} has none; set optim.precision=fp16")
    if device.type == "cpu" and platform.machine() in ("x86_64", "AMD64") and not cpu_has_bf16():
        print(
            f"optim.precision 'bf16': this processor ({torch.backends.cpu.get_cpu_capability()}) has no instructions "
            "for it and may take 40 times as long; optim.precision=fp32 is another run, with another id",
            file=sys.stderr,
        )


def _complaint() -> str:
    """Return what CUDA says when it is asked to start, in one line."""
    import torch

    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return one_line(error, 300)
    return "no device"
