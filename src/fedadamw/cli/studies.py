"""`fedadamw compare`, `tune` and `ablate`: many runs, their table, curves and page in a folder."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedadamw.cli import complete
from fedadamw.cli.app import DEFAULT, Quiet, Recipe, Settings, app, names_in, say, short
from fedadamw.runner.signals import Terminated

if TYPE_CHECKING:
    from fedadamw.report.study_charts import Results

Algorithms = Annotated[
    str,
    typer.Option(
        "-a",
        "--algorithms",
        metavar="NAME,NAME",
        help="Of those that `list` shows.",
        autocompletion=complete.algorithms,
    ),
]
Seeds = Annotated[int, typer.Option(min=1, help="Runs of each variant, with seeds 0, 1, ...")]
Target = Annotated[
    float | None,
    typer.Option(min=-1.0, max=1.0, help="Score to count rounds and bytes to; below 0 where it is a correlation."),
]
Jobs = Annotated[
    int | None,
    typer.Option(min=1, help="Runs at a time: one a core, with a thread each, or one on a GPU.", show_default=False),
]


@app.command("compare", short_help="Run algorithms x seeds x settings.")
def compare_command(
    recipe: Recipe = None,
    algorithms: Algorithms = "fedadamw,local-adamw",
    seeds: Seeds = 3,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Folder; runs/compare-<recipe> by default.")] = None,
    tuned: Annotated[bool, typer.Option("--tune", help="Tune each algorithm first, see `tune`.")] = False,  # noqa: FBT002
    target: Target = None,
    jobs: Jobs = None,
    quiet: Quiet = False,  # noqa: FBT002
) -> None:
    """Run algorithms x seeds x settings side by side, and leave a table, curves and a page in a folder.

    A list of values makes a variant of each. Each algorithm has its own settings where the recipe names them.
    The same command goes on after a stop: finished runs are not run again.

    \b
    fedadamw compare digits -a fedadamw,local-adamw,fedavg --seeds 3
    fedadamw compare digits -a fedadamw -s algorithm.alpha=[0,0.5] -s partition.concentration=[0.1,0.6]
    """
    from fedadamw.cli.tables import print_grid
    from fedadamw.settings.load import parse_override
    from fedadamw.study.compare import compare
    from fedadamw.study.results import headings, rows
    from fedadamw.study.tune import tune_for_comparison

    place = out or Path("runs") / f"compare-{short(recipe or DEFAULT)}"
    given = [parse_override(text) for text in settings or ()]
    names = names_in(algorithms)
    with _stoppable():
        failed: dict[str, str] = {}
        if tuned:
            path, failed = tune_for_comparison(recipe or DEFAULT, names, seeds, given, place, jobs=jobs, quiet=quiet)
            if path is None:
                _fail_if_missing([], failed)
            recipe, names = str(path), [name for name in names if name not in failed]
        results = compare(recipe or DEFAULT, names, seeds, given, place, target=target, jobs=jobs, quiet=quiet)
    if not quiet:
        print_grid(headings(results), rows(results))
        page = "report.html, curves.png, " if results["runs"] else ""
        typer.echo(f"{place}: {page}table.md, results.json, runs/")
    _fail_if_missing([results], failed)


@app.command("tune", short_help="Find each algorithm's best settings.")
def tune_command(
    recipe: Recipe = None,
    algorithms: Algorithms = "fedadamw",
    only: Annotated[str | None, typer.Option(metavar="NAME,NAME", help="Tune these settings only, as lr.")] = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Folder; runs/tune-<recipe> by default.")] = None,
    jobs: Jobs = None,
    quiet: Quiet = False,  # noqa: FBT002
) -> None:
    """Find each algorithm's best settings on held-out training data, and write a recipe with them.

    One setting after the other: learning rate, weight decay, then the algorithm's own. The grids of the first two
    grow while their best is at an edge; hopeless trials are stopped early. The same command goes on after a stop.
    What it writes holds what this call tuned: to tune more on top of it, give it as the recipe.

    \b
    fedadamw tune digits -a fedadamw,fedavg --only lr
    fedadamw run runs/tune-digits/tuned.yaml
    fedadamw tune runs/tune-digits/tuned.yaml --only alpha
    """
    from fedadamw.settings.load import parse_override
    from fedadamw.study.tune import tune

    place = out or Path("runs") / f"tune-{short(recipe or DEFAULT)}"
    given = [parse_override(text) for text in settings or ()]
    with _stoppable():
        wanted = names_in(only) if only else None
        found = tune(recipe or DEFAULT, names_in(algorithms), given, place, only=wanted, jobs=jobs, quiet=quiet)
    if found.recipe is not None and not quiet:
        typer.echo((place / "table.md").read_text())
        typer.echo(f"{found.recipe}: run it, or compare with it;  table.md, trials.json, optuna.log, runs/ beside it")
    _fail_if_missing([], found.errors)


@app.command("ablate", short_help="Take FedAdamW apart, part by part.")
def ablate_command(
    recipe: Recipe = None,
    only: Annotated[str | None, typer.Option(metavar="NAME,NAME", help="These studies only, see above.")] = None,
    seeds: Seeds = 1,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Folder; runs/ablate-<recipe> by default.")] = None,
    jobs: Jobs = None,
    quiet: Quiet = False,  # noqa: FBT002
) -> None:
    """Take FedAdamW apart: a table and a figure a question.

    parts, sharing, blocks, alpha, weight-decay, local-steps, beta2. The same command goes on after a stop.

    \b
    fedadamw ablate digits --only sharing,alpha
    fedadamw ablate digits --seeds 3 --out runs/ablations
    """
    from fedadamw.cli.tables import print_grid
    from fedadamw.settings.load import parse_override
    from fedadamw.study.ablate import STUDIES, ablate
    from fedadamw.study.results import headings, rows

    place = out or Path("runs") / f"ablate-{short(recipe or DEFAULT)}"
    given = [parse_override(text) for text in settings or ()]
    with _stoppable():
        wanted = names_in(only) if only else None
        found = ablate(recipe or DEFAULT, seeds, given, place, only=wanted, jobs=jobs, quiet=quiet)
    for name, results in found.items():
        if not quiet:
            typer.echo(f"\n{STUDIES[name][0]}")
            print_grid(headings(results), rows(results))
    if not quiet:
        typer.echo(f"{place}: table.md, and a folder a study with report.html, curves.png, table.md, results.json")
    _fail_if_missing(found.values())


def _fail_if_missing(studies: "Iterable[Results]", untuned: Mapping[str, str] | None = None) -> None:
    """Say which runs and tuned settings there are not, and why, and end with exit code 1 where there are any."""
    missing = [run for results in studies for run in results["missing"]]
    for error in (untuned or {}).values():
        say(f"error: {error}")
    for run in missing:
        say(f"error: {run['variant']}, seed {run['seed']}: {run['error']}")
    if missing or untuned:
        raise typer.Exit(1)


@contextmanager
def _stoppable() -> Iterator[None]:
    """A study that Ctrl-C or SIGTERM ends says that it can go on."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        say("stopped; the same command goes on where it was")
        raise typer.Exit(143 if isinstance(stopped, Terminated) else 130) from None
