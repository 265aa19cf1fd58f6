"""The launcher on a real SLURM of two nodes: ``make slurm-test``. Faults fall on jobs; nothing is lost or differs."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
import slurm_cluster
import test_doctor
import yaml
from slurm_cluster import NODES, Cluster, until

from hiap.formats import store
from slurm import grid as grids
from slurm.grid import Run

pytestmark = [
    pytest.mark.slurm,
    # Where a machine tests for all, what cannot be tested is an error.
    pytest.mark.skipif(
        bool(slurm_cluster.missing()) and not os.environ.get("CI"), reason=slurm_cluster.missing() or "-"
    ),
]
REPOSITORY = Path(__file__).parents[1]
KINDS = ("requeue", "warning", "time-out", "task killed", "node killed")
FAULTS = [(kind, trained) for kind in KINDS for trained in (False, True)]  # on a job that starts, one that trains
BASE = {
    "model": {"img_size": 8, "patch_size": 2, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "data": {"name": "digits"},
    "optim": {"epochs": 12, "batch_size": 16, "lr": 1e-3},
    "gates": {"lr": 0.02},
}
QUICK = {  # where it does not matter what is learned
    **BASE,
    "optim": {"epochs": 2, "batch_size": 64, "lr": 1e-3},
    "gates": {"travel": 7, "keep_head": True},
}
# The launcher, which on one machine need not wait for a shared file system, nor spare its controller.
QUICK_LAUNCHER = """
import sys
from slurm import launch_grid
from slurm.executors import Slurm
Slurm.poll_s, Slurm.grace_s = 1.0, 3.0
sys.exit(launch_grid.main())
"""
SITE = {"signal_delay_s": 90, "time_min": 60, "retries": 5}


accounting = pytest.mark.skipif(
    bool(slurm_cluster.missing(slurm_cluster.ACCOUNTING_PROGRAMS)) and not os.environ.get("CI"),
    reason=slurm_cluster.missing(slurm_cluster.ACCOUNTING_PROGRAMS) or "-",
)


@contextmanager
def running(**options: int) -> Iterator[Cluster]:
    root = Path(tempfile.mkdtemp(prefix="slurm-"))
    made = Cluster(root, **options)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(root)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with running() as made:
        yield made


def write_grid(folder: Path, count: int = 11, site: dict[str, object] | None = None, **changes: object) -> Path:
    """A teacher, and ``count`` runs that start from it."""
    runs: dict[str, dict[str, object]] = {"dense": {"method": "dense"}}
    for i in range(count):
        runs[f"hiap-{i}"] = {"method": "hiap", "model.weights": "run:dense", "penalty.lambda_macro": 0.5 + i / 4}
    path = folder / "grid.yaml"
    values = {"name": "tiny", "about": "a test", "base": BASE, "runs": runs, **changes}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    (folder / "site.yaml").write_text(yaml.safe_dump({**SITE, **(site or {})}))
    return path


def runs_of(path: Path, results: Path) -> list[Run]:
    return grids.expand(grids.load(path), path, {"results": str(results)})


def launcher(path: Path, results: Path, *options: str) -> list[str]:
    site = str(path.parent / "site.yaml")
    command = [sys.executable, "-c", QUICK_LAUNCHER, "--grid", str(path), "--results", str(results), "--site", site]
    return [*command, *options]


def start(cluster: Cluster, path: Path, results: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        launcher(path, results, "--cluster", "slurm"),
        cwd=REPOSITORY,
        env={**cluster.environment, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def fingerprint(run: Run) -> tuple[str, str]:
    """What was measured, and the weights, to the bit."""
    record = json.loads(run.folders.record.read_text())
    measured = {key: record[key] for key in ("metrics", "size", "epochs", "shape")}
    network = (store.ARCHITECTURE, store.WEIGHTS)  # the card beside them tells of the run
    weights = b"".join((run.folders.model / name).read_bytes() for name in network)
    return json.dumps(measured, sort_keys=True), hashlib.sha256(weights).hexdigest()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """The same grid without a queue, in one process: a start of Python costs as much as a run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    path = write_grid(folder)
    command = launcher(path, folder / "out", "--cluster", "debug", "--jobs", str(os.cpu_count()))
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, timeout=1800)
    return {run.run_id: fingerprint(run) for run in runs_of(path, folder / "out")}


