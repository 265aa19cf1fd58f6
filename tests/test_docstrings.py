"""Docstrings read as a manual does: first the verb, or the name of the thing (of functions ruff's D401 sees to it), and
what the public names take is listed."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path

import pytest

import hiap
from baselines import ranking
from slurm import grid

PACKAGES = tuple(Path(package.__file__).parent for package in (hiap, grid, ranking))
# Words that begin a clause, or point at something, instead of naming it.
NO_NAME = re.compile(
    r"(After|Also|And|As|At|Because|Before|Behind|By|For|From|Has|He|Here|How|If|In|Is|It|Its|Not|Of|On|Only|Or|Same|"
    r"Such|That|There|These|They|This|Those|To|Until|What|When|Where|Whether|Which|While|Why|With|Within|Without)\b"
)


def docstrings(tree: ast.AST, owner: str = "") -> Iterator[tuple[str, str]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
            if text := ast.get_docstring(node):
                yield f"{owner}{node.name}", text
            if isinstance(node, ast.ClassDef):
                yield from docstrings(node, f"{node.name}.")


def clumsy(text: str) -> bool:
    return not text[0].isupper() or NO_NAME.match(text) is not None


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_a_public_docstring_begins_with_a_verb_or_a_noun(package: Path) -> None:
    found = [
        (str(path.relative_to(package)), name, text.splitlines()[0])
        for path in sorted(package.rglob("*.py"))
        for name, text in docstrings(ast.parse(path.read_text()))
        if clumsy(text)
    ]
    assert found == []


@pytest.mark.parametrize("text", ["What is left.", "``model``, gated.", "Within, nothing moves.", "Of a run."])
def test_a_docstring_that_begins_with_a_clause_is_found(text: str) -> None:
    assert clumsy(text)


def takes(found: object) -> list[str]:
    call = vars(found).get("__init__") if inspect.isclass(found) and not is_dataclass(found) else found
    return [name for name in inspect.signature(call).parameters if name != "self"] if inspect.isfunction(call) else []


@pytest.mark.parametrize("name", hiap.__all__)  # type: ignore[attr-defined]
def test_a_public_name_lists_more_than_three_arguments(name: str) -> None:
    found = getattr(hiap, name)
    text, names = inspect.getdoc(found) or "", takes(found)
    assert text, "has no docstring"
    if len(names) > 3:
        _, *listed = text.split("\nArgs:\n")
        assert listed, f"lists none of {names}"
        heads = " ".join(re.findall(r"^    (\w[\w, ]*):", listed[0], re.MULTILINE))
        assert set(names) <= set(re.findall(r"\w+", heads))


def test_lists_are_asked_of_some_public_names() -> None:
    assert sum(len(takes(getattr(hiap, name))) > 3 for name in hiap.__all__) >= 5  # type: ignore[attr-defined]
