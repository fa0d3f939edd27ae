"""The base class of every section of settings, and nested settings by path."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Settings that cannot change; an unknown name is an error.

    Each field has a description for users: what it does, its unit and range, what null means, when to change it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)


def flatten_settings(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested settings as (path, value), with paths such as `training.lr`."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from flatten_settings(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
