"""Chooses what to send to each client: the whole state, or only the change if its node has the last round's state."""

from collections.abc import Mapping

from fedadamw.flower.server.messenger import Content


class Broadcast:
    """A round's content, and which nodes have the last round's state."""

    def __init__(self) -> None:
        self.round = 0
        self._whole = Content.of({}, {})
        self._change: Content | None = None
        self._counted: Mapping[int, int] = {}
        self._last_state: dict[int, tuple[int, int]] = {}  # client -> its node, and the last round whose state it has
        self._stale_once: set[int] = set()  # nodes that could not rebuild the state from the change
        self._stale_twice: set[int] = set()  # their hardware may round differently: always send them the whole state

    @property
    def has_state_anywhere(self) -> bool:
        """Whether any node has a round's state."""
        return bool(self._last_state)

    def begin(self, round_: int, whole: Content, change: Content | None, counted: Mapping[int, int]) -> None:
        """Begin a round (from 0). counted: the last round whose upload counted, by client."""
        self.round, self._whole, self._change, self._counted = round_, whole, change, counted

    def content_for(self, client: int, node: int) -> tuple[Content, bool]:
        """Return what to send to a client, and whether it is the whole state."""
        has_last = self._last_state.pop(client, None) == (node, self.round - 1)
        content = self._whole
        if has_last and self._change is not None and node not in self._stale_twice:
            content = self._change
        facts = content.facts.copy()
        facts["counted"] = self._counted.get(client, 0)
        return content._replace(facts=facts), content is self._whole

    def record_accepted(self, client: int, node: int) -> None:
        """Remember that a node has this round's state."""
        self._last_state[client] = node, self.round

    def record_stale(self, node: int) -> None:
        """Remember that a node could not rebuild the state."""
        if node in self._stale_once:
            self._stale_twice.add(node)
        self._stale_once.add(node)
