"""``--doctor``: what this cluster is like, found out by one short job, before the first long one is lost.

The same look is taken on the login node and, through the very script that a run would get, on a compute node. What
differs from what runs need is named, and where a key of ``site.yaml`` is the answer, the line to write is at the end.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from hiap.files import write_json
from hiap.options import one_line
from hiap.train.config import ON_DISK, ConfigError
from hiap.train.device import has_bf16, unusable, visible_gpus
from slurm import prefetch, submission
from slurm.grid import Run
from slurm.jobs import answer, queue
from slurm.site import Site

FILES = 200  # small ones, as a grid writes and reads them
SLOW_S = 10.0  # for these
SKEW_S = 30.0  # between two clocks, beyond which "newer" means nothing
ROOM_GB, INODES = 5.0, 20_000
PROBE_MIN = 5
WAIT_S = 900.0  # for the job to begin
LIBRARIES = ("torch", "timm", "submitit", "pydantic")


@dataclass
class Diagnosis:
    """Diagnosis of a cluster. ``facts``: what was found, a line each; ``wrong``: what will not work as it is; ``keys``:
    of ``site.yaml``."""

    facts: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    keys: dict[str, Any] = field(default_factory=dict)

    def blame(self, what: str, **keys: Any) -> None:
        self.wrong.append(what)
        self.keys |= keys

    def __str__(self) -> str:
        lines = [*self.facts, "", *(f"! {what}" for what in self.wrong)]
        if self.keys:
            lines += ["", "To write in slurm/site.yaml:", yaml.safe_dump(self.keys, sort_keys=False).rstrip()]
        return "\n".join(lines if self.wrong else [*lines, "No key of site.yaml is missing."])


# The look, on either node


def inspect_machine(results: Path, data_root: str, hub: list[str]) -> dict[str, Any]:
    """Return what this machine is like, as JSON. Imports torch only where there is a GPU."""
    root = os.path.expandvars(data_root)
    found: dict[str, Any] = {
        "host": platform.node(),
        "time": time.time(),
        "python": f"{platform.python_version()} ({sys.executable})",
        "libraries": {name: _version(name) for name in LIBRARIES},
        "cpus": len(os.sched_getaffinity(0)),
        "gpus": visible_gpus(),
        "scontrol": shutil.which("scontrol") is not None,
        "data": bool(root) and Path(root).is_dir(),
        "weights": {name: prefetch.in_cache(name) is not None for name in hub},
        "network": _network() if hub else None,
        "restarts": os.environ.get("SLURM_RESTART_COUNT", "0"),
    }
    if found["gpus"]:
        found |= _gpu()
    try:
        found |= _disk(results)
    except OSError as error:
        found["disk_error"] = f"{error.strerror}"
    return found


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _gpu() -> dict[str, Any]:
    import torch

    if why := unusable():
        return {"gpu_error": why}
    return {
        "gpu": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda or torch.version.hip,
        "bf16": has_bf16(),
    }


def _network() -> bool:
    from urllib.parse import urlsplit

    from huggingface_hub.constants import ENDPOINT

    try:
        socket.create_connection((urlsplit(ENDPOINT).hostname or "", 443), timeout=5).close()
        return True
    except OSError:
        return False


def _disk(results: Path) -> dict[str, Any]:
    """Measure locks, room, and the time for many small files in the folder of results."""
    shape = os.statvfs(results)
    with tempfile.TemporaryDirectory(dir=results, prefix=".doctor-") as folder:
        begin = time.perf_counter()
        for i in range(FILES):
            write_json(Path(folder) / f"{i}.json", {"i": i})
        seconds = time.perf_counter() - begin
        with (Path(folder) / "lock").open("w", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                locks = True
            except OSError:
                locks = False
    inodes = shape.f_favail if shape.f_files else None
    return {"free_gb": shape.f_bavail * shape.f_frsize / 1e9, "inodes": inodes, "files_s": seconds, "locks": locks}


# The job


def diagnose(runs: list[Run], site: Site, processes: int, logs: Path) -> Diagnosis:
    """Look here and on a compute node. Raises ``ConfigError`` if there is no SLURM to ask."""
    os.environ.update(submission.cache_variables(site))
    logs.mkdir(parents=True, exist_ok=True)
    results = runs[0].folders.root.absolute()
    found = Diagnosis()
    photographs = [run for run in runs if run.config.data.name in ON_DISK]
    data_root = photographs[0].config.data.root if photographs else ""
    hub = prefetch.hub_names([run.config for run in runs])
    here = inspect_machine(results, data_root, hub)
    _tell(found, "login node", here)
    _cluster(found, runs, site)
    try:
        submission.check_resources(runs, site, processes)
    except ConfigError as error:
        found.blame(str(error))
    task = {"results": str(results), "data_root": data_root, "hub": hub}
    job, site = _submit(found, runs, site, processes, logs, task)
    if job and (there := _answer(found, logs, job)):
        _tell(found, "compute node", there)
        _compare(found, here, there, runs, site, data_root)
    return found


def _submit(
    found: Diagnosis, runs: list[Run], site: Site, processes: int, logs: Path, task: dict[str, Any]
) -> tuple[str, Site]:
    """Return the job's id ('' if sbatch refuses whatever is tried), and the site as it is then."""
    for remedies in range(8):
        name = uuid.uuid4().hex[:8]
        write_json(logs / f"doctor-{name}.json", task)
        path = logs / f"doctor-{name}.sh"
        path.write_text(_script(runs, site, processes, logs, logs / f"doctor-{name}"), encoding="utf-8")
        with submission.as_from_a_shell():
            done = subprocess.run(["sbatch", str(path)], capture_output=True, encoding="utf-8", errors="replace")
        if done.returncode == 0 and (job := re.search(r"job (\d+)", done.stdout)):
            print(f"job {job.group(1)} looks at a compute node ...", file=sys.stderr, flush=True)
            return f"{job.group(1)}:{name}", site
        refusal = one_line(done.stderr or done.stdout, None)
        changes = _remedy(refusal, site) if remedies < 7 else {}
        if not changes:
            found.keys.pop("gpus", None)
            found.blame(f"sbatch refuses: {refusal}")
            return "", site
        found.keys |= changes
        if refusal not in str(found.wrong):
            found.wrong.append(f"sbatch refuses: {refusal}")
        site = site.model_copy(update=changes)
    return "", site


