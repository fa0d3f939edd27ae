"""Divide samples among clients: `fedadamw.partition.dirichlet(labels, clients=100, concentration=0.1)`.

Each function returns the sample numbers of every client, the same as a recipe with the same settings and seed has.
Labels are a sequence, an array or a tensor of n integers from 0.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from fedadamw.data.partition import (
    Partition,
    partition_by_classes,
    partition_by_column,
    partition_dirichlet,
    partition_iid,
    partition_mix,
)
from fedadamw.data.partition import hold_out as draw_held_out
from fedadamw.randomness import Purpose, numpy_generator
from fedadamw.validation import InputError, check, shorten

if TYPE_CHECKING:
    from fedadamw.api.picture import Picture

__all__ = ["Partition", "by_classes", "by_column", "dirichlet", "hold_out", "iid", "mix", "plot"]
Labels = Sequence[int] | np.ndarray | Tensor


def mix(labels: Labels, clients: int, concentration: float = 0.3, *, seed: int = 0) -> Partition:
    """Give clients equal sizes, each a class mix drawn from Dirichlet(concentration), as in the paper."""
    numbers = _to_labels(labels, clients)
    check(0 < concentration < inf, f"concentration={concentration:g} must be a number above 0")
    return partition_mix(numbers, clients, concentration, _generator(seed))


def dirichlet(
    labels: Labels, clients: int, concentration: float = 0.3, *, minimum: int = 1, seed: int = 0
) -> Partition:
    """Divide each class among the clients by Dirichlet(concentration): sizes differ, at least `minimum` samples."""
    numbers = _to_labels(labels, clients)
    check(0 < concentration < inf, f"concentration={concentration:g} must be a number above 0")
    return partition_dirichlet(numbers, clients, concentration, minimum, _generator(seed))


def by_classes(labels: Labels, clients: int, per_client: int = 2, *, seed: int = 0) -> Partition:
    """Give each client `per_client` classes, each class in equal parts."""
    return partition_by_classes(_to_labels(labels, clients), clients, per_client, _generator(seed))


def iid(samples: int | Labels, clients: int, *, seed: int = 0) -> Partition:
    """Divide at random into equal sizes. samples: their number, or their labels."""
    count = int(samples) if isinstance(samples, int | np.integer) else len(samples)
    check(count > 0, f"samples={count}: give at least 1")
    return partition_iid(_to_labels(np.zeros(count, np.int64), clients), clients, _generator(seed))


def by_column(values: Iterable[Any], *, minimum: int = 1) -> Partition:
    """Make one client of each value: `values` names the client of each sample, (n,).

    minimum: clients with fewer samples are left out. The partition's `names` are the values, by client.
    """
    check(isinstance(minimum, int | np.integer) and minimum >= 1, f"minimum={minimum}: give a whole number from 1")
    named = np.asarray(values.cpu() if isinstance(values, Tensor) else list(values))
    check(named.ndim == 1 and len(named) > 0, "values: give the client of each sample, one value each")
    return partition_by_column(named, minimum)


def hold_out(clients: Sequence[Any], share: float, *, seed: int = 0) -> tuple[Partition, Partition]:
    """Return what each client trains on and what it holds out: about `share` of its samples, drawn at random.

    A client with two samples or more holds out at least one and trains on at least one.
    """
    check(isinstance(share, int | float) and 0 < share < 1, f"share={shorten(share)} must be between 0 and 1")
    given = clients if isinstance(clients, Partition) else from_lists(clients, np.iinfo(np.int64).max)
    return draw_held_out(given, share, numpy_generator(_check_seed(seed), Purpose.HELD_OUT))


def plot(clients: Sequence[Any], labels: Labels, classes: Sequence[str] | None = None) -> "Picture":
    """Draw how many samples of each class each client has. classes: the names of labels 0, 1, and so on."""
    from fedadamw.api.picture import Picture
    from fedadamw.report.run_charts import partition_chart

    numbers = _to_labels(labels, count_clients(clients))
    count = int(numbers.max()) + 1
    names = [str(name) for name in (range(count) if classes is None else classes)]
    check(len(names) >= count, f"classes: {len(names)} names, but labels go up to {count - 1}")
    counts = from_lists(clients, len(numbers)).counts(numbers, len(names))
    return Picture(partition_chart(counts, names, width=420))


def count_clients(clients: Sequence[Any]) -> int:
    """Return the number of clients; raises InputError if `clients` is no list, or an empty one."""
    hint = "give a list of each client's sample numbers, as fedadamw.partition makes them"
    check(hasattr(clients, "__len__") and not isinstance(clients, Mapping), f"clients={shorten(clients)}: {hint}")
    check(len(clients) > 0, "clients: give at least one client's sample numbers")
    return len(clients)


def from_lists(clients: Sequence[Any], samples: int, name: str = "clients", *, may_be_empty: bool = False) -> Partition:
    """Return the partition with these sample numbers of each client; raises InputError if a number is not a sample.

    name: of the argument, for errors. may_be_empty: whether a client may have no samples.
    """
    if isinstance(clients, Partition):
        parts = [clients.samples]
        sizes = clients.sizes
    else:
        parts = [_to_numbers(f"{name}[{client}]", part) for client, part in enumerate(clients)]
        sizes = np.array([len(part) for part in parts], np.int64)
    empty = np.flatnonzero(sizes == 0)
    if len(empty) and not may_be_empty:
        raise InputError(f"{name}: {len(empty)} of {len(sizes)} have no samples, such as client {empty[0]}")
    numbers = np.concatenate(parts)
    wrong = numbers[(numbers < 0) | (numbers >= samples)]
    check(len(wrong) == 0, f"{name}: {shorten(wrong[:1].tolist())[1:-1]} is not a sample number, 0 to {samples - 1:,}")
    names = clients.names if isinstance(clients, Partition) else None
    return Partition(numbers, np.cumsum(sizes), names)


def _to_numbers(name: str, part: Any) -> np.ndarray:
    """Return the sample numbers of a client as an array (n,) of int64. name: for errors."""
    numbers = np.asarray(part.cpu() if isinstance(part, Tensor) else part)
    if numbers.ndim != 1 or (len(numbers) and numbers.dtype.kind not in "iu"):
        raise InputError(f"{name}: {shorten(part)} is not a list of sample numbers")
    return numbers.astype(np.int64)


def _to_labels(labels: Labels, clients: int) -> np.ndarray:
    """Return labels as an array (n,) of int64; raises InputError if they are none, or too few for the clients."""
    numbers = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    integers = numbers.ndim == 1 and numbers.dtype.kind in "iub" and (numbers >= 0).all()
    check(bool(integers), f"labels: {shorten(labels)} are not integers from 0, one for each sample")
    check(isinstance(clients, int | np.integer) and clients >= 1, f"clients={clients}: give a whole number from 1")
    check(clients <= len(numbers), f"clients={clients:,} is more than the {len(numbers):,} samples")
    return numbers.astype(np.int64)


def _generator(seed: int) -> np.random.Generator:
    return numpy_generator(_check_seed(seed), Purpose.PARTITION)


def _check_seed(seed: int) -> int:
    check(isinstance(seed, int | np.integer) and seed >= 0, f"seed={seed}: give a whole number from 0")
    return seed
