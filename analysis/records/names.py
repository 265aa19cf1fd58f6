"""Methods, labels, machines and numbers as tables, legends, notebooks and TeX show them."""

from __future__ import annotations

import re

import pandas as pd

from hiap.train.record import Record

METHODS = {
    "dense": "Dense",
    "hiap": "HiAP",
    "uniform": "Uniform",
    "l1": "l1 FFN",
    "taylor": "Taylor",
    "obs": "OBS",
    "magnitude": "Head magnitude",
    "vit_slim": "ViT-Slim",
    "cofi": "CoFi",
    "random": "Random",
    "peer": "Torch-Pruning",
}
TARGETED = (
    "HiAP + target (ours)"  # what HiAP is called where it was told a budget, which the paper's rule takes none of
)
RUNTIMES = {"eager": "PyTorch", "compile": "PyTorch, compiled", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


def title(label: str, method: str) -> str:
    """A label as a reader sees it: 'hiap-moderate' is 'HiAP (moderate)'. Controls are named for what they are, not for
    what runs them: 'dense-noise' of method hiap is 'Dense (noise)'."""
    for key in (method, "dense"):
        if label == key:
            return METHODS.get(key, key)
        if label.startswith(f"{key}-"):
            return f"{METHODS.get(key, key)} ({label[len(key) + 1 :]})"
    return label


def variant(label: str, target: float | None) -> str:
    """A label without its budget: 'taylor-rounds-20' at a target of 0.8 is 'taylor-rounds'."""
    return label if pd.isna(target) else label.removesuffix(f"-{100 * (1 - target):.0f}")


def with_variants(rows: pd.DataFrame) -> pd.DataFrame:
    """``rows`` with the ``variant`` of each label and its ``title``."""
    rows = rows.assign(variant=list(map(variant, rows["label"], rows["target"])))
    return rows.assign(title=list(map(title, rows["variant"], rows["method"])))


def run_title(record: Record) -> str:
    """What one run's figure is headed with: name, seed and data."""
    return f"{title(record.label, record.config.name)}, seed {record.seed}, {record.config.data.name}"


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


def count(n: pd.Series) -> str:
    """'5', or '3 to 5' where rows differ."""
    return " to ".join(str(int(end)) for end in sorted({n.min(), n.max()}))


def fixed(value: float, digits: int = 2) -> str:
    """A number in TeX, with a true minus sign, which zero has none of."""
    text = f"{round(value, digits) + 0.0:,.{digits}f}".replace(",", "{,}")
    return f"${text}$" if text.startswith("-") else text
