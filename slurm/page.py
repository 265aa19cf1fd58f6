"""The status page: one HTML file beside the logs of a grid, rewritten while its runs go on, for those who would rather
look. It needs no server and loads nothing; a browser reads it again by itself."""

from __future__ import annotations

import time
from collections import Counter
from html import escape
from pathlib import Path

from hiap.files import atomic_write
from hiap.train.record import now, read_status
from slurm.report import Progress, duration, finished_summary, name

EVERY_S = 30.0
COLOURS = {"finished": "#2a7f4f", "running": "#3b6fb6", "waiting": "#c9ccd1", "failed": "#c0392b", "not run": "#d98c2b"}
WIDTH, HEIGHT = 720, 120
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="{every}"><title>{title}: {done}</title>
<style>
body {{ font: 15px/1.4 sans-serif; margin: 2em auto; max-width: 60em; color: #222 }}
table {{ border-collapse: collapse; width: 100% }} td, th {{ text-align: left; padding: .2em .6em }}
tr:nth-child(even) {{ background: #f5f6f7 }} .bar {{ background: #e4e6e9; width: 12em; height: .8em }}
.bar div {{ height: 100% }}
</style></head><body>
<h1>{title}</h1><p>{done}. {eta} Written {written}.</p>
{picture}
{failures}
<table><tr><th>run</th><th>state</th><th>progress</th><th></th><th>to go</th><th>node</th></tr>
{rows}
</table></body></html>
"""


class Page:
    """Page that is written to ``file`` now and then; ``show`` has the interface of ``report.Screen``."""

    def __init__(self, file: Path, title: str):
        self.file, self.title = file, title
        self.written_at = float("-inf")

    def show(self, progress: list[Progress]) -> None:
        over = not any(p.state in ("waiting", "running") for p in progress)
        if over or time.monotonic() - self.written_at > EVERY_S:
            self.written_at = time.monotonic()
            atomic_write(self.file, html(self.title, progress).encode())


def html(title: str, progress: list[Progress]) -> str:
    """Return the page."""
    counts = Counter[str](p.state for p in progress)
    failures = [f"<li><b>{escape(name(p.run))}</b> {escape(p.note)}</li>" for p in progress if p.state == "failed"]
    return PAGE.format(
        every=round(EVERY_S),
        title=escape(title),
        done=", ".join(f"{counts[state]} {state}" for state in COLOURS if counts[state]),
        eta=_eta(progress),
        written=now(),
        picture=f"{_bar(counts)}{_curve(progress)}",
        failures=f"<h2>Failed</h2><ul>{''.join(failures)}</ul>" if failures else "",
        rows="\n".join(map(_row, progress)),
    )


def _eta(progress: list[Progress]) -> str:
    """Estimate the time to go as if what remains took as long as what is finished, as many at once as now."""
    took = [sum(s.seconds for s in finished_summary(p.run.folders.record).stages) for p in progress if _finished(p)]
    left = sum(p.state in ("waiting", "running") for p in progress)
    running = sum(p.state == "running" and "epoch" in read_status(p.run.folders) for p in progress)
    if not took or not left or not running:
        return ""
    return f"About {duration(left * sum(took) / len(took) / running)} to go, if the rest are like the finished ones."


def _finished(p: Progress) -> bool:
    return p.state == "finished" and p.run.folders.record.exists()


def _bar(counts: Counter[str]) -> str:
    """Draw how many are in which state."""
    x, parts, total = 0.0, [], sum(counts.values()) or 1
    for state, colour in COLOURS.items():
        width = WIDTH * counts[state] / total
        shape = f'x="{x:.1f}" width="{width:.1f}" height="18" fill="{colour}"'
        parts.append(f"<rect {shape}><title>{counts[state]} {state}</title></rect>")
        x += width
    return f'<svg width="{WIDTH}" height="18" role="img" aria-label="states">{"".join(parts)}</svg>'


def _curve(progress: list[Progress]) -> str:
    """Draw finished runs over time."""
    times = sorted(p.run.folders.record.stat().st_mtime for p in progress if _finished(p))
    if len(times) < 2:
        return ""
    span = max(1.0, time.time() - times[0])
    right, up = WIDTH / span, HEIGHT / len(progress)
    points = [f"{right * (t - times[0]):.1f},{HEIGHT - up * i:.1f}" for i, t in enumerate(times, 1)]
    line = f'<polyline points="{" ".join(points)}" fill="none" stroke="{COLOURS["finished"]}" stroke-width="2"/>'
    caption = f"finished runs, of {len(progress)}, in {duration(span)}"
    return f'<p><svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{caption}">{line}</svg><br>{caption}</p>'


def _row(p: Progress) -> str:
    status = read_status(p.run.folders) if p.state == "running" else {}
    share = 1.0 if p.state == "finished" else status.get("epoch", 0) / max(1, status.get("epochs", 1))
    text = f"epoch {status['epoch']}/{status['epochs']}" if "epoch" in status else p.note
    if _finished(p):
        text = f"top-1 {finished_summary(p.run.folders.record).top1} %"
    bar = f'<div class="bar"><div style="width: {share:.0%}; background: {COLOURS[p.state]}"></div></div>'
    to_go = duration(status["eta_s"]) if "eta_s" in status else ""
    cells = [escape(name(p.run)), p.state, bar, escape(text), to_go, escape(status.get("node", ""))]
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
