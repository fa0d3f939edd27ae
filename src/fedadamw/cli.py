"""The command line: run, compare, tune, ablate, list, blocks, partition."""

import signal
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedadamw.experiment import Experiment
    from fedadamw.run_folder import RunFolder
    from fedadamw.study.results import Results

app = typer.Typer(
    help="Federated learning of large models with adaptive optimizers.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
DEFAULT = "digits"
Settings = Annotated[
    list[str] | None, typer.Option("-s", "--set", metavar="KEY.PATH=VALUE", help="Change one setting; repeatable.")
]
Recipe = Annotated[
    str | None, typer.Argument(help="A recipe's name (see `list`) or a YAML file.", show_default="digits")
]


class Terminated(KeyboardInterrupt):
    """SIGTERM, handled as Ctrl-C is."""


def main() -> None:
    """The command `fedadamw`: wrong input is one line and exit code 2, a run that failed 1, an interrupted one 130."""
    from fedadamw.engine.simulate import DivergedError
    from fedadamw.validation import InputError

    signal.signal(signal.SIGTERM, _terminate)
    warnings.simplefilter("ignore", FutureWarning)  # between libraries, nothing a user can act on
    warnings.showwarning = lambda message, *_args, **_kwargs: _say(f"warning: {message}")
    try:
        app()
    except InputError as error:
        _say(f"error: {error}")
        sys.exit(2)
    except (DivergedError, OSError) as error:
        _say(f"error: {error}")
        sys.exit(1)


def _version(wanted: bool) -> None:  # noqa: FBT001  (typer calls it with the flag)
    if wanted:
        from importlib.metadata import version

        typer.echo(f"fedadamw {version('fedadamw')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,  # noqa: FBT002
) -> None:
    """Federated learning of large models with adaptive optimizers."""


@app.command("run")
def run_command(
    recipe: Recipe = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/<recipe>-<time> by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,  # noqa: FBT002
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,  # noqa: FBT002
) -> None:
    """Train a federated model and leave its curves, page, metrics and checkpoint in a folder.

    \b
    fedadamw run
    fedadamw run digits -s algorithm.alpha=0 -s training.lr=1e-3
    fedadamw run cifar10-small -s data.source=../data/cifar10 --out runs/cifar
    fedadamw run --resume --out runs/cifar
    """
    from fedadamw.progress import Progress
    from fedadamw.run import Interrupted, execute
    from fedadamw.tables import print_run

    try:
        folder, experiment = _place(recipe, settings or [], out, resume=resume)
        with Progress(experiment.training, quiet=quiet) as progress:
            execute(experiment, folder, resume=resume, on_start=progress.start, on_round=progress.round)
    except Interrupted as stopped:
        _say(f"stopped; go on with: fedadamw run --resume --out {folder.path}")
        raise typer.Exit(143 if isinstance(stopped.__cause__, Terminated) else 130) from None
    except KeyboardInterrupt:  # while loading or reporting: all that was done is on disk
        _say("stopped; the same command with --resume --out goes on, if the run had begun")
        raise typer.Exit(130) from None
    if not quiet:
        print_run(folder.records())
        typer.echo(f"{folder.path}: report.html, curves.png, metrics.jsonl, config.yaml, checkpoint/")


@app.command("compare")
def compare_command(
    recipe: Recipe = None,
    algorithms: Annotated[
        str, typer.Option("-a", "--algorithms", metavar="NAME,NAME", help="Of those that `list` shows.")
    ] = "fedadamw,local-adamw",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each, with seeds 0, 1, ...")] = 3,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Folder; runs/compare-<recipe> by default.")] = None,
    tuned: Annotated[bool, typer.Option("--tune", help="Tune each algorithm first, see `tune`.")] = False,  # noqa: FBT002
    target: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Accuracy to count rounds and bytes to.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,  # noqa: FBT002
) -> None:
    """Run algorithms x seeds x settings side by side, and leave a table, curves and a page in a folder.

    A list of values makes a variant of each. Each algorithm has its own settings where the recipe names them.
    The same command goes on after a stop: finished runs are not run again.

    \b
    fedadamw compare digits -a fedadamw,local-adamw,fedavg --seeds 3
    fedadamw compare digits -a fedadamw -s algorithm.alpha=[0,0.5] -s partition.concentration=[0.1,0.6]
    """
    from fedadamw.experiment import parsed
    from fedadamw.study.compare import compare
    from fedadamw.study.results import headings, rows
    from fedadamw.study.tune import tune
    from fedadamw.tables import print_grid

    place = out or Path("runs") / f"compare-{_short(recipe or DEFAULT)}"
    given = [parsed(text) for text in settings or ()]
    with _stoppable():
        if tuned:
            fixed = [(path, value) for path, value in given if not isinstance(value, list)]
            recipe = str(tune(recipe or DEFAULT, _names(algorithms), fixed, place / "tune", quiet=quiet))
        results = compare(recipe or DEFAULT, _names(algorithms), seeds, given, place, target=target, quiet=quiet)
    if not quiet:
        print_grid(headings(results), rows(results))
        typer.echo(f"{place}: report.html, curves.png, table.md, results.json, runs/")
    _fail_if_missing([results])


