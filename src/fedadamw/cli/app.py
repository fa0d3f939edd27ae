"""What the commands share: the application, common options, messages."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
import typer.core

from fedadamw.cli.complete import complete_recipe, complete_setting
from fedadamw.io.escaping import escape_text

typer.core.HAS_RICH = False  # help is plain; for rich, typer would put a backslash before `[default: ...]`
TYPER_SUGGESTS = find_spec("typer._click") is not None  # newer typers have no click, which itself suggests
app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    suggest_commands=TYPER_SUGGESTS,
)
DEFAULT_RECIPE = "digits"
MAX_MESSAGE_CHARACTERS = 4000
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "-s",
        "--set",
        metavar="KEY.PATH=VALUE",
        help="Change one setting; repeatable.",
        autocompletion=complete_setting,
    ),
]
Recipe = Annotated[
    str | None,
    typer.Argument(
        help="A recipe's name (see `list`) or a YAML file.",
        show_default="digits",
        autocompletion=complete_recipe,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.")]


def _version(given: bool) -> None:  # noqa: FBT001  (typer calls it with the flag)
    if given:
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


def parse_names(text: str) -> list[str]:
    """Return the names in a list with commas."""
    return [name.strip() for name in text.split(",")]


def short_name(recipe: str) -> str:
    """Return the last part of a recipe's name or file, without its ending; for a tuned.yaml its folder's name."""
    path = Path(recipe)
    if path.name == "tuned.yaml" and path.parent.name:
        return path.parent.name
    return path.stem if path.suffix in (".yaml", ".yml") else path.name


def describe_full_memory(error: Exception) -> str:
    """Return the message for an out-of-memory error."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return (
        f"memory is full ({reason}); training.gradient_checkpointing=true, or a smaller training.micro_batch or "
        "training.evaluate_batch, needs less"
    )


def say(text: str) -> None:
    """Print a message on standard error; a very long one is cut."""
    shown = text if len(text) <= MAX_MESSAGE_CHARACTERS else f"{text[:MAX_MESSAGE_CHARACTERS]}..."
    typer.echo("\n".join(map(escape_text, shown.split("\n"))), err=True)
