"""``hiap COMMAND ...``: which commands there are, and the way to each.

Exit status: that of the command; 0 for help, 2 with one line on what was expected.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

from hiap.cli import parsers
from hiap.options import ConfigError
from hiap.train.arguments import one_line_errors
from hiap.train.config import did_you_mean

HELP = ("--help", "-h", "help")
HEAD = ["usage: hiap COMMAND ...", "", "Prune Vision Transformers, measure what is left, reproduce the paper.", ""]


class Command(NamedTuple):
    """Command of ``hiap``: its ``module`` has ``main(arguments)``, and prints its own help unless ``help`` or
    ``hiap.cli.parsers`` does. ``named``: it takes the command's name as its first argument. ``study``: it is part of a
    checkout, not of the package."""

    about: str
    module: str
    help: Callable[[list[str]], str] | None = None
    named: bool = False
    study: bool = False


def _train_help(arguments: list[str]) -> str:
    from hiap.cli.options import train_help

    return train_help(arguments)


def _bench_help(arguments: list[str]) -> str:
    from hiap.cli.options import bench_help

    return bench_help(arguments)


COMMANDS = {
    "prune": Command("prune a network of your own on a folder of images", "hiap.cli.prune"),
    "train": Command("one run: train, prune, measure, leave a record", "hiap.train.run", _train_help),
    "bench": Command("time networks; measure a table of times for a device", "hiap.bench.run", _bench_help),
    "show": Command("what is left of a saved network, per block", "hiap.cli.networks", named=True),
    "export": Command("write a saved network as ONNX, torch.export's or stock timm's", "hiap.cli.networks", named=True),
    "push": Command("upload a saved network to a model hub", "hiap.cli.networks", named=True),
    "launch": Command("run a grid of experiments, here or on SLURM", "slurm.launch_grid", study=True),
    "join": Command("a method of your own beside all others", "analysis.join", study=True),
    "plot": Command("draw a grid: top-1 against MACs, differences, gates", "analysis.plot", study=True),
    "cite": Command("what stands behind a result, with BibTeX", "analysis.cite", study=True),
    "claims": Command("the verdicts on the paper's claims, recomputed", "analysis.claims.__main__", study=True),
}


def available() -> dict[str, Command]:
    """Return the commands whose code is here: without a checkout those of the study are not."""
    return {name: command for name, command in COMMANDS.items() if _is_there(command.module)}


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package above it
        return False


def overview() -> str:
    """Return the text of ``hiap --help``."""
    there = available()
    lines = [f"  {name:<8}{command.about}" for name, command in there.items()]
    away = [name for name, command in COMMANDS.items() if command.study and name not in there]
    more = ["", f"In a checkout of the repository also: {', '.join(away)}."] if away else []
    return "\n".join([*HEAD, *lines, *more, "", "hiap COMMAND --help lists the options of each."])


@one_line_errors
def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in HELP:
        if len(arguments) > 1 and arguments[1] in COMMANDS:  # hiap help train
            return main([arguments[1], "--help", *arguments[2:]])
        print(overview())
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(version("hiap-reproduction"))
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        raise ConfigError(f"unknown command '{name}'{did_you_mean(name, list(COMMANDS))}; hiap --help lists all")
    return _call(name, COMMANDS[name], rest)


def _call(name: str, command: Command, rest: list[str]) -> int:
    if not _is_there(command.module):
        raise ConfigError(
            f"hiap {name} works in a clone of the repository that is installed from there: make setup, or "
            "pip install -e '.[study]'; not in the package alone"
        )
    asked = [word for word in rest if word in HELP[:2]] + [word for word in rest[:1] if word == HELP[2]]
    if asked:
        rest = [word for word in rest if word not in asked]
        if command.help or command.study:
            print(command.help(rest) if command.help else getattr(parsers, name)().format_help().rstrip())
            return 0
        rest = ["--help"]
    elif name == "bench" and rest in ([], ["deploy"]):  # a benchmark of minutes is never what is meant
        print(_bench_help(rest))
        return 0
    try:
        status = import_module(command.module).main([name, *rest] if command.named else rest)
    except SystemExit as stop:  # argparse has printed its help
        status = stop.code
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package in ("", "hiap", "slurm", "analysis", "baselines"):
            raise
        raise ConfigError(f"hiap {name} needs {package}, which is not installed: {_how(command, package)}") from None
    return int(status or 0)


def _how(command: Command, package: str) -> str:
    if command.study:
        return "pip install -e '.[study]' in the clone"
    return f"pip install {'scikit-learn' if package == 'sklearn' else package}"
