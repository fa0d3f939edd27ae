"""Runs an experiment as a Flower ServerApp: the simulator's run and run folder, with nodes as clients."""

import json
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import yaml
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedadamw.algorithm import AnyAlgorithm, ServerState
from fedadamw.checkpoint import CheckpointError, write_atomically
from fedadamw.engine.clients import Clients
from fedadamw.engine.codecs import make_codec
from fedadamw.engine.parts import InTurn, server_side
from fedadamw.engine.record import Record
from fedadamw.engine.uploads import Uploads
from fedadamw.engine.workspace import Workspace
from fedadamw.flower.protocol import RunFacts
from fedadamw.flower.server.buffered import BufferedNodes
from fedadamw.flower.server.check_sums import SumsChecker
from fedadamw.flower.server.check_upload import UploadChecker
from fedadamw.flower.server.clients import ClientRegistry
from fedadamw.flower.server.collect import Collector
from fedadamw.flower.server.evaluate import SumsCollector
from fedadamw.flower.server.events import Events
from fedadamw.flower.server.jobs import JobCollector
from fedadamw.flower.server.messenger import Messenger
from fedadamw.flower.server.monitor import NO_MONITOR, Monitor
from fedadamw.flower.server.pixels import PixelSums
from fedadamw.flower.server.rounds import Nodes
from fedadamw.flower.server.scoring import Scoring
from fedadamw.flower.server.spool import UploadSpool
from fedadamw.prepare.base import with_type
from fedadamw.prepare.client_privacy import has_client_privacy
from fedadamw.prepare.counter import is_told_unequal_steps
from fedadamw.prepare.paths import mark_folders
from fedadamw.prepare.problem import Facts, ImageFacts
from fedadamw.prepare.simulation import Prepared
from fedadamw.runner.asked_file import AskedFile
from fedadamw.runner.base_type import describe_type
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.experiment import Experiment
from fedadamw.settings.load import load
from fedadamw.validation import InputError, check
from fedadamw.vector import Layout, Vector, statistics


