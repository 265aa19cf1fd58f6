"""Reports of ``python -m hiap.bench`` as one table."""

from __future__ import annotations

import json

import pandas as pd

from analysis.records.results import REPOSITORY, Results

COLUMNS = (
    "report", "mode", "device", "setting", "precision", "run", "batch", "name", "layout", "macs", "executed_macs",
    "params", "ms", "ratio", "ratio_low", "ratio_high", "cut", "share", "memory_mib",
)  # fmt: skip


def load(results: Results) -> pd.DataFrame:
    """One row per network and batch size of every report below ``<root>/bench``, or of the published ones if there is
    none. ``cut``: 1 - MACs over the dense network's; ``ratio``: time over that of what the row was paired with (the
    dense network, in mode peer Torch-Pruning's, in mode input timm's loader), with quartiles; ``run``: eager or
    compiled."""
    paths = sorted((results.root / "bench").glob("*.json")) or sorted((REPOSITORY / "results/bench").glob("*.json"))
    rows = [row for path in paths for row in _rows(path.stem, json.loads(path.read_text()))]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _rows(name: str, report: dict) -> list[dict]:
    settings, machine = report["settings"], report["environment"]
    dense = {r["batch"]: r["macs"] for r in report["rows"] if r["name"].split("/")[0] == "dense"}
    run = "compiled" if settings["compile"] else "eager"
    clock = f"{machine['threads']} thread(s), {settings['clock']} clock"
    setting = ", ".join([machine["device_name"], settings["precision"], run, clock])
    common = {"report": name, "mode": report["mode"], "device": machine["device"], "setting": setting, "run": run}
    return [
        {
            **row,
            **common,
            "precision": settings["precision"],
            "name": row["name"].removesuffix(f"/{row['layout']}"),
            "ms": 1e3 * row["seconds"][1],
            **dict(zip(("ratio_low", "ratio", "ratio_high"), row["ratio"], strict=True)),
            "cut": 1 - row["macs"] / dense[row["batch"]] if dense else float("nan"),
            "memory_mib": row["memory"] / 2**20,
        }
        for row in report["rows"]
    ]
