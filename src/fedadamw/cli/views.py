"""`fedadamw list`, `blocks` and `partition`: recipes, models and data before training."""

from pathlib import Path
from typing import Annotated

import typer

from fedadamw.cli.app import DEFAULT_RECIPE, Recipe, Settings, app, parse_names
from fedadamw.cli.complete import complete_model


@app.command("list", short_help="Show recipes, algorithms and models.")
def list_command() -> None:
    """Show the recipes, algorithms and models that come with this package, and the algorithms of other packages.

    \b
    fedadamw list
    """
    from fedadamw.algorithms.plugins import find_plugins
    from fedadamw.cli.choices import list_algorithms, list_models
    from fedadamw.settings.recipes import list_recipes

    typer.echo("recipes")
    recipes = list_recipes()
    width = max(map(len, recipes))
    for name, about in recipes.items():
        typer.echo(f"  {name:<{width}}  {about}")
    typer.echo("algorithms")
    for name, settings in list_algorithms().items():
        typer.echo(f"  {name:<16} {', '.join(f'{key}={value}' for key, value in settings.items())}")
    for name, plugins in find_plugins().items():
        typer.echo(f"  {name:<16} of package {', '.join(map(str, plugins))}")
    typer.echo(
        f"models\n  {', '.join(list_models())}, any image classifier from the hub (owner/name) or a folder; "
        "if data.task is for texts, any text classifier or causal language model"
    )


@app.command("blocks", short_help="Show a model's blocks and upload size.")
def blocks_command(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="vit-tiny, bert, a folder, a hub id, ...", autocompletion=complete_model),
    ],
    granularity: Annotated[str, typer.Option(help="paper, coarse, tensor or coordinate.")] = "paper",
    lora: Annotated[str | None, typer.Option(metavar="NAME,NAME", help="Put LoRA on these modules.")] = None,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the LoRA adapters.")] = 16,
) -> None:
    """Show how a model is cut into blocks and how large an upload is; no weights are loaded.

    \b
    fedadamw blocks vit-tiny
    fedadamw blocks roberta --lora query,key,value,dense --rank 16
    fedadamw blocks ./my-model --granularity coarse
    """
    from fedadamw.blocks.blocks import Blocks
    from fedadamw.cli.tables import print_blocks
    from fedadamw.models.skeleton import build_skeleton

    module = build_skeleton(model)
    if lora is not None:
        from fedadamw.models.lora.adapters import add_adapters
        from fedadamw.settings.lora import LoraSettings

        module = add_adapters(module, LoraSettings(r=rank, target_modules=tuple(parse_names(lora))), None)
    print_blocks(model, Blocks.of(module, granularity))


@app.command("partition", short_help="Draw which client holds which samples.")
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
    from fedadamw.prepare.samples import load_samples, make_partitions
    from fedadamw.report.run_charts import partition_chart, save_chart
    from fedadamw.settings.load import load
    from fedadamw.validation import check

    check(out.suffix in (".png", ".svg"), f"--out {out}: must end in .png or .svg")
    experiment = load(recipe or DEFAULT_RECIPE, settings or ())
    train, _ = load_samples(experiment)
    clients, held_out = make_partitions(experiment, train)
    counts = clients.counts(train.labels, len(train.classes))
    save_chart(partition_chart(counts, train.classes), out)
    print_partition(counts, clients.fingerprint)
    if held_out is not None:
        sizes = held_out.sizes
        typer.echo(f"besides, held out: {sizes.sum():,} samples, {sizes.min():,} to {sizes.max():,} per client")
    typer.echo(f"picture: {out}")
