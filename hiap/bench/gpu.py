"""All that notebooks show of a GPU, in one go: ``python -m hiap.bench gpu [folder] [budget=840] [rehearse=true]``.

Each report is a call of its own in a process of its own, and a file of the folder (``results/local/bench``); one that
is there is left as it is, so the same command goes on where the last one stopped, which it does by itself after
``budget`` seconds (or ``minutes``). What fails is named at the end (exit status 1). Processes start with all libraries
loaded, so that the time on a GPU goes into computing. ``rehearse`` makes every report on the CPU, of small networks,
into a folder that is thrown away: what a missing library or a mistyped setting would spoil on the GPU shows here.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from hiap.options import one_line
from hiap.train.config import ConfigError, parse_overrides, unknown_key
from hiap.train.device import cpu_has_bf16, unusable
from hiap.train.record import require_writable

CUTS = "topologies=[fig5,fig5@3.1,fig5@2.5] multiple=8"
BASE = "model=deit_base_patch16_224"
FEW = "widths=[64,48] layouts=[padded]"  # each network and batch is compiled anew, half a minute each
# By the name of the report; the cheap and the much asked for come first.
REPORTS = {
    "steps_deit_small_cuda": "steps precision=bf16 batches=[256]",
    "deit_small_cuda": f"speed precision=bf16 batches=[1,256] {CUTS}",
    "train_deit_small_cuda": "train precision=bf16 batches=[256]",
    "train_vit_small_56_cuda": "train model=vit_small_patch14_dinov2 img_size=56 precision=bf16 batches=[64]",
    "peer_deit_small_cuda": "peer precision=bf16 batches=[256]",
    "deit_base_cuda": f"speed {BASE} precision=bf16 batches=[1,256] topologies=[fig5@7.4] multiple=8",
    "latency_deit_small_cuda": "latency precision=bf16 batches=[64]",
    "steps_deit_base_cuda": f"steps {BASE} precision=bf16 batches=[256]",
    "steps_deit_small_cuda_fp32": "steps precision=fp32 batches=[256]",
    "deit_small_cuda_fp32": f"speed precision=fp32 batches=[1,256] {CUTS} {FEW}",
    "deit_small_cuda_compiled": f"speed precision=bf16 compile=true batches=[1,256] {CUTS} {FEW}",
    "deploy_deit_small_cuda": "deploy topologies=[fig5@3.1,uniform@3.1] multiple=8 batches=[1,256] "
    "runtimes=[eager,compile,onnxruntime] precisions=[fp32,bf16]",
    "deit_small_cuda_fp32_compiled": f"speed precision=fp32 compile=true batches=[1,256] {CUTS} {FEW}",
}
# What reports of training rehearse, those of a network at its own size and those at another: each half of the loops.
LOOPS = {False: "timm,dense,gated/compiled", True: "timm,dense/compiled,gated"}
DEVICE = "cuda"
OVER = "time is up"


class Asked(NamedTuple):
    """Request of a call. ``folder`` None: none was named; ``given``: the time as it was asked for."""

    folder: Path | None
    seconds: float
    given: str
    rehearse: bool


def main(arguments: list[str], one: Callable[[list[str]], int]) -> int:
    """Make all reports, each by ``one`` (arguments, exit status). Returns 0, or 1 if a report failed; reports that the
    time did not suffice for are named, and no failure. Raises ``ConfigError``."""
    asked = _parsed(arguments)
    if asked.rehearse:
        with _rehearsed(asked) as (folder, reports):
            return _all(reports, folder, asked, "cpu", one)
    if why := _without():
        raise ConfigError(f"gpu: {why}")
    return _all(REPORTS, asked.folder or Path("results/local/bench"), asked, DEVICE, one)


def _all(reports: dict[str, str], folder: Path, asked: Asked, device: str, one: Callable[[list[str]], int]) -> int:
    require_writable(folder, f"folder '{folder}'")
    begun = time.monotonic()
    failed: list[str] = []
    left: list[str] = []
    for name, call in reports.items():
        if (folder / f"{name}.json").exists():
            print(f"{name}: is there")
            continue
        start = time.monotonic()
        rest = asked.seconds - (start - begun)
        call_of = [*call.split(), f"device={device}", f"name={name}", f"out={folder}"]
        why = OVER if rest <= 0 else _run(one, call_of, rest)
        if why == OVER:
            left.append(name)
        elif why:
            failed.append(f"{name}: {why}")
        else:
            print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    if left:
        print(f"not done in {asked.given}: {', '.join(left)}; the same command goes on with them")
    return 1 if failed else 0


def _run(one: Callable[[list[str]], int], arguments: list[str], seconds: float) -> str:
    """Make one report, in a process of its own; return why there is none, if so."""
    print(" ".join(["python -m hiap.bench", *arguments]), flush=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hiap.bench.run"])
    with tempfile.TemporaryDirectory() as folder:
        errors = Path(folder) / "stderr"
        process = context.Process(target=_child, args=(one, arguments, errors))
        process.start()
        try:
            process.join(seconds)
            if process.exitcode is None:
                return OVER
        finally:
            if process.exitcode is None:
                with suppress(ProcessLookupError):  # its group is there as soon as it runs
                    os.killpg(process.pid or 0, signal.SIGKILL)
                process.kill()
                process.join()
        said = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines() if errors.exists() else []
        return one_line((said or [f"exit status {process.exitcode}"])[-1]) if process.exitcode else ""


def _child(one: Callable[[list[str]], int], arguments: list[str], errors: Path) -> None:
    """Run in the process of one report: what it says of errors goes to a file."""
    os.setsid()  # with the processes that it starts it can be ended as one
    with errors.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 2)
    from hiap.bench import report

    sys.argv = ["hiap.bench", *arguments]
    report.begin()
    sys.exit(one(arguments))


@contextmanager
def _rehearsed(asked: Asked) -> Iterator[tuple[Path, dict[str, str]]]:
    """Give the place where reports of a rehearsal go, and their calls: of a DeiT-Small that sees 2 x 2 patches, where a
    report is not of Fig. 5's heads of its first block."""
    from hiap.formats import store

    with tempfile.TemporaryDirectory() as made:
        networks, shares = {}, {}
        for depth in (1, 12):
            networks[depth] = Path(made) / f"deit-{depth}"
            network, shares[depth] = _small(depth)
            store.save(network, networks[depth])
        calls = {name: _smaller(call, networks, shares) for name, call in REPORTS.items()}
        yield asked.folder or Path(made) / "reports", calls


