"""`fedadamw settings` and `recipe`: what can be set, and a recipe to start from."""

import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from fedadamw.cli.app import app
from fedadamw.cli.complete import complete_recipe, complete_section

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fedadamw.settings.describe import Group, Setting

WIDTH = 100  # characters of a line of text, if the terminal is wider


@app.command("settings", short_help="Show what can be set: default, range, meaning.")
def settings_command(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="SECTION_OR_PATH",
            help="training, algorithm.fedadamw, training.lr, ...; all if left out.",
            show_default=False,
            autocompletion=complete_section,
        ),
    ] = None,
) -> None:
    """Show every setting with its type and default; of a section or one setting also range and meaning.

    \b
    fedadamw settings
    fedadamw settings training
    fedadamw settings training.lr
    fedadamw settings algorithm.fedadamw
    """
    from fedadamw.settings.describe import describe_settings, find_settings

    if name is None:
        _print_overview(describe_settings())
        return
    groups = find_settings(name)
    for number, group in enumerate(groups):
        typer.echo(("\n" if number else "") + _fill(f"{group.name}: {group.about}"))
        for setting in group.settings:
            _print_setting(setting)
    if name == "algorithm":
        typer.echo("\nSettings of an algorithm: fedadamw settings algorithm.NAME")


@app.command("recipe", short_help="Print a recipe, to start your own from.")
def recipe_command(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A recipe's name; lists all if left out.", show_default=False, autocompletion=complete_recipe
        ),
    ] = None,
) -> None:
    """Print a recipe with its comments: a file to change and run. Without a name, list the recipes.

    \b
    fedadamw recipe
    fedadamw recipe digits > my.yaml
    fedadamw run my.yaml
    """
    from fedadamw.settings.recipes import list_recipes, read_recipe_text

    if name is not None:
        typer.echo(read_recipe_text(name), nl=False)
        return
    recipes = list_recipes()
    width = max(map(len, recipes))
    for recipe, about in recipes.items():
        typer.echo(f"{recipe:<{width}}  {about}")


def _print_overview(groups: "Iterable[Group]") -> None:
    """Print a line for each setting: path, type, default, first sentence; cut at the edge of a terminal."""
    edge = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for group in groups:
        typer.echo(f"{group.name}: {group.about}"[:edge])
        rows = [(setting.path, setting.kind, setting.default) for setting in group.settings]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for setting, row in zip(group.settings, rows, strict=True):
            cells = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
            typer.echo(f"  {cells}  {setting.about.partition('. ')[0].removesuffix('.')}."[:edge])
    typer.echo("More on one: fedadamw settings training.lr. Set it: -s training.lr=0.001, or in a recipe.")


def _print_setting(setting: "Setting") -> None:
    """Print one setting: path; type, default and range; what it does."""
    parts = [setting.kind, f"default {setting.default}", *([setting.range] if setting.range else [])]
    typer.echo(f"\n{setting.path}\n{_fill(', '.join(parts), '    ')}\n{_fill(setting.about, '    ')}")


def _fill(text: str, indent: str = "") -> str:
    columns = min(shutil.get_terminal_size().columns, WIDTH)
    return textwrap.fill(text, columns, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
