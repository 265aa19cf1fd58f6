"""Several processes train what one trains: same batches, same gradients, same evaluation; one of them writes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import conftest
import numpy as np
import pytest
import torch
from conftest import tiny
from slurm_cluster import free_ports
from test_data import break_images, write_imagenet

from hiap.data import loader as data
from hiap.train import run as train
from hiap.train.config import Config, ConfigError, merge
from hiap.train.loop import Loop
from hiap.train.record import Folders, Record, read
from hiap.train.rendezvous import first_node, of_slurm

REPOSITORY = Path(__file__).parents[1]
HERE = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def part(argument: tuple[Config, int]) -> None:
    """One process's part of a run; before step ``stop_at``, if that is not 0, the last process is told to stop."""
    config, stop_at = argument
    step = Loop._step

    def until(self: Loop, phase: Any, *rest: Any) -> Any:
        if phase.step == stop_at - 1 and self.world.rank == self.world.size - 1:
            self.stopping = lambda: True
        return step(self, phase, *rest)

    if stop_at:
        Loop._step = until  # type: ignore[method-assign]
    with contextlib.suppress(train.Interrupted):
        train.run(config)


def together(processes: int, config: Config, stop_at: int = 0) -> None:
    """The run, by so many processes of this machine."""
    (port,) = free_ports(1)
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    ranks = [{**HERE, **group, "RANK": str(i), "LOCAL_RANK": str(i)} for i in range(processes)]
    conftest.together(part, [(config, stop_at)] * processes, ranks)


