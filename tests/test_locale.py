"""Any locale: text files and what other programs say are UTF-8, and what a terminal cannot show is no error."""

from __future__ import annotations

import ast
import io
import sys
from pathlib import Path

import pytest

from hiap.train.arguments import one_line_errors

ROOT = Path(__file__).parents[1]
PACKAGES = ("hiap", "baselines", "slurm", "analysis", "examples")
NOT_TEXT = {"os", "Image", "tarfile", "webbrowser"}  # whose ``open`` opens something else


def left_to_the_locale(source: str) -> list[int]:
    """Lines that open, read or write text, or run a program, without naming an encoding."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        named = {keyword.arg: keyword.value for keyword in node.keywords}
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        of = getattr(getattr(node.func, "value", None), "id", "")
        given = [*node.args, *(value for key, value in named.items() if key == "mode")]
        modes = [a.value for a in given if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        opens = name in ("open", "fdopen") and of not in NOT_TEXT - {"os"} and (of, name) != ("os", "open")
        text = opens and not any("b" in mode for mode in modes if len(mode) < 4)
        if (text or name in ("read_text", "write_text") or "text" in named) and "encoding" not in named:
            lines.append(node.lineno)
    return lines


def test_every_text_names_its_encoding() -> None:
    assert left_to_the_locale("open('a'); p.read_text(); run(c, text=True)") == [1, 1, 1]
    assert left_to_the_locale("open('a', 'rb'); p.write_text(x, encoding='utf-8'); os.open('a', 1)") == []
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(files) > 100
    found = {path: left_to_the_locale(path.read_text(encoding="utf-8")) for path in files}
    assert [f"{path.relative_to(ROOT)}:{line}" for path, lines in found.items() for line in lines] == []


def test_what_a_terminal_cannot_show_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="ascii"))
    assert one_line_errors(lambda arguments: print("λ of 3 µs"))([]) == 0
    sys.stdout.flush()
    assert out.getvalue() == b"? of 3 ?s\n"
