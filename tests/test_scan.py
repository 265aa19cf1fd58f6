"""The paper's rule read between two strengths, and the frontier of accuracy against training."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.studies import frontier, scan


def scanned() -> pd.DataFrame:
    rows = [("faithful-x0.5", 0.8, 76.0), ("faithful-x1", 0.6, 72.0), ("faithful-x2", 0.4, 60.0)]
    made = [(label, seed, share, top1 + seed, None) for seed in range(3) for label, share, top1 in rows]
    made += [("hiap-50", seed, 0.5, 70.0 + seed, None) for seed in range(3)]
    return pd.DataFrame(made, columns=["label", "seed", "macs_share", "top1", "hits"])


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
