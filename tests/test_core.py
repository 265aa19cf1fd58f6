"""The method stands alone: it needs nothing of the harness, and it can be read in one sitting."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hiap
from hiap.train.record import git_state
from slurm import submission

PACKAGE = Path(hiap.__file__).parent
REST = (
    "hiap.budget",
    "hiap.beyond",
    "hiap.train",
    "hiap.data",
    "hiap.bench",
    "hiap.formats",
    "baselines",
    "slurm",
    "analysis",
)


def method() -> list[str]:
    return sorted(path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("__"))


def test_the_method_imports_nothing_of_the_rest() -> None:
    modules = ", ".join(f"hiap.{name}" for name in method())
    used = f"sorted(m for m in sys.modules if m.startswith({REST!r}))"
    code = f"import sys, {modules}; print({used})"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_reading_order_names_every_file_of_the_method_and_no_other() -> None:
    order = re.findall(r"^    (\w+)  ", hiap.__doc__ or "", re.MULTILINE)
    assert sorted(order) == method()
    assert len(order) <= 12


def test_every_public_name_is_there() -> None:
    assert all(getattr(hiap, name) is not None for name in hiap.__all__)  # type: ignore[attr-defined]
    assert set(hiap.__all__) == set(hiap._home)  # type: ignore[attr-defined]


def test_a_jobs_copy_of_the_code_is_complete_and_knows_its_commit(tmp_path: Path) -> None:
    folder = submission.snapshot(tmp_path)
    assert not list(folder.rglob("*.pyc"))
    code = "import hiap.train.run, hiap.bench.run, baselines.cofi, slurm.job; from hiap.train.record import git_state; "
    code += "print(hiap.__file__, git_state()[0])"
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(folder / "hiap" / "__init__.py"), git_state()[0]]
    for file in ("hiap/formats/published.csv", "hiap/backbones/supported.csv", "hiap/py.typed"):
        assert (folder / file).read_bytes() == (PACKAGE.parent / file).read_bytes(), "tables and marks are code too"


def test_a_jobs_copy_is_of_the_commit_that_its_code_got_since(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for state, told in ((("a", True), ("a", True)), (("b", False), ("b", False)), (("c", True), ("b", False))):
        monkeypatch.setattr(submission, "git_state", lambda state=state: state)
        note = json.loads((submission.snapshot(tmp_path) / "hiap" / submission.SNAPSHOT).read_text())
        assert (note["commit"], note["dirty"]) == told
