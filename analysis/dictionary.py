"""``results/dictionary.yaml``, what every column means, held against the files: ``python -m analysis.dictionary``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml
from pandas.api import types

from analysis.records.results import REPOSITORY

FILE = REPOSITORY / "results" / "dictionary.yaml"
RANGES = {"share": (0.0, 1.0), "percent": (0.0, 100.0)}


class Meaning(NamedTuple):
    """``kind``: text, number, integer, boolean, share or percent."""

    kind: str
    unit: str
    meaning: str


def load() -> dict[str, Any]:
    return dict(yaml.safe_load(FILE.read_text(encoding="utf-8")))


def meaning(dictionary: dict[str, Any], file: str, column: str) -> Meaning | None:
    """What a column of ``file`` (relative to results/) means; the file's own entry before the common one."""
    for pattern, columns in dictionary["files"].items():
        if fnmatch(file, pattern):
            for name, entry in columns.items():
                if fnmatch(column, name):
                    return Meaning(*entry)
    entry = dictionary["common"].get(column)
    return Meaning(*entry) if entry else None


def problems(root: Path, dictionary: dict[str, Any] | None = None) -> Iterator[str]:
    """One line for every column without a meaning, or with values that are not of its kind, in the CSV files of
    ``root``'s published/, tables/, figures/ and itself."""
    dictionary = dictionary or load()
    for path in sorted([*root.glob("*.csv"), *root.glob("[pft]*/*.csv")]):
        file, frame = str(path.relative_to(root)), pd.read_csv(path)
        for column in frame:
            found = meaning(dictionary, file, str(column))
            if found is None:
                yield f"{file}: column '{column}' is not in {FILE.name}"
            elif error := _misfit(frame[column].dropna(), found.kind):
                yield f"{file}: column '{column}': {error}"


def _misfit(values: pd.Series, kind: str) -> str:
    """Why values are not of a kind; '' if they are."""
    if kind == "text" or values.empty:
        return ""
    if kind == "boolean":
        return "" if set(values.astype(str)) <= {"True", "False"} else f"expected True or False, not {values.iloc[0]}"
    if not types.is_numeric_dtype(values) or types.is_bool_dtype(values):
        return f"expected {kind}, found {values.dtype}"
    if kind == "integer" and (values % 1 != 0).any():
        return f"expected whole numbers, not {values[values % 1 != 0].iloc[0]}"
    low, high = RANGES.get(kind, (-float("inf"), float("inf")))
    outside = values[~values.between(low, high)]
    return f"expected {low:g} to {high:g}, not {outside.iloc[0]}" if len(outside) else ""


def main() -> int:
    found = list(problems(REPOSITORY / "results"))
    print("\n".join(found) or "every column of every CSV is described")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
