"""The documentation as a site, built offline: ``make docs``."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

project = "HiAP, reproduced in the open"
author = "The HiAP reproduction contributors"
project_copyright = "The HiAP reproduction contributors, MIT licence"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
html_theme = "furo"
html_title = "HiAP, reproduced"
html_static_path: list[str] = []
html_show_sphinx = False
exclude_patterns = ["_build"]
nb_execution_mode = "off"  # the notebooks are committed as they were executed
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
add_module_names = False
# Notebooks were written for the folder that they lie in: their relative links are not pages of this site.
suppress_warnings = ["myst.xref_missing", "myst.header", "mystnb.unknown_mime_type"]


def write_generated(app: Any) -> None:
    """Pages that are computed: every option, and the notebooks beside the pages that show them."""
    from hiap.bench.settings import MODES
    from hiap.cli.options import bench_help, train_help

    generated = HERE / "_generated"
    generated.mkdir(exist_ok=True)
    texts = {"hiap train": train_help([]), **{f"hiap bench {mode}": bench_help([mode]) for mode in MODES}}
    parts = [f"## {name}\n\n```text\n{text}\n```\n" for name, text in texts.items()]
    _write(generated / "options.md", "# Every option\n\nAs `--help` prints them.\n\n" + "\n".join(parts))
    for notebook in sorted((ROOT / "analysis").glob("*.ipynb")):
        copy = generated / notebook.name
        if not copy.exists() or copy.read_bytes() != notebook.read_bytes():
            shutil.copyfile(notebook, copy)


def link_files(app: Any, name: str, source: list[str]) -> None:
    """Markdown that lies outside this folder is no page of the site: a link to it leads to the file, which is a folder
    further up from a copied notebook than from the notebook itself."""
    up = "../" if name.startswith("_generated/") else ""
    if not up:  # notebooks are pages: their copies
        source[0] = re.sub(r"\]\(\.\./analysis/(\w+\.ipynb)\)", r"](_generated/\1)", source[0])
    source[0] = re.sub(r"\]\((\.\./[^)]+\.md)\)", rf"](path:{up}\1)", source[0])


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def setup(app: Any) -> None:
    app.connect("builder-inited", write_generated)
    app.connect("source-read", link_files)
