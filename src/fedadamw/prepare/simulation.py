"""From settings to a simulation: data, partition, model and algorithm, built and checked before any work starts."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fedadamw.algorithm import AnyAlgorithm
from fedadamw.algorithms import registry
from fedadamw.blocks.blocks import Blocks
from fedadamw.data.images import Images
from fedadamw.data.partition import (
    Partition,
    partition_by_classes,
    partition_by_column,
    partition_dirichlet,
    partition_iid,
    partition_mix,
)
from fedadamw.data.samples import Samples
from fedadamw.data.texts import Texts
from fedadamw.engine.clients import Clients
from fedadamw.engine.ranks import Team, current_team
from fedadamw.engine.robust import check_robust
from fedadamw.engine.simulate import NOT_EXACT, Saved, Simulation
from fedadamw.engine.simulated import SimulatedClients
from fedadamw.engine.step import compiling_pays
from fedadamw.engine.workspace import Workspace, check_batch_norm
from fedadamw.models.lora import Folding
from fedadamw.models.pretrained import Pretrained
from fedadamw.prepare import images, texts
from fedadamw.prepare.device import check_device, select_device
from fedadamw.prepare.malloc import keep_freed_memory
from fedadamw.prepare.problem import Facts, Problem, open_pretrained
from fedadamw.randomness import Purpose, numpy_generator
from fedadamw.settings.experiment import Experiment
from fedadamw.task import Task
from fedadamw.validation import InputError, check


@dataclass(frozen=True)
class Prepared:
    """Everything a run needs, loaded and checked; `simulation` makes it a run."""

    experiment: Experiment
    workspace: Workspace
    algorithm: AnyAlgorithm
    task: Task
    train: Samples
    test: Samples
    partition: Partition
    device: torch.device
    ranks: Team
    folding: Folding | None
    facts: Facts  # of the data: what is needed to build the model again

    def simulation(
        self, clients: Clients | None = None, *, memory_folder: Path | None = None, saved: Saved | None = None
    ) -> Simulation:
        """The run, from its beginning or from `saved`; its clients are simulated in this process unless given.

        memory_folder: keep simulated clients' memories in files there.
        """
        return Simulation(
            self.workspace,
            self.algorithm,
            self.task,
            self.experiment.training,
            self._simulated_clients(memory_folder) if clients is None else clients,
            ranks=self.ranks,
            folding=self.folding,
            saved=saved,
        )

    def _simulated_clients(self, memory_folder: Path | None) -> SimulatedClients:
        experiment = self.experiment
        return SimulatedClients(
            self.workspace,
            self.algorithm,
            self.task,
            self.partition,
            experiment.training,
            seed=experiment.seed,
            stack=experiment.stack or default_stack(experiment, self.device),
            may_loop=experiment.stack is None,
            compiled=compiles_steps(experiment, self.workspace.module, self.partition, self.device),
            memory_folder=memory_folder,
            ranks=self.ranks,
        )


def prepare(experiment: Experiment, *, remote: bool = False) -> Prepared:
    """Load and partition the data, build the model and the algorithm, and check that they fit.

    remote: the clients are Flower's nodes.
    """
    check_settings(experiment, remote=remote)
    device = select_device(experiment)
    ranks = current_team(device)
    if device.type == "cpu":
        keep_freed_memory()
    if experiment.threads or ranks.size > 1:
        torch.set_num_threads(experiment.threads or 1)
    pretrained = open_pretrained(experiment)
    train, test = samples_of(experiment, pretrained)
    partition = partition_of(experiment, train)
    model, task, facts = build_problem(experiment, pretrained, train, test, device)
    algorithm = algorithm_of(experiment, model)
    workspace = Workspace(model)
    check_batch_norm(workspace, task, partition, experiment.training)
    folding = Folding(model) if experiment.lora and experiment.lora.aggregate == "exact" else None
    return Prepared(experiment, workspace, algorithm, task, train, test, partition, device, ranks, folding, facts)


def check_settings(experiment: Experiment, *, remote: bool) -> None:
    """Raise InputError where settings that are each allowed do not go together, before anything is loaded or begun.

    remote: clients are Flower's nodes, with data that they have.
    """
    t, data, clients = experiment.training, experiment.data, experiment.partition.clients
    check_device("device", experiment.device)
    registry.check_startable(experiment.algorithm)
    (texts if data.is_text else images).check_named(experiment)
    picks = data.validation or data.max_train
    check(data.resident or not picks, "data.resident=false takes all samples: no data.validation, no data.max_train")
    known = experiment.partition.kind != "column"  # which has as many clients as it has values
    check(
        t.clients_per_round <= clients or not known,
        f"clients_per_round={t.clients_per_round} is more than the {clients} clients there are",
    )
    check_robust(t.mean, t.byzantine, t.clients_per_round, "training.clients_per_round")
    exact = experiment.lora is not None and experiment.lora.aggregate == "exact"
    check(not exact or registry.ALGORITHMS[experiment.algorithm_name].adds_mean, NOT_EXACT)
    if remote:
        _check_remote(experiment)
    else:
        own = experiment.partition.kind == "nodes"
        check(not own, "partition.kind='nodes' is the data that nodes have: it needs Flower, not a simulation")


def _check_remote(experiment: Experiment) -> None:
    """`check_settings` of what holds for nodes alone."""
    f, t = experiment.federation, experiment.training
    check(not t.diagnostics, "training.diagnostics looks at clients while they train: not elsewhere")
    check(
        f.sample_counts or t.weighting == "uniform", "federation.sample_counts=false needs training.weighting=uniform"
    )
    check_robust(t.mean, t.byzantine, f.quorum_of(t.clients_per_round), "federation.quorum")


def algorithm_of(experiment: Experiment, model: nn.Module) -> AnyAlgorithm:
    """The algorithm that the experiment names, for the blocks of `model` where it wants them."""
    name, settings = registry.parse_section(experiment.algorithm)
    blocks = Blocks.of(model, experiment.model.blocks) if registry.needs_blocks(name) else registry.NO_BLOCKS
    return registry.make(name, settings, blocks)


def build_problem(
    experiment: Experiment, pretrained: Pretrained | None, train: Samples, test: Samples, device: torch.device
) -> Problem:
    """Build the model on `device`, its fresh weights from the seed alone, and its task."""
    if isinstance(train, Texts):
        assert isinstance(test, Texts)
        return texts.build(experiment, pretrained, train, test, device)
    assert isinstance(train, Images)
    assert isinstance(test, Images)
    return images.build(experiment, pretrained, train, test, device)


def default_stack(experiment: Experiment, device: torch.device) -> int:
    """How many clients train at once unless the experiment says: one on a CPU, all of a round on a GPU."""
    return 1 if device.type == "cpu" else experiment.training.clients_per_round


def compiles_steps(experiment: Experiment, model: nn.Module, partition: Partition, device: torch.device) -> bool:
    """Whether local steps are compiled: as the experiment says, or if it saves time."""
    if experiment.compile != "auto":
        return experiment.compile == "on"
    t = experiment.training
    steps = t.steps or -(-int(partition.sizes.mean()) * (t.epochs or 1) // t.batch_size)
    d = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return compiling_pays(d, t.rounds * t.clients_per_round * steps, device)


def samples_of(experiment: Experiment, pretrained: Pretrained | None = None) -> tuple[Samples, Samples]:
    """The training and held-out samples that the experiment names, cut down as it says.

    pretrained: the experiment's model if it is open already.
    """
    data, pretrained = experiment.data, pretrained or open_pretrained(experiment)
    problem = texts if data.is_text else images
    train, test = problem.load(experiment, pretrained)
    generator = numpy_generator(experiment.seed, Purpose.SPLIT)
    if data.validation:
        rows = _rows(train)
        order = generator.permutation(rows[-1] + 1)
        held = round(len(order) * data.validation)
        check(0 < held < len(order), f"data.validation={data.validation:g} holds out {held} of {len(order):,} samples")
        train, test = (train.select(_places(rows, part)) for part in (order[held:], order[:held]))
    if data.max_train and data.max_train < len(train):
        train = train.select(generator.permutation(len(train))[: data.max_train])
    if data.max_test and data.max_test < len(test) and not data.validation:  # a choice wants all that is held out
        test = test.select(generator.permutation(len(test))[: data.max_test])
    return train, test


def _rows(samples: Samples) -> np.ndarray:
    """The row of the data that each sample comes from, (n,) rising: a long text may be several samples."""
    rows = samples.rows if isinstance(samples, Texts) else None
    return np.arange(len(samples)) if rows is None else np.unique(rows, return_inverse=True)[1]


def _places(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where the `wanted` of the rising `rows` are, in the order of `wanted`."""
    first, stop = np.searchsorted(rows, wanted), np.searchsorted(rows, wanted, side="right")
    return np.concatenate([np.arange(a, b) for a, b in zip(first, stop, strict=True)])


