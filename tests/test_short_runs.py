"""What hundreds of short runs cost beside their training."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_launch_grid import REPOSITORY, write_grid

from hiap.train.record import read


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="adopts orphans as Linux does")
def test_395_short_runs_take_five_core_minutes_beside_their_training(tmp_path: Path) -> None:
    """Seconds of CPU of the launcher, of the server that runs are forked from and of the runs, without those of their
    training steps; what does not grow with the runs is counted once. Their clock is made to count CPU, so that other
    work on this machine disturbs little."""
    (tmp_path / "sitecustomize.py").write_text("import time; time.perf_counter = time.process_time")
    model = {"img_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 4}
    cut = {"method": "l1", "model.weights": "run:dense", "budget.target_macs": 0.7}
    runs = {"dense": {"method": "dense"}, "cut": cut}
    base = {"model": model, "data": {"name": "digits"}, "optim": {"epochs": 2}}
    path = write_grid(tmp_path, base=base, runs=runs, threads=1, seeds=list(range(10)))

    def beside(seeds: int) -> float:
        out, used = tmp_path / f"out-{seeds}", tmp_path / f"cpu-{seeds}"
        command = [sys.executable, "tests/cpu_seconds.py", str(used), sys.executable, "slurm/launch_grid.py"]
        command += ["--grid", str(path), "--cluster", "local", "--jobs", "2", "--results", str(out)]
        own = {**os.environ, "PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}
        command += ["--seeds", *map(str, range(seeds))]
        subprocess.run(command, cwd=REPOSITORY, env=own, check=True, stdout=subprocess.DEVNULL)
        records = [read(file) for file in (out / "runs").rglob("*.json")]
        assert len(records) == 2 * seeds
        return float(used.read_text()) - sum(stage.seconds for record in records for stage in record.stages)

    def cpu_seconds(*command: str) -> float:
        used = tmp_path / "cpu"
        subprocess.run([sys.executable, "tests/cpu_seconds.py", str(used), *command], cwd=REPOSITORY, check=True)
        return float(used.read_text())

    few, many = beside(2), beside(10)
    each = (many - few) / 16
    total = few + each * (395 - 4)
    alone = cpu_seconds(sys.executable, "-c", "import hiap.train.everything")
    print(f"{each:.2f} s a run and {few - 4 * each:.1f} s once: {total:.0f} s for 395; imports alone {alone:.1f} s")
    # On a slow or busy processor: an eighth of what imports alone would take with a process a run.
    assert total <= max(300, 395 * alone / 8)