def jobs(results: Path) -> dict[str, list[str]]:
    file = results / "work" / "tiny" / "_submitit" / "jobs.json"
    return json.loads(file.read_text())["jobs"] if file.exists() else {}


def test_an_array_after_its_teacher_gives_every_result_once(
    cluster: Cluster, tmp_path: Path, undisturbed: dict[str, tuple[str, str]]
) -> None:
    path = write_grid(tmp_path)
    out = start(cluster, path, tmp_path / "out")
    text, _ = out.communicate(timeout=1800)
    assert out.returncode == 0, text
    runs = runs_of(path, tmp_path / "out")
    assert {run.run_id: fingerprint(run) for run in runs} == undisturbed
    assert {run_id: len(ids) for run_id, ids in jobs(tmp_path / "out").items()} == dict.fromkeys(undisturbed, 1)
    assert len(list(runs[0].folders.runs.glob("*.json"))) == len(runs)


def test_packs_give_the_same_though_one_is_requeued(
    cluster: Cluster, tmp_path: Path, undisturbed: dict[str, tuple[str, str]]
) -> None:
    path = write_grid(tmp_path, pack=4)
    out = start(cluster, path, tmp_path / "out")
    students = {run.run_id for run in runs_of(path, tmp_path / "out")[1:]}

    def training() -> set[str]:
        """Jobs of packs in which a run has a checkpoint."""
        packed = {ids[-1] for run, ids in jobs(tmp_path / "out").items() if run in students}
        return packed & in_training(tmp_path / "out")

    until(lambda: bool(training()), "a student that has a checkpoint", 300)
    cluster.run("scancel", "--signal=USR2", training().pop())
    text, _ = out.communicate(timeout=1800)
    assert out.returncode == 0, text
    runs = runs_of(path, tmp_path / "out")
    assert {run.run_id: fingerprint(run) for run in runs} == undisturbed
    assert len({ids[-1] for ids in jobs(tmp_path / "out").values()}) == 4, "the teacher, and 4 + 4 + 3 students"
    assert all(len(ids) == 1 for ids in jobs(tmp_path / "out").values()), "requeued, not submitted again"
    assert sum(json.loads(run.folders.record.read_text())["resumed"] for run in runs) > 0


@dataclass
class Fault:
    """One that fell on an attempt of a job: the one after so many requeues."""

    kind: str
    job: str
    restarts: int
    mended: bool = False

    def effect(self, cluster: Cluster) -> str:
        """What SLURM says became of that attempt; '' while it runs on, or if it ended as if nothing had happened."""
        state, restarts = job_of(cluster, self.job)
        if restarts > self.restarts:
            return "requeued"
        return state if state in ("FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL") else ""


