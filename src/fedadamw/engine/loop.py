"""The loop engine: the sampled clients of a round one after the other, their uploads summed as they come.

Memory does not grow with the number of clients: one workspace, one running sum.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fedadamw.engine.client import Answer, Client
from fedadamw.engine.task import Task
from fedadamw.vector import Vector, nbytes


class Shard(NamedTuple):
    """One sampled client of a round."""

    client: int
    samples: Any  # (n,) index array
    memory: Any  # what the algorithm left there, or None


class Listener(Protocol):
    """Who wants to know of each client whose answer counts, before the next one trains."""

    def __call__(self, shard: Shard, answer: Answer) -> None:
        """One client has answered."""


class RoundResult(NamedTuple):
    """The weighted mean of a round's answers and what came with it."""

    up: Any  # the algorithm's Up, averaged; None where no client answered
    statistics: Vector | None
    train_loss: float  # weighted mean of the clients' mean losses
    answered: int
    rejected: int  # clients left out for a number that is not finite
    up_bytes: int  # of all clients that answered, counted from the tensors


class _Mean:
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

    def result(self) -> list[Tensor]:
        assert self.total is not None
        return [total / self.weight for total in self.total]


def run_round(
    worker: Client,
    round_: int,
    down: Any,
    statistics: Vector,
    shards: Iterable[Shard],
    listeners: Sequence[Listener] = (),
) -> RoundResult:
    """Train every client of `shards` from `down`; the mean of what the finite ones send."""
    mean = _Mean()
    answered = rejected = up_bytes = 0
    up_type: Any = None
    for shard in shards:
        answer = worker.train(shard.client, shard.samples, round_, down, shard.memory, statistics)
        if not answer.finite:
            rejected += 1
            continue
        up_type = type(answer.up)
        mean.add((*answer.up, answer.statistics, answer.loss), _weight(worker, answer))
        up_bytes += nbytes((*answer.up, answer.statistics))
        answered += 1
        for listener in listeners:
            listener(shard, answer)
        del answer  # the next client trains without this one's vectors
    if not answered:
        return RoundResult(None, None, float("nan"), 0, rejected, 0)
    *up, mean_statistics, loss = mean.result()
    return RoundResult(up_type(*up), mean_statistics, float(loss), answered, rejected, up_bytes)


def _weight(worker: Client, answer: Answer) -> float:
    return float(answer.samples) if worker.training.weighting == "samples" else 1.0


def evaluate(worker: Client, task: Task, x: Vector, statistics: Vector) -> tuple[float, float]:
    """Loss and accuracy of the global model on the held-out set."""
    work = worker.workspace
    work.load(x, statistics)
    work.module.eval()
    with torch.no_grad():
        return task.evaluate(work.module)
