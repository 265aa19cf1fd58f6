"""`hiap show`: what is left per block, as a table of 80 columns and as a picture, beside the dense network."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from conftest import small_vit
from test_extraction import random_gated

import hiap
from hiap.budget.sizes import BlockShape
from hiap.budget.summary import block_shapes
from hiap.cli.networks import main
from hiap.formats import shape
from hiap.formats.show import PICTURES, Shown
from hiap.formats.store import StoreError
from hiap.options import ConfigError

DEIT = "deit_tiny_patch16_224"


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    """A folder of a network that was pruned from ``small_vit``, with a card that says so."""
    dense = small_vit()
    hiap.save(hiap.extract(random_gated(dense)), tmp_path / "net", card={"dense": dense})
    return tmp_path / "net"


def rows(text: str) -> dict[str, list[str]]:
    return {words[0]: words[1:] for words in map(str.split, text.splitlines()) if len(words) > 2}


def test_the_rows_add_up_to_the_network(pruned):
    shown = hiap.show(pruned)
    model, table = hiap.load(pruned), rows(str(shown))
    blocks = block_shapes(model)
    stem = 16 * 16 * 32 + 32 * 10  # patch embedding and classifier
    assert sum(b.macs for b in blocks) == hiap.macs(model, (1, 16, 16)) - stem
    outside = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("blocks."))
    assert sum(b.params for b in blocks) == hiap.params(model) - outside
    for i, block in enumerate(blocks):
        assert table[str(i)][0] == f"{block.heads}/4"
        assert f"{block.neurons}/128" in table[str(i)]
    assert table["all"][:3] == [
        f"{sum(b.heads for b in blocks)}/12",
        f"{sum(b.value_dims for b in blocks)}/96",
        f"{sum(b.neurons for b in blocks)}/384",
    ]


def test_the_dense_network_is_the_cards_or_the_given_one_and_never_a_guess(pruned):
    assert "of 690.7 k MACs" in str(hiap.show(pruned))
    (pruned / "README.md").unlink()
    assert "/" not in str(hiap.show(pruned)).replace("params/", "")
    assert str(hiap.show(pruned, dense=small_vit())) == str(Shown(hiap.load(pruned), shape.Dense.of(small_vit())))


@pytest.mark.parametrize(
    ("name", "depth", "heads"), [(DEIT, 12, 3), ("vit_large_patch16_224", 24, 16), ("vit_giant_patch14_224", 40, 16)]
)
def test_every_line_fits_a_terminal(name, depth, heads):
    """Heads of as many widths as there can be; sizes of networks on the meta device."""
    with torch.device("meta"):
        dense = timm.create_model(name)
    block = shape.Dense.of(dense)
    dims, half = tuple(range(64, 64 - heads, -1)), {"macs": block.block_macs // 2, "params": block.block_params // 2}
    odd = BlockShape(head_dims=dims, neurons=777, **half)
    text = shape.table_of([odd] * depth, block.macs // 2, block.params // 2, block)
    assert max(map(len, text.splitlines())) <= shape.COLUMNS
    written = " ".join(text.split())
    assert all(str(d) in written for d in odd.head_dims), "a broken cell loses nothing"


def test_numbers_have_four_digits_and_a_unit():
    shown = [shape.quantity(n) for n in (0, 12, 999, 1234, 12_345, 4_598_882_304, 9.9999e14)]
    assert shown == ["0", "12", "999", "1.234 k", "12.35 k", "4.599 G", "1000 T"]


@pytest.mark.parametrize("end", PICTURES)
def test_the_picture_is_written_in_each_form_and_the_same_twice(pruned, tmp_path, end):
    shown = hiap.show(pruned)
    first, second = (shown.save(tmp_path / f"{name}{end}").read_bytes() for name in ("a", "b"))
    assert first == second
    assert {".pdf": b"%PDF", ".png": b"\x89PNG", ".svg": b"<?xml"}[end] == first[: 5 if end == ".svg" else 4]


def test_a_notebook_shows_the_picture_and_a_branch_that_is_gone_is_drawn(pruned):
    model = hiap.load(pruned)
    model.blocks[1].attn = None
    shown = Shown(model, shape.Dense.of(small_vit()))
    assert shown._repr_png_()[1:4] == b"PNG"
    assert rows(str(shown))["1"][:2] == ["0/4", "-"]
    panels = shown.figure().axes
    assert [len(panels[0].patches), len(panels[1].patches)] == [
        12 + sum(b.heads for b in block_shapes(model)),
        6,
    ]


def test_the_command_prints_the_table_and_the_pictures_name(pruned, tmp_path, capsys):
    picture = tmp_path / "left.png"
    assert main(["show", str(pruned), "--figure", str(picture)]) == 0
    assert capsys.readouterr().out == f"{hiap.show(pruned)}\n{picture}\n"
    assert picture.read_bytes()[1:4] == b"PNG"


def test_a_dense_network_that_is_none_is_one_line(pruned, tmp_path, capsys):
    hiap.save(small_vit(depth=2), tmp_path / "two")
    for dense, message in (
        (str(pruned), "expected the network before pruning"),
        (str(tmp_path / "two"), "2 blocks, but the network has 3"),
        (str(tmp_path / "none"), "no such folder; expected architecture.json"),
    ):
        assert main(["show", str(pruned), "--dense", dense]) == 2
        out, error = capsys.readouterr()
        assert not out
        assert re.fullmatch(r"error: .*\n", error)
        assert message in error
    with pytest.raises(StoreError, match="expected architecture"):
        hiap.show(tmp_path / "none")


def test_the_dense_network_is_for_images_of_the_same_size(tmp_path):
    """A name of timm's is built for them and their classes; MACs of another network say nothing of these."""
    small = timm.create_model(DEIT, img_size=64, num_classes=10)
    assert "(100.0%)" in str(hiap.show(small, dense=DEIT))
    with pytest.raises(ConfigError, match="is for images of 3 x 224 x 224, the network for 3 x 64 x 64"):
        hiap.show(small, dense=timm.create_model(DEIT))


def test_looking_needs_no_plotting_library(pruned):
    code = (
        "import sys, hiap.cli.networks; hiap.cli.networks.main(sys.argv[1:]);"
        "bad = {'matplotlib', 'pandas', 'seaborn', 'analysis'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code, "show", str(pruned)], check=True, stdout=subprocess.DEVNULL)