@app.command("tune")
def tune_command(
    recipe: Recipe = None,
    algorithms: Annotated[
        str, typer.Option("-a", "--algorithms", metavar="NAME,NAME", help="Of those that `list` shows.")
    ] = "fedadamw",
    only: Annotated[str | None, typer.Option(metavar="NAME,NAME", help="Tune these settings only, as lr.")] = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Folder; runs/tune-<recipe> by default.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,  # noqa: FBT002
) -> None:
    """Find each algorithm's best settings on held-out training data, and write a recipe with them.

    One setting after the other: learning rate, weight decay, then the algorithm's own. A grid grows while its best is
    at its edge; hopeless trials are stopped early. The same command goes on after a stop.

    \b
    fedadamw tune digits -a fedadamw,fedavg --only lr
    fedadamw run runs/tune-digits/tuned.yaml
    """
    from fedadamw.experiment import parsed
    from fedadamw.study.tune import tune

    place = out or Path("runs") / f"tune-{_short(recipe or DEFAULT)}"
    given = [parsed(text) for text in settings or ()]
    with _stoppable():
        wanted = _names(only) if only else None
        found = tune(recipe or DEFAULT, _names(algorithms), given, place, only=wanted, quiet=quiet)
    if not quiet:
        typer.echo((place / "table.md").read_text())
        typer.echo(f"{found}: run it, or compare with it;  table.md, trials.json, optuna.log, runs/ beside it")


@app.command("ablate")
def ablate_command(
    recipe: Recipe = None,
    only: Annotated[str | None, typer.Option(metavar="NAME,NAME", help="These studies only, see below.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each variant, with seeds 0, 1, ...")] = 1,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Folder; runs/ablate-<recipe> by default.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,  # noqa: FBT002
) -> None:
    """Take FedAdamW apart: a table and a figure a question.

    parts, sharing, blocks, alpha, weight-decay, local-steps, beta2. The same command goes on after a stop.

    \b
    fedadamw ablate digits --only sharing,alpha
    fedadamw ablate digits --seeds 3 --out runs/ablations
    """
    from fedadamw.experiment import parsed
    from fedadamw.study.ablate import STUDIES, ablate
    from fedadamw.study.results import headings, rows
    from fedadamw.tables import print_grid

    place = out or Path("runs") / f"ablate-{_short(recipe or DEFAULT)}"
    given = [parsed(text) for text in settings or ()]
    with _stoppable():
        found = ablate(recipe or DEFAULT, seeds, given, place, only=_names(only) if only else None, quiet=quiet)
    for name, results in found.items():
        if not quiet:
            typer.echo(f"\n{STUDIES[name][0]}")
            print_grid(headings(results), rows(results))
    if not quiet:
        typer.echo(f"{place}: table.md, and a folder a study with report.html, curves.png, table.md, results.json")
    _fail_if_missing(found.values())


@app.command("list")
def list_command() -> None:
    """Show the recipes, algorithms and models that come with the package."""
    from fedadamw.experiment import recipes
    from fedadamw.models.vision import NAMES
    from fedadamw.registry import ALGORITHMS, settings_of

    typer.echo("recipes")
    width = max(map(len, recipes()))
    for name, about in recipes().items():
        typer.echo(f"  {name:<{width}}  {about}")
    typer.echo("algorithms")
    for name in ALGORITHMS:
        given = ", ".join(f"{key}={value}" for key, value in settings_of(name).items())
        typer.echo(f"  {name:<16} {given}")
    typer.echo(f"models\n  {', '.join(NAMES)}, any image classifier of the hub (owner/name) or a folder")


