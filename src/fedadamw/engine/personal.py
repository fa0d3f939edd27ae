"""Parameters that stay with each client: for them it is a federation of one.

    the server knows, sends and averages the shared numbers only
    a client steps both: the shared ones as the algorithm says, its own by the same algorithm in a second copy
    at the end of its round it is also the server of its own numbers: their update is the mean of one client
    what that server remembers (moments, directions, counts) stays in the client's memory, with the numbers themselves

The flat vector has the shared numbers first (Workspace). Running statistics of personal layers (BatchNorm's) are kept,
too.
"""

from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from operator import itemgetter
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from fedadamw.algorithm import Algorithm, AnyAlgorithm, AnyState
from fedadamw.algorithms.outer import ServerSide
from fedadamw.engine.client import Answer, Broadcast, Shard
from fedadamw.engine.parts import state_tensors
from fedadamw.engine.states import iterate_tensors, map_tensors, stack_states
from fedadamw.engine.step import Kind, Step, clip_scale, make_step
from fedadamw.engine.uploads import Engine
from fedadamw.vector import Vector

STATISTICS = "statistics"  # the field of a memory with the running statistics of personal layers


class Local(NamedTuple):
    """State of a client during a round. The states below have no y of their own: each has a part of this one."""

    y: Vector  # (..., d) the shared numbers, then its own
    shared: AnyState  # the algorithm's Local for the shared numbers
    own: AnyState  # and for its own
    server: AnyState  # the server of its own numbers
    statistics: Vector  # (..., q) of personal layers, as they were


class _Finished(NamedTuple):
    """A client's own numbers after its round."""

    server: AnyState
    memory: AnyState  # the algorithm's


class _Kept(NamedTuple):
    """What a client keeps between its rounds, in the parts that a memory lists one after the other."""

    shared: AnyState  # the algorithm's Memory for the shared numbers
    server: AnyState  # the server of its own numbers; its x are these
    own: AnyState  # the algorithm's Memory for them
    statistics: Vector


@dataclass(frozen=True, kw_only=True)
class WithPersonal(Algorithm[AnyState, AnyState, AnyState, Local, AnyState]):
    """An algorithm for the shared numbers, and one for each client's own."""

    shared: AnyAlgorithm
    own: AnyAlgorithm  # built for the personal parameters
    server: ServerSide  # of `own`, with the outer step if there is one
    initial: Vector  # (p,) a client's own numbers before its first round
    statistics: Vector  # (q,) the running statistics of personal layers before it

    elementwise: ClassVar = False  # see `make_steps`

    @property
    def changes(self) -> tuple[str, ...]:  # type: ignore[override]  # those of what travels
        return self.shared.changes

    @property
    def carried(self) -> tuple[float, ...]:  # type: ignore[override]
        return self.shared.carried

    @property
    def adds_mean(self) -> bool:  # type: ignore[override]
        return self.shared.adds_mean

    @property
    def nonnegative(self) -> Sequence[str]:  # type: ignore[override]
        return self.shared.nonnegative

    def server_init(self, x: Vector) -> AnyState:
        """As the contract says; x: the shared numbers (s,)."""
        return self.shared.server_init(x)

    def broadcast(self, server: AnyState) -> AnyState:
        return self.shared.broadcast(server)

    def server_update(self, server: AnyState, up: AnyState, lr: Tensor, participation: Tensor) -> AnyState:
        return self.shared.server_update(server, up, lr, participation)

    def client_init(self, down: AnyState) -> AnyState:
        server = self.server.server_init(self.initial)
        own = self.own.client_init(self.server.broadcast(server))
        return _join(_Kept(self.shared.client_init(down), server, own, self.statistics))

    def client_start(self, down: AnyState, memory: AnyState) -> Local:
        kept = self._split(memory, down)
        shared = self.shared.client_start(down, kept.shared)
        own = _by_row(self._start, kept.server, kept.own)
        y = torch.cat([shared.y.expand(*own.y.shape[:-1], -1), own.y], dim=-1)
        return Local(y, _without_y(shared), _without_y(own), kept.server, kept.statistics)

    def _start(self, server: AnyState, memory: AnyState) -> AnyState:
        return self.own.client_start(self.server.broadcast(server), memory)

    def client_step(self, local: Local, down: AnyState, g: Vector, lr: Tensor) -> Local:
        shared, own = self.parts(local)
        s = shared.y.shape[-1]
        shared = self.shared.client_step(shared, down, g[..., :s], lr)
        own = self.own.client_step(own, self.server.broadcast(local.server), g[..., s:], lr)
        y = torch.cat([shared.y, own.y], dim=-1)
        return Local(y, _without_y(shared), _without_y(own), local.server, local.statistics)

    def client_finish(self, local: Local, down: AnyState, lr: Tensor) -> tuple[AnyState, AnyState]:
        shared, own = self.parts(local)
        up, memory = self.shared.client_finish(shared, down, lr)
        after = _by_row(lambda own, server: self._finish(own, server, lr), own, local.server)
        return up, _join(_Kept(memory, after.server, after.memory, local.statistics))

    def _finish(self, own: AnyState, server: AnyState, lr: Tensor) -> _Finished:
        up, memory = self.own.client_finish(own, self.server.broadcast(server), lr)
        return _Finished(self.server.server_update(server, up, lr, lr.new_ones(())), memory)

    def parts(self, local: Local) -> tuple[AnyState, AnyState]:
        """Return the algorithm's Local of the shared numbers and of the client's own; their y are views."""
        s = local.y.shape[-1] - self.initial.shape[-1]
        return local.shared._replace(y=local.y[..., :s]), local.own._replace(y=local.y[..., s:])

    def complete(self, x: Vector, statistics: Vector, memory: AnyState | None = None) -> tuple[Vector, Vector]:
        """Return the whole model (d,) and all its statistics, of the client with this memory; None: before its first.

        x, statistics: those that are shared.
        """
        own, of_layers = self.initial, self.statistics
        if memory is not None:
            own, of_layers = getattr(memory, OWN), getattr(memory, STATISTICS)
        return torch.cat([x, own.to(x.device)]), torch.cat([statistics, of_layers.to(x.device)])

    def _split(self, memory: AnyState, down: AnyState) -> _Kept:
        """Return the parts of a memory, which may have a leading axis."""
        tensors = iter(memory)
        return _Kept(*(map_tensors(part, lambda _: next(tensors)) for part in self._template(down)))

    def _template(self, down: AnyState) -> _Kept:
        """Return what a client keeps, for its types; its numbers mean nothing."""
        server, own = self._own_template
        return _Kept(self.shared.client_init(down), server, own, self.statistics)

    @cached_property
    def _own_template(self) -> tuple[AnyState, AnyState]:
        server = self.server.server_init(self.initial)
        return server, self.own.client_init(self.server.broadcast(server))


