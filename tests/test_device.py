"""A GPU that was asked for and cannot be used is an error; fp16 learns what fp32 learns, and resumes to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import tiny

from hiap.train import checkpoint, device
from hiap.train import run as train
from hiap.train.config import ConfigError
from hiap.train.loop import Loop
from hiap.train.phase import Phase
from hiap.train.record import Folders, environment


@pytest.fixture
def unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that the job was given, and whose driver is older than what PyTorch was built for."""

    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update.")

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_gpu_that_cannot_be_used_is_an_error_and_never_a_run_on_the_cpu(
    name: str, unusable: None, tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match=rf"run.device '{name}': PyTorch .* for CUDA 13.0 .*driver .* is too old"
    ) as e:
        train.run(tiny(tmp_path, run={"device": name}))
    assert "\n" not in str(e.value)
    assert "make setup CUDA=12" in str(e.value)
    assert not list(tmp_path.rglob("*.json"))
    assert device.pick_device("cpu") == torch.device("cpu")


def test_without_a_gpu_auto_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for nothing in ("", "-1", "NoDevFiles"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", nothing)
        assert device.pick_device("auto") == torch.device("cpu")


def test_a_gpu_that_this_pytorch_has_no_code_for_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_90", "compute_120"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    with pytest.raises(ConfigError, match=r"has no code for Tesla V100 \(sm_70\)"):
        device.pick_device("auto")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert device.pick_device("auto") == torch.device("cuda")
    with pytest.raises(ConfigError, match=r"Tesla V100 has none; set optim\.precision=fp16"):
        device.check_precision("bf16", torch.device("cuda"))
    device.check_precision("fp16", torch.device("cuda"))


def test_a_processor_without_bf16_says_so_and_is_told_from_one_with_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    cpu = torch.device("cpu")
    device.check_precision("bf16", cpu)
    with_it = environment(cpu, "").device_name
    assert with_it.endswith(", bf16)")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    device.check_precision("fp32", cpu)
    assert not capsys.readouterr().err
    device.check_precision("bf16", cpu)
    assert capsys.readouterr().err.count("\n") == 1
    assert environment(cpu, "").device_name == with_it.replace(", bf16)", ")")


def test_code_runs_within_its_generation_and_intermediate_code_on_later_ones() -> None:
    assert device.runs_on((8, 6), ["sm_80"])
    assert not device.runs_on((8, 0), ["sm_86"])
    assert not device.runs_on((9, 0), ["sm_80"])
    assert device.runs_on((12, 0), ["sm_80", "compute_90"])
    assert device.runs_on((9, 0), ["sm_90a"])
    assert device.runs_on((9, 0), [])


HALF = {"epochs": 5, "lr": 1e-2, "precision": "fp16"}
GATED = {
    "method": "hiap",
    "gates": {"lr": 0.1, "init_logit": 1.0, "keep_head": True},
    "penalty": {"lambda_macro": 0.01, "lambda_micro": 0.01},
}


def test_fp16_learns_what_fp32_learns(tmp_path: Path) -> None:
    half = train.run(tiny(tmp_path, optim=HALF, **GATED))
    full = train.run(tiny(tmp_path, optim={**HALF, "precision": "fp32"}, **GATED))
    assert [e.loss for e in half.epochs] == pytest.approx([e.loss for e in full.epochs], rel=0.05)
    assert half.epochs[-1].loss < half.epochs[0].loss - 0.1


def test_fp16_leaves_out_a_step_that_overflows_and_resumes_with_its_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"optim": HALF, "run": {"checkpoint_steps": 1}}
    whole, part = (tiny(tmp_path / name, **changes, **GATED) for name in ("whole", "part"))
    step, scales, stop_at = Loop._step, list[float](), [0]

    def watched(self: Loop, phase: Phase, *args: object) -> object:
        if phase.step == 3:  # as if a gradient had been too large for the format
            phase.scaler.update(2.0**120)
        before = [p.detach().clone() for p in phase.model.parameters()]
        sums = step(self, phase, *args)  # type: ignore[arg-type]
        same = all(torch.equal(a, b) for a, b in zip(before, phase.model.parameters(), strict=True))
        assert same == (phase.step in (3, 4))
        scales.append(phase.scaler.get_scale())
        if phase.step == stop_at[0] - 1:
            self.stopping = lambda: True
        if phase.step == 4:
            phase.scaler.update(2.0**10)
        return sums

    monkeypatch.setattr(Loop, "_step", watched)
    expected = train.run(whole)
    assert scales[3:5] == [2.0**119, 2.0**118]
    stop_at[0] = 4
    with pytest.raises(train.Interrupted):
        train.run(part)
    stop_at[0] = 0
    state = checkpoint.load(Folders.of(part).work / "checkpoints")
    assert state is not None
    assert state["scaler"]["scale"] == 2.0**119
    found = train.run(part)
    assert [e.loss for e in found.epochs] == [e.loss for e in expected.epochs]
    assert found.metrics == expected.metrics
