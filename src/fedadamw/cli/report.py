"""`fedadamw report`: the page of a finished run or study again, and its files for a paper."""

from pathlib import Path
from typing import Annotated

import typer

from fedadamw.cli.app import app

Export = Annotated[
    str | None,
    typer.Option(
        metavar="KIND,KIND",
        help="Write files for a paper into export/: csv (all records, final scores), svg and pdf (each chart, as wide "
        "as a column), tex (tables, booktabs).",
    ),
]


@app.command("report", short_help="Write a run's or study's page again; export for a paper.")
def report_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a run, comparison, ablation or tuning.")],
    export: Export = None,
) -> None:
    """Write report.html, curves and tables of a finished run or study again from its files.

    \b
    fedadamw report runs/compare-digits --export csv,svg,pdf,tex
    fedadamw report runs/cifar --export pdf
    """
    from fedadamw.report.export import parse_exports
    from fedadamw.study.rewrite import rewrite

    for path in rewrite(folder, parse_exports(export) if export is not None else ()):
        typer.echo(path)