def _small(depth: int) -> tuple[Any, float]:
    """Return the network, and its MACs as a share of a DeiT-Small's, to scale what is asked for in MACs."""
    import timm

    from hiap import cost, ledger
    from hiap.budget.sizes import known_dims

    whole = known_dims("deit_small_patch16_224")
    assert whole is not None
    network = timm.create_model("deit_small_patch16_224", img_size=32, depth=depth).eval()
    return network, cost.macs(network, (3, 32, 32)) / ledger.dense_macs(whole)


def _smaller(call: str, networks: dict[int, Path], shares: dict[int, float]) -> str:
    """Return the same report of a small network, in a few rounds; later words of a call outweigh earlier ones."""
    mode, *words = call.split()
    depth = 12 if mode == "peer" or (mode == "speed" and "compile" not in call) else 1
    scaled = [re.sub(r"@([\d.]+)", lambda found: f"@{_scaled(float(found[1]), shares[depth])}", w) for w in words]
    more = [f"model={networks[depth]}", "batches=[2]", "rounds=3", "warmup=1"]
    if mode == "speed":
        more.append("widths=[48]")
    if mode == "peer":
        more.append(f"gmacs=[{_scaled(4.3, shares[depth])}]")  # Torch-Pruning removes little at a time
    if mode == "latency":
        more.append("networks=12")
    if mode == "train":
        more += ["img_size=0", f"loops=[{LOOPS['img_size' in call]}]"]
    if depth == 1 and mode == "speed":
        more.append("topologies=[full]")
    if depth == 1 and mode == "deploy":
        more.append(f"topologies=[uniform@{_scaled(3.1, shares[depth])}]")
    if "precision=bf16" in words and not cpu_has_bf16():  # emulated, it takes tens of times as long
        more.append("precision=fp32")
    return " ".join([mode, *scaled, *more])


def _scaled(gmacs: float, share: float) -> str:
    """GMACs of a DeiT-Small, or of a DeiT-Base, which has four times as many, in a network with a ``share`` of them."""
    return f"{(gmacs if gmacs < 4.6 else gmacs / 4) * share:.6f}"


def _without() -> str:
    """Return why there is nothing to measure on; '' if there is."""
    return unusable()


def _parsed(arguments: list[str]) -> Asked:
    """Read the arguments. Raises ``ConfigError`` for what cannot be run."""
    folders = [word for word in arguments if "=" not in word]
    values = parse_overrides([word for word in arguments if "=" in word])
    known = ["budget", "minutes", "rehearse"]
    for key in values:
        if key not in known:
            raise ConfigError(unknown_key(key, known))
    if len(folders) > 1:
        raise ConfigError(f"gpu: expected one folder, not {' and '.join(folders)}")
    if len(values.keys() & {"budget", "minutes"}) > 1:
        raise ConfigError("budget and minutes say the same: set one")
    if not isinstance(rehearse := values.get("rehearse", False), bool):
        raise ConfigError(f"rehearse: expected true or false, not {rehearse!r}")
    key, unit, word = ("minutes", 60, "minutes") if "minutes" in values else ("budget", 1, "seconds")
    given = values.get(key, 300 if rehearse else 600)
    if not isinstance(given, int | float) or isinstance(given, bool) or not 0 < given < float("inf"):
        raise ConfigError(f"{key}: expected a number above 0, not {given!r}")
    return Asked(Path(folders[0]) if folders else None, float(given) * unit, f"{given:g} {word}", rehearse)
