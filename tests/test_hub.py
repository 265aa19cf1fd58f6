"""Networks on a hub: sent and fetched whole, nothing else with them, and one line where there is no hub.

``huggingface_hub`` is the real one but for the two functions that ask the network; the stand-in keeps repositories in a
folder and filters files as the real one does.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from conftest import small_vit
from huggingface_hub import errors
from huggingface_hub.utils import filter_repo_objects
from test_card import FILES, names, pruned

import hiap
from hiap.cli.networks import main
from hiap.formats.store import ARCHITECTURE, WEIGHTS, StoreError

NAME = "somebody/small.vit"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root, cache = tmp_path / "hub", tmp_path / "cache"
    root.mkdir()

    def copy(source: Path, target: Path, patterns: Any) -> None:
        files = (str(path.relative_to(source)) for path in source.rglob("*") if path.is_file())
        for file in filter_repo_objects(files, allow_patterns=patterns):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / file, target / file)

    def create_repo(repo_id: str, *, private: bool, exist_ok: bool) -> str:
        (root / repo_id).mkdir(parents=True, exist_ok=exist_ok)
        return f"https://hub.example/{repo_id}" + ("?private" if private else "")

    def upload_folder(*, repo_id: str, folder_path: str, allow_patterns: Any, commit_message: str) -> None:
        copy(Path(folder_path), root / repo_id, allow_patterns)

    def snapshot_download(repo_id: str, *, allow_patterns: Any) -> str:
        if not (root / repo_id).is_dir():
            raise errors.LocalEntryNotFoundError("An error happened while trying to reach the Hub. See\n a lot below.")
        copy(root / repo_id, cache / repo_id, allow_patterns)
        return str(cache / repo_id)

    def file_exists(repo_id: str, filename: str) -> bool:
        return (root / repo_id / filename).is_file()

    for function in (create_repo, upload_folder, snapshot_download, file_exists):
        monkeypatch.setattr(huggingface_hub, function.__name__, function)
    monkeypatch.setattr("hiap.formats.online._answers", lambda address: True)
    monkeypatch.chdir(tmp_path)
    return root


def test_what_was_pushed_is_what_is_loaded(hub, tmp_path, images):
    model = pruned().eval()  # type: ignore[attr-defined]
    hiap.save(model, tmp_path / "net", card={"method": "hiap", "dense": small_vit()})
    assert hiap.push(tmp_path / "net", NAME) == f"https://hub.example/{NAME}"
    assert names(hub / NAME) == FILES
    with torch.no_grad():
        assert torch.equal(hiap.load(NAME)(images), model(images))
    assert str(hiap.show(NAME)) == str(hiap.show(tmp_path / "net"))


def test_a_card_of_another_network_does_not_stay_behind(hub, tmp_path):
    hiap.save(pruned(), tmp_path / "net", card={"method": "hiap"})
    hiap.push(tmp_path / "net", NAME)
    hiap.save(pruned(), tmp_path / "bare")
    with pytest.raises(StoreError, match=r"has a README\.md of another network"):
        hiap.push(tmp_path / "bare", NAME)


def test_the_command_pushes_and_prints_where(hub, tmp_path, capsys):
    hiap.save(pruned(), tmp_path / "net")
    assert main(["push", str(tmp_path / "net"), NAME, "--private"]) == 0
    assert capsys.readouterr().out == f"https://hub.example/{NAME}?private\n"
    assert main(["show", NAME]) == 0


def test_a_hostile_repository_gives_nothing_but_our_files(hub, tmp_path):
    hiap.save(pruned(), hub / NAME)
    for extra in (
        "modeling.py",
        "pytorch_model.bin",
        "sub/weights.safetensors",
        "sub/README.md",
        "weights.safetensors.py",
    ):
        (hub / NAME / extra).parent.mkdir(exist_ok=True)
        (hub / NAME / extra).write_text("import os; os.system('touch hacked')")
    hiap.load(NAME)
    assert names(tmp_path / "cache" / NAME) == [ARCHITECTURE, WEIGHTS]
    (hub / NAME / ARCHITECTURE).write_text('{"import": "os"}')
    with pytest.raises(StoreError, match="not format hiap-vit 2"):
        hiap.load(NAME)
    (hub / NAME / ARCHITECTURE).unlink()
    (tmp_path / "cache" / NAME / ARCHITECTURE).unlink()
    with pytest.raises(StoreError, match="expected architecture"):
        hiap.load(NAME)


def test_a_folder_comes_before_the_hub_and_a_path_is_never_a_name(hub, tmp_path):
    hiap.save(small_vit(), hub / NAME)
    hiap.save(small_vit(depth=1), tmp_path / NAME)
    assert len(hiap.load(NAME).blocks) == 1
    shutil.rmtree(tmp_path / "somebody")
    assert len(hiap.load(NAME).blocks) == 3
    for path in (Path(NAME), f"./{NAME}", f"{tmp_path}/{NAME}", f"{NAME}/deeper", "somebody/.."):
        with pytest.raises(StoreError, match="expected architecture"):
            hiap.load(path)


def test_offline_is_one_line(hub, tmp_path, monkeypatch, capsys):
    hiap.save(pruned(), tmp_path / "net")

    def offline(*_: Any, **__: Any) -> None:
        raise errors.OfflineModeIsEnabled(
            "Cannot reach it: offline mode is enabled.\nTo disable it, unset HF_HUB_OFFLINE."
        )

    monkeypatch.setattr(huggingface_hub, "create_repo", offline)
    for command, message in (
        (
            ["push", "net", NAME],
            f"{NAME}: the hub did not take it .OfflineModeIsEnabled: Cannot reach it: .*; net is as it was",
        ),
        (
            ["show", NAME],
            f"{NAME}: no such folder here, and the hub did not give it .LocalEntryNotFoundError.*; offline, give .*",
        ),
    ):
        assert main(command) == 2
        assert re.fullmatch(f"error: {message}\n", capsys.readouterr().err)


def test_without_a_stand_in_it_is_one_line_too(tmp_path, monkeypatch):
    """The client's own error, raised before it asks the network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hiap.save(pruned(), tmp_path / "net")
    with pytest.raises(
        StoreError, match=r"somebody/not-there: no such folder here, .*; offline, give a folder"
    ) as error:
        hiap.load("somebody/not-there")
    assert "\n" not in str(error.value)
    with pytest.raises(StoreError, match=r"somebody/not-there: the hub did not take it"):
        hiap.push(tmp_path / "net", "somebody/not-there")


