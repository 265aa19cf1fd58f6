"""Every ViT of timm: supported, or the module that is not.

    python -m hiap.formats.supported             writes hiap/backbones/supported.csv, from networks without storage
    python -m hiap.formats.supported --run       goes the whole way with each, at small sizes: gate, extract, count,
                                                   save, load; with --onnx also that, once for every kind of network

An entry counts as a ViT if it makes a ``VisionTransformer``, an ``Eva`` or a ``Beit``.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from hiap import cost
from hiap.backbones import families
from hiap.backbones.count import counted_macs
from hiap.backbones.errors import UnsupportedModelError
from hiap.backbones.families import is_vit
from hiap.budget.prices import kept_cost, param_prices
from hiap.budget.pruner import extract
from hiap.files import atomic_write
from hiap.formats import export, store
from hiap.gated_vit import check_supported, gate, masks, named_gates
from hiap.options import one_line

TABLE = Path(families.__file__).with_name("supported.csv")
MODULES = ("vision_transformer", "vision_transformer_hybrid", "deit", "eva", "beit", "vitamin")
# Small enough for seconds, with heads of 24 dimensions, which rotary angles divide.
SMALL: dict[str, Any] = {"depth": 2, "num_classes": 10, "embed_dim": 96, "num_heads": 4}


def entries() -> Iterator[tuple[str, Any]]:
    """Yield (name, network without storage) of every ViT of timm; of two blocks, unless it cannot have so few."""
    for name in sorted(name for module in MODULES for name in timm.list_models(module=module)):
        with torch.device("meta"):
            model = _create(name, [{"depth": 2}, {}])
        if is_vit(model):
            yield name, model


def why_not(model: Any) -> str:
    """Return the module that stands in the way; '' if none does."""
    try:
        check_supported(model)
    except UnsupportedModelError as error:
        return str(error)
    return ""


def table() -> str:
    """CSV: entry, class, supported (yes or no), the module that is not."""
    rows = ["entry,class,supported,because of"]
    for name, model in entries():
        reason = why_not(model)
        rows.append(f'{name},{type(model).__name__},{"no" if reason else "yes"},"{reason}"')
    return "\n".join(rows) + "\n"


def small(name: str, model: Any) -> Any:
    """Create the entry at a small size, with random weights everywhere, biases and scales too; ``model`` tells its
    patches."""
    patch = model.patch_embed.patch_size[0] if hasattr(model.patch_embed, "norm") else 16
    torch.manual_seed(0)
    # Not every entry takes every size: a stem may set the width, a list of sizes per block the depth.
    leave_out = ((), ("embed_dim", "num_heads"), ("depth", "embed_dim", "num_heads"))
    sizes = [{k: v for k, v in SMALL.items() if k not in names} for names in leave_out]
    net = _create(name, [{**kwargs, "img_size": 4 * patch} for kwargs in sizes])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return net.eval().requires_grad_(False)


def go(net: Any, folder: Path, onnx: bool = False) -> dict[str, float]:
    """Go the whole way with random gates; return the differences found, relative but for MACs and parameters:
    'extracted' from masked, 'loaded' and 'onnx' from extracted. The first block keeps its FFN and a head, the second
    has no attention left."""
    gated = _scattered(gate(net))
    size = cost.image_of(net)
    images = torch.randn(2, *size)
    left = extract(gated).eval().requires_grad_(False)
    logits = left(images)
    store.save(left, folder)
    loaded = store.load(folder).requires_grad_(False)
    kept = kept_cost(param_prices(gated), masks(gated), cost.dims_of(gated).head_dim)
    found = {
        "extracted": relative(logits, gated(images)),
        "MACs": cost.macs(loaded, size, executed=True) - counted_macs(copy.deepcopy(loaded), torch.zeros(1, *size)),
        "parameters": kept - cost.params(left),
        "loaded": relative(loaded(images), logits),
    }
    if onnx:
        found["onnx"] = relative(_onnx(loaded, images, folder.with_suffix(".onnx")), logits)
    return found


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def kind(net: Any) -> str:
    """Return what two entries of one kind have in common: everything but sizes."""
    spec, sizes = store.describe(net), {"img_size", "patch_size", "num_classes", "embed_dim", "in_chans"}
    sizes |= {"dim", "in_features", "out_features", "num_heads", "attn_head_dim", "scale", "width", "eps"}
    given = {"class": type(net).__name__, **store.arguments_of(net), "parts": spec.parts, "blocks": spec.blocks}
    return repr(_without(given, sizes))


def _without(value: Any, names: set[str]) -> Any:
    if isinstance(value, dict):
        return {k: _without(v, names) for k, v in value.items() if k not in names}
    return [_without(v, names) for v in value] if isinstance(value, list) else value


def _create(name: str, tries: list[dict[str, Any]]) -> Any:
    """Create the entry with the first of these arguments that it takes."""
    for arguments in tries[:-1]:
        try:
            return timm.create_model(name, **arguments)
        except (AssertionError, IndexError, TypeError):
            continue
    return timm.create_model(name, **tries[-1])


def _scattered(gated: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    for _, one in named_gates(gated):
        one.logit.data = torch.randn(one.logit.shape, generator=generator)
    first, second = gated.blocks[0], gated.blocks[1]
    first.mlp.block_gate.logit.data.fill_(1)
    first.attn.head_gate.logit.data[0] = 1
    second.attn.head_gate.logit.data.fill_(-1)
    return gated.eval().requires_grad_(False)


def _onnx(model: Any, images: Tensor, path: Path) -> Tensor:
    import onnxruntime

    export.to_onnx(model, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _run(onnx: bool) -> int:
    """Print a line per entry; the number of those that fail."""
    count, failed, seen = 0, 0, set[str]()
    with tempfile.TemporaryDirectory() as folder:
        for name, model in entries():
            if why_not(model):
                continue
            count += 1
            try:
                net = small(name, model)
                new = kind(net) not in seen
                found = go(net, Path(folder) / "net", onnx and new)
                seen.add(kind(net))
                bad = [k for k, v in found.items() if not v <= {"onnx": 1e-4, "MACs": 0, "parameters": 0}.get(k, 1e-5)]
                line = " ".join(f"{k} {v:.1e}" for k, v in found.items())
            except Exception as error:
                bad, line = ["error"], f"{type(error).__name__}: {one_line(error)}"
            failed += bool(bad)
            print("FAIL" if bad else "ok", name, line, flush=True)
    print(f"{count - failed} of {count} supported entries went the whole way; {len(seen)} kinds of network")
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m hiap.formats.supported", description=__doc__.split("\n")[0])
    parser.add_argument("--run", action="store_true", help="go the whole way with every supported entry")
    parser.add_argument("--onnx", action="store_true", help="with --run: export one of each kind as well")
    options = parser.parse_args()
    if options.run:
        return int(_run(options.onnx) > 0)
    text = table()
    atomic_write(TABLE, text.encode())
    print(f"{text.count(',yes,')} of {text.count(chr(10)) - 1} entries of timm {timm.__version__}: {TABLE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