def _script(runs: list[Run], site: Site, processes: int, logs: Path, stem: Path) -> str:
    from submitit.slurm.slurm import _make_sbatch_string

    given = submission.parameters(runs[:1], site, processes, 1, set(), submission.snapshot(logs))
    given |= {"time": min(PROBE_MIN, site.time_min), "job_name": "hiap-doctor", "teardown": []}
    command = f"{site.python or sys.executable} -u -m slurm.doctor {stem}"
    return _make_sbatch_string(command, logs, **given)


def _remedy(refusal: str, site: Site) -> dict[str, Any]:
    """Return which key to change after a refusal of sbatch; {} if none is known, or all were tried."""
    said = refusal.lower()
    if "wckey" in said and not site.wckey:
        return {"wckey": name} if (name := _accounted("wckey", "wckey")) else {}
    if "qos" in said and "invalid" in said and not site.qos:
        return {"qos": name} if (name := _accounted("assoc", "defaultqos")) else {}
    if "account" in said and "invalid" in said and not site.account:
        return {"account": name} if (name := _accounted("assoc", "account")) else {}
    if any(word in said for word in ("gres", "generic resource", "gpus")):
        ways = ["gpus-per-node", "gres", "gpus-per-task", "none"]
        later = ways[ways.index(site.gpus) + 1 :]
        return {"gpus": later[0]} if later else {}
    return {}


def _accounted(what: str, column: str) -> str:
    """Return the first name that the accounting database has for this user."""
    return next((name for name in _lines("sacctmgr", "-nP", "show", what, f"format={column}",
                                         f"user={getpass.getuser()}") if name not in ("", "*")), "")  # fmt: skip


def _answer(found: Diagnosis, logs: Path, job: str) -> dict[str, Any]:
    """Return what the job found; {} if it did not say."""
    number, _, name = job.partition(":")
    file, end, gone = logs / f"doctor-{name}.answer.json", time.monotonic() + WAIT_S, 0
    try:
        while time.monotonic() < end and gone < 5:
            if file.exists():
                return {**json.loads(file.read_text(encoding="utf-8")), "read": time.time()}
            listed = queue()
            gone = gone + 1 if listed is not None and number not in listed else 0  # a file may come a little later
            time.sleep(1)
    except KeyboardInterrupt:
        subprocess.run(["scancel", number])
        raise
    if gone:
        log = next(iter(sorted(logs.glob(f"{number}_*log.err"))), None)
        said = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()] if log else []
        last = said[-1] if said else "no log"
        found.blame(f"job {number} ended without an answer ({last}); look at setup and python in site.yaml")
    else:
        subprocess.run(["scancel", number])
        found.blame(f"job {number} did not begin within {timedelta(seconds=round(WAIT_S))}; partition, qos or account?")
    return {}


# What is made of it


def _cluster(found: Diagnosis, runs: list[Run], site: Site) -> None:
    """Add versions, partitions and limits, as far as commands of this cluster tell."""
    if lines := _lines("sinfo", "--version"):
        found.facts.append(lines[0])
    for row in _lines("sinfo", "-h", "-o", "%P|%D|%c|%m|%G|%l"):
        name, nodes, cpus, memory, gres, limit = row.split("|")
        found.facts.append(f"partition {name}: {nodes} nodes of {cpus} CPUs, {memory} MB, {gres}, at most {limit}")
    shown = dict(re.findall(r"^(\w+)\s*=\s*(.*)$", "\n".join(_lines("scontrol", "show", "config")), re.MULTILINE))
    for key in ("MaxArraySize", "MaxJobCount", "JobRequeue", "AccountingStorageEnforce"):
        if key in shown:
            found.facts.append(f"{key}: {shown[key].strip()}")
    if "wckeys" in shown.get("AccountingStorageEnforce", "") and not site.wckey:
        name = _accounted("wckey", "wckey")
        found.blame("jobs must name a wckey", **({"wckey": name} if name else {}))
    most = _accounted("assoc", "maxsubmitjobs")
    if most.isdigit():
        found.facts.append(f"MaxSubmitJobs: {most}")
        if int(most) < len(runs) and not site.max_jobs:
            what = f"{len(runs)} runs, and at most {most} jobs of yours in the queue; they are submitted as jobs end"
            found.blame(what, max_jobs=int(most))


