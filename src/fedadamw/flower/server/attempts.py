"""What is asked of clients: attempts, and polling for the replies to those that are pending."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

from flwr.app import Message

from fedadamw.flower.protocol import STALE
from fedadamw.flower.server.messenger import Messenger

POLL_S = (0.05, 0.5)  # between polls for replies: at first, and at most
POLL_NODES_S = 2.0  # between polls for nodes that came or left


class Attempt(NamedTuple):
    """A client to ask."""

    client: int
    retries: int  # how often it may be asked again after this


class Pending(Protocol):
    """A request that has no reply yet."""

    @property
    def client(self) -> int: ...

    @property
    def node(self) -> int: ...

    @property
    def retries(self) -> int:
        """How often the client may be asked again."""

    @property
    def whole(self) -> bool:
        """Whether the node needs no state of its own for it."""


P = TypeVar("P", bound=Pending)


def poll_replies(
    messenger: Messenger, pending: dict[str, P], handle: Callable[[Message | Exception, P], str]
) -> list[Attempt]:
    """Take the replies that have arrived out of `pending` (by message id); return the clients to ask again.

    handle: keeps a reply, or says why it does not count; after `failed` and `stale` the client is asked again.
    """
    attempts = []
    for message_id, request in list(pending.items()):
        reply = messenger.poll(message_id, request.node)
        if reply is None:
            continue
        del pending[message_id]
        if handle(reply, request) in ("failed", STALE) and (request.retries or not request.whole):
            attempts.append(Attempt(request.client, request.retries - request.whole))
    return attempts
