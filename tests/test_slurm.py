"""The launcher on a real SLURM of two nodes: ``make slurm-test``. Faults fall on jobs; nothing is lost or differs."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_cluster
import yaml
from slurm_cluster import NODES, Cluster, until

from slurm import grid as grids
from slurm.grid import Run

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(slurm_cluster.missing()), reason=slurm_cluster.missing() or "-"),
]
REPOSITORY = Path(__file__).parents[1]
FAULTS = ["requeue"] * 3 + ["warning"] * 3 + ["time-out"] + ["task killed"] * 2 + ["node killed"]
BASE = {
    "model": {"img_size": 8, "patch_size": 2, "embed_dim": 32, "depth": 2, "num_heads": 2},
    "data": {"name": "digits"},
    "optim": {"epochs": 12, "batch_size": 16, "lr": 1e-3},
    "gates": {"lr": 0.02},
}
SITE = {"signal_delay_s": 90, "time_min": 60, "retries": 5}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    root = Path(tempfile.mkdtemp(prefix="slurm-"))
    made = Cluster(root)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(root)


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
    command = [sys.executable, "slurm/launch_grid.py", "--grid", str(path), "--results", str(results), "--site", site]
    return [*command, *options]


def start(cluster: Cluster, path: Path, results: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        launcher(path, results, "--cluster", "slurm"),
        cwd=REPOSITORY,
        env=cluster.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def fingerprint(run: Run) -> tuple[str, str]:
    """What was measured, and the weights, to the bit."""
    record = json.loads(run.folders.record.read_text())
    measured = {key: record[key] for key in ("metrics", "size", "epochs", "shape")}
    weights = b"".join(file.read_bytes() for file in sorted(run.folders.model.glob("*")))
    return json.dumps(measured, sort_keys=True), hashlib.sha256(weights).hexdigest()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """The same grid as processes of this machine."""
    folder = tmp_path_factory.mktemp("undisturbed")
    path = write_grid(folder)
    command = launcher(path, folder / "out", "--cluster", "local", "--jobs", "2")
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, timeout=900)
    return {run.run_id: fingerprint(run) for run in runs_of(path, folder / "out")}


def jobs(results: Path) -> dict[str, list[str]]:
    file = results / "work" / "tiny" / "_submitit" / "jobs.json"
    return json.loads(file.read_text()) if file.exists() else {}


def test_an_array_after_its_teacher_gives_every_result_once(
    cluster: Cluster, tmp_path: Path, undisturbed: dict[str, tuple[str, str]]
) -> None:
    path = write_grid(tmp_path)
    out = start(cluster, path, tmp_path / "out")
    text, _ = out.communicate(timeout=900)
    assert out.returncode == 0, text
    runs = runs_of(path, tmp_path / "out")
    assert {run.run_id: fingerprint(run) for run in runs} == undisturbed
    assert {run_id: len(ids) for run_id, ids in jobs(tmp_path / "out").items()} == dict.fromkeys(undisturbed, 1)
    assert len(list(runs[0].folders.runs.glob("*.json"))) == len(runs)


def test_nothing_is_lost_or_different_while_faults_fall(
    cluster: Cluster, tmp_path: Path, undisturbed: dict[str, tuple[str, str]]
) -> None:
    path = write_grid(tmp_path)
    out = start(cluster, path, tmp_path / "out")
    rng = random.Random(0)
    faults = rng.sample(FAULTS, len(FAULTS))
    done = []
    while faults and out.poll() is None:
        time.sleep(rng.uniform(2, 5))
        if strike(cluster, faults[-1], rng):
            done.append(faults.pop())
    text, _ = out.communicate(timeout=1500)
    assert out.returncode == 0, text
    assert not faults, f"the grid was over before {faults}"
    runs = runs_of(path, tmp_path / "out")
    assert {run.run_id: fingerprint(run) for run in runs} == undisturbed
    assert sum(json.loads(run.folders.record.read_text())["resumed"] for run in runs) > 0, done
    assert len(list(runs[0].folders.runs.glob("*.json"))) == len(runs)


def strike(cluster: Cluster, fault: str, rng: random.Random) -> bool:
    """One fault on a job that trains; False if there is none, or it ended meanwhile."""
    if fault == "node killed":
        node = rng.choice(NODES)
        cluster.kill(node)
        time.sleep(2)
        cluster.start_node(node)
        return True
    training = sorted(processes(cluster))
    if not training:
        return False
    job, pid = rng.choice(training)
    if fault == "task killed":
        os.kill(pid, signal.SIGKILL)
        return True
    command = {
        "requeue": ["scontrol", "requeue", job],
        "warning": ["scancel", "--signal=USR2", job],
        "time-out": ["scontrol", "update", f"JobId={job}", "TimeLimit=1"],
    }[fault]
    return subprocess.run(command, env=cluster.environment, capture_output=True).returncode == 0


def processes(cluster: Cluster) -> list[tuple[str, int]]:
    """(job, process) of every task of this cluster that has been up for some seconds."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            environment = (folder / "environ").read_bytes().decode(errors="replace")
            age = time.time() - folder.stat().st_mtime
        except OSError:
            continue
        values = dict(line.split("=", 1) for line in environment.split("\0") if "=" in line)
        ours = values.get("SLURM_CONF") == str(cluster.configuration) and "SLURM_PROCID" in values
        if ours and b"submitit" in command and age > 4:
            found.append((values["SLURM_JOB_ID"], int(folder.name)))
    return found


