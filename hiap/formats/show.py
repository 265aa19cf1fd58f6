"""What is left of a network, to look at: a table for terminals, a picture for papers and notebooks.

::

    shown = hiap.show("folder", dense="deit_small_patch16_224")   # or of a network in memory
    print(shown)                                                  # the table; in a notebook `shown` is the picture
    shown.save("left.pdf")

The command line has the same: ``hiap show FOLDER --figure left.pdf``.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hiap import cost
from hiap.budget.sizes import BlockShape
from hiap.budget.summary import block_shapes
from hiap.files import atomic_write
from hiap.formats import card, networks, shape, store
from hiap.formats.shape import Dense, Unit
from hiap.gated_layers import is_gated
from hiap.options import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURES = (".pdf", ".png", ".svg")
# The look of this project's figures: the width of a page of two columns, colours that the colour-blind can tell apart,
# and a font that ships with matplotlib.
WIDTH = 6.8  # inches
HEADS, NEURONS, COST, GONE = "#0072B2", "#009E73", "#8c8c8c", "#f1f1f1"
ROOM, DIGIT = 2.7, 3.8  # inches of the heads' panel, points of a digit in it
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 6.5,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7,
    "axes.linewidth": 0.6,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
}


class Shown:
    """View of a network: ``str`` is the table, ``figure`` the picture, which notebooks show by themselves."""

    def __init__(self, model: Any, dense: Dense | None = None):
        self.model, self.dense = model, dense

    def __str__(self) -> str:
        return f"{shape.headline(self.model, self.dense)}\n{shape.table(self.model, self.dense)}"

    def figure(self) -> Figure:
        return figure(self.model, self.dense)

    def save(self, path: str | Path) -> Path:
        """Write the picture, as what the name ends in. Raises ``ConfigError`` for an end that is not in ``PICTURES``,
        and if it cannot be written."""
        path = checked_picture(path)
        try:
            atomic_write(path, _bytes(self.figure(), path.suffix.lower()[1:]))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written ({error.strerror})") from None
        return path

    def _repr_png_(self) -> bytes:
        return _bytes(self.figure(), "png")


def show(network: Any, dense: Any = None) -> Shown:
    """Show what is left of ``network``: one in memory, a folder of ``hiap.save``, or the hub's ``owner/name``.
    ``dense``: what it was pruned from, given likewise or as timm's name; without it a model card's word counts, and
    without a card only what is left is shown. Raises ``StoreError`` or ``ConfigError`` (one line)."""
    model, known = network, None
    if isinstance(network, str | Path):
        folder = store.folder_of(network)
        model, known = store.load(folder), card.dense_of(folder)
    if is_gated(model):
        raise ConfigError("the network still has its gates, and all its units; show what pruner.finish() returns")
    if dense is not None:
        known = Dense.of(_network(dense, model))
    if known is not None:
        shape.require_fit(known, model, "dense" if dense is not None else "the model card's dense network")
    return Shown(model, known)


def _network(given: Any, small: Any) -> Any:
    """Return a network in memory as it is; a name is a folder's, the hub's, or timm's for a network without weights,
    for the images and classes of ``small``."""
    if not isinstance(given, str | Path):
        return given
    import timm
    import torch

    if Path(given).is_dir() or not timm.is_model(str(given)):
        return networks.load(str(given))
    channels, *sides = cost.image_of(small)
    own = {"in_chans": channels, "num_classes": small.num_classes}
    with torch.device("meta"):
        try:
            return timm.create_model(str(given), img_size=tuple(sides), **own)
        except TypeError:  # it has one size
            return timm.create_model(str(given), **own)


def checked_picture(path: str | Path) -> Path:
    """Return the path of a picture, checked before anything is drawn. Raises ``ConfigError`` for an ending that is
    none."""
    path = Path(path)
    if path.suffix.lower() not in PICTURES:
        raise ConfigError(f"{path}: expected a name that ends in {', '.join(PICTURES)}")
    if path.is_dir():
        raise ConfigError(f"{path}: is a folder; expected the name of a picture")
    return path


def figure(model: Any, dense: Dense | None = None) -> Figure:
    """Draw a row a block, the first on top: heads filled as far as their value dimensions are left, neurons, MACs and
    parameters; pale where the dense network has more, if that is known."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    blocks = block_shapes(model)
    with rc_context(STYLE):
        fig = Figure(figsize=(WIDTH, 0.85 + 0.135 * max(len(blocks), 4)), layout="constrained")
        axes = fig.subplots(1, 4, sharey=True, width_ratios=[2.4, 1, 1, 1])
        fig.suptitle(shape.headline(model, dense), fontsize=STYLE["axes.titlesize"])
        _heads(axes[0], blocks, dense)
        full = (None,) * 3 if dense is None else (dense.neurons, dense.block_macs, dense.block_params)
        _bars(axes[1], [b.neurons for b in blocks], full[0], "FFN neurons", NEURONS)
        _bars(axes[2], [b.macs for b in blocks], full[1], "MACs", COST)
        _bars(axes[3], [b.params for b in blocks], full[2], "Parameters", COST)
        axes[0].set(ylabel="Block", yticks=range(len(blocks)), ylim=(len(blocks) - 0.4, -0.6))
        fig.draw_without_rendering()  # while the style holds
    return fig


