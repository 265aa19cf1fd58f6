"""Our report: the numbers, tables and rules of ``paper/paper.tex``; ``python -m analysis.report`` is the HTML page."""
