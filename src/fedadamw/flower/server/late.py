"""Polls for replies that come after the end of their round; they are counted and discarded."""

import time
from typing import NamedTuple

from flwr.app import Message

from fedadamw.flower.server.messenger import Messenger
from fedadamw.flower.server.replies import count_bytes


class Overdue(NamedTuple):
    """A request that was not answered by the end of its round."""

    client: int
    node: int
    round: int
    expires: float  # when Flower forgets it


class LateReply(NamedTuple):
    """A reply to an overdue request."""

    client: int
    round: int
    nbytes: int


class LateReplies:
    """Polls for replies to overdue requests, so that they do not pile up in the SuperLink."""

    def __init__(self, messenger: Messenger) -> None:
        self.messenger = messenger
        self.overdue: dict[str, Overdue] = {}  # by message id

    def poll(self) -> list[LateReply]:
        """Return the replies that have come since the last poll."""
        replies = []
        for message_id, request in list(self.overdue.items()):
            reply = self.messenger.poll(message_id, request.node, late=True)
            if isinstance(reply, Message) and not reply.has_error():
                replies.append(LateReply(request.client, request.round, count_bytes(reply)))
            if reply is not None or time.monotonic() > request.expires:
                self.messenger.forget(message_id)
                del self.overdue[message_id]
        return replies
