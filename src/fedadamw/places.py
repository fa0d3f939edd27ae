"""Where a model's base and data are, told in an exported folder without the paths of the machine it was made on.

What is near is told relative to the folder, and found again with it; what is far by its name alone.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedadamw.data.sources import is_local as is_local_data
from fedadamw.experiment import Data
from fedadamw.models.loading import PACKAGE
from fedadamw.models.loading import is_local as is_local_model
from fedadamw.models.vision import NAMES

OF_DATA = ("source", "test_source")
OF_MODEL = ("name", "tokenizer")
PATHS = {*(f"data.{key}" for key in OF_DATA), *(f"model.{key}" for key in OF_MODEL)}
KEYS = ("base_model_name_or_path", "_name_or_path", "name_or_path")  # where libraries write where a model was


def is_path(setting: str, value: str | None) -> bool:
    """Whether the value of a setting among PATHS is a folder or a file of this machine."""
    if value is None or value.startswith(PACKAGE):
        return False
    if setting.startswith("data."):
        return value != Data().source and is_local_data(value)
    return value not in NAMES and is_local_model(value)


def seen_from(folder: Path, path: str) -> str | None:
    """`path` relative to `folder`, as ../bert; None where the way leads over the root of all folders."""
    place, here = Path(path).expanduser().resolve(), folder.parent.resolve() / folder.name
    shared = os.path.commonpath([place, here.parent])
    return None if shared == place.anchor else os.path.relpath(place, here)


def told(setting: str, value: str, folder: Path) -> str:
    """How the value of a setting is told in `folder`: a path as one relative to it, or as its last name."""
    if not is_path(setting, value):
        return value
    return seen_from(folder, value) or f"./{Path(value).expanduser().resolve().name}"


def without_paths(settings: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Nested settings without paths of this machine, and which of them are relative to `folder`."""
    found, relative = {**settings, "data": dict(settings["data"]), "model": dict(settings["model"])}, []
    for setting in sorted(PATHS):
        section, _, key = setting.partition(".")
        value = found[section][key]
        if is_path(setting, value):
            found[section][key] = told(setting, value, folder)
            relative += [setting] if seen_from(folder, value) else []
    return found, relative


def with_paths(settings: Mapping[str, Any], relative: list[str], folder: Path) -> dict[str, Any]:
    """The settings of `without_paths`, read in `folder`."""
    found = {**settings, "data": dict(settings["data"]), "model": dict(settings["model"])}
    for setting in relative:
        section, _, key = setting.partition(".")
        found[section][key] = str((folder.resolve() / found[section][key]).resolve())
    return found


def tell_base(folder: Path, base: str) -> None:
    """Put `base` where libraries wrote the path of a model into the JSON files of `folder`."""

    def of_base(found: dict[str, Any]) -> dict[str, Any]:
        paths = [key for key in KEYS if isinstance(found.get(key), str) and Path(found[key]).is_absolute()]
        return {**found, **dict.fromkeys(paths, base)}

    for file in folder.glob("*config.json"):
        text = file.read_text(encoding="utf-8")
        before, after = json.loads(text), json.loads(text, object_hook=of_base)
        if after != before:
            file.write_text(json.dumps(after, indent=2) + "\n", encoding="utf-8")