@pytest.mark.parametrize("where", ["closed", "silent", "proxy"])
def test_a_hub_that_does_not_answer_is_one_line_within_seconds(where, tmp_path, monkeypatch, capsys):
    """Nothing listens, or something does and says nothing: huggingface_hub alone would ask again for minutes."""
    import socket

    from hiap.cli.commands import main as command
    from hiap.formats import online as ours

    waits: list[float] = []
    monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", waits.append)  # between one try and the next
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ours, "PATIENCE", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        if where == "silent":
            silent.listen()
        if where == "proxy":
            monkeypatch.setenv("https_proxy", address)
            address = "https://hub.example"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        (tmp_path / "images").mkdir()
        (tmp_path / "images" / "a.png").touch()  # the network is fetched before it is read
        prune = ["prune", "deit_tiny_patch16_224", "--data", str(tmp_path / "images"), "--out", str(tmp_path / "out")]
        assert command(prune) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: deit_tiny_\w+: its weights cannot be fetched .*; offline, --weights FILE\n", error)
    assert not waits
    assert not huggingface_hub.constants.HF_HUB_OFFLINE


def test_whatever_answers_is_asked(monkeypatch):
    """An error of the server, or a certificate that is not ours to judge, is an answer."""
    import ssl
    import urllib.error

    from hiap.formats.online import _answers

    def raises(error: Exception) -> Any:
        def urlopen(*_: Any, **__: Any) -> None:
            raise error

        return urlopen

    for error, answer in (
        (urllib.error.HTTPError("https://x", 405, "no HEAD", None, None), True),  # type: ignore[arg-type]
        (urllib.error.URLError(ssl.SSLError("certificate")), True),
        (urllib.error.URLError(OSError("no route")), False),
        (TimeoutError(), False),
    ):
        monkeypatch.setattr("urllib.request.urlopen", raises(error))
        assert _answers("https://x") is answer


@pytest.mark.parametrize("name", ["", "small", "a/b/c", "a b/c", "-/x", "../up", "a/..", "a/" + "b" * 96])
def test_what_is_no_name_of_the_hub_is_refused_before_anything_is_sent(hub, tmp_path, name):
    hiap.save(pruned(), tmp_path / "net")
    with pytest.raises(StoreError, match="expected owner/name"):
        hiap.push(tmp_path / "net", name)
    assert not list(hub.iterdir())


def test_what_does_not_load_is_not_pushed(hub, tmp_path):
    hiap.save(pruned(), tmp_path / "net")
    (tmp_path / "net" / WEIGHTS).write_bytes(b"")
    for folder in (tmp_path / "net", tmp_path / "none", NAME):
        with pytest.raises(StoreError, match=r"expected (architecture|one of hiap\.save)"):
            hiap.push(folder, NAME)
    assert not list(hub.iterdir())
