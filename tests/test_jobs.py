"""The launcher and a queue made of shell scripts: nothing is submitted twice, given up too early, or forgotten."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import fake_train
import pytest
from fake_queue import lines, logs
from test_launch_grid import REPOSITORY, RUNS, events, fake, runs_of, wait_for, write_grid  # noqa: F401

from hiap.files import write_json
from hiap.train.config import ConfigError
from hiap.train.record import write_status
from hiap.train.rendezvous import port
from slurm import launch_grid, report
from slurm.executors import Slurm
from slurm.grid import Run
from slurm.job import STOPPED, Job, Pack
from slurm.jobs import Jobs, Queued, checkpoint_of
from slurm.site import Site


class Silent:
    def show(self, progress: list[report.Progress]) -> None:
        pass


class Scripted:
    """A queue in which a job ends at once: a run with its record if those it needs have theirs. The first job of each
    run labelled in ``die`` leaves nothing."""

    slots = None

    def __init__(self, *die: str):
        self.die, self.jobs, self.tries = die, Counter[str](), Counter[str]()

    def followed(self, runs: list[Run]) -> nullcontext[None]:
        return nullcontext()

    def submit(self, runs: list[Run]) -> list[Run]:
        self.jobs.update(run.label for run in runs)
        return []

    def alive(self, run: Run) -> bool:
        dies = run.label in self.die and self.jobs[run.label] < 2
        if self.jobs[run.label] and not dies and all(need.finished for need in run.needs):
            fake_train.leave(fake_train.make_record(run.config, "finished"))
        return False

    def reason(self, run: Run) -> str:
        return "-"

    def again(self, run: Run) -> bool:
        self.tries[run.label] += 1
        return self.tries[run.label] < 3

    def cancelled(self, run: Run) -> bool:
        return False

    def wait(self) -> None:
        pass

    def stop(self) -> str:
        return ""


def test_runs_whose_teacher_died_wait_for_its_next_job_and_spend_no_try(tmp_path: Path) -> None:
    runs = runs_of(write_grid(tmp_path), tmp_path / "out")
    executor = Scripted("dense")
    progress = launch_grid.execute(runs, executor, Silent())  # type: ignore[arg-type]
    assert {p.run.label: p.state for p in progress} == dict.fromkeys(RUNS, "finished")
    assert executor.tries == {"dense": 1}


def test_a_submission_that_its_launcher_did_not_survive_is_found_again(tmp_path: Path, queue: Path) -> None:
    path = write_grid(tmp_path, seeds=[0, 1], runs={"dense": RUNS["dense"]})
    (queue / "kill-after").touch()
    command = [sys.executable, "slurm/launch_grid.py", "--grid", str(path), "--cluster", "slurm", "--results"]
    done = subprocess.run([*command, str(tmp_path / "out")], cwd=REPOSITORY, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    (queue / "kill-after").unlink()
    before = lines(queue)
    assert len(before) == 2
    runs, executor = runs_of(path, tmp_path / "out"), Slurm(logs(tmp_path), None)
    assert not any(executor.alive(run) for run in runs), "their ids were not noted"
    with executor.followed(runs):
        assert [executor.jobs.newest(run) for run in runs] == ["1_0", "1_1"]
        assert all(executor.alive(run) for run in runs)
    assert lines(queue) == before
    assert all((logs(tmp_path) / f"1_{i}_submitted.pkl").exists() for i in (0, 1)), "jobs wait for what they are to run"
    assert Slurm(logs(tmp_path), None).jobs.intents == []


def test_a_launcher_that_died_before_sbatch_has_submitted_nothing(tmp_path: Path, queue: Path) -> None:
    path = write_grid(tmp_path, runs={"dense": RUNS["dense"]})
    (queue / "kill-before").touch()
    command = [sys.executable, "slurm/launch_grid.py", "--grid", str(path), "--cluster", "slurm", "--results"]
    # The scripted sbatch goes on after its parent's death, as the real one does: it gets through later.
    subprocess.run([*command, str(tmp_path / "out")], cwd=REPOSITORY, capture_output=True)
    (queue / "kill-before").unlink()
    runs, executor = runs_of(path, tmp_path / "out"), Slurm(logs(tmp_path), None)
    executor.settle_s = 5.0
    with executor.followed(runs):
        assert executor.jobs.newest(runs[0]) == "1"
    assert len(lines(queue)) == 1


def test_an_sbatch_that_fails_after_it_was_taken_is_not_repeated(tmp_path: Path, queue: Path) -> None:
    runs = runs_of(write_grid(tmp_path, seeds=[0, 1], runs={"dense": RUNS["dense"]}), tmp_path / "out")
    executor = Slurm(logs(tmp_path), None)
    executor.accepted = True
    (queue / "late").touch()
    assert executor.submit(runs) == runs
    (queue / "late").unlink()
    assert executor.submit(runs) == []
    assert len(lines(queue)) == 2
    assert [executor.jobs.newest(run) for run in runs] == ["1_0", "1_1"]


def test_a_second_launcher_says_so_in_one_line(tmp_path: Path, queue: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_grid(tmp_path)
    runs = runs_of(path, tmp_path / "out")
    with Slurm(logs(tmp_path), None).followed(runs):
        options = ["--grid", str(path), "--results", str(tmp_path / "out"), "--cluster", "slurm"]
        assert launch_grid.main(options) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"another launcher follows this grid (process {os.getpid()} on " in error
    assert lines(queue) == []
    with Slurm(logs(tmp_path), None).followed(runs):
        pass


def test_a_refused_retry_is_repeated_and_a_refused_start_is_an_error(
    tmp_path: Path, queue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = runs_of(write_grid(tmp_path), tmp_path / "out")
    executor = Slurm(logs(tmp_path), None)
    (queue / "refuse").touch()
    with pytest.raises(ConfigError, match=r"sbatch refused dense and 0 more: .*Unable to contact"):
        executor.submit(runs)
    (queue / "refuse").unlink()
    assert executor.submit(runs[:1]) == []
    (queue / "refuse").touch()
    for _ in range(3):
        assert executor.submit(runs[1:]) == runs[1:]
    assert capsys.readouterr().err.count("trying again for 15 minutes") == 1
    executor.patience_s = 0.0
    with pytest.raises(ConfigError, match="Unable to contact"):
        executor.submit(runs[1:])
    (queue / "refuse").unlink()
    assert executor.submit(runs[1:]) == []
    assert len(lines(queue)) == 3


def test_only_jobs_that_brought_a_run_no_further_are_counted_and_a_new_launcher_goes_on_counting(
    tmp_path: Path, queue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "hiap.train.run", fake_train)
    (run,) = runs_of(write_grid(tmp_path, runs={"dense": RUNS["dense"]}), tmp_path / "out")
    told: list[str] = []
    monkeypatch.setattr(fake_train, "record_lost", lambda config, error: told.append(error), raising=False)

    def attempt(state: str, step: int | None = None) -> bool:
        executor = Slurm(logs(tmp_path), None, Site(retries=2))
        assert executor.submit([run]) == []
        write_status(run.folders, state=state)
        if step is not None:
            (run.folders.work / "checkpoints").mkdir(exist_ok=True)
            (run.folders.work / "checkpoints" / f"00-{step:09d}-abc.pt").touch()
        return executor.again(run)

    assert all(attempt("stopped") for _ in range(4)), "told to stop"
    assert all(attempt("running", step) for step in range(4)), "lost with its node, but further than before"
    assert checkpoint_of(run.folders) == "00-000000003"
    assert [attempt("running"), attempt("stopped"), attempt("running"), attempt("running")] == [True, True, True, False]
    assert told == ["gave up after 3 jobs without a record; the last: no log"]
    assert attempt("running"), "launched again, it has its tries again"


def test_cancelled_runs_are_not_submitted_again_by_a_live_launcher(tmp_path: Path, queue: Path) -> None:
    path = write_grid(tmp_path)
    runs = runs_of(path, tmp_path / "out")

    class Cancels(Silent):
        looks = 0

        def show(self, progress: list[report.Progress]) -> None:
            self.looks += 1
            if self.looks == 3:
                options = ["--grid", str(path), "--results", str(tmp_path / "out"), "--cancel"]
                assert launch_grid.main(options) == 0

    executor = Slurm(logs(tmp_path), None)
    with executor.followed(runs):
        progress = launch_grid.execute(runs, executor, Cancels())  # type: ignore[arg-type]
    assert [(p.state, p.note) for p in progress] == [("not run", "cancelled")] * 3
    assert lines(queue) == []
    assert report.status(runs, Jobs(logs(tmp_path)), {}).endswith("3 cancelled")
    assert (queue / "n").read_text().count("\n") == 3, "one array per stage, none again"
    later = Slurm(logs(tmp_path), None)
    with later.followed(runs):
        assert not later.cancelled(runs[0]), "launched again, it is wanted again"


def test_status_tells_what_the_queue_knows_and_how_old_a_word_is(tmp_path: Path) -> None:
    runs = runs_of(write_grid(tmp_path, seeds=list(range(6)), runs={"dense": RUNS["dense"]}), tmp_path / "out")
    running = {"state": "running", "epoch": 2, "epochs": 9, "loss": 1.5, "share": 0.5, "eta_s": 60.0, "restarts": 3}
    for run, state in zip(runs, ["running", "running", "failed", "stopped", "queued", "running"], strict=True):
        write_status(run.folders, **{**running, "state": state})
    jobs = Jobs(logs(tmp_path))
    jobs.ids = {run.run_id: [f"7_{i}"] for i, run in enumerate(runs)}
    listed = {f"7_{i}": Queued(state, "n") for i, state in ((0, "RUNNING"), (2, "PENDING"), (3, "PENDING"))}

    def states(listed: dict[str, Queued] | None) -> list[str]:
        return [line.split()[2] for line in report.status(runs, jobs, listed).splitlines()[2:8]]

    assert states(listed) == ["running", "lost", "queued", "queued", "lost", "lost"]
    first = report.status(runs, jobs, listed).splitlines()[2].split()
    assert first[:10] == ["dense", "0", "running", "2/9", "1.500", "50.0%", "1", "min", "00", "s"]
    assert first[-1] == "3"
    write_json(runs[1].folders.status, {**running, "updated": "2020-01-01T00:00:00+00:00"})
    assert states(None) == ["running", "stale", "failed", "stopped", "queued", "running"]


def test_a_run_is_queued_from_its_submission_on(tmp_path: Path, queue: Path) -> None:
    (run,) = runs_of(write_grid(tmp_path, runs={"dense": RUNS["dense"]}), tmp_path / "out")
    write_status(run.folders, state="failed", error="of old")
    Slurm(logs(tmp_path), None).submit([run])
    shown = report.status([run], Jobs(logs(tmp_path)), None)
    assert "queued" in shown
    assert "of old" not in shown


def test_a_full_disk_ends_the_launcher_with_one_line(
    tmp_path: Path, queue: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_grid(tmp_path)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device", "/results/jobs.json")

    monkeypatch.setattr(launch_grid, "execute", full)
    options = ["--grid", str(path), "--results", str(tmp_path / "out"), "--cluster", "slurm"]
    assert launch_grid.main(options) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("error: /results/jobs.json: No space left on device; finished results are kept")


def test_the_port_is_below_those_that_anyone_may_get_and_differs_between_attempts() -> None:
    ports = [port(job, restarts) for job in range(1, 400) for restarts in range(3)]
    assert all(20_000 <= number < 32_000 for number in ports)
    assert len(set(ports)) == len(ports)


def test_a_warning_and_then_a_sigterm_still_end_in_a_checkpoint_and_a_requeue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hiap.train import checkpoint
    from hiap.train.loop import Loop
    from hiap.train.phase import Phase
    from hiap.train.stopping import Interrupted

    (run,) = runs_of(write_grid(tmp_path, runs={"dense": RUNS["dense"]}), tmp_path / "out")
    requeued: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: requeued.append(number))
    step = Loop._step

    def stopped_at_two(self: Loop, phase: Phase, *args: object) -> object:
        if phase.step == 2:
            for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGUSR2):
                os.kill(os.getpid(), number)
                time.sleep(0.01)
        return step(self, phase, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Loop, "_step", stopped_at_two)
    try:
        with pytest.raises(Interrupted, match="stopped at step 3"):
            Job(run.config)()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert requeued == [signal.SIGUSR2]
    state = checkpoint.load(run.folders.work / "checkpoints")
    assert state is not None
    assert state["step"] == 3
    assert '"queued"' in run.folders.status.read_text()


# Packs


def three(tmp_path: Path, *labels: str) -> list[Run]:
    runs = {label: {"method": "dense", "optim.lr": i + 1} for i, label in enumerate(labels or ("a", "b", "c"))}
    return runs_of(write_grid(tmp_path, runs=runs), tmp_path / "out")


def test_packed_runs_share_jobs_and_are_followed_and_found_again_by_them(tmp_path: Path, queue: Path) -> None:
    runs, executor = three(tmp_path), Slurm(logs(tmp_path), None, pack=2)
    assert executor.submit(runs) == []
    assert len(lines(queue)) == 2
    assert [executor.jobs.newest(run) for run in runs] == ["1_0", "1_0", "1_1"]
    assert "--array=0-1" in next(logs(tmp_path).glob("*_submission.sh")).read_text()
    later = Slurm(logs(tmp_path), None, pack=3)
    assert all(later.alive(run) for run in runs), "however many a later launcher would pack"
    assert later.cancel(runs[1:]) == 1, "the job of a run that is still wanted goes on"
    assert [line.split("|")[0] for line in lines(queue)] == ["1_0"]


def test_a_submission_of_packs_that_its_launcher_did_not_survive_is_found_again(tmp_path: Path, queue: Path) -> None:
    runs, executor = three(tmp_path), Slurm(logs(tmp_path), None, pack=2)
    executor.accepted = True
    (queue / "late").touch()
    assert executor.submit(runs) == runs
    (queue / "late").unlink()
    later = Slurm(logs(tmp_path), None)
    for element in (0, 1):
        (logs(tmp_path) / f"1_{element}_submitted.pkl").unlink(missing_ok=True)
    with later.followed(runs):
        assert [later.jobs.newest(run) for run in runs] == ["1_0", "1_0", "1_1"]
    assert all((logs(tmp_path) / f"1_{i}_submitted.pkl").exists() for i in (0, 1)), "with both runs of the first"


def test_arrays_of_packs_keep_to_what_the_site_allows(tmp_path: Path, queue: Path) -> None:
    runs = three(tmp_path, *"abcdefg")
    executor = Slurm(logs(tmp_path), 2, Site(max_array=2), pack=2)
    assert executor.submit(runs) == []
    scripts = sorted(logs(tmp_path).glob("*_submission.sh"))
    assert len(lines(queue)) == 4
    assert sum("--array=0-1%" in script.read_text() for script in scripts) == 2
    assert Counter(executor.jobs.newest(run) for run in runs) == {"1_0": 2, "1_1": 2, "2_0": 2, "2_1": 1}


def test_a_run_that_fails_takes_no_other_of_its_pack_with_it(tmp_path: Path, fake: Path) -> None:  # noqa: F811
    runs = three(tmp_path, "a", "bad", "dies", "b")
    with pytest.raises(RuntimeError, match=r"2 of 4 runs failed, with exit status: bad \(1\), dies \(-9\)"):
        Pack([run.config for run in runs], tmp_path)()
    assert [run.finished for run in runs] == [True, False, False, True]


def test_a_pack_that_is_warned_is_requeued_and_goes_on_with_what_is_not_finished(
    tmp_path: Path,
    fake: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = three(tmp_path)
    fake_train.leave(fake_train.make_record(runs[0].config, "finished"))
    monkeypatch.setenv("FAKE_SECONDS", "60")
    requeued: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: requeued.append(number))

    def warn() -> None:
        wait_for(lambda: events(fake) == ["start b"])
        for name in ("-USR2", "-TERM"):  # some queues send both; from outside, so that the main thread gets them
            subprocess.run(["kill", name, str(os.getpid())], check=True)

    pack = Pack([run.config for run in runs], tmp_path)
    thread = threading.Thread(target=warn)
    thread.start()
    try:
        with pytest.raises(SystemExit) as stopped:
            pack()
    finally:
        thread.join()
        signal.signal(signal.SIGUSR2, before)
    assert stopped.value.code == STOPPED
    assert requeued == [signal.SIGUSR2]
    assert '"queued"' in runs[1].folders.status.read_text()
    assert events(fake) == ["start b"], "nothing starts in a job that is to end"
    monkeypatch.setenv("FAKE_SECONDS", "0")
    pack()
    assert all(run.finished for run in runs)
