"""Clients that train a portion of the model's numbers, such as adapters of a smaller rank; the others are 0 there.

    the server sends what of x is in the portion
    the client trains with all other numbers at 0, and sends its own
    the server pads what it receives with zeros, so that a mean is over all clients

Fields of an upload that are shorter than the model (counters, block means) travel whole.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from torch import Tensor

from fedadamw.algorithm import AnyState
from fedadamw.engine.client import Answer, Broadcast, Shard
from fedadamw.engine.step import Step
from fedadamw.engine.uploads import CodedEngine, Engine, Uploads
from fedadamw.vector import Vector, nbytes


class Portion(NamedTuple):
    """Some of the model's d numbers."""

    number: int  # the same for clients that train together; for adapters their rank
    mask: Vector  # (d,) 1 for its numbers, 0 elsewhere
    places: Tensor  # (p,) where they are


class Portions(Protocol):
    """The portion of each client."""

    pads: bool
    """Whether a number that a client lacks counts as 0 in the mean; else as unchanged."""

    def of(self, client: int) -> Portion:
        """Return the portion of `client`."""

    def set_up(self, portion: Portion | None) -> None:
        """Make the module compute as a client with this portion does; None: with all numbers."""


class CroppedStep:
    """A local step after which the numbers outside the present portion are 0."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.mask: Vector | None = None

    def __call__(self, local: AnyState, down: AnyState, g: Vector, lr: Tensor) -> None:
        if self.mask is not None:
            g.mul_(self.mask)
        self.step(local, down, g, lr)
        if self.mask is not None:
            local.y.mul_(self.mask)


class PortionedEngine:
    """An engine with encoded uploads whose clients train portions, those with the same portion together.

    step: the one that `engine` takes.
    """

    def __init__(self, engine: Engine, step: CroppedStep, uploads: Uploads, seed: int, portions: Portions) -> None:
        self.engine, self.step, self.uploads, self.seed, self.portions = engine, step, uploads, seed, portions

    def train(self, shards: Iterable[Shard], broadcast: Broadcast) -> Iterator[tuple[Shard, Answer]]:
        """As the engine's `train`; updates are padded."""
        for portion, members in self._group(shards):
            down = broadcast.down
            cropped = broadcast._replace(down=down._replace(x=down.x * portion.mask))
            lacking = down.x - cropped.down.x
            coded = CodedEngine(self.engine, self.uploads, self.seed, portion.places)
            with self._set_up(portion):
                for shard, answer in coded.train(members, cropped):
                    padded = answer.up._replace(delta=answer.up.delta - lacking) if self.portions.pads else answer.up
                    yield shard, answer._replace(up=padded)

    def _group(self, shards: Iterable[Shard]) -> list[tuple[Portion, list[Shard]]]:
        """The clients by portion, in the order of the portions' numbers."""
        groups: dict[int, tuple[Portion, list[Shard]]] = {}
        for shard in shards:
            portion = self.portions.of(shard.client)
            groups.setdefault(portion.number, (portion, []))[1].append(shard)
        return [groups[number] for number in sorted(groups)]

    @contextmanager
    def _set_up(self, portion: Portion) -> Iterator[None]:
        """A context in which module and step are those of clients with this portion."""
        self.portions.set_up(portion)
        self.step.mask = portion.mask
        try:
            yield
        finally:
            self.step.mask = None
            self.portions.set_up(None)


def down_bytes(broadcast: Broadcast, sampled: Collection[int], portions: Portions | None) -> int:
    """Return the bytes that the `sampled` clients of a round receive: of a vector (d,) only their portion."""
    if portions is None:
        return broadcast.nbytes * len(sampled)
    d = broadcast.down.x.shape[-1]
    spared: int = nbytes(t[:1] for t in broadcast.down if t.shape[-1] == d)
    lacking: int = sum(d - len(portions.of(client).places) for client in sampled)
    return broadcast.nbytes * len(sampled) - spared * lacking
