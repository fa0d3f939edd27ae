"""`fedadamw theory spectrum`, `blocks`, `variance`, `drift` and `alignment`: what runs say of the theory."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from fedadamw.cli.app import Quiet, Settings
from fedadamw.cli.theory import print_paths, theory

if TYPE_CHECKING:
    from fedadamw.theory.curvature.subject import At, Subject
    from fedadamw.theory.rounds import Figure

Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]
Runs = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs with training.diagnostics=true.")]
Weights = Annotated[Literal["start", "end"], typer.Option("--at", help="The run's first or last weights.")]
Samples = Annotated[int, typer.Option(min=1, help="Training samples, drawn at random.")]
Json = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the numbers here.")]
Out = Annotated[Path | None, typer.Option(metavar="FOLDER", help="Put the figures, .svg and .png, and the .json here.")]


@theory.command("spectrum", short_help="Find the eigenvalues of a run's curvature.")
def spectrum(
    run: Run,
    samples: Samples = 128,
    matrix: Annotated[
        Literal["gauss-newton", "hessian"], typer.Option(help="Of the mean loss over the samples.")
    ] = "gauss-newton",
    at: Weights = "end",
    steps: Annotated[int, typer.Option(min=1, help="For Lanczos: products with each random vector.")] = 40,
    probes: Annotated[int, typer.Option(min=1, help="For Lanczos: random vectors.")] = 4,
    json: Json = None,
    out: Out = None,
    settings: Settings = None,
    quiet: Quiet = False,  # noqa: FBT002
) -> None:
    """Find the eigenvalues of the loss's curvature at a run's weights.

    Those of the Gauss-Newton matrix are exact where its rows, one for each sample and class, fit in 2 GB. Where they do
    not, and for the Hessian, stochastic Lanczos gives the largest and the density of all.

    \b
    fedadamw theory spectrum runs/digits --out figures
    fedadamw theory spectrum runs/digits --at start --samples 64 --json start.json
    fedadamw theory spectrum runs/digits --matrix hessian --steps 60 -s device=cpu
    """
    from fedadamw.cli.tables import print_pairs
    from fedadamw.theory.curvature.spectrum import find_spectrum
    from fedadamw.theory.curvature.spectrum_output import spectrum_chart, spectrum_lines
    from fedadamw.theory.files import check_outputs, write_all
    from fedadamw.theory.progress import Phases

    check_outputs(json, out)
    subject = _open(run, settings, at)
    with Phases(quiet=quiet) as report:
        found = find_spectrum(subject, samples, matrix, steps=steps, probes=probes, report=report)
    if not quiet:
        print_pairs(spectrum_lines(found))
    facts = {"run": run.resolve().name, "at": at, **found.facts()}
    print_paths(write_all("spectrum", facts, {"spectrum": spectrum_chart(found)}, json, out))


@theory.command("blocks", short_help="See why v is shared in blocks.")
def blocks(
    run: Run,
    samples: Samples = 64,
    batches: Annotated[int, typer.Option(min=1, help="Batches of the run's size whose gradients give v.")] = 64,
    at: Weights = "end",
    json: Json = None,
    out: Out = None,
    settings: Settings = None,
    quiet: Quiet = False,  # noqa: FBT002
) -> None:
    """Measure how much of a run's curvature is inside heads and rows, and what blocks explain of v.

    Beside chance: the same for as many blocks of the same sizes with shuffled members.

    \b
    fedadamw theory blocks runs/digits --out figures
    fedadamw theory blocks runs/digits --at start --samples 32 --json blocks.json
    """
    from fedadamw.cli.tables import print_grid
    from fedadamw.theory.curvature import blocks_output
    from fedadamw.theory.curvature.inside import measure_curvature
    from fedadamw.theory.curvature.moments import explain_by_blocks
    from fedadamw.theory.files import check_outputs, write_all
    from fedadamw.theory.progress import Phases

    check_outputs(json, out)
    subject = _open(run, settings, at)
    with Phases(quiet=quiet) as report:
        curvature = measure_curvature(subject, samples, report)
        explained = explain_by_blocks(subject, batches, report)
    if not quiet:
        print_grid(blocks_output.SHARE_HEADINGS, blocks_output.share_rows(curvature))
        typer.echo(f"left out, too large: {', '.join(curvature.left_out)}\n" if curvature.left_out else "")
        print_grid(blocks_output.EXPLAINED_HEADINGS, blocks_output.explained_rows(explained))
    facts: dict[str, Any] = {"run": run.resolve().name, "at": at, "curvature": curvature.facts()}
    facts["log_v"] = {"batches": batches, **{name: found._asdict() for name, found in explained.items()}}
    charts = {"blocks": blocks_output.blocks_chart(curvature, explained)}
    if curvature.maps:
        charts["blocks-maps"] = blocks_output.maps_chart(curvature.maps)
    print_paths(write_all("blocks", facts, charts, json, out))


@theory.command("variance", short_help="Draw how v differs between clients and rounds.")
def variance(runs: Runs, json: Json = None, out: Out = None, quiet: Quiet = False) -> None:  # noqa: FBT002
    """Draw how AdamW's second moments differ between the clients of a round, and between rounds, by class of weights.

    \b
    fedadamw run digits -s training.diagnostics=true --ranks 1 --out runs/diagnosed
    fedadamw theory variance runs/diagnosed --out figures
    """
    _draw("variance", runs, json, out, quiet=quiet)


@theory.command("drift", short_help="Draw how far clients drift apart.")
def drift(runs: Runs, json: Json = None, out: Out = None, quiet: Quiet = False) -> None:  # noqa: FBT002
    """Draw how far the clients of a round end from their mean, by round, and how much of their updates that is.

    \b
    fedadamw theory drift runs/diagnosed --out figures
    fedadamw theory drift runs/fedadamw runs/local-adamw --out figures
    """
    _draw("drift", runs, json, out, quiet=quiet)


@theory.command("alignment", short_help="Draw how updates agree with the last direction.")
def alignment(runs: Runs, json: Json = None, out: Out = None, quiet: Quiet = False) -> None:  # noqa: FBT002
    """Draw the cosine of the clients' updates with the last global direction, Delta_G, by round.

    \b
    fedadamw theory alignment runs/diagnosed --out figures
    fedadamw theory alignment runs/fedadamw runs/local-adamw --json alignment.json
    """
    _draw("alignment", runs, json, out, quiet=quiet)


def _open(run: Path, settings: list[str] | None, at: "At") -> "Subject":
    from fedadamw.settings.load import parse_override
    from fedadamw.theory.curvature.subject import open_subject

    return open_subject(run, [parse_override(text) for text in settings or ()], at=at)


def _draw(figure: "Figure", runs: list[Path], json: Path | None, out: Path | None, *, quiet: bool) -> None:
    """Print the figure's main number of each run, and write the figure."""
    from fedadamw.cli.tables import print_grid
    from fedadamw.theory.files import check_outputs, write_all
    from fedadamw.theory.rounds import HEADINGS, draw, read_rounds, table_rows, title_of

    check_outputs(json, out)
    found = read_rounds(runs)
    chart = draw(figure, found)
    if not quiet:
        typer.echo(title_of(figure))
        print_grid(HEADINGS, table_rows(figure, found))
    print_paths(write_all(figure, found, {figure: chart}, json, out))
