"""Reports of ``python -m hiap.bench`` as one table."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pandas as pd

from analysis.records import names
from analysis.records.results import REPOSITORY, Results

COLUMNS = (
    "report", "mode", "device", "setting", "precision", "run", "batch", "name", "layout", "macs", "executed_macs",
    "params", "ms", "ratio", "ratio_low", "ratio_high", "cut", "share", "memory_mib", "place", "kind",
)  # fmt: skip
DEPLOYED = (
    "report", "subject", "setting", "batch", "network", "merged", "runtime", "precision", "macs", "cut", "ms", "own",
    "best", "best_low", "best_high", "share", "worst", "top1", "fastest",
)  # fmt: skip


def load(results: Results) -> pd.DataFrame:
    """One row per network and batch size of every report below ``<root>/bench``, or of the published ones if there is
    none. ``cut``: 1 - MACs over the dense network's; ``ratio``: time over that of what the row was paired with (the
    dense network, in mode peer Torch-Pruning's, in mode input timm's loader), with quartiles; ``run``: eager or
    compiled."""
    rows = [row for name, report in _reports(results) if report["mode"] != "deploy" for row in _rows(name, report)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def deploy(results: Results) -> pd.DataFrame:
    """One row per network, runtime, precision and batch size of the reports of mode deploy, which ``load`` leaves out.
    ``own``, ``best``: speed over the dense network's in fp32, in this runtime and in the one that is fastest then;
    ``merged``: pairs of tokens merged in a block, on average; ``fastest``: no other runtime has this network and
    precision faster."""
    found = [row for name, one in _reports(results) if one["mode"] == "deploy" for row in _deployed(name, one)]
    rows = pd.DataFrame(found, columns=list(DEPLOYED))
    least = rows.groupby(["report", "batch", "network", "merged", "precision"])["ms"].transform("min")
    return rows.assign(fastest=rows["ms"] == least)


def realised(results: Results) -> pd.DataFrame:
    """Of every report on a CPU, the share of the multiply-adds that Fig. 5's heads save in a DeiT-Small and that shows
    as time: ``report``, ``batch``, ``precision``, ``share``."""
    speed, deployed = load(results), deploy(results)
    speed = speed[(speed["mode"] == "speed") & speed["name"].str.startswith("fig5") & (speed["device"] == "cpu")]
    deployed = deployed[deployed["network"].str.startswith("fig5")]
    shown = ["report", "batch", "precision", "share"]
    return pd.concat([frame.dropna(subset="share")[shown] for frame in (speed, deployed)], ignore_index=True)


def _reports(results: Results) -> Iterator[tuple[str, dict]]:
    paths = sorted((results.root / "bench").glob("*.json")) or sorted((REPOSITORY / "results/bench").glob("*.json"))
    return ((path.stem, json.loads(path.read_text(encoding="utf-8"))) for path in paths)


def _deployed(name: str, report: dict) -> list[dict]:
    machine, clock = report["environment"], report["settings"]["clock"]
    dense = next(row["macs"] for row in report["rows"] if row["network"] == "dense")
    setting = f"{machine['device_name']}, {machine['threads']} thread(s), {clock} clock"
    subject = f"{_model(report)} on {names.machines(pd.Series([machine['device_name']]))}"
    return [
        {
            **row,
            **{"report": name, "subject": subject, "setting": setting},
            **{"cut": 1 - row["macs"] / dense, "ms": 1e3 * row["seconds"][1]},
            **dict(zip(("network", "merged"), _merged(row["network"]), strict=True)),
            "own": 1 / row["ratio"][1],
            **{key: 1 / x for key, x in zip(("best_high", "best", "best_low"), row["against_best"], strict=True)},
            "worst": row.get("worst"),
            "top1": row["score"] and row["score"]["top1"],
        }
        for row in report["rows"]
    ]


MODELS = {"deit_small_patch16_224": "DeiT-Small"}


def _model(report: dict) -> str:
    """What was pruned, as a reader knows it."""
    name = report["settings"]["model"]
    return MODELS.get(name, "Pretrained ViT-S, 17 tokens")


def _kind(row: dict, settings: dict) -> str:
    """What kind of network a mark of the picture of speed is."""
    base, _, _ = row["name"].partition("/")
    shape = "random shapes" if base.startswith("random") else "Fig. 5's heads"
    dims = ", Q and K cut too" if settings.get("dims") == "qkv" else ""
    widths = f", multiples of {settings['multiple']}" if settings.get("multiple", 1) > 1 else ""
    return f"{shape}{dims}{widths}" + (", one call per width" if row["layout"] == "ragged" else "")


def _merged(network: str) -> tuple[str, float]:
    """'hiap+0.5' is network 'hiap' with half a pair of tokens merged in a block."""
    base, _, pairs = network.partition("+")
    return base, float(pairs or 0)


def _rows(name: str, report: dict) -> list[dict]:
    settings, machine = report["settings"], report["environment"]
    dense = {r["batch"]: r["macs"] for r in report["rows"] if r["name"].split("/")[0] == "dense"}
    run = "compiled" if settings["compile"] else "eager"
    clock = f"{machine['threads']} thread(s), {settings['clock']} clock"
    setting = ", ".join([machine["device_name"], settings["precision"], run, clock])
    processor = names.machines(pd.Series([machine["device_name"]]))
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
            "place": f"{processor}, {settings['precision']}, batch {row['batch']}",
            "kind": _kind(row, settings),
        }
        for row in report["rows"]
    ]
