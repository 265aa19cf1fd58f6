"""Where downloads lie that several checkouts share: ``$HIAP_CACHE``, else ``$XDG_CACHE_HOME/hiap``, else
``~/.cache/hiap``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from hiap.options import ConfigError


def folder() -> Path:
    """Return the folder of downloads."""
    chosen = os.environ.get("HIAP_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hiap"


def fetched(fetch: Callable[[], Path]) -> int:
    """Run a download for a command: tell where the files lie, or in one line why there are none. Returns the exit
    status."""
    try:
        print(fetch())
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
