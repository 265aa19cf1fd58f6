"""Networks for the clock: extracted from a dense one by the shape alone, since time does not depend on the weights.

- 'fig5' ... 'fig9': the last epoch of the paper's digitised heat maps, for backbones of 12 blocks and 6 heads or a
  multiple (heads and neurons in proportion). Heads keep ``width`` value dimensions, or 'mixed' (24 to 64, seed 0).
- 'fig5@3.1': the same heads, the neurons scaled to at most 3.1 GMACs.
- 'uniform@3.1': every head and every FFN keeps the same share, at most 3.1 GMACs.
- 'random:<seed>': heads, mixed widths and neurons at random. 'full': nothing removed.
- a folder of ``hiap.save``.

``multiple`` rounds widths and neurons up, to no more than there are; where MACs are given, it rounds them down.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm
import torch

from hiap import cost, gated_vit, ledger
from hiap.budget.pruner import extract
from hiap.formats import store
from hiap.gated_layers import BlockMask
from hiap.train.config import ConfigError, GateConfig

DEIT_SMALL = (12, 6, 1536)  # blocks, heads and neurons of the network in the heat maps
# Heads and neurons per block at their last epoch, as read off (results/published; a test holds both equal).
LAST_EPOCH = {
    "fig5": (
        (2, 3, 3, 2, 3, 3, 4, 2, 2, 2, 4, 4),
        (1317, 1405, 1359, 1322, 1370, 1471, 1495, 1410, 1248, 1245, 1331, 0),
    ),
    "fig6": (
        (1, 1, 3, 1, 2, 2, 2, 1, 1, 2, 2, 2),
        (1407, 1480, 1458, 1421, 1442, 1511, 1526, 1494, 1479, 1527, 1509, 1508),
    ),
    "fig7": (
        (2, 3, 3, 2, 3, 3, 3, 2, 2, 2, 4, 4),
        (1226, 1340, 1282, 1255, 1341, 1433, 1472, 1362, 1136, 1198, 1245, 0),
    ),
    "fig8": (
        (1, 1, 2, 1, 2, 2, 1, 1, 1, 1, 2, 1),
        (1525, 1536, 1536, 1527, 1528, 1527, 1528, 1528, 1536, 1536, 1536, 1536),
    ),
    "fig9": (
        (6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6),
        (634, 632, 630, 607, 647, 0, 0, 0, 715, 0, 0, 0),
    ),
}

Width = int | Literal["mixed"] | None


def create(name: str) -> Any:
    """Return the dense network: timm's of this name, or the one in a folder of ``hiap.save``."""
    return store.load(name) if Path(name).is_dir() else timm.create_model(name).eval()


def each(
    names: Iterable[str], widths: Iterable[Width], dense: Any, multiple: int, removed: Literal["v", "qkv"]
) -> Iterator[tuple[str, Any]]:
    """Yield every topology by its name; where it leaves the heads' widths open, in each of ``widths``: 'fig5/48'."""
    for name in names:
        for width in widths if takes_width(name) else [None]:
            yield name if width is None else f"{name}/{width}", load(name, width, dense, multiple, removed)


def takes_width(name: str) -> bool:
    """Tell whether the topology leaves the heads' widths open."""
    return name.startswith("fig") and not Path(name).is_dir()


