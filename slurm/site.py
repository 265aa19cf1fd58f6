"""What differs between clusters and belongs neither in code nor in a grid: one YAML (see ``site.example.yaml``)."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from slurm import settings_file

HERE = Path(__file__).parent
FILE = HERE / "site.yaml"  # the user's own; git ignores it
EXAMPLE = HERE / "site.example.yaml"


class Site(BaseModel):
    """Settings of a cluster; every key, its meaning and an example are in ``site.example.yaml``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    wckey: str = ""
    processes_per_node: int = Field(8, ge=1)
    gpus: Literal["gpus-per-node", "gpus-per-task", "gres", "none"] = "gpus-per-node"
    gpu_type: str = ""
    precision: Literal["", "fp32", "fp16"] = ""
    cpus_per_task: int | None = Field(None, ge=1)
    mem_gb: float | None = Field(None, gt=0)
    time_min: int = Field(24 * 60, ge=1)
    signal_delay_s: int = Field(120, ge=1)
    max_array: int | None = Field(None, ge=1)
    max_jobs: int | None = Field(None, ge=1)
    retries: int = Field(2, ge=0)
    setup: list[str] = []
    python: str = ""
    srun: list[str] = []
    data_root: str = ""
    data_on_nodes: bool = False
    results: str = ""
    cache: str = ""
    prefetch: bool = True
    sbatch: dict[str, str | int | bool] = {}

    @model_validator(mode="after")
    def _folders_of_this_machine(self) -> Site:
        """Read ``$SCRATCH/hiap`` and ``~/x`` as a shell does."""
        for key in ("results", "cache", *(() if self.data_on_nodes else ("data_root",))):
            given = getattr(self, key)
            folder = os.path.expanduser(os.path.expandvars(given))
            if unset := re.search(r"\$\{?(\w+)", folder):
                raise ValueError(f"{key}: the variable {unset.group(1)} is not set here")
            object.__setattr__(self, key, folder)
        return self


def load(path: Path | None) -> Site:
    """Load the site of ``path``, of ``slurm/site.yaml`` where there is one, or the defaults. Raises ``ConfigError`` for
    what cannot be read."""
    if path is None and not FILE.exists():
        return Site()
    return settings_file.load(path or FILE, Site)