def server_app(experiment: Path) -> ServerApp:
    """Return an app that runs the experiment of a YAML file on the nodes of its Grid.

    The run's configuration may have `settings` (KEY.PATH=VALUE, separated by spaces), `out` (the run's folder),
    `resume`, and `metrics-port` and `metrics-host` for Prometheus.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        config = context.run_config
        try:
            settings, port = shlex.split(str(config.get("settings", ""))), int(config.get("metrics-port", 0))
        except ValueError as error:
            raise InputError(f"the run's configuration: {error}") from None
        resume = config.get("resume", False)
        check(isinstance(resume, bool), f"resume={resume!r}: give true or false, without quotes")
        out = Path(str(config.get("out") or f"runs/flower-{context.run_id}"))
        changed = load(str(experiment), settings)
        with Monitor(port, str(config.get("metrics-host", "127.0.0.1"))) as monitor:
            run(changed, grid, out, resume=bool(resume), monitor=monitor)

    return app


def run(experiment: Experiment, grid: Grid, out: Path, *, resume: bool = False, monitor: Monitor = NO_MONITOR) -> None:
    """Run `experiment` on the nodes of `grid`; start in the new folder `out`, or resume the run in it."""
    from fedadamw.runner.execute import execute
    from fedadamw.runner.progress import Progress

    experiment = experiment.model_copy(update={"checkpoint_every": 1})  # no round is lost on the server or a node
    folder = RunFolder(out.resolve())
    if resume and folder.started:
        folder.check_settings(experiment)
    else:
        check(not folder.used, f"{out} {folder.content} already; resume it with resume=true, or choose another out")

    def on_round(record: Record) -> None:
        progress.round(record)
        monitor.record_round(record)

    with Progress(experiment.training, quiet=False) as progress:
        execute(
            experiment,
            folder,
            resume=resume,
            on_start=lambda simulation: progress.start(simulation.state.round),
            on_round=on_round,
            make_clients=lambda prepared: connect_nodes(experiment, prepared, grid, folder, monitor),
        )
    if folder.ended:
        print(folder.ended, flush=True)
    print(folder.contents, flush=True)  # `flwr log` shows it


def read_federation_name(folder: RunFolder) -> str:
    """Return the permanent name by which nodes know a run; write a new one if the run has not begun."""
    path = folder.path / "federation"
    if not folder.started:
        folder.path.mkdir(parents=True, exist_ok=True)
        write_atomically(path, uuid4().hex.encode())
    elif not path.is_file():
        raise CheckpointError(f"{path}: is missing; nodes find their memories of the run by it")
    return path.read_text()


def connect_nodes(
    experiment: Experiment, prepared: Prepared, grid: Grid, folder: RunFolder, monitor: Monitor = NO_MONITOR
) -> Clients:
    """Return the nodes of `grid` as the clients of the prepared run."""
    check(prepared.ranks.size == 1, "a federation's server is one process")
    halves, events = prepared.halves, Events(folder.path / "events.jsonl", monitor)
    parts = [(prepared.workspace, prepared.algorithm)]
    if halves is not None:
        parts = [(half.workspace, half.algorithm) for half in halves.named.values()]
    checkers = [build_checker(experiment, *part) for part in parts]
    facts = collect_facts(experiment, prepared, folder)
    largest = max(checker.max_nbytes for checker in checkers)
    if experiment.training.client_evaluation:
        largest = max(largest, SumsChecker.max_nbytes)
    messenger = Messenger(grid, facts, largest)
    registry = build_registry(experiment, prepared, messenger, events)
    sends_base, nodes = halves is not None or prepared.folding is not None, []
    asked = None if experiment.privacy is None else AskedFile(folder.path, new=not folder.started)
    scoring = build_scoring(experiment, prepared, messenger, registry, events)
    for name, (workspace, algorithm), checker in zip(("spool", "spool-second"), parts, checkers, strict=False):
        spool = build_spool(checker, workspace.shared_statistics.clone(), folder.path / name)
        server = server_side(algorithm, experiment.training.outer)
        state = type(server.server_init(workspace.shared.clone()))
        collector = build_collector(experiment, messenger, registry, spool, events, asked)
        nodes.append(make_nodes(experiment, collector, state, scoring, sends_base=sends_base))
    if registry.pixels is not None:
        add_pixel_statistics(cast("ImageFacts", prepared.facts), folder, nodes[0], registry.pixels)
        messenger.facts, registry.pixels = collect_facts(experiment, prepared, folder), None
    return nodes[0] if halves is None else InTurn(*nodes)


def build_collector(
    experiment: Experiment,
    messenger: Messenger,
    registry: ClientRegistry,
    spool: UploadSpool,
    events: Events,
    asked: AskedFile | None,
) -> Collector:
    """Build what collects the uploads. asked: where requests are noted before they are sent, with privacy."""
    federation, training = experiment.federation, experiment.training
    common = (federation, messenger, registry, spool, events)
    if training.buffered:
        return JobCollector(*common, training, experiment.seed)
    keep_places = has_client_privacy(experiment)
    return Collector(*common, training.clients_per_round, keep_places=keep_places, asked_file=asked)


def make_nodes(
    experiment: Experiment,
    collector: Collector,
    state: type[ServerState],
    scoring: Scoring | None,
    *,
    sends_base: bool,
) -> Nodes:
    """Return the nodes whose uploads `collector` collects, as clients of the run."""
    training = experiment.training
    common = (experiment.federation, collector, experiment.seed, training.clients_per_round, state)
    if isinstance(collector, JobCollector):
        return BufferedNodes(*common, sends_base=sends_base, scoring=scoring)
    return Nodes(*common, sends_base=sends_base, scoring=scoring)


def add_pixel_statistics(facts: ImageFacts, folder: RunFolder, nodes: Nodes, pixels: PixelSums) -> None:
    """Add mean and std of the pixels to `facts`: those of the run in `folder`, or of the first round's nodes."""
    begun: Mapping[str, Any] = folder.read_manifest()["data"] if folder.started else {}
    facts["mean"], facts["std"] = (begun["mean"], begun["std"]) if begun else pixels.pool(nodes.wait_for_first_round())