def by_torchrun(processes: int, config: Config) -> str:
    """The same, as users start it: what it says where it fails, '' otherwise."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    code = "import sys; from test_distributed import part; from hiap.train.config import Config; "
    code += "part((Config.model_validate_json(sys.argv[1]), 0))"
    command = [*launch, "--no-python", sys.executable, "-c", code, config.model_dump_json()]
    own = {**os.environ, **HERE, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(command, cwd=REPOSITORY, env=own, capture_output=True, text=True, timeout=300)
    return done.stderr if done.returncode else ""


def hiap_run(results: Path, **sections: Any) -> Config:
    """Gates that are often closed and prices that close few of them, so that the noise matters to the loss."""
    gates = {"noise": "shared", "init_logit": 1.5, "lr": 0.1}
    penalty = {"lambda_macro": 0.003, "lambda_micro": 0.003}
    base: dict[str, Any] = {"method": "hiap", "optim": {"epochs": 3, "lr": 1e-2}, "gates": gates, "penalty": penalty}
    return tiny(results, **merge(base, sections))


def same_curve(found: Record, expected: Record, tolerance: float) -> None:
    assert found.run_id == expected.run_id
    for a, b in zip(found.epochs, expected.epochs, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=tolerance)
        assert a.terms == pytest.approx(b.terms, rel=tolerance)
        assert (a.heads, a.neurons) == (b.heads, b.neurons)
    assert found.metrics.extracted
    assert expected.metrics.extracted
    assert found.metrics.extracted.n == expected.metrics.extracted.n
    assert found.metrics.extracted.loss == pytest.approx(expected.metrics.extracted.loss, rel=10 * tolerance)
    assert found.size == expected.size


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return train.run(hiap_run(tmp_path_factory.mktemp("alone")))


def record_of(config: Config) -> Record:
    folders = Folders.of(config)
    assert [path.name for path in folders.runs.iterdir()] == [f"{config.run_id}.json"], "one of them writes, once"
    return read(folders.record)


def test_four_processes_give_the_loss_curve_of_one(tmp_path: Path, alone: Record) -> None:
    config = hiap_run(tmp_path)
    together(4, config)
    found = record_of(config)
    same_curve(found, alone, 1e-5)
    assert found.environment.processes == 4


def test_a_checkpoint_serves_another_number_of_processes(tmp_path: Path, alone: Record) -> None:
    config = hiap_run(tmp_path)
    together(2, config, stop_at=17)  # in the middle of an epoch; one process is told to stop, both do
    assert not Folders.of(config).record.exists()
    same_curve(train.run(config), alone, 1e-5)
    found = record_of(config)
    assert (found.resumed, found.environment.processes) == (1, 1)


def test_parts_of_one_process_are_shares_of_several(tmp_path: Path) -> None:
    """Also with noise of its own for each part (A10)."""
    own = {"gates": {"noise": "own"}}
    one = train.run(hiap_run(tmp_path / "one", **own, run={"accumulate": 2}))
    config = hiap_run(tmp_path / "two", **own)
    together(2, config)
    same_curve(record_of(config), one, 1e-5)


def test_accumulated_parts_with_shared_noise_are_the_whole_batch(tmp_path: Path, alone: Record) -> None:
    same_curve(train.run(hiap_run(tmp_path, run={"accumulate": 3})), alone, 1e-5)


def test_noise_of_its_own_is_another_sample(tmp_path: Path, alone: Record) -> None:
    found = train.run(hiap_run(tmp_path, gates={"noise": "own"}, run={"accumulate": 2}))
    assert found.epochs[-1].loss != pytest.approx(alone.epochs[-1].loss, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["taylor", "vit_slim", "cofi"])
def test_baselines_run_on_two_processes(method: str, tmp_path: Path) -> None:
    target: dict[str, Any] = {"method": method, "budget": {"target_macs": 0.7}, "search": {"epochs": 1}}
    if method == "cofi":
        target["gates"] = {"lr": 0.4}  # ten steps must take a gate to its threshold
    expected = train.run(hiap_run(tmp_path / "one", **target))
    config = hiap_run(tmp_path / "two", **target)
    together(2, config)
    same_curve(record_of(config), expected, 1e-4)


@pytest.mark.parametrize("size", [8, 12, 13])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_parts_cover_a_batch_in_mirrored_pairs(size: int, count: int) -> None:
    batch = np.random.default_rng(0).permutation(size)
    parts = [data.share_of(batch, i, count) for i in range(count)]
    assert sorted(np.concatenate(parts)) == list(range(size))
    place = {image: i for i, image in enumerate(batch)}
    for part in parts[:-1]:
        assert [place[image] for image in part[::-1]] == [size - 1 - place[image] for image in part]


def test_a_part_is_mixed_as_in_the_whole_batch() -> None:
    from timm.data import Mixup

    images, labels = torch.rand(8, 1, 8, 8), torch.arange(8)
    mix = Mixup(mixup_alpha=0.8, cutmix_alpha=0.0, num_classes=10)
    np.random.seed(0)
    whole = mix(images.clone(), labels.clone())
    chosen = data.share_of(np.arange(8), 1, 2)
    np.random.seed(0)
    half = mix(images[chosen].clone(), labels[chosen].clone())
    assert all(torch.equal(a[chosen], b) for a, b in zip(whole, half, strict=True))


def test_every_test_image_counts_once() -> None:
    config = tiny("").data
    shares = [
        np.concatenate([y.numpy() for _, y in data.test_batches(config, 16, batch_size=50, share=(i, 3))])
        for i in range(3)
    ]
    whole = np.concatenate([y.numpy() for _, y in data.test_batches(config, 16, batch_size=50)])
    assert sum(map(len, shares)) == len(whole)
    assert (np.bincount(np.concatenate(shares)) == np.bincount(whole)).all()


def test_a_batch_too_small_for_the_parts_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"optim\.batch_size 4: too small for 3 parts"):
        train.run(tiny(tmp_path, optim={"batch_size": 4}, run={"accumulate": 3}))


def test_half_an_environment_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match="WORLD_SIZE is set, RANK is not"):
        train.run(tiny(tmp_path))


STEP = {"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost"}


def test_tasks_of_one_srun_are_one_group(tmp_path: Path, alone: Record) -> None:
    """``srun -n 2 python -m hiap.train ...``: not two lone runs that write into one folder."""
    config = hiap_run(tmp_path)
    ranks = [{**HERE, **STEP, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(2)]
    conftest.together(part, [(config, 0)] * 2, ranks)
    found = record_of(config)
    same_curve(found, alone, 1e-5)
    assert found.environment.processes == 2


def test_what_a_site_says_of_its_network_is_kept() -> None:
    step = {**STEP, "SLURM_PROCID": "1", "SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "gpu[07-09,12]-ib,login1"}
    assert of_slurm(step)["MASTER_ADDR"] == "gpu07-ib"
    assert of_slurm({**step, "MASTER_ADDR": "gpu07.fast"})["MASTER_ADDR"] == "gpu07.fast"
    assert first_node("r[1-2]n[05,07]") == "r1n05"
    assert first_node("a,b[1-2]") == "a"
    assert of_slurm({**step, "SLURM_STEP_NUM_TASKS": "1"}) == {}
    assert of_slurm({**step, "WORLD_SIZE": "8"}) == {}, "torchrun has spoken"


def test_how_many_processes_share_a_run_is_not_what_it_is(tmp_path: Path) -> None:
    assert json.dumps(tiny(tmp_path).run_id) == json.dumps(tiny(tmp_path, run={"accumulate": 4}).run_id)


@pytest.mark.parametrize("allowed", [4, 3])
def test_corrupt_images_are_added_up_over_processes(allowed: int, tmp_path: Path) -> None:
    """Each process meets about half of them in an epoch; they are counted, and bounded, as those of one."""
    break_images(write_imagenet(tmp_path / "data", train=8, val=3), 4)
    sizes: dict[str, Any] = dict.fromkeys(("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio"))
    model = {**sizes, "name": "deit_tiny_patch16_224", "img_size": 32}
    source = {"name": "imagenet", "root": str(tmp_path / "data"), "max_corrupt": allowed}
    config = tiny(tmp_path, model=model, data=source, optim={"epochs": 1, "batch_size": 4})
    if allowed < 4:
        assert "4 training images cannot be read" in by_torchrun(2, config)
        (path,) = Folders.of(config).runs.iterdir()
        assert read(path).status == "failed"
        return
    together(2, config)
    assert record_of(config).corrupt_images == 4
