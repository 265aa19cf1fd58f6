"""Which methods there are: 'dense' and 'hiap', each file of ``baselines/``, and any file that is given by its path.

A method's file has a function ``stages(config) -> list[Stage]`` (``hiap.train.stages``). What must be known before it
runs stands at its top as plain values, which are read and not executed::

    NAME = "peer"             # the method's name, where it is not the file's
    KIND = "ranking"          # 'ranking' (ranks units, removes them, fine-tunes), 'cutting' (removes in its own way, at
                              # once), 'searching' (the first search.epochs learn gates), or '' (none of these)
    OPTIONS = {"share": 0.5}  # what it needs beside the common options, with defaults: options.share=0.7
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from hiap.options import ConfigError, one_line

OURS = ("dense", "hiap")
KINDS = ("", "ranking", "cutting", "searching")
# Beside the package in a checkout, and in the copies of one that jobs run in. A wheel holds hiap alone.
BASELINES = Path(__file__).resolve().parents[2] / "baselines"
SIMPLE = (bool, int, float, str)


class Method(NamedTuple):
    """Method as its file describes itself. ``about``: the docstring; ``runs``: whether it has ``stages``."""

    file: Path
    name: str
    kind: str
    options: dict[str, Any]
    about: str
    runs: bool


def name_of(method: str) -> str:
    """Return what a method is called in run ids and tables: of a file that is given by its path, the file's name."""
    return Path(method).stem if is_path(method) else method


def is_path(method: str) -> bool:
    return method.endswith(".py")


def registered() -> dict[str, Method]:
    """Return the methods of ``baselines/`` by name; {} without that folder."""
    found = [read(path) for path in sorted(BASELINES.glob("*.py")) if path.stem != "__init__"]
    return {method.name: method for method in found if method.runs}


def known() -> list[str]:
    return [*OURS, *registered()]


def find(method: str) -> Method | None:
    """Return the file behind ``method``; None for ours. Raises ``ConfigError`` (one line) if there is none, or it holds
    no method."""
    if method in OURS:
        return None
    if is_path(method):
        found = read(Path(method))
        if not found.runs:
            raise ConfigError(f"method '{method}': expected a function stages(config) in it (docs/baselines.md)")
        return found
    if not BASELINES.is_dir():
        raise ConfigError(
            f"method '{method}' is a file of baselines/, which a checkout of the repository has and the installed "
            "package has not; give a file by its path"
        )
    if method not in (files := registered()):
        raise ConfigError(f"method '{method}': expected {', '.join(known())}, or the path of a .py file")
    return files[method]


def kind(method: str) -> str:
    """Return one of ``KINDS``; '' for ours, and where the file is not there, as it may be for a record of another
    machine."""
    try:
        found = find(method)
    except ConfigError:
        return ""
    return found.kind if found else ""


def of_kind(wanted: str) -> list[str]:
    return [name for name, method in registered().items() if method.kind == wanted]


def options(method: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return all options that the method's file declares, with what is ``given``. Raises ``ConfigError`` for an option
    that it does not declare, or a value of another type than the default's."""
    found = find(method)
    declared = found.options if found else {}
    for key, value in given.items():
        if key not in declared:
            expected = ", ".join(f"options.{k}" for k in declared) or "none"
            raise ConfigError(f"options.{key}: method '{name_of(method)}' declares no such option (it has: {expected})")
        default = declared[key]
        if type(value) is not type(default) and not (type(default) is float and type(value) is int):
            raise ConfigError(f"options.{key}: expected {type(default).__name__} as {default!r} is, not {value!r}")
    return {**declared, **given}


def read(path: Path) -> Method:
    """Read what a file says of itself, without running it. Raises ``ConfigError`` (one line) if there is none, or it is
    not Python."""
    try:
        stamp = path.stat()
        return _read(path, stamp.st_mtime_ns, stamp.st_size)
    except OSError as error:
        raise ConfigError(f"method '{path}': {error.strerror}") from None


@cache
def _read(path: Path, changed: int, size: int) -> Method:
    try:
        tree = ast.parse(path.read_bytes())
        said = {target: ast.literal_eval(value) for target, value in _values(tree)}
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"method '{path}': {one_line(error)}; NAME, KIND and OPTIONS are plain values") from None
    kind, given = said.get("KIND", ""), said.get("OPTIONS", {})
    if kind not in KINDS:
        raise ConfigError(f"method '{path}': KIND must be one of {', '.join(map(repr, KINDS))}, not {kind!r}")
    if not isinstance(given, dict) or not all(isinstance(k, str) and type(v) in SIMPLE for k, v in given.items()):
        raise ConfigError(f"method '{path}': OPTIONS must be names with a default each: a number, a word, or a boolean")
    runs = any(isinstance(node, ast.FunctionDef) and node.name == "stages" for node in tree.body)
    return Method(path, str(said.get("NAME", path.stem)), kind, given, ast.get_docstring(tree) or "", runs)


def _values(tree: ast.Module) -> list[tuple[str, ast.expr]]:
    """Return the assignments at the top of a file that say what the method is."""
    named = [(n.targets[0], n.value) for n in tree.body if isinstance(n, ast.Assign) and len(n.targets) == 1]
    return [(t.id, v) for t, v in named if isinstance(t, ast.Name) and t.id in ("NAME", "KIND", "OPTIONS")]