@app.command("blocks")
def blocks_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="vit-tiny, bert, a folder, a hub id, ...")],
    granularity: Annotated[str, typer.Option(help="paper, coarse, tensor or coordinate.")] = "paper",
    lora: Annotated[str | None, typer.Option(metavar="NAME,NAME", help="Put LoRA on these modules.")] = None,
    rank: Annotated[int, typer.Option(min=1, help="Of the LoRA adapters.")] = 16,
) -> None:
    """Show how a model is cut into blocks and what an upload costs; no weights are loaded.

    \b
    fedadamw blocks vit-tiny
    fedadamw blocks roberta --lora query,key,value,dense --rank 16
    fedadamw blocks ./my-model --granularity coarse
    """
    from fedadamw.blocks import Blocks
    from fedadamw.models.hub import skeleton, with_lora
    from fedadamw.tables import print_blocks

    found = skeleton(model)
    if lora is not None:
        found = with_lora(found, rank, lora.split(","))
    print_blocks(model, Blocks.of(found, granularity))


@app.command("partition")
def partition_command(
    recipe: Recipe = None,
    settings: Settings = None,
    out: Annotated[Path, typer.Option(help="The picture, a PNG.")] = Path("partition.png"),
) -> None:
    """Draw which client holds how many samples of which class.

    \b
    fedadamw partition digits
    fedadamw partition digits -s partition.concentration=0.1 --out dir01.png
    """
    from fedadamw.experiment import load
    from fedadamw.prepare import images_of, partition_of
    from fedadamw.report.figures import partition, save_png
    from fedadamw.tables import print_partition

    experiment = load(recipe or DEFAULT, settings or ())
    train, _ = images_of(experiment)
    clients = partition_of(experiment, train)
    counts = clients.counts(train.labels, len(train.classes))
    save_png(partition(counts, train.classes), out)
    print_partition(counts, clients.fingerprint)
    typer.echo(f"picture: {out}")


def _place(
    recipe: str | None, settings: list[str], out: Path | None, *, resume: bool
) -> "tuple[RunFolder, Experiment]":
    """The folder and the experiment to run in it, new or begun; InputError where they do not go together."""
    from fedadamw.experiment import load
    from fedadamw.run_folder import RunFolder
    from fedadamw.validation import check

    name = recipe or DEFAULT
    folder = RunFolder(out or Path("runs") / f"{_short(name)}-{time.strftime('%Y%m%d-%H%M%S')}")
    check(not folder.path.exists() or folder.path.is_dir(), f"{folder.path}: is a file, not a folder for a run")
    if not resume:
        check(not folder.used, f"{folder.path} holds a run already; go on with --resume, or choose another --out")
        return folder, load(name, settings)
    check(out is not None, "--resume needs --out, the folder of the run")
    if folder.started:
        experiment = load(recipe or str(folder.config), settings)
        folder.check_settings(experiment)
        return folder, experiment
    check(recipe is not None and not folder.used, f"{folder.path} holds no run to go on with (no config.yaml)")
    return folder, load(name, settings)


def _names(text: str) -> list[str]:
    """The names in a list with commas."""
    return [name.strip() for name in text.split(",")]


def _fail_if_missing(studies: "Iterable[Results]") -> None:
    """Say which runs have no result, and why, and end with exit code 1 where there are any."""
    missing = [run for results in studies for run in results["missing"]]
    for run in missing:
        _say(f"error: {run['variant']}, seed {run['seed']}: {run['error']}")
    if missing:
        raise typer.Exit(1)


@contextmanager
def _stoppable() -> Iterator[None]:
    """A study that Ctrl-C or SIGTERM ends says that it can go on."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        _say("stopped; the same command goes on where it was")
        raise typer.Exit(143 if isinstance(stopped, Terminated) else 130) from None


def _short(recipe: str) -> str:
    """The last part of a recipe's name or file, without its ending."""
    last = recipe.replace("\\", "/").rsplit("/", 1)[-1]
    return last.removesuffix(".yaml").removesuffix(".yml")


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise Terminated


def _say(text: str) -> None:
    typer.echo(text, err=True)
