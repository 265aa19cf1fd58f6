"""A queue made of shell scripts: what the launcher asks sbatch, squeue and scancel, and what they answer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from slurm.executors import Slurm

SBATCH = """\
test -e $D/refuse && { echo 'sbatch: error: Unable to contact slurm controller' >&2; exit 1; }
test -e $D/kill-before && kill -9 $PPID
echo >> $D/n; n=$(wc -l < $D/n)
name=$(sed -n 's/#SBATCH --job-name=//p' $1)
last=$(sed -n 's/#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' $1)
if [ -n "$last" ]; then seq 0 $last | sed "s/.*/${n}_&|PENDING|$name/"; else echo "$n|PENDING|$name"; fi >> $D/queue
test -e $D/kill-after && kill -9 $PPID
test -e $D/late && { echo 'sbatch: error: Socket timed out on send/recv operation' >&2; exit 1; }
echo Submitted batch job $n
"""
SCANCEL = 'for job; do sed -i "/^$job|/d" $D/queue; done'


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with sbatch's answers and the lines of squeue."""
    folder = tmp_path / "queue"
    folder.mkdir()
    (folder / "queue").touch()
    scripts = {"srun": "", "sinfo": "exit 1", "sbatch": SBATCH, "squeue": "cat $D/queue", "scancel": SCANCEL}
    scripts["scontrol"] = "echo 'Slurmctld(primary) at here is UP'"
    for name, script in scripts.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\nD={folder}\n{script}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for name, value in {"poll_s": 0.0, "grace_s": 0.01, "settle_s": 0.0}.items():
        monkeypatch.setattr(Slurm, name, value)
    return folder


def logs(tmp_path: Path) -> Path:
    return tmp_path / "out" / "work" / "tiny" / "_submitit"


def lines(queue: Path) -> list[str]:
    return (queue / "queue").read_text().splitlines()
