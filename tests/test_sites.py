"""Clusters as they are: what one site refuses and the next one demands, each with a queue made of shell scripts."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_train
import pytest
from fake_queue import lines, logs
from test_data import write_imagenet
from test_jobs import Silent
from test_launch_grid import BASE, REPOSITORY, RUNS, launch, runs_of, write_grid

from hiap import files
from hiap.data import image_index, layouts
from hiap.train.config import ConfigError
from hiap.train.record import Folders, read_status
from slurm import executors, grid, job, launch_grid, locks, prefetch, site, submission
from slurm.executors import Slurm
from slurm.job import Job
from slurm.jobs import Jobs
from slurm.site import Site


def script(tmp_path: Path, device: str = "cuda", processes: int = 2, **settings: Any) -> str:
    runs = runs_of(write_grid(tmp_path, base={**BASE, "run": {"device": device}}), tmp_path / "out")
    return submission.script(runs[:1], Site(**settings), processes, logs(tmp_path))


def options(text: str) -> dict[str, str]:
    found = re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", text, re.MULTILINE)
    return {key: value.strip("'") for key, value in found}


# What sbatch is asked for


def test_a_wckey_is_named_only_where_the_site_has_one(tmp_path: Path) -> None:
    assert "wckey" not in options(script(tmp_path))
    assert options(script(tmp_path, wckey="vision"))["wckey"] == "vision"


GPUS = {
    "the usual way": ({}, {"gpus-per-node": "2"}),
    "of a type": ({"gpu_type": "a100"}, {"gpus-per-node": "a100:2"}),
    "of each task": ({"gpus": "gpus-per-task", "gpu_type": "a100"}, {"gpus-per-task": "a100:1"}),
    "as a resource": ({"gpus": "gres"}, {"gres": "gpu:2"}),
    "beside another resource": ({"gpus": "gres", "sbatch": {"gres": "nvme:1"}}, {"gres": "gpu:2,nvme:1"}),
    "by the site's own options": ({"sbatch": {"gres": "gpu:v100:2"}}, {"gres": "gpu:v100:2"}),
    "by the site's own options, otherwise": ({"sbatch": {"gpus": 2}}, {"gpus": "2"}),
    "not at all": ({"gpus": "none"}, {}),
}


@pytest.mark.parametrize(("settings", "expected"), GPUS.values(), ids=GPUS.keys())
def test_gpus_are_asked_for_in_one_way(settings: dict[str, Any], expected: dict[str, str], tmp_path: Path) -> None:
    found = options(script(tmp_path, **settings))
    assert {key: value for key, value in found.items() if key.startswith("gpu") or key == "gres"} == expected


def test_srun_is_told_the_cpus_of_a_task_and_what_the_site_adds(tmp_path: Path) -> None:
    """From SLURM 22.05 on srun does not take them from sbatch."""
    text = script(tmp_path, cpus_per_task=7, srun=["--mpi=none"])
    (command,) = [line for line in text.splitlines() if line.startswith("srun ")]
    assert "--cpus-per-task=7 --mpi=none" in command
    assert options(script(tmp_path, cpus_per_task=7))["cpus-per-task"] == "7"


def test_a_job_may_be_requeued_where_that_is_not_the_rule(tmp_path: Path) -> None:
    assert "requeue" in options(script(tmp_path))
    assert "requeue" not in options(script(tmp_path, sbatch={"no-requeue": True}))


# Where things lie


def test_folders_of_a_site_are_meant_as_in_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.setenv("HOME", "/home/me")
    file = tmp_path / "site.yaml"
    file.write_text("results: $SCRATCH/hiap\ndata_root: ~/imagenet\n")
    loaded = site.load(file)
    assert (loaded.results, loaded.data_root) == ("/scratch/me/hiap", "/home/me/imagenet")
    file.write_text("results: ${SCRATHC}/hiap\n")
    with pytest.raises(ConfigError, match=r"site.yaml: results: the variable SCRATHC is not set here") as caught:
        site.load(file)
    assert "\n" not in str(caught.value)


def test_data_that_setup_stages_is_looked_for_on_the_node_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = {**BASE, "data": {"name": "cifar10"}, "model": {**BASE["model"], "img_size": 32, "patch_size": 4}}
    path = write_grid(tmp_path, base=base, runs={"dense": RUNS["dense"]})
    file = tmp_path / "site.yaml"
    file.write_text("data_root: $TMPDIR/cifar\ndata_on_nodes: true\nsetup: [tar -xf /store/cifar.tar -C $TMPDIR]\n")
    monkeypatch.delenv("TMPDIR", raising=False)
    assert launch(path, "--site", str(file), "--dry-run", cluster="slurm") == 0
    assert launch(path, "--site", str(file)) == 2, "in this process it must be here"
    assert "$TMPDIR/cifar" in capsys.readouterr().err
    loaded = site.load(file)
    (run,) = grid.expand(grid.load(path), path, {"results": str(tmp_path / "out")}, loaded.data_root)
    told = []
    monkeypatch.setitem(sys.modules, "hiap.train.run", fake_train)
    monkeypatch.setattr(fake_train, "run", lambda config: told.append(config.data.root))
    monkeypatch.setenv("TMPDIR", "/local/job7")
    Job(run.config)()
    assert told == ["/local/job7/cifar"]


def test_precision_of_a_site_is_for_runs_that_want_what_its_gpus_lack(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {**RUNS, "exact": {"method": "dense", "optim.precision": "fp32"}}
    path = write_grid(tmp_path, runs=runs, base={**BASE, "optim": {"epochs": 1, "precision": "bf16"}})
    loaded, settings = grid.load(path), {"results": str(tmp_path)}
    there = {run.label: run for run in grid.expand(loaded, path, settings, "", "fp16")}
    here = {run.label: run for run in grid.expand(loaded, path, settings)}
    assert {label: run.config.optim.precision for label, run in there.items()} == {
        **dict.fromkeys(RUNS, "fp16"),
        "exact": "fp32",
    }
    assert there["hiap"].config.model.weights == f"run:{there['dense'].run_id}"
    assert [label for label in here if here[label].run_id == there[label].run_id] == ["exact"]
    file = tmp_path / "site.yaml"
    file.write_text("precision: fp16\n")
    options = ["--grid", str(path), "--results", str(tmp_path), "--dry-run"]
    assert launch_grid.main([*options, "--site", str(file)]) == 0
    shown = capsys.readouterr().out
    assert there["hiap"].run_id in shown
    assert here["hiap"].run_id not in shown


# A file system without locks


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*args: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)


def test_without_locks_one_launcher_follows_a_grid_and_jobs_go_on(
    no_locks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Jobs(logs(tmp_path)).followed():
        with Jobs(logs(tmp_path)).turn():
            pass
        again = Jobs(logs(tmp_path)).followed()
        with pytest.raises(ConfigError, match=rf"\(process {os.getpid()} on .*remove .*held if it has gone"), again:
            pass
    (run,) = runs_of(write_grid(tmp_path, runs={"dense": RUNS["dense"]}), tmp_path / "out")
    monkeypatch.setitem(sys.modules, "hiap.train.run", fake_train)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    Job(run.config)()
    assert run.finished
    assert "has no locks; going on without" in capsys.readouterr().err


def test_what_a_killed_launcher_held_without_locks_is_taken_over(no_locks: None, tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    folder = logs(tmp_path)
    folder.mkdir(parents=True)
    (folder / "launcher.held").write_text(f"process {gone.pid} on {os.uname().nodename}")
    with Jobs(folder).followed():
        pass
    (folder / "launcher.held").write_text(f"process {gone.pid} on elsewhere")
    with pytest.raises(ConfigError, match="another launcher follows this grid"), Jobs(folder).followed():
        pass


def test_another_error_of_a_lock_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    for lock in (files.file_lock(tmp_path / "a"), locks.locked(tmp_path / "b", wait=True)):
        with pytest.raises(OSError, match="Input/output"), lock:
            pass


# Submission


LIMITED = """\
name=$(sed -n 's/#SBATCH --job-name=//p' $1)
last=$(sed -n 's/#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' $1)
size=$((${last:-0} + 1))
echo $size >> $D/asked
if [ $(($(wc -l < $D/queue) + size)) -gt $(cat $D/limit) ]; then
  echo 'sbatch: error: AssocMaxSubmitJobLimit' >&2
  echo 'sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user'"'"'s' \\
    'size and/or time limits)' >&2
  exit 1
