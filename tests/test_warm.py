"""Processes forked from one that has imported everything: each clean, on its own, and gone with what it did."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from hiap.train.warm import LOST, Warm

HERE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def warm() -> Warm:
    return Warm("fractions")  # which nothing imports by itself


def run(warm: Warm, code: str, log: Path | None = None) -> int | None:
    return warm.join(warm.start(partial(exec, code, {}), log), 60)


def test_a_task_has_all_imported_and_leaves_nothing_to_the_next(warm: Warm) -> None:
    assert run(warm, "import sys; sys.exit('fractions' not in sys.modules)") == 0
    assert run(warm, "import sys, fractions; fractions.left = 1; sys.path.append('x')") == 0
    assert run(warm, "import sys, fractions; sys.exit(hasattr(fractions, 'left') or 'x' in sys.path)") == 0


def test_how_a_task_ends_is_told_and_concerns_no_other(warm: Warm) -> None:
    other = warm.start(partial(time.sleep, 1))
    assert run(warm, "import os; os.abort()") == -signal.SIGABRT
    assert run(warm, "import sys; sys.exit(7)") == 7
    assert warm.code(other) is None
    assert warm.join(other, 60) == 0


def test_waiting_ends_when_a_task_does(warm: Warm) -> None:
    begun = time.monotonic()
    slept = warm.start(partial(time.sleep, 0.2))
    while warm.codes[slept] is None:
        warm.wait(60)
    quick = warm.start(partial(time.sleep, 0))
    assert warm.join(quick, 60) == 0
    warm.wait(60)  # its end is known already
    assert time.monotonic() - begun < 50
    warm.wait(0.01)  # nothing else ends


def test_what_a_task_says_goes_to_its_log(warm: Warm, tmp_path: Path) -> None:
    assert run(warm, "print('said'); raise ValueError('why')", tmp_path / "logs" / "a") == 1
    assert (tmp_path / "logs" / "a.out").read_text() == "said\n"
    assert (tmp_path / "logs" / "a.err").read_text().splitlines()[-1] == "ValueError: why"


def test_a_task_can_be_signalled_from_the_moment_it_is_asked_for(warm: Warm) -> None:
    task = warm.start(partial(time.sleep, 60))
    assert warm.join(task, 0.0) is None
    warm.signal(task, signal.SIGTERM)
    assert warm.join(task, 30) == -signal.SIGTERM
    warm.signal(task, signal.SIGTERM)  # it has gone: nothing


def test_a_server_that_is_killed_is_replaced_once_its_tasks_are_gone(tmp_path: Path) -> None:
    warm = Warm()
    assert run(warm, f"import os; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getppid()))") == 0
    task = warm.start(partial(time.sleep, 1.5))
    time.sleep(0.5)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert warm.join(task, 0.2) is None, "it lives on, and holds its locks"
    assert warm.join(task, 30) == LOST
    assert run(warm, "pass") == 0


def test_tasks_outlive_a_launcher_that_is_killed_and_the_server_does_not_outlive_them(tmp_path: Path) -> None:
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    task = f"import os, time; open({a!r}, 'w').write(str(os.getppid())); time.sleep(1); open({b!r}, 'w')"
    code = (
        "import time; from functools import partial; from hiap.train.warm import Warm; warm = Warm()\n"
        f"warm.start(partial(exec, {task!r}, {{}})); time.sleep(60)"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code], cwd=HERE)
    wait_for(lambda: (tmp_path / "a").exists() and (tmp_path / "a").read_text() != "")
    launcher.kill()
    launcher.wait()
    wait_for((tmp_path / "b").exists)
    wait_for(lambda: gone(int((tmp_path / "a").read_text())))


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def wait_for(condition: object) -> None:
    end = time.monotonic() + 30
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
