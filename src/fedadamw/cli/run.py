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

from fedadamw.cli.app import DEFAULT_RECIPE, Quiet, Recipe, Settings, app, describe_full_memory, say, short_name
from fedadamw.runner.libraries import collector_paused, import_libraries
from fedadamw.runner.signals import Terminated, stop_once
from fedadamw.validation import InputError, check

if TYPE_CHECKING:
    from fedadamw.runner.folder import RunFolder
    from fedadamw.settings.experiment import Experiment


@app.command("run", short_help="Train a federated model.")
def run_command(
    recipe: Recipe = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/<recipe>-<time> by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in --out.")] = False,  # noqa: FBT002
    rounds: Annotated[
        int | None,
        typer.Option(min=1, help="As -s training.rounds=N; with --resume a run of a constant schedule goes on to N."),
    ] = None,
    ranks: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that share a round.", show_default="one per core if that is faster"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run even what is planned not to fit in memory.")] = False,  # noqa: FBT002
    quiet: Quiet = False,  # noqa: FBT002
) -> None:
    """Train a federated model and write its curves, page, metrics and checkpoint to a folder.

    \b
    fedadamw run
    fedadamw run digits -s algorithm.alpha=0 -s training.lr=1e-3
    fedadamw run cifar10-small -s data.source=../data/cifar10 --out runs/cifar
    fedadamw run --resume --out runs/cifar
    fedadamw run --resume --out runs/constant --rounds 200
    fedadamw run digits --ranks 2
    torchrun --nproc-per-node 8 -m fedadamw run paper/cifar100-vit-dir0.1 --out runs/vit
    """
    settings = [*(settings or []), *([] if rounds is None else [f"training.rounds={rounds}"])]
    with collector_paused(freeze=True):
        from fedadamw.runner.execute import follow
        from fedadamw.settings.load import load

        if int(os.environ.get("RANK", "0")) > 0:
            started = out is not None and resume and (out / "config.yaml").is_file()
            experiment = load(recipe or (str(out / "config.yaml") if out and started else DEFAULT_RECIPE), settings)
        else:
            folder, experiment = _open_folder(recipe, settings, out, resume=resume)
    if int(os.environ.get("RANK", "0")) > 0:
        follow(experiment)
        return
    code = _train(ranks, experiment, folder, resume=resume, force=force, quiet=quiet)
    if code:
        raise typer.Exit(code)
    if not quiet:
        from fedadamw.cli.tables import print_run

        print_run(folder.records())
        if folder.ended:
            typer.echo(folder.ended)
        typer.echo(folder.contents)


def _train(
    ranks: int | None, experiment: "Experiment", folder: "RunFolder", *, resume: bool, force: bool, quiet: bool
) -> int:
    """Run in so many processes, by default as many as pay; return the exit code."""
    from fedadamw.plan.refusal import check_fits
    from fedadamw.prepare.checks import check_settings
    from fedadamw.prepare.device import uses_gpu
    from fedadamw.runner.forked_ranks import can_fork, forked_ranks
    from fedadamw.runner.launch import check_ranks, choose_ranks, launch

    ranks = ranks or choose_ranks(experiment)
    check_ranks(experiment, ranks)
    alone = ranks == 1 or "RANK" in os.environ
    check_settings(experiment, remote=False)
    if not force:
        check_fits(experiment, ranks)
    if not alone and (uses_gpu(experiment) or not can_fork()):
        return launch(ranks, run_rank, experiment.to_yaml(), str(folder.path), resume, quiet)
    with collector_paused(freeze=True):
        import_libraries(experiment)
    if alone:
        run_leader(experiment, folder, resume=resume, quiet=quiet)
        return 0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop_once)
    with forked_ranks(ranks, lambda: _follow_quietly(experiment)):
        run_leader(experiment, folder, resume=resume, quiet=quiet)
    return 0