fi
echo >> $D/n; n=$(wc -l < $D/n)
if [ -n "$last" ]; then seq 0 $last | sed "s/.*/${n}_&|PENDING|$name/"; else echo "$n|PENDING|$name"; fi >> $D/queue
echo Submitted batch job $n
"""


@pytest.fixture
def limited(queue: Path, tmp_path: Path) -> Path:
    (tmp_path / "bin" / "sbatch").write_text(f"#!/bin/sh\nD={queue}\n{LIMITED}")
    (queue / "limit").write_text("7")
    return queue


def test_a_grid_larger_than_the_limit_waits_for_room(
    limited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """MaxSubmitJobs below the grid's size: smaller arrays, and then one job for each that ends."""
    path = write_grid(tmp_path, seeds=list(range(20)), runs={"dense": RUNS["dense"]})
    runs = runs_of(path, tmp_path / "out")

    class Ends(Silent):
        looks, most = 0, 0

        def show(self, progress: list[Any]) -> None:
            self.looks += 1
            self.most = max(self.most, len(lines(limited)))
            if self.looks % 3:
                return
            first = lines(limited)[0].split("|")[0] if lines(limited) else ""
            for run in runs:
                if executor.jobs.newest(run) == first:
                    fake_train.leave(fake_train.make_record(run.config, "finished"))
            (limited / "queue").write_text("".join(f"{line}\n" for line in lines(limited)[1:]))

    executor, screen = Slurm(logs(tmp_path), None), Ends()
    with executor.followed(runs):
        progress = launch_grid.execute(runs, executor, screen)  # type: ignore[arg-type]
    assert [p.state for p in progress] == ["finished"] * 20
    assert screen.most == 7
    asked = [int(line) for line in (limited / "asked").read_text().split()]
    assert asked[:3] == [20, 10, 5]
    assert len(asked) < 20 + 10, "a controller is not asked again and again"
    assert capsys.readouterr().err.count("going on as jobs end") == 1
    assert all(len(ids) == 1 for ids in executor.jobs.ids.values())


