"""`fedadamw theory`: what theorems predict, beside what the algorithms do."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from fedadamw.cli.app import TYPER_SUGGESTS, Quiet, Settings, app

theory = typer.Typer(
    help="""Measure what theory predicts: rates of convergence, bounds, curvature.

    \b
    fedadamw theory rate --noise skew
    fedadamw theory blocks runs/digits
    """,
    short_help="Measure what theory predicts.",
    no_args_is_help=True,
    rich_markup_mode=None,
    suggest_commands=TYPER_SUGGESTS,
)
app.add_typer(theory, name="theory")


@theory.command("rate", short_help="Measure the speed-up in clients, steps, rounds.")
def rate(
    noise: Annotated[
        str, typer.Option(metavar="NAME", help="Of the gradients: gauss, or skew (exponential, of mean 0).")
    ] = "gauss",
    algorithm: Annotated[
        list[str] | None,
        typer.Option(
            "-a",
            "--algorithm",
            metavar="NAME[:SETTING=VALUE,...]",
            help="An algorithm, with settings that differ from its defaults; repeatable.",
        ),
    ] = None,
    clients: Annotated[
        str, typer.Option(metavar="N,N,...", help="Values of S; the middle one is the others' too.")
    ] = "2,8,32",
    steps: Annotated[str, typer.Option(metavar="N,N,...", help="Values of K.")] = "5,20,80",
    rounds: Annotated[str, typer.Option(metavar="N,N,...", help="Values of R.")] = "100,400,1600",
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Runs at each point.")] = 8,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the numbers here.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Put rate-NOISE.svg, .png and .json here.")] = None,
    quiet: Quiet = False,  # noqa: FBT002
) -> None:
    """Run algorithms on a quadratic and compare the slopes in S clients, K local steps and R rounds with theory's -1/2.

    The learning rate is by rule, not tuned. By default FedAdamW, with memory 1, with share none, and Local AdamW.

    \b
    fedadamw theory rate --out runs/rate
    fedadamw theory rate --noise skew -a fedadamw -a fedadamw:share=none
    fedadamw theory rate --noise skew -a fedadamw:memory=10 --json rate.json
    """
    from fedadamw.cli.tables import print_grid
    from fedadamw.theory.files import check_outputs, write_all
    from fedadamw.theory.methods import DEFAULTS, parse_method
    from fedadamw.theory.quadratic import parse_noise
    from fedadamw.theory.rate import AXES, Grid, measure_rate, parse_values
    from fedadamw.theory.rate_output import HEADINGS, rate_chart, rate_rows

    kind, methods = parse_noise(noise), [parse_method(text) for text in dict.fromkeys(algorithm or DEFAULTS)]
    axes = [parse_values(f"--{axis}", text) for axis, text in zip(AXES, (clients, steps, rounds), strict=True)]
    check_outputs(json, out)
    measured = measure_rate(methods, kind, Grid(*axes), seeds=seeds, quiet=quiet)
    if not quiet:
        print_grid(HEADINGS, rate_rows(measured))
    stem = f"rate-{measured['noise']}"
    print_paths(write_all(stem, measured, {stem: rate_chart(measured)}, json, out))


@theory.command("bound", short_help="Bound a run's loss on new samples.")
def bound(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run of FedAdamW or Local AdamW.")],
    moments: Annotated[
        str, typer.Option(metavar="NAME", help="Whose squares v is taken to hold: per-sample or minibatch gradients'.")
    ] = "per-sample",
    rho: Annotated[
        list[float] | None,
        typer.Option(
            help="Variance of the prior, not chosen by the data; repeatable, at the cost of ln(their number).",
            show_default="1e-4 to 1 in tenfolds",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Training samples to measure the curvature on.")] = 2048,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the numbers here.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Put bound.svg, .png and .json here.")] = None,
    settings: Settings = None,
    quiet: Quiet = False,  # noqa: FBT002
) -> None:
    """Compute a PAC-Bayes bound on a run's loss on new samples, by weight decay.

    It is vacuous for networks of any size: use it to compare, as theory does, not to promise.

    \b
    fedadamw theory bound runs/digits --out figures
    fedadamw theory bound runs/digits --moments minibatch --rho 0.01
    """
    from fedadamw.cli.tables import print_grid
    from fedadamw.settings.load import parse_override
    from fedadamw.theory import bound_output
    from fedadamw.theory.bound import RHOS, check_rhos, parse_moments
    from fedadamw.theory.bound_run import read_run
    from fedadamw.theory.files import check_outputs, write_all
    from fedadamw.theory.progress import Phases

    kind, rhos = parse_moments(moments), rho or RHOS
    check_rhos(rhos)
    check_outputs(json, out)
    with Phases(quiet=quiet) as report:
        measured = read_run(run, samples, [parse_override(text) for text in settings or ()], report)
    facts = {"run": run.resolve().name, **bound_output.bound_facts(measured, rhos, kind)}
    if not quiet:
        print_grid(bound_output.HEADINGS, bound_output.bound_rows(facts))
        typer.echo(bound_output.judge(facts))
    print_paths(write_all("bound", facts, {"bound": bound_output.bound_chart(facts)}, json, out))


def print_paths(paths: Iterable[Path]) -> None:
    """Print the paths of what was written, a line each."""
    for path in paths:
        typer.echo(path)
