"""Networks on a model hub: ``hiap.push("folder", "owner/name")``, and ``hiap.load("owner/name")``.

Whatever else a repository holds is neither sent nor fetched. Both need a hub that can be reached; without one, they are
one line, and a folder can be copied by hand.
"""

from __future__ import annotations

import re
from pathlib import Path

from hiap.formats import card
from hiap.formats.store import ARCHITECTURE, WEIGHTS, StoreError, load
from hiap.options import one_line

NAMES = [ARCHITECTURE, WEIGHTS, card.NAME]
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def push(folder: str | Path, name: str, private: bool = False) -> str:
    """Upload a folder of ``hiap.save`` to the hub's repository ``owner/name``, which is made (``private`` or not) if it
    is not there. Returns its address. Raises ``StoreError`` (one line), before anything is sent if the folder holds no
    network that loads or the name is none."""
    if not is_name(name):
        raise StoreError(f"{name!r}: not a name of the hub; expected owner/name")
    if not Path(folder).is_dir():
        raise StoreError(f"{folder}: no such folder; expected one of hiap.save")
    load(Path(folder))
    import huggingface_hub as hub

    try:
        address = hub.create_repo(name, private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=name, folder_path=folder, allow_patterns=NAMES, commit_message="A network of hiap.save"
        )
    except Exception as error:  # huggingface_hub and the client under it raise dozens of kinds
        raise StoreError(f"{name}: the hub did not take it ({_why(error)}); {folder} is as it was") from None
    return str(address)


def fetch(name: str) -> Path:
    """The repository's folder on this disk, downloaded if need be, with nothing of it but what ``hiap.save`` writes.
    Raises ``StoreError`` (one line)."""
    import huggingface_hub as hub

    try:
        return Path(hub.snapshot_download(name, allow_patterns=NAMES))
    except Exception as error:
        raise StoreError(
            f"{name}: no such folder here, and the hub did not give it ({_why(error)}); offline, give a folder of "
            "hiap.save"
        ) from None


def is_name(name: str) -> bool:
    """Whether it could be a repository's."""
    return bool(NAME.fullmatch(name)) and ".." not in name and len(name) <= 96


def _why(error: Exception) -> str:
    """The kind, and the first sentence of what huggingface_hub says, which is long and of many lines."""
    first = re.split(r"(?<=[.!])\s|\n", str(error).strip())[0]
    return f"{type(error).__name__}: {one_line(first, 160)}" if first else type(error).__name__
