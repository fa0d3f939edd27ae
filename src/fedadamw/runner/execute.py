"""Executes a run: prepare or resume, train, record, checkpoint, report."""

import hashlib
import signal
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import torch

from fedadamw.engine.best import Best, choose_best, read_best
from fedadamw.engine.clients import Clients
from fedadamw.engine.ranks import RankLostError
from fedadamw.engine.record import DivergedError, Record
from fedadamw.engine.round import Listener
from fedadamw.engine.simulate import Simulation
from fedadamw.engine.state import Saved, State
from fedadamw.io.yaml_text import read_yaml
from fedadamw.prepare.noise import known_sizes
from fedadamw.prepare.paths import DATA_PATHS, MODEL_PATHS, check_origins, list_plain_folders
from fedadamw.prepare.simulation import Prepared, prepare
from fedadamw.report.run_status import RunStatus, describe_resuming, describe_stopped
from fedadamw.runner.base_type import find_started, keep_type
from fedadamw.runner.client_losses import ClientLosses
from fedadamw.runner.client_scores import ClientScoresFile
from fedadamw.runner.counter import keep_counter
from fedadamw.runner.digest import settings_digest
from fedadamw.runner.folder import RunFolder
from fedadamw.runner.jobs_file import JobsFile
from fedadamw.runner.libraries import collector_paused
from fedadamw.runner.live_page import LivePage
from fedadamw.runner.manifest import build_manifest, warn_of_other_package
from fedadamw.runner.noise import keep_noise
from fedadamw.runner.partition_file import write_partition
from fedadamw.runner.privacy_file import write_sizes
from fedadamw.runner.step_kind import choose_step, share_step
from fedadamw.runner.tracking import Trackers, check_trackers
from fedadamw.settings.experiment import Experiment
from fedadamw.validation import check

if TYPE_CHECKING:
    from fedadamw.report.run_page import RunPage

OnRound = Callable[[Record], object]


class Settled(NamedTuple):
    """What may be saved: the state after a round whose record is on disk, and the best round until then."""

    state: State
    best: Best | None


class Interrupted(Exception):  # noqa: N818  (not an error)
    """Raised when a run was asked to stop, after its last complete round was saved."""


def execute(
    experiment: Experiment,
    folder: RunFolder,
    *,
    resume: bool,
    report: bool = True,
    on_start: Callable[[Simulation], object] = lambda _: None,
    on_round: OnRound = lambda _: None,
    make_clients: Callable[[Prepared], Clients] | None = None,
    prepare_run: Callable[[Experiment], Prepared] | None = None,
    listeners: Sequence[Listener] = (),
) -> Simulation:
    """Run `experiment` in `folder` to its last round and return the simulation; on Ctrl-C save and raise Interrupted.

    make_clients: makes the clients if they are not simulated in this process. prepare_run: makes model and data if
    they are not what the settings name. listeners: are called for each client's accepted answer.
    on_start gets the simulation before its first or next round, on_round each new record; a true value from one of
    them ends the run there. report: write the report at the end.
    Under torchrun this is for rank 0, and `follow` for the others.
    """
    check_trackers(experiment.trackers)
    if resume and folder.started:
        check_origins(experiment, folder.read_manifest().get("folders"), (*MODEL_PATHS, *DATA_PATHS))
    with collector_paused():
        remote = make_clients is not None
        kept = keep_type(experiment, find_started(folder, experiment) if resume else None)
        kept = keep_noise(kept, folder if resume and folder.started else None)
        prepared = prepare(kept, remote=remote) if prepare_run is None else prepare_run(kept)
        prepared = keep_counter(prepared, folder.read_manifest() if resume and folder.started else None)
    with folder.lock():
        folder.check_startable(experiment, resume=resume)  # again, now that no other process can change the folder
        page = LivePage(folder, experiment.training.rounds, lambda: open_page(folder, prepared), enabled=report)
        with page, Trackers(experiment, folder.path) as trackers:
            clients = None if make_clients is None else make_clients(prepared)
            simulation, best = _start_or_resume(experiment, folder, prepared, clients, resume=resume)
            simulation.listeners += listeners
            folder.note_end("")
            if not simulation.ranks.agree(stop=bool(on_start(simulation))):
                _train(experiment, folder, simulation, best, trackers, page, on_round)
            if simulation.account is not None:
                folder.note_end(simulation.account.describe_end(simulation.state.round, experiment.training.rounds))
            _warn_if_not_tuned(experiment, simulation)
        if report:
            write_report(folder, prepared)
    return simulation


