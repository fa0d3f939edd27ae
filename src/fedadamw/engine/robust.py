"""Means that tolerate malicious clients: coordinate-wise median, trimmed mean, Multi-Krum.

    median          of each number (arXiv 1803.01498)
    trimmed-mean    of each number, without the `byzantine` largest and smallest (arXiv 1803.01498)
    krum            the mean of the S - f - 2 clients whose updates are closest to their S - f - 2 nearest
                    (Multi-Krum, arXiv 1703.02757), f = `byzantine` < (S - 2) / 2; the other fields (moments,
                    statistics) do not enter that choice, and their median is taken

All keep a round's uploads in memory and ignore the clients' weights. They also leave out honest clients that differ
much from the others, which the weighted mean does not.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from fedadamw.validation import check


class RobustMean:
    """Collects a round's tensors and averages them by `kind`; not over ranks.

    folded: whether the last tensor is what an update adds to frozen weights, and so is averaged like the update.
    """

    def __init__(self, kind: str, byzantine: int, *, folded: bool = False) -> None:
        self.kind, self.byzantine, self.folded = kind, byzantine, folded
        self._sent: list[list[Tensor]] = []

    def add(self, tensors: Iterable[Tensor], weight: float) -> None:
        if weight > 0:
            self._sent.append([t.clone() for t in tensors])

    def sum_over_ranks(self, *counts: int) -> list[int]:
        return list(counts)

    def result(self) -> list[Tensor]:
        if self.kind == "krum":
            chosen = krum(torch.stack([sent[0] for sent in self._sent]), self.byzantine)
            updates = {0, len(self._sent[0]) - 1} if self.folded else {0}
            fields = enumerate(map(torch.stack, zip(*self._sent, strict=True)))
            return [t[chosen].mean(0) if n in updates else median(t) for n, t in fields]
        reduce = median if self.kind == "median" else lambda t: trimmed_mean(t, self.byzantine)
        return [reduce(torch.stack(field)) for field in zip(*self._sent, strict=True)]


def check_robust(kind: str, byzantine: int, clients: int, setting: str) -> None:
    """Raise InputError if `clients` a round are too few to outvote `byzantine` malicious ones.

    setting: the name of the setting that says how many clients there are.
    """
    needed = {"trimmed-mean": 2 * byzantine + 1, "krum": 2 * byzantine + 3}.get(kind, 1)
    check(
        clients >= needed,
        f"training.mean={kind!r} with byzantine={byzantine} needs {needed} clients a round, not {clients} ({setting})",
    )


def median(x: Tensor) -> Tensor:
    """The median over clients (S, ...) of each number: the mean of the middle two if S is even."""
    ordered, s = x.sort(0).values, len(x)
    return (ordered[(s - 1) // 2] + ordered[s // 2]) / 2


def trimmed_mean(x: Tensor, count: int) -> Tensor:
    """The mean over clients (S, ...) of each number, without the `count` largest and smallest."""
    count = min(count, (len(x) - 1) // 2)
    return x.sort(0).values[count : len(x) - count].mean(0)


def krum(x: Tensor, byzantine: int) -> list[int]:
    """The indices of the updates, of x (S, d), that are closest to their nearest neighbours."""
    s = len(x)
    near = max(s - byzantine - 2, 1)
    distances = torch.cdist(x.double(), x.double()) ** 2
    distances.fill_diagonal_(torch.inf)
    scores = distances.sort(1).values[:, : min(near, s - 1)].sum(1)
    return sorted(scores.argsort(stable=True)[:near].tolist())
