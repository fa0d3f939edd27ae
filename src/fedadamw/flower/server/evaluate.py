"""Has the model evaluated on nodes: asks clients, polls for their sums, asks again after failures, stops at a deadline.

A node that is late, absent or refused is left out and named; nothing here stops a run.
"""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from flwr.app import Message
from torch import Tensor

from fedadamw.flower.protocol import DECLINED, STALE
from fedadamw.flower.server.attempts import POLL_NODES_S, POLL_S, Attempt, poll_replies
from fedadamw.flower.server.broadcast import Broadcast
from fedadamw.flower.server.check_sums import SumsChecker
from fedadamw.flower.server.clients import ClientRegistry
from fedadamw.flower.server.events import Events
from fedadamw.flower.server.late import LateReplies, Overdue
from fedadamw.flower.server.messenger import TTL_MARGIN_S, Content, Messenger
from fedadamw.flower.server.replies import count_bytes, is_node_gone
from fedadamw.flower.wire import RefusedError
from fedadamw.settings.federation import FederationSettings
from fedadamw.vector import nbytes

PREFIX = "evaluation"  # of the events and counts of evaluations
MAX_NAMES = 20  # of clients in one event


class PendingEvaluation(NamedTuple):
    """An evaluate request that has no reply yet."""

    client: int
    node: int
    retries: int  # how often the client may be asked again
    expires: float  # when Flower forgets the request
    brings_state: bool  # whether the node has the round's state afterwards
    whole: bool  # whether the node needs no state of its own