def job_of(cluster: Cluster, job: str) -> tuple[str, int]:
    """State and requeues."""
    shown = cluster.run("scontrol", "show", "job", job)
    return re.findall(r"JobState=(\w+)", shown)[0], int(re.findall(r"Restarts=(\d+)", shown)[0])


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_nothing_is_lost_or_different_while_faults_fall(
    seed: int, cluster: Cluster, tmp_path: Path, undisturbed: dict[str, tuple[str, str]]
) -> None:
    path = write_grid(tmp_path)
    out = start(cluster, path, tmp_path / "out")
    rng = random.Random(seed)
    faults = rng.sample(FAULTS, len(FAULTS))
    done: list[Fault] = []
    while faults and out.poll() is None:
        time.sleep(rng.uniform(0.5, 1.5))
        mend(cluster, done)
        known = {(fault.job, fault.restarts) for fault in done}
        done += strike(cluster, faults, rng, known, in_training(tmp_path / "out"))
    while out.poll() is None:
        mend(cluster, done)
        time.sleep(1)
    text = out.communicate()[0]
    assert out.returncode == 0, text
    assert not faults, f"the grid was over before {faults}"
    effects = [(fault.kind, fault.job, fault.effect(cluster)) for fault in done]
    print(*effects, sep="\n")
    assert all(effect for _, _, effect in effects), effects
    assert {kind for kind, _, _ in effects} == set(KINDS)
    runs = runs_of(path, tmp_path / "out")
    assert {run.run_id: fingerprint(run) for run in runs} == undisturbed
    assert sum(json.loads(run.folders.record.read_text())["resumed"] for run in runs) > 0, done
    assert len(list(runs[0].folders.runs.glob("*.json"))) == len(runs)


def in_training(results: Path) -> set[str]:
    """Newest jobs of the runs that have a checkpoint: a fault on one of them must not cost what it has learned."""
    work = results / "work" / "tiny"
    return {ids[-1] for run_id, ids in jobs(results).items() if list((work / run_id / "checkpoints").glob("*.pt"))}


def strike(
    cluster: Cluster,
    faults: list[tuple[str, bool]],
    rng: random.Random,
    struck: set[tuple[str, int]],
    trained: set[str],
) -> list[Fault]:
    """The next of ``faults``, which is taken away, on an attempt that none has hit yet; [] if there is none. Half of
    them are for a job of ``trained``, half for one that has just started, however long the machine takes to start."""
    free = [task for task in sorted(processes(cluster)) if (task.job, task.restarts) not in struck]
    if not free or len(cluster.processes) < 4:  # a node is down: one at a time
        return []
    wanted = {of_trained for _, of_trained in faults}
    # A job that trains is rarer than one that starts: it is taken as long as there is a fault for it.
    fit = [task for task in free if (task.job in trained) in wanted]
    rare = [task for task in fit if task.job in trained]
    if not fit:
        return []
    task = rng.choice(rare or fit)
    fault = next(fault for fault in reversed(faults) if fault[1] == (task.job in trained))
    kind = fault[0]
    hit = [task]
    if kind == "node killed":  # as when its power fails: the controller finds out by itself
        hit = [other for other in free if other.node == task.node]
        cluster.kill(task.node)
        cluster.power_off(task.node)
    elif kind == "task killed":
        os.kill(task.pid, signal.SIGKILL)
    else:
        if kind == "time-out":  # a run that hangs, so that its time is over before it is
            os.kill(task.pid, signal.SIGSTOP)
        command = {
            "requeue": ["scontrol", "requeue", task.job],
            "warning": ["scancel", "--signal=USR2", task.job],
            "time-out": ["scontrol", "update", f"JobId={task.job}", "TimeLimit=1"],
        }[kind]
        if subprocess.run(command, env=cluster.environment, capture_output=True).returncode:
            return []
    faults.remove(fault)
    return [Fault(kind, other.job, other.restarts) for other in hit]


def mend(cluster: Cluster, done: list[Fault]) -> None:
    """Start a node again as soon as the controller has given it up, which it may not do for minutes, or after a minute,
    as one that was only rebooted; and a job that ran out of time gets enough again, or every attempt would be over
    before a slow machine has started it."""
    for node in NODES:
        if node in cluster.processes:
            continue
        given_up = "down" in cluster.run("sinfo", "-h", "-N", "-n", node, "-o", "%t")
        if given_up or time.monotonic() - cluster.killed[node] > 60:
            cluster.start_node(node)
    for fault in done:
        if fault.kind == "time-out" and not fault.mended and fault.effect(cluster) == "requeued":
            cluster.run("scontrol", "update", f"JobId={fault.job}", "TimeLimit=60")
            fault.mended = True


