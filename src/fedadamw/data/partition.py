"""Who holds which samples: a partition of N samples over clients, as index arrays.

Every sample is used at most once. A partition is two arrays, however many clients there are.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedadamw.validation import InputError

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Partition(Sequence[Array]):
    """Sample numbers of each client: `partition[i]` is the index array of client i."""

    samples: Array  # (used,) sample numbers, client after client
    ends: Array  # (clients,) where each client's samples end

    @staticmethod
    def from_owner(owner: Array, clients: int) -> "Partition":
        """From the client of each sample, (N,); -1 is nobody's."""
        order = np.argsort(owner, kind="stable")
        sizes = np.bincount(owner[owner >= 0], minlength=clients)
        return Partition(order[len(owner) - sizes.sum() :], np.cumsum(sizes))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, client: int) -> Array:  # type: ignore[override]
        if not 0 <= client < len(self.ends):
            raise IndexError(f"client {client} of {len(self.ends)}")
        start = self.ends[client - 1] if client else 0
        return self.samples[start : self.ends[client]]

    @property
    def sizes(self) -> Array:
        """Samples a client, (clients,)."""
        return np.diff(self.ends, prepend=0)

    def counts(self, labels: Array, classes: int) -> Array:
        """Samples of each class a client, (clients, classes)."""
        owner = np.repeat(np.arange(len(self)), self.sizes)
        flat = np.bincount(owner * classes + labels[self.samples], minlength=len(self) * classes)
        return flat.reshape(len(self), classes)

    @property
    def fingerprint(self) -> str:
        """A digest of who holds what."""
        digest = hashlib.sha256()
        for array in (self.samples, self.ends):
            digest.update(np.ascontiguousarray(array, dtype=np.int64).tobytes())
        return digest.hexdigest()[:16]


def partition_mix(labels: Array, clients: int, concentration: float, generator: np.random.Generator) -> Partition:
    """The paper's split: disjoint, the same size a client, class mix ~ Dirichlet(concentration).

    All clients draw at once from what is left; a class that is asked for more than it has is shared out at random
    among those that ask, and they draw again without it, so the last classes left bend the last draws.
    """
    sizes = np.full(clients, len(labels) // clients)
    classes = int(labels.max()) + 1
    left = np.bincount(labels, minlength=classes)
    mixes = generator.dirichlet(np.full(classes, concentration), clients)
    taken = np.zeros((clients, classes), dtype=np.int64)
    while (need := sizes - taken.sum(1)).any():
        asking = np.flatnonzero(need)
        wanted = generator.multinomial(need[asking], _restricted(mixes[asking], left))
        granted = _granted(wanted, left, generator)
        taken[asking] += granted
        left -= granted.sum(0)
    return _deal(labels, taken, generator)


def _restricted(mixes: Array, left: Array) -> Array:
    """Class mixes (clients, classes) over the classes that have samples left; where that leaves nothing, by supply."""
    open_ = mixes * (left > 0)
    total = open_.sum(1, keepdims=True)
    fallback = np.broadcast_to(left / left.sum(), mixes.shape)
    restricted: Array = np.where(total > 1e-12, open_ / np.maximum(total, 1e-12), fallback)
    return restricted


def _granted(wanted: Array, left: Array, generator: np.random.Generator) -> Array:
    """`wanted` (clients, classes) cut down at random to `left` (classes,) where a class is asked for too much."""
    granted: Array = wanted.copy()
    for c in np.flatnonzero(wanted.sum(0) > left):
        granted[:, c] = generator.multivariate_hypergeometric(wanted[:, c], left[c], method="marginals")
    return granted


def partition_dirichlet(
    labels: Array, clients: int, concentration: float, minimum: int, generator: np.random.Generator
) -> Partition:
    """Each class spread over clients by Dirichlet(concentration): unequal sizes, but `minimum` samples at least.

    The minimum is met by moving random samples from clients above it to those below, not by drawing again, so it
    holds however small the concentration is.
    """
    if clients * minimum > len(labels):
        raise InputError(
            f"{clients} clients with at least {minimum} samples each need {clients * minimum:,}; "
            f"there are {len(labels):,}"
        )
    owner = np.empty(len(labels), dtype=np.int64)
    for c in range(int(labels.max()) + 1):
        members = generator.permutation(np.flatnonzero(labels == c))
        shares = generator.dirichlet(np.full(clients, concentration))
        owner[members] = np.repeat(np.arange(clients), generator.multinomial(len(members), shares))
    return Partition.from_owner(_topped_up(owner, clients, minimum, generator), clients)


def _topped_up(owner: Array, clients: int, minimum: int, generator: np.random.Generator) -> Array:
    """`owner` (N,), with random samples of clients above `minimum` given to those below it."""
    sizes = np.bincount(owner, minlength=clients)
    receivers = np.repeat(np.arange(clients), np.maximum(minimum - sizes, 0))
    order = generator.permutation(len(owner))
    order = order[np.argsort(owner[order], kind="stable")]  # each client's samples together, in random order
    rank = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    spare = order[rank >= minimum]
    moved: Array = owner.copy()
    moved[generator.permutation(spare)[: len(receivers)]] = receivers
    return moved


def partition_iid(labels: Array, clients: int, generator: np.random.Generator) -> Partition:
    """A random split into parts whose sizes differ by one at most."""
    each, more = divmod(len(labels), clients)
    sizes = np.full(clients, each)
    sizes[:more] += 1
    return Partition(generator.permutation(len(labels)), np.cumsum(sizes))


def partition_by_classes(labels: Array, clients: int, per_client: int, generator: np.random.Generator) -> Partition:
    """Each client holds `per_client` classes; each class is split evenly among the clients that hold it."""
    names, labels = np.unique(labels, return_inverse=True)  # without classes that no sample has
    classes = len(names)
    if per_client > classes:
        raise InputError(f"{per_client} classes a client, but the data has {classes}")
    if clients * per_client < classes:
        raise InputError(f"{clients} clients with {per_client} classes each cannot hold all {classes} classes")
    held = np.zeros(classes)
    holders: list[list[int]] = [[] for _ in range(classes)]
    for i in range(clients):  # the least held classes, ties at random: all are held equally often
        for c in np.argsort(held + generator.random(classes) / 2)[:per_client]:
            held[c] += 1
            holders[c].append(i)
    owner = np.empty(len(labels), dtype=np.int64)
    for c in range(classes):
        members = generator.permutation(np.flatnonzero(labels == c))
        for i, part in zip(generator.permutation(holders[c]), np.array_split(members, len(holders[c])), strict=True):
            owner[part] = i
    return Partition.from_owner(owner, clients)


def partition_by_column(values: Array) -> Partition:
    """Natural clients: one for each value of a column, in sorted order."""
    names, owner = np.unique(values, return_inverse=True)
    return Partition.from_owner(owner, len(names))


def _deal(labels: Array, taken: Array, generator: np.random.Generator) -> Partition:
    """Random samples of each class, as many a client as `taken` (clients, classes) says."""
    owner = np.full(len(labels), -1, dtype=np.int64)
    for c in range(taken.shape[1]):
        members = generator.permutation(np.flatnonzero(labels == c))
        holders = np.repeat(np.arange(len(taken)), taken[:, c])
        owner[members[: len(holders)]] = holders
    return Partition.from_owner(owner, len(taken))