def _start_or_resume(
    experiment: Experiment, folder: RunFolder, prepared: Prepared, clients: Clients | None, *, resume: bool
) -> tuple[Simulation, Best | None]:
    """Start the run in its folder, or resume it from its checkpoint, with its best round so far."""
    manifest, checkpoint = build_manifest(experiment, prepared), None
    started = folder.read_manifest() if resume and folder.started else None
    step = choose_step(prepared, started)
    if started is not None:
        folder.check_same(manifest)
        warn_of_other_package(experiment.algorithm_name, started)
        folder.adopt_changes(experiment)
        checkpoint = folder.load(experiment)
    else:
        folder.start(experiment, manifest if clients else {**manifest, "step": step})
        if experiment.privacy is not None:
            write_sizes(folder.path, known_sizes(experiment, prepared.partition))
    for of_clients in (ClientLosses(folder.path), ClientScoresFile(folder.path), JobsFile(folder.path)):
        of_clients.keep(0 if checkpoint is None else checkpoint[0])
    check_ranks_agree(experiment, prepared)
    memory_folder = folder.path / "clients" if experiment.client_memory == "disk" else None
    saved = None if checkpoint is None else Saved(*checkpoint)
    best = _read_best(saved, folder, experiment) if saved and experiment.keep_best else None
    step = share_step(step, prepared)
    return prepared.simulation(clients, step=step, memory_folder=memory_folder, saved=saved), best


def _read_best(saved: Saved, folder: RunFolder, experiment: Experiment) -> Best | None:
    """Return the best round that the checkpoint keeps; warns if it kept none of the rounds evaluated so far."""
    best = read_best(saved.tensors)
    key = "test_loss" if experiment.tests_model else "clients_mean"
    if best is None and any(record.get(key) is not None for record in folder.records()):
        warnings.warn(
            f"keep_best: the models of rounds 1 to {saved.round} were not kept; the best will be of the later rounds",
            stacklevel=2,
        )
    return best


def _train(
    experiment: Experiment,
    folder: RunFolder,
    simulation: Simulation,
    best: Best | None,
    trackers: Trackers,
    page: LivePage,
    on_round: OnRound,
) -> None:
    """Run the remaining rounds; on an interrupt or error, save the last complete round first."""
    settled, losses, scores = Settled(simulation.state, best), ClientLosses(folder.path), ClientScoresFile(folder.path)
    jobs = JobsFile(folder.path)
    try:
        for record in simulation.rounds():
            losses.append(record.round, simulation.losses)
            scores.append(record.round, simulation.scores)
            jobs.append(record.round, simulation.clients.ended_jobs)
            folder.append(record)
            settled = _settle(settled, record, simulation.state, experiment)  # its record is on disk: it may be saved
            stop = bool(on_round(record))
            trackers.log(record)
            last = stop or simulation.is_over(record.round)
            if last or record.round % experiment.checkpoint_every == 0:
                _save(folder, experiment, simulation, settled)
            page.update()
            if simulation.ranks.agree(stop=stop):
                break
    except KeyboardInterrupt as request:
        _save(folder, experiment, simulation, settled)
        raise Interrupted(f"saved after round {settled.state.round}") from request
    except OSError:
        raise
    except Exception as error:  # divergence, a lost rank, full memory, or an error of a user's function
        if isinstance(error, RankLostError) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher now ends all ranks
        try:
            _save(folder, experiment, simulation, settled)
        except (RuntimeError, MemoryError, OSError) as save_error:
            warnings.warn(f"round {settled.state.round} is not in the checkpoint: {save_error}", stacklevel=2)
        raise


