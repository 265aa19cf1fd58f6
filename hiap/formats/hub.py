"""Networks on a model hub, as ``hiap.load("owner/name")`` fetches them (``hiap.push``: ``hiap.formats.push``).

Whatever else a repository holds is neither sent nor fetched. Both need a hub that can be reached; without one, they are
one line after seconds, and a folder can be copied by hand.
"""

from __future__ import annotations

import re
from pathlib import Path

from hiap.formats import card
from hiap.formats.folder import ARCHITECTURE, WEIGHTS, StoreError
from hiap.formats.online import at_hand
from hiap.options import one_line

NAMES = [ARCHITECTURE, WEIGHTS, card.NAME]
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def fetch(name: str) -> Path:
    """Return the repository's folder on this disk, downloaded if need be, with nothing but what ``save`` writes.
    Raises ``StoreError`` (one line)."""
    import huggingface_hub as hub

    try:
        with at_hand():
            return Path(hub.snapshot_download(name, allow_patterns=NAMES))
    except Exception as error:
        raise StoreError(
            f"{name}: no such folder here, and the hub did not give it ({why(error)}); offline, give a folder of "
            "hiap.save"
        ) from None


def is_name(name: str) -> bool:
    """Tell whether it could be a repository's name."""
    return bool(NAME.fullmatch(name)) and ".." not in name and len(name) <= 96


def why(error: Exception) -> str:
    """Return the kind, and the first sentence of what huggingface_hub says, which is long and of many lines."""
    first = re.split(r"(?<=[.!])\s|\n", str(error).strip())[0]
    return f"{type(error).__name__}: {one_line(first, 160)}" if first else type(error).__name__