def test_a_launcher_killed_and_started_again_submits_nothing_twice(cluster: Cluster, tmp_path: Path) -> None:
    path = write_grid(tmp_path, count=3)
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
    path = write_grid(tmp_path, count=1)
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
    path = write_grid(tmp_path, count=1)
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
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "line"),
    [("size=256k", "No space left on device"), ("size=8m,ro", "Read-only file system")],
    ids=["full", "read-only"],
)
def test_a_results_folder_that_takes_nothing_is_one_clear_line(
    options: str, line: str, cluster: Cluster, tmp_path: Path
) -> None:
    results = tmp_path / "out"
    results.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(results)], capture_output=True).returncode:
        pytest.skip("cannot mount here")
    try:
        done = subprocess.run(
            launcher(write_grid(tmp_path, count=1), results, "--cluster", "slurm"),
            cwd=REPOSITORY,
            env=cluster.environment,
            capture_output=True,
            text=True,
        )
    finally:
        subprocess.run(["umount", str(results)], check=True)
    assert done.returncode == 2
    assert done.stderr == f"error: --results {results}: cannot write in {results} ({line})\n"


# Large batches and few steps: in the long run rounding grows, as it does between two kinds of CPU.
SHARED = {
    **BASE,
    "optim": {"epochs": 8, "batch_size": 128, "lr": 1e-3},
    "gates": {"lr": 0.02, "noise": "shared"},
}
TWO_BY_TWO = {"site": {"processes_per_node": 2}, "processes": 4, "base": SHARED}


def curve(run: Run) -> list[float]:
    return [epoch["loss"] for epoch in json.loads(run.folders.record.read_text())["epochs"]]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> list[list[float]]:
    folder = tmp_path_factory.mktemp("one")
    path = write_grid(folder, count=1, base=SHARED)
    command = launcher(path, folder / "out", "--cluster", "local")
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
    text, _ = out.communicate(timeout=900)
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
    seconds = {}
    for option in ("--dry-run", "--status"):
        begin = time.perf_counter()
        subprocess.run(
            launcher(path, tmp_path / "out", option), cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL, timeout=60
        )
        seconds[option] = time.perf_counter() - begin
    begin = time.perf_counter()
    out = start(cluster, path, tmp_path / "out")
    try:
        until(lambda: len(jobs(tmp_path / "out")) == 500, "500 jobs", 120)
        seconds["submission"] = time.perf_counter() - begin
    finally:
        out.kill()
        out.communicate()
    folder = tmp_path / "out" / "work" / "tiny" / "_submitit"
    print(seconds)
    assert len(list(folder.glob("*_submission.sh"))) == 2
    assert seconds["--dry-run"] < 3
    assert seconds["--status"] < 2
    assert seconds["submission"] < 30