class SumsCollector:
    """Collects nodes' sums over their held-out samples, for one model after another."""

    def __init__(
        self,
        federation: FederationSettings,
        messenger: Messenger,
        registry: ClientRegistry,
        checker: SumsChecker,
        events: Events,
    ) -> None:
        self.federation, self.messenger, self.registry = federation, messenger, registry
        self.checker, self.events, self.broadcast = checker, events, Broadcast()
        self.late = LateReplies(messenger)
        self._model: Content | None = None
        self._may_bring_state = False
        self._pending: dict[str, PendingEvaluation] = {}  # by message id
        self.begin_round()

    def begin_round(self) -> None:
        """Begin a round: nothing was asked yet."""
        self.sums: dict[int, Tensor] = {}  # by client
        self.counts: Counter[str] = Counter()
        self.down_bytes = self.up_bytes = 0

    def collect(
        self, clients: Sequence[int], broadcast: Broadcast, model: Content | None, *, may_bring_state: bool
    ) -> dict[int, Tensor]:
        """Ask `clients`; return the sums (k,) of those that answered in time, by client in ascending order.

        broadcast: of the round (its number: how many are done). model: what to send to nodes that lack the last
        round's state; None: the whole state. may_bring_state: whether that is of the model to evaluate.
        """
        self.broadcast, self._model, self._may_bring_state = broadcast, model, may_bring_state
        deadline, poll_nodes_at = time.monotonic() + self.federation.evaluate_s, time.monotonic() + POLL_NODES_S
        attempts, pause = [Attempt(client, self.federation.retries) for client in clients], POLL_S[0]
        self._poll_late()
        while True:
            for attempt in attempts:
                self._ask(attempt, deadline - time.monotonic())
            over, pending = time.monotonic() > deadline, len(self._pending)
            attempts = poll_replies(self.messenger, self._pending, self._handle_reply)
            if over or not (attempts or self._pending):
                break
            if time.monotonic() > poll_nodes_at:
                self._drop_gone()
                poll_nodes_at = time.monotonic() + POLL_NODES_S
            pause = POLL_S[0] if len(self._pending) < pending else min(pause * 1.5, POLL_S[1])
            if not attempts:
                time.sleep(pause)
        self._close()
        return dict(sorted(self.sums.items()))

    def _close(self) -> None:
        """Count the overdue clients; their replies are awaited to be discarded."""
        for message_id, request in self._pending.items():
            self._count("overdue", request.client)
            self.late.overdue[message_id] = Overdue(
                request.client, request.node, self.broadcast.round - 1, request.expires
            )
        self._pending = {}
        self.counts[f"{PREFIX} answered"] = len(self.sums)

    def _ask(self, attempt: Attempt, seconds: float) -> None:
        """Send an evaluate request to a client, if it is online."""
        client, node = attempt.client, self.registry.node_of(attempt.client)
        if node is None:
            self._count("unreachable", client)
            return
        content, brings_state, whole = self._content_for(client, node)
        seconds = max(seconds, 1.0)
        message_id = self.messenger.send(node, "evaluate", seconds, content)
        if message_id is None:
            self._count("unreachable", client)
            return
        self.counts[f"{PREFIX} asked"] += 1
        self.down_bytes += content.nbytes
        expires = time.monotonic() + seconds + TTL_MARGIN_S
        self._pending[message_id] = PendingEvaluation(client, node, attempt.retries, expires, brings_state, whole)

    def _content_for(self, client: int, node: int) -> tuple[Content, bool, bool]:
        """Return what to send, whether it brings the state, and whether the node needs no state of its own for it."""
        model = self._model
        if self._may_bring_state:
            content, whole = self.broadcast.content_for(client, node)
            if model is None or not whole:
                return content, True, whole
        assert model is not None
        return model._replace(facts=self.broadcast.complete(model.facts, client)), False, True

    def _handle_reply(self, reply: Message | Exception, request: PendingEvaluation) -> str:
        """Keep a reply's sums and return "", or count and return the reason why they do not count."""
        if is_node_gone(reply):
            self.registry.poll_online()
            self._count("unreachable", request.client)
            return "gone"
        try:
            sums = self.checker.check(reply, request.client, self.registry.held_out_count(request.client))
        except RefusedError as refused:
            self.up_bytes += count_bytes(reply)
            self._handle_refusal(request, refused)
            return refused.reason
        self.sums[request.client] = sums
        self.up_bytes += nbytes([sums])
        if request.brings_state:
            self.broadcast.record_accepted(request.client, request.node)
        return ""

    def _handle_refusal(self, request: PendingEvaluation, refused: RefusedError) -> None:
        """Count sums that failed a check."""
        if refused.reason == STALE:
            self.broadcast.record_stale(request.node)
        if refused.reason == "other-client":
            self.registry.forget(request.client)
        kind = refused.reason if refused.reason in ("failed", STALE, DECLINED) else "refused"
        self._count(kind, request.client, reason=refused.reason, detail=refused.detail)

    def _drop_gone(self) -> None:
        """Give up on clients whose nodes have left."""
        self.registry.poll_online()
        for message_id, request in list(self._pending.items()):
            if self.registry.node_of(request.client) != request.node:
                self.messenger.forget(message_id)
                del self._pending[message_id]
                self._count("unreachable", request.client)

    def _poll_late(self) -> None:
        """Count and discard the replies that came after the end of their evaluation."""
        for reply in self.late.poll():
            self._count("late", reply.client)
            self.up_bytes += reply.nbytes

    def _count(self, kind: str, client: int, **facts: str) -> None:
        """Count and write an event of this evaluation."""
        self.counts[f"{PREFIX} {kind}"] += 1
        if "reason" in facts:
            self.counts[f"{PREFIX} {kind}: {facts['reason']}"] += 1
        self.events.write(f"{PREFIX}-{kind}", round=self.broadcast.round, client=client, **facts)


def list_numbers(clients: Iterable[int]) -> str:
    """Return client numbers as text for an event; only the first ones if there are many."""
    numbers = sorted(clients)
    more = f" and {len(numbers) - MAX_NAMES} more" if len(numbers) > MAX_NAMES else ""
    return ", ".join(map(str, numbers[:MAX_NAMES])) + more