def _warn_if_not_tuned(experiment: Experiment, simulation: Simulation) -> None:
    """Warn if a callback ended the run before the round after which the model is tuned for each client."""
    steps = 0 if experiment.personal is None else experiment.personal.finetune
    if steps and simulation.state.round < experiment.training.rounds:
        done = f"the run was ended after round {simulation.state.round} of {experiment.training.rounds}"
        warnings.warn(f"personal.finetune={steps}: no model was tuned, since {done}", stacklevel=2)


def _settle(before: Settled, record: Record, state: State, experiment: Experiment) -> Settled:
    """Return what to save after the round of `record`, in one value: an interrupt leaves this or the one before."""
    if not experiment.keep_best:
        return Settled(state, None)
    return Settled(state, choose_best(before.best, record, state, of_clients=not experiment.tests_model))


def _save(folder: RunFolder, experiment: Experiment, simulation: Simulation, settled: Settled) -> None:
    """Write the checkpoint: of the last complete round, with the model of the best one."""
    kept = {} if settled.best is None else settled.best.tensors()
    folder.save(settled.state.round, {**simulation.tensors(settled.state), **kept}, experiment)


def follow(
    experiment: Experiment,
    *,
    on_round: OnRound = lambda _: None,
    prepare_run: Callable[[Experiment], Prepared] | None = None,
) -> Simulation:
    """Run a rank other than 0: its share of every round, until the run ends or rank 0 stops or is lost."""
    with collector_paused():
        kept = keep_noise(keep_type(experiment, None), None)
        prepared = keep_counter(prepare(kept) if prepare_run is None else prepare_run(kept), None)
    check_ranks_agree(experiment, prepared)
    simulation = prepared.simulation(step=share_step(prepared.choose_step(), prepared))
    if simulation.ranks.agree():
        return simulation
    with suppress(DivergedError):  # rank 0 reports it
        for record in simulation.rounds():
            on_round(record)
            if simulation.ranks.agree():
                break
    return simulation


def check_ranks_agree(experiment: Experiment, prepared: Prepared) -> None:
    """Raise InputError if this rank's settings, data or partition differ from those of rank 0."""
    parts = [settings_digest(experiment), prepared.train.fingerprint, prepared.partition.fingerprint]
    parts += list_plain_folders(experiment)
    parts += [] if prepared.held_out is None else [prepared.held_out.fingerprint]
    digest = int(hashlib.sha256(" ".join(parts).encode()).hexdigest()[:15], 16)
    rank0_digest = torch.tensor([digest], device=prepared.device)
    prepared.ranks.broadcast([rank0_digest])
    rank = prepared.ranks.rank
    check(
        int(rank0_digest) == digest,
        f"rank {rank} has other settings or data than rank 0: start all with the same command",
    )


def open_page(folder: RunFolder, prepared: Prepared) -> "RunPage":
    """Return the page of a run, to be written with its records."""
    from fedadamw.report.run_page import RunPage

    counts, classes = prepared.class_counts, prepared.train.classes
    if counts.any():
        write_partition(folder.path, counts, classes, prepared.partition.names)
    settings = read_yaml(str(folder.config), folder.config.read_text())
    names = prepared.partition.names
    return RunPage(folder.path, settings, folder.read_manifest(), counts, classes, names=names)


def write_report(folder: RunFolder, prepared: Prepared) -> None:
    """Write curves.png and report.html of a run that ended, before its last round if a callback stopped it."""
    from fedadamw.report.run_page import write_curves

    records, rounds = folder.records(), prepared.experiment.training.rounds
    write_curves(folder.path, records)
    text = folder.ended or describe_stopped(len(records), rounds, describe_resuming(folder.path))
    open_page(folder, prepared).write(records, RunStatus(text))
