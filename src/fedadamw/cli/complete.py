"""The shell's completion of recipes, algorithms, models and settings; torch is not imported."""

from collections.abc import Iterable

from fedadamw.algorithms.plugins import find_plugins
from fedadamw.cli.choices import list_algorithms, list_models
from fedadamw.settings.recipes import list_recipes


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


def complete_setting(incomplete: str) -> list[str]:
    """Settings, every algorithm's included, each with the = before its value."""
    from fedadamw.settings.experiment import list_settings  # imports pydantic, a third of a second

    of_algorithms = [f"algorithm.{key}" for keys in list_algorithms().values() for key in ("name", *keys)]
    return [f"{path}=" for path in _select(incomplete, dict.fromkeys([*list_settings(), *of_algorithms]))]


def _select(incomplete: str, words: Iterable[str]) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]
