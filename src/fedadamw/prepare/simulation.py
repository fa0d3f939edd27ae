"""Build and check data, partition, model and algorithm from settings, before any training starts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fedadamw.algorithm import AnyAlgorithm
from fedadamw.algorithms import registry
from fedadamw.algorithms.classes import NO_BLOCKS
from fedadamw.blocks.blocks import Blocks
from fedadamw.data.images import Images
from fedadamw.data.partition import Partition
from fedadamw.data.samples import Samples
from fedadamw.data.texts import Texts
from fedadamw.devices.fleet import Fleet
from fedadamw.engine.clients import Clients
from fedadamw.engine.clock import with_clock
from fedadamw.engine.parts import Halves, InTurn
from fedadamw.engine.ranks import Team, current_team
from fedadamw.engine.simulate import Simulation
from fedadamw.engine.simulated import SimulatedClients
from fedadamw.engine.state import Saved
from fedadamw.engine.step import SAVED_S, Kind
from fedadamw.engine.workspace import Workspace, check_batch_norm
from fedadamw.models.activation_checkpoints import checkpoint_layers
from fedadamw.models.lora.means import Folding, make_folding
from fedadamw.models.pretrained import Pretrained
from fedadamw.prepare import images, texts
from fedadamw.prepare.adapters import RankPortions, build_halves, build_portions
from fedadamw.prepare.base import check_own_quantisation, warn_if_emulated, warn_if_not_stacked
from fedadamw.prepare.checks import check_settings
from fedadamw.prepare.choices import choose_step, default_stack
from fedadamw.prepare.client_evaluation import check_held_out
from fedadamw.prepare.client_privacy import build_client_privacy, check_client_problem
from fedadamw.prepare.counter import has_unequal_steps, tell_unequal_steps
from fedadamw.prepare.device import select_device
from fedadamw.prepare.devices import check_one_process
from fedadamw.prepare.malloc import keep_freed_memory
from fedadamw.prepare.moments import find_noise_in_moments
from fedadamw.prepare.nodes import check_no_memory
from fedadamw.prepare.noise import open_account, resolve_noise
from fedadamw.prepare.personal import build_parts
from fedadamw.prepare.privacy import sample_privacy
from fedadamw.prepare.private_problem import check_private_problem, warn_of_start
from fedadamw.prepare.problem import Facts, Problem, open_pretrained
from fedadamw.prepare.samples import load_samples, make_partitions
from fedadamw.prepare.start import Start, StartFacts, open_start
from fedadamw.randomness import Entropy, OperatingSystem, Seeded
from fedadamw.settings.experiment import Experiment
from fedadamw.task import Task


@dataclass(frozen=True)
class Prepared:
    """Everything a run needs, loaded and checked; `simulation` makes it a run."""

    experiment: Experiment  # with the noise that was searched for
    workspace: Workspace
    algorithm: AnyAlgorithm
    task: Task
    train: Samples
    test: Samples
    partition: Partition  # what clients train on
    held_out: Partition | None  # each client's own held-out samples
    device: torch.device
    ranks: Team
    folding: Folding | None
    halves: Halves | None  # of the adapters, with lora.aggregate=alternate
    portions: RankPortions | None  # of each client, with lora.ranks
    facts: Facts  # of the data, needed to build the model again
    fleet: Fleet  # the clients' devices
    start: StartFacts | None = None  # the run whose model this one starts from

    def simulation(
        self,
        clients: Clients | None = None,
        *,
        step: Kind | None = None,
        memory_folder: Path | None = None,
        saved: Saved | None = None,
        entropy: Entropy | None = None,
    ) -> Simulation:
        """Return the simulation, new or resumed from `saved`; without `clients` they are simulated in this process.

        step: how local steps are done; by default as for a new run. memory_folder: keep simulated clients' memories
        in files there. entropy: of noise over Flower, for tests; by default the operating system's.
        """
        if entropy is None:
            entropy = Seeded(self.experiment.seed) if clients is None else OperatingSystem()
        return Simulation(
            self.workspace,
            self.algorithm,
            self.task,
            self.experiment.training,
            self._simulated_clients(step or self.choose_step(), memory_folder) if clients is None else clients,
            ranks=self.ranks,
            folding=self.folding,
            halves=self.halves,
            account=open_account(self.experiment, self.partition, clients),
            saved=saved,
            client_privacy=build_client_privacy(self.experiment, entropy),
        )

    def choose_step(self, saved: Mapping[str, float] = SAVED_S) -> Kind:
        """Return how local steps of a new run are done: as the experiment says, or compiled if that saves time.

        saved: seconds that it saves a coordinate and step, by type of device.
        """
        d = self.workspace.layout.d
        return choose_step(self.experiment, d, float(self.partition.sizes.mean()), self.device, saved)

    @property
    def class_counts(self) -> np.ndarray:
        """Samples of each client and class, (clients, classes); no columns if the classes are unknown."""
        classes = len(self.train.classes)
        if classes == 0:
            return np.zeros((len(self.partition), 0), np.int64)
        return self.partition.counts(self.train.labels, classes)

    def _simulated_clients(self, step: Kind, memory_folder: Path | None) -> Clients:
        e, clients = self.experiment, self._untimed_clients(step, memory_folder)
        return with_clock(clients, self.fleet, e.training, e.federation, self.partition.sizes, e.seed)

    def _untimed_clients(self, step: Kind, memory_folder: Path | None) -> SimulatedClients | InTurn:
        halves = self.halves
        warn_if_not_stacked(self.experiment, self.device)
        warn_if_emulated(self.experiment, self.workspace.module, self.device)
        if halves is None:
            return self._clients_of(self.workspace, self.algorithm, step, memory_folder)
        return InTurn(
            *(
                self._clients_of(half.workspace, half.algorithm, step, memory_folder and memory_folder / name)
                for name, half in halves.named.items()
            )
        )

    def _steps_of(self, client: int) -> int | None:
        """Return a client's local steps, if they are not training's."""
        return self.fleet.steps_of(client, self.experiment.training, len(self.partition[client]))

    def _clients_of(
        self, workspace: Workspace, algorithm: AnyAlgorithm, step: Kind, memory_folder: Path | None
    ) -> SimulatedClients:
        experiment = self.experiment
        return SimulatedClients(
            workspace,
            algorithm,
            self.task,
            self.partition,
            experiment.training,
            seed=experiment.seed,
            stack=experiment.stack or default_stack(experiment, self.device),
            may_loop=experiment.stack is None,
            step=step,
            memory_folder=memory_folder,
            ranks=self.ranks,
            portions=self.portions,
            finetune=0 if experiment.personal is None else experiment.personal.finetune,
            held_out=self.held_out,
            steps_of=self._steps_of,
            privacy=sample_privacy(experiment, Seeded(experiment.seed)),
            client_privacy=build_client_privacy(experiment, Seeded(experiment.seed)),
        )


def prepare(experiment: Experiment, *, remote: bool = False) -> Prepared:
    """Load and partition the data, build the model and the algorithm, and check that they fit.

    remote: the clients are Flower's nodes.
    """
    check_settings(experiment, remote=remote)
    device = set_up_process(experiment)
    pretrained = open_pretrained(experiment)
    check_own_quantisation(experiment, pretrained)
    train, test = load_samples(experiment, pretrained)
    partition, held_out = make_partitions(experiment, train)
    start = open_start(experiment)
    if start is not None:
        warn_of_start(experiment, start.name)
    problem = build_problem(experiment, pretrained, train, test, device, start)
    prepared = assemble(experiment, problem, train, test, partition, device, held_out, remote=remote)
    return prepared if start is None else replace(prepared, start=start.facts)


def set_up_process(experiment: Experiment) -> torch.device:
    """Set threads and memory of this process as the experiment needs them, and return its device."""
    device = select_device(experiment)
    if device.type == "cpu":
        keep_freed_memory()
    if experiment.threads or not current_team(device, experiment.shards).alone:
        torch.set_num_threads(experiment.threads or 1)
    return device


def assemble(
    experiment: Experiment,
    problem: Problem,
    train: Samples,
    test: Samples,
    partition: Partition,
    device: torch.device,
    held_out: Partition | None = None,
    *,
    remote: bool = False,
) -> Prepared:
    """Build the algorithm for a problem on `device`, and check that it, the model and the partition fit.

    held_out: each client's own held-out samples, if there are any. remote: the clients are Flower's nodes.
    """
    model, task, facts = problem
    check_private_problem(experiment, problem, train, partition)
    experiment = resolve_noise(experiment, partition, remote=remote)
    if experiment.training.gradient_checkpointing:
        checkpoint_layers(model, experiment.model.name)
    workspace, algorithm = build_parts(experiment, model, build_algorithm)
    check_client_problem(experiment, workspace, facts)
    if remote:
        check_no_memory(experiment, algorithm, workspace)
    check_batch_norm(workspace, task, partition, experiment.training)
    if held_out is not None:
        check_held_out(experiment, task, held_out)
    portions = build_portions(experiment, workspace, len(partition))
    folding = make_folding(model, experiment.lora, None if portions is None else portions.scale)
    halves = build_halves(experiment, workspace, build_algorithm)
    unequal = has_unequal_steps(experiment, partition, remote=remote)
    algorithm = tell_unequal_steps(algorithm, halves, unequal=unequal)
    ranks = current_team(device, experiment.shards)
    check_one_process(experiment, ranks)
    fleet = Fleet.of(experiment.devices, len(partition), experiment.seed)
    data = (task, train, test, partition, held_out)
    return Prepared(experiment, workspace, algorithm, *data, device, ranks, folding, halves, portions, facts, fleet)


def build_algorithm(experiment: Experiment, model: nn.Module) -> AnyAlgorithm:
    """Return the algorithm that the experiment names, with the blocks of `model` if it uses them."""
    name, settings = registry.parse_section(experiment.algorithm)
    blocks = Blocks.of(model, experiment.model.blocks) if registry.needs_blocks(name) else NO_BLOCKS
    return registry.make(name, settings, blocks, find_noise_in_moments(experiment))


def build_problem(
    experiment: Experiment,
    pretrained: Pretrained | None,
    train: Samples,
    test: Samples,
    device: torch.device,
    start: Start | None = None,
) -> Problem:
    """Build the model on `device`, its fresh weights from the seed alone, and its task. start: other weights."""
    load_weights = None if start is None else start.load
    if isinstance(train, Texts):
        assert isinstance(test, Texts)
        return texts.build(experiment, pretrained, train, test, device, load_weights)
    assert isinstance(train, Images)
    assert isinstance(test, Images)
    return images.build(experiment, pretrained, train, test, device, load_weights)
