"""Networks on a model hub, as ``hiap.load("owner/name")`` fetches them (``hiap.push``: ``hiap.formats.push``).

Whatever else a repository holds is neither sent nor fetched. Both need a hub that can be reached; without one, they are
one line after seconds, and a folder can be copied by hand.
"""

from __future__ import annotations

import re
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hiap.formats import card
from hiap.formats.folder import ARCHITECTURE, WEIGHTS, StoreError
from hiap.options import one_line

NAMES = [ARCHITECTURE, WEIGHTS, card.NAME]
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


PATIENCE = 5.0  # seconds in which a hub that is there has answered


@contextmanager
def at_hand() -> Iterator[None]:
    """Where no hub answers, what is asked of it inside comes from the cache on this disk or fails at once:
    huggingface_hub would ask again for minutes."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _answers(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _answers(address: str) -> bool:
    """Whether anything is there, through a proxy where the environment names one. Names are looked up in a thread of
    its own, since nothing bounds how long that takes."""
    found: list[bool] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=PATIENCE).close()
        except urllib.error.HTTPError:  # an answer, if not a friendly one
            found.append(True)
        except OSError as error:  # certificates are the hub's own client's to judge
            found.append(isinstance(getattr(error, "reason", error), ssl.SSLError))
        else:
            found.append(True)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE + 1)
    return bool(found and found[0])


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
    """Whether it could be a repository's."""
    return bool(NAME.fullmatch(name)) and ".." not in name and len(name) <= 96


def why(error: Exception) -> str:
    """Return the kind, and the first sentence of what huggingface_hub says, which is long and of many lines."""
    first = re.split(r"(?<=[.!])\s|\n", str(error).strip())[0]
    return f"{type(error).__name__}: {one_line(first, 160)}" if first else type(error).__name__
