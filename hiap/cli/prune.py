"""``hiap prune MODEL --data FOLDER``: a smaller network, saved, exported and measured, in about a minute."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hiap.options import ConfigError
from hiap.train import methods
from hiap.train.arguments import Parser, one_line_errors

if TYPE_CHECKING:
    from hiap.formats.pictures import Batch

IMAGES = 512
FORMS = {"onnx": ("onnx", "onnxscript"), "openvino": ("openvino", "onnx", "onnxscript"), "torch": ()}
ENDS = {"picture": ".png", "onnx": ".onnx", "openvino": ".xml", "weights": ".bin", "torch": ".pt2"}  # beside --out
TIMED = 16  # images of a call that is timed


@one_line_errors
def main(arguments: list[str] | None = None) -> None:
    run(_parser().parse_args(arguments))


def _parser() -> Parser:
    about = "Prune a Vision Transformer to a target without training, then save, export and measure it."
    parser = Parser(prog="hiap prune", description=about)
    parser.add_argument("model", help="timm's name, a checkpoint, a folder of hiap.save or transformers, owner/name")
    parser.add_argument("--data", required=True, metavar="FOLDER", help="images, in class folders or not")
    parser.add_argument(
        "--target", type=float, metavar="X", help="share of the MACs below 1, or a number (default: 0.5)"
    )
    parser.add_argument("--target-params", type=float, metavar="X", help="the same of parameters, instead")
    parser.add_argument("--target-latency", type=float, metavar="X", help="a share or microseconds, by --latency")
    parser.add_argument("--latency", metavar="FILE", help="a report of python -m hiap.bench latency of this network")
    parser.add_argument("--multiple", type=int, metavar="N", help="units that go together (default: 16 or what fits)")
    parser.add_argument(
        "--images", type=int, metavar="N", help="to prune by (default: 512, or all where there are fewer)"
    )
    parser.add_argument("--measure", type=int, default=2000, metavar="N", help="to measure on, at most (default: 2000)")
    parser.add_argument(
        "--epochs", type=int, default=0, metavar="N", help="then train on: needs FOLDER/train, FOLDER/val"
    )
    parser.add_argument("--weights", default="", metavar="FILE", help="for timm's name (default: timm's hub)")
    parser.add_argument("--arch", default="", metavar="NAME", help="timm's name for a checkpoint")
    parser.add_argument("--averaged", choices=("true", "false"), help="of a checkpoint that holds both: the average?")
    parser.add_argument(
        "--img-size", type=int, metavar="N", help="of timm's network (default: its own, or the checkpoint's)"
    )
    parser.add_argument(
        "--class-order",
        default="auto",
        choices=("auto", "name", "number"),
        help="of class folders that are numbers: by name, or by number (as data.class_order)",
    )
    parser.add_argument("--out", default="pruned", metavar="FOLDER", help="where to save (default: pruned)")
    parser.add_argument("--export", default="", metavar="FORMS", help=f"of {','.join(FORMS)}, beside the folder")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="which images (default: 0)")
    return parser


class Accuracy(NamedTuple):
    """Accuracy of both networks: for each image whether the dense one and the pruned one are right."""

    dense: Any
    pruned: Any


def run(options: argparse.Namespace) -> None:
    """Prune, save, export and measure, as the command line says. Raises ``ConfigError``, ``StoreError`` or
    ``UnsupportedModelError`` (one line), where it can be known before anything is computed."""
    forms = _checked(options)
    import hiap  # here: --help need not wait for torch
    from hiap.formats import networks, pictures, show, store

    started = time.perf_counter()
    averaged = None if options.averaged is None else options.averaged == "true"
    pictures.require(options.data)
    model = networks.load(options.model, options.weights, options.arch, options.img_size, averaged)
    if (others := store.others_files(Path(options.out))) if Path(options.out).exists() else []:
        raise ConfigError(f"--out {options.out}: holds {others[0]}; expected a new folder or one of hiap.save")
    found = pictures.read(
        options.data, model, options.images, IMAGES, options.measure, options.seed, options.class_order
    )
    if options.epochs:
        small = _trained(model, options)
    else:
        small = hiap.prune(model, found.calibration, multiple=options.multiple, **_target(options))
    pruned = time.perf_counter() - started
    accuracy = _measured(model, small, found.held_out) if found.held_out else None
    shown = show.Shown(small, dense := _dense(model))
    store.save(small, options.out, card=_card(dense, options, accuracy))
    written = [str(options.out), *_exported(small, options.out, forms)]
    if drawn := find_spec("matplotlib") is not None:
        written.append(str(shown.save(f"{options.out}.png")))
    print(shown)
    print(_sizes(model, small))
    print("\n".join(_report(model, small, accuracy, found.why)))
    took = f"to prune and train for {options.epochs} epochs" if options.epochs else "to prune"
    print(f"{pruned:.0f} s {took}, {time.perf_counter() - started:.0f} s in all; written: {', '.join(written)}")
    if not drawn:
        print(f"no picture, {options.out}.png, without matplotlib: pip install matplotlib")


def _checked(options: argparse.Namespace) -> list[str]:
    """Return the forms to export, once everything has been refused that can be without torch."""
    options.out = str(Path(options.out))  # without the slash that a shell puts behind a folder's name
    forms = [form for form in options.export.split(",") if form]
    for form in forms:
        if form not in FORMS:
            raise ConfigError(f"--export {form}: expected some of {','.join(FORMS)}")
        if missing := [package for package in FORMS[form] if find_spec(package) is None]:
            raise ConfigError(f"--export {form}: not all is installed: pip install {' '.join(missing)}")
    for name, least in (("images", 1), ("measure", 1), ("epochs", 0), ("multiple", 1), ("img_size", 1), ("seed", 0)):
        given = getattr(options, name)
        if given is not None and given < least:
            raise ConfigError(f"--{name.replace('_', '-')} {given}: expected {least} or more")
    if not Path(options.data).is_dir():
        raise ConfigError(f"--data {options.data}: no such folder")
    parent = Path(options.out).resolve().parent
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK) or Path(options.out).is_file():
        raise ConfigError(f"--out {options.out}: cannot be written")
    _require_apart(options, forms)
    if options.epochs:
        if not any((Path(options.data) / name).exists() for name in ("train", "train.tar")):
            raise ConfigError(f"--epochs {options.epochs}: needs labels, {options.data}/train and {options.data}/val")
        methods.find("obs")
    return forms


def _require_apart(options: argparse.Namespace, forms: Sequence[str]) -> None:
    """Raise ``ConfigError`` if what is read would be overwritten, or if a file of an earlier network would stay beside
    the new one under its name."""
    written = [Path(options.out), *(Path(f"{options.out}{end}") for end in ENDS.values())]
    for flag in ("model", "data", "weights", "latency"):
        if not (given := getattr(options, flag)):
            continue
        read = Path(given).resolve()
        for path in written:
            if path.resolve() in (read, *read.parents) and path.exists():
                raise ConfigError(
                    f"--out {options.out}: {given} is read and would be overwritten; expected a new folder"
                )
    kept = {form for form in ENDS if form in forms or (form == "picture" and find_spec("matplotlib"))}
    kept |= {"weights"} if "openvino" in forms else set()
    stale = [path for form, end in ENDS.items() if form not in kept and (path := Path(f"{options.out}{end}")).exists()]
    if stale:
        raise ConfigError(
            f"--out {options.out}: {stale[0]} is of an earlier network and would stay; delete it, export it anew, or "
            "choose another --out"
        )


def _target(options: argparse.Namespace) -> dict[str, Any]:
    given = {"target_macs": options.target, "target_params": options.target_params}
    given |= {"target_latency": options.target_latency}
    if all(wanted is None for wanted in given.values()):
        given["target_macs"] = 0.5
    return {**given, "latency": options.latency}


def _trained(model: Any, options: argparse.Namespace) -> Any:
    """Cut, correct and train from the start, as a run of this project; its record lies beside the folder."""
    import hiap
    from hiap.backbones.evening import even
    from hiap.cost import image_of
    from hiap.train import run
    from hiap.train.config import from_dict
    from hiap.train.record import Folders

    root = Path(f"{options.out}-run")
    if even(model) is not model:
        raise ConfigError(f"--epochs {options.epochs}: is for a network that was not pruned before")
    _require_own(root / "dense", model)
    hiap.save(model, root / "dense")
    budget = {k: v for k, v in _target(options).items() if v is not None and k != "latency"}
    values = {
        "method": "obs",
        "seed": options.seed,
        "model": {"name": "vit", "img_size": image_of(model)[1], "weights": str(root / "dense")},
        "data": {"name": "folder", "root": options.data, "class_order": options.class_order},
        "optim": {"epochs": options.epochs, "batch_size": 64, "lr": 5e-5, "warmup_epochs": 0.1 * options.epochs},
        "budget": {**budget, "correct": options.images or IMAGES, "multiple": options.multiple or 16},
        "options": {"images": options.images or IMAGES, "queries": True},
        "penalty": {"latency_table": options.latency or ""},
        "run": {"results": str(root), "tensorboard": False},
    }
    config = from_dict(values, "hiap prune --epochs")
    run.run(config)
    return hiap.load(Folders.of(config).model)


def _require_own(folder: Path, model: Any) -> None:
    """Raise ``ConfigError`` if an earlier run, which would be gone on with, started from another network."""
    import hiap

    if not folder.is_dir():
        return
    there, here = hiap.load(folder).state_dict(), model.state_dict()
    if there.keys() != here.keys() or any(not there[name].equal(value) for name, value in here.items()):
        raise ConfigError(f"{folder.parent}: holds the run of another network; delete it, or choose another --out")


def _measured(model: Any, small: Any, batches: Sequence[Batch]) -> Accuracy:
    import torch

    like = next(model.parameters())
    with torch.inference_mode():
        right = [[net(x.to(like)).argmax(1).cpu() == labels for x, labels in batches] for net in (model, small)]
    return Accuracy(*(torch.cat(each) for each in right))


def _report(model: Any, small: Any, accuracy: Accuracy | None, why: str) -> list[str]:
    """Return lines on accuracy and time, before and after."""
    from hiap.formats import card

    lines = []
    if accuracy is None:
        lines.append(f"accuracy not measured: {why}")
    else:
        n = len(accuracy.dense)
        for name, right in (("before", accuracy.dense), ("after", accuracy.pruned)):
            top1 = 100 * right.float().mean().item()
            low, high = card.interval(top1, n)
            lines.append(f"top-1 {name} {top1:.2f} % [{low:.2f}, {high:.2f}] on {n} images that nothing was fitted to")
            if name == "before" and low <= 100 / model.num_classes:
                lines.append("which is not above chance: classes or pixels are probably not as the network knows them")
        difference, low, high = paired(accuracy)
        lines.append(f"difference {difference:+.2f} points [{low:+.2f}, {high:+.2f}], paired, 95 %")
    return [*lines, _speed(model, small)]


def _sizes(model: Any, small: Any) -> str:
    from hiap.cost import params
    from hiap.formats.shape import quantity, total_macs

    macs, many = [(count(model), count(small)) for count in (total_macs, params)]
    return (
        f"{quantity(macs[0])} -> {quantity(macs[1])} MACs ({macs[1] / macs[0]:.1%}), "
        f"{quantity(many[0])} -> {quantity(many[1])} parameters ({many[1] / many[0]:.1%})"
    )


def paired(accuracy: Accuracy) -> tuple[float, float, float]:
    """Return pruned minus dense in points, and the ends of its 95 % interval, from the images on which they differ. The
    ends are Agresti and Min's (2005): half an image more in each of the four cases, so that ten images that all agree
    do not seem to settle it."""
    from hiap.formats.card import Z

    change = accuracy.pruned.double() - accuracy.dense.double()
    n, gained, lost = len(change), (change > 0).sum().item() + 0.5, (change < 0).sum().item() + 0.5
    middle = (gained - lost) / (n + 2)
    half = Z * ((gained + lost - (gained - lost) ** 2 / (n + 2)) ** 0.5) / (n + 2)
    ends = (100 * max(-1.0, middle - half), 100 * min(1.0, middle + half))
    return 100 * change.mean().item(), *ends


def _speed(model: Any, small: Any) -> str:
    """Return both times, and how many times as fast the pruned network is: pairs of neighbouring calls, so that what
    else the machine does meets both, and shows as a wide range."""
    import numpy as np
    import torch

    from hiap.bench.clock import alternate, quartiles
    from hiap.bench.report import Timing
    from hiap.cost import image_of

    images = torch.zeros(TIMED, *image_of(model))
    like = next(model.parameters())
    images = images.to(like)
    with torch.inference_mode():
        calls = {"dense": lambda: model(images), "small": lambda: small(images)}
        seconds, ratios = alternate(calls, "dense", Timing(rounds=9, warmup=1), like.device)
    low, middle, high = quartiles(1 / ratios["small"])
    dense, now = (1e3 * float(np.median(seconds[name])) for name in calls)
    return (
        f"{dense:.1f} -> {now:.1f} ms for {TIMED} images on this CPU: {middle:.2f} times as fast "
        f"(half of {len(ratios['small'])} pairs: {low:.2f} to {high:.2f})"
    )


def _card(dense: Any, options: argparse.Namespace, accuracy: Accuracy | None) -> dict[str, Any]:
    method = f"hiap prune --epochs {options.epochs}" if options.epochs else "hiap.prune"
    known: dict[str, Any] = {"method": method, "start": options.model, "data": Path(options.data).resolve().name}
    if dense is not None:
        known["dense"] = dense
    if accuracy is not None:
        before, after = (100 * right.float().mean().item() for right in accuracy)
        known |= {"top1": after, "images": len(accuracy.pruned), "dense_top1": before}
    return known


def _dense(model: Any) -> Any:
    """Return the sizes of the network before, None if that was pruned itself."""
    from hiap.formats.shape import Dense

    try:
        return Dense.of(model)
    except ConfigError:
        return None


def _exported(small: Any, out: str, forms: Sequence[str]) -> list[str]:
    """Write the exported files beside the folder, each whole or not at all; return their paths."""
    import torch

    from hiap.formats import export

    paths = {form: f"{out}{ENDS[form]}" for form in FORMS}
    for form in forms:
        path = Path(paths[form])
        part = path.with_name(f"part-{path.name}")
        if form == "torch":
            torch.export.save(export.to_program(small), part)
        elif form == "onnx":
            export.to_onnx(small, part)
        else:
            import openvino as ov

            whole = path.with_name(f"part-{path.stem}.onnx")
            export.to_onnx(small, whole)
            ov.save_model(ov.Core().read_model(whole), part, compress_to_fp16=False)
            whole.unlink()
            part.with_suffix(".bin").replace(path.with_suffix(".bin"))
        part.replace(path)
    return [paths[form] for form in forms]
