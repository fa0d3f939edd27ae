"""Sends requests to nodes over Flower's Grid and polls for their replies."""

import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import httpx
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import RunNotRunningException
from torch import Tensor

from fedadamw.flower.protocol import ARRAYS, PROTOCOL, REQUEST, Ask, RoundFacts, RunFacts
from fedadamw.flower.server.pull import Pull
from fedadamw.flower.wire import to_array
from fedadamw.vector import nbytes

FIRST_WAIT_S = 0.5  # for a new pull
MAX_PULLS = 4  # at the same time; each may hold a whole reply in memory
MAX_LATE_PULLS = 1  # in addition, for late replies
SLOW_PULL_S = 20.0  # after which a pull no longer counts among MAX_PULLS
MAX_PULLS_PER_NODE = 2  # at the same time, including slow ones
MAX_OUTAGE_S = 60.0  # for which the SuperLink may answer only with errors
TTL_MARGIN_S = 30.0  # for which a message stays valid beyond its deadline


class Content(NamedTuple):
    """A request's facts about its round, and its arrays."""

    facts: RoundFacts
    arrays: ArrayRecord
    nbytes: int

    @staticmethod
    def of(facts: RoundFacts, tensors: Mapping[str, Tensor]) -> "Content":
        """Return the content with these tensors."""
        return Content(facts, ArrayRecord({name: to_array(t) for name, t in tensors.items()}), nbytes(tensors.values()))


class Messenger:
    """Sends requests and polls for replies. facts: sent with every request. max_nbytes: limit on a reply's arrays."""

    def __init__(self, grid: Grid, facts: RunFacts, max_nbytes: int) -> None:
        self.grid, self.facts, self.max_nbytes = grid, facts, max_nbytes
        self._pulls: dict[str, Pull] = {}  # by message id
        self._abandoned: list[Pull] = []  # still running, of forgotten messages
        self._outage_start = self._last_error = -math.inf

    def send(
        self, node: int, ask: Ask, seconds: float, content: Content | None = None, *, keep: float = 0.0
    ) -> str | None:
        """Send a request whose work must begin within `seconds` of its arrival; return its id, None if not sent.

        keep: how many seconds after that its reply may still come.
        """
        if self._is_hanging(node):
            return None
        facts = {} if content is None else content.facts
        request: dict[str, Any] = {"protocol": PROTOCOL, "ask": ask, "sent": time.time(), "seconds": seconds}
        request = {**self.facts, **request, **facts}
        records: dict[str, Any] = {REQUEST: ConfigRecord(request)}
        if content is not None and content.arrays:
            records[ARRAYS] = content.arrays
        kind = "query" if ask == "hello" else ask
        message = Message(RecordDict(records), node, kind, ttl=seconds + max(keep, TTL_MARGIN_S))
        return next(iter(self.grid.push_messages([message])), None) or None  # "" if the node is gone

    def poll(self, message_id: str, node: int, *, late: bool = False) -> Message | Exception | None:
        """Return the reply of `node` to a message; None if it is not here yet; the error if it cannot be read.

        Pulling can block, so it runs in a thread and is polled by later calls. late: its round is over.
        """
        pull = self._pulls.get(message_id) or self._start_pull(message_id, node, late=late)
        if pull is None:
            return None
        pull.late = late
        if pull.is_alive():
            return None
        del self._pulls[message_id]
        if self._is_outage(pull.error):
            return None
        if isinstance(pull.error, httpx.HTTPError | RunNotRunningException | ConnectionError):
            raise pull.error
        if isinstance(pull.error, Exception):
            return pull.error
        return next((message for message in pull.messages if _is_reply(message, message_id, node)), None)

    def forget(self, message_id: str) -> None:
        """Stop polling for the reply to a message."""
        if (pull := self._pulls.pop(message_id, None)) is not None:
            self._abandoned.append(pull)

    def _start_pull(self, message_id: str, node: int, *, late: bool) -> Pull | None:
        """Start a pull and wait briefly for it; None if too many are running."""
        if self._is_hanging(node) or not self._has_room(late=late):
            return None
        pull = self._pulls[message_id] = Pull(self.grid, message_id, node, self.max_nbytes)
        pull.start()
        pull.join(FIRST_WAIT_S)
        return pull

    def _is_outage(self, error: BaseException | None) -> bool:
        """Return whether `error` is a temporary failure of the SuperLink; raises it after MAX_OUTAGE_S."""
        if not isinstance(error, httpx.HTTPStatusError) or error.response.status_code < 500:
            self._outage_start = self._last_error = -math.inf
            return False
        now = time.monotonic()
        self._outage_start = self._outage_start if now - self._last_error < FIRST_WAIT_S * 20 else now
        self._last_error = now
        if now - self._outage_start > MAX_OUTAGE_S:
            raise error
        return True

    def _is_hanging(self, node: int) -> bool:
        """Return whether the most pulls allowed from one node are running already."""
        self._abandoned = [pull for pull in self._abandoned if pull.is_alive()]
        running = (*self._pulls.values(), *self._abandoned)
        return sum(pull.node == node for pull in running) >= MAX_PULLS_PER_NODE

    def _has_room(self, *, late: bool) -> bool:
        """Return whether one more pull may start; a stalled one counts for SLOW_PULL_S only."""
        now = time.monotonic()
        running = sum(pull.late == late and now - pull.started_at < SLOW_PULL_S for pull in self._pulls.values())
        return running < (MAX_LATE_PULLS if late else MAX_PULLS)


def _is_reply(message: Message, message_id: str, node: int) -> bool:
    """Return whether `node`, or Flower for it, replied to this message: a node can send under another's name."""
    about = message.metadata
    return about.reply_to_message_id == message_id and (message.has_error() or about.src_node_id == node)
