"""What a SLURM job asks for, whether the cluster has it, and the copy of the code that it runs."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from operator import le
from pathlib import Path
from typing import Any

from hiap.files import atomic_write, write_json
from hiap.train.config import ConfigError
from hiap.train.record import SNAPSHOT, git_state
from slurm.grid import Run
from slurm.job import requeue_request
from slurm.jobs import answer
from slurm.site import Site

REPOSITORY = Path(__file__).parents[1]
# What a job, or a shell within one, has in its environment, and a job of its own must not inherit.
OF_A_JOB = re.compile(r"(SLURM|SLURMD|SRUN|PMI|PMIX|PMI2|SUBMITIT)_|(RANK|WORLD_SIZE|LOCAL_RANK|MASTER_(ADDR|PORT))$")
OF_A_SITE = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT")
PACKAGES = ("hiap", "baselines", "slurm")  # what a job imports
ANSWER_S = 30  # of what a submission can do without


def parameters(
    array: list[Run], site: Site, processes: int, at_once: int, needs: set[str], code: Path
) -> dict[str, Any]:
    """Return sbatch's parameters, as submitit names them, for an array of runs that wait for the jobs ``needs``."""
    named = {"partition": site.partition, "account": site.account, "qos": site.qos, "constraint": site.constraint}
    nodes, tasks = shape(site, processes)
    asked = {
        "nodes": nodes,
        "ntasks_per_node": tasks,
        "mem": f"{round(tasks * site.mem_gb * 1024)}M" if site.mem_gb else None,
        "cpus_per_task": cpus(array, site),
        # afterany: a run whose need failed ends at once by itself, and must not keep the others of its array.
        "dependency": "afterany:" + ":".join(sorted(needs)) if needs else None,
    }
    return {
        **{key: value for key, value in {**named, **asked}.items() if value},
        "job_name": f"hiap-{array[0].config.run.grid}",
        "wckey": site.wckey or None,  # submitit writes one of its own unless told
        "time": site.time_min,
        "signal_delay_s": site.signal_delay_s,
        "array_parallelism": at_once,
        "additional_parameters": _options(array, site, tasks),
        # The folder that python starts in comes first where it looks for modules.
        "setup": [*_exports(array, site), *site.setup, f"cd {shlex.quote(str(code))}"],
        "teardown": requeue_lines(code.parent),
        # Without the others, a process would wait for ever at the next gradient. From 22.05 on srun no longer takes
        # --cpus-per-task from sbatch.
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={cpus(array, site)}", *site.srun],
    }


def _options(array: list[Run], site: Site, tasks: int) -> dict[str, Any]:
    """Return options of sbatch beyond those that submitit knows: GPUs as the site wants to be asked for them, unless
    its own options ask, and what makes a job one that may be requeued where that is not the rule."""
    own = {key.replace("_", "-"): value for key, value in site.sbatch.items()}
    options: dict[str, Any] = {} if "no-requeue" in own else {"requeue": True}
    asks = any(key.startswith("gpus") for key in own) or "gpu" in str(own.get("gres", ""))
    if site.gpus != "none" and _on_gpu(array) and not asks:
        number = 1 if site.gpus == "gpus-per-task" else tasks
        wanted = ":".join(filter(None, (site.gpu_type, str(number))))
        options[site.gpus] = f"gpu:{wanted}" if site.gpus == "gres" else wanted
    if "gres" in own and "gres" in options:
        own["gres"] = f"{options['gres']},{own['gres']}"
    return {**options, **own}


