"""One round: an engine trains the sampled clients, their uploads are summed as they come.

Engines differ in how they train: one after the other (loop.py), stacked on one axis (stacked.py). The sum
does not grow with the number of clients.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fedadamw.engine.client import Answer, Shard
from fedadamw.engine.ranks import ALONE, Team
from fedadamw.vector import Vector, nbytes


class Engine(Protocol):
    """Trains clients of one round."""

    def answers(
        self, shards: Iterable[Shard], round_: int, down: Any, statistics: Vector
    ) -> Iterator[tuple[Shard, Answer]]:
        """What each client of `shards` answers to `down` in round `round_`; valid until the next is asked for."""


class Listener(Protocol):
    """Who wants to know of each client whose answer counts, before the next one trains."""

    def __call__(self, shard: Shard, answer: Answer) -> None:
        """One client has answered."""


class RoundResult(NamedTuple):
    """The weighted mean of a round's answers and what came with it."""

    up: Any  # the algorithm's Up, averaged; None where no client answered
    statistics: Vector | None
    folded: Vector | None  # the mean of what `folded` made of the uploads
    train_loss: float  # weighted mean of the clients' mean losses
    answered: int
    rejected: int  # clients left out for a number that is not finite
    up_bytes: int  # of all clients that answered, counted from the tensors that travel


class Average(Protocol):
    """Makes one tuple of tensors of many."""

    weight: float  # of all that were added

    def add(self, tensors: Iterable[Tensor], weight: float) -> None:
        """Take in the tensors of one client; those of weight 0 count nothing."""

    def sum_over(self, ranks: Team, *counts: int) -> list[int]:
        """Take in what the other ranks have added; the sums of `counts` over all ranks."""

    def result(self) -> list[Tensor]:
        """The average of each tensor."""


class Mean:
    """A running weighted mean of tuples of tensors."""

    def __init__(self) -> None:
        self.total: list[Tensor] | None = None
        self.weight = 0.0

    def add(self, tensors: Iterable[Tensor], weight: float) -> None:
        if self.total is None:
            self.total = [weight * t for t in tensors]
        else:
            for total, t in zip(self.total, tensors, strict=True):
                total.add_(t, alpha=weight)
        self.weight += weight

    def sum_over(self, ranks: Team, *counts: int) -> list[int]:
        if ranks.size == 1:
            return list(counts)
        assert self.total is not None
        numbers = torch.tensor([self.weight, *counts], dtype=torch.float64, device=self.total[0].device)
        ranks.sum([*self.total, numbers])
        self.weight, *summed = numbers.tolist()
        return [round(n) for n in summed]

    def result(self) -> list[Tensor]:
        assert self.total is not None
        return [total / self.weight for total in self.total]


def run_round(
    engine: Engine,
    round_: int,
    down: Any,
    statistics: Vector,
    shards: Iterable[Shard],
    *,
    weighting: str,
    listeners: Sequence[Listener] = (),
    ranks: Team = ALONE,
    mean: Average | None = None,
    folded: Callable[[Any], Vector] | None = None,
) -> RoundResult:
    """Train every client of `shards` from `down`; the mean of what the finite ones send.

    weighting: "uniform", or "samples" for weights that are the clients' numbers of samples. ranks: who trains the
    round's other clients; at least one is here. mean: what averages, by default a weighted mean. folded: what the
    server makes of an upload and averages, too.
    """
    mean = Mean() if mean is None else mean
    answered = rejected = up_bytes = 0
    up_type: Any = None
    for shard, answer in engine.answers(shards, round_, down, statistics):
        up_type = type(answer.up)
        made = () if folded is None else (folded(answer.up),)
        sent = (*answer.up, answer.statistics.double(), answer.loss, *made)  # a constant's mean rounds back to it
        if answer.finite:
            mean.add(sent, float(answer.samples) if weighting == "samples" else 1.0)
            up_bytes += nbytes(answer.travels)
            answered += 1
            for listener in listeners:
                listener(shard, answer)
        else:
            rejected += 1
            mean.add([torch.zeros_like(t) for t in sent], 0.0)
        del answer, sent, made  # the next client trains without this one's vectors, and without those of its group
    answered, rejected, up_bytes = mean.sum_over(ranks, answered, rejected, up_bytes)
    if not answered:
        return RoundResult(None, None, None, float("nan"), 0, rejected, 0)
    means = mean.result()
    mean_folded = None if folded is None else means.pop()
    *up, averaged, loss = means
    averaged = averaged.to(statistics)
    return RoundResult(up_type(*up), averaged, mean_folded, float(loss), answered, rejected, up_bytes)
