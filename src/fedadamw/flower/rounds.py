"""A round over Flower's Grid: ask the clients, wait no longer than told, believe nothing, keep one upload in memory.

Uploads that pass the guard are put on disk as they come, and summed in the clients' order when the round is closed:
the same answers give the same bits, whoever was first.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from flwr.app import Message

from fedadamw.engine.client import Answer, Shard
from fedadamw.engine.randomness import Purpose, numpy_generator
from fedadamw.engine.settings import Federation
from fedadamw.flower import guard
from fedadamw.flower.events import Events
from fedadamw.flower.inbox import Inbox, Upload
from fedadamw.flower.ledger import Ledger, Page
from fedadamw.flower.members import Members
from fedadamw.flower.names import STALE
from fedadamw.flower.post import SURE_S, Content, Post
from fedadamw.flower.wire import RefusedError, digest, named
from fedadamw.vector import Vector, nbytes

POLL_S = (0.05, 0.5)  # between looks for answers: at first, and at most
AGAIN_S = 1.0  # before clients are asked again where too few answered
LOOK_S = 2.0  # between looks for nodes that came or went


class QuorumError(RuntimeError):
    """Fewer nodes answered than a round needs, for longer than the run was told to wait."""


class Asked(NamedTuple):
    """A message that an answer is awaited for."""

    client: int
    node: int
    samples: int | None  # that it has registered with
    again: int  # times that the client may be asked again
    whole: bool  # whether it was sent all of the server's state


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
        federation: Federation,
        post: Post,
        members: Members,
        inbox: Inbox,
        events: Events,
        *,
        seed: int,
        clients_per_round: int,
        state: type[Any],
        base: Callable[[], Vector | None],
    ) -> None:
        self.federation, self.post, self.members, self.inbox, self.events = federation, post, members, inbox, events
        self.seed, self.clients_per_round, self.base = seed, clients_per_round, base
        self.quorum = federation.quorum_of(clients_per_round)
        self.bounds = guard.Bounds(federation)
        self.ledger = Ledger()
        self.counts: Counter[str] = Counter()  # of the present round
        self._lengths: dict[int, Mapping[str, float]] = {}  # of the present round's uploads that count, by client
        self.down_bytes = 0
        self._state = state
        self._begun = False
        self._moved: Moved | None = None
        self._holds: dict[int, tuple[int, int]] = {}  # client -> its node, and the last round whose state that has
        self._late: dict[str, tuple[int, float]] = {}  # messages of closed rounds, their nodes, until when they count
        self._stale: set[int] = set()  # nodes that could not make the state of what has changed, once
        self._whole: set[int] = set()  # and again: other hardware, perhaps; they are sent all of it
        self._reason = ""  # why the last answer did not count

    def sample(self, round_: int) -> list[int]:
        """The clients to ask in round `round_` (from 0), of those that are online, in rising order.

        Where all are online these are the simulator's. Waits for federation.wait_for clients before this server's
        first round, for a quorum before the others.
        """
        f, clients = self.federation, self.members.clients
        wanted = min(f.asked_of(self.clients_per_round), clients)
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
        self.counts, self.down_bytes, self._reason = Counter(), 0, ""
        self.bounds.past.clear()
        self.bounds.past.extend(self.ledger.page.past)
        self._drop_late()
        contents = self._contents(round_, down, statistics)
        uploads: dict[int, Upload] = {}
        until = None
        asked = [shard.client for shard in shards]
        while True:
            self._collect(asked, uploads, round_, *contents)
            limits = self._bounded(uploads)
            if len(uploads) >= self.quorum:
                break
            until = until or time.monotonic() + self.federation.wait_s
            self.events.write("no-quorum", round=round_ + 1, answers=len(uploads), quorum=self.quorum)
            if time.monotonic() > until:
                raise self._no_quorum(round_, f"{len(uploads)} clients answered")
            time.sleep(AGAIN_S)
            asked = self._others(asked, uploads, self._awaited(round_, self.quorum))
        self._lengths = {client: upload.lengths for client, upload in uploads.items()}
        self.counts["answered"] = len(uploads)
        for client in sorted(uploads):
            yield self.inbox.give(client, uploads[client], limits)

    def _others(self, asked: Sequence[int], uploads: Mapping[int, Upload], online: Sequence[int]) -> list[int]:
        """Whom to ask again: as many as are missing, those first who were not asked before."""
        missing = [client for client in online if client not in uploads]
        missing.sort(key=lambda client: client in asked)
        return missing[: self.clients_per_round - len(uploads)]

    def moved(self, round_: int, up: Any, lr: float, participation: float) -> None:
        """Round `round_` is over: keep what its clients need to make the new state, and whose answers counted."""
        self._moved = Moved(round_, up, lr, participation)
        self.bounds.accepted(list(self._lengths.values()))
        counted = {**self.ledger.page.counted, **dict.fromkeys(self._lengths, round_ + 1)}
        self.ledger.turn(round_ + 1, Page(counted, list(self.bounds.past)))

    def _contents(self, round_: int, down: Any, statistics: Vector) -> tuple[Content, Content | None]:
        """What travels down: all of it, and, where that is less, what makes it of the last round's state."""
        base, moved = self.base(), self._moved
        extra = {} if base is None else {"base": base}
        whole = Content.of({"round": round_}, {**named("down", down), "statistics": statistics, **extra})
        able = self.federation.reuse and base is None and moved is not None and moved.round == round_ - 1
        if (
            not able
            or moved is None
            or not self._holds
            or nbytes(moved.up) >= nbytes(down)
            or type(down) is not self._state
        ):
            return whole, None
        about = {"round": round_, "lr": moved.lr, "participation": moved.participation, "digest": digest(down)}
        return whole, Content.of(about, {**named("up", moved.up), "statistics": statistics})

    def _awaited(self, round_: int, hoped: int) -> list[int]:
        """The clients that are online, once they are as many as `hoped`, or, after wait_s, a quorum."""
        until = time.monotonic() + self.federation.wait_s
        waiting = False
        while len(online := self.members.online()) < hoped:
            if time.monotonic() > until:
                if len(online) >= self.quorum:
                    break
                raise self._no_quorum(round_, f"{len(online)} of {self.members.clients} clients are online")
            if not waiting:
                self.events.write("waiting", round=round_ + 1, online=len(online), wanted=hoped)
                waiting = True
            time.sleep(0.25)
        return online

    def _no_quorum(self, round_: int, found: str) -> QuorumError:
        return QuorumError(
            f"round {round_ + 1}: {found}, {self.quorum} are needed (federation.quorum); "
            f"waited {self.federation.wait_s:g} s (federation.wait_s)" + (f"; {self._reason}" if self._reason else "")
        )

    def _collect(
        self, clients: Sequence[int], uploads: dict[int, Upload], round_: int, whole: Content, change: Content | None
    ) -> None:
        """Ask `clients`, and put what passes the guard into `uploads` until all or enough answered, or the deadline."""
        until, look, pause = time.monotonic() + self.federation.deadline_s, time.monotonic() + LOOK_S, POLL_S[0]
        pending: dict[str, Asked] = {}
        todo = [(client, self.federation.retries) for client in clients]
        while (todo or pending) and len(uploads) < self.clients_per_round:
            for client, again in todo:
                pending |= self._asked(client, again, round_, whole, change, until - time.monotonic())
            over = time.monotonic() > until  # what is here by now still counts
            came = {name: how for name, a in pending.items() if (how := self._came(name, a, uploads, round_))}
            failed = [asked for name, asked in pending.items() if came.get(name) in ("failed", STALE)]
            pending = {name: asked for name, asked in pending.items() if name not in came}
            if over:
                break
            if time.monotonic() > look:
                self.members.online()
                failed += [pending.pop(name) for name in self._gone(pending, round_)]
                look = time.monotonic() + LOOK_S
            todo = [(a.client, a.again - a.whole) for a in failed if a.again or not a.whole]
            pause = POLL_S[0] if came else min(pause * 1.5, POLL_S[1])
            if not todo:
                time.sleep(pause)
        for name, a in pending.items():
            self._count("overdue", round=round_ + 1, client=a.client)
            if not self.post.forget(name):
                self._late[name] = a.node, time.monotonic() + self.federation.deadline_s + SURE_S

    def _asked(
        self, client: int, again: int, round_: int, whole: Content, change: Content | None, seconds: float
    ) -> dict[str, Asked]:
        """Ask a client for its work; the message, where it is there to be asked."""
        node = self.members.node(client)
        if node is None:
            self._count("unreachable", round=round_ + 1, client=client)
            return {}
        has_last = self._holds.pop(client, None) == (node, round_ - 1)
        content = change if has_last and change is not None and node not in self._whole else whole
        counted = self.ledger.page.counted.get(client, 0)
        own = content._replace(facts={**content.facts, "counted": counted})
        name = self.post.send(node, "train", max(seconds, 1.0), own)
        if name is None:
            self._count("unreachable", round=round_ + 1, client=client)
            return {}
        self.counts["asked"] += 1
        self.down_bytes += content.nbytes
        return {name: Asked(client, node, self.members.known[client].samples, again, content is whole)}

    def _gone(self, pending: Mapping[str, Asked], round_: int) -> list[str]:
        """The messages whose nodes have left since they were sent."""
        gone = [name for name, asked in pending.items() if self.members.node(asked.client) != asked.node]
        for name in gone:
            self._count("unreachable", round=round_ + 1, client=pending[name].client)
            self.post.forget(name)
        return gone

    def _came(self, name: str, asked: Asked, uploads: dict[int, Upload], round_: int) -> str | None:
        """What came in answer to a message: counted, surplus, refused, failed or stale; None where nothing did yet."""
        reply = self.post.answer(name, asked.node)
        if reply is None:
            return None
        client = asked.client
        if len(uploads) >= self.clients_per_round:
            self._count("surplus", round=round_ + 1, client=client)
            return "surplus"
        try:
            uploads[client] = self.inbox.take(reply, client, asked.samples)
        except RefusedError as refused:
            if refused.reason == STALE and asked.node in self._stale:
                self._whole.add(asked.node)
            if refused.reason == STALE:
                self._stale.add(asked.node)
            how = refused.reason if refused.reason in ("failed", STALE) else "refused"
            self._reason = f"client {client}: {refused.detail}"
            self._count(how, round=round_ + 1, client=client, reason=refused.reason, detail=refused.detail)
            return how
        self._holds[client] = asked.node, round_
        return "counted"

    def _bounded(self, uploads: dict[int, Upload]) -> Mapping[str, float]:
        """Take out the uploads that are too long, where they are not to be clipped; how long they may be."""
        limits = self.bounds.limits([upload.lengths for upload in uploads.values()])
        for client, upload in list(uploads.items()):
            long = [name for name, length in upload.lengths.items() if length > limits[name]]
            if long and self.federation.norm_action == "clip" and guard.STATISTICS not in long:
                self._count("clipped", client=client, fields=", ".join(long))
            elif long:
                name = long[0]
                self._reason = f"client {client}: {name!r} is too long"
                detail = f"{name!r} has length {upload.lengths[name]:.3g}, more than {limits[name]:.3g}"
                self._count("refused", client=client, reason="too-long", detail=detail)
                del uploads[client]
                self.inbox.drop(client)
        return limits

    def _drop_late(self) -> None:
        """Count and forget the answers that came after their round was closed."""
        for name, (node, until) in list(self._late.items()):
            reply = self.post.answer(name, node)
            if isinstance(reply, Message) and not reply.has_error():
                self._count("late")
            if reply is not None or time.monotonic() > until:
                self.post.forget(name)
                del self._late[name]

    def _count(self, event: str, **facts: Any) -> None:
        self.counts[event] += 1
        if "reason" in facts:
            self.counts[f"{event}: {facts['reason']}"] += 1
        self.events.write(event, **facts)
