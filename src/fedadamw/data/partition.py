"""Partition N samples over clients, as index arrays.

Every sample is used at most once. A partition is two arrays, for any number of clients.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedadamw.data.samples import Array
from fedadamw.validation import InputError


@dataclass(frozen=True, eq=False)
class Partition(Sequence[Array]):
    """The sample numbers of each client: `partition[i]` is the index array of client i."""

    samples: Array  # (used,) sample numbers, client after client
    ends: Array  # (clients,) where each client's samples end
    names: tuple[str, ...] | None = None  # of natural clients

    @staticmethod
    def from_owner(owner: Array, clients: int) -> "Partition":
        """Build a partition from the client of each sample (N,), -1 if none."""
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
        """Number of samples of each client, (clients,)."""
        return np.diff(self.ends, prepend=0)

    def counts(self, labels: Array, classes: int) -> Array:
        """Return the number of samples of each client and class, (clients, classes)."""
        owner = np.repeat(np.arange(len(self)), self.sizes)
        flat = np.bincount(owner * classes + labels[self.samples], minlength=len(self) * classes)
        return flat.reshape(len(self), classes)

    @property
    def fingerprint(self) -> str:
        """A digest of every client's samples."""
        digest = hashlib.sha256()
        for array in (self.samples, self.ends):
            digest.update(np.ascontiguousarray(array, dtype=np.int64).tobytes())
        return digest.hexdigest()[:16]


