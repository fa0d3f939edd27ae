"""`fedadamw plan`: what a run will need, before anything is loaded."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from fedadamw.cli.app import DEFAULT_RECIPE, Recipe, Settings, app

if TYPE_CHECKING:
    from fedadamw.plan.plan import Plan

GB, MB = 10**9, 10**6


@app.command("plan", short_help="Show what a run will need: memory, bytes sent, engine.")
def plan_command(
    recipe: Recipe = None,
    settings: Settings = None,
    ranks: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that share a round.", show_default="as `run` chooses"),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(min=0.001, metavar="GB", help="Of a device with so much memory, which need not be here."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,  # noqa: FBT002
) -> None:
    """Show what a run will need: memory by part, bytes sent, engine and step, and what to change if it does not fit.

    Nothing is loaded: of a hub id or a folder only config.json is read. A round is rehearsed without numbers.

    \b
    fedadamw plan digits
    fedadamw plan paper/cifar100-vit-dir0.1 -s device=cuda --memory 24
    fedadamw plan paper/glue-sst2 -s training.micro_batch=4 --ranks 2
    fedadamw plan my.yaml --json > plan.json
    """
    from fedadamw.plan.plan import make_plan
    from fedadamw.plan.room import find_room
    from fedadamw.runner.launch import check_ranks, choose_ranks
    from fedadamw.settings.load import load

    experiment = load(recipe or DEFAULT_RECIPE, settings or ())
    ranks = ranks or choose_ranks(experiment)
    check_ranks(experiment, ranks)
    plan = make_plan(experiment, ranks=ranks, room=find_room(experiment, memory))
    if as_json:
        from fedadamw.plan.advice import advise

        advice = None if plan.fits else advise(plan)._asdict()
        typer.echo(json.dumps({**plan.to_dict(), "advice": advice}, indent=2))
    else:
        _print(plan)


def _print(plan: "Plan") -> None:
    from fedadamw.cli.tables import print_grid
    from fedadamw.plan.refusal import describe_verdict

    phases = plan.phases
    parts = dict.fromkeys(part for held in phases.values() for part in held)
    unit, scale = ("GB", GB) if plan.peak >= GB else ("MB", MB)
    digits = 2 if unit == "GB" else 1
    rows = [[part, *(_number(held.get(part), scale, digits) for held in phases.values())] for part in parts]
    rows.append(["sum", *(f"{sum(held.values()) / scale:,.{digits}f}" for held in phases.values())])
    print_grid([f"{unit} of a rank", *phases], rows)
    typer.echo()
    for name, text in _describe(plan):
        typer.echo(f"{name:<10} {text}")
    typer.echo(f"\n{describe_verdict(plan)}")


def _number(size: int | None, scale: int, digits: int) -> str:
    return f"{size / scale:,.{digits}f}" if size else ""


def _describe(plan: "Plan") -> list[tuple[str, str]]:
    r, counts, sampled = plan.rehearsal, plan.counts, plan.experiment.training.clients_per_round
    rows = [
        ("model", f"{r.trained:,} numbers are trained, {r.frozen:,} are frozen"),
        ("engine", f"{plan.engine}: {f'{r.stack} clients at once' if r.stack > 1 else 'one client after the other'}"),
        ("step", plan.step),
        (
            "a round",
            f"{_size(sampled * counts.down_bytes)} down and {_size(sampled * counts.up_bytes)} up, {sampled} clients",
        ),
    ]
    if plan.ranks > 1:
        shards = plan.experiment.shards
        whose = "each with a model of its own" if shards == 1 else f"{shards} of which share the layers of a model"
        rows.append(("ranks", f"{plan.ranks}, {whose}"))
    if plan.memories_on_disk:
        rows.append(("on disk", f"{_size(plan.memories_on_disk)} of clients' memories"))
    return [*rows, *(("note", text) for text in plan.data.assumed)]


def _size(size: int) -> str:
    return f"{size / GB:,.2f} GB" if size >= GB else f"{size / MB:,.2f} MB"
