"""What a run shows while it trains: lines where there is no terminal, curves that a resume leaves whole."""

from __future__ import annotations

import csv
import io
import sys
from types import ModuleType
from typing import Any

import pytest
from conftest import tiny

from hiap.train import curves, progress
from hiap.train import run as train
from hiap.train.loop import Loop
from hiap.train.record import Folders, read
from hiap.train.stopping import Interrupted


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def rows(config: Any) -> list[dict[str, str]]:
    return list(csv.DictReader(Folders.of(config).curves.open()))


def stopped_at(steps: int, monkeypatch: pytest.MonkeyPatch, config: Any) -> None:
    """The first try of a run, killed after so many steps."""
    original, made = Loop._step, [0]

    def step(self: Loop, *arguments: Any) -> Any:
        made[0] += 1
        if made[0] > steps:
            raise KeyboardInterrupt
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_step", step)
        with pytest.raises(Interrupted):
            train.run(config)


def test_without_a_terminal_there_is_a_line_an_epoch_and_a_resume_is_told(dense, capsys, monkeypatch):
    config = tiny(
        dense.run.results,
        model={"weights": f"run:{dense.run_id}"},
        optim={"epochs": 3, "lr": 1e-3},
        run={"evaluate_every": 3, "label": "more"},
    )
    stopped_at(14, monkeypatch, config)  # of 10 an epoch
    first = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in first if "epoch" in line] == ["more: epoch 1 of 3"]
    record = train.run(config)
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "more: resumed at step 10 of 30 of stage train"
    assert [line.split(",")[0] for line in told if ": epoch" in line] == ["more: epoch 2 of 3", "more: epoch 3 of 3"]
    assert f"loss {record.epochs[-1].loss:.4f}, top-1 {record.epochs[-1].top1:.2f} %" in told[2]
    assert told[2].endswith("0:00:00 to go")
    assert told[3:] == ["more: measuring the network that is left on 445 images"]


def test_the_start_is_measured_in_the_open_and_once(dense, capsys, monkeypatch):
    weights = {"weights": f"run:{dense.run_id}"}
    config = tiny(dense.run.results, model=weights, optim={"epochs": 2, "precision": "bf16"})  # measured in fp32 so far
    stopped_at(12, monkeypatch, config)
    told = capsys.readouterr().err
    assert f"{config.run_id}: measuring the start on 445 images\n" in told
    start = train.run(config).metrics.dense
    assert f"{config.run_id}: the start has top-1 {start.top1:.2f} %\n" in told
    assert "measuring the start" not in capsys.readouterr().err
    assert start.n == 445


def test_the_last_line_says_what_the_run_started_from(dense, capsys):
    sections = ("model", "data", "optim", "distill", "run")
    nested = dense.model_dump(mode="json", include=set(sections), exclude_defaults=True)
    nested["model"] |= {"weights": f"run:{dense.run_id}"}
    nested["optim"] |= {"epochs": 1}
    words = [f"{section}.{key}={value}" for section in sections for key, value in nested.get(section, {}).items()]
    assert train.main(["method=dense", *words]) == 0
    start = read(Folders.of(dense).record).metrics.extracted
    assert f"% (it started from {start.top1:.2f} %), " in capsys.readouterr().out


def test_curves_of_a_resumed_run_are_those_of_an_undisturbed_one(dense, tmp_path, monkeypatch):
    changes: dict[str, Any] = {
        "method": "hiap",
        "optim": {"epochs": 3},
        "gates": {"keep_head": True},
        "run": {"evaluate_every": 2},
    }
    whole, killed = tiny(tmp_path / "a", **changes), tiny(tmp_path / "b", **changes)
    record = train.run(whole)
    stopped_at(25, monkeypatch, killed)
    assert [row["epoch"] for row in rows(killed)] == ["1", "2"]
    train.run(killed)
    assert rows(killed) == rows(whole)
    assert [float(row["loss"]) for row in rows(whole)] == [log.loss for log in record.epochs]
    assert [row["top1"] != "" for row in rows(whole)] == [False, True, False]
    assert [int(row["neurons"]) for row in rows(whole)] == [sum(log.neurons) for log in record.epochs]


@pytest.mark.parametrize(("out", "err", "lines"), [(True, True, False), (False, True, True), (True, False, True)])
def test_lines_go_where_the_log_goes(out, err, lines, monkeypatch):
    streams = [Terminal() if terminal else io.StringIO() for terminal in (out, err)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    shown = progress.Progress("run")
    shown.begin("train", 2, 0)
    shown.step()
    shown.show(0.5, "epoch 1 of 1, 50 %", ended=False)
    shown.show(0.5, "epoch 1 of 1", ended=True)
    shown.end()
    kept = streams[0 if not out else 1].getvalue()
    assert (kept == "run: epoch 1 of 1\n") if lines else ("run train" in kept)
    assert lines or not streams[0].getvalue()


def test_a_long_epoch_has_lines_now_and_then(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    shown = progress.Progress("run")
    for minute in range(12):
        clock[0] = 60.0 * minute
        shown.show(0.5, f"minute {minute}", ended=False)
    assert capsys.readouterr().err == "run: minute 6\n"
    progress.Progress("run", shown=False).show(0.5, "quiet", ended=True)
    assert capsys.readouterr() == ("", "")


def test_weights_and_biases_get_the_same_numbers_and_their_absence_is_one_line(tmp_path, capsys, monkeypatch):
    begun: list[dict[str, Any]] = []
    logged: list[tuple[int, dict[str, float]]] = []
    fake: Any = ModuleType("wandb")
    fake.init = lambda **options: begun.append(options) or fake
    fake.log = lambda values, step: logged.append((step, values))
    fake.finish = lambda: logged.append((-1, {}))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(curves, "find_spec", lambda name: None)
    config = tiny(tmp_path, run={"wandb": "digits", "label": "small"})
    with pytest.raises(
        train.ConfigError, match=r"run\.wandb 'digits': wandb is not installed; install the extra"
    ) as one:
        train.run(config)
    assert "\n" not in str(one.value)
    assert not list(tmp_path.rglob("*.json"))
    monkeypatch.setattr(curves, "find_spec", lambda name: fake)
    record = train.run(config)
    assert (begun[0]["project"], begun[0]["id"], begun[0]["resume"]) == ("digits", f"manual-{config.run_id}", "allow")
    assert [step for step, _ in logged] == [0, 1, -1]
    assert logged[1][1]["train/loss"] == record.epochs[1].loss