def test_a_limit_of_the_site_is_kept_without_asking(limited: Path, tmp_path: Path) -> None:
    runs = runs_of(write_grid(tmp_path, seeds=list(range(4))), tmp_path / "out")
    executor = Slurm(logs(tmp_path), None, Site(max_jobs=6))
    left = executor.submit(runs)
    assert [(run.label, run.config.seed) for run in left[:2]] == [("hiap", 2), ("hiap", 3)]
    assert len(left) == 6
    assert (limited / "asked").read_text().split() == ["4", "2"]
    assert executor.submit(left) == left
    assert read_status(left[0].folders) == {}, "nothing says that it is queued"


def test_a_job_that_no_limit_lets_in_is_an_error(limited: Path, tmp_path: Path) -> None:
    (limited / "limit").write_text("0")
    runs = runs_of(write_grid(tmp_path), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"sbatch refused dense and 0 more: .*job submit limit"):
        Slurm(logs(tmp_path), None).submit(runs)


GENERIC = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"


def refusing(folder: Path, *words: str) -> None:
    text = "\n".join(f'echo "sbatch: error: {line}" >&2' for line in words)
    sbatch = folder / "bin" / "sbatch"
    sbatch.write_text(f"#!/bin/sh\n{text}\nexit 1\n", encoding="utf-8")


@pytest.mark.parametrize("limit", ["QOSMaxWallDurationPerJobLimit", "AssocMaxCpuPerJobLimit", "QOSMinGRES"])
def test_a_job_that_asks_for_too_much_is_not_waited_with(queue: Path, tmp_path: Path, limit: str) -> None:
    """Though jobs of this grid wait, which end one day."""
    runs = runs_of(write_grid(tmp_path), tmp_path / "out")
    executor = Slurm(logs(tmp_path), None)
    assert executor.submit(runs[:1]) == []
    refusing(tmp_path, limit, f"Batch job submission failed: {GENERIC}")
    executor = Slurm(logs(tmp_path), None)
    with pytest.raises(ConfigError, match=limit):
        executor.submit(runs[1:2])


