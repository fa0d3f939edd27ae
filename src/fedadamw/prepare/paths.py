"""Settings that may name a folder or a file: which do, how a run keeps to them, how an export writes them.

`texts` is the folder of that name if there is one, else a hub id. In another working directory, or on a federation's
nodes, the same word must not load a stranger's data or model from the hub.

Paths in an exported folder are relative to it, or only the last name; never absolute.
"""

import copy
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from fedadamw.data.sources import is_local as is_local_data
from fedadamw.models.loading import PACKAGE
from fedadamw.models.loading import is_local as is_local_model
from fedadamw.models.vision import NAMES
from fedadamw.settings.data import DataSettings
from fedadamw.settings.experiment import Experiment
from fedadamw.settings.section import Section
from fedadamw.validation import check, parse_path

Settings = TypeVar("Settings", bound=Section)


class PathSetting(NamedTuple):
    """How to tell whether a setting's value is a path."""

    is_local: Callable[[str], bool]
    built_in: Collection[str] = ()  # names of the package, which come before folders


PATHS = {
    "model.name": PathSetting(is_local_model, NAMES),
    "model.tokenizer": PathSetting(is_local_model),
    "data.source": PathSetting(is_local_data, (DataSettings().source,)),
    "data.test_source": PathSetting(is_local_data),
    "devices.trace": PathSetting(lambda _: True),
    "devices.availability.trace": PathSetting(lambda _: True),
}
MODEL_PATHS, DATA_PATHS = (tuple(s for s in PATHS if s.startswith(section)) for section in ("model.", "data."))
PATH_PREFIXES = (".", "/", "~", PACKAGE)  # a value with one of these is never a hub id
MODEL_PATH_KEYS = ("base_model_name_or_path", "_name_or_path", "name_or_path")  # where libraries note a model's path


def is_path(setting: str, value: str | None) -> bool:
    """Whether the value of a setting in PATHS is a folder or a file of this machine."""
    kind = PATHS[setting]
    return value is not None and value not in kind.built_in and not value.startswith(PACKAGE) and kind.is_local(value)


def resolve_path(setting: str, value: str) -> Path:
    """Return the absolute path that such a value means here."""
    return parse_path(setting, value).resolve()


def list_plain_folders(experiment: Experiment) -> list[str]:
    """The settings whose values are folders or files here but look like hub ids."""
    return [s for s, value in _path_values(experiment) if not value.startswith(PATH_PREFIXES)]


def mark_folders(experiment: Experiment) -> Experiment:
    """Return the experiment with ./ before folders' plain names, so that no node takes them for hub ids."""
    plain = list_plain_folders(experiment)
    return _replace_values(experiment, {s: f"./{value}" for s, value in _path_values(experiment) if s in plain})


def make_absolute(experiment: Experiment) -> Experiment:
    """Return the experiment with absolute paths."""
    return _replace_values(experiment, {s: str(resolve_path(s, value)) for s, value in _path_values(experiment)})


def check_origins(experiment: Experiment, began: Collection[str] | None, settings: Collection[str]) -> None:
    """Raise InputError if one of `settings` was a folder when a run began and is none now, or the other way round.

    began: `list_plain_folders` of then; None for a run of an earlier version, which did not note them.
    """
    if began is None:
        return
    now, here = list_plain_folders(experiment), Path(os.curdir).resolve()
    for setting in settings:
        value = _value_of(experiment, setting)
        lost, new = setting in began and setting not in now, setting in now and setting not in began
        check(
            not lost,
            f"{setting}={value!r} was a folder or a file when the run began, and {here} has none: resume from the "
            "working directory that it began in",
        )
        check(
            not new,
            f"{setting}={value!r} was a hub id when the run began, and {here} has a folder or a file of that name: "
            "resume from another working directory",
        )


def relative_path(folder: Path, path: Path) -> str | None:
    """Return `path` relative to `folder`, as ../bert; None if they share only the root folder."""
    place, here = path.resolve(), folder.parent.resolve() / folder.name
    shared = os.path.commonpath([place, here.parent])
    return None if shared == place.anchor else os.path.relpath(place, here)


def make_portable(setting: str, value: str, folder: Path) -> str:
    """Return the value to write into `folder`: a path relative to it, or only its last name; a hub id as it is."""
    if not is_path(setting, value):
        return value
    path = resolve_path(setting, value)
    return relative_path(folder, path) or f"./{path.name}"


def make_settings_portable(settings: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Return nested settings without paths of this machine, and which of them are relative to `folder`."""
    portable, relative = copy.deepcopy(dict(settings)), []
    for setting in sorted(PATHS):
        section, key = _section_of(portable, setting)
        value = section.get(key)
        if value is not None and is_path(setting, value):
            section[key] = make_portable(setting, value, folder)
            relative += [setting] if relative_path(folder, resolve_path(setting, value)) else []
    return portable, relative


def restore_paths(settings: Mapping[str, Any], relative: Collection[str], folder: Path) -> dict[str, Any]:
    """Return the settings of `make_settings_portable` with absolute paths, as read in `folder`."""
    restored = copy.deepcopy(dict(settings))
    for setting in relative:
        section, key = _section_of(restored, setting)
        section[key] = str((folder.resolve() / section[key]).resolve())
    return restored


def replace_model_paths(folder: Path, base: str) -> None:
    """Write `base` for the model's path in the JSON files of `folder`; a tokenizer's file drops the path."""

    def is_model_path(key: str, value: object) -> bool:
        return key in MODEL_PATH_KEYS and isinstance(value, str) and Path(value).is_absolute()

    def replace(values: dict[str, Any]) -> dict[str, Any]:
        return {key: base if is_model_path(key, value) else value for key, value in values.items()}

    def drop(values: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if not is_model_path(key, value)}

    for file in folder.glob("*config.json"):
        text = file.read_text(encoding="utf-8")
        hook = drop if file.name == "tokenizer_config.json" else replace
        before, after = json.loads(text), json.loads(text, object_hook=hook)
        if after != before:
            file.write_text(json.dumps(after, indent=2) + "\n", encoding="utf-8")


def _value_of(experiment: Experiment, setting: str) -> str | None:
    """The value of a setting; None if it is null, or its section."""
    value: Any = experiment
    for key in setting.split("."):
        value = getattr(value, key, None)
    assert value is None or isinstance(value, str)
    return value


def _path_values(experiment: Experiment) -> Iterator[tuple[str, str]]:
    """The settings in PATHS whose values are paths, with these."""
    for setting in PATHS:
        value = _value_of(experiment, setting)
        if value is not None and is_path(setting, value):
            yield setting, value


def _replace_values(experiment: Experiment, values: Mapping[str, str]) -> Experiment:
    for setting, value in values.items():
        experiment = _replace(experiment, setting.split("."), value)
    return experiment


def _replace(section: Settings, path: Sequence[str], value: str) -> Settings:
    """Return the settings of a section with another value at `path` below it."""
    key, *inner = path
    return section.model_copy(update={key: _replace(getattr(section, key), inner, value) if inner else value})


def _section_of(settings: Mapping[str, Any], setting: str) -> tuple[dict[str, Any], str]:
    """The section of nested settings that a setting is in, and its name there; an empty one if the section is null."""
    *sections, key = setting.split(".")
    found: Any = settings
    for name in sections:
        found = found.get(name) or {}
    return found, key
