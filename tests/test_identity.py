"""A finished run counts only for the same images, weights and code of its method: else both are told, and it is trained
again only if that is asked for."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import small_vit
from test_choice import write_copies
from test_data import own_cache  # noqa: F401

import hiap
from analysis.records.results import REPOSITORY, Results
from hiap.train import identity
from hiap.train import methods as methods_there
from hiap.train import run as train
from hiap.train.config import Config, ConfigError, from_dict
from hiap.train.record import Folders, Record, read
from slurm import launch_grid

SIZES: dict[str, Any] = {"patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_ratio": 2}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders of the same names, classes and sizes of files, and of other images."""
    first, second = write_copies(tmp_path / "first", 4, 2, side=16), tmp_path / "second"
    shutil.copytree(first, second)
    for file in second.rglob("*.jpg"):
        content = bytearray(file.read_bytes())
        place = content.index(b"\xff\xdb") + 5  # in the table of quantisation: decodes in any case, to other pixels
        content[place] = content[place] % 200 + 1
        file.write_bytes(content)
    return first, second


def arguments(root: Path, tmp_path: Path, *more: str) -> list[str]:
    return [
        "method=dense", "model.img_size=16", *(f"model.{key}={value}" for key, value in SIZES.items()),
        "data.name=folder", f"data.root={root}", "optim.epochs=1", "optim.batch_size=8", "run.device=cpu",
        "run.threads=1", "run.tensorboard=false", f"run.results={tmp_path / 'out'}", *more,
    ]  # fmt: skip


def without_sizes(given: list[str]) -> list[str]:
    """Of a start that brings its own."""
    return [word for word in given if word.split("=")[0].removeprefix("model.") not in SIZES]


def the_record(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "out" / "runs" / "manual").glob("*.json")
    return path


def refused(capsys: pytest.CaptureFixture[str], given: list[str], *says: str) -> None:
    capsys.readouterr()
    assert train.main(given) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    for what in (*says, "--rerun trains it again"):
        assert what in line


