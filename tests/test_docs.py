"""What README and documentation say holds: every snippet runs, every command parses, every link leads somewhere."""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import together

import hiap
from hiap.cli import commands, options, parsers
from hiap.train.config import from_dict, parse_overrides, valid_keys

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "README.md"]
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py"))
NEEDS = {"transformers_vit": "transformers", "lightning_vit": "lightning"}


def blocks(page: Path, *languages: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.M | re.S)
    return [text for language, text in fenced if language in languages]


def with_code(*languages: str) -> list[Path]:
    return [page for page in PAGES if blocks(page, *languages)]


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_the_readme_is_short_and_shows_code_at_once():
    lines = README.read_text().splitlines()
    assert len(lines) <= 120
    assert len(README.read_text().split()) <= 1000
    assert lines.index("```python") < 25


@pytest.fixture
def readers(tmp_path, monkeypatch) -> dict[str, Any]:
    """What a reader has at hand: two batches of images, and models without a download."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *args, pretrained=False, **rest: create(*args, **rest))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    images = torch.randn(2, 3, 224, 224)
    loader = [(images[i : i + 1], torch.tensor([i])) for i in range(2)]
    return {
        "hiap": hiap,
        "loader": loader,
        "epochs": 1,
        "images": images,
        "model": create("deit_tiny_patch16_224", depth=2),
    }


PYTHON = [page for page in with_code("python") if page.name not in ("baselines.md", "integrations.md", "join.md")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", PYTHON, ids=named)
def test_snippets_run_as_they_stand(page, readers, capsys):
    for text in blocks(page, "python"):
        exec(compile(text, named(page), "exec"), readers)
    promised = re.findall(r"^# (\d.*GMACs.*)$", "\n".join(blocks(page, "python")), re.M)
    assert [line for line in promised if line not in capsys.readouterr().out] == []


@pytest.mark.parametrize("page", with_code("python"), ids=named)
def test_snippets_are_python(page):
    for text in blocks(page, "python"):
        compile(text, named(page), "exec")


def test_the_baseline_of_the_documentation_is_one(tmp_path, dense):
    from conftest import tiny

    from hiap.train import run as train

    (text,) = blocks(ROOT / "docs" / "baselines.md", "python")
    (tmp_path / "mine.py").write_text(text)
    given = {"method": str(tmp_path / "mine.py"), "options": {"from_end": True}}
    start = {"model": {"weights": f"run:{dense.run_id}"}, "budget": {"target_macs": 0.8}}
    record = train.run(tiny(dense.run.results, **given, **start))
    assert record.size.macs <= 0.8 * record.size.dense_macs


def shell() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for text in blocks(page, "sh", ""):
            lines = text.replace("\\\n", " ").splitlines()
            found += [(named(page), line) for line in lines if re.match(r"(hiap|make|python) ", line)]
    return found


@pytest.mark.parametrize(("page", "line"), shell(), ids=lambda value: value)
def test_commands_are_ones_that_exist(page, line):
    words = shlex.split(line, comments=True)
    words = words[2:] if words[:2] == ["python", "-m"] else words
    if words[0] == "make":
        targets = [word for word in words[1:] if "=" not in word]
        assert all(
            re.search(rf"^[\w ]*\b{target}\b[\w ]*:", (ROOT / "Makefile").read_text(), re.M) for target in targets
        )
    elif words[0] == "hiap":
        check(words[1], words[2:])
    else:
        assert words[0].startswith(("hiap.", "analysis.", "slurm/", "pytest")), line


def check(command: str, rest: list[str]) -> None:
    """Arguments that a command would take, without running it."""
    assert command in commands.COMMANDS
    if "--help" in rest:
        assert commands.main([command, *rest]) == 0 or any(word.endswith(".py") for word in rest)
    elif command == "train":
        from_dict(parse_overrides(rest))
    elif command == "bench":
        from hiap.bench.settings import MODES
        from hiap.options import checked

        mode = MODES[rest[0]]
        assert mode.settings is None or checked(mode.settings, parse_overrides(rest[1:]))
    elif hasattr(parsers, command):
        getattr(parsers, command)().parse_args(rest)
    elif command in ("show", "export", "push"):
        from hiap.cli.networks import _parser

        _parser().parse_args([command, *rest])


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            assert target.startswith("https://"), target
            continue
        path, _, anchor = target.partition("#")
        to = (page.parent / path).resolve() if path else page
        if "_generated" not in path:  # written when the site is built
            assert to.exists(), target
            assert not anchor or f"# {anchor}".replace("-", " ") in to.read_text().lower(), target


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_no_line_is_a_comment_of_myst(page):
    assert [line for line in page.read_text().splitlines() if line.startswith("%")] == []


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_options_in_the_text_exist(page):
    sections = {key.split(".")[0] for key in valid_keys() if "." in key}
    told = re.findall(rf"`((?:{'|'.join(sections)})\.[a-z_]+)(?:=[^`]*)?`", page.read_text())
    assert set(told) <= {*valid_keys(), "data.name"}, page


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_roles_name_code_that_is_there(page):
    from importlib import import_module

    for kind, name in re.findall(r"\{py:(\w+)\}`([\w.]+)`", page.read_text()):
        module, _, last = name.rpartition(".")
        assert import_module(name) if kind == "mod" else hasattr(import_module(module), last), name


def script(argument):
    """What a file prints that is run as it stands, in another folder."""
    path, folder = argument
    os.chdir(folder)
    sys.argv = [str(path)]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        runpy.run_path(str(path), run_name="__main__")
    return said.getvalue()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(path, tmp_path, monkeypatch, dense):
    assert len(path.read_text().splitlines()) <= 60
    if path.stem == "own_baseline":
        from conftest import tiny

        from hiap.train import run as train

        start = {"model": {"weights": f"run:{dense.run_id}"}, "budget": {"target_macs": 0.8}}
        record = train.run(tiny(dense.run.results, method=str(path), **start))
        assert record.size.macs <= 0.8 * record.size.dense_macs
        return
    pytest.importorskip(NEEDS.get(path.stem, "torch"))
    (said,) = together(script, [(path, tmp_path)])
    assert re.search(r"(49\.\d|50\.0)% of the multiply-adds are left", said), said


def test_the_page_on_joining_shows_the_example_as_it_is():
    (text,) = blocks(ROOT / "docs" / "join.md", "python")
    assert text == (ROOT / "examples" / "own_baseline.py").read_text()
    assert len(text.splitlines()) <= 45


def test_every_example_is_listed():
    listed = (ROOT / "examples" / "README.md").read_text()
    assert [path.name for path in EXAMPLES if f"({path.name})" not in listed] == []


def test_every_page_is_in_the_site():
    index = (ROOT / "docs" / "index.md").read_text()
    assert [page.stem for page in (ROOT / "docs").glob("*.md") if page.stem != "index" and page.stem not in index] == []


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    pytest.importorskip("furo")
    pytest.importorskip("myst_nb")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "index.html").is_file()


@pytest.mark.slow
def test_the_first_run_of_get_started(tmp_path, monkeypatch, capsys):
    """Its commands one after the other, with the run ids that they print."""
    monkeypatch.chdir(tmp_path)
    run = ""
    for line in "".join(blocks(ROOT / "docs" / "get_started.md", "sh")).splitlines():
        words = shlex.split(line.replace("RUN_ID", run))
        if words[:2] in (["hiap", "train"], ["hiap", "show"]):
            assert commands.main(words[1:]) == 0, (line, capsys.readouterr().err)
            run = next(iter(re.findall(r"^(\w+-[0-9a-f]{10}): top-1", capsys.readouterr().out, re.M)), run)
    assert run.startswith("hiap-")


def test_the_site_lists_every_option(tmp_path, monkeypatch):
    namespace = runpy.run_path(str(ROOT / "docs" / "conf.py"))
    monkeypatch.setitem(namespace["write_generated"].__globals__, "HERE", tmp_path)
    namespace["write_generated"](None)
    written = (tmp_path / "_generated" / "options.md").read_text()
    assert options.train_help([]) in written
    assert len(list((tmp_path / "_generated").glob("*.ipynb"))) >= 18


def test_every_grid_is_on_the_page_about_clusters():
    page = (ROOT / "docs" / "cluster.md").read_text()
    assert [
        grid.stem for grid in sorted((ROOT / "slurm" / "grids").glob("*.yaml")) if f"`{grid.stem}`" not in page
    ] == []