def _heads(ax: Axes, blocks: list[BlockShape], dense: Dense | None) -> None:
    """Draw a cell a head, as wide as the dense head; dimensions that are left, in colour, from its left edge."""
    heads = dense.heads if dense else max((b.heads for b in blocks), default=1) or 1
    width = dense.head_dim if dense else max((d for b in blocks for d in b.head_dims), default=1)
    left = sum(b.heads for b in blocks)
    of = f" of {heads * len(blocks)}" if dense else ""
    ax.set_title(f"{left}{of} heads, and the value dimensions of each", loc="left")
    for i, block in enumerate(blocks):
        if dense:
            ax.barh([i] * heads, 0.9, left=range(heads), height=0.72, color=GONE)
        shares = [0.9 * d / width for d in block.head_dims]
        ax.barh([i] * len(shares), shares, left=range(len(shares)), height=0.72, color=HEADS)
        for x, (share, number) in enumerate(zip(shares, map(str, block.head_dims), strict=True)):
            room = 72 * ROOM / heads
            if share * room > DIGIT * len(number):
                ax.text(x + share / 2, i, number, va="center", ha="center", fontsize=5.5, color="white")
            elif (0.95 - share) * room > DIGIT * len(number):
                ax.text(x + share + 0.03, i, number, va="center", ha="left", fontsize=5.5)
    ax.set(xlim=(-0.05, heads - 0.05), xticks=[])
    ax.set_xlabel(f"a cell: {width} dimensions; pale: removed" if dense else f"a cell: {width} dimensions")
    _bare(ax)


def _bars(ax: Axes, values: list[int], full: int | None, title: str, colour: str) -> None:
    most = full or max(values) or 1
    unit = Unit.of(most) if colour == COST else Unit("", 1, 0)
    if full:
        ax.barh(range(len(values)), full, height=0.72, color=GONE)
    ax.barh(range(len(values)), values, height=0.72, color=colour)
    for i, value in enumerate(values):
        ax.text(1.04 * most, i, unit.text(value), va="center", ha="left", fontsize=5.5)
    ax.set_title(f"{title} ({unit.name})" if unit.name else title, loc="left")
    ax.set(xlim=(0, 1.4 * most), xticks=[0, most], xticklabels=["0", unit.text(most)])
    _bare(ax)


def _bare(ax: Axes) -> None:
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", length=2)


def _bytes(figure: Figure, kind: str) -> bytes:
    """Return the same bytes whenever it is drawn."""
    from matplotlib import rc_context

    undated: dict[str, Any] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind, {})
    stream = io.BytesIO()
    with rc_context({**STYLE, "svg.hashsalt": "hiap"}):
        figure.savefig(stream, format=kind, dpi=300, metadata=undated)
    return stream.getvalue()
