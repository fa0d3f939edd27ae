"""Chooses what to send to each client: the whole state, the change since the last round's, or nothing if it has it."""

from collections.abc import Mapping
from uuid import uuid4

from fedadamw.flower.protocol import RoundFacts
from fedadamw.flower.server.messenger import Content


class Broadcast:
    """A round's content, and which nodes have this or the last round's state."""

    def __init__(self) -> None:
        self.round = 0
        self._process = uuid4().hex  # begins the names of states, which differ even if a round is repeated
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

    def forget(self) -> None:
        """Forget which state nodes have: the run goes back to an earlier one."""
        self._last_state, self._process = {}, uuid4().hex

    def content_for(self, client: int, node: int, *, reuse: bool = True) -> tuple[Content, bool]:
        """Return what to send to a client, and whether it is the whole state. reuse: not if the node has the state."""
        has_node, has_round = self._last_state.pop(client, (None, -1))
        may_reuse = reuse and has_node == node and node not in self._stale_twice
        content = self._whole
        if may_reuse and has_round == self.round:
            content = Content.of({"round": self.round, "form": "known"}, {})
        elif may_reuse and has_round == self.round - 1 and self._change is not None:
            content = self._change
        return content._replace(facts=self.complete(content.facts, client)), content is self._whole

    def complete(self, facts: RoundFacts, client: int) -> RoundFacts:
        """Return facts about the round with the state's name, and the last round whose upload of `client` counted."""
        complete = facts.copy()
        complete["state"] = f"{self._process}-{self.round}"
        complete["counted"] = self._counted.get(client, 0)
        return complete

    def record_accepted(self, client: int, node: int, round_: int | None = None) -> None:
        """Remember that a node has a round's state, by default this round's; it may have a later one since."""
        has_node, has_round = self._last_state.get(client, (None, -1))
        received = self.round if round_ is None else round_
        self._last_state[client] = node, max(received, has_round) if has_node == node else received

    def record_stale(self, node: int) -> None:
        """Remember that a node could not rebuild the state."""
        if node in self._stale_once:
            self._stale_twice.add(node)
        self._stale_once.add(node)
