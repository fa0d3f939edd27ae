"""What every command shares: the application, its common options, and how it speaks."""

from pathlib import Path
from typing import Annotated

import typer
import typer.core

from fedadamw.cli import complete
from fedadamw.io.escaping import escape_text

typer.core.HAS_RICH = False  # help is plain; for rich, typer would put a backslash before `[default: ...]`
app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    suggest_commands=False,  # click itself does
)
DEFAULT = "digits"
LONGEST_LINE = 4000  # characters
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "-s",
        "--set",
        metavar="KEY.PATH=VALUE",
        help="Change one setting; repeatable.",
        autocompletion=complete.settings,
    ),
]
Recipe = Annotated[
    str | None,
    typer.Argument(
        help="A recipe's name (see `list`) or a YAML file.", show_default="digits", autocompletion=complete.recipes
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]


def _version(wanted: bool) -> None:  # noqa: FBT001  (typer calls it with the flag)
    if wanted:
        from importlib.metadata import version

        typer.echo(f"fedadamw {version('fedadamw')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,  # noqa: FBT002
) -> None:
    """Federated learning of large models with adaptive optimizers.

    \b
    fedadamw list
    fedadamw run digits -s training.rounds=20 --out runs/digits
    fedadamw run --help
    """


def names_in(text: str) -> list[str]:
    """The names in a list with commas."""
    return [name.strip() for name in text.split(",")]


def short(recipe: str) -> str:
    """The last part of a recipe's name or file, without its ending; for a tuned.yaml its folder's."""
    path = Path(recipe)
    if path.name == "tuned.yaml" and path.parent.name:
        return path.parent.name
    return path.stem if path.suffix in (".yaml", ".yml") else path.name


def memory_full(error: Exception) -> str:
    """What is said of an error of full memory."""
    why = (str(error) or type(error).__name__).splitlines()[0]
    return f"memory is full ({why}); training.micro_batch, and training.evaluate_batch, take less of it"


def say(text: str) -> None:
    """One line on standard error; a library's may be several. A very long one is cut."""
    shown = text if len(text) <= LONGEST_LINE else f"{text[:LONGEST_LINE]}..."
    typer.echo("\n".join(map(escape_text, shown.split("\n"))), err=True)
