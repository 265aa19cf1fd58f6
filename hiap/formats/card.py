"""The model card of a saved network: ``README.md``, with the front matter that model hubs read.

``hiap.save(small, "small", card={...})`` writes it from whatever is given; a run of this project gives all of it::

    card = {"method": "hiap", "data": "imagenet", "top1": 78.1, "images": 50_000, "dense": model, "licence": "mit"}
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, PositiveInt, ValidationError, field_validator, model_validator
from torch import nn

from hiap import cost
from hiap.formats import shape
from hiap.formats.shape import Dense, quantity
from hiap.options import ConfigError, Section, first_error

NAME = "README.md"
LARGEST = 2**20  # bytes that are read of a card: it may come from a hub
Z = 1.959964  # of 95 %
DATASETS = {
    "cifar10": "uoft-cs/cifar10",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "imagenet": "ILSVRC/imagenet-1k",
}
# Licences that hubs know by these names; any other is 'other' with its name beside it.
LICENCES = {
    *("apache-2.0", "apple-amlr", "apple-ascl", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0"),
    *("cc-by-nc-sa-4.0", "cc-by-sa-4.0", "cc0-1.0", "gpl-3.0", "lgpl-3.0", "mit", "openrail", "unlicense"),
}


class Stage(Section):
    """One row of the training bill; ``train_macs``: multiply-adds of all its steps, the teacher's included."""

    name: str
    epochs: int = Field(ge=0)
    images: int = Field(ge=0)
    train_macs: float = Field(ge=0)
    seconds: float = Field(ge=0)


class Card(Section):
    """Card of a network: what is known of it besides itself; nothing is obligatory. ``top1`` in per cent on ``images``
    images of ``data``; ``dense``: the network before pruning, in memory, or its sizes; ``start``: in words, what
    training began with, ``start_sha256`` its file, ``base_model`` its name on the hub, ``licence`` what it is under."""

    title: str = ""
    method: str = ""
    data: str = ""
    top1: float | None = Field(None, ge=0, le=100)
    images: PositiveInt | None = None
    dense_top1: float | None = Field(None, ge=0, le=100)
    dense: Dense | None = None
    bill: tuple[Stage, ...] = ()
    start: str = ""
    start_sha256: str = Field("", pattern="^([0-9a-f]{64})?$")
    base_model: str = ""
    licence: str = ""
    commit: str = ""
    command: str = ""

    @field_validator("dense", mode="before")
    @classmethod
    def _sizes(cls, given: Any) -> Any:
        return Dense.of(given) if isinstance(given, nn.Module) else given

    @field_validator("top1", "dense_top1")
    @classmethod
    def _per_cent(cls, given: float | None) -> float | None:
        if given is not None and 0 < given < 1:
            raise ValueError(f"{given}: expected per cent, {100 * given:g}?")
        return given

    @model_validator(mode="after")
    def _accuracy_of_something(self) -> Card:
        if self.top1 is not None and not self.data:
            raise ValueError("card.top1: expected card.data with it, the images that it was measured on")
        return self


def checked(given: Any) -> Card:
    """Return a ``Card`` of whatever mapping is given. Raises ``ConfigError`` (one line) for one that is none."""
    try:
        return Card.model_validate(given)
    except ValidationError as error:
        line = first_error(error)
        raise ConfigError(line if line.startswith("card") else f"card.{line}") from None


def text(card: Card, model: Any) -> str:
    """Return the text of the whole file. Raises ``ConfigError`` if ``card.dense`` cannot be what ``model`` was pruned
    from."""
    if card.dense:
        shape.require_fit(card.dense, model, "card.dense")
    front = yaml.safe_dump(_front(card), sort_keys=False, allow_unicode=True, width=1000)
    parts = [f"---\n{front}---", f"# {_title(card)}", _opening(card), _sizes(card, model)]
    parts += [_left(card, model), _bill(card), _origin(card)]
    return "\n\n".join(part for part in parts if part) + "\n"


