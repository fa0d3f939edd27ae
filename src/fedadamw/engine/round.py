"""One round: the sampled clients train from the broadcast, and their answers are averaged as they come.

The sum does not grow with the number of clients: each answer is added, and gone before the next client trains.

With training.normalize (FedNova, arXiv 2007.07481) the mean of a client's updates counts, whatever its steps K_i:

    mean delta  is  mean K * mean(delta_i / K_i)        both means by the same weights
    and of a field `square`, |delta_i|^2,  (mean K)^2 * mean(|delta_i|^2 / K_i^2)

All else of an upload is averaged as it is: moments, counters, and control variates, which are of a step already.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fedadamw.algorithm import AnyState
from fedadamw.engine.average import Average, Mean
from fedadamw.engine.client import Answer, Broadcast, Shard
from fedadamw.engine.clients import Clients
from fedadamw.engine.diagnostics import Diagnostics
from fedadamw.engine.discounts import Discounts
from fedadamw.engine.private_mean import PrivateMean
from fedadamw.engine.ranks import ALONE, Team
from fedadamw.engine.robust import RobustMean, check_robust
from fedadamw.engine.scale import scale_changes
from fedadamw.engine.workspace import Workspace, mixes_samples
from fedadamw.settings.training import TrainingSettings
from fedadamw.validation import check
from fedadamw.vector import Vector, nbytes

ONE_BY_ONE = "training.aggregation=buffered takes answers as they come, in one process"


class Listener(Protocol):
    """Called for each accepted answer, before the next client trains."""

    def __call__(self, shard: Shard, answer: Answer) -> None: ...


class Folding(Protocol):
    """Adds the exact mean of the clients' adapters, each a product of two factors, to frozen weights."""

    base: Vector  # (w,) the frozen weights

    @property
    def kind(self) -> str:
        """Its name in lora.aggregate."""

    def load(self, base: Vector) -> None:
        """Copy frozen weights (w,) into the module."""

    def product(self, y: Vector, client: int | None = None) -> Vector:
        """Return what the adapters of the models `y` (..., d) add to the frozen weights, (..., w).

        client: whose model it is, if clients scale their adapters differently; None: the server's.
        """

    def fold(self, base: Vector, product: Vector, x: Vector) -> tuple[Vector, Vector]:
        """Return the frozen weights (w,) and the model (d,) after a round, from the means of product and model."""


class Means(NamedTuple):
    """What a round's answers come to."""

    up: AnyState  # the algorithm's Up
    statistics: Vector  # (s,)
    product: Vector | None  # (w,) of the adapters, with `folding`
    loss: Tensor  # ()


@dataclass(frozen=True)
class Aggregation:
    """How the answers of a round become one.

    mean: weighted, median, trimmed-mean or krum (see robust.py); byzantine: the clients that these tolerate.
    folding: also average the product of each client's adapters. ranks: the processes that share the round.
    normalize: divide each update by the client's steps, and multiply their mean by the mean of these.
    """

    weighting: str = "uniform"  # or "samples": weights are the clients' numbers of samples
    mean: str = "weighted"
    byzantine: int = 0
    folding: Folding | None = None
    ranks: Team = ALONE
    normalize: bool = False

    def new_average(self) -> Average:
        """An empty average for one round."""
        if self.mean == "weighted":
            return Mean(self.ranks)
        return RobustMean(self.mean, self.byzantine, folded=self.folding is not None)

    def weight(self, answer: Answer) -> float:
        """The weight of a client's answer."""
        return float(answer.samples) if self.weighting == "samples" else 1.0

    def tensors(self, client: int, answer: Answer, down: AnyState) -> list[Tensor]:
        """What is averaged of an answer: Up's fields, statistics and loss; steps to normalize; the product to fold."""
        up, more = answer.up, []
        if self.normalize:
            up = scale_changes(up, 1 / answer.steps)
            more.append(answer.loss.new_tensor(answer.steps, dtype=torch.float64))
        if self.folding is not None:
            more.append(self.folding.product(down.x + answer.up.delta, client))
        statistics = answer.statistics.double()  # so that the mean of equal buffers is the buffer
        return [*up, statistics, answer.loss, *more]

    def read(self, means: Sequence[Tensor], up_type: Any, like: Vector) -> Means:
        """Return what the averages of `tensors` are. up_type: the algorithm's Up; like: the statistics' type."""
        left = list(means)
        product = None if self.folding is None else left.pop()
        steps = left.pop() if self.normalize else None
        *fields, statistics, loss = left
        up = up_type(*fields)
        return Means(up if steps is None else scale_changes(up, steps), statistics.to(like), product, loss)


class RoundResult(NamedTuple):
    """The weighted mean of a round's answers, and their counts."""

    up: AnyState  # the algorithm's Up, averaged; None if no client answered, and there is no noise
    statistics: Vector | None  # (s,)
    product: Vector | None  # (w,) mean product of the adapters, with `folding`
    train_loss: float  # weighted mean of the clients' mean losses; NaN with privacy of clients
    answered: int
    rejected: int  # answers with a number that is not finite
    up_bytes: int  # of all accepted answers, counted from the tensors that travel
    losses: dict[int, float | None]  # of each client asked or heard, None if its answer was not accepted, or private
    waited_s: float  # for other ranks, mean over the ranks; 0 with one
    lr: float  # that the server's step divides by
    aimed: AnyState | None = None  # `up` as if all clients had the round's learning rate, if they had not

    @property
    def only_up(self) -> AnyState | None:
        """`up`, if the server moves by nothing else."""
        return self.up if self.aimed is None else None


