"""The samples that an experiment names, and their partition among clients."""

import warnings

import numpy as np

from fedadamw.data.partition import (
    Partition,
    hold_out,
    partition_by_classes,
    partition_by_column,
    partition_dirichlet,
    partition_iid,
    partition_mix,
)
from fedadamw.data.samples import Samples
from fedadamw.data.texts import Texts
from fedadamw.models.pretrained import Pretrained
from fedadamw.prepare import images, texts
from fedadamw.prepare.problem import MADE_IN_PYTHON, open_pretrained
from fedadamw.randomness import Purpose, numpy_generator
from fedadamw.settings.data import PYTHON
from fedadamw.settings.experiment import Experiment
from fedadamw.validation import InputError, check


def load_samples(experiment: Experiment, pretrained: Pretrained | None = None) -> tuple[Samples, Samples]:
    """Load the training and held-out samples of the experiment, after data.validation, max_train and max_test.

    pretrained: the experiment's model if it is open already.
    """
    data = experiment.data
    check(data.task != PYTHON, MADE_IN_PYTHON)
    pretrained = pretrained or open_pretrained(experiment)
    problem = texts if data.is_text else images
    train, test = problem.load(experiment, pretrained)
    generator = numpy_generator(experiment.seed, Purpose.SPLIT)
    if data.validation:
        rows = _rows(train)
        order = generator.permutation(rows[-1] + 1)
        count = round(len(order) * data.validation)
        check(
            0 < count < len(order), f"data.validation={data.validation:g} holds out {count} of {len(order):,} samples"
        )
        train, test = (train.select(_indices(rows, part)) for part in (order[count:], order[:count]))
    if data.max_train and data.max_train < len(train):
        train = train.select(generator.permutation(len(train))[: data.max_train])
    if data.max_test and data.max_test < len(test) and not data.validation:  # tuning uses all held-out samples
        test = test.select(generator.permutation(len(test))[: data.max_test])
    return train, test


def _rows(samples: Samples) -> np.ndarray:
    """Return the row of each sample in the data, (n,) ascending: a long text may be several samples."""
    rows = samples.rows if isinstance(samples, Texts) else None
    return np.arange(len(samples)) if rows is None else np.unique(rows, return_inverse=True)[1]


def _indices(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return the indices of `wanted` in the ascending `rows`, in the order of `wanted`."""
    first, stop = np.searchsorted(rows, wanted), np.searchsorted(rows, wanted, side="right")
    return np.concatenate([np.arange(a, b) for a, b in zip(first, stop, strict=True)])


def make_partition(experiment: Experiment, train: Samples) -> Partition:
    """Return the samples that each client trains on; raises InputError if a client has none."""
    return make_partitions(experiment, train)[0]


def make_partitions(experiment: Experiment, train: Samples) -> tuple[Partition, Partition | None]:
    """Return what each client trains on, and its own held-out samples with partition.held_out; see make_partition."""
    partition, share = _check_partition(experiment, train), experiment.partition.held_out
    if not share:
        return partition, None
    rows = _rows(train) if isinstance(train, Texts) and train.rows is not None else None
    return hold_out(partition, share, numpy_generator(experiment.seed, Purpose.HELD_OUT), rows)


def _check_partition(experiment: Experiment, train: Samples) -> Partition:
    partition = _draw_partition(experiment, train)
    empty = int((partition.sizes == 0).sum()) if experiment.partition.kind != "nodes" else 0
    check(empty == 0, f"partition: {empty} of {len(partition)} clients have no samples; use fewer clients")
    return partition


def _by_column(groups: np.ndarray, minimum: int) -> Partition:
    """Make a client of each of `groups` (n,) with `minimum` samples or more; warns if some have fewer."""
    partition = partition_by_column(groups, minimum)
    if left_out := len(np.unique(groups)) - len(partition):
        few = f"{left_out:,} of {len(partition) + left_out:,} clients have fewer than {minimum:,} samples"
        warnings.warn(f"partition.minimum={minimum}: {few} and are left out", stacklevel=5)
    return partition


def _draw_partition(experiment: Experiment, train: Samples) -> Partition:
    s, labels = experiment.partition, train.labels
    if s.kind == "nodes":
        return Partition(np.arange(0), np.zeros(s.clients, np.int64))
    generator = numpy_generator(experiment.seed, Purpose.PARTITION)
    if s.kind == "column":
        check(train.groups is not None, "partition.kind='column' needs partition.column, a column of the data")
        assert train.groups is not None
        return _by_column(train.groups, s.minimum)
    if s.clients > len(labels):
        raise InputError(f"partition.clients={s.clients:,} is more than the {len(labels):,} training samples")
    if s.kind == "mix":
        return partition_mix(labels, s.clients, s.concentration, generator)
    if s.kind == "dirichlet":
        return partition_dirichlet(labels, s.clients, s.concentration, s.minimum, generator)
    if s.kind == "iid":
        return partition_iid(labels, s.clients, generator)
    return partition_by_classes(labels, s.clients, s.classes_per_client, generator)
