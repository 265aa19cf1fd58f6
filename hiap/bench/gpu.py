"""All that notebooks show of a GPU, in one go: ``python -m hiap.bench gpu [folder] [minutes=10]``.

Each report is a call of its own in a process of its own, and a file of the folder (``results/local/bench``); one that
is there is left as it is, so the same command goes on where the last one stopped. What fails is named at the end (exit
status 1).
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from hiap.options import one_line
from hiap.train.config import ConfigError, parse_overrides, unknown_key
from hiap.train.device import unusable
from hiap.train.record import require_writable

CUTS = "topologies=[fig5,fig5@3.1,fig5@2.5] multiple=8"
BASE = "model=deit_base_patch16_224"
FEW = "widths=[64,48] layouts=[padded]"  # each network and batch is compiled anew, half a minute each
# By the name of the report; the cheap and the much asked for come first.
REPORTS = {
    "steps_deit_small_cuda": "steps precision=bf16 batches=[256]",
    "deit_small_cuda": f"speed precision=bf16 batches=[1,256] {CUTS}",
    "peer_deit_small_cuda": "peer precision=bf16 batches=[256]",
    "deit_base_cuda": f"speed {BASE} precision=bf16 batches=[1,256] topologies=[fig5@7.4] multiple=8",
    "steps_deit_base_cuda": f"steps {BASE} precision=bf16 batches=[256]",
    "steps_deit_small_cuda_fp32": "steps precision=fp32 batches=[256]",
    "deit_small_cuda_fp32": f"speed precision=fp32 batches=[1,256] {CUTS} {FEW}",
    "deit_small_cuda_compiled": f"speed precision=bf16 compile=true batches=[1,256] {CUTS} {FEW}",
    "deploy_deit_small_cuda": "deploy topologies=[fig5@3.1,uniform@3.1] multiple=8 batches=[1,256] "
    "runtimes=[eager,compile,onnxruntime] precisions=[fp32,bf16]",
    "deit_small_cuda_fp32_compiled": f"speed precision=fp32 compile=true batches=[1,256] {CUTS} {FEW}",
}
DEVICE = "cuda"


def main(arguments: list[str]) -> int:
    """Exit status: 0, or 1 if a report failed; reports that the time did not suffice for are named, and no failure.
    Raises ``ConfigError``."""
    folder, minutes = _parsed(arguments)
    if why := _without():
        raise ConfigError(f"gpu: {why}")
    require_writable(folder, f"folder '{folder}'")
    end = time.monotonic() + 60 * minutes
    failed: list[str] = []
    left: list[str] = []
    for name, call in REPORTS.items():
        if (folder / f"{name}.json").exists():
            print(f"{name}: is there")
        elif (seconds := end - time.monotonic()) <= 0 or (why := _run(name, call, folder, seconds)) == OVER:
            left.append(name)
        elif why:
            failed.append(f"{name}: {why}")
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    if left:
        print(f"not done in {minutes:g} minutes: {', '.join(left)}; the same command goes on with them")
    return 1 if failed else 0


OVER = "time is up"


def _run(name: str, call: str, folder: Path, seconds: float) -> str:
    """One report, in a process of its own; why there is none, if so."""
    own = [f"device={DEVICE}", f"name={name}", f"out={folder}"]
    print(f"{name}: python -m hiap.bench {call} device={DEVICE}", flush=True)
    try:
        command = [sys.executable, "-m", "hiap.bench", *call.split(), *own]
        done = subprocess.run(command, stderr=subprocess.PIPE, encoding="utf-8", errors="replace", timeout=seconds)
    except subprocess.TimeoutExpired:
        return OVER
    if done.returncode == 0:
        return ""
    return one_line((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])


def _without() -> str:
    """Why there is nothing to measure on; '' if there is."""
    return unusable()


def _parsed(arguments: list[str]) -> tuple[Path, float]:
    """Folder and minutes. Raises ``ConfigError``."""
    folders = [word for word in arguments if "=" not in word]
    values = parse_overrides([word for word in arguments if "=" in word])
    for key in values:
        if key != "minutes":
            raise ConfigError(unknown_key(key, ["minutes"]))
    if len(folders) > 1:
        raise ConfigError(f"gpu: expected one folder, not {' and '.join(folders)}")
    minutes = values.get("minutes", 10)
    if not isinstance(minutes, int | float) or isinstance(minutes, bool) or not 0 < minutes < float("inf"):
        raise ConfigError(f"minutes: expected a number above 0, not {minutes!r}")
    return Path(folders[0] if folders else "results/local/bench"), float(minutes)
