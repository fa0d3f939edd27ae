"""`fedadamw watch`: a run or study in the browser while it goes on."""

from pathlib import Path
from typing import Annotated

import typer

from fedadamw.cli.app import app


@app.command("watch", short_help="Show a run in the browser as it runs.")
def watch_command(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run or study; it may not exist yet.")],
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 shows the run to the network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port, or 0 for any that is free.")] = 8765,
    open_: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = False,  # noqa: FBT002
) -> None:
    """Show a run's curves, clients and log in the browser as it goes on, or the runs of a study.

    \b
    fedadamw watch runs/digits
    fedadamw watch runs/compare-digits --port 0 --open
    """
    from fedadamw.runner.signals import Terminated
    from fedadamw.watch.server import Server

    with Server(folder, host, port) as server:
        typer.echo(f"watching {folder} at {server.url}  (Ctrl-C ends)")
        if open_:
            import webbrowser

            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except Terminated:
            raise typer.Exit(143) from None
        except KeyboardInterrupt:
            typer.echo("stopped watching")