def interval(top1: float, images: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of an accuracy in per cent: what a finite number of test images leaves open."""
    p, z2 = top1 / 100, Z * Z / images
    half = Z * math.sqrt(p * (1 - p) / images + z2 / images / 4) / (1 + z2)
    middle = (p + z2 / 2) / (1 + z2)
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)


def front_matter(folder: Path) -> dict[str, Any]:
    """Read the front matter of the card in ``folder``, which anybody may have written; {} if there is none to be
    read."""
    try:
        with (folder / NAME).open("rb") as file:
            found = re.match(r"---\r?\n(.*?)\r?\n---", file.read(LARGEST).decode(), re.DOTALL)
        values = yaml.safe_load(found[1]) if found else {}
    # A constructor of YAML may raise ValueError (a date of month 13), and nesting that never ends a RecursionError.
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def licence_of(folder: Path) -> str:
    """Return the licence that the card in ``folder`` names, '' where it names none."""
    front = front_matter(folder)
    found = front.get("license_name") if front.get("license") == "other" else front.get("license")
    return found if isinstance(found, str) else ""


def dense_of(folder: Path) -> Dense | None:
    """Return the sizes of the dense network, if the card says them."""
    ours = front_matter(folder).get("hiap")
    try:
        return Dense.model_validate(ours["dense"]) if isinstance(ours, dict) and "dense" in ours else None
    except ValidationError:
        return None


def _title(card: Card) -> str:
    return _line(card.title or "Pruned Vision Transformer")


def _front(card: Card) -> dict[str, Any]:
    front: dict[str, Any] = {
        "library_name": "hiap",
        "pipeline_tag": "image-classification",
        "tags": ["hiap", "image-classification", "vision-transformer", "pruning"],
    }
    if card.licence in LICENCES:
        front["license"] = card.licence
    elif card.licence:
        front |= {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", card.licence.lower()).strip("-")}
    if card.base_model:
        front["base_model"] = card.base_model
    if card.data in DATASETS:
        front["datasets"] = [DATASETS[card.data]]
    front["metrics"] = ["accuracy"]
    if card.top1 is not None:
        task = {"type": "image-classification", "name": "Image classification"}
        kind = DATASETS.get(card.data, re.sub(r"[^a-z0-9]+", "-", card.data.lower()).strip("-") or "data")
        metric = {"type": "accuracy", "name": "Top-1 (%)", "value": round(card.top1, 4)}
        result = {"task": task, "dataset": {"name": _line(card.data), "type": kind}, "metrics": [metric]}
        front["model-index"] = [{"name": _title(card), "results": [result]}]
    if card.dense:
        front["hiap"] = {"dense": card.dense.model_dump()}
    return front


def _opening(card: Card) -> str:
    how = f" by `{_line(card.method)}`" if card.method and card.method != "dense" else ""
    made = "A Vision Transformer" + (f" pruned{how}" if how or card.dense else "") + ", stored block by block: "
    return (
        f"{made}`architecture.json` names its sizes, `weights.safetensors` holds its weights; nothing is executed.\n"
        '\n```python\nimport hiap\n\nmodel = hiap.load("folder")  # or the hub\'s "owner/name"\n```'
    )


def _sizes(card: Card, model: Any) -> str:
    """Accuracy, MACs and parameters, beside the dense network's where that is known."""
    rows, dense = [], card.dense
    if card.top1 is not None:
        shown = f"{card.top1:.2f} %"
        if card.images:
            low, high = interval(card.top1, card.images)
            shown += f" [{low:.2f}, {high:.2f}], n = {card.images:,}"
        before = "" if card.dense_top1 is None else f"{card.dense_top1:.2f} %"
        rows.append((f"Top-1 on {_line(card.data)}", shown, before))
    sizes = {"MACs per image": shape.total_macs(model), "Parameters": cost.params(model)}
    full = {"MACs per image": dense.macs, "Parameters": dense.params} if dense else {}
    for name, value in sizes.items():
        share = f" ({value / full[name]:.1%})" if full else ""
        rows.append((name, quantity(value) + share, quantity(full[name]) if full else ""))
    lines = ["| | this network | dense |", "|:---|---:|---:|", *("| " + " | ".join(row) + " |" for row in rows)]
    if card.top1 is not None and card.images:
        lines += ["", f"In brackets: what {card.images:,} test images leave open of one network (95 %, Wilson)."]
    return "\n".join(lines)


def _left(card: Card, model: Any) -> str:
    return f"## What is left of each block\n\n```\n{shape.table(model, card.dense)}\n```"


def _bill(card: Card) -> str:
    if not card.bill:
        return ""
    macs, seconds = sum(s.train_macs for s in card.bill), sum(s.seconds for s in card.bill)
    rows = [(_line(s.name), f"{s.epochs}", f"{s.images:,}", s.train_macs, s.seconds) for s in card.bill]
    rows.append(("all", f"{sum(s.epochs for s in card.bill)}", f"{sum(s.images for s in card.bill):,}", macs, seconds))
    lines = [
        "## Training bill",
        "",
        "| stage | epochs | images | multiply-adds | hours |",
        "|:---|---:|---:|---:|---:|",
    ]
    lines += [f"| {name} | {epochs} | {images} | {m:.3g} | {s / 3600:.2f} |" for name, epochs, images, m, s in rows]
    return "\n".join([*lines, "", "Forward and backward of the network as it is trained, and forward of its teacher."])


def _origin(card: Card) -> str:
    known = {
        "Method": card.method,
        "Data": card.data,
        "Start": card.start,
        "SHA-256 of the start": card.start_sha256,
        "Licence of the start": card.licence or ("not known" if card.start_sha256 or card.base_model else ""),
        "Code": card.commit and f"commit {card.commit}",
        "Command": card.command and f"`{_line(card.command)}`",
    }
    lines = [f"- {name}: {_line(value)}" for name, value in known.items() if value]
    return "\n".join(["## Where it comes from", "", *lines]) if lines else ""


def _line(words: str) -> str:
    """Return the text as one line that no table breaks at."""
    return " ".join(words.split()).replace("|", r"\|")
