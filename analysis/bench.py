"""Reports of ``python -m hiap.bench`` as one table."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from analysis.collect import REPOSITORY

COLUMNS = ["report", "mode", "device", "setting", "precision", "run", "batch", "name", "layout"]
COLUMNS += ["macs", "executed_macs", "params"]
COLUMNS += ["ms", "ratio", "ratio_low", "ratio_high", "cut", "share", "memory_mib"]


def load(root: str | Path) -> pd.DataFrame:
    """One row per network and batch size of every report below ``<root>/bench``, or of the published ones if there is
    none. ``cut``: 1 - MACs over the dense network's; ``ratio``: time over that of what the row was paired with (the
    dense network, in mode peer Torch-Pruning's, in mode input timm's loader), with quartiles; ``run``: eager or
    compiled."""
    folder = Path(root) / "bench"
    paths = sorted(folder.glob("*.json")) or sorted((REPOSITORY / "results" / "bench").glob("*.json"))
    rows = [row for path in paths for row in _rows(path.stem, json.loads(path.read_text()))]
    return pd.DataFrame(rows, columns=COLUMNS)


def _rows(name: str, report: dict) -> list[dict]:
    settings, machine = report["settings"], report["environment"]
    dense = {r["batch"]: r["macs"] for r in report["rows"] if r["name"].split("/")[0] == "dense"}
    run = "compiled" if settings["compile"] else "eager"
    clock = f"{machine['threads']} thread(s), {settings['clock']} clock"
    common = {
        "report": name,
        "mode": report["mode"],
        "device": machine["device"],
        "setting": ", ".join([machine["device_name"], settings["precision"], run, clock]),
        "precision": settings["precision"],
        "run": run,
    }
    return [
        {
            **common,
            **{key: r[key] for key in ("batch", "layout", "macs", "executed_macs", "params", "share")},
            "name": r["name"].removesuffix(f"/{r['layout']}"),
            "ms": 1e3 * r["seconds"][1],
            "ratio": r["ratio"][1],
            "ratio_low": r["ratio"][0],
            "ratio_high": r["ratio"][2],
            "cut": 1 - r["macs"] / dense[r["batch"]] if dense else float("nan"),
            "memory_mib": r["memory"] / 2**20,
        }
        for r in report["rows"]
    ]
