"""The server's half as a Flower ServerApp: the simulator's run, with its folder, whose clients are nodes."""

import json
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedadamw.checkpoint import CheckpointError, write_atomically
from fedadamw.engine.record import Record
from fedadamw.flower.server.clients import ClientRegistry
from fedadamw.flower.server.events import Events
from fedadamw.flower.server.messenger import Messenger
from fedadamw.flower.server.monitor import NO_MONITOR, Monitor
from fedadamw.flower.server.rounds import Rounds
from fedadamw.flower.server.spool import UploadSpool
from fedadamw.prepare.simulation import Prepared, check_settings
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.experiment import Experiment
from fedadamw.settings.load import load
from fedadamw.settings.paths import mark_folders
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
            elsewhere=lambda prepared: rounds_of(experiment, prepared, grid, folder, monitor),
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


def rounds_of(
    experiment: Experiment, prepared: Prepared, grid: Grid, folder: RunFolder, monitor: Monitor = NO_MONITOR
) -> Rounds:
    """The engine that asks the nodes of `grid`."""
    f, t, simulation = experiment.federation, experiment.training, prepared.simulation
    check_settings(experiment, remote=True)
    spool_folder = folder.path / "spool"
    shutil.rmtree(spool_folder, ignore_errors=True)
    spool_folder.mkdir(parents=True)
    about: Mapping[str, Any] = json.loads(json.dumps(prepared.about))
    facts = {
        "settings": yaml.safe_dump(
            mark_folders(experiment).model_dump(mode="json", exclude={"device", "threads", "trackers"})
        ),
        "about": json.dumps(about),
        "federation": federation_of(folder),
    }
    state, events = simulation.state, Events(folder.path / "events.jsonl", monitor)
    model, like = simulation.workspace.module, simulation.uploads.like(simulation.algorithm.broadcast(state.server))
    up = type(like)(*(t.new_zeros(()).expand(t.shape) for t in like))  # their shapes, not their memory
    spool = UploadSpool(t, simulation.uploads, up, state.statistics, Layout.of_tensors(statistics(model)), spool_folder)
    messenger = Messenger(grid, facts, spool.most)
    layout = int(simulation.workspace.layout.fingerprint[:12], 16)
    registry = ClientRegistry(
        messenger,
        events,
        clients=len(simulation.clients),
        layout=layout,
        sizes=None if experiment.partition.kind == "nodes" else prepared.partition.sizes.tolist(),
        counts=f.sample_counts,
        most=f.max_samples,
    )
    return Rounds(
        f,
        messenger,
        registry,
        spool,
        events,
        seed=experiment.seed,
        clients_per_round=t.clients_per_round,
        state=type(state.server),
        base=lambda: None if simulation.folding is None else simulation.state.base,
    )
