"""Paths among settings: which are, what a run keeps to, and how an export tells them.

`texts` is the folder of that name where there is one, and a hub id elsewhere. In another working directory, or on a
federation's nodes, the same word must not bring a stranger's data or model of the hub.

Paths in an exported folder: relative to it, or the last name alone; never absolute.
"""

import json
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from fedadamw.data.sources import is_local as is_local_data
from fedadamw.models.loading import PACKAGE
from fedadamw.models.loading import is_local as is_local_model
from fedadamw.models.vision import NAMES
from fedadamw.settings.experiment import DataSettings, Experiment
from fedadamw.validation import check, parse_path

SIGNS = (".", "/", "~", PACKAGE)  # with one of these a name is never a hub id
PATHS: dict[str, tuple[Callable[[str], bool], Collection[str]]] = {  # what tells a path, and names that are none
    "model.name": (is_local_model, NAMES),
    "model.tokenizer": (is_local_model, ()),
    "data.source": (is_local_data, (DataSettings().source,)),
    "data.test_source": (is_local_data, ()),
}
MODEL, DATA = (tuple(setting for setting in PATHS if setting.startswith(part)) for part in ("model.", "data."))
KEYS = ("base_model_name_or_path", "_name_or_path", "name_or_path")  # where libraries write where a model was


def is_path(setting: str, value: str | None) -> bool:
    """Whether the value of a setting among PATHS is a folder or a file of this machine."""
    is_local, names = PATHS[setting]
    return value is not None and value not in names and not value.startswith(PACKAGE) and is_local(value)


def whole(setting: str, value: str) -> Path:
    """The absolute path that the value of such a setting means here."""
    return parse_path(setting, value).resolve()


def plain_folders(experiment: Experiment) -> list[str]:
    """The settings whose plain names are those of folders or files here."""
    values = _values(experiment)
    return [name for name, value in values.items() if is_path(name, value) and not str(value).startswith(SIGNS)]


def _values(experiment: Experiment) -> dict[str, str | None]:
    """The settings among PATHS, with their values."""
    parts = {"model": experiment.model, "data": experiment.data}
    split = {setting: setting.split(".") for setting in PATHS}
    return {setting: getattr(parts[section], key) for setting, (section, key) in split.items()}


def changed(experiment: Experiment, values: Mapping[str, str | None]) -> Experiment:
    """`experiment` with other values of settings among PATHS."""
    parts: dict[str, dict[str, str | None]] = {"model": {}, "data": {}}
    for setting, value in values.items():
        section, _, key = setting.partition(".")
        parts[section][key] = value
    model, data = experiment.model.model_copy(update=parts["model"]), experiment.data.model_copy(update=parts["data"])
    return experiment.model_copy(update={"model": model, "data": data})


def mark_folders(experiment: Experiment) -> Experiment:
    """The same, with ./ before folders' plain names: nobody takes these for hub ids."""
    values = _values(experiment)
    return changed(experiment, {setting: f"./{values[setting]}" for setting in plain_folders(experiment)})


def from_anywhere(experiment: Experiment) -> Experiment:
    """The same, with whole paths in place of those from here."""
    values = {setting: value for setting, value in _values(experiment).items() if is_path(setting, value)}
    return changed(experiment, {setting: str(whole(setting, str(value))) for setting, value in values.items()})


def check_origins(experiment: Experiment, began: Collection[str] | None, settings: Collection[str]) -> None:
    """Raise InputError where one of `settings` is now a folder and was none when a run began, or the other way.

    began: the `plain_folders` of then; None of a run of an earlier version, which did not note them.
    """
    if began is None:
        return
    now, values, here = plain_folders(experiment), _values(experiment), Path(os.curdir).resolve()
    for setting in settings:
        value = values[setting]
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


def seen_from(folder: Path, path: Path) -> str | None:
    """`path` relative to `folder`, as ../bert; None where the way leads over the root of all folders."""
    place, here = path.resolve(), folder.parent.resolve() / folder.name
    shared = os.path.commonpath([place, here.parent])
    return None if shared == place.anchor else os.path.relpath(place, here)


def told(setting: str, value: str, folder: Path) -> str:
    """How the value of a setting is told in `folder`: a path as one relative to it, or as its last name."""
    if not is_path(setting, value):
        return value
    path = whole(setting, value)
    return seen_from(folder, path) or f"./{path.name}"


def without_paths(settings: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Nested settings without paths of this machine, and which of them are relative to `folder`."""
    found, relative = {**settings, "data": dict(settings["data"]), "model": dict(settings["model"])}, []
    for setting in sorted(PATHS):
        section, _, key = setting.partition(".")
        value = found[section][key]
        if is_path(setting, value):
            found[section][key] = told(setting, value, folder)
            relative += [setting] if seen_from(folder, whole(setting, value)) else []
    return found, relative


def with_paths(settings: Mapping[str, Any], relative: list[str], folder: Path) -> dict[str, Any]:
    """The settings of `without_paths`, read in `folder`."""
    found = {**settings, "data": dict(settings["data"]), "model": dict(settings["model"])}
    for setting in relative:
        section, _, key = setting.partition(".")
        found[section][key] = str((folder.resolve() / found[section][key]).resolve())
    return found


def tell_base(folder: Path, base: str) -> None:
    """Put `base` where libraries wrote the path of a model into the JSON files of `folder`; a tokenizer has none."""

    def is_place(key: str, value: Any) -> bool:
        return key in KEYS and isinstance(value, str) and Path(value).is_absolute()

    def of_base(found: dict[str, Any]) -> dict[str, Any]:
        return {key: base if is_place(key, value) else value for key, value in found.items()}

    def without(found: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in found.items() if not is_place(key, value)}

    for file in folder.glob("*config.json"):
        text = file.read_text(encoding="utf-8")
        hook = without if file.name == "tokenizer_config.json" else of_base
        before, after = json.loads(text), json.loads(text, object_hook=hook)
        if after != before:
            file.write_text(json.dumps(after, indent=2) + "\n", encoding="utf-8")
