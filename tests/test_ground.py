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
LOCKS = ("requirements.lock", "requirements-cuda12.lock")


def project() -> dict:
    if sys.version_info < (3, 11):
        pytest.skip("tomllib is new in 3.11")
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(lock: str = LOCKS[0]) -> list[Requirement]:
    lines = (ROOT / lock).read_text().splitlines()
    return [Requirement(line.rstrip(" \\")) for line in lines if re.match(r"[a-z0-9]", line)]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_requirement_is_pinned_to_a_version_that_it_allows(lock):
    meta = project()
    wanted = [Requirement(r) for r in meta["dependencies"] + meta["optional-dependencies"]["study"]]
    wanted += [Requirement(r) for r in meta["optional-dependencies"]["dev"]]
    for requirement in wanted:
        found = [p for p in pins(lock) if canonicalize_name(p.name) == canonicalize_name(requirement.name)]
        assert found, f"{requirement.name} is not in the lock"
        for pin in found:
            (version,) = [s.version for s in pin.specifier]
            assert requirement.specifier.contains(version), f"{pin} against {requirement}"


def test_every_requirement_has_an_oldest_version_for_make_oldest_to_try():
    meta = project()
    for text in sum(meta["optional-dependencies"].values(), meta["dependencies"]):
        assert [s.operator for s in Requirement(text).specifier if s.operator != "<"] == [">="], text


@pytest.mark.parametrize(("target", "resolution"), [("oldest", "lowest-direct"), ("newest", "highest")])
def test_oldest_and_newest_are_resolved_from_the_bounds_into_an_environment_of_their_own(target, resolution, tmp_path):
    command = ["make", "-n", target, f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"--resolution {resolution} -e '.[study,dev,integrations,runtimes]'" in done.stdout
    assert f"{tmp_path / 'venv'}-{target}/bin/python -m pytest" in done.stdout
    assert f"{tmp_path / 'venv'}/bin" not in done.stdout
    assert "==" not in done.stdout


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_pins_exactly_with_hashes_and_names_no_registry(lock):
    for pin in pins(lock):
        assert [s.operator for s in pin.specifier] == ["=="], pin
    text = (ROOT / lock).read_text()
    blocks = re.split(r"\n(?=[a-z0-9])", text)
    assert all("--hash=sha256:" in block for block in blocks if re.match(r"[a-z0-9]", block))
    assert "://" not in text
    assert "--index-url" not in text


def test_each_lock_is_for_one_cuda():
    cuda = {
        lock: {m for p in pins(lock) if (m := re.search(r"(?<=-cu)\d+$|(?<=^cuda-toolkit)$", p.name))} for lock in LOCKS
    }
    assert {m.group() for m in cuda[LOCKS[1]]} == {"12"}
    assert "12" not in {m.group() for m in cuda[LOCKS[0]]}


@pytest.mark.parametrize(("options", "lock"), [([], LOCKS[0]), (["CUDA=12"], LOCKS[1])])
def test_make_installs_the_lock_of_the_cuda_that_is_asked_for(options, lock, tmp_path):
    command = ["make", "-n", "setup", f"VENV={tmp_path / 'venv'}", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"--require-hashes -r {lock}\n" in done.stdout


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


LIBRARY = {"torch", "torchvision", "timm", "numpy", "pillow", "safetensors", "huggingface-hub", "pyyaml", "tqdm"}


def test_the_library_needs_little_and_the_study_is_an_extra():
    meta = project()
    assert {canonicalize_name(Requirement(r).name) for r in meta["dependencies"]} == {*LIBRARY, "pydantic"}
    study = {canonicalize_name(Requirement(r).name) for r in meta["optional-dependencies"]["study"]}
    assert {"pandas", "matplotlib", "seaborn", "jupyter", "submitit", "scikit-learn"} <= study


def test_the_package_alone_imports_without_the_study():
    """Every module of hiap but those for other frameworks, with the study's packages hidden."""
    hidden = ("pandas", "matplotlib", "seaborn", "sklearn", "scipy", "submitit", "tensorboard", "IPython", "nbclient")
    code = (
        "import sys, pkgutil, importlib, hiap\n"
        f"sys.modules.update(dict.fromkeys({hidden!r}))\n"
        "for found in pkgutil.walk_packages(hiap.__path__, 'hiap.'):\n"
        "    if not found.name.startswith('hiap.integrations.') and not found.name.endswith('__main__'):\n"
        "        importlib.import_module(found.name)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]


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
