"""``hiap plot``: any grid, in the reader's own style, few seeds as points."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from analysis import plot
from analysis.records.results import Results
from hiap.cli import main
from hiap.train.config import ConfigError

ROOT = Path(__file__).parents[1]


def runs(seeds: int) -> pd.DataFrame:
    rows = [
        {"label": label, "method": method, "seed": seed, "top1": top1 + seed / 10, "macs": macs, "target": target,
         "data": "digits", "measure": "test", "budget": f"macs {target}" if target else ""}
        for label, method, top1, macs, target in (
            ("dense", "dense", 90.0, 2e6, None), ("hiap-50", "hiap", 88.0, 1e6, 0.5), ("mine", "mine", 87.0, 1e6, 0.5))
        for seed in range(seeds)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("seeds", "intervals"), [(2, 0), (5, 3)])
def test_few_seeds_are_points_and_many_have_intervals(seeds, intervals):
    figure, data = plot.pareto(runs(seeds))
    assert len(figure.axes[0].collections) == intervals
    assert data["low"].notna().sum() == intervals
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "."]
    assert sum(len(line.get_xdata()) for line in dots) == (0 if intervals else 3 * seeds)


def test_differences_are_paired_by_seed_and_the_reference_can_be_chosen():
    _, data = plot.forest(runs(5), None)
    assert list(data["label"]) == ["mine"]
    assert data["mean"].iloc[0] == pytest.approx(-1)
    _, data = plot.forest(runs(2), "mine")
    assert dict(zip(data["label"], data["mean"], strict=True)) == {"hiap-50": pytest.approx(1)}
    assert plot.forest(runs(2)[lambda r: r["method"] == "dense"], None) is None


def test_a_method_of_ones_own_has_a_colour_of_the_readers_cycle():
    marks = plot.looks(runs(1))
    assert marks["mine"]["color"] not in (marks["hiap-50"]["color"], "#8c8c8c")


def test_a_grid_by_name_by_file_and_by_folder(tmp_path, capsys):
    for given in ("laptop", str(ROOT / "slurm/grids/laptop.yaml"), str(ROOT / "results/runs/laptop")):
        results, name = plot.find(given, None if given.endswith("laptop") and "/" in given else ROOT / "results")
        assert (results.root.resolve(), name) == (ROOT / "results", "laptop")
    with pytest.raises(ConfigError, match=r"no records of grid 'laptoop'.*did you mean 'laptop'"):
        plot.find("laptoop", ROOT / "results")
    assert main(["plot", "laptop", "--results", str(ROOT / "results"), "--out", str(tmp_path)]) == 0
    written = {path.name for path in tmp_path.iterdir()}
    assert {f"{name}.{kind}" for name in ("pareto", "forest") for kind in ("png", "pdf", "csv")} <= written
    assert any(name.startswith("gates_hiap-") for name in written)
    assert main(["plot", "laptop", "--results", str(ROOT / "results"), "--against", "hipa"]) == 2
    assert main(["plot", "laptop", "--results", str(ROOT / "results"), "--style", "no such style"]) == 2
    assert capsys.readouterr().err.count("error: ") == 2


def test_importing_our_figures_changes_nothing_of_the_readers():
    code = (
        "import matplotlib; matplotlib.rcParams['font.size'] = 13; before = dict(matplotlib.rcParams)\n"
        "import analysis.plot\n"
        "from analysis.figures import accuracy, costs, gates, heat_maps, intervals, method, style\n"
        "assert dict(matplotlib.rcParams) == before"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_our_own_figures_are_drawn_in_our_style():
    from analysis.figures import gates
    from analysis.figures.style import STYLE
    from analysis.findings import gates as found

    rows = Results(ROOT / "results")
    assert rows.root.is_dir()
    figure = gates.fig2(found.densities()) if hasattr(found, "densities") else None
    assert figure is None or figure.axes[0].xaxis.label.get_size() == STYLE["axes.labelsize"]  # type: ignore[attr-defined]