def _lines(*command: str) -> list[str]:
    return (answer(*command) or "").splitlines()


def _tell(found: Diagnosis, where: str, seen: dict[str, Any]) -> None:
    libraries = ", ".join(f"{name} {number}" for name, number in seen["libraries"].items())
    gpu = f"{len(seen['gpus'])} GPUs" if seen["gpus"] else "no GPU"
    if "gpu" in seen:
        gpu += f" ({seen['gpu']}, CUDA {seen['cuda']}, {'bf16' if seen['bf16'] else 'no bf16'})"
    found.facts.append(f"{where} {seen['host']}: Python {seen['python']}, {libraries}; {seen['cpus']} CPUs, {gpu}")
    if "disk_error" not in seen:
        inodes = "" if seen["inodes"] is None else f" and {seen['inodes']:,} files"
        room = f"room for {seen['free_gb']:,.0f} GB{inodes}"
        locks = "locks" if seen["locks"] else "no locks"
        speed = f"{FILES} small files in {seen['files_s']:.1f} s"
        found.facts.append(f"{where} {seen['host']}: results: {room}, {locks}, {speed}")


def _compare(
    found: Diagnosis, here: dict[str, Any], there: dict[str, Any], runs: list[Run], site: Site, data_root: str
) -> None:
    _processors(found, there, runs, site)
    _graphics(found, there, runs, site)
    _storage(found, there)
    _inputs(found, here, there, site, data_root)
    if not there["scontrol"]:
        found.wrong.append("no scontrol where python runs: the batch script, or the launcher, requeues; no key needed")
    behind, ahead = here["time"] - there["time"], there["time"] - there["read"]  # it was read between the two
    if max(behind, ahead) > SKEW_S:
        skew = f"{behind:,.0f} s behind" if behind > 0 else f"{ahead:,.0f} s ahead"
        found.wrong.append(f"the node's clock is {skew}: ages in --status are wrong; tell those who run it")


def _processors(found: Diagnosis, there: dict[str, Any], runs: list[Run], site: Site) -> None:
    wanted = submission.cpus(runs[:1], site)
    if there["cpus"] < wanted:
        what = f"a task gets {there['cpus']} of the {wanted} CPUs that it asks for"
        found.blame(what, srun=[*site.srun, "--cpu-bind=none"])


def _graphics(found: Diagnosis, there: dict[str, Any], runs: list[Run], site: Site) -> None:
    if not any(run.config.run.device == "cuda" for run in runs):
        return
    if why := there.get("gpu_error") or ("" if there["gpus"] else "the job was given no GPU"):
        found.wrong.append(f"{why}: runs on CUDA would fail")
    elif not there["bf16"] and not site.precision and any(run.config.optim.precision == "bf16" for run in runs):
        found.blame(f"{there['gpu']} has no bf16, which this grid wants", precision="fp16")


def _storage(found: Diagnosis, there: dict[str, Any]) -> None:
    if error := there.get("disk_error"):
        found.blame(f"the node cannot write where results go ({error})", results="/a/folder/that/all/nodes/see")
        return
    if not there["locks"]:
        found.wrong.append("no locks where results go: the launcher keeps a file instead; no key needed")
    if there["free_gb"] < ROOM_GB or (there["inodes"] is not None and there["inodes"] < INODES):
        found.blame("little room where results go", results="/a/folder/with/room")
    if there["files_s"] > SLOW_S:
        found.wrong.append(f"{FILES} small files take {there['files_s']:.0f} s where results go: a busy file system")


def _inputs(found: Diagnosis, here: dict[str, Any], there: dict[str, Any], site: Site, data_root: str) -> None:
    if data_root and not there["data"]:
        found.blame(f"the node has no {data_root}", data_root="/where/the/node/has/it")
    elif data_root and not here["data"] and not site.data_on_nodes:
        found.blame(f"{data_root} is on the node alone", data_on_nodes=True)
    for name, fetched in there["weights"].items():
        if not fetched and not there["network"]:
            where = "lie here where it does not see them" if here["weights"][name] else "are not here; see --prefetch"
            found.blame(f"the node has no network, and weights of {name} {where}", cache="/a/folder/that/all/nodes/see")


def main() -> None:
    """Look at the compute node; the first process of several answers."""
    stem = Path(sys.argv[1])
    task = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
    if os.environ.get("SLURM_PROCID", "0") == "0":
        write_json(
            stem.with_suffix(".answer.json"), inspect_machine(Path(task["results"]), task["data_root"], task["hub"])
        )


if __name__ == "__main__":
    main()
