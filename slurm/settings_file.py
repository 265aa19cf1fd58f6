"""A YAML file of a person's (a grid, a site) as a checked model; what is wrong with it is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from hiap.options import one_line
from hiap.train.config import NOT_YAML, ConfigError, explain
from hiap.train.plain_yaml import StrictLoader

Model = TypeVar("Model", bound=BaseModel)


def load(path: Path, model: type[Model]) -> Model:
    """Load a file as a checked model; an empty file is one without keys, where none is required. Raises ``ConfigError``
    naming file and key."""
    return checked(path, read(path, model), model)


def read(path: Path, model: type[BaseModel]) -> dict[str, Any]:
    """Read the keys of a file, unchecked. Raises ``ConfigError`` for what holds none."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), StrictLoader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except NOT_YAML as error:
        raise ConfigError(f"{path}: not YAML: {one_line(error, None)}") from None
    if values is None and not any(field.is_required() for field in model.model_fields.values()):
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a {model.__name__.lower()} with the keys {', '.join(model.model_fields)}")
    return values


def checked(path: Path, values: dict[str, Any], model: type[Model]) -> Model:
    """Return what a file says as a checked model. Raises ``ConfigError`` naming file and key."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, list(model.model_fields))}") from None