def collect_facts(experiment: Experiment, prepared: Prepared, folder: RunFolder) -> RunFacts:
    """Return the facts about the run that every request carries."""
    dtype = describe_type(experiment, prepared.workspace.module) or prepared.experiment.model.dtype
    marked = with_type(mark_folders(prepared.experiment), dtype)  # nodes have the base in the server's type
    settings = marked.model_dump(mode="json", exclude={"device", "threads", "trackers"})
    return {
        "settings": yaml.safe_dump(settings),
        "about": json.dumps(prepared.facts),
        "federation": read_federation_name(folder),
        "unequal_steps": is_told_unequal_steps(prepared.algorithm),
    }


def build_checker(experiment: Experiment, workspace: Workspace, algorithm: AnyAlgorithm) -> UploadChecker:
    """Build the checker of uploads, for the shapes and types of the algorithm's honest upload."""
    training = experiment.training
    uploads = Uploads(algorithm, make_codec(training.upload, training.keep))
    template = uploads.template(algorithm.broadcast(algorithm.server_init(workspace.shared.clone())))
    shapes = type(template)(*(t.new_zeros(()).expand(t.shape) for t in template))  # without their memory
    travel = {name: t for name, t in statistics(workspace.module).items() if name not in workspace.personal}
    layout = Layout.of_tensors(travel)
    tells_loss = experiment.privacy is None or experiment.privacy.unit != "sample"
    return UploadChecker(training, uploads, shapes, workspace.shared_statistics.clone(), layout, tells_loss=tells_loss)


def build_spool(checker: UploadChecker, like: Vector, folder: Path) -> UploadSpool:
    """Build the spool in `folder`, which is emptied."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return UploadSpool(checker, like, folder)


def build_registry(experiment: Experiment, prepared: Prepared, messenger: Messenger, events: Events) -> ClientRegistry:
    """Build the registry of the clients that are online."""
    own_data = experiment.partition.kind == "nodes"
    return ClientRegistry(
        messenger,
        events,
        clients=len(prepared.partition),
        layout=int(prepared.workspace.layout.fingerprint[:12], 16),
        sizes=None if own_data else prepared.partition.sizes.tolist(),
        counts=experiment.federation.sample_counts,
        most=experiment.federation.max_samples,
        held_out=None if own_data or prepared.held_out is None else prepared.held_out.sizes.tolist(),
        evaluates=experiment.training.client_evaluation > 0,
        pixels=make_pixel_sums(experiment, prepared.facts),
    )


def make_pixel_sums(experiment: Experiment, facts: Facts) -> PixelSums | None:
    """Return what gathers the sums of the nodes' pixels; None if mean and std are known, or there are no images."""
    if "shape" not in facts or "mean" in facts:
        return None
    told = "sums of pixels tell how many images a node has; give data.mean and data.std"
    check(experiment.federation.sample_counts, f"federation.sample_counts=false: {told}")
    return PixelSums(cast("ImageFacts", facts)["shape"], experiment.federation.max_samples)


def build_scoring(
    experiment: Experiment, prepared: Prepared, messenger: Messenger, registry: ClientRegistry, events: Events
) -> Scoring | None:
    """Build what has the model scored on nodes; None if it is not. Raises InputError if a metric needs predictions."""
    if not experiment.training.client_evaluation:
        return None
    unpooled = ", ".join(prepared.task.unpooled)
    check(
        not unpooled,
        f"training.client_evaluation: {unpooled} needs all predictions, and nodes answer only sums; a server without "
        "data (data.classes=[]) takes pearson for numbers",
    )
    collector = SumsCollector(experiment.federation, messenger, registry, SumsChecker(prepared.task), events)
    folds = prepared.folding is not None
    return Scoring(experiment, prepared.task, prepared.workspace, collector, sends_base=folds)
