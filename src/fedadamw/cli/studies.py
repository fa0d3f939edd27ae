"""`fedadamw compare`, `tune` and `ablate`: many runs, their table, curves and page in a folder."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedadamw.cli.app import DEFAULT_RECIPE, Quiet, Recipe, Settings, app, parse_names, say, short_name
from fedadamw.cli.complete import complete_algorithms
from fedadamw.cli.report import Export
from fedadamw.runner.signals import Terminated

if TYPE_CHECKING:
    from fedadamw.report.study_files import Results

Algorithms = Annotated[
    str,
    typer.Option(
        "-a",
        "--algorithms",
        metavar="NAME,NAME",
        help="Algorithms, as `list` shows them.",
        autocompletion=complete_algorithms,
    ),
]
Seeds = Annotated[int, typer.Option(min=1, help="Runs of each variant, with seeds 0, 1, ...")]
Target = Annotated[
    float | None,
    typer.Option(min=-1.0, max=1.0, help="Score to count rounds and bytes to; may be negative for a correlation."),
]
By = Annotated[
    str | None,
    typer.Option(
        metavar="SCORE",
        help="Score to tune by: test, clients_mean or clients_worst_decile, the mean of all clients' scores or of the "
        "worst tenth; by default test, or clients_mean with personal.parameters.",
    ),
]
Variants = Annotated[
    list[str] | None,
    typer.Option("--variant", metavar="NAME:SETTINGS", help="Settings that belong together; may be repeated."),
]
Jobs = Annotated[
    int | None,
    typer.Option(min=1, help="Runs at a time; by default one per core, or one on a GPU.", show_default=False),
]


@app.command("compare", short_help="Run algorithms x seeds x settings.")
def compare_command(
    recipe: Recipe = None,
    algorithms: Algorithms = "fedadamw,local-adamw",
    seeds: Seeds = 3,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Folder; runs/compare-<recipe> by default.")] = None,
    tuned: Annotated[bool, typer.Option("--tune", help="Tune each algorithm first, see `tune`.")] = False,  # noqa: FBT002
    by: By = None,
    target: Target = None,
    variants: Variants = None,
    jobs: Jobs = None,
    export: Export = None,
    quiet: Quiet = False,  # noqa: FBT002
) -> None:
    """Run algorithms x seeds x settings side by side, and leave a table, curves and a page in a folder.

    A list of values makes a variant of each, and --variant makes one of several settings. An algorithm's own settings
    come from the recipe's `algorithms`. After a stop the same command resumes: finished runs are not run
    again.

    \b
    fedadamw compare digits -a fedadamw,local-adamw,fedavg --seeds 3
    fedadamw compare digits -a fedadamw -s algorithm.alpha=[0,0.5] -s partition.concentration=[0.1,0.6]
    fedadamw compare digits --seeds 5 --export csv,svg,pdf,tex
    fedadamw compare digits -a fedadamw -s devices.speed.kind=log-normal --variant 'waiting:' \\
      --variant 'buffered: training.aggregation=buffered training.rounds=200'
    """
    from fedadamw.report.export import parse_exports
    from fedadamw.settings.load import parse_override
    from fedadamw.study.compare import compare
    from fedadamw.study.plan import parse_variants
    from fedadamw.study.tune import tune_for_comparison
    from fedadamw.validation import check

    check(tuned or by is None, "--by: is for --tune")
    check(not (tuned and variants), "--variant: --tune tunes algorithms, so give each variant its own training.lr")
    kinds = parse_exports(export) if export is not None else []
    recipe = recipe or DEFAULT_RECIPE
    place, overrides = out or Path("runs") / f"compare-{short_name(recipe)}", [*map(parse_override, settings or ())]
    names, named = parse_names(algorithms), parse_variants(variants or ())
    with _exit_if_stopped():
        failed: dict[str, str] = {}
        if tuned:
            path, failed = tune_for_comparison(recipe, names, seeds, overrides, place, by=by, jobs=jobs, quiet=quiet)
            if path is None:
                _exit_if_missing([], failed)
            recipe, names = str(path), [name for name in names if name not in failed]
        own = (recipe, names, seeds, overrides, place)
        results = compare(*own, exports=kinds, target=target, jobs=jobs, variants=named, quiet=quiet)
    if not quiet:
        _show(results, place, "export/, " if kinds else "")
    _exit_if_missing([results], failed)


def _show(results: "Results", place: Path, exported: str) -> None:
    """Print a comparison's table, and what is in its folder."""
    from fedadamw.cli.tables import print_study

    print_study(results)
    page = f"{exported}report.html, curves.png, " if results["runs"] else ""
    typer.echo(f"{place}: {page}table.md, results.json, runs/")


