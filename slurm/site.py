"""What differs between clusters and belongs neither in code nor in a grid: one YAML (see ``site.example.yaml``)."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hiap.train.config import ConfigError, unknown_key

HERE = Path(__file__).parent
FILE = HERE / "site.yaml"  # the user's own; git ignores it
EXAMPLE = HERE / "site.example.yaml"


class Site(BaseModel):
    """``processes_per_node``: of one run; on CUDA each has a GPU of its own. ``mem_gb`` and ``cpus_per_task`` are of
    one process. ``time_min`` is minutes of one attempt: a run that needs more is stopped, requeued and resumed.
    ``retries``: how often a job that died without leaving a record, and without having come any further, is submitted
    again. ``sbatch``: further options of sbatch."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    processes_per_node: int = Field(8, ge=1)
    gpu_type: str = ""
    cpus_per_task: int | None = Field(None, ge=1)
    mem_gb: float | None = Field(None, gt=0)
    time_min: int = Field(24 * 60, ge=1)
    signal_delay_s: int = Field(120, ge=1)
    max_array: int | None = Field(None, ge=1)
    retries: int = Field(2, ge=0)
    setup: list[str] = []
    python: str = ""
    data_root: str = ""
    results: str = ""
    sbatch: dict[str, str | int | bool] = {}


def load(path: Path | None) -> Site:
    """The site of ``path``, of ``slurm/site.yaml`` where there is one, or the defaults. Raises ``ConfigError``."""
    if path is None and not FILE.exists():
        return Site()
    path = path or FILE
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a site with the keys {', '.join(Site.model_fields)}")
    try:
        return Site.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"{path}: {unknown_key(key, list(Site.model_fields))}") from None
        raise ConfigError(f"{path}: {key}: {first['msg']}, not {first['input']!r}") from None
