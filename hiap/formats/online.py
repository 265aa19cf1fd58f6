"""Whether a model hub can be reached. Imports neither torch nor timm: a launcher asks too."""

from __future__ import annotations

import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 5.0  # seconds in which a hub that is there has answered


@contextmanager
def at_hand() -> Iterator[None]:
    """Let what is asked of a hub that does not answer come from the cache on this disk, or fail at once:
    huggingface_hub would ask again for minutes."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _answers(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _answers(address: str) -> bool:
    """Tell whether anything is there, through a proxy where the environment names one. Names are looked up in a thread
    of its own, since nothing bounds how long that takes."""
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
