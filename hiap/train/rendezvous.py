"""Who the processes of a run are where ``srun`` started them. No torch: it reads the environment when it is imported.

``torchrun`` sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; SLURM says the same in words of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping


def of_slurm(given: Mapping[str, str]) -> dict[str, str]:
    """Return what ``torchrun`` would set, for a task of a job step of several; {} where there is no such step, or where
    WORLD_SIZE is set. A MASTER_ADDR that is there stays: a site may know a name on a faster network."""
    size = int(given.get("SLURM_STEP_NUM_TASKS", "1"))
    if size == 1 or "WORLD_SIZE" in given:
        return {}
    restarts, step = int(given.get("SLURM_RESTART_COUNT", "0")), int(given.get("SLURM_STEP_ID", "0"))
    nodes = given.get("SLURM_STEP_NODELIST") or given.get("SLURM_JOB_NODELIST", "localhost")
    return {
        "RANK": given["SLURM_PROCID"],
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": given["SLURM_LOCALID"],
        "MASTER_ADDR": given.get("MASTER_ADDR") or first_node(nodes),
        "MASTER_PORT": str(port(int(given["SLURM_JOB_ID"]), restarts + step)),
    }


def join_slurm() -> None:
    """Let this process be what ``srun`` says that it is."""
    os.environ.update(of_slurm(os.environ))


def first_node(nodes: str) -> str:
    """Return the first node of a list of SLURM's: 'gpu07' of 'gpu[07-09,12]-ib,login1'."""
    found = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", found.group()) if found else nodes


def port(job: int, restarts: int) -> int:
    """Return the port at which the processes of a job meet: below those that the kernel gives to whoever asks, another
    one for each job, and for each of its attempts."""
    return 20_000 + (job + 1_009 * restarts) % 12_000
