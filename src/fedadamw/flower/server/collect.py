"""Collects a round's uploads: asks clients, polls for replies, asks again after failures, stops at the deadline.

No node delays the others: failed and returning nodes are asked again, slow ones have until the deadline, and late
replies are counted and discarded.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from flwr.app import Message

from fedadamw.flower.protocol import DECLINED, STALE
from fedadamw.flower.server.attempts import POLL_NODES_S, POLL_S, Attempt, poll_replies
from fedadamw.flower.server.broadcast import Broadcast
from fedadamw.flower.server.check_upload import CheckedUpload
from fedadamw.flower.server.clients import ClientRegistry
from fedadamw.flower.server.events import Events
from fedadamw.flower.server.late import LateReplies, Overdue
from fedadamw.flower.server.messenger import TTL_MARGIN_S, Content, Messenger
from fedadamw.flower.server.norm_bounds import STATISTICS, NormBounds, Norms, find_too_long
from fedadamw.flower.server.replies import count_bytes, is_node_gone
from fedadamw.flower.server.spool import UploadSpool
from fedadamw.flower.wire import RefusedError
from fedadamw.runner.asked_file import AskedFile
from fedadamw.settings.federation import FederationSettings

Outcome = Literal["counted", "surplus", "refused", "declined", "failed", "stale", "gone"]


class PendingRequest(NamedTuple):
    """A train request that has no reply yet."""

    client: int
    node: int
    registered: int | None  # samples that the client registered with
    samples: int | None  # samples that it has, if known
    retries: int  # how often the client may be asked again
    expires: float  # when Flower forgets the request
    whole: bool  # whether it carried the whole state


class Collector:
    """Collects the uploads of one round after another. wanted: how many uploads a round uses at most.

    keep_places: a refused upload has its place as one that counts has, so that what a client sends does not decide
    whose upload counts besides: privacy of clients needs that.
    """

    def __init__(
        self,
        federation: FederationSettings,
        messenger: Messenger,
        registry: ClientRegistry,
        spool: UploadSpool,
        events: Events,
        wanted: int,
        *,
        keep_places: bool = False,
        asked_file: AskedFile | None = None,
    ) -> None:
        self.federation, self.messenger, self.registry = federation, messenger, registry
        self.spool, self.events, self.wanted, self.keep_places = spool, events, wanted, keep_places
        self.asked_file = asked_file  # of a run with differential privacy
        self.bounds = NormBounds(federation)
        self.broadcast = Broadcast()
        self.late = LateReplies(messenger)
        # of the current round:
        self.uploads: dict[int, CheckedUpload] = {}  # by client; in a buffered run by job
        self.refused: set[int] = set()  # clients whose uploads were, with keep_places
        self.asked: set[int] = set()
        self.counts: Counter[str] = Counter()
        self.down_bytes = self.wasted_bytes = 0  # sent; and received in replies that did not count
        self.reason = ""  # why the last upload did not count
        self._model_norm = 0.0
        self._pending: dict[str, PendingRequest] = {}  # by message id
        self._away: dict[int, int] = {}  # client -> remaining retries, if it comes back in time
        self._unreachable: set[int] = set()  # clients already counted as unreachable

    @property
    def answers(self) -> int:
        """How many places of the round are taken."""
        return len(self.uploads) + len(self.refused)

    @property
    def working(self) -> list[int]:
        """The clients whose replies are pending."""
        return [request.client for request in self._pending.values()]

    def begin(
        self, round_: int, whole: Content, change: Content | None, counted: Mapping[int, int], model_norm: float
    ) -> None:
        """Begin a round (from 0) with the contents to send.

        counted: the last round whose upload counted, by client. model_norm: l2 norm of the model.
        """
        self.uploads, self.counts, self.down_bytes, self.wasted_bytes, self.reason = {}, Counter(), 0, 0, ""
        self._model_norm, self.asked, self._away, self._unreachable = model_norm, set(), {}, set()
        self.refused = set()
        self.broadcast.begin(round_, whole, change, counted)
        self._poll_late()

    def collect(self, clients: Sequence[int], enough: int, seconds: float) -> None:
        """Ask `clients`; wait until `enough` uploads have passed, no more can come, or `seconds` are over."""
        deadline, poll_nodes_at, pause = time.monotonic() + seconds, time.monotonic() + POLL_NODES_S, POLL_S[0]
        attempts = [Attempt(client, self.federation.retries) for client in clients]
        while self.answers < enough:
            for attempt in attempts:
                self._ask(attempt, deadline - time.monotonic())
            over = time.monotonic() > deadline  # checked before polling: replies that are here by now still count
            pending, start = len(self._pending), time.monotonic()
            attempts = poll_replies(self.messenger, self._pending, self._handle_reply)
            poll_s = time.monotonic() - start
            if over:
                break
            if self.answers >= enough:
                self._reject_too_long()
            if time.monotonic() > poll_nodes_at:
                attempts += self._poll_nodes()
                self._poll_late()
                poll_nodes_at = time.monotonic() + POLL_NODES_S
            if not (attempts or self._pending):
                break
            pause = POLL_S[0] if len(self._pending) < pending else min(pause * 1.5, POLL_S[1])
            if not attempts:
                time.sleep(min(max(pause, 3 * poll_s), POLL_NODES_S))  # polling takes at most a quarter of the time
        self._reject_too_long()

    def close(self) -> Norms:
        """End the round: count the overdue clients and the uploads to clip; return the norm limits."""
        for message_id, request in self._pending.items():
            self._count("overdue", request.client)
            overdue = Overdue(request.client, request.node, self.broadcast.round, request.expires)
            self.late.overdue[message_id] = overdue
        self._pending = {}
        limits = self._limits()
        for upload in self.uploads.values():
            if too_long := find_too_long(upload.norms, limits):
                self._count("clipped", upload.client, fields=", ".join(too_long))
        self.counts["answered"] = len(self.uploads)
        return limits

    def _ask(self, attempt: Attempt, seconds: float) -> None:
        """Send a train request to a client, if it is online."""
        client, node = attempt.client, self.registry.node_of(attempt.client)
        if node is None:
            self._mark_unreachable(attempt)
            return
        content, whole = self.broadcast.content_for(client, node)
        seconds, keep = max(seconds, 1.0), self.federation.wait_s + TTL_MARGIN_S
        if self.asked_file is not None:
            self.asked_file.add(client, self.broadcast.round)
        message_id = self.messenger.send(node, "train", seconds, content, keep=keep)
        if message_id is None:
            self._mark_unreachable(attempt)
            return
        self.counts["asked"] += 1
        self.asked.add(client)
        self._away.pop(client, None)
        self.down_bytes += content.nbytes
        registered, samples = self.registry.joined[client].samples, self.registry.sample_count(client)
        expires = time.monotonic() + seconds + keep
        self._pending[message_id] = PendingRequest(client, node, registered, samples, attempt.retries, expires, whole)

    def _mark_unreachable(self, attempt: Attempt | PendingRequest) -> None:
        """Count a client that was offline or left while it worked; it is asked again if it comes back."""
        client = attempt.client
        if client not in self._unreachable:
            self._count("unreachable", client)
        self._unreachable.add(client)
        if attempt.retries:
            self._away[client] = attempt.retries - 1

    def _handle_reply(self, reply: Message | Exception, request: PendingRequest) -> Outcome:
        """Keep a reply's upload, or count the reason why it does not count."""
        if is_node_gone(reply):
            self.registry.poll_online()
            self._mark_unreachable(request)
            return "gone"
        if self.answers >= self.wanted:
            self._reject_too_long()
        if self.answers >= self.wanted:
            self._count("surplus", request.client)
            self.wasted_bytes += count_bytes(reply)
            return "surplus"
        try:
            upload = self.spool.accept(reply, *(request.client,) * 2, request.registered, request.samples)
        except RefusedError as refused:
            return self._handle_refusal(reply, request.client, request.node, refused)
        self.uploads[request.client] = upload
        if upload.fresh:
            self._count("fresh", request.client)
        self.broadcast.record_accepted(request.client, request.node)
        return "counted"

    def _handle_refusal(self, reply: Message | Exception, client: int, node: int, refused: RefusedError) -> Outcome:
        """Count an upload that failed a check."""
        reason = refused.reason
        self.wasted_bytes += count_bytes(reply)
        if reason == STALE:
            self.broadcast.record_stale(node)
        if reason == "other-client":
            self.registry.forget(client)
        if reason == DECLINED:
            self.registry.leave_out(client, refused.detail)
        kinds: dict[str, Outcome] = {"failed": "failed", STALE: "stale", DECLINED: "declined"}
        outcome = kinds.get(reason, "refused")
        self.reason = f"client {client}: {refused.detail}"
        if outcome == "refused":
            self._keep_place(client)
        self._count(outcome, client, reason=reason, detail=refused.detail)
        return outcome

    def _poll_nodes(self) -> list[Attempt]:
        """Find out which clients are online; return those that are back and to be asked again."""
        self.registry.poll_online()
        for message_id, request in list(self._pending.items()):
            if self.registry.node_of(request.client) != request.node:
                self.messenger.forget(message_id)
                del self._pending[message_id]
                self._mark_unreachable(request)
        back = [client for client in self._away if self.registry.node_of(client) is not None]
        return [Attempt(client, self._away.pop(client)) for client in back]

    def _poll_late(self) -> None:
        """Count the replies that came after the end of their round."""
        for reply in self.late.poll():
            self._count("late", reply.client, round=reply.round + 1)
            self.wasted_bytes += reply.nbytes

    def _limits(self) -> Norms:
        return self.bounds.limits([upload.norms for upload in self.uploads.values()], self._model_norm)

    def _reject_too_long(self) -> None:
        """Drop uploads that are too long and cannot be clipped; repeat, since each drop may lower the median."""
        before = None
        while before != len(self.uploads):
            before, limits = len(self.uploads), self._limits()
            for place, upload in list(self.uploads.items()):
                too_long = find_too_long(upload.norms, limits)
                if too_long and (self.federation.norm_action == "reject" or STATISTICS in too_long):
                    self._reject(place, upload, too_long[0], limits)

    def _reject(self, place: int, upload: CheckedUpload, field: str, limits: Norms) -> None:
        """Drop one upload because its `field` is too long."""
        self.reason = f"client {upload.client}: {field!r} is too long"
        detail = f"{field!r} has norm {upload.norms[field]:.3g}, more than {limits[field]:.3g}"
        self._count("refused", upload.client, reason="too-long", detail=detail)
        self.wasted_bytes += upload.nbytes
        del self.uploads[place]
        self._keep_place(upload.client)
        self.spool.drop(place)

    def _keep_place(self, client: int) -> None:
        if self.keep_places:
            self.refused.add(client)

    def _count(self, event: str, client: int, **facts: str | float) -> None:
        """Count and write an event of this round."""
        self.counts[event] += 1
        if "reason" in facts:
            self.counts[f"{event}: {facts['reason']}"] += 1
        self.events.write(event, **{"round": self.broadcast.round + 1, "client": client, **facts})