class Task(NamedTuple):
    job: str
    restarts: int
    pid: int
    node: str


def processes(cluster: Cluster) -> list[Task]:
    """The training processes of this cluster that have been up for some seconds."""
    found = []
    for pid, environment in cluster.started():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            age = time.time() - Path(f"/proc/{pid}").stat().st_mtime
        except OSError:
            continue
        # srun's command line holds python's.
        if b"python" in command[0] and b"submitit.core._submit" in command and age > 4:
            restarts = int(environment.get("SLURM_RESTART_COUNT", "0"))
            found.append(Task(job_in(environment), restarts, pid, environment["SLURMD_NODENAME"]))
    return found


def job_in(environment: dict[str, str]) -> str:
    """As squeue names it: the bare number of an array's last element is that of the whole array."""
    if "SLURM_ARRAY_JOB_ID" not in environment:
        return environment["SLURM_JOB_ID"]
    return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"


def test_students_of_a_teacher_that_was_killed_wait_for_its_next_job(cluster: Cluster, tmp_path: Path) -> None:
    path = write_grid(tmp_path, count=3, site={"retries": 1})
    out = start(cluster, path, tmp_path / "out")
    until(lambda: processes(cluster), "the teacher", 120)
    os.kill(processes(cluster)[0].pid, signal.SIGKILL)
    text, _ = out.communicate(timeout=600)
    assert out.returncode == 0, text
    runs = runs_of(path, tmp_path / "out")
    assert all(run.finished for run in runs)
    assert len(jobs(tmp_path / "out")[runs[0].run_id]) == 2
    assert len(list(runs[0].folders.runs.glob("*.json"))) == len(runs)


def test_a_launcher_killed_between_sbatch_and_its_note_submits_nothing_twice(cluster: Cluster, tmp_path: Path) -> None:
    path = write_grid(tmp_path, count=3, base=QUICK)
    wrapper = tmp_path / "bin" / "sbatch"
    wrapper.parent.mkdir()
    real = shutil.which("sbatch", path=cluster.environment["PATH"])
    wrapper.write_text(f'#!/bin/sh\n{real} "$@" >/dev/null\nkill -9 $PPID\n')
    wrapper.chmod(0o755)
    own, cluster.environment["PATH"] = cluster.environment["PATH"], f"{wrapper.parent}:{cluster.environment['PATH']}"
    first = start(cluster, path, tmp_path / "out")
    assert first.wait(120) == -signal.SIGKILL
    assert jobs(tmp_path / "out") == {}
    assert len(cluster.run("squeue", "-h", "-r", "-o", "%i").split()) == 1, "the teacher's job"
    cluster.environment["PATH"] = own
    second = start(cluster, path, tmp_path / "out")
    text, _ = second.communicate(timeout=600)
    assert second.returncode == 0, text
    assert all(run.finished for run in runs_of(path, tmp_path / "out"))
    assert [len(ids) for ids in jobs(tmp_path / "out").values()] == [1] * 4
    shown = cluster.run("scontrol", "show", "job")
    assert len(re.findall(r"^JobId=", shown, re.MULTILINE)) == 4, "one job for each run"


def test_a_cancelled_grid_stays_cancelled_though_its_launcher_lives(cluster: Cluster, tmp_path: Path) -> None:
    path = write_grid(tmp_path, count=2)
    out = start(cluster, path, tmp_path / "out")
    until(lambda: processes(cluster), "the teacher", 120)
    command = launcher(path, tmp_path / "out", "--cancel")
    done = subprocess.run(command, cwd=REPOSITORY, env=cluster.environment, capture_output=True, text=True, check=True)
    assert done.stdout == "cancelled 3 jobs\n"
    text, _ = out.communicate(timeout=120)
    assert out.returncode == 1
    assert text.count("not run (cancelled)") == 3
    assert all(len(ids) == 1 for ids in jobs(tmp_path / "out").values())
    until(lambda: not cluster.run("squeue", "-h").strip(), "an empty queue")


