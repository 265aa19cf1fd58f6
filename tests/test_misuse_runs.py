"""Uses of runs and records that once ended in a wrong number without a word."""

from __future__ import annotations

import base64
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import timm
import torch
from conftest import tiny
from test_analysis import DENSE_MACS, made_up
from test_layouts import write_folders

import hiap
from analysis import cite, plot
from analysis.records import names
from analysis.records.results import Results
from analysis.studies import paired, training
from hiap.data import affine_digits
from hiap.data import loader as data
from hiap.train import identity, reach, start
from hiap.train import run as train
from hiap.train.config import Config, ConfigError, DataConfig, ModelConfig, check_needs
from hiap.train.record import Folders, Images, Metrics, Record, Score, write
from hiap.train.stopping import TrainingFailedError


def put(root: Path, label: str, method: str, seed: int = 0, top1: float = 90.0, **config: Any) -> Record:
    record = made_up(label, method, seed, DENSE_MACS // 2, top1, **config)
    write(record, Folders(root, "laptop", record.run_id))
    return record


def test_a_run_is_compared_with_the_one_whose_cost_it_was_given(tmp_path: Path) -> None:
    hiap_runs = {name: put(tmp_path, name, "hiap", top1=top1) for name, top1 in (("hiap-a", 80.0), ("hiap-b", 85.0))}
    hiap_runs["hiap-b"] = put(tmp_path, "hiap-b", "hiap", 1, top1=86.0)
    mine = put(tmp_path, "l1-b", "l1", 1, 85.5, budget={"target_macs": f"run:{hiap_runs['hiap-b'].run_id}"})
    runs = Results(tmp_path).runs("laptop")
    assert runs.set_index("run_id").loc[mine.run_id, "budget"] == "as hiap-b"
    found = plot.forest(runs, None)
    assert found is not None
    row = found[1].set_index("label").loc["l1-b"]
    assert row["against"] == "hiap-b"
    assert row["mean"] == pytest.approx(-0.5)


def test_where_several_labels_could_be_meant_none_is_drawn(tmp_path: Path) -> None:
    for name in ("hiap-a", "hiap-b"):
        put(tmp_path, name, "hiap", budget={"target_params": 0.5}, gates={"lr": 0.1 if name == "hiap-a" else 0.2})
    put(tmp_path, "taylor", "taylor", budget={"target_params": 0.5})
    assert plot.forest(Results(tmp_path).runs("laptop"), None) is None


@pytest.mark.parametrize("budget", [{"target_params": 0.5}, {"target_latency": 0.5}])
def test_a_target_of_any_kind_is_ours(tmp_path: Path, budget: dict[str, float]) -> None:
    table = {"penalty": {"latency_table": "somewhere.json"}} if "target_latency" in budget else {}
    record = put(tmp_path, "hiap-50", "hiap", budget=budget, **table)
    (title,) = names.titles(Results(tmp_path).runs("laptop"))
    assert title.startswith(names.TARGETED)
    assert names.run_title(record).startswith(names.TARGETED)


def test_validation_images_are_called_so_and_kinds_are_not_mixed(tmp_path: Path) -> None:
    for seed in range(2):
        put(tmp_path, "tune-a", "taylor", seed, budget={"target_macs": 0.5}, data={"measure": "validation"})
    said = cite.row(Results(tmp_path), "laptop/tune-a")
    assert "validation images" in said
    assert "test images" not in said
    put(tmp_path, "mine-50", "taylor", 0, 80.0, budget={"target_macs": 0.5})
    assert {path.name for path in plot.draw(Results(tmp_path), "laptop", tmp_path / "out")} >= {"pareto.csv"}
    assert list(pd.read_csv(tmp_path / "out" / "pareto.csv")["label"]) == ["mine-50"]


def test_data_sets_have_no_common_mean(tmp_path: Path) -> None:
    put(tmp_path, "dense", "dense", data={"name": "digits"})
    put(tmp_path, "dense", "dense", data={"name": "affine-digits"})
    with pytest.raises(ConfigError, match="differ in data"):
        cite.row(Results(tmp_path), "laptop/dense")
    with pytest.raises(ConfigError, match="expected one data set"):
        plot.draw(Results(tmp_path), "laptop", tmp_path / "out")


def test_what_was_pruned_before_has_a_share_of_the_dense_network(tmp_path: Path) -> None:
    half = put(tmp_path, "taylor-50", "taylor", budget={"target_macs": 0.5})
    quarter = made_up(
        "again", "taylor", macs=DENSE_MACS // 4, model={"weights": f"run:{half.run_id}"}, budget={"target_macs": 0.5}
    )
    last = made_up("tuned", "dense", macs=DENSE_MACS // 4, model={"weights": f"run:{quarter.run_id}"})
    for record, begun in ((quarter, DENSE_MACS // 2), (last, DENSE_MACS // 4)):
        assert record.size is not None
        size = record.size.model_copy(update={"dense_macs": begun})
        write(record.model_copy(update={"size": size}), Folders(tmp_path, "laptop", record.run_id))
    runs = Results(tmp_path).runs("laptop").set_index("label")
    assert dict(runs["macs_share"]) == {"taylor-50": 0.5, "again": 0.25, "tuned": 0.25}
    assert runs.loc["again", "target"] == 0.25
    assert "25.00 % of dense" in cite.row(Results(tmp_path), "laptop/tuned")


def test_a_stage_of_the_same_name_is_billed_each_time(tmp_path: Path) -> None:
    start = ""
    for label in ("one", "two", "three"):
        start = f"run:{put(tmp_path, label, 'random', model={'weights': start}, budget={'target_macs': 0.5}).run_id}"
    found = training.totals(Results(tmp_path), "laptop").set_index("label")
    assert found.loc["three", "start_epochs"] == 2 * found.loc["three", "epochs"]


def test_different_images_have_no_common_picture(tmp_path: Path) -> None:
    for label, measured in (("hiap-50", "a"), ("taylor-50", "b")):
        record = made_up(label, label.partition("-")[0], budget={"target_macs": 0.5})
        images = Images(files="", classes="c", trained="t", measured=measured)
        write(record.model_copy(update={"images": images}), Folders(tmp_path, "laptop", record.run_id))
    with pytest.raises(ConfigError, match="measured on different images"):
        plot.draw(Results(tmp_path), "laptop", tmp_path / "out")


def test_answers_that_are_not_of_the_accuracy_beside_them_are_refused() -> None:
    right = base64.b64encode(b"\xff").decode()
    assert Score(top1=100, loss=0.1, n=8, correct=right).hits().all()
    for top1, n in ((90.0, 8), (100.0, 16), (100.0, 0)):
        with pytest.raises(ConfigError, match=f"does not give top-1 {top1:.2f} % of {n}"):
            Score(top1=top1, loss=0.1, n=n, correct=right).hits()


def test_intervals_of_canvases_draw_the_originals_that_were_shown(tmp_path: Path) -> None:
    for measure in ("test", "validation"):
        record = made_up("dense", "dense", data={"measure": measure})
        answers = base64.b64encode(b"\xff" * 8).decode()
        metrics = Metrics(extracted=Score(top1=100, loss=0.1, n=64, correct=answers))
        write(record.model_copy(update={"metrics": metrics}), Folders(tmp_path, measure, record.run_id))
        (shown,) = paired.load(Results(tmp_path), measure)["originals"]
        part = affine_digits.part_of("test", measure == "validation")
        assert list(shown) == list(affine_digits.shown(part, 64, record.config.data.seed))


def test_validation_images_were_not_learned_before(tmp_path: Path) -> None:
    seen = tiny(tmp_path, data={"name": "digits"}, optim={"epochs": 1})
    train.run(seen)
    chosen = {
        "data": {"name": "digits", "measure": "validation"},
        "budget": {"target_macs": 0.7},
        "optim": {"epochs": 0},
    }
    with pytest.raises(
        ConfigError, match=rf"model\.weights leads to run:{seen.run_id}, which was trained on these images"
    ):
        train.run(after(seen, method="uniform", **chosen))
    between = after(seen, data={"name": "digits", "train_size": 500}, optim={"epochs": 1})
    train.run(between)
    with pytest.raises(ConfigError, match=f"leads to run:{seen.run_id}"):
        train.run(after(between, method="uniform", **chosen))
    clean = tiny(tmp_path, data={"name": "digits", "measure": "validation"}, optim={"epochs": 1})
    train.run(clean)
    train.run(after(clean, method="uniform", **chosen))


def test_a_run_whose_history_is_gone_is_refused_before_it_trains(tmp_path: Path) -> None:
    first = tiny(tmp_path, data={"name": "digits"}, optim={"epochs": 1})
    train.run(first)
    second = after(first, data={"name": "digits", "train_size": 500}, optim={"epochs": 1})
    train.run(second)
    Folders.of(first).record.unlink()
    third = after(second, method="uniform", budget={"target_macs": 0.7}, data={"name": "digits"})
    with pytest.raises(ConfigError, match=f"run:{first.run_id}: no finished run of that id"):
        train.run(third)
    assert not Folders.of(third).checkpoints.exists()


def test_a_run_stopped_while_it_measures_pays_once(
    tmp_path: Path, dense: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def config(grid: str) -> Config:
        budget = {"target_macs": 0.6, "correct": 64}
        return after(
            dense, method="obs", budget=budget, options={"images": 128}, optim={"epochs": 1}, run={"grid": grid}
        )

    whole, stopped = train.run(config("whole")), config("stopped")
    batches = data.test_batches

    def stop(*args: Any, **options: Any) -> Iterator[Any]:
        if any((Folders.of(stopped).work / "checkpoints").glob("*.pt")):
            signal.raise_signal(signal.SIGTERM)
        yield from batches(*args, **options)

    monkeypatch.setattr(data, "test_batches", stop)
    with pytest.raises(train.Interrupted):
        train.run(stopped)
    monkeypatch.setattr(data, "test_batches", batches)
    found = train.run(stopped)
    assert found.resumed == 1
    assert [(s.images, s.train_macs) for s in found.stages] == [(s.images, s.train_macs) for s in whole.stages]


def test_an_interval_is_students() -> None:
    found = plot.summary(pd.Series([1.0, 2, 3, 4, 5]))
    assert (found["low"], found["high"]) == (pytest.approx(1.037, abs=1e-3), pytest.approx(4.963, abs=1e-3))


def after(start: Config, **sections: Any) -> Config:
    return tiny(start.run.results, model={"weights": f"run:{start.run_id}"}, **sections)


def test_what_started_from_a_network_that_was_made_again_no_longer_counts(tmp_path: Path, dense: Config) -> None:
    first = after(dense, method="random", budget={"target_macs": 0.7}, optim={"epochs": 0})
    train.run(first)
    second = after(first, optim={"epochs": 1})
    train.run(second)
    train.run(second)
    folders = Folders.of(first)
    record = Results(first.run.results)._record(folders.record)
    score = record.metrics.extracted
    assert score is not None
    other = record.metrics.model_copy(update={"extracted": score.model_copy(update={"loss": score.loss + 1})})
    write(record.model_copy(update={"metrics": other}), folders)
    with pytest.raises(ConfigError, match=r"another file of model\.weights, its end"):
        train.run(second)
    write(record, folders)


def test_weights_without_a_shape_are_not_trained_on_from_scratch(tmp_path: Path, dense: Config) -> None:
    torch.save(hiap.load(Folders.of(dense).model).state_dict(), tmp_path / "trained.pth")
    with pytest.raises(ConfigError, match=r"model\.scratch: .* is no whole network"):
        train.run(tiny(tmp_path, model={"weights": str(tmp_path / "trained.pth"), "scratch": True}))


def test_answers_that_are_no_numbers_have_no_accuracy(tmp_path: Path, dense: Config) -> None:
    with pytest.raises(TrainingFailedError, match="not finite"):
        train.run(after(dense, optim={"epochs": 1, "lr": 1e30, "batch_size": 4000}))


def folder_run(root: Path, out: Path, **sections: Any) -> Config:
    return tiny(out, **{"data": {"name": "folder", "root": str(root)}, "optim": {"epochs": 1}, **sections})


def test_a_start_of_other_classes_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write_folders(tmp_path / "one")
    other = write_folders(tmp_path / "other", ("ant", "bee", "fox"))
    dense = folder_run(one, tmp_path / "out")
    train.run(dense)
    model = hiap.load(Folders.of(dense).model)
    assert model.pretrained_cfg["label_names"] == ["cat", "dog", "emu"]
    start = {"model": {"weights": f"run:{dense.run_id}"}, "optim": {"epochs": 1, "lr": 1e-9}}
    with pytest.warns(UserWarning, match="names its classes .* otherwise than the folders"):
        train.run(folder_run(other, tmp_path / "out", **start))
    assert "no better than chance" in capsys.readouterr().err
    backwards = write_folders(tmp_path / "backwards", ("emu", "dog", "gnu"))
    with pytest.raises(ConfigError, match="'gnu' is none of the network's 3"):
        train.run(
            folder_run(
                backwards, tmp_path / "elsewhere", **{**start, "model": {"weights": str(Folders.of(dense).model)}}
            )
        )


def test_images_that_are_trained_and_measured_on_are_told(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "set")
    config = DataConfig(name="folder", root=str(root))
    assert data.doubts(config, 16) == ""
    (tmp_path / "same").mkdir()
    for split in ("train", "val"):
        (tmp_path / "same" / split).symlink_to(root / "train")
    assert "are the same" in data.doubts(config.model_copy(update={"root": str(tmp_path / "same")}), 16)


def test_a_set_of_one_class_and_a_link_to_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one class, 'cat'; expected two or more"):
        data.info(DataConfig(name="folder", root=str(write_folders(tmp_path / "one", ("cat",)))), 16)
    root = write_folders(tmp_path / "set")
    (root / "train" / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.warns(UserWarning, match="gone"):
        assert data.info(DataConfig(name="folder", root=str(root)), 16).train == 12


def test_images_that_cannot_be_paired_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    config = tiny(tmp_path, data={"name": "digits", "train_size": 31, "mixup": 0.2}, optim={"batch_size": 256})
    with pytest.raises(ConfigError, match="an even number, not 31"):
        train.run(config)
    assert not list(tmp_path.glob("runs/*/*.json"))


def test_a_control_with_gates_must_be_able_to_close_them(tmp_path: Path) -> None:
    slow = {"budget": {"target_macs": 0.5}, "gates": {"lr": 1e-6}, "optim": {"epochs": 3}}
    for method in ("hiap", "hiap_uniform"):
        with pytest.raises(ConfigError, match="too slow to prune"):
            reach.check_reach(tiny(tmp_path, method=method, **slow), 40)


def test_schedules_that_a_run_is_too_short_for_are_told(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for optim, said in (
            ({"warmup_epochs": 2.0}, "warms up in all but one step"),
            ({"ema": 0.9999}, "reaches back 10,000 steps"),
            ({"ema": 0.9}, ""),
            ({"warmup_epochs": 0.5}, ""),
        ):
            found = reach.short_for_its_schedule(tiny(tmp_path, optim={"epochs": 2, **optim}), 20)
            assert said in found
            assert bool(found) == bool(said)
    with pytest.raises(ConfigError, match=r"optim\.min_lr"):
        check_needs(tiny(tmp_path, optim={"lr": 1e-4, "min_lr": 1e-3}))


def test_a_failed_record_is_not_written_over(tmp_path: Path) -> None:
    failed = made_up("dense", "dense").model_copy(update={"status": "failed", "error": "x"})
    folders = Folders(tmp_path, "laptop", failed.run_id)
    first, second = write(failed, folders), write(failed, folders)
    first.unlink()
    assert write(failed, folders) not in (first, second)


def test_the_end_of_a_run_is_part_of_what_another_is_made_of(dense: Config) -> None:
    files = identity.files_behind(after(dense), Folders.of(dense))
    assert files["model.weights, its end"]


def test_a_network_goes_by_its_own_name(tmp_path: Path) -> None:
    hiap.save(timm.create_model("deit_tiny_patch16_224", img_size=32, depth=2, num_classes=10), tmp_path / "tiny")
    named = ModelConfig(name="deit_small_patch16_224", img_size=32, weights=str(tmp_path / "tiny"))
    with pytest.raises(ConfigError, match=r"the network of model\.weights .* is deit_tiny_patch16_224"):
        start.build(named, 3, 10, Folders.of(tiny(tmp_path)))


@pytest.mark.parametrize("other", [{"embed_dim": 96}, {"depth": 12}, {"patch_size": 8}])
def test_sizes_beside_a_network_that_brings_its_own_are_its_own(tmp_path: Path, other: dict[str, int]) -> None:
    hiap.save(timm.create_model("deit_tiny_patch16_224", img_size=32, depth=2, num_classes=10), tmp_path / "tiny")
    for sizes in ({}, {"depth": 2, "patch_size": 16}):
        start.build(ModelConfig(weights=str(tmp_path / "tiny"), **sizes), 3, 10, Folders.of(tiny(tmp_path)))
    wrong = ModelConfig(weights=str(tmp_path / "tiny"), **other)
    with pytest.raises(ConfigError, match=rf"model\.{next(iter(other))} .*: the network of model\.weights .* has"):
        start.build(wrong, 3, 10, Folders.of(tiny(tmp_path)))


def test_a_damaged_image_to_measure_on_is_found_before_a_run_from_scratch_trains(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "set")
    (root / "val" / "dog" / "dog_1.png").write_bytes(b"no image")
    config = folder_run(root, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"dog_1\.png: not a readable image"):
        train.run(config)
    assert not list(Folders.of(config).runs.glob("*.json"))
    assert not Folders.of(config).checkpoints.exists()


def test_a_process_that_was_forked_before_an_edit_refuses_to_run(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(identity, "_loaded", (0, "another digest"))
    with pytest.raises(ConfigError, match="the files of hiap/ have changed since this launcher began"):
        train.run(tiny(tmp_path))


def test_a_finished_run_of_other_parts_under_noise_is_told(
    tmp_path: Path, dense: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    config = after(dense, method="hiap", budget={"target_macs": 0.6}, gates={"lr": 0.3}, optim={"epochs": 1})
    train.run(config)
    parts = config.model_copy(update={"run": config.run.model_copy(update={"accumulate": 4})})
    assert parts.run_id == config.run_id
    train.run(config)
    assert "accumulate" not in capsys.readouterr().err
    train.run(parts)
    assert "finished with run.accumulate 1; in 4 parts gates would draw other noise" in capsys.readouterr().err
