"""The server's half as a Flower ServerApp: the simulator's run, with its folder, whose clients are nodes."""

import json
import shlex
import shutil
from pathlib import Path
from uuid import uuid4

import yaml
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedadamw.checkpoint import CheckpointError, write_atomically
from fedadamw.engine.codecs import make_codec
from fedadamw.engine.record import Record
from fedadamw.engine.uploads import Uploads
from fedadamw.flower.protocol import RunFacts
from fedadamw.flower.server.check_upload import UploadChecker
from fedadamw.flower.server.clients import ClientRegistry
from fedadamw.flower.server.events import Events
from fedadamw.flower.server.messenger import Messenger
from fedadamw.flower.server.monitor import NO_MONITOR, Monitor
from fedadamw.flower.server.rounds import Nodes
from fedadamw.flower.server.spool import UploadSpool
from fedadamw.prepare.paths import mark_folders
from fedadamw.prepare.simulation import Prepared, check_settings
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.experiment import Experiment
from fedadamw.settings.load import load
from fedadamw.validation import InputError, check
from fedadamw.vector import Layout, statistics


def server_app(experiment: Path) -> ServerApp:
    """An app that runs the experiment of a YAML file on the nodes of its Grid.

    The run's configuration may have `settings` (KEY.PATH=VALUE, separated by spaces), `out` (the run's folder),
    `resume`, and `metrics-port` and `metrics-host` for Prometheus.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        given = context.run_config
        try:
            settings, port = shlex.split(str(given.get("settings", ""))), int(given.get("metrics-port", 0))
        except ValueError as error:
            raise InputError(f"the run's configuration: {error}") from None
        resume = given.get("resume", False)
        check(isinstance(resume, bool), f"resume={resume!r}: give true or false, without quotes")
        chosen = load(str(experiment), settings)
        out = Path(str(given.get("out") or f"runs/flower-{context.run_id}"))
        with Monitor(port, str(given.get("metrics-host", "127.0.0.1"))) as monitor:
            run(chosen, grid, out, resume=bool(resume), monitor=monitor)

    return app


def run(experiment: Experiment, grid: Grid, out: Path, *, resume: bool = False, monitor: Monitor = NO_MONITOR) -> None:
    """Run `experiment` in the folder `out`, new or to be gone on with, on the nodes of `grid`."""
    from fedadamw.runner.execute import execute
    from fedadamw.runner.progress import Progress

    experiment = experiment.model_copy(update={"checkpoint_every": 1})  # so that no round is lost, here or on a node
    folder = RunFolder(out.resolve())
    if resume and folder.started:
        folder.check_settings(experiment)
    else:
        check(not folder.used, f"{out} {folder.content} already; go on with resume=true, or choose another out")

    def on_round(record: Record) -> None:
        progress.round(record)
        monitor.record_round(record)

    with Progress(experiment.training, quiet=False) as progress:
        execute(
            experiment,
            folder,
            resume=resume,
            on_start=progress.start,
            on_round=on_round,
            make_clients=lambda prepared: nodes_of(experiment, prepared, grid, folder, monitor),
        )
    print(folder.contents, flush=True)  # which `flwr log` shows


def federation_of(folder: RunFolder) -> str:
    """The name that nodes know a run by, for good; a new one for a run that has not begun."""
    path = folder.path / "federation"
    if not folder.started:
        folder.path.mkdir(parents=True, exist_ok=True)
        write_atomically(path, uuid4().hex.encode())
    elif not path.is_file():
        raise CheckpointError(f"{path}: is missing; nodes know their memories of the run by it")
    return path.read_text()


def nodes_of(
    experiment: Experiment, prepared: Prepared, grid: Grid, folder: RunFolder, monitor: Monitor = NO_MONITOR
) -> Nodes:
    """The nodes of `grid` as the clients of the prepared run."""
    f, t, algorithm, workspace = experiment.federation, experiment.training, prepared.algorithm, prepared.workspace
    check_settings(experiment, remote=True)
    check(prepared.ranks.size == 1, "a federation's server is one process")
    spool_folder = folder.path / "spool"
    shutil.rmtree(spool_folder, ignore_errors=True)
    spool_folder.mkdir(parents=True)
    facts: RunFacts = {
        "settings": yaml.safe_dump(
            mark_folders(experiment).model_dump(mode="json", exclude={"device", "threads", "trackers"})
        ),
        "about": json.dumps(prepared.facts),
        "federation": federation_of(folder),
    }
    uploads = Uploads(algorithm, make_codec(t.upload, t.keep))
    server = algorithm.server_init(workspace.y.clone())
    template = uploads.template(algorithm.broadcast(server))
    shapes = type(template)(*(t.new_zeros(()).expand(t.shape) for t in template))  # without their memory
    layout = Layout.of_tensors(statistics(workspace.module))
    first = workspace.statistics.clone()
    checker = UploadChecker(t, uploads, shapes, first, layout)
    spool = UploadSpool(checker, first, spool_folder)
    events, messenger = Events(folder.path / "events.jsonl", monitor), Messenger(grid, facts, checker.max_nbytes)
    registry = ClientRegistry(
        messenger,
        events,
        clients=len(prepared.partition),
        layout=int(workspace.layout.fingerprint[:12], 16),
        sizes=None if experiment.partition.kind == "nodes" else prepared.partition.sizes.tolist(),
        counts=f.sample_counts,
        most=f.max_samples,
    )
    return Nodes(
        f,
        messenger,
        registry,
        spool,
        events,
        seed=experiment.seed,
        clients_per_round=t.clients_per_round,
        state=type(server),
        sends_base=prepared.folding is not None,
    )