def _exports(array: list[Run], site: Site) -> list[str]:
    """Say where what the login node has fetched lies, and that nothing is looked for on a network which may not be
    there."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in cache_variables(site).items()]
    if site.prefetch and any(run.config.model.weights == "hub" for run in array):
        lines.append("export HF_HUB_OFFLINE=1")
    return lines


def cache_variables(site: Site) -> dict[str, str]:
    """Return the environment in which downloads lie below ``site.cache``; {} leaves them where they are without it."""
    return {"HF_HOME": f"{site.cache}/huggingface", "HIAP_CACHE": f"{site.cache}/hiap"} if site.cache else {}


def requeue_lines(logs: Path) -> list[str]:
    """Return what the batch script, which runs outside of any container, does for a job that could not requeue
    itself."""
    mark = shlex.quote(str(requeue_request(logs, ""))) + "$SLURM_JOB_ID"
    return ["status=$?", f'if rm {mark} 2>/dev/null; then scontrol requeue "$SLURM_JOB_ID"; fi', "exit $status"]


def script(array: list[Run], site: Site, processes: int, logs: Path) -> str:
    """Return the sbatch script of an array, as it would be submitted; nothing is submitted."""
    from submitit.slurm.slurm import _make_sbatch_string

    found = parameters(array, site, processes, len(array), set(), logs / "code-<digest>")
    python = site.python or "python"
    command = f"{python} -u -m submitit.core._submit {logs}"
    return _make_sbatch_string(command, logs, map_count=len(array), **found)


def shape(site: Site, processes: int) -> tuple[int, int]:
    """Return the nodes, and the processes on each, of one run. Raises ``ConfigError`` if they do not divide evenly."""
    nodes = -(-processes // site.processes_per_node)
    if processes % nodes:
        raise ConfigError(
            f"processes {processes}: cannot be spread evenly over nodes of {site.processes_per_node} each"
        )
    return nodes, processes // nodes


def check_resources(array: list[Run], site: Site, processes: int) -> None:
    """Raise ``ConfigError`` if no partition of the cluster could ever start such a job; silent where sinfo is."""
    listing = answer("sinfo", "-h", "-e", "-o", "%P|%D|%c|%m|%G|%l", seconds=ANSWER_S) or ""
    rows = [line.split("|") for line in listing.splitlines() if line.count("|") == 5]
    if not rows:
        return
    names = sorted({row[0].rstrip("*") for row in rows})
    wanted = site.partition or next((row[0].rstrip("*") for row in rows if row[0].endswith("*")), "")
    if wanted and wanted not in names:
        raise ConfigError(f"partition '{wanted}': the cluster has {', '.join(names)}")
    _check_rows([row for row in rows if row[0].rstrip("*") == wanted or not wanted], wanted, array, site, processes)


def _check_rows(rows: list[list[str]], partition: str, array: list[Run], site: Site, processes: int) -> None:
    """Check a partition's lines of sinfo, each so many equal nodes: enough must have all that a node is asked for."""
    nodes, tasks = shape(site, processes)
    asked = {
        "CPUs per node (cpus_per_task)": tasks * cpus(array, site),
        "MB of memory per node (mem_gb)": round(tasks * (site.mem_gb or 0) * 1024),
        f"{site.gpu_type} GPUs per node".strip(): tasks if _on_gpu(array) else 0,
    }
    offers = [_offers(row, site.gpu_type) for row in rows]
    limits = {"minutes (time_min)": (site.time_min, max(_minutes(row[5]) for row in rows))}
    limits |= {what: (number, max(o[i] for o in offers)) for i, (what, number) in enumerate(asked.items())}
    fit = [all(map(le, asked.values(), offer)) for offer in offers]
    limits["nodes"] = (nodes, sum(int(row[1]) for row, fits in zip(rows, fit, strict=True) if fits))
    for what, (number, offered) in limits.items():
        if number > offered:
            parts = what == "nodes" and not all(fit)
            with_all = f" with {', '.join(f'{n} {w}' for w, n in asked.items() if n)}" if parts else ""
            raise ConfigError(f"partition '{partition}' offers at most {offered} {what}{with_all}, not {number}")


def _offers(row: list[str], gpu_type: str) -> list[int]:
    """Return CPUs, MB and GPUs of each node of a line of sinfo."""
    kind = re.escape(gpu_type) if gpu_type else "[^:,(]+"
    gpus = sum(int(n) for n in re.findall(rf"gpu(?::{kind}){'' if gpu_type else '?'}:(\d+)", row[4]))
    return [int(re.sub(r"\D", "", x) or 0) for x in row[2:4]] + [gpus]


def _minutes(limit: str) -> int:
    """Return the minutes of SLURM's [days-]hours:minutes:seconds; no limit is more than any."""
    if not re.fullmatch(r"(\d+-)?[\d:]+", limit):
        return 10**9
    days, _, clock = limit.rpartition("-")
    hours, minutes, _ = ([0, 0, 0] + [int(part) for part in clock.split(":")])[-3:]
    return int(days or 0) * 24 * 60 + hours * 60 + minutes


def cpus(array: list[Run], site: Site) -> int:
    """Count the CPUs of one task."""
    return site.cpus_per_task or max(run.config.run.threads + run.config.run.workers for run in array)


def _on_gpu(array: list[Run]) -> bool:
    return any(run.config.run.device == "cuda" for run in array)


def snapshot(logs: Path) -> Path:
    """Copy the packages that a job imports to a folder named by their content, with the commit that they came from;
    return it."""
    files = {path: path.read_bytes() for name in PACKAGES for path in _files(REPOSITORY / name)}
    digest = hashlib.sha256(b"".join(str(path.relative_to(REPOSITORY)).encode() + files[path] for path in files))
    folder = logs / f"code-{digest.hexdigest()[:10]}"
    for path, content in files.items():
        copy = folder / path.relative_to(REPOSITORY)
        if not copy.exists():
            atomic_write(copy, content)
    note, (commit, dirty) = folder / "hiap" / SNAPSHOT, git_state()
    if not note.exists() or (not dirty and json.loads(note.read_text(encoding="utf-8"))["dirty"]):
        write_json(note, {"commit": commit, "dirty": dirty})  # the same code has been committed since
    return folder


def _files(package: Path) -> list[Path]:
    """Return code and tables of a package, without what Python leaves there and without grids, which no job reads."""
    found = (path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return sorted(path for path in found if not {"__pycache__", "grids"} & set(path.relative_to(package).parts))


@contextmanager
def as_from_a_shell() -> Iterator[None]:
    """Hide the variables of a job that this process may itself run in; sbatch would pass them on."""
    taken = {name: os.environ.pop(name) for name in list(os.environ) if OF_A_JOB.match(name) and name not in OF_A_SITE}
    try:
        yield
    finally:
        os.environ.update(taken)


def largest_array() -> int:
    """Return the controller's MaxArraySize; 1000, a little below SLURM's default, where it does not say."""
    shown = answer("scontrol", "show", "config", seconds=ANSWER_S)  # some nodes that can submit lack it
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", shown or "")
    return int(found.group(1)) if found else 1000
