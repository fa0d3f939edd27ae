"""From settings to a simulation: data, partition, model and algorithm, built and checked before any work starts."""

from typing import Any, NamedTuple

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
from fedadamw.data.sources import Samples
from fedadamw.data.texts import Texts
from fedadamw.engine.ranks import Team, team
from fedadamw.engine.robust import check_robust
from fedadamw.engine.simulate import NOT_EXACT, Simulation
from fedadamw.engine.step import compiling_pays
from fedadamw.models.lora import Folding
from fedadamw.prepare import images, texts
from fedadamw.prepare.device import check_device, select_device
from fedadamw.prepare.learned import Learned
from fedadamw.prepare.malloc import keep_freed_memory
from fedadamw.randomness import Purpose, numpy_generator
from fedadamw.settings.experiment import Experiment
from fedadamw.validation import InputError, check


class Prepared(NamedTuple):
    """Everything a run needs, built."""

    simulation: Simulation
    train: Samples
    test: Samples
    partition: Partition
    device: torch.device
    ranks: Team
    about: dict[str, Any]  # of the data: what the model must be built again with


def prepare(experiment: Experiment, *, remote: bool = False) -> Prepared:
    """Load the data, split it, build the model and the algorithm. remote: others train, with data that they have."""
    check_settings(experiment, remote=remote)
    device = select_device(experiment)
    ranks = team(device)
    if device.type == "cpu":
        keep_freed_memory()
    if experiment.threads or ranks.size > 1:
        torch.set_num_threads(experiment.threads or 1)
    train, test = samples_of(experiment)
    clients = partition_of(experiment, train)
    model, task, about = learned(experiment, train, test, device)
    algorithm = algorithm_of(experiment, model)
    simulation = Simulation(
        model,
        algorithm,
        task,
        clients,
        experiment.training,
        seed=experiment.seed,
        stack=experiment.stack or stack_for(experiment, device),
        may_loop=experiment.stack is None,
        compiled=compiled(experiment, model, clients, device),
        ranks=ranks,
        folding=Folding(model) if experiment.lora and experiment.lora.aggregate == "exact" else None,
    )
    return Prepared(simulation, train, test, clients, device, ranks, about)


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


def learned(experiment: Experiment, train: Samples, test: Samples, device: torch.device) -> Learned:
    """The model on `device`, its fresh weights by the seed alone, and what it learns of the samples."""
    if isinstance(train, Texts):
        assert isinstance(test, Texts)
        return texts.build(experiment, train, test, device)
    assert isinstance(train, Images)
    assert isinstance(test, Images)
    return images.build(experiment, train, test, device)


def stack_for(experiment: Experiment, device: torch.device) -> int:
    """How many clients train at once where the experiment does not say."""
    return 1 if device.type == "cpu" else experiment.training.clients_per_round


def compiled(experiment: Experiment, model: nn.Module, clients: Partition, device: torch.device) -> bool:
    """Whether local steps are compiled, as the experiment says or as it pays."""
    if experiment.compile != "auto":
        return experiment.compile == "on"
    t = experiment.training
    steps = t.steps or -(-int(clients.sizes.mean()) * (t.epochs or 1) // t.batch_size)
    d = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return compiling_pays(d, t.rounds * t.clients_per_round * steps, device)


def samples_of(experiment: Experiment) -> tuple[Samples, Samples]:
    """The training and held-out samples that the experiment names, cut down as it says."""
    data = experiment.data
    problem = texts if data.is_text else images
    train, test = problem.load(experiment)
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