def partition_of(experiment: Experiment, train: Samples) -> Partition:
    """Who holds which training samples; each client at least one."""
    clients = _split(experiment, train)
    empty = int((clients.sizes == 0).sum()) if experiment.partition.kind != "nodes" else 0
    check(empty == 0, f"partition: {empty} of {len(clients)} clients have no samples; use fewer clients")
    return clients


def _split(experiment: Experiment, train: Samples) -> Partition:
    s, labels = experiment.partition, train.labels
    if s.kind == "nodes":
        return Partition(np.arange(0), np.zeros(s.clients, np.int64))
    generator = numpy_generator(experiment.seed, Purpose.PARTITION)
    if s.kind == "column":
        check(train.groups is not None, "partition.kind='column' needs partition.column, a column of the data")
        assert train.groups is not None
        return partition_by_column(train.groups)
    if s.clients > len(labels):
        raise InputError(f"partition.clients={s.clients:,} is more than the {len(labels):,} training samples")
    if s.kind == "mix":
        return partition_mix(labels, s.clients, s.concentration, generator)
    if s.kind == "dirichlet":
        return partition_dirichlet(labels, s.clients, s.concentration, s.minimum, generator)
    if s.kind == "iid":
        return partition_iid(labels, s.clients, generator)
    return partition_by_classes(labels, s.clients, s.classes_per_client, generator)
