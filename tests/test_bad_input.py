"""What a person may mistype on any command line: one line that says what was expected, exit status 2, nothing written.

What a configuration alone can get wrong is in the tests of each command; these were found by trying.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from conftest import small_vit
from test_extraction import random_gated

import hiap

COMMANDS = {
    "train": "hiap.train.run",
    "bench": "hiap.bench.run",
    "hiap": "hiap.cli.networks",
    "grid": "slurm.launch_grid",
    "analysis.claims": "analysis.claims.__main__",
    "analysis.report": "analysis.report.__main__",
}
DIGITS = [
    *("method=dense", "data.name=digits", "model.img_size=16", "model.embed_dim=16", "model.depth=1"),
    *("model.num_heads=2", "optim.epochs=1", "run.tensorboard=false", "run.device=cpu", "run.threads=1"),
    "run.results=out",
]
TIMM = [*DIGITS[:3], *DIGITS[6:]]

CASES = [
    # Names that become parts of paths
    ("train", [*DIGITS, 'run.results="a\\0b"'], r"run\.results 'a\\x00b': expected a folder's name"),
    ("train", [*DIGITS, 'run.grid="a\\0b"'], r"run\.grid 'a\\x00b': expected a plain name"),
    ("train", [*DIGITS, "run.grid=../up"], r"run\.grid '\.\./up': expected a plain name, without '/'"),
    ("train", [*DIGITS, "run.grid=/abs"], r"run\.grid '/abs': expected a plain name"),
    ("train", [*DIGITS, "run.grid="], r"run\.grid '': expected a plain name"),
    ("train", [*DIGITS, "run.grid=a/b"], r"run\.grid 'a/b': expected a plain name"),
    ("bench", ["speed", "model=deit_tiny_patch16_224", "name=../x"], r"name '\.\./x': expected a plain name"),
    # Numbers that crash the system's libraries
    ("train", [*DIGITS, "run.threads=1000000000"], r"run\.threads: Input should be less than or equal to 4096"),
    ("train", [*DIGITS, "run.workers=1000000"], r"run\.workers: Input should be less than or equal to 4096"),
    ("bench", ["speed", "threads=1000000000"], "threads: Input should be less than or equal to 4096"),
    # What YAML cannot read
    ("train", [*DIGITS, "run.label=try #2"], r"YAML reads 'try'; put the value into quotes"),
    ("train", [*DIGITS, "optim.lr=2001-13-41"], "'2001-13-41' is not a YAML value"),
    ("train", [*DIGITS, "optim.lr=" + "[" * 5000], "is not a YAML value"),
    ("grid", ["--grid", "nested.yaml"], r"nested\.yaml: not YAML"),
    # Values that YAML takes for others
    ("train", [*DIGITS, "distill.alpha=yes"], r"distill\.alpha: expected no 'yes' or 'no', not True"),
    ("train", [*DIGITS, "optim.epochs=true"], r"optim\.epochs: expected no 'yes' or 'no', not True"),
    ("train", [*DIGITS, "optim.epochs=1:30"], r"optim\.epochs: Input should be a valid integer"),
    ("train", [*DIGITS, "optim=5", "optim.lr=1e-3"], "optim: given both as a value and as a section"),
    ("grid", ["--grid", "twice.yaml"], r"key 'optim\.lr' is given twice, with a dot and in a section"),
    ("grid", ["--grid", "by_seed.yaml"], r"by_seed: 0: run:a: name other runs in 'base' or 'runs'"),
    ("grid", ["--grid", "seeds.yaml"], r"seeds must be a list of some of \[0\], not \[\[0\]\]"),
    ("grid", ["--grid", "circle.yaml"], r"extends: circle\.yaml extends this grid itself"),
    ("train", [*DIGITS, "budget.target_macs=3e9", "method=dense"], r"so budget\.target_macs means nothing"),
    # Pixels of another scale
    ("train", [*TIMM, "data.mean=[123.7,116.3,103.5]"], r"data\.mean: expected numbers of pixels in \[0, 1\]"),
    ("train", [*TIMM, "data.std=[0,0,0]"], r"data\.std: expected numbers of pixels in \[0, 1\]"),
    ("train", [*TIMM, "data.crop_pct=87.5"], r"data\.crop_pct: Input should be less than or equal to 1"),
    # Networks that are none, which left folders or a failed record behind
    ("train", [*DIGITS, "model.weights=emptyfolder"], r"expected architecture\.json and weights\.safetensors"),
    ("train", [*DIGITS, "model.weights=/dev/null"], r"model\.weights '/dev/null'"),
    ("train", [*TIMM, "model.name=resnet18"], r"model\.name 'resnet18': takes no img_size"),
    ("train", [*TIMM, "model.name=swin_tiny_patch4_window7_224", "model.img_size=64"], "SwinTransformer: expected"),
    ("train", [*TIMM, "model.name=vit_tiny_patch16_224.nope"], r"Invalid pretrained tag \(nope\)"),
    ("train", [*DIGITS, "run.accumulate=1000"], "too small for 1000 parts"),
    ("hiap", ["show", "net", "--dense", "resnet18"], "ResNet: expected a Vision Transformer"),
    ("hiap", ["show", "net", "--figure", "net.jpg"], r"net\.jpg: expected a name that ends in \.pdf, \.png, \.svg"),
    ("hiap", ["show", "net", "--figure", "file/net.png"], r"file/net\.png: cannot be written"),
    ("hiap", ["push", "file", "a/b"], "file: no such folder"),
    ("hiap", ["shwo", "net"], "invalid choice: 'shwo'"),
    # Measurements of nothing, found out after the others were taken
    ("bench", ["speed", "batches=[]"], "batches: List should have at least 1 item"),
    ("bench", ["speed", "batches=[0]"], r"batches\.0: Input should be greater than 0"),
    ("bench", ["speed", "topologies=[]"], "topologies: List should have at least 1 item"),
    ("bench", ["speed", "widths=[0]"], r"widths\.0.*: Input should be greater than 0"),
    ("bench", ["speed", "layouts=[]"], "layouts: List should have at least 1 item"),
    ("bench", ["speed", "topologies=[full,random:x]"], "'random:x': expected a seed"),
    ("bench", ["speed", "topologies=[full,uniform@.nan]"], r"uniform@\.nan': expected GMACs"),
    ("bench", ["peer", "gmacs=[3,-1]"], r"gmacs\.1: Input should be greater than 0"),
    ("bench", ["input", "workers=[0,-1]"], r"workers\.1: Input should be greater than or equal to 0"),
    ("bench", ["input", "images=8", "batches=[16]"], r"batches \[16\]: 'input' reads one size, of images 8 or fewer"),
    ("bench", ["speed", "out=file"], "out 'file': cannot write there"),
    # Folders of records that are none, which were made and filled with tables of nothing
    ("analysis.claims", ["--results", "none"], "argument --results: no such folder: 'none'"),
    ("analysis.execute", ["--results", "none"], "argument --results: no such folder: 'none'"),
    ("analysis.paper", ["--results", "emptyfolder", "--out", "out"], "no finished run below emptyfolder/runs"),
    ("analysis.pull", ["--results", "none"], "argument --results: no such folder: 'none'"),
    ("analysis.cite", [], "the following arguments are required: id"),
    ("analysis.report", ["--output", "x"], "unrecognized arguments: --output x"),
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a network, an empty folder, and files that are not what is asked for."""
    hiap.save(hiap.extract(random_gated(small_vit())), tmp_path / "net")
    (tmp_path / "emptyfolder").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "nested.yaml").write_text("[" * 20_000)
    grid = "name: g\nabout: a\npublished: p\nseeds: [0]\n"
    (tmp_path / "twice.yaml").write_text(grid + "base: {optim.lr: 1e-3, optim: {lr: 2e-3}}\nruns: {a: {}}\n")
    (tmp_path / "by_seed.yaml").write_text(grid + "by_seed: {0: {model.weights: run:a}}\nruns: {a: {}, b: {}}\n")
    (tmp_path / "seeds.yaml").write_text(grid + "runs: {a: {seeds: [[0]]}}\n")
    (tmp_path / "circle.yaml").write_text(grid + "extends: round.yaml\nruns: {a: {}}\n")
    (tmp_path / "round.yaml").write_text(grid + "extends: circle.yaml\nruns: {a: {}}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listing(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize(
    ("command", "arguments", "message"), CASES, ids=[f"{c} {' '.join(a[-2:])[:50]}" for c, a, _ in CASES]
)
def test_it_is_one_line_and_nothing_is_written(place, capfd, command, arguments, message):
    before = listing(place)
    assert importlib.import_module(COMMANDS.get(command, command)).main(arguments) == 2
    assert listing(place) == before
    error = capfd.readouterr().err
    assert re.fullmatch(r"error: [^\n]*\n", error), error
    assert re.search(message, error), error
