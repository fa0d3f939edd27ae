"""Whether clients take unequal numbers of local steps, which algorithms with carried moments are told."""

from dataclasses import fields, replace

import numpy as np

from fedadamw.algorithm import AnyAlgorithm
from fedadamw.algorithms.classes import UNEQUAL_STEPS
from fedadamw.data.partition import Partition
from fedadamw.engine.parts import Halves
from fedadamw.engine.personal import WithPersonal, shared_part
from fedadamw.settings.experiment import Experiment


def has_unequal_steps(experiment: Experiment, partition: Partition, *, remote: bool = False) -> bool:
    """Return whether moments that are averaged can be of unequal numbers of gradients.

    They can if clients' devices or samples differ in how many local steps they are for, or if that is not known, and
    with buffered rounds, where clients start from versions of the model with unequal counts; not if equal devices fill
    a buffer all at once. remote: the clients are Flower's nodes.
    """
    t, devices = experiment.training, experiment.devices
    all_at_once = not remote and devices is None and t.updates_per_version == t.clients_at_once
    if t.buffered and not all_at_once:
        return True
    if devices is not None and devices.sets_steps:
        return True
    if t.steps:
        return False
    if experiment.partition.kind == "nodes":
        return True
    batches = -(-partition.sizes // t.batch_size)
    single = partition.sizes % t.batch_size == 1  # a last batch of one sample, which BatchNorm may merge into another
    return len(np.unique(batches)) > 1 or len(np.unique(single)) > 1


def tell_unequal_steps(algorithm: AnyAlgorithm, halves: Halves | None, *, unequal: bool) -> AnyAlgorithm:
    """Return the algorithm, told whether clients take unequal numbers of steps; those of `halves` are told in place.

    A client's own numbers, of which it is the only client, are not concerned.
    """
    for half in () if halves is None else halves.named.values():
        half.replace_algorithm(_tell(half.algorithm, unequal=unequal))
    if isinstance(algorithm, WithPersonal):
        return replace(algorithm, shared=_tell(algorithm.shared, unequal=unequal))
    return _tell(algorithm, unequal=unequal)


def is_told_unequal_steps(algorithm: AnyAlgorithm) -> bool:
    """Return what `algorithm` was told; False for one that does not ask."""
    return bool(getattr(shared_part(algorithm), UNEQUAL_STEPS, False))


def _tell(algorithm: AnyAlgorithm, *, unequal: bool) -> AnyAlgorithm:
    kind: type = type(algorithm)
    asks = any(field.name == UNEQUAL_STEPS for field in fields(kind))
    return replace(algorithm, **{UNEQUAL_STEPS: unequal}) if asks else algorithm  # type: ignore[type-var]  # a dataclass
