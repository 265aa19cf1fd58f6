"""Images in parquet files, as the Hugging Face hub keeps them: a column of encoded images, one of labels.

Parquet is read by row groups: an image costs the reading of its whole group, of which a process keeps the last few.
In random order that is much more than the image; class folders, or a tar of them, are what to train from for long.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hiap.options import ConfigError, one_line

GROUPS = 2  # that a process keeps: images that are read in order then cost one reading of each


def require() -> None:
    """Raise ``ConfigError`` where pyarrow is not installed."""
    if find_spec("pyarrow") is None:
        raise ConfigError("parquet files are read by pyarrow, which is not installed: pip install pyarrow")


def read(file: Path, group: int, row: int) -> bytes:
    """Return the encoded image of one row. Raises ``OSError`` or ``ValueError`` if there is none."""
    content = _images(file, group)[row].as_py()
    content = content["bytes"] if isinstance(content, dict) else content
    if content is None:
        raise ValueError("the row holds no bytes")
    return content


@lru_cache(maxsize=GROUPS)
def _images(file: Path, group: int) -> Any:
    opened = _open(file)
    image, _ = _columns(file, opened)
    return opened.read_row_group(group, columns=[image]).column(0)


def rows(file: Path) -> Iterator[tuple[str, int, int, int]]:
    """Yield name, label, row group and row of each image. Raises ``ConfigError`` for a row without a label."""
    opened = _open(file)
    image, label = _columns(file, opened)
    paths = [opened.schema.column(i).path for i in range(len(opened.schema))]
    names = [f"{image}.path"] if f"{image}.path" in paths else []
    count = 0
    for group in range(opened.metadata.num_row_groups):
        table = opened.read_row_group(group, columns=[label, *names])
        images = table.column(image).to_pylist() if names else [None] * len(table)
        for row, (value, entry) in enumerate(zip(table.column(label).to_pylist(), images, strict=True)):
            if value is None or value < 0:
                raise ConfigError(f"{file}: row {count} has no label, as in a test split without answers")
            yield (entry and entry["path"]) or f"row {count}", value, group, row
            count += 1


def class_names(file: Path) -> list[str]:
    """Return the names of the classes by number, as the hub's library wrote them down; [] where it did not."""
    opened = _open(file)
    found = _features(opened).get(_columns(file, opened)[1], {}).get("names")
    return list(map(str, found)) if isinstance(found, list) else []


def _open(file: Path) -> Any:
    require()
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(file)
    except (ArrowInvalid, OSError) as error:
        raise ConfigError(f"{file}: not a whole parquet file ({one_line(error)})") from None


def _columns(file: Path, opened: Any) -> tuple[str, str]:
    """Return the columns of images and of labels: by what the hub's library wrote down, else by their usual names."""
    import pyarrow.types as types

    schema, features = opened.schema_arrow, _features(opened)
    holds = {"Image": lambda t: types.is_struct(t) or types.is_binary(t) or types.is_large_binary(t),
             "ClassLabel": types.is_integer}  # fmt: skip
    found = []
    for kind, usual in (("Image", ("image", "img", "jpg", "png")), ("ClassLabel", ("label", "labels", "cls"))):
        fitting = [name for name in schema.names if holds[kind](schema.field(name).type)]
        written = [name for name in fitting if features.get(name, {}).get("_type") == kind]
        named = [name for name in usual if name in fitting]
        if not named and len(written) != 1:
            raise ConfigError(
                f"{file}: columns {', '.join(schema.names)}; expected 'image' (encoded images) and 'label' (integers)"
            )
        found.append(named[0] if named else written[0])
    return found[0], found[1]


def _features(opened: Any) -> dict[str, Any]:
    try:
        written = json.loads((opened.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
        features = written["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