def _follow_quietly(experiment: "Experiment") -> None:
    """Run a rank other than 0, which prints the messages for all."""
    from fedadamw.runner.execute import follow

    warnings.simplefilter("ignore")
    follow(experiment)


def run_leader(experiment: "Experiment", folder: "RunFolder", *, resume: bool, quiet: bool) -> None:
    """Run with a progress display; if it stops, say how to resume it."""
    from fedadamw.engine.device_memory import is_out_of_memory
    from fedadamw.io.disk import DiskFullError
    from fedadamw.runner.execute import Interrupted, execute
    from fedadamw.runner.progress import Progress

    hint = f"resume with: fedadamw run --resume --out {folder.path}"
    try:
        with Progress(experiment.training, quiet=quiet) as progress:
            execute(
                experiment,
                folder,
                resume=resume,
                on_start=lambda simulation: progress.start(simulation.state.round),
                on_round=progress.round,
            )
    except Interrupted as stopped:
        say(f"stopped; {hint}")
        raise typer.Exit(143 if isinstance(stopped.__cause__, Terminated) else 130) from None
    except DiskFullError as error:
        say(f"error: {error}{f'; once there is room, {hint}' if folder.started else ''}")
        raise typer.Exit(1) from None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        say(f"error: {describe_full_memory(error)}{f'; {hint}' if folder.started else ''}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:  # while loading or reporting: all finished rounds are on disk
        say("stopped; if the run had begun, the same command with --resume --out resumes it")
        raise typer.Exit(130) from None


def run_rank(settings: str, path: str, resume: bool, quiet: bool) -> None:  # noqa: FBT001  (called by torch)
    """Run one process of `--ranks`."""
    from fedadamw.cli import run_and_exit
    from fedadamw.runner.folder import RunFolder
    from fedadamw.runner.launch import join

    def run() -> None:
        import yaml

        from fedadamw.settings.load import parse_settings

        experiment, leads = parse_settings(yaml.safe_load(settings)), os.environ["RANK"] == "0"
        join(leads=leads)
        if leads:
            run_leader(experiment, RunFolder(Path(path)), resume=resume, quiet=quiet)
        else:
            _run_follower(experiment)

    try:
        run_and_exit(run)
    except Exception:  # a bug of this package, which torch's launcher would not print
        say(f"rank {os.environ['RANK']}:")
        traceback.print_exc()
        sys.exit(1)


def _run_follower(experiment: "Experiment") -> None:
    """Run a rank of `launch` other than 0."""
    from fedadamw.engine.ranks import RankLostError

    try:
        _follow_quietly(experiment)
    except RankLostError:
        sys.exit(1)  # the launcher says which, and why
    except InputError:  # rank 0 raises it too and reports it; this one waits to be ended with it
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))
        time.sleep(60)
        raise


def _open_folder(
    recipe: str | None, settings: list[str], out: Path | None, *, resume: bool
) -> "tuple[RunFolder, Experiment]":
    """Return the folder, new or started, and the experiment to run in it; raises InputError if they do not match."""
    from fedadamw.runner.folder import RunFolder
    from fedadamw.settings.load import load

    name = recipe or DEFAULT_RECIPE
    folder = RunFolder(out or Path("runs") / f"{short_name(name)}-{time.strftime('%Y%m%d-%H%M%S')}")
    check(not folder.path.exists() or folder.path.is_dir(), f"{folder.path}: is a file, not a folder for a run")
    if not resume:
        hint = "resume it with --resume, or " if folder.started else ""
        check(not folder.used, f"{folder.path} {folder.content} already; {hint}choose another --out")
        return folder, load(name, settings)
    check(out is not None, "--resume needs --out, the folder of the run")
    if folder.started:
        experiment = load(recipe or str(folder.config), settings)
        folder.check_settings(experiment)
        return folder, experiment
    check(recipe is not None and not folder.used, f"{folder.path} holds no run to resume (no config.yaml)")
    return folder, load(name, settings)
