"""The answers of a round: clients are asked and waited for, and what passes the guard is kept until the round is over.

Nothing that one node does holds up another: who is away or fails is asked again, who is slow is waited for until the
deadline, and answers that come later are counted and thrown away.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flwr.app import Message
from flwr.common.constant import ErrorCode

from fedadamw.flower.protocol import STALE
from fedadamw.flower.server import check_upload as guard
from fedadamw.flower.server.clients import ClientRegistry
from fedadamw.flower.server.events import Events
from fedadamw.flower.server.messenger import SURE_S, Content, Messenger
from fedadamw.flower.server.spool import Upload, UploadSpool
from fedadamw.flower.wire import RefusedError
from fedadamw.settings.federation import FederationSettings

POLL_S = (0.05, 0.5)  # between looks for answers: at first, and at most
LOOK_S = 2.0  # between looks for nodes that came or went


class Asked(NamedTuple):
    """A message that an answer is awaited for."""

    client: int
    node: int
    samples: int | None  # that it has registered with
    size: int | None  # how many it has, as far as is known
    again: int  # times that the client may be asked again
    until: float  # when Flower forgets it
    whole: bool  # whether it was sent all of the server's state


class Late(NamedTuple):
    """A message whose round is over."""

    client: int
    node: int
    round: int
    until: float  # when Flower forgets it


class Collector:
    """Asks clients and takes their answers, one round after the other; `wanted` answers are enough for a round."""

    def __init__(
        self,
        federation: FederationSettings,
        messenger: Messenger,
        registry: ClientRegistry,
        spool: UploadSpool,
        events: Events,
        wanted: int,
    ) -> None:
        self.federation, self.messenger, self.registry = federation, messenger, registry
        self.spool, self.events = spool, events
        self.wanted = wanted
        self.bounds = guard.Bounds(federation)
        self.holds: dict[int, tuple[int, int]] = {}  # client -> its node, and the last round whose state that has
        self.uploads: dict[int, Upload] = {}  # of the present round, as all that follows
        self.asked: set[int] = set()
        self.counts: Counter[str] = Counter()
        self.down_bytes = self.wasted_bytes = 0  # sent; and received in vain
        self.reason = ""  # why the last answer did not count
        self._round, self._length = 0, 0.0
        self._whole = Content.of({}, {})
        self._change: Content | None = None
        self._counted: Mapping[int, int] = {}
        self._pending: dict[str, Asked] = {}
        self._away: dict[int, int] = {}  # clients to be asked if they are back in time, and how often
        self._unreached: set[int] = set()
        self._late: dict[str, Late] = {}
        self._stale: set[int] = set()  # nodes that could not make the state of what has changed, once
        self._distrusted: set[int] = set()  # and again: other hardware, perhaps; they are sent all of it

    @property
    def working(self) -> list[int]:
        """The clients whose answers are awaited."""
        return [asked.client for asked in self._pending.values()]

    def begin(
        self, round_: int, whole: Content, change: Content | None, counted: Mapping[int, int], length: float
    ) -> None:
        """A new round (from 0), with what travels down.

        counted: the last round whose answer counted, by client. length: of the model (l2).
        """
        self.uploads, self.counts, self.down_bytes, self.wasted_bytes, self.reason = {}, Counter(), 0, 0, ""
        self._round, self._whole, self._change, self._counted = round_, whole, change, counted
        self._length, self.asked = length, set()
        self._away, self._unreached = {}, set()
        self._look_for_late()

    def collect(self, clients: Sequence[int], enough: int, seconds: float) -> None:
        """Ask `clients`, and wait until `enough` answers passed, no other can come, or so many seconds are over."""
        until, look, pause = time.monotonic() + seconds, time.monotonic() + LOOK_S, POLL_S[0]
        todo = [(client, self.federation.retries) for client in clients]
        while len(self.uploads) < enough:
            for client, again in todo:
                self._ask(client, again, until - time.monotonic())
            over = time.monotonic() > until  # what is here by now still counts
            before, began = len(self._pending), time.monotonic()
            todo = self._look()
            took = time.monotonic() - began
            if over:
                break
            if len(self.uploads) >= enough:
                self._leave_out_long()
            if time.monotonic() > look:
                todo += self._look_for_nodes()
                self._look_for_late()
                look = time.monotonic() + LOOK_S
            if not (todo or self._pending):
                break
            pause = POLL_S[0] if len(self._pending) < before else min(pause * 1.5, POLL_S[1])
            if not todo:
                time.sleep(min(max(pause, 3 * took), LOOK_S))  # a quarter of the time at most goes into looks
        self._leave_out_long()

    def close(self) -> Mapping[str, float]:
        """The round is over; how long its uploads may be. Whoever has not answered is overdue."""
        for name, asked in self._pending.items():
            self._count("overdue", asked.client)
            self._late[name] = Late(asked.client, asked.node, self._round, asked.until)
        self._pending = {}
        limits = self._limits()
        for client, upload in self.uploads.items():
            if long := self._long(upload, limits):
                self._count("clipped", client, fields=", ".join(long))
        self.counts["answered"] = len(self.uploads)
        return limits

    def _ask(self, client: int, again: int, seconds: float) -> None:
        """Ask a client for its work, where it is there to be asked."""
        node = self.registry.node(client)
        if node is None:
            self._unreachable(client, again)
            return
        has_last = self.holds.pop(client, None) == (node, self._round - 1)
        changed = has_last and self._change is not None and node not in self._distrusted
        content = self._change if changed and self._change is not None else self._whole
        own = content._replace(facts={**content.facts, "counted": self._counted.get(client, 0)})
        seconds, keep = max(seconds, 1.0), self.federation.wait_s + SURE_S
        name = self.messenger.send(node, "train", seconds, own, keep=keep)
        if name is None:
            self._unreachable(client, again)
            return
        self.counts["asked"] += 1
        self.asked.add(client)
        self._away.pop(client, None)
        self.down_bytes += content.nbytes
        samples, size, until = self.registry.known[client].samples, self.registry.size(client), time.monotonic()
        self._pending[name] = Asked(client, node, samples, size, again, until + seconds + keep, not changed)

    def _unreachable(self, client: int, again: int) -> None:
        """A client could not be asked, or went while it worked."""
        if client not in self._unreached:
            self._count("unreachable", client)
        self._unreached.add(client)
        if again:
            self._away[client] = again - 1

    def _look(self) -> list[tuple[int, int]]:
        """Take the answers that are here; the clients to be asked again, and how often after that."""
        came = {name: how for name, asked in self._pending.items() if (how := self._came(name, asked))}
        gone = [(self._pending.pop(name), how) for name, how in came.items()]
        failed = [asked for asked, how in gone if how in ("failed", STALE)]
        return [(a.client, a.again - a.whole) for a in failed if a.again or not a.whole]

    def _came(self, name: str, asked: Asked) -> str | None:
        """What came in answer: counted, surplus, refused, failed, stale or gone; None where nothing did yet."""
        reply = self.messenger.answer(name, asked.node)
        if reply is None:
            return None
        client = asked.client
        if isinstance(reply, Message) and reply.has_error() and reply.error.code == ErrorCode.NODE_UNAVAILABLE:
            self.registry.online()
            self._unreachable(client, asked.again)
            return "gone"
        if len(self.uploads) >= self.wanted:
            self._leave_out_long()
        if len(self.uploads) >= self.wanted:
            self._count("surplus", client)
            self.wasted_bytes += _nbytes(reply)
            return "surplus"
        try:
            self.uploads[client] = self.spool.take(reply, client, asked.samples, asked.size)
        except RefusedError as refused:
            self.wasted_bytes += _nbytes(reply)
            if refused.reason == STALE and asked.node in self._stale:
                self._distrusted.add(asked.node)
            if refused.reason == STALE:
                self._stale.add(asked.node)
            if refused.reason == "other-client":
                self.registry.forget(client)
            how = refused.reason if refused.reason in ("failed", STALE) else "refused"
            self.reason = f"client {client}: {refused.detail}"
            self._count(how, client, reason=refused.reason, detail=refused.detail)
            return how
        if self.uploads[client].fresh:
            self._count("fresh", client)
        self.holds[client] = asked.node, self._round
        return "counted"

    def _look_for_nodes(self) -> list[tuple[int, int]]:
        """See who is online; those to be asked who were away."""
        self.registry.online()
        for name, asked in list(self._pending.items()):
            if self.registry.node(asked.client) != asked.node:
                self.messenger.forget(name)
                del self._pending[name]
                self._unreachable(asked.client, asked.again)
        back = [client for client in self._away if self.registry.node(client) is not None]
        return [(client, self._away.pop(client)) for client in back]

    def _limits(self) -> Mapping[str, float]:
        """How long the uploads that are here may be."""
        return self.bounds.limits([upload.lengths for upload in self.uploads.values()], self._length)

    def _leave_out_long(self) -> None:
        """Take out the uploads that are too long, where they are not to be clipped; without them others may be."""
        before = None
        while before != len(self.uploads):
            before, limits = len(self.uploads), self._limits()
            for client, upload in list(self.uploads.items()):
                long = self._long(upload, limits)
                if long and (self.federation.norm_action == "reject" or guard.STATISTICS in long):
                    self._too_long(client, upload, long[0], limits)

    def _too_long(self, client: int, upload: Upload, name: str, limits: Mapping[str, float]) -> None:
        """Take out one upload, of which `name` is too long."""
        self.reason = f"client {client}: {name!r} is too long"
        detail = f"{name!r} has length {upload.lengths[name]:.3g}, more than {limits[name]:.3g}"
        self._count("refused", client, reason="too-long", detail=detail)
        self.wasted_bytes += upload.nbytes
        del self.uploads[client]
        self.spool.drop(client)

    @staticmethod
    def _long(upload: Upload, limits: Mapping[str, float]) -> list[str]:
        return [name for name, length in upload.lengths.items() if length > limits[name]]

    def _look_for_late(self) -> None:
        """Count and forget the answers that came after their round was over."""
        for name, late in list(self._late.items()):
            reply = self.messenger.answer(name, late.node, late=True)
            if isinstance(reply, Message) and not reply.has_error():
                self._count("late", late.client, round=late.round + 1)
                self.wasted_bytes += _nbytes(reply)
            if reply is not None or time.monotonic() > late.until:
                self.messenger.forget(name)
                del self._late[name]

    def _count(self, event: str, client: int, **facts: Any) -> None:
        self.counts[event] += 1
        if "reason" in facts:
            self.counts[f"{event}: {facts['reason']}"] += 1
        self.events.write(event, **{"round": self._round + 1, "client": client, **facts})


def _nbytes(reply: Message | Exception) -> int:
    """Bytes of arrays in an answer."""
    if not isinstance(reply, Message) or reply.has_error():
        return 0
    return sum(len(array.data) for arrays in reply.content.array_records.values() for array in arrays.values())
