"""`fedadamw predict`: what a trained model says about new samples."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fedadamw.cli.app import Settings, app, say
from fedadamw.cli.models import Best
from fedadamw.validation import check

if TYPE_CHECKING:
    from fedadamw.trained.load import Trained
    from fedadamw.trained.predict import OnGroup, Prediction

SHOWN = 20  # predictions on the terminal
SHOWN_CHARACTERS = 60  # of a text


@app.command("predict", short_help="Predict new samples with a run's or an exported model.")
def predict_command(
    where: Annotated[Path, typer.Argument(metavar="RUN_OR_DIR", help="The folder of a run or of a model.")],
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Images, .txt, CSV, JSON lines or Parquet files, or folders of them."),
    ],
    out: Annotated[Path | None, typer.Option(help="Write all to a new .csv or .jsonl file.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many of the likeliest classes to show.")] = 1,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Write all classes' to --out.")] = False,  # noqa: FBT002
    on_bad: Annotated[
        Literal["error", "skip"], typer.Option(help="What to do with a sample that cannot be used.")
    ] = "error",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of a language model's responses.")] = 64,
    best: Best = False,  # noqa: FBT002
    settings: Settings = None,
) -> None:
    """Predict new samples, without labels: the class or number of images and texts, a language model's responses.

    \b
    fedadamw predict runs/digits photo.png
    fedadamw predict runs/sst2 reviews.txt --out predictions.csv --probabilities
    fedadamw predict sst2-adapter reviews.csv -s device=cpu -s training.evaluate_batch=8
    """
    from fedadamw.settings.load import Override, parse_override
    from fedadamw.trained.load import open_trained
    from fedadamw.trained.predict import predict, read_samples, skip_bad
    from fedadamw.trained.prediction_file import check_new_file, write_predictions

    check(not probabilities or out is not None, "--probabilities: needs --out, a file to write them to")
    if out is not None:
        check_new_file(out)
    overrides: list[Override] = [("data.on_bad", "error"), *map(parse_override, settings or ())]
    trained = open_trained(where, overrides, best=best)
    trained = skip_bad(trained) if on_bad == "skip" else trained
    _check_classes(trained, where, "--top" if top > 1 else "--probabilities" if probabilities else "")
    samples = read_samples(trained, files)
    with _progress(sum(map(len, samples)), "" if out is None else f"; {out} was not written") as on_group:
        found = predict(trained, samples, max_new_tokens=max_new_tokens, on_group=on_group)
        if out is not None:
            count = write_predictions(out, found, top, every=probabilities)
        else:
            shown, count = _take(found)
    if out is not None:
        typer.echo(f"{out}: {count:,} predictions")
    else:
        _print(shown, count, top)


def _check_classes(trained: "Trained", where: Path, option: str) -> None:
    """Raise InputError if `option`, '' for none, asks for classes and the model has none."""
    from fedadamw.trained.predict import predicts_classes

    check(not option or predicts_classes(trained), f"{option}: the model of {where} predicts no classes")


@contextmanager
def _progress(total: int, lost: str) -> "Iterator[OnGroup]":
    """Show on a terminal how many samples are done; on Ctrl-C say what is lost, and exit."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    columns = (MofNCompleteColumn(), BarColumn(bar_width=24), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        try:
            yield lambda done: bar.update(task, completed=done)
        except KeyboardInterrupt:
            bar.stop()
            say(f"stopped{lost}")
            raise typer.Exit(130) from None


def _take(found: "Iterator[Prediction]") -> "tuple[list[Prediction], int]":
    """Return the first predictions, and how many there are."""
    shown, count = [], 0
    for count, prediction in enumerate(found, 1):
        if count <= SHOWN:
            shown.append(prediction)
    return shown, count


def _print(predictions: "list[Prediction]", count: int, top: int) -> None:
    """Print the first of `count` predictions as a table."""
    from fedadamw.cli.tables import print_grid
    from fedadamw.trained.prediction_file import prediction_row

    rows = [_shorten_row(prediction_row(prediction, top, every=False)) for prediction in predictions]
    names = list(dict.fromkeys(name for row in rows for name in row))
    print_grid(names, [[row.get(name, "") for name in names] for row in rows])
    if count > len(predictions):
        typer.echo(f"and {count - len(predictions):,} more: write all of them with --out predictions.csv")


def _shorten_row(row: dict[str, object]) -> dict[str, str]:
    """Return the cells as they are shown: file and row together, texts cut, probabilities in percent."""
    place = row.pop("file") if "row" not in row else f"{row.pop('file')}, {row.pop('row')}"
    return {"sample": str(place), **{name: _shorten(name, value) for name, value in row.items()}}


def _shorten(name: str, value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2%}" if name.startswith("probability") else f"{value:.4g}"
    text = " ".join(str(value).split())
    return text if len(text) <= SHOWN_CHARACTERS or name == "response" else f"{text[:SHOWN_CHARACTERS]}..."
