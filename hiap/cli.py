"""``hiap show`` and ``hiap push``, also ``python -m hiap``. Runs are ``python -m hiap.train`` and ``.bench``.

Exit status: 0 done, 2 with one line on what was expected.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from hiap.options import ConfigError


class Parser(argparse.ArgumentParser):
    """What is wrong with the arguments is one line, a ``ConfigError``."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (--help lists the options)")


def main(arguments: list[str] | None = None) -> int:
    return told(lambda: _run(_parser().parse_args(arguments)))


def told(work: Callable[[], None]) -> int:
    """The exit status of ``work``; what it refuses is one line on standard error."""
    try:
        work()
        sys.stdout.flush()
    except BrokenPipeError:  # '... | head' has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ValueError as error:
        if not refused(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def refused(error: ValueError) -> bool:
    """Whether it is one of ours, whose message is one line for a person."""
    from hiap.formats.store import StoreError
    from hiap.gated_vit import UnsupportedModelError

    return isinstance(error, ConfigError | StoreError | UnsupportedModelError)


def _parser() -> Parser:
    parser = Parser(prog="hiap", description="Look at saved networks, and share them.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="show | push")
    show = commands.add_parser("show", help="what is left per block, beside the dense network")
    show.add_argument("folder", help="a folder of hiap.save, or the hub's owner/name")
    show.add_argument("--dense", metavar="NETWORK", help="what it was pruned from: timm's name, a folder, owner/name")
    show.add_argument("--figure", metavar="FILE", help="also draw it: a .png, .svg or .pdf")
    push = commands.add_parser("push", help="upload a folder of hiap.save to a model hub")
    push.add_argument("folder")
    push.add_argument("name", help="owner/name")
    push.add_argument("--private", action="store_true", help="if the repository is new, for you alone")
    return parser


def _run(options: argparse.Namespace) -> None:
    import hiap  # here: --help need not wait for torch

    if options.command == "push":
        print(hiap.push(options.folder, options.name, options.private))
        return
    from hiap.formats import show

    if options.figure:
        show.checked_picture(options.figure)
    shown = show.show(options.folder, options.dense)
    print(shown)
    if options.figure:
        print(shown.save(options.figure))