def load(name: str, width: Width, dense: Any, multiple: int = 1, removed: Literal["v", "qkv"] = "v") -> Any:
    """Return the extracted network of a named topology or folder; ``removed``: what a closed dimension takes along
    (A4). Raises ``ConfigError`` for a name that is none, or that does not fit the backbone."""
    if Path(name).is_dir():
        small = store.load(name).eval()
        if (own := cost.image_of(small)) != (images := cost.image_of(dense)):
            raise ConfigError(f"'{name}' takes images of {own}, dense ones of {images}; expected one cut from it")
        return small
    gated = gated_vit.gate(dense, GateConfig(dims=removed))
    dims = cost.dims_of(gated)
    kind, _, gmacs = name.partition("@")
    if kind == "uniform" and gmacs:
        width = _uniform_width(dims, _macs(name, gmacs), multiple)
        heads, neurons = [dims.heads] * dims.depth, [dims.hidden] * dims.depth
    elif kind == "full":
        heads, neurons, width = [dims.heads] * dims.depth, [dims.hidden] * dims.depth, dims.head_dim
    elif kind.startswith("random:"):
        rng = np.random.default_rng(int(kind.removeprefix("random:")))
        heads = rng.integers(1, dims.heads + 1, dims.depth).tolist()
        neurons = rng.integers(dims.hidden // 4, dims.hidden + 1, dims.depth).tolist()
        width = "mixed"
    else:
        heads, neurons = digitised(kind, dims)
    widths = _widths(heads, width)
    if gmacs:
        neurons = _scaled(dims, widths, neurons, _macs(name, gmacs), multiple, removed)
    else:
        widths, neurons = rounded_up(dims, widths, neurons, multiple)
    return extracted(gated, widths, neurons)


def check(names: list[str]) -> None:
    """Raise ``ConfigError`` for what can be told of names without a network."""
    for name in names:
        if Path(name).is_dir():
            continue
        kind, at, gmacs = name.partition("@")
        if at:
            _macs(name, gmacs)
        if kind.startswith("random:") and not kind.removeprefix("random:").isdecimal():
            raise ConfigError(f"topology '{name}': expected a seed behind random:, 0 or more")


def digitised(figure: str, dims: ledger.Dims) -> tuple[list[int], list[int]]:
    """Return heads and neurons per block at the last epoch of one of the paper's Figs. 5-9. Raises ``ConfigError`` for
    another figure or a backbone that it is not of."""
    if figure not in LAST_EPOCH:
        raise ConfigError(
            f"topology '{figure}': expected fig5 ... fig9, fig5@<GMACs>, uniform@<GMACs>, random:<seed>, full, or a "
            "folder of hiap.save"
        )
    depth, heads, neurons = DEIT_SMALL
    if dims.depth != depth or dims.heads % heads:
        raise ConfigError(f"topology '{figure}' is of a DeiT-Small (12 blocks of 6 heads, or a multiple of 6)")
    kept, wide = LAST_EPOCH[figure]
    return [n * (dims.heads // heads) for n in kept], [n * dims.hidden // neurons for n in wide]


def _macs(name: str, gmacs: str) -> float:
    try:
        number = float(gmacs)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ConfigError(f"topology '{name}': expected GMACs behind the @, e.g. fig5@3.1")
    return number * 1e9


def _uniform_width(dims: ledger.Dims, macs: float, multiple: int) -> int:
    """Return the value dimensions of a head at the share that the whole network keeps, in multiples."""
    fixed = ledger.constant_macs(dims)
    share = (macs - fixed) / (ledger.dense_macs(dims) - fixed)
    return max(multiple, int(share * dims.head_dim / multiple) * multiple)


def _widths(heads: list[int], width: Width) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(24, 65, n).tolist() if width == "mixed" else [int(width or 0)] * n for n in heads]


def _scaled(
    dims: ledger.Dims, widths: list[list[int]], neurons: list[int], macs: float, multiple: int, removed: str
) -> list[int]:
    """Return neurons in the given proportion, rounded down to multiples, so that the network has at most ``macs``."""
    n, d = dims.tokens, dims.dim
    qk = [w if removed == "qkv" else [dims.head_dim] * len(w) for w in widths]
    attention = sum(ledger.attention_macs(n, d, q, v) for q, v in zip(qk, widths, strict=True))
    left = macs - ledger.constant_macs(dims) - attention
    if left < 0:
        raise ConfigError(f"{macs / 1e9:.2f} GMACs: attention alone has {(macs - left) / 1e9:.2f} in this topology")
    scale = left / ledger.ffn_macs(n, d, sum(neurons))
    return [min(dims.hidden, int(count * scale) // multiple * multiple) for count in neurons]


def rounded_up(
    dims: ledger.Dims, widths: list[list[int]], neurons: list[int], multiple: int
) -> tuple[list[list[int]], list[int]]:
    """Round widths and neurons up to multiples, to no more than there are."""

    def up(count: int, most: int) -> int:
        return min(most, -(-count // multiple) * multiple)

    return [[up(width, dims.head_dim) for width in block] for block in widths], [up(n, dims.hidden) for n in neurons]


def extracted(gated: Any, widths: list[list[int]], neurons: list[int]) -> Any:
    """Return a network with so many value dimensions of each head and neurons, per block: the first ones, since which
    ones makes no difference to time. All gates of ``gated`` are set."""
    dims, masks = cost.dims_of(gated), []
    for block, count in zip(widths, neurons, strict=True):
        value = torch.zeros(dims.heads, dims.head_dim, dtype=torch.bool)
        for head, width in enumerate(block):
            value[head, :width] = True
        masks.append(BlockMask(value.any(-1), value, torch.tensor(count > 0), torch.arange(dims.hidden) < count))
    gated_vit.set_masks(gated, masks)
    return extract(gated.eval())
