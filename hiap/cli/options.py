"""Help of the commands that take key=value, written from the code: every option with its values, its default, and the
comment that stands above or behind it there."""

from __future__ import annotations

import inspect
import re
import textwrap
import types
from functools import cache
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from hiap.options import ConfigError
from hiap.train import methods
from hiap.train.config import Config, did_you_mean

WIDTH = 100


class Option(NamedTuple):
    """Option of a command: ``values`` that it takes, in words; its ``default`` as it is written on the command line; a
    ``text`` of one sentence."""

    key: str
    values: str
    default: str
    text: str


def options_of(section: type[BaseModel], prefix: str = "") -> list[Option]:
    """Return the options of a section, in their order; not those of sections within it."""
    said = comments(section)
    return [
        Option(f"{prefix}{name}", _values(field.annotation), _written(field.default), said.get(name, ""))
        for name, field in section.model_fields.items()
        if not _is_section(field.annotation)
    ]


@cache
def comments(section: type[BaseModel]) -> dict[str, str]:
    """Return what the code says of each field: the comment above it, and behind that the one on its line. A field right
    below one with a comment above shares that comment, unless it has one of its own."""
    found: dict[str, str] = {}
    for kind in reversed([k for k in section.__mro__ if issubclass(k, BaseModel) and k is not BaseModel]):
        above: list[str] = []
        shared = ""
        for line in inspect.getsource(kind).splitlines():
            text = line.strip()
            if text.startswith("#"):
                above.append(text.lstrip("# "))
            elif field := re.match(r" {4}(\w+): [^#]*?(?:#\s*(.*))?$", line):
                shared = " ".join(above) if above else shared
                found[field[1]] = " ".join(part for part in (" ".join(above), field[2]) if part) or shared
                above = []
            elif line.startswith("    ") and not line.startswith("     "):
                above, shared = [], ""
    return found


def about(section: type[BaseModel]) -> str:
    """Return a section's docstring, as one paragraph of plain words."""
    return " ".join(inspect.cleandoc(section.__doc__ or "").replace("``", "").split())


def train_help(arguments: list[str]) -> str:
    """Return the help of ``hiap train``; after the name of a section, or of an option, that part alone. Raises
    ``ConfigError`` for a name that is neither."""
    fields = Config.model_fields.items()
    sections: dict[str, Any] = {name: field.annotation for name, field in fields if _is_section(field.annotation)}
    wanted = [word.partition("=")[0].partition(".")[0] for word in arguments]
    for word in wanted:
        if word not in Config.model_fields:
            raise ConfigError(f"no section '{word}'{did_you_mean(word, list(sections))}")
    parts = [] if wanted else [_paragraph(TRAIN)]
    top = [option for option in options_of(Config) if not wanted or option.key in wanted]
    parts += [_listed(top)] if top else []
    parts += [_method(word.partition("=")[2]) for word in arguments if word.startswith("method=")]
    for name, section in sections.items():
        if not wanted or name in wanted:
            assert section is not None
            parts.append(
                "\n".join([textwrap.fill(f"{name}: {about(section)}", WIDTH), _listed(options_of(section, f"{name}."))])
            )
    return "\n\n".join(parts)


TRAIN = """usage: hiap train key=value ...

One run, from its configuration to its record in results/local. Every option has a default; what a run is found by \
(its run id) follows from the options that differ. Given again, a finished run is not repeated, an interrupted one \
goes on.

  hiap train method=dense optim.epochs=12 optim.lr=2e-3
  hiap train method=hiap model.weights=run:<run_id of the dense run> gates.lr=0.02 budget.target_macs=0.5

hiap train --help gates lists one section alone; hiap train --help method=FILE what a file declares."""


def _method(method: str) -> str:
    found = methods.find(method)
    if found is None:
        return ""
    options = [f"  options.{name}={value}" for name, value in found.options.items()]
    return "\n".join([_paragraph(f"{found.name}: {found.about}"), *options])


def bench_help(arguments: list[str]) -> str:
    """Return the help of ``hiap bench``; after the name of a mode, that mode's. Raises ``ConfigError`` for an unknown
    mode."""
    from hiap.bench.settings import MODES

    if not arguments:
        modes = [f"  {name:<9}{mode.about}" for name, mode in MODES.items()]
        return "\n".join([_paragraph(BENCH), "", *modes, "", "hiap bench MODE --help lists the options of each."])
    name = arguments[0]
    if name not in MODES:
        raise ConfigError(f"no mode '{name}'{did_you_mean(name, list(MODES))}; hiap bench --help lists all")
    mode = MODES[name]
    parts = [f"usage: {mode.usage or f'hiap bench {name} key=value ...'}", _paragraph(mode.about)]
    if mode.settings:
        parts += [_paragraph(about(mode.settings)), _listed(options_of(mode.settings))]
    return "\n\n".join(parts)


BENCH = """usage: hiap bench MODE key=value ...

Does the cut pay? Dense and pruned networks on the clock, side by side. A ratio is the median of quotients of \
neighbouring calls, so that a slow moment hits both. One JSON for each call goes to results/local/bench."""


def _listed(options: list[Option]) -> str:
    lines = []
    for option in options:
        lines.append(f"  {option.key}={option.default}   {option.values}")
        lines += textwrap.wrap(_plain(option.text), WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _plain(text: str) -> str:
    text = text.replace("``", "").replace("`", "")
    return text[:1].upper() + text[1:]


def _paragraph(text: str) -> str:
    blocks = text.split("\n\n")
    return "\n\n".join(b if b.startswith(("  ", "usage")) else textwrap.fill(_plain(b), WIDTH) for b in blocks)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _values(annotation: Any) -> str:
    """Return the values that a field takes, in words: 'a | b' of literals, 'number', 'whole number', 'text', 'list of
    ...'."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, inner))
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_values(part) for part in inner if part is not type(None)))
    if origin in (list, tuple):
        return f"[{', '.join(dict.fromkeys(_values(part) for part in inner if part is not Ellipsis))}, ...]"
    if origin is dict:
        return "{name: value}"
    if hasattr(annotation, "__metadata__"):
        return _values(inner[0])
    return {bool: "true | false", int: "whole number", float: "number", str: "text"}.get(annotation, "value")


def _written(value: Any) -> str:
    if value is PydanticUndefined or value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).replace("'", "") if isinstance(value, list | dict | tuple) else str(value) or "''"
