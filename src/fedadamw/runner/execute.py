"""A run from settings to results: prepare or resume, train, record, checkpoint, report."""

import hashlib
import signal
import warnings
from collections.abc import Callable

import torch

from fedadamw.engine.clients import Clients
from fedadamw.engine.ranks import RankLostError
from fedadamw.engine.record import DivergedError, Record
from fedadamw.engine.simulate import Saved, Simulation
from fedadamw.io.yaml_text import read_yaml
from fedadamw.prepare.paths import DATA_PATHS, MODEL_PATHS, check_origins, list_plain_folders
from fedadamw.prepare.simulation import Prepared, prepare
from fedadamw.runner.folder import RunFolder, settings_digest
from fedadamw.runner.manifest import manifest_of
from fedadamw.runner.tracking import Trackers, check_trackers
from fedadamw.settings.experiment import Experiment
from fedadamw.validation import check

OnRound = Callable[[Record], None]


class Interrupted(Exception):  # noqa: N818  (not an error)
    """The run was asked to stop, and its last whole round is in the checkpoint."""


def execute(
    experiment: Experiment,
    folder: RunFolder,
    *,
    resume: bool,
    report: bool = True,
    on_start: Callable[[int], None] = lambda _: None,
    on_round: OnRound = lambda _: None,
    make_clients: Callable[[Prepared], Clients] | None = None,
) -> None:
    """Run `experiment` in `folder` to its last round; on Ctrl-C save and raise Interrupted.

    make_clients: makes the clients if they are not simulated in this process.
    on_start gets the number of rounds already done, on_round each new record; report: write the report at the end.
    Under torchrun this is for rank 0, and `follow` for the others.
    """
    check_trackers(experiment.trackers)
    if resume and folder.started:
        check_origins(experiment, folder.read_manifest().get("folders"), (*MODEL_PATHS, *DATA_PATHS))
    prepared = prepare(experiment, remote=make_clients is not None)
    with folder.locked():
        folder.check_startable(experiment, resume=resume)  # what came before the lock may have changed since
        with Trackers(experiment, folder.path) as trackers:
            clients = None if make_clients is None else make_clients(prepared)
            simulation = _begin(experiment, folder, prepared, clients, resume=resume)
            on_start(simulation.state.round)
            _train(experiment, folder, simulation, trackers, on_round)
        if report:
            write_report(folder, prepared)


def _begin(
    experiment: Experiment, folder: RunFolder, prepared: Prepared, clients: Clients | None, *, resume: bool
) -> Simulation:
    """Start the run in its folder, or resume it from its checkpoint."""
    manifest, checkpoint = manifest_of(experiment, prepared), None
    if resume and folder.started:
        folder.check_same(manifest)
        checkpoint = folder.load(experiment)
    else:
        folder.start(experiment, manifest)
    check_ranks_agree(experiment, prepared)
    memory_folder = folder.path / "clients" if experiment.client_memory == "disk" else None
    saved = None if checkpoint is None else Saved(*checkpoint)
    return prepared.simulation(clients, memory_folder=memory_folder, saved=saved)


def _train(
    experiment: Experiment, folder: RunFolder, simulation: Simulation, trackers: Trackers, on_round: OnRound
) -> None:
    """Run the rounds that are left; if they are stopped, the checkpoint holds the last complete one."""
    settled = simulation.state
    try:
        for record in simulation.rounds():
            folder.append(record)
            settled = simulation.state  # from here on a checkpoint of it has its record beside it
            on_round(record)
            trackers.log(record)
            if settled.round % experiment.checkpoint_every == 0 or settled.round == experiment.training.rounds:
                folder.save(settled.round, simulation.tensors(settled), experiment)
    except KeyboardInterrupt as request:
        folder.save(settled.round, simulation.tensors(settled), experiment)
        raise Interrupted from request
    except (RuntimeError, MemoryError) as error:  # it diverged, another rank is gone, memory is full
        if isinstance(error, RankLostError):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # whoever started the ranks ends them all now
        try:
            folder.save(settled.round, simulation.tensors(settled), experiment)
        except (RuntimeError, MemoryError, OSError) as second:
            warnings.warn(f"round {settled.round} is not in the checkpoint: {second}", stacklevel=2)
        raise


def follow(experiment: Experiment) -> None:
    """Run a rank other than 0: its share of every round, until the end or until rank 0 is gone."""
    prepared = prepare(experiment)
    check_ranks_agree(experiment, prepared)
    try:
        for _ in prepared.simulation().rounds():
            pass
    except DivergedError:
        pass  # which rank 0 reports


def check_ranks_agree(experiment: Experiment, prepared: Prepared) -> None:
    """Raise InputError in a rank whose settings, data or partition differ from those of rank 0."""
    parts = [settings_digest(experiment), prepared.train.fingerprint, prepared.partition.fingerprint]
    parts += list_plain_folders(experiment)
    digest = int(hashlib.sha256(" ".join(parts).encode()).hexdigest()[:15], 16)
    of_first = torch.tensor([digest], device=prepared.device)
    prepared.ranks.broadcast([of_first])
    rank = prepared.ranks.rank
    check(int(of_first) == digest, f"rank {rank} has other settings or data than rank 0: start all with the same line")


def write_report(folder: RunFolder, prepared: Prepared) -> None:
    """Write curves.png and report.html of a finished run."""
    from fedadamw.report.run_page import write_run_page

    classes = prepared.train.classes
    counts = prepared.partition.counts(prepared.train.labels, len(classes))
    settings = read_yaml(str(folder.config), folder.config.read_text())
    write_run_page(folder.path, folder.records(), settings, folder.read_manifest(), counts, classes)
