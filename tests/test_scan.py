"""The paper's rule: its reading, and its accuracy read between two strengths; and the frontier against training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from test_evidence import few, put  # noqa: F401

from analysis.records import published
from analysis.records.results import Results
from analysis.studies import calibrate, frontier, scan
from hiap.train.record import Folders, write


def scanned() -> pd.DataFrame:
    rows = [("faithful-x0.5", 0.8, 76.0), ("faithful-x1", 0.6, 72.0), ("faithful-x2", 0.4, 60.0)]
    made = [(label, seed, share, top1 + seed) for seed in range(3) for label, share, top1 in rows]
    made += [("hiap-50", seed, 0.5, 70.0 + seed) for seed in range(3)]
    runs = pd.DataFrame(made, columns=["label", "seed", "macs_share", "top1"])
    return runs.assign(heads=20, neurons=9000, train_macs=35e12, hits=None)


def test_accuracy_is_read_between_its_neighbours_and_nowhere_else() -> None:
    points = scan.curve(scanned())
    assert scan.at(points, 0.5).to_dict() == {0: 66.0, 1: 67.0, 2: 68.0}
    assert scan.at(points, 0.7)[0] == pytest.approx(74.0)
    assert scan.at(points, 0.35).empty
    assert scan.at(points, 0.9).empty


def test_differences_are_by_seed_and_missing_targets_have_no_row() -> None:
    rows = scan.at_targets(scanned()).set_index("target")
    assert list(rows.index) == [0.67, 0.5]
    assert rows.loc[0.5, "difference"] == pytest.approx(-4.0)
    assert np.isnan(rows.loc[0.67, "difference"])
    assert rows.loc[0.5, "low"] < rows.loc[0.5, "top1"] < rows.loc[0.5, "high"]


def test_a_scan_that_does_not_pass_its_ends_is_extended_as_the_protocol_says() -> None:
    assert scan.to_add(scan.curve(scanned())) == [4.0]
    short = scanned()
    assert scan.to_add(scan.curve(short[short["macs_share"] < 0.7])) == [4.0, 0.5]
    assert scan.to_add(scan.curve(short[:0])) == []


def test_strengths_stand_in_one_table_and_beside_what_has_a_target(tmp_path: Path) -> None:
    assert "--grid cifar10_first" in scan.table(Results(tmp_path)), "nothing yet"
    put(tmp_path, "dense", "dense", 3, 90, grid=scan.GRID)
    for seed in (3, 4):
        put(tmp_path, "hiap-50", "hiap", seed, 80, grid=scan.GRID, budget={"target_macs": 0.5})
    for factor, share, level in ((0.5, 0.7, 85), (2, 0.3, 65)):
        penalty = {"lambda_macro": scan.MACRO * factor, "lambda_micro": scan.MICRO * factor}
        put(tmp_path, f"faithful-x{factor:g}", "hiap", 3, level, grid=scan.GRID, penalty=penalty)
        (record,) = (r for r in Results(tmp_path).finished(scan.GRID) if r.label == f"faithful-x{factor:g}")
        assert record.size
        size = record.size.model_copy(update={"macs": int(share * record.size.dense_macs)})
        write(record.model_copy(update={"size": size}), Folders(tmp_path, scan.GRID, record.run_id))
    rows = scan.beside(Results(tmp_path))
    assert set(rows["seed"]) == {3}, "of the scan's networks alone"
    assert rows.groupby("ranking").size().to_dict() == {"hiap": 1, "rule": 2}
    shown = scan.table(Results(tmp_path)).splitlines()
    assert shown[2].startswith("| 0.45, 0.225 | 70 | ")
    assert shown[3].startswith("| 1.8, 0.9 | 30 | ")
    note = " ".join(shown[4:])
    halfway = rows.loc[rows["ranking"] == "rule", "top1"].mean()
    assert f"{halfway:.1f} % at 50 % of the MACs (-" in note
    assert "One network, dense" in note


def test_the_reading_is_taken_by_what_is_left_of_each_block() -> None:
    """The rule of the protocol: blocks that lost all heads come first, then the smallest measure."""

    def ended(reading: str, figure: int, heads: Callable[[list[int]], list[int]], neurons: int) -> Any:
        last = published.last_state(figure)
        look = SimpleNamespace(heads=heads(last["heads"].tolist()), neurons=(last["neurons"] + neurons).tolist())
        return SimpleNamespace(label=f"{reading}-fig{figure}", gates=[look])

    kinds: dict[str, tuple[Callable[[list[int]], list[int]], int]] = {
        "s1-t6-own-t2": (list, 300),
        "s2-t6-own-t2": (lambda heads: [0, *heads[1:]], 0),
        "s3-t6-own-t2-floor": (list, 100),
    }
    records = [ended(name, figure, *kind) for name, kind in kinds.items() for figure in published.HEAT_MAPS]
    made = {calibrate.GRID: records[:-1], calibrate.END: records[10:]}  # of the last reading, one figure is missing
    results = cast(Results, SimpleNamespace(finished=made.__getitem__))
    table = calibrate.ends(results)
    assert table["reading"].tolist() == ["s3-t6-own-t2-floor", "s1-t6-own-t2", "s2-t6-own-t2"]
    assert table["grid"].tolist() == [calibrate.END, calibrate.GRID, calibrate.GRID]
    assert table["without_heads"].tolist() == [0, 0, 4]
    assert table["measure"][0] == pytest.approx(12 * 100 / 18_432, abs=1e-4)
    assert table["neurons"][2] == 0
    blocks = calibrate.ends_by_block(results, table["reading"][:1].tolist())
    assert (
        blocks[blocks["network"] != "paper"]["neurons"].to_numpy() - 100
        == blocks[blocks["network"] == "paper"]["neurons"]
    ).all()
    assert calibrate.words("s3-t6-own-t2-floor").endswith("scale own, T², binding floor")


def test_on_the_frontier_is_whom_nobody_beats_with_less_training() -> None:
    rows = [("cut", 0.1, 70.0), ("short", 1.0, 69.0), ("long", 5.0, 75.0), ("longer", 9.0, 74.0)]
    runs = pd.DataFrame(
        [(0.5, name, name, seed, 1, tmacs * 1e12, top1, None, None) for seed in range(2) for name, tmacs, top1 in rows],
        columns=["target", "label", "title", "seed", "epochs", "train_macs", "top1", "hits", "originals"],
    )
    table = frontier.candidates(runs)
    assert table[table["frontier"]]["label"].tolist() == ["cut", "long"]
    assert frontier.recommended(table, 2.0)["label"].tolist() == ["cut"]
    assert frontier.recommended(table, 20.0)["label"].tolist() == ["long"]
    assert frontier.candidates(runs, least=3).empty


def test_the_frontier_is_of_the_networks_that_were_trained_on(tmp_path: Path) -> None:
    assert "--grid cifar10_first" in frontier.table(Results(tmp_path)), "nothing yet"
    for seed in range(4):
        put(tmp_path, "dense", "dense", seed, 90, grid=frontier.cuts.GRID)
        for label, method, level in (("obs-50-ls", "obs", 80), ("taylor-50-ls", "taylor", 75)):
            put(
                tmp_path,
                label,
                method,
                seed,
                level,
                grid=frontier.cuts.GRID,
                budget={"target_macs": 0.5, "correct": 512},
            )
    for seed in range(3):
        put(tmp_path, "dense", "dense", seed, 90, grid=scan.GRID)
        for label, method, level in (("obs-50", "obs", 85), ("hiap-50", "hiap", 82)):
            put(tmp_path, label, method, seed, level, grid=scan.GRID, budget={"target_macs": 0.5})
    runs = frontier.load(Results(tmp_path))
    assert set(runs["seed"]) == {0, 1, 2}
    shown = frontier.table(Results(tmp_path))
    assert "structured OBS (ours) | 8" in shown
    assert "Taylor" not in shown, "as dear as OBS, and behind it"
    assert "HiAP" not in shown
    assert "Trained: at 50 % alone" in shown
