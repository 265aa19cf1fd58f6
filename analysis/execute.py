"""Run the notebooks headless: ``python -m analysis.execute [--results DIR] [--only NAME ...]``.

Executed copies go to ``<out>/notebooks``, figures and tables to ``<results>``. Nothing in them depends on when or how
long they ran, so a second run on the same records writes the same CSV and TeX files; where neither records nor code
changed, and what was written is still there, it is left as it is.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from analysis.records.published import FOLDER as PUBLISHED
from analysis.records.results import REPOSITORY, Results
from hiap.files import atomic_write, write_json
from hiap.train.arguments import Parser, one_line_errors, results_root
from hiap.train.config import ConfigError, unknown_key

FOLDER = Path(__file__).parent
CODE = ("analysis", "baselines", "hiap", "slurm")
RECORDS = ("runs", "bench", "pull")
WRITTEN = ("figures", "tables")
STARTS = 3  # a kernel takes ports that another process may have taken a moment before


class NotebookError(RuntimeError):
    """A cell failed; the message is one line: the notebook, and the last line of the traceback."""


async def execute(path: Path, results: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs, run in ``analysis/`` on the records below ``results``."""
    for start in range(STARTS):
        try:
            return await _execute(path, results)
        except RuntimeError as error:  # the kernel did not start, or died
            if isinstance(error, NotebookError) or start + 1 == STARTS:
                raise
    raise AssertionError


async def _execute(path: Path, results: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=300,
        startup_timeout=300,
        kernel_name="python3",
        extra_arguments=["--log-level=ERROR"],
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(FOLDER)}},
    )
    try:
        await client.async_execute(env={**os.environ, "HIAP_RESULTS": str(results.resolve())})
    except CellExecutionError as error:
        raise NotebookError(f"{path.name}: {error.ename}: {error.evalue.splitlines()[0]}") from None
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    return notebook


def _inputs(results: Path) -> bytes:
    """SHA-256 of what every notebook's outputs follow from besides its cells: code, records, and what is published."""
    found = hashlib.sha256()
    folders = [(REPOSITORY / name, "*.py") for name in CODE]
    folders += [(REPOSITORY / "slurm", "*.yaml"), (PUBLISHED, "*"), (REPOSITORY / "paper", "*.tex")]
    # Where a root has no benchmark of its own, notebooks show the committed ones.
    folders += [(root / name, "*.json") for root in (results, REPOSITORY / "results") for name in RECORDS]
    for folder, pattern in folders:
        for file in sorted(folder.rglob(pattern)):
            if file.is_file():
                found.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return found.digest()


class Done:
    """Which notebooks were executed on what (``notebooks.json``), and the figures and tables that were there
    afterwards. What they are executed on is looked at once, before: a record that comes meanwhile is not in it."""

    def __init__(self, out: Path, results: Path):
        self.path, self.out, self.results = out.with_suffix(".json"), out, results
        known = (
            json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {"digests": {}, "files": []}
        )
        whole = all((results / name).exists() for name in known["files"])
        self.digests: dict[str, str] = known["digests"] if whole else {}
        self.inputs = _inputs(results)

    def digest(self, path: Path) -> str:
        cells = [cell["source"] for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
        return hashlib.sha256(json.dumps(cells).encode() + self.inputs).hexdigest()

    def has(self, path: Path) -> bool:
        return self.digests.get(path.name) == self.digest(path) and (self.out / path.name).exists()

    def write(self, paths: list[Path]) -> None:
        self.digests |= {path.name: self.digest(path) for path in paths}
        files = [file for name in WRITTEN for file in (self.results / name).glob("*")]
        names = sorted(str(file.relative_to(self.results)) for file in files)
        write_json(self.path, {"digests": self.digests, "files": names})


def notebooks(only: list[str]) -> list[Path]:
    """All, or those of these names (without the ending). Raises ``ConfigError``."""
    paths = sorted(FOLDER.glob("*.ipynb"))
    known = {path.stem: path for path in paths}
    if unknown := [name for name in only if name not in known]:
        raise ConfigError(f"--only: {unknown_key(unknown[0], list(known)).replace('key', 'notebook', 1)}")
    return [known[name] for name in only] or paths


async def execute_all(paths: list[Path], results: Path, out: Path) -> tuple[list[Path], list[NotebookError]]:
    """As many notebooks at once as there are cores; writes those that ran through, returns them and the errors."""
    free = asyncio.Semaphore(os.cpu_count() or 1)

    async def in_turn(path: Path) -> nbformat.NotebookNode:
        async with free:
            return await execute(path, results)

    ended = await asyncio.gather(*map(in_turn, paths), return_exceptions=True)
    errors, through = [], []
    for path, notebook in zip(paths, ended, strict=True):
        if isinstance(notebook, NotebookError):
            errors.append(notebook)
        elif isinstance(notebook, BaseException):
            raise notebook
        else:
            atomic_write(out / path.name, nbformat.writes(notebook).encode() + b"\n")
            through.append(path)
    return through, errors


@one_line_errors
def main(arguments: list[str] | None = None) -> int | None:
    parser = Parser(prog="python -m analysis.execute", description="Run the notebooks headless.")
    parser.add_argument(
        "--results", type=results_root, default=None, help="results root (default: $HIAP_RESULTS or results/)"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these, e.g. 17_evidence")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--out", type=Path, default=None, help="executed copies go to OUT/notebooks (default: results)")
    target.add_argument("--in-place", action="store_true", help="write the outputs into analysis/*.ipynb")
    options = parser.parse_args(arguments)
    results = Results(options.results).root
    out = FOLDER if options.in_place else (options.out or results) / "notebooks"
    paths = notebooks(options.only)
    done = None if options.in_place else Done(out, results)
    kept = [path for path in paths if done and done.has(path)]
    through, errors = asyncio.run(execute_all([path for path in paths if path not in kept], results, out))
    if done:
        done.write(through)
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    if errors:
        return 1
    _tell(results, kept)
    return 0


def _tell(results: Path, kept: list[Path]) -> None:
    if kept:
        print(f"{len(kept)} notebooks are as they were: neither their code nor the records have changed")
    if (table := results / "tables" / "table3.txt").exists():
        print(table.read_text(encoding="utf-8"))
    print(*sorted((results / "figures").glob("*.pdf")), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
