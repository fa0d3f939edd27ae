"""What trains in a round: all trainable numbers, or two halves in turn.

Each half is a problem of its own, with its own algorithm state (global direction, moments, step counts) and memories of
the clients, of which the other half's rounds change nothing. What is in both halves trains in every round.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fedadamw.algorithm import AnyAlgorithm, AnyState
from fedadamw.algorithms.outer import OuterStep, ServerSide, WithOuterStep
from fedadamw.engine.client import Answer, Broadcast, Shard
from fedadamw.engine.clients import Clients, Traffic, Update
from fedadamw.engine.evaluation import ClientScores
from fedadamw.engine.workspace import Workspace
from fedadamw.settings.training import OuterSettings
from fedadamw.vector import Layout, Vector


class Parts(Protocol):
    """What trains in each round, and how the server's state follows."""

    def server_init(self, x: Vector) -> AnyState:
        """Return the server's state before the first round, for the initial model `x` (d,)."""

    def broadcast(self, round_: int, server: AnyState, statistics: Vector, base: Vector) -> Broadcast:
        """Return what the clients of a round receive. base: the frozen weights (w,) that change, as the state has."""

    def enter(self, broadcast: Broadcast) -> None:
        """Make the module ready to train in the round of `broadcast`."""

    def server_update(self, round_: int, server: AnyState, up: AnyState, lr: Tensor, participation: Tensor) -> AnyState:
        """Return the server's state after a round."""

    def leave(self) -> None:
        """Make all of the module's tensors those of the whole model again, to be loaded and evaluated."""


def server_side(algorithm: AnyAlgorithm, outer: OuterSettings | None) -> ServerSide:
    """Return what the server does: the algorithm's own functions, or these with the outer step."""
    return algorithm if outer is None else WithOuterStep(algorithm, OuterStep(**outer.model_dump()))


class Whole:
    """All trainable numbers train in every round."""

    def __init__(self, algorithm: ServerSide) -> None:
        self.algorithm = algorithm

    def server_init(self, x: Vector) -> AnyState:
        return self.algorithm.server_init(x)

    def broadcast(self, round_: int, server: AnyState, statistics: Vector, base: Vector) -> Broadcast:
        return Broadcast(round_, self.algorithm.broadcast(server), statistics, base)

    def enter(self, broadcast: Broadcast) -> None:
        """Nothing to do."""

    def server_update(self, round_: int, server: AnyState, up: AnyState, lr: Tensor, participation: Tensor) -> AnyState:
        return self.algorithm.server_update(server, up, lr, participation)

    def leave(self) -> None:
        """Nothing to do."""


class Halved(NamedTuple):
    """The server's state of two halves: the model, and the algorithm's state of each."""

    x: Vector  # (d,) the whole model
    first: AnyState  # the algorithm's Server of the half that trains first; its x is empty, since `x` has it
    second: AnyState


class Half:
    """The numbers that train in every other round, and those that rest then.

    workspace: of the numbers that train. whole: the layout of all. outer: the server's step on these numbers.
    """

    def __init__(
        self, workspace: Workspace, algorithm: AnyAlgorithm, whole: Layout, outer: OuterSettings | None = None
    ) -> None:
        self.workspace, self._outer = workspace, outer
        self.replace_algorithm(algorithm)
        every = whole.views(torch.arange(whole.d, device=workspace.y.device))
        own = workspace.layout.names
        self._places = torch.cat([every[name].flatten() for name in own])
        self._resting = {name: every[name] for name in whole.names if name not in own}

    def replace_algorithm(self, algorithm: AnyAlgorithm) -> None:
        """Train by `algorithm` from now on."""
        self.algorithm, self.server = algorithm, server_side(algorithm, self._outer)

    def own(self, x: Vector) -> Vector:
        """Return the numbers of `x` (d,) that train, (h,)."""
        return x[self._places]

    def resting(self, x: Vector) -> Vector:
        """Return the numbers of `x` (d,) that rest, (d - h,)."""
        return torch.cat([x[places.flatten()] for places in self._resting.values()])

    def merge(self, x: Vector, own: Vector) -> Vector:
        """Return `x` (d,) with `own` (h,) in place of the numbers that train."""
        return x.index_copy(0, self._places, own)

    def enter(self, resting: Vector) -> None:
        """Make the module train this half; `resting` (d - h,) are the others, which are frozen."""
        self.workspace.attach()
        parameters = dict(self.workspace.module.named_parameters())
        sizes = [places.numel() for places in self._resting.values()]
        for (name, places), values in zip(self._resting.items(), resting.split(sizes), strict=True):
            parameters[name].data.copy_(values.view(places.shape))


