"""Stands in for ``hiap.train.run`` where the launcher is tested: writes real records, trains nothing, imports no torch.

A run labelled 'bad...' fails with a record, 'wrong...' cannot be run, 'dies...' kills its process. FAKE_SECONDS is
how long a run takes, FAKE_LOG a file that gets a line at each start and end.
"""

from __future__ import annotations

import os
import signal
import time

from hiap.train.config import Config, ConfigError
from hiap.train.record import Environment, Folders, Metrics, Record, Score, Size, StageCost, now, read, write


class Interrupted(Exception):  # noqa: N818
    pass


def run(config: Config) -> Record:
    folders = Folders.of(config)
    if folders.record.exists():
        return read(folders.record)
    label = config.run.label
    note(f"start {label}")
    time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
    if label.startswith("dies"):
        os.kill(os.getpid(), signal.SIGKILL)
    if label.startswith("wrong"):
        raise ConfigError("this cannot be run")
    record = make_record(config, "failed" if label.startswith("bad") else "finished")
    leave(record)
    if record.status == "failed":
        raise RuntimeError("the loss is nan")
    words = (
        os.environ.get(name, "") for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUDA_MPS_PIPE_DIRECTORY")
    )
    note(f"end {label} {' '.join(words)}".rstrip())
    return record


def note(line: str) -> None:
    if path := os.environ.get("FAKE_LOG"):
        with open(path, "a") as file:
            file.write(line + "\n")


def leave(record: Record) -> None:
    """What a run leaves: its record, and its network if it finished."""
    folders = Folders.of(record.config)
    if record.status == "finished":
        folders.model.mkdir(parents=True, exist_ok=True)
    write(record, folders)


TEST_IMAGES = {"imagenet": 50_000, "cifar10": 10_000}


def make_record(config: Config, status: str, top1: float = 91.25) -> Record:
    score = Score(top1=top1, loss=0.3, n=TEST_IMAGES.get(config.data.name, 445))
    gated = config.method == "hiap"
    failed = status == "failed"
    return Record(
        run_id=config.run_id,
        grid=config.run.grid,
        label=config.run.label,
        status=status,
        error="FloatingPointError: the loss is nan" if failed else "",
        config=config,
        seed=config.seed,
        metrics=Metrics()
        if failed
        else Metrics(
            extracted=score,
            hardened=score if gated else None,
            soft=Score(top1=90.5, loss=0.3, n=445) if gated else None,
        ),
        size=None if failed else Size(dense_macs=2_000_000, dense_params=30_000, macs=1_000_000, params=20_000),
        stages=[StageCost(name="train", epochs=3, steps=30, images=900, seconds=12.4, train_macs=1e9)],
        environment=Environment(
            device="cpu",
            device_name="",
            threads=1,
            python="",
            platform="",
            libraries={},
            commit="",
            dirty=False,
            command="",
        ),
        started=now(),
        finished=now(),
    )
