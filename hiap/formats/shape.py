"""What is left of a network, block by block, as text for a terminal of 80 columns, beside the dense network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from pydantic import PositiveInt

from hiap import cost
from hiap.backbones.pruned import runs
from hiap.budget.sizes import BlockShape
from hiap.budget.summary import block_shapes
from hiap.options import ConfigError, Section

COLUMNS = 80
LEAST = 12  # characters for the dimensions of a block's heads, however wide the other columns are
SHARE = " " * 5  # where a row has no ' 50%'
UNITS = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))


class Dense(Section):
    """The network that another one was pruned from: sizes of one of its ``depth`` equal blocks, and of all of it, for
    one ``image`` (channels, height, width; None in older cards)."""

    depth: PositiveInt
    heads: PositiveInt
    head_dim: PositiveInt
    neurons: PositiveInt
    block_macs: PositiveInt
    block_params: PositiveInt
    macs: PositiveInt
    params: PositiveInt
    image: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None

    @classmethod
    def of(cls, model: Any) -> Dense:
        """Read a dense network off ``model``. Raises ``ConfigError`` if it is none: pruned blocks differ."""
        try:
            macs, blocks = total_macs(model), block_shapes(model)
        except (AttributeError, ValueError):
            raise ConfigError(f"dense: {type(model).__name__}: expected a Vision Transformer of timm's") from None
        first = blocks[0] if blocks else None
        if (
            first is None
            or not (first.head_dims and first.neurons)
            or len({*blocks}) > 1
            or len({*first.head_dims}) > 1
        ):
            raise ConfigError("dense: expected the network before pruning, whose blocks are alike")
        return cls(
            depth=len(blocks),
            heads=first.heads,
            head_dim=first.head_dims[0],
            neurons=first.neurons,
            block_macs=first.macs,
            block_params=first.params,
            macs=macs,
            params=cost.params(model),
            image=cost.image_of(model),
        )

    def block(self) -> BlockShape:
        return _shape((self.head_dim,) * self.heads, self.neurons, self.block_macs, self.block_params)

    def whole(self) -> BlockShape:
        dims = (self.head_dim,) * (self.heads * self.depth)
        return _shape(dims, self.neurons * self.depth, self.macs, self.params)


def _shape(dims: tuple[int, ...], neurons: int, macs: int, params: int) -> BlockShape:
    return BlockShape(head_dims=dims, neurons=neurons, macs=macs, params=params)


def total_macs(model: Any) -> int:
    """MACs of one image of the network's own size."""
    return cost.macs(model, cost.image_of(model))


def require_fit(dense: Dense, model: Any, source: str) -> None:
    """Raise ``ConfigError`` naming ``source`` if ``model`` cannot be what is left of ``dense``, or if their MACs do not
    compare: other images."""
    blocks, own = block_shapes(model), cost.image_of(model)
    if dense.image and dense.image != own:
        theirs, ours = (" x ".join(map(str, image)) for image in (dense.image, own))
        raise ConfigError(f"{source}: is for images of {theirs}, the network for {ours}: MACs do not compare")
    if len(blocks) != dense.depth:
        raise ConfigError(f"{source}: {dense.depth} blocks, but the network has {len(blocks)}; expected its dense one")
    for i, block in enumerate(blocks):
        widest = max(block.head_dims, default=0)
        if block.heads > dense.heads or widest > dense.head_dim or block.neurons > dense.neurons:
            raise ConfigError(f"{source}: smaller than the network in block {i}; expected the one it was pruned from")


def headline(model: Any, dense: Dense | None) -> str:
    """Return one line: MACs and parameters in all, of dense where that is known."""
    macs, params = total_macs(model), cost.params(model)
    if dense is None:
        return f"{quantity(macs)} MACs, {quantity(params)} parameters"
    return (
        f"{quantity(macs)} of {quantity(dense.macs)} MACs ({macs / dense.macs:.1%}), "
        f"{quantity(params)} of {quantity(dense.params)} parameters ({params / dense.params:.1%})"
    )