def test_arrays_are_split_where_the_site_caps_their_size(tmp_path: Path) -> None:
    with running(max_array=5) as cluster:
        path = write_grid(tmp_path)
        cluster.run("scontrol", "update", "PartitionName=main", "State=DOWN")
        out = start(cluster, path, tmp_path / "out")
        try:
            until(lambda: len(jobs(tmp_path / "out")) == 12, "all jobs", 60)
        finally:
            out.kill()
            out.communicate()
        scripts = sorted((tmp_path / "out" / "work" / "tiny" / "_submitit").glob("*_submission.sh"))
        arrays = [re.findall(r"--array=0-(\d+)", script.read_text()) for script in scripts]
        assert sorted(arrays) == [[], [], ["4"], ["4"]], "the teacher, and 5 + 5 + 1 students"
        assert len(cluster.run("squeue", "-h", "-r", "-o", "%i").split()) == 12


def test_a_launcher_killed_and_started_again_submits_nothing_twice(cluster: Cluster, tmp_path: Path) -> None:
    path = write_grid(tmp_path, count=3, base=QUICK)
    first = start(cluster, path, tmp_path / "out")
    until(lambda: len(jobs(tmp_path / "out")) == 4, "all jobs", 60)
    first.kill()
    first.communicate()
    second = start(cluster, path, tmp_path / "out")
    text, _ = second.communicate(timeout=600)
    assert second.returncode == 0, text
    assert all(len(ids) == 1 for ids in jobs(tmp_path / "out").values())
    assert len(list((tmp_path / "out" / "work" / "tiny" / "_submitit").glob("*_submission.sh"))) == 2
    assert all(run.finished for run in runs_of(path, tmp_path / "out"))


