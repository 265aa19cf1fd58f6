"""Errors that are one line, and sections of options that raise them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator


class ConfigError(ValueError):
    """Error of a configuration that cannot be run; the message is one line and says what was expected."""


class UnsupportedModelError(ValueError):
    """Error of a network that holds a module without a gated form here; the message names it."""


class Section(BaseModel):
    """Options, frozen once they are checked; an unknown one is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_not_yes_or_no(cls, value: Any, info: ValidationInfo) -> Any:
        annotation: Any = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and not _takes_bool(annotation):
            raise ValueError("expected no 'yes' or 'no'")
        return value


@lru_cache(maxsize=1024)
def _takes_bool(annotation: Any) -> bool:
    """Tell whether a field of this type may be True or False, as such or among others."""
    if annotation is bool or annotation is Any or isinstance(annotation, bool):
        return True
    return any(_takes_bool(part) for part in get_args(annotation))


Some = TypeVar("Some", bound=BaseModel)


def one_line(error: object, most: int | None = 200) -> str:
    """Return ``error`` in words without line breaks, and not more than ``most`` characters of it (None: all)."""
    return " ".join(str(error).split())[:most]


def checked(section: type[Some], values: dict[str, Any]) -> Some:
    """Return ``section(**values)``. Raises ``ConfigError`` (one line) for values that it does not take."""
    try:
        return section(**values)
    except ValidationError as error:
        raise ConfigError(first_error(error)) from None


def first_error(error: ValidationError) -> str:
    """Return one line for the first problem: the dotted key, what is wrong, and what was given."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"] if part not in ("float", "str", "int"))
    given = "" if isinstance(first["input"], dict | BaseModel) else f", not {first['input']!r}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{key}: {message}{given}" if key else message
