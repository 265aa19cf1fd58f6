"""Several users on one folder: modes stay, nothing is replaced before all is possible, and nothing is left behind."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import small_vit
from test_launch_grid import RUNS, runs_of, write_grid

import hiap
from hiap import files
from hiap.formats.store import StoreError
from hiap.train import record
from hiap.train.config import ConfigError
from slurm import locks

NOBODY = 65534


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that others may read; pytest's own may not."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def as_another_user(action: Callable[[], object]) -> str:
    """What ``action`` raised in a process of somebody who owns nothing, '' if nothing."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to be somebody else")
    out, into = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(60)  # a fork of a process with threads may wait forever
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            action()
            text = ""
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(into, text.encode())
        os._exit(0)
    os.close(into)
    os.waitpid(child, 0)
    with os.fdopen(out, encoding="utf-8") as stream:
        return stream.read()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_new_files_have_the_mode_of_the_umask_and_replaced_ones_keep_theirs(tmp_path: Path, umask) -> None:
    for mask, expected in ((0o022, 0o644), (0o002, 0o664), (0o077, 0o600)):
        umask(mask)
        files.write_json(tmp_path / f"{mask}.json", {})
        assert mode(tmp_path / f"{mask}.json") == expected
    (tmp_path / "2.json").chmod(0o660)
    files.write_json(tmp_path / "2.json", {"again": 1})
    assert mode(tmp_path / "2.json") == 0o660


def test_a_saved_network_keeps_its_modes_and_its_link(tmp_path: Path, umask) -> None:
    umask(0o002)
    hiap.save(small_vit(depth=1), tmp_path / "net")
    assert mode(tmp_path / "net") == 0o775
    assert {mode(path) for path in (tmp_path / "net").iterdir()} == {0o664}
    (tmp_path / "net").chmod(0o2770)
    umask(0o077)
    (tmp_path / "link").symlink_to(tmp_path / "net")
    hiap.save(small_vit(depth=2), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert len(hiap.load(tmp_path / "net").blocks) == 2
    assert mode(tmp_path / "net") == 0o2770
    assert {mode(path) for path in (tmp_path / "net").iterdir()} == {0o664}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "net"]


@pytest.mark.parametrize("writable", ["parent", "folder"])
def test_another_users_network_is_refused_before_it_is_touched(shared: Path, writable: str) -> None:
    hiap.save(small_vit(depth=1), shared / "net")
    os.chmod(shared if writable == "parent" else shared / "net", 0o777)
    before = sorted(path.name for path in shared.rglob("*"))
    error = as_another_user(lambda: hiap.save(small_vit(depth=2), shared / "net"))
    assert error.startswith(StoreError.__name__)
    assert error.endswith("does not let you replace it; nothing was written")
    assert sorted(path.name for path in shared.rglob("*")) == before
    assert len(hiap.load(shared / "net").blocks) == 1


def test_a_group_may_replace_each_others_networks(shared: Path) -> None:
    hiap.save(small_vit(depth=1), shared / "net")
    for path in (shared, shared / "net"):
        os.chmod(path, 0o777)
    assert as_another_user(lambda: hiap.save(small_vit(depth=2), shared / "net")) == ""
    assert len(hiap.load(shared / "net").blocks) == 2
    assert [path.name for path in shared.iterdir()] == ["net"]
    os.chmod(shared, 0o1777)  # but not where only owners may, as in /tmp
    os.chown(shared / "net", 0, 0)
    assert "does not let you replace it" in as_another_user(lambda: hiap.save(small_vit(depth=1), shared / "net"))


@pytest.mark.parametrize("failing", [1, 2])
def test_a_folder_that_cannot_take_its_place_leaves_all_as_it_was(
    failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "old").touch()
    calls, replace = [], os.replace

    def fails(source: object, target: object) -> None:
        calls.append(target)
        if len(calls) == failing:
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="Input/output"), files.atomic_folder(tmp_path / "net") as folder:
        (folder / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["net", "old"]


def test_what_cannot_be_removed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that another process has open, on NFS."""
    (tmp_path / "net").mkdir()
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
    with (
        pytest.warns(UserWarning, match="cannot be removed; remove it by hand"),
        files.atomic_folder(tmp_path / "net") as folder,
    ):
        (folder / "new").touch()
    assert (tmp_path / "net" / "new").exists()


def test_another_users_lock_is_waited_for_or_told(shared: Path) -> None:
    os.chmod(shared, 0o777)
    with locks.locked(shared / "launcher.lock", wait=False):
        assert mode(shared / "launcher.lock") & 0o022 == 0

        def follow() -> None:
            with locks.locked(shared / "launcher.lock", wait=False):
                pass

        assert "another launcher follows this grid (process" in as_another_user(follow)
    assert as_another_user(follow) == ""


@pytest.mark.parametrize("number", [524, errno.EPERM, errno.EBADF, errno.ENOTTY, errno.EPROTONOSUPPORT, errno.ENOLCK])
def test_whatever_a_file_system_without_locks_answers(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(*args: object) -> None:
        raise OSError(number, "whatever")

    monkeypatch.setattr(fcntl, "flock", flock)
    with files.file_lock(tmp_path / "a"):
        assert "has no locks; going on without" in capsys.readouterr().err
    with locks.locked(tmp_path / "b.lock", wait=False):
        assert (tmp_path / "b.held").exists()


def test_results_of_another_user_are_refused_before_anything_starts(shared: Path) -> None:
    path = write_grid(shared, runs={"dense": RUNS["dense"]})
    os.chmod(path, 0o644)
    (run,) = runs_of(path, shared / "out")
    run.folders.runs.mkdir(parents=True)
    os.chmod(shared / "out", 0o777)
    for folder in ((shared / "out" / "work"), run.folders.work.parent):
        folder.mkdir()  # not writable for others: where status.html would be
    error = as_another_user(lambda: _refused(path, shared / "out"))
    assert "ConfigError: " in error
    assert f"--results {shared / 'out'}: cannot write in {run.folders.runs} (Permission denied)" in error
    os.chmod(run.folders.runs, 0o777)
    error = as_another_user(lambda: _refused(path, shared / "out"))
    assert f"cannot write in {run.folders.work.parent} (Permission denied)" in error


def _refused(path: Path, results: Path) -> None:
    from slurm import grid, launch_grid

    loaded = grid.load(path)
    launch_grid._check(runs_of(path, results), results, path, loaded.closes_by, False)


# Which code it was


def repository(folder: Path) -> Path:
    """One with a commit, and a copy of this package's first file somewhere in it."""
    package = folder / "env" / "hiap"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    name = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "-A", "-f"], [*name, "commit", "-qm", "theirs"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return package


def test_the_commit_of_a_repository_around_an_installed_copy_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert record.git_state.__wrapped__() == record.git_state()
    assert len(record.git_state()[0]) == 40
    monkeypatch.setattr(record, "PACKAGE", repository(tmp_path))
    assert record.git_state.__wrapped__() == ("", False)
    assert capsys.readouterr().err == ""


def test_what_git_refuses_to_tell_is_said(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = repository(shared)
    (shared / "env" / "hiap").rename(shared / "hiap")
    monkeypatch.setattr(record, "PACKAGE", shared / package.name)
    monkeypatch.setenv("HOME", str(shared))

    def told() -> None:
        import contextlib
        import io

        with contextlib.redirect_stderr(io.StringIO()) as stream:
            state = record.git_state.__wrapped__()
        raise ConfigError(f"{state} {stream.getvalue()}")

    assert "('', False) commit unknown: git does not tell that of" in (error := as_another_user(told))
    assert "dubious ownership" in error
