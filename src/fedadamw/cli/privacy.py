"""`fedadamw privacy`: what a run with differential privacy will spend, and what it has spent."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedadamw.cli.app import DEFAULT_RECIPE, TYPER_SUGGESTS, Recipe, Settings, app, parse_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedadamw.plan.privacy import PrivacyPlan
    from fedadamw.privacy.classes import ClientClass
    from fedadamw.runner.spent import SpentSoFar

privacy = typer.Typer(
    help="""Differential privacy: the epsilon of a run, before and after it.

    \b
    fedadamw privacy plan digits -s privacy.epsilon=8
    fedadamw privacy spent runs/digits
    fedadamw privacy spent /var/lib/fedadamw
    """,
    short_help="Differential privacy: epsilon before and after a run.",
    no_args_is_help=True,
    rich_markup_mode=None,
    suggest_commands=TYPER_SUGGESTS,
)
app.add_typer(privacy, name="privacy")
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@privacy.command("plan", short_help="Show the epsilon of a run before it starts.")
def plan_command(
    recipe: Recipe = None,
    settings: Settings = None,
    samples: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="Of nodes that have so many samples, instead of the recipe's partition."),
    ] = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Show what clients will spend, by how many samples they have, how strong the noise is, and what would help.

    Of the data only the partition is used: how many samples each client has. With --samples nothing is read.

    \b
    fedadamw privacy plan digits -s privacy.epsilon=8
    fedadamw privacy plan digits -s privacy.noise_multiplier=1 -s training.batch_size=200
    fedadamw privacy plan digits -s privacy.noise_multiplier=1 --samples 500,2000
    fedadamw privacy plan digits -s privacy.unit=client -s privacy.noise_multiplier=1 --json
    """
    from fedadamw.plan.privacy import plan_privacy
    from fedadamw.settings.load import load

    experiment = load(recipe or DEFAULT_RECIPE, settings or ())
    plan = plan_privacy(experiment, None if samples is None else _parse_samples(samples))
    if as_json:
        typer.echo(json.dumps(plan.to_dict(), indent=2))
    else:
        _print_plan(plan)


@privacy.command("spent", short_help="Show the epsilon that a run, or a node, has spent.")
def spent_command(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN|STATE_DIR", help="The folder of a run; or a node's state-dir, or its ledger.")
    ],
    delta: Annotated[
        float | None, typer.Option(help="Of a node's ledger: the delta to count at, instead of its privacy-delta.")
    ] = None,
    as_json: Json = False,  # noqa: FBT002
) -> None:
    """Show what the clients of a run have spent until now, by how many samples they have, and what that assumes.

    Given a node's state-dir: what this node has spent in all runs together, by its ledger.

    \b
    fedadamw privacy spent runs/digits
    fedadamw privacy spent runs/digits --json
    fedadamw privacy spent /var/lib/fedadamw --delta 1e-6
    """
    from fedadamw.cli.node_ledger import holds_ledger, show_ledger
    from fedadamw.runner.spent import find_spent
    from fedadamw.validation import InputError

    if holds_ledger(folder):
        show_ledger(folder, delta, as_json=as_json)
        return
    if delta is not None:
        raise InputError(f"--delta {delta:g} is for a node's ledger; a run has privacy.delta")
    found = find_spent(folder)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        _print_spent(found)


def _parse_samples(text: str) -> list[int]:
    """Return the numbers in a list with commas."""
    from fedadamw.validation import check

    words = parse_names(text)
    check(all(word.isdecimal() for word in words), f"--samples {text}: give whole numbers such as 500,2000")
    return [int(word) for word in words]


def _print_plan(plan: "PrivacyPlan") -> None:
    from fedadamw.cli.tables import print_grid
    from fedadamw.privacy.classes import describe_guarantee, list_assumptions

    _print_classes(plan.classes, plan.privacy.unit)
    epsilon = plan.privacy.epsilon
    source = "as given" if epsilon is None else f"for privacy.epsilon={epsilon:g}"
    whole = "mean update of a round" if plan.privacy.unit == "client" else "mean gradient of that client"
    rows = [
        ("epsilon", f"{plan.epsilon:.4g} at delta {plan.privacy.delta:g}, of the client that spends most"),
        ("guarantee", describe_guarantee(plan.privacy, remote=plan.every_round)),
        *(("assumed", text) for text in list_assumptions(plan.privacy, remote=plan.every_round)),
        ("noise", f"multiplier {plan.noise_multiplier:.4g}, {source}; {plan.trained:,} numbers are trained"),
        ("ratio", f"the noise is {plan.ratio:.3g} times as long as the longest {whole}"),
    ]
    _print_rows(rows)
    if plan.helps:
        typer.echo("\nAt the same epsilon of that client:")
        print_grid(
            ["with", "noise multiplier", "ratio"],
            [[each.what, f"{each.noise_multiplier:.4g}", f"{each.ratio:.3g}"] for each in plan.helps],
        )


def _print_spent(found: "SpentSoFar") -> None:
    from fedadamw.privacy.classes import describe_guarantee, list_assumptions

    if found.classes:
        _print_classes(found.classes, found.privacy.unit)
    worst = "" if found.client is None else f", client {found.client}"
    known = "not known here: the ledgers of the nodes tell"
    epsilon = known if found.epsilon is None else f"{found.epsilon:.4g} at delta {found.privacy.delta:g}{worst}"
    rows = [
        ("epsilon", epsilon),
        ("rounds", f"{found.done} of {found.rounds}"),
        ("noise", f"multiplier {found.noise_multiplier:.4g}"),
        ("guarantee", describe_guarantee(found.privacy, remote=found.remote)),
        *(("assumed", text) for text in list_assumptions(found.privacy, remote=found.remote)),
    ]
    if found.privacy.budget is not None:
        rows.insert(1, ("budget", f"{found.privacy.budget:g}"))
    _print_rows(rows)


def _print_classes(classes: "Sequence[ClientClass]", unit: str) -> None:
    """Print a line for each class of clients; what it tells is of its client that spends most."""
    from fedadamw.cli.tables import print_grid

    head = ["samples", "clients", "rate", "rounds" if unit == "client" else "steps", "epsilon"]
    rows: list[list[Any]] = []
    for each in classes:
        span = f"{each.least:,}" if each.least == each.most else f"{each.least:,} to {each.most:,}"
        cells = [f"{each.clients:,}", f"{each.rate:.4g}", f"{each.times:,}", f"{each.epsilon:.4g}"]
        rows.append(["any" if unit == "client" else span, *cells])
    print_grid(head, rows)
    typer.echo()


def _print_rows(rows: "Sequence[tuple[str, str]]") -> None:
    for name, text in rows:
        typer.echo(f"{name:<10} {text}")
