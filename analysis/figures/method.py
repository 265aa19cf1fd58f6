"""A picture of the method (the place of the paper's Fig. 1), drawn from gates that are drawn at random."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from analysis.figures.style import Ink, styled, wide

HEADS, DIMS, NEURONS = 6, 8, 26
OPEN, MACRO, CLOSED = Ink.BLUE, Ink.ORANGE, "#ffffff"
TOP, BOTTOM, HEIGHT = 0.62, 0.12, 0.26  # of the two rows: heads above, neurons below


class Unit(NamedTuple):
    """A part with a macro gate of probability ``macro``, whose pieces have micro gates ``micro`` (n,)."""

    name: str
    macro: float
    micro: np.ndarray


def example(seed: int = 3) -> list[Unit]:
    """The heads and the FFN of one block in the middle of training: probabilities that gates are open."""
    rng = np.random.default_rng(seed)

    def drawn(n: int) -> np.ndarray:
        return 1 / (1 + np.exp(-rng.normal(0.4, 2.2, n)))

    macro = [0.95, 0.15, 0.9, 0.85, 0.1, 0.92]
    return [*(Unit("head", p, drawn(DIMS)) for p in macro), Unit("FFN", 0.97, drawn(NEURONS))]


def data(units: list[Unit]) -> pd.DataFrame:
    """What is drawn: ``unit``, ``piece``, ``macro`` and ``micro`` probabilities, ``kept`` after hardening at 1/2."""
    rows = [
        {"unit": i, "name": u.name, "piece": j, "macro": u.macro, "micro": p, "kept": u.macro > 0.5 and p > 0.5}
        for i, u in enumerate(units)
        for j, p in enumerate(u.micro)
    ]
    return pd.DataFrame(rows)


def method(units: list[Unit]) -> Figure:
    """Three panels: gates trained with the weights, thresholded, removed."""
    fig, axes = wide(2.3, 1, 3)
    hard = [Unit(u.name, float(u.macro > 0.5), (u.micro > 0.5).astype(float)) for u in units]
    small = [Unit(u.name, 1.0, u.micro[u.micro > 0.5]) for u in hard if u.macro > 0.5]
    titles = {
        "1  train weights and gates together": "colour: probability that a gate is open",
        "2  threshold the gates at 1/2": "a closed macro gate (circle) closes all below it",
        "3  remove what is closed": "the same function, fewer multiply-adds",
    }
    for ax, shown, (title, note) in zip(axes, (units, hard, small), titles.items(), strict=True):
        _block(ax, shown, gates=title[0] != "3")
        ax.text(0, 0.0, note, fontsize=6, color="#555555")
        ax.set_title(title, loc="left", fontweight="bold")
        ax.set(xlim=(-0.005, 1.005), ylim=(0, 1), aspect="auto")
        ax.axis("off")
    return fig


def _block(ax: Axes, units: list[Unit], gates: bool) -> None:
    heads, ffn = [u for u in units if u.name == "head"], next(u for u in units if u.name == "FFN")
    ax.text(0, TOP + HEIGHT + (0.09 if gates else 0.02), "attention heads, value dimensions", fontsize=6.5)
    ax.text(0, BOTTOM + HEIGHT + (0.09 if gates else 0.02), "FFN, neurons", fontsize=6.5)
    pitch = 1 / (HEADS * (DIMS + 2))  # one bar, in both rows, so that widths can be compared
    left = 0.0
    for head in heads:
        left = _unit(ax, head, left, TOP, pitch, gates) + pitch
    _unit(ax, ffn, 0.0, BOTTOM, pitch * (HEADS * (DIMS + 2) - 2) / (NEURONS + 1), gates)


def _unit(ax: Axes, unit: Unit, left: float, bottom: float, pitch: float, gates: bool) -> float:
    """Draw one unit from ``left``; returns where it ends."""
    width = pitch * (len(unit.micro) + 1)
    edge = "#444444" if unit.macro > 0.5 else "#bbbbbb"
    box = FancyBboxPatch((left, bottom), width, HEIGHT, boxstyle="round,pad=0,rounding_size=0.012", fc="none", ec=edge)
    box.set_linewidth(0.7)
    ax.add_patch(box)
    for i, p in enumerate(unit.micro):
        shown = p * (unit.macro if unit.macro in (0.0, 1.0) else 1)
        place, height = (left + (0.7 + i) * pitch, bottom + 0.03), HEIGHT - 0.06
        ax.add_patch(Rectangle(place, 0.62 * pitch, height, fc=_mix(OPEN, shown), ec="#9fb8c8", lw=0.3))
    if gates:
        face = _mix(MACRO, unit.macro)
        ax.plot(left + width / 2, bottom + HEIGHT + 0.035, "o", ms=5, mfc=face, mec="#8a6100", mew=0.5)
    return left + width


def _mix(colour: str, share: float) -> Iterable[float]:
    """From white at 0 to ``colour`` at 1."""
    strong, white = np.array(to_rgb(colour)), np.array(to_rgb(CLOSED))
    return tuple(white + share * (strong - white))


styled(globals())