@app.command("tune", short_help="Find each algorithm's best settings.")
def tune_command(
    recipe: Recipe = None,
    algorithms: Algorithms = "fedadamw",
    only: Annotated[str | None, typer.Option(metavar="NAME,NAME", help="Tune only these settings, such as lr.")] = None,
    by: By = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Folder; runs/tune-<recipe> by default.")] = None,
    jobs: Jobs = None,
    quiet: Quiet = False,  # noqa: FBT002
) -> None:
    """Find each algorithm's best settings on held-out training data, and write a recipe with them.

    One setting after the other: learning rate, weight decay, then the algorithm's own. The first two grids grow while
    the best value is at an edge; trials far behind are stopped early. After a stop the same command resumes.
    The new recipe has the settings tuned by this call; to tune others on top, give it as the recipe.

    \b
    fedadamw tune digits -a fedadamw,fedavg --only lr
    fedadamw run runs/tune-digits/tuned.yaml
    fedadamw tune runs/tune-digits/tuned.yaml --only alpha
    fedadamw tune digits -s partition.held_out=0.2 -s training.client_evaluation=5 --by clients_mean
    """
    from fedadamw.settings.load import parse_override
    from fedadamw.study.tune import tune

    recipe = recipe or DEFAULT_RECIPE
    place = out or Path("runs") / f"tune-{short_name(recipe)}"
    overrides = [parse_override(text) for text in settings or ()]
    names, keys = parse_names(algorithms), parse_names(only) if only else None
    with _exit_if_stopped():
        tuned = tune(recipe, names, overrides, place, only=keys, by=by, jobs=jobs, quiet=quiet)
    if tuned.recipe is not None and not quiet:
        typer.echo((place / "table.md").read_text())
        typer.echo(f"{tuned.recipe}: the tuned recipe; table.md, trials.json, optuna.log and runs/ are beside it")
    _exit_if_missing([], tuned.errors)


@app.command("ablate", short_help="Take FedAdamW apart, part by part.")
def ablate_command(
    recipe: Recipe = None,
    only: Annotated[str | None, typer.Option(metavar="NAME,NAME", help="Only these studies, see above.")] = None,
    seeds: Seeds = 1,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Folder; runs/ablate-<recipe> by default.")] = None,
    jobs: Jobs = None,
    quiet: Quiet = False,  # noqa: FBT002
) -> None:
    """Take FedAdamW apart: a table and a figure for each study.

    parts, sharing, blocks, alpha, align, memory, weight-decay, local-steps, beta2. After a stop the same command
    resumes.

    \b
    fedadamw ablate digits --only sharing,alpha
    fedadamw ablate digits --seeds 3 --out runs/ablations
    """
    from fedadamw.cli.tables import print_study
    from fedadamw.settings.load import parse_override
    from fedadamw.study.ablate import STUDIES, ablate

    recipe = recipe or DEFAULT_RECIPE
    place = out or Path("runs") / f"ablate-{short_name(recipe)}"
    overrides = [parse_override(text) for text in settings or ()]
    names = parse_names(only) if only else None
    with _exit_if_stopped():
        studies = ablate(recipe, seeds, overrides, place, only=names, jobs=jobs, quiet=quiet)
    for name, results in studies.items():
        if not quiet:
            typer.echo(f"\n{STUDIES[name][0]}")
            print_study(results)
    if not quiet:
        typer.echo(f"{place}: table.md, and a folder per study with report.html, curves.png, table.md, results.json")
    _exit_if_missing(studies.values())


def _exit_if_missing(studies: "Iterable[Results]", untuned: Mapping[str, str] | None = None) -> None:
    """Print which runs and tuned settings are missing, and why; exit with code 1 if any is."""
    missing = [run for results in studies for run in results["missing"]]
    for error in (untuned or {}).values():
        say(f"error: {error}")
    for run in missing:
        say(f"error: {run['variant']}, seed {run['seed']}: {run['error']}")
    if missing or untuned:
        raise typer.Exit(1)


@contextmanager
def _exit_if_stopped() -> Iterator[None]:
    """After Ctrl-C or SIGTERM, say how to resume and exit."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        say("stopped; the same command resumes it")
        raise typer.Exit(143 if isinstance(stopped, Terminated) else 130) from None
