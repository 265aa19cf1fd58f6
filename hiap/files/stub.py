"""What a package promises in its stub, ``__init__.pyi``."""

from __future__ import annotations

import ast
from pathlib import Path


def names(module: str) -> dict[str, str]:
    """Read the public names, each with its module, of the stub beside the file ``module``."""
    stub = ast.parse(Path(module).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [lines for lines in stub.body if isinstance(lines, ast.ImportFrom)]
    return {name.name: str(lines.module) for lines in imports for name in lines.names}
