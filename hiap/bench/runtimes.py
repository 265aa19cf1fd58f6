"""One network in the runtimes that people deploy: eager PyTorch, ``torch.compile``, ONNX Runtime and OpenVINO.

Each function of ``RUNTIMES`` makes a ``Call`` of a network and one batch size. Precisions are each library's own: bf16
by casting the network (OpenVINO: by its hint), int8 after training, by ``torch.ao`` (dynamic, linear layers), ONNX
Runtime's static QDQ (per channel; matrix products and convolutions) and NNCF (its kind of model for transformers) on
calibration images.
"""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from hiap.bench.report import Precision, Runtime
from hiap.formats import export

Call = Callable[[Tensor], Tensor]  # images fp32 (B, C, H, W) of one B, on the device, to logits (B, classes)

NEEDS = {"onnxruntime": ("onnxruntime", "onnx", "onnxscript"), "openvino": ("openvino", "onnx", "onnxscript")}
BF16 = {"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"}  # of x86 and ARM, in /proc/cpuinfo
DOT_PRODUCTS = {"avx512_vnni", "avx_vnni", "asimddp"}  # int8 products that are added without overflow


@dataclass
class Network:
    """Network to be run. ``calibration``: images fp32 (n, C, H, W). ``files``: where exported and quantised forms go;
    what is there already, of the same network and images, is taken."""

    model: Any
    files: Path
    calibration: Tensor
    device: torch.device
    threads: int

    @cached_property
    def key(self) -> str:
        weights = [tensor for _, tensor in sorted(self.model.state_dict().items())]
        return _digest(str(self.model), torch.__version__, *weights)

    def file(self, suffix: str, *inputs: Tensor) -> Path:
        """Return a path named by all that the file follows from."""
        return self.files / f"{_digest(self.key, *inputs)[:16]}{suffix}"

    def onnx(self) -> Path:
        path = self.file(".onnx")
        return _made(path, lambda target: export.to_onnx(copy.deepcopy(self.model).cpu(), target))


def _digest(*parts: Tensor | str) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else part.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _made(path: Path, make: Callable[[Path], None]) -> Path:
    """Return the file, made if it is not there: whole or not at all."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"part-{path.name}")
        make(part)
        part.replace(path)
    return path


def missing(runtime: Runtime, precision: Precision, device: str) -> str:
    """Return why there is no such combination here; '' if there is."""
    gone = [name for name in NEEDS.get(runtime, ()) if find_spec(name) is None]
    if gone:
        return f"{gone[0]} is not installed (the extra 'runtimes' has it)"
    if device == "cuda":
        if runtime == "openvino" or precision == "int8":
            return "for CPUs only"
        if runtime == "onnxruntime" and not _onnxruntime_has_cuda():
            return "this onnxruntime is built for CPUs (onnxruntime-gpu is another package)"
    if precision == "bf16":
        if runtime == "onnxruntime":
            return "it has no bf16 kernels for a network in fp32"
        if device == "cpu" and not cpu_flags() & BF16:
            return "this CPU does not say that it has bf16"
    if precision == "int8":
        if runtime == "compile":
            return "torch.ao's dynamic quantisation is of eager modules"
        if runtime == "eager" and _dynamic() is None:
            return f"torch {torch.__version__} has no torch.ao.quantization.quantize_dynamic any more"
        if runtime == "openvino" and find_spec("nncf") is None:
            return "nncf is not installed (the extra 'runtimes' has it)"
    return ""


@cache
def cpu_flags() -> frozenset[str]:
    """Return what the processor says that it can do, on Linux; elsewhere nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(w for line in lines if line.lower().startswith(("flags", "features")) for w in line.split())


def _dynamic() -> Any:
    try:
        from torch.ao.quantization import quantize_dynamic
    except ImportError:
        return None
    return quantize_dynamic


def _onnxruntime_has_cuda() -> bool:
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def compiled(model: Any) -> Any:
    """Compile this network alone. Dynamo keeps what it compiled by the code of ``forward``, 8 entries at most, which
    all networks of a class share: the ninth would run eagerly, and say so in the log only."""

    def forward(images: Tensor) -> Tensor:
        return model(images)

    return torch.compile(FunctionType(forward.__code__.replace(), forward.__globals__, closure=forward.__closure__))


