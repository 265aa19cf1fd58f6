"""Methods, labels, machines and numbers as tables, legends, notebooks and TeX show them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import pandas as pd

from hiap.train.record import Record

METHODS = {
    "dense": "Dense",
    "hiap": "HiAP",
    "uniform": "Uniform",
    "l1": "l1 FFN",
    "taylor": "Taylor",
    "obs": "structured OBS (ours)",
    "magnitude": "Head magnitude",
    "vit_slim": "ViT-Slim",
    "cofi": "CoFi",
    "random": "Random",
    "amp": "AMP's criterion",
    "snapvit": "SnapViT's local score",
    "peer": "Torch-Pruning",
}
TARGETED = (
    "HiAP + target (ours)"  # what HiAP is called where it was told a budget, which the paper's rule takes none of
)
RUNTIMES = {"eager": "PyTorch", "compile": "PyTorch, compiled", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


RULE = "The paper's rule, our reading"
PRICED = re.compile(r"(rule|[\d.]+to1|macro-only|micro-only)-([\d.]+)")  # one run of a scan over strengths
STRENGTH = re.compile(r"faithful-x([\d.]+)")  # the same, as multiples of the paper's
CONTROL = "control"
CONTROLS = {  # what no one would choose: they say what training, a teacher or noise alone do
    "dense-continued": "Dense, trained on",
    "dense-distilled": "Dense, distilled",
    "dense-noise": "Dense, gate noise",
    "uniform-noise": "Uniform, gate noise",
}
CONTROLS |= {  # the same as HiAP with a target has
    "same_sizes": "Same sizes, random units",
    "same_sizes-ramp": "Same sizes, random units, along the ramp",
    "hiap_uniform": "Same order of units, uniform sizes",
    "scratch": "Same shape from scratch",
    "scratch-cost": "Same shape from scratch, for the same TMACs",
}
VARIANTS = {  # of a method, with a name of their own
    "obs_qk": "structured OBS, Q and K narrower too (ours)",
    "obs_qk_16": "structured OBS, Q and K narrower too, widths in multiples of 16 (ours)",
    "obs_labels": "structured OBS, weights from labels (ours)",
    "group_taylor": "Torch-Pruning, GroupTaylor",
    "hiap_ranked": "HiAP + target from the order of structured OBS (ours)",
}
FORMS = {"faithful": "", "rate-0.2": "gates' rate 0.2", "lower-rate": "weights' rate 5e-5", "long": "twice the epochs",
         "other": "in one round", "layer": "per layer", "rounds": "in rounds", "global": "all layers",
         "ls": "least squares", "no_ls": "no least squares", "cost": "for the TMACs of HiAP + target", "one": "1 epoch",
         "three": "3 epochs", "ten": "10 epochs"}  # fmt: skip


def title(label: str, method: str, target: float | None = None, steps: float | None = None) -> str:
    """A label, or a variant, as a reader knows it. HiAP with a target is ours and says so; without one it follows the
    paper's rule in our reading, after so many ``steps`` where they are known. Controls are named for what they are, not
    for what runs them: 'dense-noise' of method hiap is no HiAP."""
    if label in CONTROLS:
        return f"{CONTROLS[label]} ({CONTROL})"
    if priced := PRICED.fullmatch(label):
        ratio = priced[1].replace("to", ":") if priced[1] != "rule" else RULE
        return f"{ratio}, strength {priced[2]}"
    if strength := STRENGTH.fullmatch(label):
        return f"{RULE}, {strength[1]} times the strengths"
    for key in (method, "dense", *VARIANTS):
        if label == key or label.startswith(f"{key}-"):
            rest = label[len(key) + 1 :]
            forms = [words for part in _parts(rest) if (words := FORMS.get(part, part))]
            named = VARIANTS.get(key) or METHODS.get(key, key)
            return _named(named, forms) if key != "hiap" else _hiap(forms, target, steps)
    return label


def _parts(rest: str) -> list[str]:
    """'faithful-soft' is the form 'faithful' and 'soft'."""
    first, _, others = rest.partition("-")
    return [rest] if rest in FORMS or first not in FORMS else [first, others]


def _named(name: str, forms: list[str]) -> str:
    said = ", ".join(forms)
    return name if not said else f"{name}, {said}" if name.endswith(")") else f"{name} ({said})"


def _hiap(forms: list[str], target: float | None, steps: float | None) -> str:
    if not pd.isna(target):
        return ", ".join([TARGETED, *filter(None, forms)])
    return ", ".join([RULE, *([] if pd.isna(steps) else [f"{steps:,.0f} steps"]), *filter(None, forms)])


def variant(label: str, target: float | None) -> str:
    """A label without its budget: 'taylor-rounds-20' at a target of 0.8 is 'taylor-rounds'."""
    return label if pd.isna(target) else label.removesuffix(f"-{100 * (1 - target):.0f}")


def with_variants(rows: pd.DataFrame) -> pd.DataFrame:
    """``rows`` with the ``variant`` of each label and its ``title``."""
    rows = rows.assign(variant=list(map(variant, rows["label"], rows["target"])))
    return rows.assign(title=titles(rows, "variant"))


def titles(rows: pd.DataFrame, column: str = "label") -> list[str]:
    """The ``title`` of each row by ``column``, ``method``, and, where it has them, ``target`` (a ``budget`` of another
    kind counts as one) and ``steps``."""
    nothing = [None] * len(rows)
    targets, budgets = rows.get("target", nothing), rows.get("budget", nothing)
    aims = [
        0.0 if pd.isna(aim) and isinstance(other, str) and other else aim
        for aim, other in zip(targets, budgets, strict=True)
    ]
    return list(map(title, rows[column], rows["method"], aims, rows.get("steps", nothing)))


def controls(titles: pd.Series) -> pd.Series:
    """Which ``titles`` are of ``CONTROLS``."""
    return titles.astype(str).str.endswith(f"({CONTROL})")


def reading(label: str) -> str:
    """A reading of an open point, as grid sensitivity labels it: 'A6-rate-0.2' is 'A6: rate 0.2'."""
    points = re.match(r"(?:A\d+-)+", label)
    if not points:
        return label
    rest = label[points.end() :].replace("no-t2", "without T²").replace("-", " ")
    return f"{', '.join(points[0].rstrip('-').split('-'))}: {rest}"


def run_title(record: Record) -> str:
    """What one run's figure is headed with: name, seed and data."""
    aimed = 0.0 if record.config.budget.has_target else None
    return f"{title(record.label, record.config.name, aimed)}, seed {record.seed}, {record.config.data.name}"


