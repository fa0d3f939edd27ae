"""How stale answers count, with buffered aggregation: w is a client's weight, s the discount of its staleness.

    x        moves by sum(w s delta) / sum(w): not by sum(w s), so that stale steps shrink
    v, k, .. are sum(w s v) / sum(w s), as statistics and losses are
    Delta_G  is - sum(w s delta) / sum(w s k lr), of the lr that each client took: a direction;
             of normalised updates - sum(w s delta / k) / sum(w s lr)

The mean of a round is by w s. So an update is multiplied by f = sum(w s) / sum(w) afterwards, a squared one by f^2, and
the server's lr, which divides an update together with the mean k, by f and by what makes it the clients'. If no answer
is stale, all of these are exactly 1.
"""

from collections.abc import Callable

from fedadamw.algorithm import AnyState
from fedadamw.engine.client import Answer
from fedadamw.engine.scale import scale_changes


def discount_of(staleness: int, rule: str) -> float:
    """Return the discount s of an answer whose model is `staleness` versions old; rule: training.staleness."""
    return (1 + staleness) ** -0.5 if rule == "root" else 1.0


class Discounts:
    """Of the answers of one round. lr_at: the learning rate of each round (from 0). normalize: see Aggregation."""

    def __init__(self, lr_at: Callable[[int], float], round_: int, *, normalize: bool = False) -> None:
        self.lr_at, self.lr, self.normalize = lr_at, lr_at(round_), normalize
        self.weight = self.discounted = self.steps = self.taken = 0.0

    def add(self, answer: Answer, weight: float) -> float:
        """Take note of an accepted answer; returns its weight in the mean."""
        discounted = weight * answer.discount
        self.weight += weight
        self.discounted += discounted
        steps = discounted * (1 if self.normalize else answer.steps)
        self.steps += steps
        ratio = 1.0 if answer.version is None else self.lr_at(answer.version) / self.lr
        self.taken += steps * ratio
        return discounted

    @property
    def factor(self) -> float:
        """f, by which the mean of updates is multiplied."""
        return self.discounted / self.weight if self.weight else 1.0

    @property
    def server_lr(self) -> float:
        """The learning rate that the server divides by."""
        return self.lr * (self.taken / self.steps) * self.factor if self.steps else self.lr

    def shrink(self, up: AnyState) -> AnyState:
        """Return the mean of uploads with its update multiplied by f."""
        return up if self.factor == 1.0 else scale_changes(up, self.factor)
