"""pyproject.toml, requirements.lock and environment.yml agree; the repository is clean of what must not be in it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text()


def project() -> dict:
    if sys.version_info < (3, 11):
        pytest.skip("tomllib is new in 3.11")
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> list[Requirement]:
    return [Requirement(line.rstrip(" \\")) for line in LOCK.splitlines() if re.match(r"[a-z0-9]", line)]


def test_every_requirement_is_pinned_to_a_version_that_it_allows():
    meta = project()
    wanted = [Requirement(r) for r in meta["dependencies"] + meta["optional-dependencies"]["dev"]]
    for requirement in wanted:
        found = [p for p in pins() if canonicalize_name(p.name) == canonicalize_name(requirement.name)]
        assert found, f"{requirement.name} is not in the lock"
        for pin in found:
            (version,) = [s.version for s in pin.specifier]
            assert requirement.specifier.contains(version), f"{pin} against {requirement}"


def test_the_lock_pins_exactly_with_hashes_and_names_no_registry():
    for pin in pins():
        assert [s.operator for s in pin.specifier] == ["=="], pin
    blocks = re.split(r"\n(?=[a-z0-9])", LOCK)
    assert all("--hash=sha256:" in block for block in blocks if re.match(r"[a-z0-9]", block))
    assert "://" not in LOCK
    assert "--index-url" not in LOCK


def test_what_is_installed_is_what_the_lock_says():
    from importlib.metadata import PackageNotFoundError, version

    here = {}
    for pin in pins():
        if pin.marker is None or pin.marker.evaluate():
            try:
                here[pin.name] = version(pin.name) in pin.specifier
            except PackageNotFoundError:
                here[pin.name] = False
    assert [name for name, same in here.items() if not same] == []


def test_the_conda_environment_installs_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    names = [d for d in environment["dependencies"] if isinstance(d, str)]
    (pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    assert pip == ["--require-hashes", "-r requirements.lock"]
    (python,) = [d.split("=")[1] for d in names if d.startswith("python=")]
    assert Requirement(f"python{project()['requires-python']}").specifier.contains(python)


def test_configurations_and_records_are_read_without_torch():
    code = "import sys, hiap, hiap.train.config, hiap.train.record, hiap.ledger; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_readme_names_only_what_exists():
    readme = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", readme):
        assert (ROOT / target).exists(), target
    options = set(re.findall(r"`((?:gates|penalty|feasibility|distill|budget|data|optim|model)\.[a-z_]+)`", readme))
    from hiap.train.config import valid_keys

    assert options <= set(valid_keys())
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{target}:" in makefile for target in re.findall(r"^make ([a-z-]+)", readme, re.M))
