"""What the shell's completion offers for recipes, algorithms, models and settings; nothing heavy is imported."""

from collections.abc import Iterable

from fedadamw.cli import choices
from fedadamw.settings import recipes as recipe_files


def recipes(incomplete: str) -> list[str]:
    """Recipes; where none fits, the shell offers files."""
    return _beginning(incomplete, recipe_files.list_recipes())


def algorithms(incomplete: str) -> list[str]:
    """Algorithms, also behind those that are named already, with commas between."""
    before, comma, last = incomplete.rpartition(",")
    named = before.split(",")
    return [f"{before}{comma}{name}" for name in _beginning(last, choices.algorithms()) if name not in named]


def models(incomplete: str) -> list[str]:
    """Image classifiers that come with the package."""
    return _beginning(incomplete, choices.models())


def settings(incomplete: str) -> list[str]:
    """Settings, every algorithm's among them, up to the sign that their value follows."""
    own = [f"algorithm.{key}" for found in choices.algorithms().values() for key in ("name", *found)]
    return [f"{path}=" for path in _beginning(incomplete, dict.fromkeys([*choices.settings(), *own]))]


def _beginning(incomplete: str, words: Iterable[str]) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]
