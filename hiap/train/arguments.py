"""What the project's commands share: arguments, and one line where something is refused."""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

from hiap.options import ConfigError


class _Defaults(argparse.HelpFormatter):
    """Formatter that adds to an option's help what holds without it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text, default = action.help or "", action.default
        told = default in (None, False, [], argparse.SUPPRESS) or "default" in text or not action.option_strings
        return text if told else f"{text} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    """Parser whose complaint is one line, a ``ConfigError``, and whose help says every default."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **{"formatter_class": _Defaults, **options})

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (--help lists the options)")


def results_root(text: str) -> Path:
    """Return the argument as a folder of records, which must be there: a mistyped one would be made, and filled with
    tables of nothing."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"no such folder: '{text}'")
    return Path(text)


def one_line_errors(main: Callable[[list[str] | None], int | None]) -> Callable[..., int]:
    """Let a command return its exit status (None: 0). What it refuses, and files that cannot be read or written, become
    one line on standard error, and status 2; a warning is its words, without the place in the code."""

    @wraps(main)
    def command(arguments: list[str] | None = None) -> int:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # of whatever locale: λ and µ are no reason to fail
                stream.reconfigure(errors="replace")
        by_python, warnings.formatwarning = warnings.formatwarning, _warned
        try:
            status = main(arguments) or 0
            sys.stdout.flush()
            return status
        except BrokenPipeError:  # '... | head' has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except OSError as error:
            if not error.filename:
                raise
            line = f"{error.filename}: {error.strerror}"
        except ValueError as error:
            if not _ours(error):
                raise
            line = str(error)
        finally:
            warnings.formatwarning = by_python
        print(f"error: {line}", file=sys.stderr)
        return 2

    return command


def _warned(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"warning: {message}\n" if category is UserWarning else _PYTHONS(message, category, filename, lineno, line)


_PYTHONS = warnings.formatwarning


def _ours(error: ValueError) -> bool:
    """Tell whether the error's message is one line for a person."""
    if isinstance(error, ConfigError):
        return True
    from hiap.backbones.errors import UnsupportedModelError
    from hiap.formats.export import ExportError
    from hiap.formats.store import StoreError  # here: they wait for torch, which commands on records do without

    return isinstance(error, StoreError | UnsupportedModelError | ExportError)
