"""`fedadamw list`, `blocks` and `partition`: what there is, before anything is trained."""

from pathlib import Path
from typing import Annotated

import typer

from fedadamw.cli import complete
from fedadamw.cli.app import DEFAULT, Recipe, Settings, app, names_in


@app.command("list", short_help="Show recipes, algorithms and models.")
def list_command() -> None:
    """Show the recipes, algorithms and models that come with the package.

    \b
    fedadamw list
    """
    from fedadamw.cli.choices import algorithms, models
    from fedadamw.settings.recipes import list_recipes

    typer.echo("recipes")
    width = max(map(len, list_recipes()))
    for name, about in list_recipes().items():
        typer.echo(f"  {name:<{width}}  {about}")
    typer.echo("algorithms")
    for name, settings in algorithms().items():
        given = ", ".join(f"{key}={value}" for key, value in settings.items())
        typer.echo(f"  {name:<16} {given}")
    typer.echo(
        f"models\n  {', '.join(models())}, any image classifier of the hub (owner/name) or a folder; "
        "with data.task for texts, any classifier or causal language model"
    )


@app.command("blocks", short_help="Show a model's blocks, and bytes sent.")
def blocks_command(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="vit-tiny, bert, a folder, a hub id, ...", autocompletion=complete.models),
    ],
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
    from fedadamw.blocks.blocks import Blocks
    from fedadamw.cli.tables import print_blocks
    from fedadamw.models.skeleton import build_skeleton

    found = build_skeleton(model)
    if lora is not None:
        from fedadamw.models.lora import add_adapters
        from fedadamw.settings.lora import LoraSettings

        found = add_adapters(found, LoraSettings(r=rank, target_modules=tuple(names_in(lora))), None)
    print_blocks(model, Blocks.of(found, granularity))


@app.command("partition", short_help="Draw who holds which samples.")
def partition_command(
    recipe: Recipe = None,
    settings: Settings = None,
    out: Annotated[Path, typer.Option(help="The picture, .png or .svg.")] = Path("partition.png"),
) -> None:
    """Draw which client holds how many samples of which class.

    \b
    fedadamw partition digits
    fedadamw partition digits -s partition.concentration=0.1 --out dir01.png
    """
    from fedadamw.cli.tables import print_partition
    from fedadamw.prepare.samples import load_samples, make_partition
    from fedadamw.report.run_charts import partition, save
    from fedadamw.settings.load import load
    from fedadamw.validation import check

    check(out.suffix in (".png", ".svg"), f"--out {out}: must end in .png or .svg")
    experiment = load(recipe or DEFAULT, settings or ())
    train, _ = load_samples(experiment)
    clients = make_partition(experiment, train)
    counts = clients.counts(train.labels, len(train.classes))
    save(partition(counts, train.classes), out)
    print_partition(counts, clients.fingerprint)
    typer.echo(f"picture: {out}")