class Halves:
    """Two halves in turn, one a round. whole: the workspace of both."""

    def __init__(self, whole: Workspace, first: Half, second: Half) -> None:
        self.whole, self.first, self.second = whole, first, second

    @property
    def named(self) -> dict[str, Half]:
        """Both by name, the one that trains first before the other."""
        return {"first": self.first, "second": self.second}

    def at(self, round_: int) -> Half:
        """Return the half that trains in round `round_` (from 0)."""
        return (self.first, self.second)[round_ % 2]

    def server_init(self, x: Vector) -> Halved:
        states = (half.server.server_init(half.own(x)) for half in (self.first, self.second))
        return Halved(x, *(state._replace(x=x.new_zeros(0)) for state in states))

    def broadcast(self, round_: int, server: Halved, statistics: Vector, base: Vector) -> Broadcast:
        half, state = self.at(round_), (server.first, server.second)[round_ % 2]
        down = half.server.broadcast(state._replace(x=half.own(server.x)))
        return Broadcast(round_, down, statistics, half.resting(server.x))

    def enter(self, broadcast: Broadcast) -> None:
        self.at(broadcast.round).enter(broadcast.base)

    def server_update(self, round_: int, server: Halved, up: AnyState, lr: Tensor, participation: Tensor) -> Halved:
        half, state = self.at(round_), (server.first, server.second)[round_ % 2]
        after = half.server.server_update(state._replace(x=half.own(server.x)), up, lr, participation)
        x, rest = half.merge(server.x, after.x), after._replace(x=after.x.new_zeros(0))
        return Halved(x, server.first, rest) if round_ % 2 else Halved(x, rest, server.second)

    def leave(self) -> None:
        self.whole.attach()


class InTurn(Clients):
    """The clients of two halves: the same ones, with memories and counts of their own for each half."""

    def __init__(self, first: Clients, second: Clients) -> None:
        self._each = {"first": first, "second": second}
        self._present = first

    @property
    def halves(self) -> tuple[Clients, ...]:
        """The clients of each half, those of the one that trains first before the others."""
        return tuple(self._each.values())

    def __len__(self) -> int:
        return len(self._present)

    def sample(self, round_: int) -> list[int]:
        self._present = list(self._each.values())[round_ % 2]
        return self._present.sample(round_)

    def train(self, sampled: Sequence[int], broadcast: Broadcast) -> Iterator[tuple[Shard, Answer]]:
        return self._present.train(sampled, broadcast)

    def accept(self, shard: Shard, answer: Answer) -> None:
        self._present.accept(shard, answer)

    def finish_round(self, update: Update) -> None:
        self._present.finish_round(update)

    def evaluate(self, broadcast: Broadcast) -> ClientScores | None:
        return self._present.evaluate(broadcast)

    def asked(self) -> Mapping[int, int]:
        return self._present.asked()  # both halves note their requests in one file

    def sums(self) -> int:
        return self._present.sums()

    def message_bytes(self, clients: Sequence[int], broadcast: Broadcast) -> tuple[list[int], list[int]]:
        return self._present.message_bytes(clients, broadcast)

    @property
    def traffic(self) -> Traffic:
        return self._present.traffic

    def tensors(self, round_: int) -> dict[str, Tensor]:
        return {f"{name}.{key}": t for name, half in self._each.items() for key, t in half.tensors(round_).items()}

    def restore(self, round_: int, tensors: Mapping[str, Tensor]) -> None:
        for place, (name, half) in enumerate(self._each.items()):
            begun = round_ > place  # the second half has nothing to remember before its first round
            half.restore(round_ if begun else 0, _with_prefix(tensors, f"{name}."))


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def state_tensors(server: AnyState, prefix: str) -> dict[str, Tensor]:
    """Return the tensors of a server's state by name: `server.x`, `server.first.delta`."""
    named: dict[str, Tensor] = {}
    for field, value in server._asdict().items():
        name = f"{prefix}.{field}"
        named |= {name: value} if isinstance(value, Tensor) else state_tensors(value, name)
    return named


def read_state(like: AnyState, tensors: Mapping[str, Tensor], prefix: str, device: torch.device) -> AnyState:
    """Return the state that `state_tensors` named, of the type of `like`."""
    fields = {
        name: tensors[f"{prefix}.{name}"].to(device)
        if isinstance(value, Tensor)
        else read_state(value, tensors, f"{prefix}.{name}", device)
        for name, value in like._asdict().items()
    }
    return type(like)(**fields)