def test_code_edited_while_jobs_queue_does_not_reach_them(cluster: Cluster, tmp_path: Path) -> None:
    """The checkout that submits is a copy, broken as soon as the jobs are in the queue."""
    checkout = tmp_path / "checkout"
    for name in ("hiap", "baselines", "slurm", "results/published"):
        shutil.copytree(REPOSITORY / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    path = write_grid(tmp_path, count=1, base=QUICK)
    cluster.run("scontrol", "update", "PartitionName=main", "State=DOWN")
    out = subprocess.Popen(
        launcher(path, tmp_path / "out", "--cluster", "slurm"),
        cwd=checkout,
        env={**cluster.environment, "PYTHONPATH": str(checkout)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    until(lambda: len(jobs(tmp_path / "out")) == 2, "all jobs", 60)
    for module in (checkout / "hiap").glob("*.py"):
        module.write_text("raise RuntimeError('edited')\n")
    cluster.run("scontrol", "update", "PartitionName=main", "State=UP")
    text, _ = out.communicate(timeout=600)
    assert all(run.finished for run in runs_of(path, tmp_path / "out")), text


def test_no_controller_is_one_clear_line(cluster: Cluster, tmp_path: Path) -> None:
    path = write_grid(tmp_path, count=1, base=QUICK)
    record, content = finish_teacher(path, tmp_path / "out")
    cluster.kill("slurmctld")
    try:
        done = subprocess.run(
            launcher(path, tmp_path / "out", "--cluster", "slurm"),
            cwd=REPOSITORY,
            env=cluster.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
    finally:
        cluster.start_controller()
    assert done.returncode == 2
    assert (
        done.stderr == "error: --cluster slurm: no SLURM controller answers here; expected 'scontrol ping' to succeed\n"
    )
    assert record.read_bytes() == content
    assert not (tmp_path / "out" / "work" / "tiny" / "_submitit" / "jobs.json").exists()


@contextmanager
def small_disk(folder: Path, options: str) -> Iterator[None]:
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], capture_output=True).returncode:
        pytest.skip("cannot mount here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def finish_teacher(path: Path, results: Path) -> tuple[Path, bytes]:
    """The first run's record, and what it holds."""
    command = launcher(path, results, "--cluster", "debug", "--jobs", str(os.cpu_count()), "--only", "dense")
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, timeout=300)
    record = runs_of(path, results)[0].folders.record
    return record, record.read_bytes()


@pytest.mark.parametrize(
    ("options", "line"),
    [("size=8m", "No space left on device"), ("size=8m", "Read-only file system")],
    ids=["full", "read-only"],
)
def test_a_results_folder_that_takes_nothing_is_one_clear_line(
    options: str, line: str, cluster: Cluster, tmp_path: Path
) -> None:
    results = tmp_path / "out"
    path = write_grid(tmp_path, count=1, base=QUICK)
    with small_disk(results, options):
        record, content = finish_teacher(path, results)
        if line.startswith("No"):
            fill(results)
        else:
            subprocess.run(["mount", "-o", "remount,ro", str(results)], check=True)
        command = launcher(path, results, "--cluster", "slurm")
        done = subprocess.run(command, cwd=REPOSITORY, env=cluster.environment, capture_output=True, text=True)
        assert record.read_bytes() == content
    assert done.returncode == 2
    assert done.stderr == f"error: --results {results}: cannot write in {results} ({line})\n"


def fill(folder: Path) -> Path:
    """Nothing else fits."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return path


def test_a_disk_that_fills_while_runs_go_on_loses_nothing_that_is_finished(cluster: Cluster, tmp_path: Path) -> None:
    results = tmp_path / "out"
    path = write_grid(tmp_path, count=2)
    with small_disk(results, "size=16m"):
        record, content = finish_teacher(path, results)
        out = start(cluster, path, results)
        until(lambda: processes(cluster), "students that train", 120)
        filler = fill(results)
        text, _ = out.communicate(timeout=300)
        assert out.returncode == 1
        assert "Traceback" not in text
        (error,) = [line for line in text.splitlines() if line.startswith("error: ")]
        assert "No space left on device; finished results are kept" in error
        assert record.read_bytes() == content
        filler.unlink()
        again = start(cluster, path, results)
        text, _ = again.communicate(timeout=300)
        assert again.returncode == 0, text
        assert record.read_bytes() == content
        assert all(run.finished for run in runs_of(path, results))
        cluster.run("scancel", "--user=root")


# Large batches and few steps: in the long run rounding grows, as it does between two kinds of CPU.
SHARED = {
    **BASE,
    "optim": {"epochs": 8, "batch_size": 128, "lr": 1e-3},
    "gates": {"lr": 0.1, "noise": "shared", "keep_head": True},
}
TWO_BY_TWO = {"site": {"processes_per_node": 2}, "processes": 4, "base": SHARED}


def curve(run: Run) -> list[float]:
    return [epoch["loss"] for epoch in json.loads(run.folders.record.read_text())["epochs"]]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> list[list[float]]:
    folder = tmp_path_factory.mktemp("one")
    path = write_grid(folder, count=1, base=SHARED)
    command = launcher(path, folder / "out", "--cluster", "debug", "--jobs", str(os.cpu_count()))
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, timeout=900)
    return [curve(run) for run in runs_of(path, folder / "out")]


@pytest.mark.parametrize("warned", [False, True], ids=["undisturbed", "requeued"])
def test_two_nodes_with_two_tasks_each_give_the_loss_curve_of_one_process(
    warned: bool, cluster: Cluster, tmp_path: Path, one_process: list[list[float]]
) -> None:
    path = write_grid(tmp_path, count=1, **TWO_BY_TWO)  # type: ignore[arg-type]
    runs = runs_of(path, tmp_path / "out")
    out = start(cluster, path, tmp_path / "out")
    if warned:
        checkpoints = runs[0].folders.work / "checkpoints"
        until(lambda: any(checkpoints.glob("*.pt")), "a checkpoint", 120)
        cluster.run("scancel", "--signal=USR2", cluster.run("squeue", "-h", "-o", "%A", "-t", "R").split()[0])
    text, _ = out.communicate(timeout=1800)
    assert out.returncode == 0, text
    for run, expected in zip(runs, one_process, strict=True):
        assert curve(run) == pytest.approx(expected, rel=1e-5)
        assert json.loads(run.folders.record.read_text())["environment"]["processes"] == 4
    assert json.loads(runs[0].folders.record.read_text())["resumed"] == int(warned)


def test_a_job_that_dies_of_its_own_is_tried_a_stated_number_of_times(cluster: Cluster, tmp_path: Path) -> None:
    site = {"retries": 1, "setup": ["echo 'cannot allocate memory' >&2; exit 1"]}
    path = write_grid(tmp_path, count=1, site=site)
    out = start(cluster, path, tmp_path / "out")
    text, _ = out.communicate(timeout=300)
    assert out.returncode == 1, text
    dense, hiap = runs_of(path, tmp_path / "out")
    assert len(jobs(tmp_path / "out")[dense.run_id]) == 2
    (record,) = dense.folders.runs.glob("*.failed-*.json")
    assert "gave up after 2 jobs without a record" in json.loads(record.read_text())["error"]
    status = subprocess.run(
        launcher(path, tmp_path / "out", "--status"), cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert "gave up after 2 jobs" in status.stdout
    assert not hiap.finished


def test_more_than_the_cluster_has_is_one_clear_line(cluster: Cluster, tmp_path: Path) -> None:
    path = write_grid(tmp_path, count=1, site={"cpus_per_task": 3})
    command = launcher(path, tmp_path / "out", "--cluster", "slurm")
    done = subprocess.run(command, cwd=REPOSITORY, env=cluster.environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "error: partition 'main' offers at most 2 CPUs per node (cpus_per_task), not 3\n"


def test_five_hundred_runs_are_quick(cluster: Cluster, tmp_path: Path) -> None:
    """Nothing runs: what is measured is the launcher and the controller."""
    path = write_grid(tmp_path, count=499)
    cluster.run("scontrol", "update", "PartitionName=main", "State=DOWN")
    begin = time.perf_counter()
    out = start(cluster, path, tmp_path / "out")
    try:
        until(lambda: len(jobs(tmp_path / "out")) == 500, "500 jobs", 120)
        seconds = time.perf_counter() - begin
    finally:
        out.kill()
        out.communicate()
    folder = tmp_path / "out" / "work" / "tiny" / "_submitit"
    print(f"{seconds:.1f} s")
    assert len(list(folder.glob("*_submission.sh"))) == 2
    assert seconds < 30


# Clusters as they are


def test_tasks_that_srun_starts_by_hand_are_one_run(cluster: Cluster, tmp_path: Path) -> None:
    path = write_grid(tmp_path, count=0, base=SHARED)
    (run,) = runs_of(path, tmp_path / "out")
    config = run.config.model_dump(mode="json", exclude_defaults=True)
    keys = [
        f"{section}.{key}={value}" for section in ("model", "data", "optim") for key, value in config[section].items()
    ]
    command = [sys.executable, "-m", "hiap.train", "method=dense", *keys, f"run.results={tmp_path / 'hand'}"]
    environment = {**cluster.environment, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["srun", "-N", "2", "-n", "2", *command],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (record,) = (tmp_path / "hand" / "runs").rglob("*.json")
    assert json.loads(record.read_text())["environment"]["processes"] == 2


def test_a_container_without_scontrol_is_requeued_from_outside_of_it(cluster: Cluster, tmp_path: Path) -> None:
    """And the launcher runs within a job, whose variables are not for the jobs that it submits."""
    inside = {"SLURM_JOB_ID": "999", "SLURM_NTASKS": "7", "SLURM_MEM_PER_CPU": "999999", "SLURM_STEP_NUM_TASKS": "1"}
    path = write_grid(tmp_path, count=0, site={"python": f"env PATH=/nowhere {sys.executable}"})
    (run,) = runs_of(path, tmp_path / "out")
    out = start(cluster, path, tmp_path / "out", **inside)
    until(lambda: any((run.folders.work / "checkpoints").glob("*.pt")), "a checkpoint", 120)
    (job,) = cluster.run("squeue", "-h", "-o", "%A", "-t", "R").split()
    cluster.run("scancel", "--signal=USR2", job)
    text, _ = out.communicate(timeout=600)
    assert out.returncode == 0, text
    assert job_of(cluster, job)[1] == 1, "requeued, not submitted anew"
    assert json.loads(run.folders.record.read_text())["resumed"] == 1
    assert jobs(tmp_path / "out") == {run.run_id: [job]}


def test_the_doctor_names_five_faults_of_this_cluster(cluster: Cluster, tmp_path: Path) -> None:
    """It has no GPUs to ask for; the others are planted."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("srun", "taskset", "mkdir"):
        (tools / name).symlink_to(str(shutil.which(name)))
    site = test_doctor.planted(tmp_path)
    site["setup"].append(f"export PATH={tools}")
    path = test_doctor.sick_grid(tmp_path)
    (tmp_path / "site.yaml").write_text(yaml.safe_dump({**SITE, **site}))
    environment = {**cluster.environment, "HF_HOME": str(test_doctor.weights_here(tmp_path))}
    command = launcher(path, tmp_path / "out", "--doctor")
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    for fault in (
        "Invalid generic resource (gres) specification",
        "a task gets 1 of the 2 CPUs that it asks for",
        "no scontrol where python runs",
        "is on the node alone",
        "the node has no network, and weights of deit_tiny_patch16_224 lie here where it does not see them",
    ):
        assert fault in done.stdout
    assert yaml.safe_load(done.stdout.split("To write in slurm/site.yaml:")[1]) == {
        "gpus": "none",
        "srun": ["--cpu-bind=none"],
        "data_on_nodes": True,
        "cache": "/a/folder/that/all/nodes/see",
    }


@accounting
def test_wckeys_and_limits_that_accounting_enforces_are_kept(tmp_path: Path) -> None:
    """MaxSubmitJobs below the grid's size; a wckey of the site's; and a wckey that nobody has."""
    with running(accounting=True) as cluster:
        cluster.account("add", "account", "lab")
        cluster.account("add", "user", "root", "account=lab", "wckeys=vision,theory")
        cluster.account("modify", "user", "root", "where", "account=lab", "set", "MaxSubmitJobs=3")
        path = write_grid(tmp_path, count=5, base=QUICK, site={"account": "lab", "wckey": "wrong"})
        text, _ = (out := start(cluster, path, tmp_path / "out")).communicate(timeout=120)
        assert out.returncode != 0
        assert "Invalid wckey" in text
        assert not cluster.run("squeue", "-h")
        path = write_grid(tmp_path, count=5, base=QUICK, site={"account": "lab", "wckey": "theory"})
        out, most = start(cluster, path, tmp_path / "out"), 0
        while out.poll() is None:
            most = max(most, len(cluster.run("squeue", "-h", "-r").splitlines()))
            time.sleep(0.5)
        assert out.stdout is not None
        assert out.returncode == 0, out.stdout.read()
        assert all(run.finished for run in runs_of(path, tmp_path / "out"))
        assert 1 < most <= 3
        until(lambda: "theory" in cluster.run("sacct", "-nX", "-o", "wckey%20"), "the accounts", 60)
        listed = cluster.run("sacct", "-nX", "-o", "account%20,wckey%20").split()
        assert listed == ["lab", "theory"] * 6