def quantity(number: float) -> str:
    """Four digits and a unit: '4.608 G'."""
    unit = Unit.of(number)
    return f"{unit.text(number)} {unit.name}".rstrip()


class Unit(NamedTuple):
    """Unit that numbers of about one size are shown in: '', k, M, G or T."""

    name: str
    scale: float
    digits: int

    @classmethod
    def of(cls, largest: float) -> Unit:
        """Choose the unit such that the largest number has four digits."""
        name, scale = next(((n, s) for n, s in UNITS if largest >= s), ("", 1.0))
        return cls(name, scale, max(0, 4 - len(f"{largest / scale:.0f}")) if name else 0)

    def text(self, number: float) -> str:
        return f"{number / self.scale:.{self.digits}f}"


def table(model: Any, dense: Dense | None = None) -> str:
    """Return a table: one row per block, what no block holds, and all. 'heads 4/6': four of six; 'dims 2x64 40': two
    heads keep 64 value dimensions and one keeps 40; per cent are of the dense network's."""
    return table_of(block_shapes(model), total_macs(model), cost.params(model), dense)


def table_of(blocks: list[BlockShape], macs: int, params: int, dense: Dense | None) -> str:
    """Return the table of sizes; ``macs`` and ``params`` are the whole network's."""
    units = [Unit.of(max(b.macs for b in blocks)), Unit.of(max(b.params for b in blocks))]
    rows = [_row(str(i), block, dense.block() if dense else None, units) for i, block in enumerate(blocks)]
    rest = (macs - sum(b.macs for b in blocks), params - sum(b.params for b in blocks))
    shares = SHARE if dense else ""
    rows.append(["rest", "", "", "", *(unit.text(value) + shares for unit, value in zip(units, rest, strict=True))])
    dims = tuple(d for b in blocks for d in b.head_dims)
    whole = _shape(dims, sum(b.neurons for b in blocks), macs, params)
    rows.append(_row("all", whole, dense.whole() if dense else None, units))
    rows[-1][2] = f"{sum(dims)}/{sum(dense.whole().head_dims)}" if dense else str(sum(dims))
    names = [f"{unit.name} {name}".strip() for unit, name in zip(units, ("MACs", "params"), strict=True)]
    return _laid_out([["block", "heads", "value dims per head", "neurons", *names], *rows])


def _row(name: str, block: BlockShape, full: BlockShape | None, units: list[Unit]) -> list[str]:
    """Cells of one block, or of all, beside the dense one's."""
    heads, neurons = str(block.heads), str(block.neurons)
    macs, params = units[0].text(block.macs), units[1].text(block.params)
    if full:
        heads, neurons = f"{heads}/{full.heads}", f"{neurons}/{full.neurons}"
        macs, params = f"{macs} {block.macs / full.macs:4.0%}", f"{params} {block.params / full.params:4.0%}"
    return [name, heads, _widths(block.head_dims), neurons, macs, params]


def _widths(dims: Iterable[int]) -> str:
    """Write (64, 64, 40) as '2x64 40'; nothing left as '-'."""
    return " ".join(f"{n}x{width}" if n > 1 else str(width) for n, width in runs(dims)) or "-"


def _laid_out(rows: list[list[str]]) -> str:
    """Columns flush right but for the heads' dimensions, whose cell is broken where it is too long; rules as in print,
    before the first block and after the last."""
    wide = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    room = max(COLUMNS - sum(wide) + wide[2] - 2 * (len(wide) - 1), LEAST)
    wide[2] = min(wide[2], room)
    lines = []
    for row in rows:
        first, *more = _broken(row[2], wide[2])
        cells = [cell.rjust(width) for cell, width in zip(row, wide, strict=True)]
        cells[2] = first.ljust(wide[2])
        lines.append("  ".join(cells).rstrip())
        lines += [" " * (wide[0] + wide[1] + 4) + line for line in more]
    rule = "-" * max(map(len, lines))
    return "\n".join([rule, lines[0], rule, *lines[1:-2], rule, *lines[-2:], rule])


def _broken(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