def test_two_folders_of_the_same_names(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (arguments(root, tmp_path) for root in folders)
    assert train.main(first) == 0
    path = the_record(tmp_path)
    before = path.read_bytes()
    assert train.main(first) == 0, "the same counts"
    refused(capsys, second, str(folders[0]), str(folders[1]), read(path).images.files[:12])  # type: ignore[union-attr]
    assert path.read_bytes() == before
    assert train.main([*second, "--rerun"]) == 0
    old, new = Record.model_validate_json(before), read(path)
    assert old.images and new.images and old.images.trained != new.images.trained  # noqa: PT018
    assert old.images.classes == new.images.classes
    assert not Folders.of(new.config).earlier.exists()
    assert train.main(second) == 0
    refused(capsys, first)


def test_images_that_are_replaced_where_they_lie(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(folders[0], tmp_path)
    assert train.main(given) == 0
    seen = read(the_record(tmp_path)).images
    shutil.rmtree(folders[0])
    shutil.copytree(folders[1], folders[0])
    refused(capsys, given, "other images")
    assert train.main([*given, "--rerun"]) == 0
    now = read(the_record(tmp_path)).images
    assert seen and now and seen.trained != now.trained, "nothing of the first came from memory or cache"  # noqa: PT018


def test_a_class_that_is_renamed(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(folders[0], tmp_path)
    assert train.main(given) == 0
    for split in ("train", "val"):
        (folders[0] / split / "cat").rename(folders[0] / split / "lynx")
    refused(capsys, given, "other images")


def test_a_replaced_weights_file(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = tmp_path / "start"
    hiap.save(small_vit(in_chans=3, **SIZES), start)
    given = [
        word for word in arguments(folders[0], tmp_path) if word.split("=")[0] not in {f"model.{k}" for k in SIZES}
    ]
    given.append(f"model.weights={start}")
    assert train.main(given) == 0
    record = read(the_record(tmp_path))
    other = small_vit(in_chans=3, **SIZES)
    other.head.bias.data.add_(1)
    hiap.save(other, start)
    refused(capsys, given, "another file of model.weights", record.weights_sha256[:12])
    assert train.main([*given, "--rerun"]) == 0
    assert read(the_record(tmp_path)).weights_sha256 != record.weights_sha256


@pytest.fixture
def methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the baselines that may be edited."""
    copy = tmp_path / "baselines"
    shutil.copytree(methods_there.BASELINES, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(methods_there, "BASELINES", copy)
    return copy


def test_an_edited_baseline(
    folders: tuple[Path, Path], methods: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(folders[0], tmp_path, "method=uniform", "budget.target_macs=0.7", "distill.alpha=0")
    assert train.main(given) == 0
    for name in ("uniform.py", "ranking.py"):  # its own file, and what that imports
        source = (methods / name).read_text()
        (methods / name).write_text(source + "\n# a remark\n")
        assert train.main(given) == 0, "a comment changes nothing"
        (methods / name).write_text(source + "\nEDITED = True\n")
        refused(capsys, given, "at commit", "other code of uniform.py")
        (methods / name).write_text(source)
    (methods / "taylor.py").write_text("EDITED = True\n")
    assert train.main(given) == 0, "of another baseline"
    (methods / "uniform.py").write_text((methods / "uniform.py").read_text() + "\nEDITED = True\n")
    assert train.main([*given, "--rerun"]) == 0
    assert train.main(given) == 0


def test_edited_modules_that_all_methods_share_are_told_of(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(folders[0], tmp_path)
    assert train.main(given) == 0
    capsys.readouterr()
    assert train.main(given) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(identity, "core_digest", lambda: "other")
    assert train.main(given) == 0
    told = capsys.readouterr().err
    assert "was finished" in told
    assert "other modules of hiap/, which all methods share" in told
    assert told.endswith("now); it counts, and hiap train --rerun trains it again\n")


@pytest.mark.parametrize("module", ["gates.py", "beyond/obs.py", "backbones/families.py"])
def test_whatever_methods_are_made_of_is_looked_at(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (identity.PACKAGE / module).is_file()
    (tmp_path / module).parent.mkdir(exist_ok=True)
    monkeypatch.setattr(identity, "PACKAGE", tmp_path)
    digests = []
    for text in ("A = 1\n", "A = 1  # said in other words\n", "A = 22\n"):
        (tmp_path / module).write_text(text)
        digests.append(identity.core_digest())
        identity._said.cache_clear()
    assert digests[0] == digests[1] != digests[2]


def test_an_old_record_says_nothing_and_counts(folders: tuple[Path, Path], tmp_path: Path) -> None:
    given = arguments(folders[0], tmp_path)
    assert train.main(given) == 0
    path = the_record(tmp_path)
    values = json.loads(path.read_text())
    for key in ("images", "files", "code", "core"):
        del values[key]
    values["config"]["data"] |= {"train_size": 20_000, "test_size": 10_000}  # which meant nothing then
    path.write_text(json.dumps(values, indent=1) + "\n")
    assert read(path).config.run_id == read(path).run_id
    assert train.main(arguments(folders[1], tmp_path)) == 0


def config_of(given: list[str]) -> Config:
    return from_dict(train.parse_overrides(given))


def test_a_run_that_was_begun_with_other_images_does_not_go_on(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (config_of(arguments(root, tmp_path, "optim.epochs=2")) for root in folders)
    monkeypatch.setattr(train.Run, "_finished", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(train.Interrupted):
        train.run(first)
    monkeypatch.undo()
    monkeypatch.setenv("HIAP_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match="begun with other images") as told:
        train.run(second)
    assert "\n" not in str(told.value)
    assert train.run(second, rerun=True).resumed == 0


def test_a_rerun_that_was_interrupted_goes_on(folders: tuple[Path, Path], tmp_path: Path, monkeypatch: Any) -> None:
    """Given again as it was given, as by a job that is requeued; of other images it begins afresh."""
    first, second = (config_of(arguments(root, tmp_path, "optim.epochs=2")) for root in folders)
    before = train.run(first)
    for _ in range(2):
        monkeypatch.setattr(train.Run, "_finished", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(train.Interrupted):
            train.run(first, rerun=True)
        monkeypatch.undo()
    again = train.run(first, rerun=True)
    assert again.resumed
    assert again.metrics == before.metrics
    assert not train.run(first, rerun=True).resumed, "a finished run is made again from its start"
    monkeypatch.setattr(train.Run, "_finished", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(train.Interrupted):
        train.run(first, rerun=True)
    monkeypatch.undo()
    monkeypatch.setenv("HIAP_CACHE", str(tmp_path / "cache"))
    assert not train.run(second, rerun=True).resumed


def test_a_start_that_was_measured_on_other_images_is_measured_anew(folders: tuple[Path, Path], tmp_path: Path) -> None:
    dense = train.run(config_of(arguments(folders[0], tmp_path)))
    more = [*without_sizes(arguments(folders[1], tmp_path)), f"model.weights=run:{dense.run_id}"]
    run = train.run(config_of(more))
    assert run.metrics.dense
    assert dense.metrics.extracted
    assert run.metrics.dense.loss != dense.metrics.extracted.loss


def test_a_start_that_numbers_its_classes_otherwise_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    dense = train.run(config_of(arguments(folders[0], tmp_path)))
    model = hiap.load(Folders(tmp_path / "out", "manual", dense.run_id).model)
    names = sorted(path.name for path in (folders[0] / "train").iterdir())
    starts = []
    for name, order in (("same", names), ("other", names[::-1])):
        model.pretrained_cfg = {**model.pretrained_cfg, "label_names": order}
        hiap.save(model, tmp_path / name)
        starts.append([*without_sizes(arguments(folders[0], tmp_path)), f"model.weights={tmp_path / name}"])
    train.run(config_of(starts[0]))
    with pytest.raises(
        ConfigError, match=r"model\.weights '.*other': the network numbers its classes in another order"
    ):
        train.run(config_of(starts[1]))
    taught = [*starts[0], f"distill.teacher={tmp_path / 'other'}", "distill.alpha=0.5"]
    with pytest.raises(ConfigError, match=r"distill\.teacher '.*other': the network numbers its classes in another"):
        train.run(config_of(taught))


def test_a_start_that_was_measured_at_another_size_is_measured_anew(tmp_path: Path) -> None:
    keys = ["method=dense", "data.name=digits", "model.img_size=16", "model.embed_dim=16", "model.depth=1"]
    keys += ["model.num_heads=2", "optim.epochs=1", f"run.results={tmp_path}", "run.tensorboard=false", "run.threads=1"]
    dense = train.run(config_of(keys))
    cut = ["method=l1", f"model.weights=run:{dense.run_id}", "optim.epochs=0", "distill.alpha=0", *keys[3:]]
    same, larger = (
        train.run(config_of([*cut, "data.name=digits", f"model.img_size={side}", "budget.target_macs=0.95"]))
        for side in (16, 32)
    )
    assert dense.metrics.extracted
    assert same.metrics.dense
    assert larger.metrics.dense
    assert same.metrics.dense.loss == dense.metrics.extracted.loss
    assert larger.metrics.dense.loss != dense.metrics.extracted.loss


@pytest.fixture
def terminated_as_before() -> Iterator[None]:
    """The launcher's answer to SIGTERM is for its process, which here others share."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.usefixtures("terminated_as_before")
def test_a_grid_refuses_and_runs_again_what_has_changed_and_what_starts_from_it(
    folders: tuple[Path, Path], methods: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {
        "name": "tiny",
        "about": "a test",
        "base": {"model": {"img_size": 16, **SIZES}, "data": {"name": "folder", "root": str(folders[0])},
                 "optim": {"epochs": 1, "batch_size": 8}, "run": {"device": "cpu", "tensorboard": False}},
        "runs": {
            "dense": {"method": "dense"},
            "uniform": {"method": "uniform", "model.weights": "run:dense", "budget.target_macs": 0.7},
            "more": {"method": "dense", "model.weights": "run:uniform"},
        },
    }  # fmt: skip
    grid = tmp_path / "tiny.yaml"

    def launch(*options: str) -> tuple[int, str]:
        grid.write_text(yaml.safe_dump(values, sort_keys=False))
        status = launch_grid.main(
            ["--grid", str(grid), "--results", str(tmp_path / "out"), "--cluster", "debug", *options]
        )
        return status, "".join(capsys.readouterr())

    assert launch()[0] == 0
    assert launch()[0] == 0
    (methods / "uniform.py").write_text((methods / "uniform.py").read_text() + "\nEDITED = True\n")
    status, says = launch()
    assert status == 2
    assert "run 'uniform' (and 1 more)" in says
    assert "other code of uniform.py" in says
    status, says = launch("--rerun")
    assert status == 0
    assert says.count("runs again") == 2
    assert "dense (dense-" not in [line for line in says.splitlines() if "runs again" in line]
    assert launch()[0] == 0
    values["base"]["data"]["root"] = str(folders[1])  # type: ignore[index]
    status, says = launch()
    assert status == 2
    assert "run 'dense' (and 2 more)" in says
    assert str(folders[1]) in says
    values["name"] = "twin"  # its records would be copied
    status, says = launch()
    assert status == 2
    assert "--results names another folder" in says


def test_a_baseline_whose_imports_alone_have_moved_is_the_same(
    folders: tuple[Path, Path], methods: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = arguments(folders[0], tmp_path, "method=uniform", "budget.target_macs=0.7", "distill.alpha=0")
    assert train.main(given) == 0
    before = identity.code_digest("uniform")[: identity.SHOWN]
    source = (methods / "uniform.py").read_text()
    (methods / "uniform.py").write_text(source + "\nMOVED = True\n")
    assert train.main(given) == 2
    now = identity.code_digest("uniform")[: identity.SHOWN]
    monkeypatch.setitem(identity.MOVED, now, (before,))
    assert train.main(given) == 0


def test_committed_records_are_of_the_code_that_is_here() -> None:
    """An edited baseline would leave the published runs behind: it computes the same (``identity.MOVED``), or they are
    run again."""
    finished = [record for record in Results(REPOSITORY / "results").finished() if record.code]
    assert finished
    codes = {(record.config.method, record.code[: identity.SHOWN]) for record in finished}
    for method, code in codes:
        now = identity.code_digest(method)[: identity.SHOWN]
        assert code in (now, *identity.MOVED.get(now, ())), method
