"""Checkpoints: written atomically, verified when read, the last two kept.

A file's name carries its position and the digest of its content, ``<stage>-<step>-<digest>.pt``, so a truncated or
corrupt file is recognised before it is unpacked, and the one before it is used instead.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path
from typing import Any

import torch

from hiap.files import atomic_write
from hiap.train.distributed import ALONE, World

KEEP = 2


def save(folder: Path, stage: int, step: int, state: dict[str, Any]) -> Path:
    """Write ``state`` (tensors, numbers, strings and containers of them) and drop all but the newest ``KEEP``."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    path = folder / f"{stage:02d}-{step:09d}-{_digest(data)}.pt"
    atomic_write(path, data)
    for old in newest_first(folder)[KEEP:]:
        old.unlink(missing_ok=True)
    return path


def load(folder: Path, world: World = ALONE) -> dict[str, Any] | None:
    """Load the newest intact checkpoint; None if there is none. A damaged one is skipped with a warning. Processes that
    share a run all take the one that the first of them finds: on a shared file system each may see another newest
    file."""
    name = world.broadcast(lambda: _newest_intact(folder))
    return torch.load(folder / name, map_location="cpu", weights_only=True) if name else None


def _newest_intact(folder: Path) -> str:
    for path in newest_first(folder):
        if _digest(path.read_bytes()) == path.stem.rsplit("-", 1)[-1]:
            return path.name
        warnings.warn(f"checkpoint {path} is damaged; falling back to the one before it", stacklevel=2)
    return ""


def newest_first(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, the newest first."""
    return sorted(folder.glob("[0-9]*.pt"), reverse=True)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
