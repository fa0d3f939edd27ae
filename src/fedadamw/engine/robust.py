"""Means that some lying clients cannot move far: coordinate-wise median, trimmed mean, Multi-Krum.

    median          of each number (arXiv 1803.01498)
    trimmed-mean    of each number, without the `byzantine` largest and smallest (arXiv 1803.01498)
    krum            the mean of the S - f - 2 clients whose updates are closest to their S - f - 2 nearest
                    (Multi-Krum, arXiv 1703.02757), f = `byzantine` < (S - 2) / 2; what comes beside an update
                    (moments, statistics) is no part of that choice, and its median is taken

All keep a round's uploads in memory, and none looks at the clients' weights. Honest clients that differ much are taken
for liars, too: a price that the weighted mean does not have.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from fedadamw.engine.ranks import Team
from fedadamw.engine.round import Average
from fedadamw.validation import check


class Robust:
    """Collects what clients send, for a mean of that kind.

    folded: whether the last tensor is what an update adds to frozen weights, and so goes with the first, the update.
    """

    def __init__(self, kind: str, byzantine: int, *, folded: bool = False) -> None:
        self.kind, self.byzantine, self.folded, self.weight = kind, byzantine, folded, 0.0
        self._sent: list[list[Tensor]] = []

    def add(self, tensors: Iterable[Tensor], weight: float) -> None:
        if weight > 0:
            self._sent.append([t.clone() for t in tensors])
            self.weight += weight

    def sum_over(self, ranks: Team, *counts: int) -> list[int]:
        assert ranks.size == 1
        return list(counts)

    def result(self) -> list[Tensor]:
        if self.kind == "krum":
            chosen = krum(torch.stack([sent[0] for sent in self._sent]), self.byzantine)
            updates = {0, len(self._sent[0]) - 1} if self.folded else {0}
            fields = enumerate(map(torch.stack, zip(*self._sent, strict=True)))
            return [t[chosen].mean(0) if n in updates else median(t) for n, t in fields]
        reduce = median if self.kind == "median" else lambda t: trimmed(t, self.byzantine)
        return [reduce(torch.stack(field)) for field in zip(*self._sent, strict=True)]


def mean_of(kind: str, byzantine: int, *, folded: bool) -> Average | None:
    """The average of that name, see Robust; None for the weighted mean."""
    return None if kind == "weighted" else Robust(kind, byzantine, folded=folded)


def check_robust(kind: str, byzantine: int, clients: int, counted: str) -> None:
    """Raise InputError where so many clients a round cannot outvote the lying ones.

    counted: the setting that says how many.
    """
    needed = {"trimmed-mean": 2 * byzantine + 1, "krum": 2 * byzantine + 3}.get(kind, 1)
    check(
        clients >= needed,
        f"training.mean={kind!r} with byzantine={byzantine} needs {needed} clients a round, not {clients} ({counted})",
    )


def median(x: Tensor) -> Tensor:
    """The median over clients (S, ...) of each number: the mean of the middle two where S is even."""
    ordered, s = x.sort(0).values, len(x)
    return (ordered[(s - 1) // 2] + ordered[s // 2]) / 2


def trimmed(x: Tensor, count: int) -> Tensor:
    """The mean over clients (S, ...) of each number, without the `count` largest and smallest."""
    count = min(count, (len(x) - 1) // 2)
    return x.sort(0).values[count : len(x) - count].mean(0)


def krum(x: Tensor, byzantine: int) -> list[int]:
    """The clients, of updates x (S, d), that are closest to their nearest neighbours."""
    s = len(x)
    near = max(s - byzantine - 2, 1)
    distances = torch.cdist(x.double(), x.double()) ** 2
    distances.fill_diagonal_(torch.inf)
    scores = distances.sort(1).values[:, : min(near, s - 1)].sum(1)
    return sorted(scores.argsort(stable=True)[:near].tolist())
