"""Run the notebooks headless: ``python -m analysis.execute [--results DIR] [--out DIR | --in-place]``.

Executed copies go to ``<out>/notebooks``, figures and tables to ``<results>``. Nothing in them depends on when or how
long they ran, so a second run on the same records writes the same CSV and TeX files.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from analysis import collect
from hiap.files import atomic_write

FOLDER = Path(__file__).parent
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


async def execute_all(results: Path, out: Path) -> list[NotebookError]:
    """All notebooks, as many at once as there are cores; writes those that ran through and returns the errors of the
    others."""
    paths = sorted(FOLDER.glob("*.ipynb"))
    free = asyncio.Semaphore(os.cpu_count() or 1)

    async def in_turn(path: Path) -> nbformat.NotebookNode:
        async with free:
            return await execute(path, results)

    done = await asyncio.gather(*map(in_turn, paths), return_exceptions=True)
    errors = []
    for path, notebook in zip(paths, done, strict=True):
        if isinstance(notebook, NotebookError):
            errors.append(notebook)
        elif isinstance(notebook, BaseException):
            raise notebook
        else:
            atomic_write(out / path.name, nbformat.writes(notebook).encode() + b"\n")
    return errors


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m analysis.execute", description="Run the notebooks headless.")
    parser.add_argument("--results", type=Path, default=None, help="results root (default: $HIAP_RESULTS or results/)")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--out", type=Path, default=None, help="executed copies go to OUT/notebooks (default: results)")
    target.add_argument("--in-place", action="store_true", help="write the outputs into analysis/*.ipynb")
    options = parser.parse_args(arguments)
    results = options.results or collect.results_root()
    out = FOLDER if options.in_place else (options.out or results) / "notebooks"
    errors = asyncio.run(execute_all(results, out))
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    if errors:
        return 1
    print((results / "tables" / "table3.txt").read_text())
    print(*sorted((results / "figures").glob("*.pdf")), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
