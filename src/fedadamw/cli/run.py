"""`fedadamw run`: one run in a folder, new or resumed."""

import os
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedadamw.cli.app import DEFAULT, Quiet, Recipe, Settings, app, memory_full, say, short
from fedadamw.runner.signals import Terminated
from fedadamw.validation import check

if TYPE_CHECKING:
    from fedadamw.runner.folder import RunFolder
    from fedadamw.settings.experiment import Experiment


@app.command("run", short_help="Train a federated model.")
def run_command(
    recipe: Recipe = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/<recipe>-<time> by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,  # noqa: FBT002
    ranks: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that share a round.", show_default="one a core, where it pays"),
    ] = None,
    quiet: Quiet = False,  # noqa: FBT002
) -> None:
    """Train a federated model and leave its curves, page, metrics and checkpoint in a folder.

    \b
    fedadamw run
    fedadamw run digits -s algorithm.alpha=0 -s training.lr=1e-3
    fedadamw run cifar10-small -s data.source=../data/cifar10 --out runs/cifar
    fedadamw run --resume --out runs/cifar
    fedadamw run digits --ranks 2
    torchrun --nproc-per-node 8 -m fedadamw run paper/cifar100-vit-dir0.1 --out runs/vit
    """
    from fedadamw.cli.tables import print_run
    from fedadamw.runner.execute import follow
    from fedadamw.runner.launch import launch, ranks_that_pay

    if int(os.environ.get("RANK", "0")) > 0:
        known = out is not None and resume and (out / "config.yaml").is_file()
        follow(_loaded(recipe or (str(out / "config.yaml") if out and known else DEFAULT), settings or []))
        return
    folder, experiment = _place(recipe, settings or [], out, resume=resume)
    ranks = ranks or ranks_that_pay(experiment)
    sampled = experiment.training.clients_per_round
    check(ranks <= sampled, f"--ranks {ranks}: more than the {sampled} clients a round; use at most as many")
    if ranks > 1 and "RANK" not in os.environ:
        code = launch(ranks, one_rank, experiment.to_yaml(), str(folder.path), resume, quiet)
        if code:
            raise typer.Exit(code)
    else:
        lead(experiment, folder, resume=resume, quiet=quiet)
    if not quiet:
        print_run(folder.records())
        typer.echo(folder.contents)


def lead(experiment: "Experiment", folder: "RunFolder", *, resume: bool, quiet: bool) -> None:
    """The run, shown as it goes; how to go on where it is stopped."""
    from fedadamw.engine.device_memory import is_out_of_memory
    from fedadamw.io.disk import DiskFullError
    from fedadamw.runner.execute import Interrupted, execute
    from fedadamw.runner.progress import Progress

    again = f"go on with: fedadamw run --resume --out {folder.path}"
    try:
        with Progress(experiment.training, quiet=quiet) as progress:
            execute(experiment, folder, resume=resume, on_start=progress.start, on_round=progress.round)
    except Interrupted as stopped:
        say(f"stopped; {again}")
        raise typer.Exit(143 if isinstance(stopped.__cause__, Terminated) else 130) from None
    except DiskFullError as error:
        say(f"error: {error}{f'; once there is room, {again}' if folder.started else ''}")
        raise typer.Exit(1) from None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        say(f"error: {memory_full(error)}{f'; {again}' if folder.started else ''}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:  # while loading or reporting: all that was done is on disk
        say("stopped; the same command with --resume --out goes on, if the run had begun")
        raise typer.Exit(130) from None


def one_rank(settings: str, path: str, resume: bool, quiet: bool) -> None:  # noqa: FBT001  (called by torch)
    """One process of `--ranks`."""
    import yaml

    from fedadamw.cli import guarded
    from fedadamw.engine.ranks import RankLostError
    from fedadamw.runner.execute import follow
    from fedadamw.runner.folder import RunFolder
    from fedadamw.runner.launch import join
    from fedadamw.settings.load import parse_settings
    from fedadamw.validation import InputError

    def of_rank() -> None:
        experiment, leads = parse_settings(yaml.safe_load(settings)), os.environ["RANK"] == "0"
        join(leads=leads)
        if leads:
            lead(experiment, RunFolder(Path(path)), resume=resume, quiet=quiet)
        else:
            warnings.simplefilter("ignore")  # rank 0 gives them
            try:
                follow(experiment)
            except RankLostError:
                sys.exit(1)  # the launcher says which, and why
            except InputError:  # rank 0 meets it too, and says so: this one waits to be ended with it
                signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))
                time.sleep(60)
                raise

    try:
        guarded(of_rank)
    except Exception:  # a fault of this package, which torch's launcher would keep to itself
        say(f"rank {os.environ['RANK']}:")
        traceback.print_exc()
        sys.exit(1)


def _loaded(recipe: str, settings: list[str]) -> "Experiment":
    from fedadamw.settings.load import load

    return load(recipe, settings)


def _place(
    recipe: str | None, settings: list[str], out: Path | None, *, resume: bool
) -> "tuple[RunFolder, Experiment]":
    """The folder and the experiment to run in it, new or begun; InputError where they do not go together."""
    from fedadamw.runner.folder import RunFolder
    from fedadamw.settings.load import load
    from fedadamw.validation import check

    name = recipe or DEFAULT
    folder = RunFolder(out or Path("runs") / f"{short(name)}-{time.strftime('%Y%m%d-%H%M%S')}")
    check(not folder.path.exists() or folder.path.is_dir(), f"{folder.path}: is a file, not a folder for a run")
    if not resume:
        holds = f"{folder.path} {folder.content} already"
        check(not folder.used, f"{holds}; {'go on with --resume, or ' if folder.started else ''}choose another --out")
        return folder, load(name, settings)
    check(out is not None, "--resume needs --out, the folder of the run")
    if folder.started:
        experiment = load(recipe or str(folder.config), settings)
        folder.check_settings(experiment)
        return folder, experiment
    check(recipe is not None and not folder.used, f"{folder.path} holds no run to go on with (no config.yaml)")
    return folder, load(name, settings)
