"""``--doctor`` names what is wrong with a cluster, and the line of site.yaml that helps."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_launch_grid import RUNS, launch, runs_of, write_grid

from slurm import doctor
from slurm.site import Site

# A queue that runs a job at once, on this machine; srun's own options go before the command.
SBATCH = """\
grep -q -e '--gpus-per-node' $1 && { echo 'sbatch: error: Invalid generic resource (gres) specification' >&2; exit 1; }
grep -q -e '--wckey=vision' $1 || { echo 'sbatch: error: Batch job submission failed: Invalid wckey' >&2; exit 1; }
echo Submitted batch job 5
echo '5|RUNNING|hiap-doctor' > $D/queue
(SLURM_JOB_ID=5 SLURM_PROCID=0 bash $1 > $D/out 2>&1; rm $D/queue; touch $D/queue) &
"""
SRUN = """\
while [ "${1#-}" != "$1" ]; do case $1 in --output|--error) shift;; esac; shift; done
exec "$@"
"""


def planted(folder: Path) -> dict[str, Any]:
    """A site with faults that any machine can have, and that --doctor must find; needs Linux' taskset."""
    return {
        "cpus_per_task": 2,
        "data_root": str(folder / "node" / "imagenet"),
        "python": f"taskset -c 0 {sys.executable}",
        "setup": [
            f"mkdir -p {folder / 'node' / 'imagenet'}",
            "export HF_ENDPOINT=https://127.0.0.1 HF_HOME=/nowhere",
        ],
    }


def sick_grid(folder: Path, device: str = "cuda") -> Path:
    model = {"name": "deit_tiny_patch16_224", "img_size": 224, "weights": "hub"}
    base = {"model": model, "data": {"name": "imagenet"}, "run": {"device": device}}
    return write_grid(folder, base=base, runs={"dense": RUNS["dense"]})


def weights_here(folder: Path) -> Path:
    """The hub's cache of this machine."""
    place = folder / "home" / "hub" / "models--timm--deit_tiny_patch16_224.fb_in1k" / "snapshots" / "1"
    place.mkdir(parents=True)
    (place / "model.safetensors").touch()
    return folder / "home"


@pytest.fixture
def cluster(queue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "sacctmgr": "echo vision"}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\nD={queue}\n{text}")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("HF_HOME", str(weights_here(tmp_path)))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    return queue


def test_five_planted_faults_are_named_with_the_line_to_write(
    cluster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "site.yaml"
    file.write_text(yaml.safe_dump(planted(tmp_path)))
    assert launch(sick_grid(tmp_path), "--site", str(file), "--doctor", cluster="slurm") == 1
    shown = capsys.readouterr().out
    for fault in (
        "Invalid generic resource (gres) specification",
        "Invalid wckey",
        "a task gets 1 of the 2 CPUs that it asks for",
        f"{tmp_path}/node/imagenet is on the node alone",
        "the node has no network, and weights of deit_tiny_patch16_224 lie here where it does not see them",
    ):
        assert f"! {'sbatch refuses: sbatch: error: ' if 'Inv' in fault else ''}" in shown
        assert fault in shown
    lines = yaml.safe_load(shown.split("To write in slurm/site.yaml:")[1])
    assert lines == {
        "gpus": "gres",
        "wckey": "vision",
        "srun": ["--cpu-bind=none"],
        "data_on_nodes": True,
        "cache": "/a/folder/that/all/nodes/see",
    }
    assert "login node" in shown
    assert "compute node" in shown
    Site.model_validate({**planted(tmp_path), **lines})


def test_a_healthy_cluster_needs_nothing(cluster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "site.yaml").write_text("wckey: vision\ncpus_per_task: 1\n")
    path = write_grid(tmp_path)
    assert launch(path, "--site", str(tmp_path / "site.yaml"), "--doctor", cluster="slurm") == 0
    assert capsys.readouterr().out.endswith("No key of site.yaml is missing.\n")
    assert not (tmp_path / "out" / "runs").exists()


def test_a_job_whose_python_does_not_start_is_told_with_its_log(
    cluster: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "site.yaml").write_text("wckey: vision\npython: no-such-python\n")
    assert launch(write_grid(tmp_path), "--site", str(tmp_path / "site.yaml"), "--doctor", cluster="slurm") == 1
    shown = capsys.readouterr().out
    assert "! job 5 ended without an answer (" in shown
    assert "look at setup and python" in shown


HEALTHY: dict[str, Any] = {
    "host": "n1", "time": 1e9, "read": 1e9, "python": sys.version, "libraries": {}, "cpus": 64, "gpus": ["0"],
    "gpu": "A100", "cuda": "13.0", "bf16": True, "scontrol": True, "data": True, "weights": {}, "network": None,
    "free_gb": 100.0, "inodes": 10**6, "files_s": 1.0, "locks": True,
}  # fmt: skip
ILL = {
    "no bf16": ({"bf16": False, "gpu": "Tesla V100"}, "Tesla V100 has no bf16", {"precision": "fp16"}),
    "old driver": ({"gpu_error": "PyTorch for CUDA 13.0 cannot use it"}, "cannot use it: runs on CUDA would fail", {}),
    "no GPU": ({"gpus": []}, "the job was given no GPU", {}),
    "no scontrol": ({"scontrol": False}, "no scontrol where python runs", {}),
    "no locks": ({"locks": False}, "no locks where results go", {}),
    "clock behind": ({"time": 1e9 - 300}, "the node's clock is 300 s behind", {}),
    "clock ahead": ({"time": 1e9 + 300}, "the node's clock is 300 s ahead", {}),
    "full": ({"inodes": 12}, "little room where results go", {"results": "/a/folder/with/room"}),
    "slow": ({"files_s": 80.0}, "200 small files take 80 s", {}),
    "not shared": ({"disk_error": "No such file or directory"}, "the node cannot write where results go",
                   {"results": "/a/folder/that/all/nodes/see"}),
    "no data": ({"data": False}, "the node has no /data", {"data_root": "/where/the/node/has/it"}),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "part", "keys"), [({}, "", {}), *ILL.values()], ids=["healthy", *ILL])
def test_each_ailment_has_its_line(changes: dict[str, Any], part: str, keys: dict[str, Any], tmp_path: Path) -> None:
    base = {"model": {"name": "deit_tiny_patch16_224", "img_size": 224}, "data": {"name": "imagenet"},
            "optim": {"precision": "bf16"}, "run": {"device": "cuda"}}  # fmt: skip
    runs = runs_of(write_grid(tmp_path, base=base, runs={"dense": RUNS["dense"]}), tmp_path / "out")
    found = doctor.Diagnosis()
    doctor._compare(found, HEALTHY, {**HEALTHY, **changes}, runs, Site(), "/data")
    assert found.keys == keys
    assert len(found.wrong) == bool(changes)
    assert part in str(found)


def test_a_look_leaves_nothing_behind(tmp_path: Path) -> None:
    begin = time.time()
    seen = doctor.inspect_machine(tmp_path, "", [])
    assert seen["cpus"] == len(os.sched_getaffinity(0))
    assert begin <= seen["time"] <= time.time()
    assert seen["locks"]
    assert not list(tmp_path.iterdir())