OWN = "own_server_x"  # the field of a memory with the client's own numbers


def _join(kept: _Kept) -> AnyState:
    """Return one NamedTuple of all tensors that a client keeps."""
    shared = {} if kept.shared == () else state_tensors(kept.shared, "shared")
    own = {} if kept.own == () else state_tensors(kept.own, "own")
    named = {**shared, **state_tensors(kept.server, "own_server"), **own, STATISTICS: kept.statistics}
    return _memory_type(tuple(name.replace(".", "_") for name in named))(*named.values())


@cache
def _memory_type(names: tuple[str, ...]) -> type[Any]:
    """The type of a memory with these fields."""
    return namedtuple("Memory", names)


def _without_y(local: AnyState) -> AnyState:
    return local._replace(y=local.y[..., :0])


def _by_row(function: Callable[..., Any], *states: AnyState) -> Any:
    """Call a function of states of one client; if they have a leading axis, of each of its rows."""
    first = next(iterate_tensors(states))
    if first.dim() == 1:
        return function(*states)
    rows = ([map_tensors(state, itemgetter(i)) for state in states] for i in range(len(first)))
    return stack_states([function(*row) for row in rows])


class PersonalEngine(Engine):
    """An engine whose clients keep the running statistics of personal layers, in their memories."""

    def __init__(self, engine: Engine, algorithm: WithPersonal) -> None:
        self.engine, self.algorithm = engine, algorithm

    def train(self, shards: Iterable[Shard], broadcast: Broadcast) -> Iterator[tuple[Shard, Answer]]:
        """As the engine's `train`; an answer has the shared statistics."""
        count = len(broadcast.statistics)

        def enter(shard: Shard) -> Shard:
            own = self.algorithm.statistics if shard.memory is None else getattr(shard.memory, STATISTICS)
            return shard._replace(statistics=torch.cat([broadcast.statistics, own])) if len(own) else shard

        def leave(pair: tuple[Shard, Answer]) -> tuple[Shard, Answer]:
            shard, answer = pair
            memory = answer.memory._replace(**{STATISTICS: answer.statistics[count:].clone()})
            kept = (getattr(memory, OWN), getattr(memory, STATISTICS))
            return shard, answer._replace(memory=memory, statistics=answer.statistics[:count], kept=kept)

        return map(leave, self.engine.train(map(enter, shards), broadcast))


def shared_part(algorithm: AnyAlgorithm) -> AnyAlgorithm:
    """Return the algorithm of the numbers that travel."""
    return algorithm.shared if isinstance(algorithm, WithPersonal) else algorithm


def list_parts(algorithm: AnyAlgorithm) -> list[AnyAlgorithm]:
    """Return the algorithms that take a client's local steps."""
    return [algorithm.shared, algorithm.own] if isinstance(algorithm, WithPersonal) else [algorithm]


def with_statistics(engine: Engine, algorithm: AnyAlgorithm) -> Engine:
    """Return the engine, whose clients keep the statistics of personal layers if the algorithm has personal numbers."""
    return PersonalEngine(engine, algorithm) if isinstance(algorithm, WithPersonal) else engine


def make_steps(algorithm: AnyAlgorithm, clip: float | None, kind: Kind) -> Step:
    """As `make_step`; an algorithm with personal numbers takes a step of each part, clipped by the norm of both."""
    if not isinstance(algorithm, WithPersonal):
        return make_step(algorithm, clip, kind)
    step_shared, step_own = make_step(algorithm.shared, None, kind), make_step(algorithm.own, None, kind)

    def step(local: AnyState, down: AnyState, g: Vector, lr: Tensor) -> None:
        scale = clip_scale(g, clip)
        if scale is not None:
            g.mul_(scale)
        shared, own = algorithm.parts(local)
        s = shared.y.shape[-1]
        step_shared(shared, down, g[..., :s], lr)
        step_own(own, algorithm.server.broadcast(local.server), g[..., s:], lr)

    return step
