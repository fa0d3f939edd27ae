"""Which settings name folders by their plain names: a run keeps to what these were when it began.

`texts` is the folder of that name where there is one, and a hub id elsewhere. In another working directory, or on a
federation's nodes, the same word must not bring a stranger's data or model of the hub.
"""

import os
from collections.abc import Collection
from pathlib import Path

from fedadamw.data.sources import is_local as is_local_data
from fedadamw.experiment import Data, Experiment
from fedadamw.models import vision
from fedadamw.models.loading import PACKAGE
from fedadamw.models.loading import is_local as is_local_model
from fedadamw.validation import check

SIGNS = (".", "/", "~", PACKAGE)  # with one of these a name is never a hub id
MODEL, DATA = ("model.name", "model.tokenizer"), ("data.source", "data.test_source")


def plain_folders(experiment: Experiment) -> list[str]:
    """The settings whose plain names are those of folders or files here."""
    named = _named(experiment)
    there = {setting: is_local_model(named[setting]) for setting in MODEL if setting in named}
    there |= {setting: is_local_data(named[setting]) for setting in DATA if setting in named}
    return [setting for setting, local in there.items() if local]


def _named(experiment: Experiment) -> dict[str, str]:
    """The settings that may name a folder or be a hub id, with their values."""
    model, data = experiment.model, experiment.data
    given = {
        "model.name": None if model.name in vision.NAMES else model.name,
        "model.tokenizer": model.tokenizer,
        "data.source": None if data.source == Data().source else data.source,
        "data.test_source": data.test_source,
    }
    return {setting: value for setting, value in given.items() if value and not value.startswith(SIGNS)}


def check_origins(experiment: Experiment, began: Collection[str] | None, settings: Collection[str]) -> None:
    """Raise InputError where one of `settings` is now a folder and was none when a run began, or the other way.

    began: the `plain_folders` of then; None of a run of an earlier version, which did not note them.
    """
    if began is None:
        return
    now, named = plain_folders(experiment), _named(experiment)
    for setting in settings:
        value, here = named.get(setting), Path(os.curdir).resolve()
        lost, new = setting in began and setting not in now, setting in now and setting not in began
        check(
            not lost,
            f"{setting}={value!r} was a folder or a file when the run began, and {here} has none: go on from the "
            "working directory that it began in",
        )
        check(
            not new,
            f"{setting}={value!r} was a hub id when the run began, and {here} has a folder or a file of that name: "
            "go on from another working directory",
        )


def signed(experiment: Experiment) -> Experiment:
    """The same, with ./ before folders' plain names: nobody takes these for hub ids."""
    parts: dict[str, dict[str, str]] = {"model": {}, "data": {}}
    for setting in plain_folders(experiment):
        part, _, key = setting.partition(".")
        parts[part][key] = f"./{_named(experiment)[setting]}"
    model = experiment.model.model_copy(update=parts["model"])
    return experiment.model_copy(update={"model": model, "data": experiment.data.model_copy(update=parts["data"])})