def test_where_the_words_leave_it_open_jobs_taken_before_tell(
    queue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = runs_of(write_grid(tmp_path), tmp_path / "out")
    sbatch = (tmp_path / "bin" / "sbatch").read_text(encoding="utf-8")
    refusing(tmp_path, f"Batch job submission failed: {GENERIC}")
    (queue / "queue").write_text("99|PENDING|another-grid\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="job submit limit"):
        Slurm(logs(tmp_path), None).submit(runs[:1])
    (tmp_path / "bin" / "sbatch").write_text(sbatch, encoding="utf-8")
    executor = Slurm(logs(tmp_path), None)
    assert executor.submit(runs[:1]) == []
    refusing(tmp_path, f"Batch job submission failed: {GENERIC}")
    assert executor.submit(runs[1:2]) == runs[1:2]
    assert "going on as jobs end" in capsys.readouterr().err


def test_a_submission_from_within_a_job_passes_none_of_it_on(
    queue: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inherited = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_MEM_PER_CPU": "1", "SRUN_CPUS_PER_TASK": "1",
                 "WORLD_SIZE": "4", "MASTER_ADDR": "login", "SUBMITIT_EXECUTOR": "slurm"}  # fmt: skip
    kept = {"SLURM_CONF": "/etc/slurm.conf", "SBATCH_ACCOUNT": "mine", "RANKING": "1"}
    for name, value in {**inherited, **kept}.items():
        monkeypatch.setenv(name, value)
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text(sbatch.read_text().replace("echo >> $D/n;", "env > $D/env; echo >> $D/n;"))
    Slurm(logs(tmp_path), None).submit(runs_of(write_grid(tmp_path), tmp_path / "out"))
    seen = {line.split("=")[0] for line in (queue / "env").read_text().splitlines()}
    assert not seen & set(inherited)
    assert set(kept) <= seen
    assert os.environ["SLURM_JOB_ID"] == "7"


def test_a_login_node_without_scontrol_can_submit(
    queue: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert executors.slurm_answers()
    (tmp_path / "bin" / "scontrol").unlink()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/local/bin:/nowhere")
    (tmp_path / "bin" / "squeue").write_text("#!/bin/sh\n")
    assert executors.slurm_answers()
    (tmp_path / "bin" / "squeue").write_text("#!/bin/sh\nexit 1\n")
    assert not executors.slurm_answers()


# Requeues


@pytest.fixture
def in_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    """The environment of a job of a run whose training is told to stop, as by a queue's warning."""
    (run,) = runs_of(write_grid(tmp_path, runs={"dense": RUNS["dense"]}), tmp_path / "out")

    class Interrupted(Exception):  # noqa: N818
        pass

    def trained(config: object) -> None:
        os.kill(os.getpid(), signal.SIGUSR2)
        raise Interrupted

    monkeypatch.setitem(sys.modules, "hiap.train.run", fake_train)
    monkeypatch.setattr(fake_train, "run", trained)
    monkeypatch.setattr(fake_train, "Interrupted", Interrupted)
    monkeypatch.setenv("SUBMITIT_FOLDER", str(logs(tmp_path)))
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    logs(tmp_path).mkdir(parents=True)
    monkeypatch.setattr(job, "_test_run", run, raising=False)
    return run.folders


def attempt(monkeypatch: pytest.MonkeyPatch, requeue: Any) -> None:
    before = signal.signal(signal.SIGUSR2, requeue)
    before_term = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        Job(job._test_run.config)()  # type: ignore[attr-defined]
    finally:
        signal.signal(signal.SIGUSR2, before)
        signal.signal(signal.SIGTERM, before_term)


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError(2, "No such file or directory: 'scontrol'"), subprocess.CalledProcessError(1, "scontrol")],
    ids=["no scontrol", "requeue disabled"],
)
def test_a_warned_job_that_cannot_requeue_itself_leaves_word(
    error: Exception, in_job: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def requeue(number: int, frame: object) -> None:
        raise error

    with pytest.raises((fake_train.Interrupted, SystemExit)):
        attempt(monkeypatch, requeue)
    assert (logs(tmp_path) / "requeue-12").exists()
    assert read_status(in_job)["state"] == "stopped", "so that a launcher does not count it as a death"


@pytest.mark.parametrize("asked", [False, True])
def test_the_batch_script_requeues_a_job_that_asked_for_it(asked: bool, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/said\n')
    (tmp_path / "bin" / "scontrol").chmod(0o755)
    if asked:
        job.ask_for_requeue(tmp_path, "12")
    text = "\n".join(["sh -c 'exit 3'", *submission.requeue_lines(tmp_path)])
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "12"}
    done = subprocess.run(["bash", "-c", text], env=environment)
    assert done.returncode == 3
    assert (tmp_path / "said").exists() == asked
    if asked:
        assert (tmp_path / "said").read_text() == "requeue 12\n"
        assert not job.requeue_request(tmp_path, "12").exists(), "once"


def test_attempts_too_short_for_a_first_checkpoint_come_to_an_end(
    in_job: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a job would be requeued a thousand times."""
    requeued = []
    (in_job.work / "checkpoints").mkdir(parents=True)

    def attempts(count: int) -> None:
        for _ in range(count):
            with pytest.raises((fake_train.Interrupted, SystemExit)):
                attempt(monkeypatch, lambda number, frame: requeued.append(1))

    attempts(job.FRUITLESS - 1)
    (in_job.work / "checkpoints" / "00-000000003-abc.pt").touch()  # a step further is enough
    attempts(job.FRUITLESS - 1)
    assert len(requeued) == 2 * (job.FRUITLESS - 1)
    with pytest.raises(RuntimeError, match="ended before their first checkpoint; time_min must be longer"):
        attempt(monkeypatch, lambda number, frame: requeued.append(1))
    assert read_status(in_job)["state"] == "failed"


# Nodes without a network


def hub_grid(tmp_path: Path) -> Path:
    model = {"name": "deit_tiny_patch16_224", "img_size": 224, "weights": "hub"}
    base = {"model": model, "data": {"name": "affine-digits"}, "optim": {"epochs": 1}}
    return write_grid(tmp_path, base=base, runs={"dense": RUNS["dense"]})


FETCHED = """\
import os, pathlib, sys
class timm:
    def create_model(name, pretrained):
        if os.environ.get("OFFLINE"):
            raise OSError("Network is unreachable")
        folder = pathlib.Path(os.environ["HF_HOME"]) / "hub" / f"models--timm--{name}.fb_in1k" / "snapshots" / "1"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").touch()
        with open(os.environ["HF_HOME"] + "/count", "a") as file:
            file.write("x")
sys.modules["timm"] = timm
"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Something that downloads as timm does; returns the site's file."""
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "sitecustomize.py").write_text(FETCHED)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'python'}:{REPOSITORY}")
    for name in ("HF_HOME", "HIAP_CACHE", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, "")
    file = tmp_path / "site.yaml"
    file.write_text(f"cache: {tmp_path}/cache\n")
    return file


def test_weights_are_fetched_once_before_anything_is_submitted(
    hub: Path,
    queue: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = hub_grid(tmp_path)
    assert launch(path, "--site", str(hub), "--prefetch") == 0
    place = tmp_path / "cache" / "huggingface" / "hub" / "models--timm--deit_tiny_patch16_224.fb_in1k"
    assert capsys.readouterr().out == f"weights of deit_tiny_patch16_224: {place}\n"
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(launch_grid, "execute", lambda runs, executor, *screens: executor.submit(runs) or [])
    launch(path, "--site", str(hub), cluster="slurm")
    assert (tmp_path / "cache" / "huggingface" / "count").read_text() == "x"
    (text,) = [file.read_text() for file in logs(tmp_path).glob("*_submission.sh")]
    assert f"export HF_HOME={tmp_path}/cache/huggingface\nexport HIAP_CACHE={tmp_path}/cache/hiap\n" in text
    assert "export HF_HUB_OFFLINE=1" in text


def test_weights_that_cannot_be_had_are_one_line_and_no_job(
    hub: Path,
    queue: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OFFLINE", "1")
    path = hub_grid(tmp_path)
    assert launch(path, "--site", str(hub), cluster="slurm") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "weights of deit_tiny_patch16_224 cannot be fetched here (OSError: Network is unreachable)" in error
    assert "prefetch: false" in error
    assert lines(queue) == []
    assert not (tmp_path / "out").exists()
    assert prefetch.prefetch(runs_of(write_grid(tmp_path), tmp_path / "out"), Site()) == []


def test_images_are_listed_once_before_anything_is_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HIAP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    root = write_imagenet(tmp_path / "data")
    base = {"model": {"name": "deit_tiny_patch16_224", "img_size": 224}, "data": {"name": "imagenet"}}
    (tmp_path / "site.yaml").write_text(f"data_root: {root}\n")
    path = write_grid(tmp_path, base=base, runs={"dense": RUNS["dense"]})
    assert launch(path, "--site", str(tmp_path / "site.yaml"), "--prefetch") == 0
    assert capsys.readouterr().out == f"index of {root}: {tmp_path / 'cache' / 'index'}\n"
    indexed = image_index.load(layouts.find(root)["train"])
    assert indexed is not None
    assert len(indexed) == 12
