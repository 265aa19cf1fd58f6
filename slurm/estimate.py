"""What a run will cost, computed without building a network (for ``--dry-run``)."""

from __future__ import annotations

import json
from pathlib import Path

from hiap.budget.sizes import amount, dense_params, known_dims
from hiap.data.loader import published_size
from hiap.formats.folder import ARCHITECTURE
from hiap.ledger import Dims, dense_macs
from hiap.train import methods, record
from hiap.train.config import Config, ConfigError
from hiap.train.record import Folders


def images_seen(config: Config) -> int:
    """Count the training images of the whole run; an incomplete last batch of an epoch is left out."""
    batch = min(config.optim.batch_size, published_size(config.data).train)
    return config.optim.trained * steps_per_epoch(config) * batch


def steps_per_epoch(config: Config) -> int:
    """Count the steps of an epoch of the data set as it was published; what lies in a folder may differ."""
    return max(1, published_size(config.data).train // config.optim.batch_size)


def dims(config: Config) -> Dims | None:
    """Return the sizes of the dense network; None for a timm model that the ledger does not know, and where
    ``model.weights`` is a network of other sizes."""
    model = config.model
    if model.name == "vit" and _given(config) not in (None, (model.embed_dim, model.depth)):
        return None
    size = published_size(config.data)
    classes, channels = size.classes, size.channels
    if model.name != "vit":
        return known_dims(model.name, model.img_size, classes, channels)
    # ModelConfig has checked that they are there.
    assert model.embed_dim
    assert model.depth
    assert model.num_heads
    assert model.patch_size
    hidden = int(model.embed_dim * (model.mlp_ratio or 4))
    head_dim = model.embed_dim // model.num_heads
    return Dims(
        model.embed_dim,
        model.depth,
        model.num_heads,
        head_dim,
        hidden,
        model.patch_size,
        model.img_size,
        channels,
        classes,
    )


def _given(config: Config) -> tuple[int, int] | None:
    """Return width and depth of the network that ``model.weights`` names; None where no folder has it, or not yet."""
    weights = config.model.weights
    run = Folders.of(config).behind(weights)
    file = (run.model if run else Path(weights)) / ARCHITECTURE
    if not weights or not file.is_file():
        return None
    known = json.loads(file.read_text(encoding="utf-8"))
    return known["arguments"]["embed_dim"], len(known["blocks"])


def train_macs(config: Config) -> float | None:
    """Count the MACs of all training steps: forward 1x, backward 2x, the teacher's forward 1x, once an image where it
    is asked beforehand; None if the model, or a teacher of its own, is unknown.

    A baseline trains the pruned network, and the one that it starts from for as long as it searches, goes by rounds or
    masks; while its budget is another run's result, that network's MACs stand in, an upper bound.
    """
    size = dims(config)
    if size is None:
        return None
    dense = _left_macs(config, config.model.weights) or dense_macs(size)
    macs = 3 * _trained_macs(config, dense) * images_seen(config)
    teacher = _teacher_macs(config, dense)
    if teacher is None:
        return None
    return macs + teacher * (published_size(config.data).train if config.distill.precompute else images_seen(config))


def _left_macs(config: Config, name: str) -> int | None:
    """Return the MACs of what a run left that is named 'run:<run_id>': less than its sizes say, if it was pruned; None
    for any other name, and where it has not finished."""
    run = Folders.of(config).behind(name)
    size = record.summary(run.record).size if run else None
    return size.macs if size else None


def _teacher_macs(config: Config, dense: int) -> int | None:
    """Count the MACs of the teacher's forward of one image; None if it is unknown."""
    named, data = config.distill.teacher, published_size(config.data)
    if config.distill.alpha == 0 or (config.method == "dense" and not named):
        return 0
    if not named:
        return dense
    if named.startswith("run:"):
        return _left_macs(config, named)
    known = known_dims(named, config.model.img_size, data.classes, data.channels)
    return dense_macs(known) if known else None


def _trained_macs(config: Config, dense: int) -> float:
    """Count the MACs of the trained network, mean over the epochs."""
    target = _target(config, dense)
    kind, rounds = methods.kind(config.method), config.budget.rounds
    if kind not in ("ranking", "cutting", "searching") or target is None:  # no other is known to train less
        return dense
    if config.budget.noise or config.options.get("ramp"):  # masked to the end
        return dense
    searching = kind == "searching"
    masked = config.search.epochs / config.optim.epochs if searching else (rounds - 1) / rounds
    return masked * dense + (1 - masked) * target


def _target(config: Config, dense: int) -> float | None:
    try:
        wanted = record.target_value(config, Folders.of(config), "macs")
    except ConfigError:
        return None
    return None if wanted is None else amount(wanted, dense)


def gpu_hours(config: Config, bench: Path) -> tuple[float, str] | None:
    """Estimate (GPU-hours, device) of a run: its MACs at the rate of dense training steps of the same network and
    precision in a report of ``python -m hiap.bench steps`` in the folder ``bench``; None where there is none."""
    macs = train_macs(config)
    for path in sorted(bench.glob("*.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        if report["mode"] != "steps":  # other modes have other settings
            continue
        found = tuple(report["settings"][key] for key in ("device", "model", "precision"))
        same = found == ("cuda", config.model.name, config.optim.precision)
        rows = [row for row in report["rows"] if row["name"] == "dense"] if same else []
        if rows and macs is not None:
            best = max(3 * row["macs"] * row["throughput"] for row in rows)  # forward once, backward twice
            return macs / best / 3600, report["environment"]["device_name"]
    return None


def bench_hint(config: Config) -> str:
    """Return a command that measures the step time that ``gpu_hours`` needs."""
    name = config.model.name
    if name == "vit":
        return "The benchmark knows timm's networks only, and this one is made of numbers."
    wanted = f"model={name} device=cuda precision={config.optim.precision} batches=[256]"
    report = f"name=steps_{name}_cuda_{config.optim.precision} out=results/bench"
    return f"To measure:\n  python -m hiap.bench steps {wanted} {report}"


def disk_bytes(config: Config) -> tuple[int, int] | None:
    """Return the bytes of the final network, at most, and of what a run keeps until it has finished: two checkpoints of
    weights and both AdamW moments. All fp32; None if unknown."""
    size = dims(config)
    return None if size is None else (4 * dense_params(size), 2 * 3 * 4 * dense_params(size))
