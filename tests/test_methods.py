"""``method`` takes a file of one's own, which says by itself what it is and what it needs."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import tiny

from hiap.train import methods
from hiap.train import run as train
from hiap.train.config import ConfigError, check_needs, from_dict

MINE = '''"""Keeps the first units of each layer: a baseline of one's own."""

from baselines.ranking import prune_then_tune
from hiap.budget.selection import Ranking
from hiap.train.stages import options
import torch

KIND = "ranking"
OPTIONS = {"from_end": False, "share": 0.5}


def stages(config):
    sign = 1 if options(config)["from_end"] else -1
    return prune_then_tune(config, lambda model, context: rank(model, sign))


def rank(model, sign):
    count = model.blocks[0].mlp.fc1.out_features
    return Ranking(neurons=sign * torch.arange(float(count)).expand(len(model.blocks), -1))
'''


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "first_units.py"
    path.write_text(MINE)
    return path


def test_every_baseline_is_found_with_its_kind():
    found = {name: method.kind for name, method in methods.registered().items()}
    ranking = dict.fromkeys(("random", "uniform", "l1", "magnitude", "taylor", "obs", "amp", "snapvit"), "ranking")
    expected = {**ranking, "vit_slim": "searching", "cofi": "searching", "peer": "cutting"}
    assert {name: found[name] for name in expected} == expected
    assert "ranking" not in found  # what several of them share is no method


def test_a_file_of_ones_own_is_trained_and_its_options_matter(dense, mine, tmp_path):
    start = {"weights": f"run:{dense.run_id}"}
    given = {"method": str(mine), "model": start, "budget": {"target_macs": 0.8}}
    configs = [tiny(dense.run.results, **given, options=more) for more in ({}, {"from_end": True})]
    records = [train.run(config) for config in configs]
    assert all(config.run_id.startswith("first_units-") for config in configs)
    assert len({config.run_id for config in configs}) == 2
    assert all(record.size.macs <= 0.8 * record.size.dense_macs for record in records)
    assert records[0].metrics.extracted.loss != records[1].metrics.extracted.loss


BAD = {
    "no file": ("nowhere.py", {}, "No such file or directory"),
    "no stages": ("x = 1\n", {}, "expected a function stages"),
    "no python": ("def stages(:\n", {}, "invalid syntax"),
    "a kind that is none": ("KIND = 'sorting'\ndef stages(c): ...\n", {}, "KIND must be one of"),
    "computed": ("OPTIONS = dict(a=1)\ndef stages(c): ...\n", {}, "plain values"),
    "an option that it has not": (MINE, {"shares": 1}, "declares no such option"),
    "another type": (MINE, {"share": "much"}, "expected float as 0.5 is"),
    "a truth for a number": (MINE, {"share": True}, "expected float as 0.5 is"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_a_file_is_one_line_before_anything_runs(case, tmp_path):
    text, given, message = BAD[case]
    path = tmp_path / text if text.endswith(".py") else tmp_path / "mine.py"
    if not text.endswith(".py"):
        path.write_text(text)
    config = tiny(tmp_path, method=str(path), options=given, budget={"target_macs": 0.5})
    with pytest.raises(ConfigError, match=message) as error:
        check_needs(config)
    assert "\n" not in str(error.value)


def test_looking_at_a_file_does_not_run_it(tmp_path):
    (tmp_path / "mine.py").write_text("raise SystemExit('ran')\ndef stages(config): ...\n")
    assert methods.read(tmp_path / "mine.py").runs


def test_an_option_of_a_method_that_declares_none_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"options.share: method 'hiap' declares no such option \(it has: none\)"):
        check_needs(tiny(tmp_path, method="hiap", options={"share": 0.5}))


def test_without_a_checkout_our_methods_work_and_the_others_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(methods, "BASELINES", tmp_path / "none")
    check_needs(tiny(tmp_path, method="hiap"))
    with pytest.raises(ConfigError, match="a checkout of the repository has"):
        check_needs(tiny(tmp_path, method="taylor", budget={"target_macs": 0.5}))


def test_a_mistyped_method_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'taylor'"):
        from_dict({"method": "tayler"})


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"method": "dense", "budget": {"target_macs": 0.5}}, "method 'dense' prunes nothing, so budget.target_macs"),
        ({"method": "dense", "budget": {"correct": 64}}, "budget.correct means nothing"),
        ({"method": "hiap", "budget": {"rounds": 3}}, "budget.rounds is for methods that rank"),
        ({"method": "cofi", "budget": {"rounds": 3}}, "budget.rounds is for methods that rank"),
        (
            {"method": "taylor", "budget": {"ranking": "global"}},
            "budget.ranking is for method 'l1'",
        ),
        ({"method": "l1", "budget": {"head_ranking": "layer"}}, "budget.head_ranking is for method 'magnitude'"),
        ({"method": "hiap", "shrink": {"below": 0.1}}, "shrink.below is for shrink.after > 0"),
    ],
)
def test_what_the_method_does_not_look_at_is_refused(values: dict[str, Any], line: str) -> None:
    base = {"model": {"weights": "run:dense"} if values["method"] != "dense" else {}, "data": {"name": "digits"}}
    with pytest.raises(ConfigError, match=line) as told:
        check_needs(from_dict({**base, **values}))
    assert "\n" not in str(told.value)