def listen_with(diagnostics: Diagnostics, broadcast: Broadcast) -> Listener:
    """Return what passes each accepted answer to `diagnostics`."""

    def listen(shard: Shard, answer: Answer) -> None:
        moments = getattr(answer.local, "moments", None)
        diagnostics.add(answer.local.y - broadcast.down.x, None if moments is None else moments.v, answer.likelihood)

    return listen


def run_round(
    clients: Clients,
    sampled: Sequence[int],
    broadcast: Broadcast,
    aggregation: Aggregation,
    listeners: Sequence[Listener] = (),
    private: PrivateMean | None = None,
    *,
    lr_at: Callable[[int], float] = lambda _: 1.0,
) -> RoundResult:
    """Train the `sampled` clients from `broadcast` and average the answers whose numbers are all finite.

    lr_at: the learning rate of each round (from 0). private: the mean with privacy of clients; statistics stay as they
    are then, and no loss is told.
    """
    average, ranks = aggregation.new_average() if private is None else private, aggregation.ranks
    discounts = Discounts(lr_at, broadcast.round)
    waited_s, answered, rejected, up_bytes = -ranks.waited_s, 0, 0, 0
    heard: dict[int, Tensor] = {}
    up_type: Any = None
    for shard, answer in clients.train(sampled, broadcast):
        up_type = type(answer.up)
        tensors = aggregation.tensors(shard.client, answer, broadcast.down)
        if answer.finite:
            average.add(tensors, discounts.add(answer, aggregation.weight(answer), up_type(*tensors[: len(answer.up)])))
            answered, up_bytes = answered + 1, up_bytes + nbytes(answer.travels)
            clients.accept(shard, answer)
            if private is None:
                heard[shard.client] = answer.loss.detach().clone()
            for listener in listeners:
                listener(shard, answer)
        else:
            rejected += 1
            average.add([torch.zeros_like(t) for t in tensors], 0.0)  # so that every rank has something to sum
        del answer, tensors  # the next client trains without this one's vectors
    answered, rejected, up_bytes = average.sum_over_ranks(answered, rejected, up_bytes)
    waited_s += ranks.waited_s
    losses, waited_s = _gather_losses(sampled, heard, waited_s, broadcast.statistics.device, ranks)
    counts = (answered, rejected, up_bytes, losses, waited_s, discounts.server_lr)
    if private is not None:
        return RoundResult(private.up_type(*private.result()), broadcast.statistics, None, nan, *counts)
    if not answered:
        return RoundResult(None, None, None, nan, *counts)
    return _read_means(average.result(), aggregation, discounts, up_type, broadcast.statistics, counts)


def _read_means(
    means: list[Tensor],
    aggregation: Aggregation,
    discounts: Discounts,
    up_type: Any,
    like: Vector,
    counts: tuple[int, int, int, dict[int, float | None], float, float],
) -> RoundResult:
    """Return the result of a round from its means; like: statistics."""
    up, statistics, product, loss = aggregation.read(means, up_type, like)
    aimed = discounts.aim(up_type(*means[: len(up)]))
    if aimed is not None:
        aimed = aggregation.read([*aimed, *means[len(up) :]], up_type, like).up
    return RoundResult(discounts.shrink(up), statistics, product, float(loss), *counts, aimed=aimed)


def _gather_losses(
    sampled: Sequence[int], heard: Mapping[int, Tensor], waited_s: float, device: torch.device, ranks: Team
) -> tuple[dict[int, float | None], float]:
    """Return the loss of each client of the round, of all ranks, and the mean of `waited_s`; one transfer."""
    clients = list(dict.fromkeys([*sampled, *heard]))
    table = torch.zeros(2, len(clients) + 1, dtype=torch.float64, device=device)  # losses, and whether there is one
    table[0, -1] = waited_s
    if heard:
        places = torch.tensor([clients.index(client) for client in heard], device=device)
        table[0, places], table[1, places] = torch.stack(list(heard.values())).to(table), 1.0
    ranks.sum([table])
    (*losses, waited_s), (*accepted, _) = table.tolist()
    known = zip(clients, losses, accepted, strict=True)
    return {client: loss if there else None for client, loss, there in known}, waited_s / ranks.size


def check_round(workspace: Workspace, training: TrainingSettings, clients: int, ranks: Team) -> None:
    """Raise InputError if a round of these settings cannot be run with so many clients and ranks."""
    asked, mean = training.clients_per_round, training.mean
    check(asked <= clients, f"clients_per_round={asked} is more than the {clients} clients of the partition")
    if training.buffered:
        check_buffer(training, clients)
        check(ranks.alone, f"{ranks.size} ranks: {ONE_BY_ONE}")
    check(asked >= ranks.size, f"{ranks.size} ranks for {asked} clients a round: use at most as many")
    check(mean == "weighted" or ranks.size == 1, f"training.mean={mean!r} sees all clients of a round: one rank")
    check_robust(mean, training.byzantine, asked, "training.clients_per_round")
    check(not training.diagnostics or ranks.size == 1, "training.diagnostics sees all clients of a round: one rank")
    check(
        training.micro_batch is None or not mixes_samples(workspace.module),
        f"training.micro_batch={training.micro_batch}: BatchNorm needs whole batches",
    )


def check_buffer(training: TrainingSettings, clients: int) -> None:
    """Raise InputError if the buffer, or the clients that train at any time, are more than all `clients`."""
    for name, count in (("buffer", training.updates_per_version), ("concurrency", training.clients_at_once)):
        check(count <= clients, f"training.{name}={count} is more than the {clients} clients of the partition")