def partition_mix(labels: Array, clients: int, concentration: float, generator: np.random.Generator) -> Partition:
    """Return the paper's partition: clients of equal size, each with a class mix ~ Dirichlet(concentration).

    All clients draw at once from the remaining samples. If they draw more of a class than remain, these are shared at
    random and the clients draw again without that class, so the last draws depend on which classes remain.
    """
    sizes = np.full(clients, len(labels) // clients)
    classes = int(labels.max()) + 1
    remaining = np.bincount(labels, minlength=classes)
    mixes = generator.dirichlet(np.full(classes, concentration), clients)
    taken = np.zeros((clients, classes), dtype=np.int64)
    while (need := sizes - taken.sum(1)).any():
        asking = np.flatnonzero(need)
        wanted = generator.multinomial(need[asking], _restrict(mixes[asking], remaining))
        granted = _grant(wanted, remaining, generator)
        taken[asking] += granted
        remaining -= granted.sum(0)
    return _deal(labels, taken, generator)


def _restrict(mixes: Array, remaining: Array) -> Array:
    """Restrict class mixes (clients, classes) to classes with samples; an empty mix becomes the remaining shares."""
    available = mixes * (remaining > 0)
    total = available.sum(1, keepdims=True)
    fallback = np.broadcast_to(remaining / remaining.sum(), mixes.shape)
    restricted: Array = np.where(total > 1e-12, available / np.maximum(total, 1e-12), fallback)
    return restricted


def _grant(wanted: Array, remaining: Array, generator: np.random.Generator) -> Array:
    """Reduce `wanted` (clients, classes) at random to the `remaining` samples (classes,)."""
    granted: Array = wanted.copy()
    for c in np.flatnonzero(wanted.sum(0) > remaining):
        granted[:, c] = generator.multivariate_hypergeometric(wanted[:, c], remaining[c], method="marginals")
    return granted


def partition_dirichlet(
    labels: Array, clients: int, concentration: float, minimum: int, generator: np.random.Generator
) -> Partition:
    """Spread each class over clients by Dirichlet(concentration): unequal sizes, at least `minimum` samples.

    Clients below the minimum get random samples from those above it, with no redraws: so any concentration works.
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
    return Partition.from_owner(_top_up(owner, clients, minimum, generator), clients)


def _top_up(owner: Array, clients: int, minimum: int, generator: np.random.Generator) -> Array:
    """Move random samples of `owner` (N,) from clients above `minimum` to those below it."""
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
    """Partition at random; sizes differ by at most one."""
    each, more = divmod(len(labels), clients)
    sizes = np.full(clients, each)
    sizes[:more] += 1
    return Partition(generator.permutation(len(labels)), np.cumsum(sizes))


def partition_by_classes(labels: Array, clients: int, per_client: int, generator: np.random.Generator) -> Partition:
    """Give each client `per_client` classes, and divide each class evenly among the clients that hold it."""
    names, labels = np.unique(labels, return_inverse=True)  # skips classes without samples
    classes = len(names)
    if per_client > classes:
        raise InputError(f"{per_client} classes per client, but the data has {classes}")
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


def partition_by_column(values: Array, minimum: int = 1) -> Partition:
    """Make one natural client of each value of a column, in sorted order, but of none with fewer samples."""
    names, owner = np.unique(values, return_inverse=True)
    kept = np.bincount(owner) >= minimum
    if not kept.any():
        raise InputError(f"none of {len(kept):,} clients has {minimum:,} samples or more")
    numbers = np.where(kept, np.cumsum(kept) - 1, -1)
    partition = Partition.from_owner(numbers[owner], int(kept.sum()))
    return replace(partition, names=tuple(str(name) for name in names[kept]))


def _deal(labels: Array, taken: Array, generator: np.random.Generator) -> Partition:
    """Deal out random samples of each class: `taken` (clients, classes) has the numbers."""
    owner = np.full(len(labels), -1, dtype=np.int64)
    for c in range(taken.shape[1]):
        members = generator.permutation(np.flatnonzero(labels == c))
        holders = np.repeat(np.arange(len(taken)), taken[:, c])
        owner[members[: len(holders)]] = holders
    return Partition.from_owner(owner, len(taken))


def hold_out(
    partition: Partition, share: float, generator: np.random.Generator, rows: Array | None = None
) -> tuple[Partition, Partition]:
    """Return what each client trains on, and its own held-out samples: about `share` of them, drawn at random.

    A client with two samples or more holds out at least one and trains on at least one. rows: the row of each sample
    in the data (N,), if several samples may come from one: they stay together, as a sample does that a client has
    several times. Raises InputError if clients share a sample: what one holds out another would train on.
    """
    owner = np.repeat(np.arange(len(partition)), partition.sizes)
    unit = np.arange(len(owner))  # of each sample: what is held out whole
    if rows is not None:
        unit = np.unique(owner * (int(rows.max(initial=0)) + 1) + rows[partition.samples], return_inverse=True)[1]
    elif not np.diff(np.sort(partition.samples)).all():
        names, numbers = np.unique(partition.samples, return_inverse=True)
        unit = np.unique(owner * len(names) + numbers, return_inverse=True)[1]
        _check_apart(names, numbers, owner)
    units = np.full(int(unit.max(initial=-1)) + 1, 0)
    units[unit] = owner  # the client of each
    held = _draw_held_out(units, len(partition), share, generator)[unit]
    return _select(partition, owner, ~held), _select(partition, owner, held)


def _check_apart(names: Array, numbers: Array, owner: Array) -> None:
    """Raise InputError if samples `names[numbers]` (used,) belong to several owners."""
    of_one = np.empty(len(names), np.int64)
    of_one[numbers] = owner
    shared = names[numbers[of_one[numbers] != owner]]
    if len(shared):
        raise InputError(
            f"a share cannot be held out: sample {shared[0]} belongs to several clients, so that what one holds out "
            "another trains on"
        )


def _draw_held_out(owner: Array, clients: int, share: float, generator: np.random.Generator) -> Array:
    """Return which of the units with these owners (n,) are held out, (n,) bool."""
    sizes = np.bincount(owner, minlength=clients)
    counts = np.where(sizes > 1, np.clip(np.rint(sizes * share), 1, np.maximum(sizes - 1, 1)), 0).astype(np.int64)
    order = np.lexsort((generator.random(len(owner)), owner))  # each client's units together, in random order
    rank = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    held = np.zeros(len(owner), dtype=bool)
    held[order[rank < counts[owner[order]]]] = True
    return held


def _select(partition: Partition, owner: Array, chosen: Array) -> Partition:
    """Return the chosen samples (used,) bool of each client, in the order they had."""
    sizes = np.bincount(owner[chosen], minlength=len(partition))
    return replace(partition, samples=partition.samples[chosen], ends=np.cumsum(sizes))
