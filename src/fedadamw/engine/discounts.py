"""How stale answers count, with buffered aggregation: w is a client's weight, s the discount of its staleness.

    x        moves by sum(w s delta) / sum(w): not by sum(w s), so that stale steps shrink
    v, k, .. are sum(w s v) / sum(w s), as statistics and losses are
    Delta_G  is - sum(w s delta / lr) / sum(w s k), by the lr that each client had: a direction

The mean of a round is by w s. So for x an update is multiplied by f = sum(w s) / sum(w), a squared one by f^2; the
server's lr, which divides an update, too. For Delta_G each is brought to the lr of the present round, from that of its
version: the mean of these is the round's *aimed* update. If no answer is stale, f is exactly 1, and none is aimed.
"""

from collections.abc import Callable

from torch import Tensor

from fedadamw.algorithm import AnyState
from fedadamw.engine.client import Answer
from fedadamw.engine.private_mean import SQUARE
from fedadamw.engine.scale import scale_changes


def discount_of(staleness: int, rule: str) -> float:
    """Return the discount s of an answer whose model is `staleness` versions old; rule: training.staleness."""
    return (1 + staleness) ** -0.5 if rule == "root" else 1.0


class Discounts:
    """Of the answers of one round. lr_at: the learning rate of each round (from 0)."""

    def __init__(self, lr_at: Callable[[int], float], round_: int) -> None:
        self.lr_at, self.lr = lr_at, lr_at(round_)
        self.weight = self.discounted = 0.0
        self.missing: dict[str, Tensor] = {}  # sums of what aims the updates of other learning rates, by field

    def add(self, answer: Answer, weight: float, up: AnyState) -> float:
        """Take note of an accepted answer, of which `up` is averaged; returns its weight in the mean."""
        discounted = weight * answer.discount
        self.weight += weight
        self.discounted += discounted
        lr = self.lr if answer.version is None else self.lr_at(answer.version)
        if lr != self.lr:
            there = scale_changes(up, self.lr / lr)
            for name in {"delta", SQUARE} & {*up._fields}:
                rest = discounted * (getattr(there, name) - getattr(up, name))
                self.missing[name] = self.missing[name] + rest if name in self.missing else rest
        return discounted

    @property
    def factor(self) -> float:
        """f, by which the mean of updates is multiplied."""
        return self.discounted / self.weight if self.weight else 1.0

    @property
    def server_lr(self) -> float:
        """The learning rate that the server divides an update by that was multiplied by f."""
        return self.lr * self.factor

    def shrink(self, up: AnyState) -> AnyState:
        """Return the mean of uploads with its update multiplied by f."""
        return up if self.factor == 1.0 else scale_changes(up, self.factor)

    def aim(self, up: AnyState) -> AnyState | None:
        """Return the mean of uploads as if all clients had the round's learning rate; None if they had."""
        if not self.missing:
            return None
        return up._replace(**{name: getattr(up, name) + t / self.discounted for name, t in self.missing.items()})
