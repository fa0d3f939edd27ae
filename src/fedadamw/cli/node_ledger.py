"""What a node has spent in all runs, by its ledger: the part of `fedadamw privacy spent` for a node's state folder."""

import json
from math import isfinite
from pathlib import Path

import typer

from fedadamw.cli.tables import print_grid

DELTA = 1e-5  # if the node has no budget of its own
SHOWN = 12  # characters of a run's name


def holds_ledger(place: Path) -> bool:
    """Whether `place` is a node's state folder, or the ledger in it."""
    from fedadamw.flower.node.ledger import find_ledger

    return find_ledger(place) is not None


def show_ledger(place: Path, delta: float | None, *, as_json: bool) -> None:
    """Print the epsilon of each run and of all together; InputError, one line, if the ledger is damaged."""
    from fedadamw.flower.node.ledger import read_spent
    from fedadamw.privacy.accountant import compute_epsilon

    spent = read_spent(place)
    delta = delta or spent.delta or DELTA
    total = compute_epsilon(spent.mechanisms, delta)
    each = {name: compute_epsilon(run.mechanisms, delta) for name, run in spent.runs.items()}
    if as_json:
        runs = [
            {
                "run": name,
                "trainings": run.trainings,
                "first": run.first,
                "last": run.last,
                "epsilon": _finite(each[name]),
            }
            for name, run in spent.runs.items()
        ]
        budget = {"epsilon": spent.epsilon, "delta": spent.delta}
        facts = {"ledger": str(spent.path), "begun": spent.begun, "trainings": spent.trainings, "budget": budget}
        typer.echo(json.dumps({**facts, "delta": delta, "epsilon": _finite(total), "runs": runs}, indent=2))
        return
    rows = [
        [name[:SHOWN], f"{run.trainings:,}", run.first, run.last, f"{each[name]:.4g}"]
        for name, run in spent.runs.items()
    ]
    print_grid(["run", "trainings", "first", "last", "epsilon"], rows)
    without = "" if isfinite(total) else ", since a training had no noise"
    budget_text = "none" if spent.epsilon is None else f"{spent.epsilon:g} at delta {spent.delta:g}"
    typer.echo(f"\nepsilon    {total:.4g} at delta {delta:g}, of all runs together{without}")
    typer.echo(f"budget     {budget_text}, when the node last trained")
    typer.echo(f"ledger     {spent.trainings:,} trainings since {spent.begun}")


def _finite(number: float) -> float | None:
    return number if isfinite(number) else None
