"""Where downloads lie that several checkouts share: ``$HIAP_CACHE``, else ``$XDG_CACHE_HOME/hiap``, else
``~/.cache/hiap``."""

from __future__ import annotations

import os
from pathlib import Path


def folder() -> Path:
    chosen = os.environ.get("HIAP_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hiap"
