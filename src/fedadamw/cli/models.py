"""`fedadamw export` and `eval`: use a trained model."""

from pathlib import Path
from typing import Annotated

import typer

from fedadamw.cli.app import Settings, app

Best = Annotated[bool, typer.Option("--best", help="Of the best round, which -s keep_best=true keeps.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]


@app.command("export", short_help="Write a trained model for transformers and peft.")
def export_command(
    run: RunFolder,
    to: Annotated[Path, typer.Option(help="The new folder.")],
    merged: Annotated[bool, typer.Option("--merged", help="Merge adapters into the model.")] = False,  # noqa: FBT002
    best: Best = False,  # noqa: FBT002
    client: Annotated[
        int | None, typer.Option(metavar="NUMBER", help="This client's own model, of a run with personal parameters.")
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Also upload it to this repository of the hub.")
    ] = None,
) -> None:
    """Write the model of a run's last checkpoint as a folder that from_pretrained loads, with a model card.

    \b
    fedadamw export runs/sst2 --to sst2-adapter
    fedadamw export runs/sst2 --to sst2-model --merged --push me/sst2-model
    fedadamw export runs/sst2 --to sst2-best --best
    fedadamw export runs/heads --to client-3 --client 3
    """
    from fedadamw.trained.export import export
    from fedadamw.trained.export import push as upload
    from fedadamw.trained.load import open_run

    what = export(open_run(run, best=best, client=client), to, merged=merged, shared=push is not None)
    typer.echo(f"{to}: {what}, README.md (model card), fedadamw.json (settings)")
    if push is not None:
        typer.echo(upload(to, push))


@app.command("eval", short_help="Evaluate a run's or an exported model.")
def eval_command(
    where: Annotated[Path, typer.Argument(metavar="RUN_OR_DIR", help="The folder of a run or of a model.")],
    data: Annotated[str | None, typer.Option(help="Another folder, file or hub id to evaluate on.")] = None,
    split: Annotated[str | None, typer.Option(help="Its split, such as validation_mismatched.")] = None,
    best: Best = False,  # noqa: FBT002
    settings: Settings = None,
) -> None:
    """Evaluate a trained model on held-out samples: those of its run, or others.

    \b
    fedadamw eval runs/sst2
    fedadamw eval sst2-adapter --data ../data/glue-sst2 --split validation
    fedadamw eval ./any-classifier --data reviews.csv -s data.task=text
    """
    from fedadamw.cli.tables import print_evaluation
    from fedadamw.settings.load import Override, parse_override
    from fedadamw.trained.evaluate import evaluate
    from fedadamw.trained.load import open_trained

    overrides: list[Override] = []
    if data is not None:
        overrides += [("data.config", None), ("data.test_source", None), ("data.validation", 0.0)]
        overrides.append(("data.source", data))
    if split is not None:
        overrides.append(("data.test_split", split))
    trained = open_trained(where, [*overrides, *(parse_override(setting) for setting in settings or ())], best=best)
    print_evaluation(*evaluate(trained))
