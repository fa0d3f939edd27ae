"""The shell's completion of recipes, algorithms, models, settings and their values; torch is not imported."""

import io
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from itertools import pairwise
from typing import TYPE_CHECKING

from fedadamw.algorithms.plugins import find_plugins
from fedadamw.cli.choices import list_algorithms, list_models
from fedadamw.settings.recipes import list_recipes

if TYPE_CHECKING:
    from fedadamw.settings.describe import Setting


def complete_recipe(incomplete: str) -> list[str]:
    """Recipes; if none fits, the shell offers files."""
    return _select(incomplete, list_recipes())


def complete_algorithms(incomplete: str) -> list[str]:
    """Algorithms for the last name of a list with commas, without those named before."""
    before, comma, last = incomplete.rpartition(",")
    named = before.split(",")
    known = dict.fromkeys([*list_algorithms(), *find_plugins()])
    return [f"{before}{comma}{name}" for name in _select(last, known) if name not in named]


def complete_model(incomplete: str) -> list[str]:
    """Built-in image classifiers."""
    return _select(incomplete, list_models())


def complete_section(incomplete: str) -> list[str]:
    """Names of sections and algorithms, and the paths of settings."""
    from fedadamw.settings.describe import describe_settings, list_names_of_settings  # which import pydantic

    return _select(incomplete, list_names_of_settings(describe_settings()))


def complete_setting(incomplete: str) -> list[str]:
    """Settings, every algorithm's included, each with the = before its value; after the =, values.

    If one setting is left, its values come at once: a shell would add a space to a single word that ends in =.
    """
    from fedadamw.settings.describe import describe_settings

    settings: dict[str, Setting] = {}
    for setting in (setting for group in describe_settings() for setting in group.settings):
        settings.setdefault(setting.path, setting)
    path, equals, _ = incomplete.partition("=")
    found = [path] if equals and path in settings else _select(incomplete, settings)
    words = [f"{one}=" for one in found if not equals]
    if len(found) == 1:
        words += [f"{found[0]}={value}" for value in _list_values(settings[found[0]])]
    return _select(incomplete, words)


def _list_values(setting: "Setting") -> list[str]:
    """All values of a setting with choices, examples of one with open ones; else its default."""
    if setting.path == "model.name":
        return list_models()
    return list(setting.choices or [setting.default.replace(", ", ",")])  # a space would end the word


def _select(incomplete: str, words: Iterable[str]) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]


@contextmanager
def words_of_bash() -> Iterator[None]:
    """Undo that bash splits words at `=`: the command sees `key=value`, and bash gets what follows the `=`.

    COMP_WORDS has a word a line; COMP_CWORD is the number of the one to complete.
    """
    count = int(os.environ["COMP_CWORD"]) + 1
    words = [*os.environ["COMP_WORDS"].split("\n"), ""][:count]
    joined = words[:1]
    for before, word in pairwise(words):
        if "=" in (before, word):
            joined[-1] += word
        else:
            joined.append(word)
    before, equals, _ = joined[-1].rpartition("=")
    os.environ.update(COMP_WORDS="\n".join(joined), COMP_CWORD=str(len(joined) - 1))
    output = io.StringIO()
    try:
        with redirect_stdout(output):
            yield
    finally:
        for line in output.getvalue().splitlines():
            sys.stdout.write(f"{line.removeprefix(before + equals)}\n")
