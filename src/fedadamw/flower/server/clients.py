"""Tracks the clients that are online. New nodes are asked which client they are (hello); they join or are left out."""

import time
from collections.abc import Sequence
from typing import NamedTuple

from flwr.app import Message

from fedadamw.flower.server.events import Events
from fedadamw.flower.server.messenger import Messenger
from fedadamw.flower.server.pixels import PixelSums
from fedadamw.flower.server.replies import read_numbers
from fedadamw.flower.wire import RefusedError

HELLO_S = 300.0  # time for a node to answer hello; it first loads data and model
AGAIN_S = 60.0  # until a node is asked again: it was left out, or Flower may have lost the message


class JoinedClient(NamedTuple):
    """A client that is online."""

    node: int  # Flower's node id
    samples: int | None  # that it registered with; None if nodes do not report it
    held_out: int = 0  # held-out samples that it registered with


class Hello(NamedTuple):
    """A node that has been asked which client it is."""

    message_ids: tuple[str, ...]  # one, or two if it was asked again
    expires: float  # when it counts as silent


class ClientRegistry:
    """The clients 0 .. clients - 1 that are online, and their nodes.

    layout: digest of the model's layout, which nodes must match. sizes, held_out: each client's numbers of samples, if
    the server knows them. counts: whether nodes report how many samples they have; most: the largest number they may
    report. evaluates: whether they report how many are held out. pixels: gathers the sums of the nodes' pixels, while
    they are needed.
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
        held_out: Sequence[int] | None = None,
        evaluates: bool = False,
        pixels: PixelSums | None = None,
    ) -> None:
        self.messenger, self.events, self.sizes, self.held_out = messenger, events, sizes, held_out
        self.evaluates, self._seen = evaluates, dict[int, int]()  # held-out samples of those that have been online
        self.clients, self.layout, self.counts, self.most = clients, layout, counts, most
        self.pixels = pixels
        self.joined: dict[int, JoinedClient] = {}  # by client
        self._hellos: dict[int, Hello] = {}  # by node
        self._left_out: dict[int, float] = {}  # node -> when to ask it again
        self.reason = ""  # why the last node was left out

    def node_of(self, client: int) -> int | None:
        """Return a client's node; None if it is not online."""
        return self.joined[client].node if client in self.joined else None

    def sample_count(self, client: int) -> int | None:
        """Return a client's number of samples; None if not known."""
        return int(self.sizes[client]) if self.sizes is not None else self.joined[client].samples

    def held_out_count(self, client: int) -> int:
        """Return a client's number of held-out samples; 0 if not known."""
        return int(self.held_out[client]) if self.held_out is not None else self._seen.get(client, 0)

    def with_held_out(self) -> list[int]:
        """Return the clients with held-out samples, ascending: all, or those that have been online if not known."""
        return [client for client in range(self.clients) if self.held_out_count(client)]

    def poll_online(self) -> list[int]:
        """Return the clients that are online, in ascending order.

        Removes nodes that left, sends hello to new ones and admits those that have answered; does not wait for them.
        """
        nodes, now = set(self.messenger.grid.get_node_ids()), time.monotonic()
        self._remove_gone(nodes)
        self._left_out = {node: until for node, until in self._left_out.items() if node in nodes and now < until}
        self._receive_hellos(nodes, now)
        self._send_hellos(nodes, now)
        self.events.monitor.set_online(len(self.joined))
        return sorted(self.joined)

    def forget(self, client: int) -> None:
        """Remove a client that has left, or whose node is now another client; the node is asked again."""
        if self.joined.pop(client, None) is not None:
            self.events.write("left", client=client)

    def leave_out(self, client: int, why: str) -> None:
        """Remove a client that declines to take part; its node is asked again after AGAIN_S."""
        node = self.node_of(client)
        self.forget(client)
        if node is not None:
            self._left_out[node], self.reason = time.monotonic() + AGAIN_S, why

    def _remove_gone(self, nodes: set[int]) -> None:
        for client in [client for client, joined in self.joined.items() if joined.node not in nodes]:
            self.forget(client)
            self._left_out.clear()  # a node whose number was taken may join now

    def _receive_hellos(self, nodes: set[int], now: float) -> None:
        for node, hello in list(self._hellos.items()):
            polled = [self.messenger.poll(message_id, node) for message_id in hello.message_ids]
            replies = [reply for reply in polled if reply is not None]
            if replies or now > hello.expires or node not in nodes:
                del self._hellos[node]
                for message_id in hello.message_ids:
                    self.messenger.forget(message_id)
                self._admit(node, next(iter(replies), None))

    def _send_hellos(self, nodes: set[int], now: float) -> None:
        """Send hello to unknown nodes, and once more to those that have not answered within AGAIN_S."""
        for node in sorted(nodes - {joined.node for joined in self.joined.values()} - self._left_out.keys()):
            hello = self._hellos.get(node, Hello((), now + HELLO_S))
            again = len(hello.message_ids) == 1 and now > hello.expires - HELLO_S + AGAIN_S
            sent = self.messenger.send(node, "hello", HELLO_S) if again or not hello.message_ids else None
            if sent is not None:
                self._hellos[node] = Hello((*hello.message_ids, sent), hello.expires)

    def _admit(self, node: int, reply: Message | Exception | None) -> None:
        """Admit a node as the client that it claims to be, or leave it out for AGAIN_S."""
        try:
            client, samples, held_out = self._check_hello(reply)
            if self.pixels is not None:
                self.pixels.add(client, reply, samples)
        except RefusedError as refused:
            self._left_out[node], self.reason = time.monotonic() + AGAIN_S, refused.detail
            self.events.write("stranger", node=str(node), reason=refused.reason, detail=refused.detail)
            return
        self.joined[client] = JoinedClient(node, samples, held_out)
        self._seen[client] = held_out
        of_test = {"held_out": held_out} if self.evaluates else {}
        self.events.write("joined", client=client, node=str(node), samples=samples, **of_test)

    def _check_hello(self, reply: Message | Exception | None) -> tuple[int, int | None, int]:
        """Return the client and numbers of samples that a node reports; raises RefusedError if it cannot join."""
        numbers = read_numbers(reply)
        client, samples = numbers.get("client"), numbers.get("num-examples")
        if not isinstance(client, int) or not 0 <= client < self.clients:
            raise RefusedError("unknown-client", f"it is client {client!r} of {self.clients}")
        if client in self.joined:
            raise RefusedError("taken", f"client {client} is online already")
        if numbers.get("layout") != self.layout:
            raise RefusedError("other-model", "its model differs from the server's: other versions or settings")
        if not self._is_valid_count(client, samples):
            raise RefusedError("samples", f"it reports {samples!r} samples")
        held_out = numbers.get("held-out", 0)
        if not isinstance(held_out, int) or not self._is_valid_held_out(client, held_out):
            raise RefusedError("samples", f"it reports {held_out!r} held-out samples")
        return client, samples if isinstance(samples, int) else None, held_out

    def _is_valid_held_out(self, client: int, held_out: int) -> bool:
        if not self.evaluates:
            return held_out == 0
        if self.held_out is not None:
            return held_out == int(self.held_out[client])
        return 0 <= held_out <= self.most

    def _is_valid_count(self, client: int, samples: object) -> bool:
        if not self.counts:
            return samples is None
        if self.sizes is not None:
            return isinstance(samples, int) and samples == int(self.sizes[client])
        return isinstance(samples, int) and 0 < samples <= self.most
