"""`fedadamw flower`: apps, certificates and services for Flower, and a demonstration on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from fedadamw.cli.app import TYPER_SUGGESTS, Quiet, Recipe, Settings, app, say

flower = typer.Typer(
    help="""Federate over a network, with Flower: apps, certificates, services, a demonstration.

    \b
    fedadamw flower demo --nodes 2
    fedadamw flower new app digits -s partition.clients=12
    """,
    short_help="Federate over a network, with Flower.",
    no_args_is_help=True,
    rich_markup_mode=None,
    suggest_commands=TYPER_SUGGESTS,
)
NewFolder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The new folder.")]
app.add_typer(flower, name="flower")


def _require_flower() -> None:
    """Raise InputError if Flower is not installed."""
    from importlib.util import find_spec

    from fedadamw.validation import missing_extra_error

    for name, module in {"Flower": "flwr", "cryptography": "cryptography"}.items():
        if find_spec(module) is None:
            raise missing_extra_error(f"{name} is not installed", "flower")


@flower.command("new", short_help="Write a Flower app for a recipe.")
def new(folder: NewFolder, recipe: Recipe = None, settings: Settings = None) -> None:
    """Write a Flower app for a recipe into FOLDER, for `flwr run` to start.

    \b
    fedadamw flower new app digits -s partition.clients=4 -s training.clients_per_round=4
    fedadamw flower new app paper/glue-sst2 -s partition.kind=nodes -s partition.clients=12
    """
    from fedadamw.flower.new_app import write_app
    from fedadamw.settings.load import load

    write_app(folder, load(recipe or "digits", settings or []))
    typer.echo(f"{folder}: pyproject.toml, and the app with its experiment.yaml; start it with: flwr run {folder}")


@flower.command("certs", short_help="Make certificates and keys for testing.")
def certs(
    folder: NewFolder,
    host: Annotated[
        list[str] | None,
        typer.Option("--host", help="The server's name or address, besides localhost; repeatable."),
    ] = None,
    nodes: Annotated[int, typer.Option(min=0, help="Number of node keys.")] = 4,
) -> None:
    """Make a certificate authority, a server certificate and node keys for testing in FOLDER.

    \b
    fedadamw flower certs certs --host fl.example.org --host 10.0.0.5 --nodes 12
    """
    _require_flower()
    from fedadamw.flower.local.certs import write_certificates

    host = list(dict.fromkeys([*(host or []), "localhost", "127.0.0.1"]))  # the SuperLink's own processes ask here
    write_certificates(folder, host, nodes)
    typer.echo(f"{folder}: ca.crt, server.pem, server.key for {', '.join(host)}; {nodes} node keys, node-0 and on")


PASS_OPTIONS = {"allow_extra_args": True, "ignore_unknown_options": True}


@flower.command("superlink", context_settings=PASS_OPTIONS)
def superlink(context: typer.Context) -> None:
    """Start a SuperLink: Flower's, with some faults fixed.

    \b
    fedadamw flower superlink --ssl-ca-certfile certs/ca.crt --ssl-certfile certs/server.pem \\
      --ssl-keyfile certs/server.key --enable-supernode-auth --disable-runtime-dependency-installation \\
      --host 127.0.0.1 --port 8000 --database superlink.db

    It takes all options of `flower-superlink`; docs/federation.md lists the fixes.
    """
    _require_flower()
    from fedadamw.flower.local import services

    services.run_superlink(context.args)


@flower.command("supernode", context_settings=PASS_OPTIONS)
def supernode(context: typer.Context) -> None:
    """Start a SuperNode: Flower's, with some faults fixed.

    \b
    fedadamw flower supernode --superlink fl.example.org:8443 --root-certificates ca.crt \\
      --auth-supernode-private-key node-0 --node-config 'partition-id=0 state-dir="/var/lib/fedadamw"'

    It takes all options of `flower-supernode`; docs/federation.md lists the fixes.
    """
    _require_flower()
    from fedadamw.flower.local import services

    services.run_supernode(context.args)


@flower.command("demo", short_help="Run a recipe on nodes of this machine.")
def demo(
    recipe: Recipe = None,
    settings: Settings = None,
    nodes: Annotated[
        int | None, typer.Option(min=1, help="Number of SuperNodes, each a process; 4, or as many as --data.")
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="A node's own file or folder of data, for partition.kind=nodes; once for each node."),
    ] = None,
    held_out: Annotated[
        float | None, typer.Option(help="With --data: share of its own data that each node holds out.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for everything; by default runs/flower-demo, numbered if that exists.")
    ] = None,
    quiet: Quiet = False,  # noqa: FBT002
) -> None:
    """Run a recipe on a SuperLink and SuperNodes of this machine, with TLS and node authentication.

    \b
    fedadamw flower demo
    fedadamw flower demo digits --nodes 2 -s training.rounds=3 --out runs/small-demo
    fedadamw flower demo sites.yaml --data a.csv --data b.csv --data c.csv --held-out 0.2
    """
    _require_flower()
    from fedadamw.cli.tables import print_run
    from fedadamw.flower.local.demo import next_free_folder, plan_nodes, run_demo
    from fedadamw.runner.folder import RunFolder
    from fedadamw.settings.load import load

    each = plan_nodes(nodes, data or [], held_out)
    few = [f"partition.clients={len(each)}", f"training.clients_per_round={len(each)}", "threads=1"]
    few += ["partition.kind=nodes"] if data else ["training.rounds=10", "training.evaluate_every=1"]
    experiment = load(recipe or "digits", [*few, *(settings or [])])
    folder = run_demo(
        experiment,
        out or next_free_folder(Path("runs/flower-demo")),
        nodes=each,
        say=(lambda _: None) if quiet else say,
    )
    if not quiet:
        print_run(RunFolder(folder).records())
        typer.echo(RunFolder(folder).contents)
