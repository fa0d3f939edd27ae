"""`fedadamw plan`: what a run will need, before anything is loaded."""

import json
from datetime import timedelta
from pathlib import Path
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

    Nothing is loaded: of a hub id or a folder only config.json is read. A round is rehearsed without numbers. Time is
    told where it was measured: for the config.yaml of a run, by its rounds.

    \b
    fedadamw plan digits
    fedadamw plan paper/cifar100-vit-dir0.1 -s device=cuda --memory 24
    fedadamw plan paper/glue-sst2 -s training.micro_batch=4 --ranks 2
    fedadamw plan my.yaml --json > plan.json
    fedadamw plan runs/digits/config.yaml -s training.rounds=500    # with the time, as that run's rounds took
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
        _print(plan, _estimate_time(plan, recipe))


def _estimate_time(plan: "Plan", recipe: str | None) -> str | None:
    """Return how long the run will take, if `recipe` is the config.yaml of one whose rounds were timed."""
    from fedadamw.plan.rate import seconds_a_round
    from fedadamw.runner.folder import RunFolder
    from fedadamw.settings.load import load

    folder = RunFolder(Path(recipe or "").parent)
    if Path(recipe or "") != folder.config or not folder.metrics.is_file():
        return None
    measured = [record["wall_s"] for record in folder.records()]
    each = seconds_a_round(plan.experiment, load(str(folder.config)), measured)
    if each is None:
        return None
    rounds = plan.experiment.training.rounds
    count = "one round" if len(measured) == 1 else f"{len(measured)} rounds"
    whole = timedelta(seconds=round(rounds * each))
    return f"{whole} for {rounds} round{'s' * (rounds > 1)} of {each:,.1f} s, by the {count} in {folder.path}"


def _print(plan: "Plan", time: str | None) -> None:
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
    for name, text in [*_describe(plan), *([("time", time)] if time else [])]:
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
    if plan.evaluated is not None:
        rows.append(("scores", plan.evaluated.describe()))
    if plan.memories_on_disk:
        rows.append(("on disk", f"{_size(plan.memories_on_disk)} of clients' memories"))
    return [*rows, *(("note", text) for text in plan.data.assumed)]


def _size(size: int) -> str:
    return f"{size / GB:,.2f} GB" if size >= GB else f"{size / MB:,.2f} MB"
