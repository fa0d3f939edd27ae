"""Who takes part: the nodes that are online, and which client each says it is."""

import time
from collections.abc import Sequence
from typing import NamedTuple

from flwr.app import Message

from fedadamw.flower.server.events import Events
from fedadamw.flower.server.messenger import Messenger, read_numbers
from fedadamw.flower.wire import RefusedError

HELLO_S = 300.0  # that a node may take to say who it is: it loads data and model
AGAIN_S = 60.0  # after which a node that was left out is asked again; or says nothing: Flower may have lost a message


class Known(NamedTuple):
    """A client that has said who it is."""

    node: int  # Flower's number of it
    samples: int | None  # that it holds, where nodes tell


class Hello(NamedTuple):
    """A node is asked who it is."""

    names: tuple[str, ...]  # of the messages: one, or two
    until: float  # when it is silent


class ClientRegistry:
    """The clients 0 .. clients - 1, of those that are online. layout: the model's, which theirs must have.

    sizes: samples that each client has, where the server knows. counts: whether nodes tell; most: that may be told.
    """

    def __init__(
        self,
        messenger: Messenger,
        events: Events,
        *,
        clients: int,
        layout: int,
        sizes: Sequence[int] | None,
        counts: bool,
        most: int,
    ) -> None:
        self.messenger, self.events, self.sizes = messenger, events, sizes
        self.clients, self.layout, self.counts, self.most = clients, layout, counts, most
        self.known: dict[int, Known] = {}  # by client
        self._hellos: dict[int, Hello] = {}  # by node
        self._left_out: dict[int, float] = {}  # nodes, and until when they are not asked again

    def node(self, client: int) -> int | None:
        """The node of a client, None where that is not online."""
        return self.known[client].node if client in self.known else None

    def online(self) -> list[int]:
        """The clients that are online, rising; new nodes are asked who they are, and do not hold up the others."""
        here, now = set(self.messenger.grid.get_node_ids()), time.monotonic()
        for client in [c for c, known in self.known.items() if known.node not in here]:
            self.events.write("left", client=client)
            del self.known[client]
            self._left_out.clear()  # who was another's double may be the one now
        self._left_out = {node: until for node, until in self._left_out.items() if node in here and now < until}
        for node, hello in list(self._hellos.items()):
            replies = [reply for name in hello.names if (reply := self.messenger.answer(name, node)) is not None]
            if replies or now > hello.until or node not in here:
                del self._hellos[node]
                for name in hello.names:
                    self.messenger.forget(name)
                self._met(node, next(iter(replies), None))
        for node in sorted(here - {known.node for known in self.known.values()} - self._left_out.keys()):
            hello = self._hellos.get(node, Hello((), now + HELLO_S))
            again = len(hello.names) == 1 and now > hello.until - HELLO_S + AGAIN_S
            sent = self.messenger.send(node, "hello", HELLO_S) if again or not hello.names else None
            if sent is not None:
                self._hellos[node] = Hello((*hello.names, sent), hello.until)
        self.events.monitor.set_online(len(self.known))
        return sorted(self.known)

    def size(self, client: int) -> int | None:
        """How many samples a client has, where the server knows or was told."""
        return int(self.sizes[client]) if self.sizes is not None else self.known[client].samples

    def forget(self, client: int) -> None:
        """A client is another one now: its node is asked again who it is."""
        if self.known.pop(client, None) is not None:
            self.events.write("left", client=client)

    def _counted(self, client: int, samples: object) -> bool:
        """Whether a client may have so many samples."""
        if not self.counts:
            return samples is None
        if self.sizes is not None:
            return samples == int(self.sizes[client])
        return isinstance(samples, int) and 0 < samples <= self.most

    def _met(self, node: int, reply: Message | Exception | None) -> None:
        """Take a node in for the client that it says it is, or leave it out for a while."""
        try:
            numbers = read_numbers(reply)
            client, samples = numbers.get("client"), numbers.get("num-examples")
            if not isinstance(client, int) or not 0 <= client < self.clients:
                raise RefusedError("unknown-client", f"it is client {client!r} of {self.clients}")
            if client in self.known:
                raise RefusedError("taken", f"client {client} is there already")
            if numbers.get("layout") != self.layout:
                raise RefusedError("other-model", "its model differs from the server's: other versions or settings")
            if not self._counted(client, samples):
                raise RefusedError("samples", f"it says it has {samples!r} samples")
        except RefusedError as refused:
            self._left_out[node] = time.monotonic() + AGAIN_S
            self.events.write("stranger", node=str(node), reason=refused.reason, detail=refused.detail)
            return
        self.known[client] = Known(node, samples)
        self.events.write("joined", client=client, node=str(node), samples=samples)