def in_eager(network: Network, precision: Precision, batch: int) -> Call:
    model, dtype = _in_torch(network, precision)
    return lambda images: model(images.to(dtype)).float()


def in_compiled(network: Network, precision: Precision, batch: int) -> Call:
    model, dtype = _in_torch(network, precision)
    call = compiled(model)

    def run(images: Tensor) -> Tensor:
        return call(images.to(dtype)).float()

    return run


def _in_torch(network: Network, precision: Precision) -> tuple[Any, torch.dtype]:
    """Return a copy of the network in this precision, and the type of its images."""
    model = copy.deepcopy(network.model).to(network.device)
    if precision == "bf16":
        return model.bfloat16(), torch.bfloat16
    if precision == "int8":
        with warnings.catch_warnings():  # that it will move to torchao
            warnings.simplefilter("ignore")
            model = _dynamic()(model, {nn.Linear}, dtype=torch.qint8)
    return model, torch.float32


def in_onnxruntime(network: Network, precision: Precision, batch: int) -> Call:
    """Run in ONNX Runtime. Images and logits are bound in place, so that nothing is copied between host and GPU."""
    import numpy as np
    import onnxruntime as ort

    options, device = ort.SessionOptions(), network.device.type
    options.intra_op_num_threads, options.inter_op_num_threads = network.threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")  # the other runtimes need the cores then
    options.add_free_dimension_override_by_name("batch", batch)
    path = _static_int8(network) if precision == "int8" else network.onnx()
    session = ort.InferenceSession(path, options, providers=[f"{device.upper()}ExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        images = images.contiguous()
        binding = session.io_binding()
        binding.bind_input("images", device, 0, np.float32, tuple(images.shape), images.data_ptr())
        binding.bind_output("logits")
        session.run_with_iobinding(binding)
        return torch.from_numpy(binding.copy_outputs_to_cpu()[0])

    return run


def _static_int8(network: Network) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(network.calibration.split(1))

        def get_next(self) -> Any:
            image = next(self.left, None)
            return None if image is None else {"images": image.numpy()}

    def make(target: Path) -> None:
        simple = target.with_suffix(".simple.onnx")
        quant_pre_process(network.onnx(), simple, skip_symbolic_shape=True)
        quantize_static(
            simple,
            target,
            Images(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm", "Conv"],
            per_channel=True,
            reduce_range=not cpu_flags() & DOT_PRODUCTS,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        simple.unlink()

    return _made(network.file("-int8.onnx", network.calibration), make)


def in_openvino(network: Network, precision: Precision, batch: int) -> Call:
    import openvino as ov

    core = ov.Core()
    model = core.read_model(_nncf_int8(network) if precision == "int8" else network.onnx())
    model.reshape([batch, *network.calibration.shape[1:]])
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": network.threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(request.infer({"images": images.numpy()}, share_inputs=True)["logits"])

    return run


def _nncf_int8(network: Network) -> Path:
    import logging

    import nncf
    import openvino as ov

    def make(target: Path) -> None:
        logging.getLogger("nncf").setLevel(logging.ERROR)
        images = nncf.Dataset(list(network.calibration.split(1)), lambda image: {"images": image.numpy()})
        model = ov.Core().read_model(network.onnx())
        kind = nncf.ModelType.TRANSFORMER
        ov.save_model(
            nncf.quantize(model, images, model_type=kind, subset_size=len(network.calibration)),
            target,
            compress_to_fp16=False,
        )
        target.with_suffix(".bin").replace(target.with_name(target.name.removeprefix("part-")).with_suffix(".bin"))

    return _made(network.file("-int8.xml", network.calibration), make)


RUNTIMES: dict[Runtime, Callable[[Network, Precision, int], Call]] = {
    "eager": in_eager,
    "compile": in_compiled,
    "onnxruntime": in_onnxruntime,
    "openvino": in_openvino,
}