def network(name: str) -> str:
    """A network of a deploy report, named after the method that cut it to a target, or after its heads' figure."""
    return "Fig. 5's heads" if name.startswith("fig5") else title(name, name, target=0.0)


def machines(names: pd.Series) -> str:
    """Each once, without trade marks and kinds of memory."""
    short = (re.sub(r" \d+GB\b.*", "", name).replace("(R)", "").removesuffix(" Processor") for name in names)
    return ", ".join(sorted(set(short)))


def nothing(grid: str) -> str:
    """What to say in place of a picture."""
    return f"No finished run of grid '{grid}' yet; `python slurm/launch_grid.py --grid {grid}` makes them."


def listed(words: list[str]) -> str:
    """'a', 'a and b', 'a, b and c'; 'none' of nothing."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else "none"


def table(lines: Iterable[Sequence[str]]) -> str:
    """Lines of cells, the second of them what Markdown aligns columns by, as Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def count(n: pd.Series) -> str:
    """'5', or '3 to 5' where rows differ."""
    return " to ".join(str(int(end)) for end in sorted({n.min(), n.max()}))


def fixed(value: float, digits: int = 2) -> str:
    """A number in TeX, with a true minus sign, which zero has none of."""
    text = f"{round(value, digits) + 0.0:,.{digits}f}".replace(",", "{,}")
    return f"${text}$" if text.startswith("-") else text
