"""A round over Flower's Grid: ask the clients, wait no longer than told, believe nothing, keep one upload in memory.

Uploads that pass the guard are put on disk as they come, and summed in the clients' order when the round is closed:
the same answers give the same bits, whoever was first.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from fedadamw.engine.client import Answer, Shard
from fedadamw.engine.ledger import Ledger, Page
from fedadamw.flower.server.clients import ClientRegistry
from fedadamw.flower.server.collect import Collector
from fedadamw.flower.server.events import Events
from fedadamw.flower.server.messenger import Content, Messenger
from fedadamw.flower.server.spool import UploadSpool
from fedadamw.flower.wire import digest, name_fields
from fedadamw.randomness import Purpose, numpy_generator
from fedadamw.settings.federation import FederationSettings
from fedadamw.vector import Vector, nbytes

AGAIN_S = (1.0, 30.0)  # before clients are asked again where too few answered: at first, and at most


class QuorumError(RuntimeError):
    """Fewer nodes answered than a round needs, for longer than the run was told to wait."""


class Moved(NamedTuple):
    """What made a round's state of the one before: the mean upload, for who has that one."""

    round: int  # that is over
    up: Any
    lr: float
    participation: float


class Rounds:
    """The engine of a simulation whose clients are Flower's nodes.

    state: the type of the server's state, which may be all that travels down. base: the frozen weights that travel,
    where they change.
    """

    def __init__(
        self,
        federation: FederationSettings,
        messenger: Messenger,
        registry: ClientRegistry,
        spool: UploadSpool,
        events: Events,
        *,
        seed: int,
        clients_per_round: int,
        state: type[Any],
        base: Callable[[], Vector | None],
    ) -> None:
        self.federation, self.registry, self.spool, self.events = federation, registry, spool, events
        self.seed, self.clients_per_round, self.base = seed, clients_per_round, base
        self.quorum = federation.quorum_of(clients_per_round)
        self.collector = Collector(federation, messenger, registry, spool, events, clients_per_round)
        self.ledger = Ledger()
        self._lengths: dict[int, Mapping[str, float]] = {}  # of the present round's uploads that count, by client
        self._samples: dict[int, int] = {}  # that these clients say they have
        self._state = state
        self._begun = False
        self._moved: Moved | None = None

    @property
    def counts(self) -> Mapping[str, int]:
        """What came of the clients that the present round asked."""
        return self.collector.counts

    @property
    def down_bytes(self) -> int:
        """Sent to clients in the present round."""
        return self.collector.down_bytes

    @property
    def wasted_bytes(self) -> int:
        """Received from clients in the present round, and not counted."""
        return self.collector.wasted_bytes

    def sample(self, round_: int) -> list[int]:
        """The clients to ask in round `round_` (from 0), of those that are online, in rising order.

        Where all are online these are the simulator's. Waits for federation.wait_for clients before this server's
        first round, for a quorum before the others.
        """
        f, clients = self.federation, self.registry.clients
        wanted = min(f.clients_to_ask(self.clients_per_round), clients)
        hoped = self.quorum if self._begun else max(self.quorum, min(f.wait_for or clients, clients))
        online = self._awaited(round_, hoped)
        self._begun = True
        if len(online) < wanted:
            self.events.write("degraded", round=round_ + 1, online=len(online), wanted=wanted)
        generator = numpy_generator(self.seed, Purpose.SAMPLE_CLIENTS, round_)
        return sorted(online[i] for i in generator.choice(len(online), min(wanted, len(online)), replace=False))

    def answers(
        self, shards: Iterable[Shard], round_: int, down: Any, statistics: Vector
    ) -> Iterator[tuple[Shard, Answer]]:
        """What the clients of `shards` answer by the deadline, in their order; QuorumError where too few do."""
        collector, f = self.collector, self.federation
        past = collector.bounds.past
        past.clear()
        past.extend(self.ledger.page.past)
        collector.begin(round_, *self._contents(round_, down, statistics), self.ledger.page.counted, _length(down))
        collector.collect([shard.client for shard in shards], self.clients_per_round, f.deadline_s)
        until, pause = time.monotonic() + f.wait_s, AGAIN_S[0]
        while len(uploads := collector.uploads) < self.quorum:
            self.events.write("no-quorum", round=round_ + 1, answers=len(uploads), quorum=self.quorum)
            if time.monotonic() > until:
                collector.close()
                raise self._no_quorum(round_, f"{len(uploads)} clients answered")
            time.sleep(pause)
            pause = min(2 * pause, AGAIN_S[1])
            others = self._others(self.registry.online())
            collector.collect(others, self.quorum, min(f.deadline_s, max(until - time.monotonic(), 0.0)))
        limits = collector.close()
        self._lengths = {
            client: {name: min(length, limits[name]) for name, length in upload.lengths.items()}
            for client, upload in uploads.items()
        }
        self._samples = {client: upload.samples for client, upload in uploads.items()} if f.sample_counts else {}
        for client in sorted(uploads):
            yield self.spool.give(client, uploads[client], limits)

    def _others(self, online: Iterable[int]) -> list[int]:
        """Whom to ask in a round without quorum: as many as are missing, those first who were not asked before."""
        collector = self.collector
        free = [client for client in online if client not in collector.uploads and client not in collector.working]
        free.sort(key=lambda client: client in collector.asked)
        return free[: self.clients_per_round - len(collector.uploads)]

    def moved(self, round_: int, up: Any, lr: float, participation: float) -> None:
        """Round `round_` is over: keep what its clients need to make the new state, and whose answers counted."""
        self._moved = Moved(round_, up, lr, participation)
        bounds = self.collector.bounds
        bounds.accepted(list(self._lengths.values()))
        page = self.ledger.page
        counted = {**page.counted, **dict.fromkeys(self._lengths, round_ + 1)}
        self.ledger.turn(round_ + 1, Page(counted, list(bounds.past), {**page.samples, **self._samples}))

    def _contents(self, round_: int, down: Any, statistics: Vector) -> tuple[Content, Content | None]:
        """What travels down: all of it, and, where that is less, what makes it of the last round's state."""
        base, moved, statistics_too = self.base(), self._moved, {"statistics": statistics}
        extra = {} if base is None else {"base": base}
        whole = Content.of({"round": round_}, {**name_fields("down", down), **statistics_too, **extra})
        if not self.federation.reuse or base is not None or moved is None or moved.round != round_ - 1:
            return whole, None
        if not self.collector.holds or nbytes(moved.up) >= nbytes(down) or type(down) is not self._state:
            return whole, None
        about = {"round": round_, "lr": moved.lr, "participation": moved.participation, "digest": digest(down)}
        return whole, Content.of(about, {**name_fields("up", moved.up), **statistics_too})

    def _awaited(self, round_: int, hoped: int) -> list[int]:
        """The clients that are online, once they are as many as `hoped`, or, after wait_s, a quorum."""
        until = time.monotonic() + self.federation.wait_s
        waiting = False
        while len(online := self.registry.online()) < hoped:
            if time.monotonic() > until:
                if len(online) >= self.quorum:
                    break
                raise self._no_quorum(round_, f"{len(online)} of {self.registry.clients} clients are online")
            if not waiting:
                self.events.write("waiting", round=round_ + 1, online=len(online), wanted=hoped)
                waiting = True
            time.sleep(0.25)
        return online

    def _no_quorum(self, round_: int, found: str) -> QuorumError:
        reason = self.collector.reason
        return QuorumError(
            f"round {round_ + 1}: {found}, {self.quorum} are needed (federation.quorum); "
            f"waited {self.federation.wait_s:g} s (federation.wait_s)" + (f"; {reason}" if reason else "")
        )


def _length(down: Any) -> float:
    """The length (l2) of the model that travels down."""
    return float(torch.linalg.vector_norm(down.x, dtype=torch.float64))
