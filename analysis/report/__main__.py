"""All notebooks as one page that needs no Jupyter: ``python -m analysis.report [--out results/report.html]``.

Code stays out; what the notebooks say and show goes in, with a table of contents. Figures lie inside the file. The
notebooks are taken as they are: execute them first (``python -m analysis.execute``) to show other records.
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from nbformat import NotebookNode

from analysis.records.results import REPOSITORY
from hiap.files import atomic_write
from hiap.train.arguments import Parser, one_line_errors

TITLE = "HiAP, reproduced in the open"
STYLE = """<style>
main{max-width:60rem;margin:auto} pre{white-space:pre;overflow-x:auto} img{max-width:100%}
main table{display:block;overflow-x:auto;margin-left:0} main td:first-child{white-space:nowrap}
main h1{margin-top:2.5em;padding-top:.6em;border-top:1px solid #ccc} main h2{margin-top:1.8em}
@media(min-width:90rem){
  main{margin-left:22rem}
  nav{position:fixed;left:1rem;top:1rem;width:19rem;max-height:95vh;overflow-y:auto;font-size:85%}
}
</style>"""


def merged(paths: list[Path]) -> NotebookNode:
    """One notebook of all, each below an anchor, with a table of contents in front."""
    cells, contents = [], []
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        first = next(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
        heading = re.sub(r"^#+ *", "", first.splitlines()[0])
        contents.append(f"- [{heading}](#{path.stem})")
        for i, cell in enumerate(notebook.cells):
            cell["id"] = f"{path.stem}-{i}"
        cells += [nbformat.v4.new_markdown_cell(f'<a id="{path.stem}"></a>'), *notebook.cells]
    front = nbformat.v4.new_markdown_cell("\n".join([STYLE, f"# {TITLE}", "", "<nav>", "", *contents, "", "</nav>"]))
    return nbformat.v4.new_notebook(cells=[front, *cells])


def page(paths: list[Path]) -> str:
    """The HTML of ``merged``, without code and prompts."""
    exporter = HTMLExporter(exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True)
    html, _ = exporter.from_notebook_node(merged(paths), resources={"metadata": {"name": TITLE}})
    # MathJax and RequireJS come from the network; nothing here needs them.
    return re.sub(r'<script src="https?://[^>]*>\s*</script>', "", html)


@one_line_errors
def main(arguments: list[str] | None = None) -> int | None:
    parser = Parser(prog="python -m analysis.report", description="The notebooks as one HTML page.")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "results" / "local" / "report.html")
    options = parser.parse_args(arguments)
    atomic_write(options.out, page(sorted((REPOSITORY / "analysis").glob("*.ipynb"))).encode())
    print(options.out)
    return None


if __name__ == "__main__":
    raise SystemExit(main())
