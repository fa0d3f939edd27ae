"""Messages over Flower's Grid, and what every one of them tells."""

import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import httpx
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import RunNotRunningException
from torch import Tensor

from fedadamw.flower.names import ARRAYS, ASK, NUMBERS, PROTOCOL, STALE
from fedadamw.flower.wire import RefusedError, to_array
from fedadamw.vector import nbytes

BRIEF_S = 0.5  # that an answer is waited for in one look
IN_FLIGHT = 4  # answers that are taken at a time: as many may be in memory
SURE_S = 30.0  # that a message stays valid beyond its deadline


class Content(NamedTuple):
    """What a message brings besides what all of them tell."""

    facts: dict[str, Any]
    arrays: ArrayRecord
    nbytes: int

    @staticmethod
    def of(facts: dict[str, Any], tensors: Mapping[str, Tensor]) -> "Content":
        """The message's part for these tensors."""
        return Content(facts, ArrayRecord({name: to_array(t) for name, t in tensors.items()}), nbytes(tensors.values()))


class Post:
    """Sends messages to nodes and looks for their answers; `facts` go with every message."""

    def __init__(self, grid: Grid, facts: Mapping[str, Any]) -> None:
        self.grid, self.facts = grid, dict(facts)
        self._pulls: dict[str, _Pull] = {}

    def send(self, node: int, ask: str, seconds: float, content: Content | None = None) -> str | None:
        """Ask a node; the message's name, None where it could not be sent."""
        facts = {} if content is None else content.facts
        records: dict[str, Any] = {ASK: ConfigRecord({**self.facts, "protocol": PROTOCOL, "ask": ask, **facts})}
        if content is not None:
            records[ARRAYS] = content.arrays
        kind = "query" if ask == "hello" else "train"
        message = Message(RecordDict(records), node, kind, ttl=seconds + SURE_S)
        return next(iter(self.grid.push_messages([message])), None)

    def answer(self, name: str, node: int) -> Message | Exception | None:
        """The answer of `node` to a message; None where none is here yet; the error where it can be read by nobody.

        Taking an answer may last: it is seen before all of it has come, and its node may stop. So it is taken aside,
        and looked for again with the next call.
        """
        pull = self._pulls.get(name)
        if pull is None and len(self._pulls) >= IN_FLIGHT:
            return None
        if pull is None:
            pull = self._pulls[name] = _Pull(self.grid, name)
            pull.start()
        pull.join(BRIEF_S)
        if pull.is_alive():
            return None
        del self._pulls[name]
        if isinstance(pull.error, httpx.HTTPError | RunNotRunningException | ConnectionError):
            raise pull.error
        if isinstance(pull.error, Exception):
            return pull.error
        return next((m for m in pull.found if _is_answer(m, name, node)), None)

    def forget(self, name: str) -> bool:
        """Look no more for the answer to a message; whether it was on its way."""
        return self._pulls.pop(name, None) is not None


class _Pull(threading.Thread):
    """Takes what there is in answer to one message."""

    def __init__(self, grid: Grid, name: str) -> None:
        super().__init__(daemon=True)
        self._grid, self._message = grid, name
        self.found: list[Message] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.found = list(self._grid.pull_messages([self._message]))
        except BaseException as error:  # whatever a node sent; Flower's end of a run is no Exception
            self.error = error


def _is_answer(message: Message, name: str, node: int) -> bool:
    """Whether it is what `node`, or Flower in its place, says to the message: nodes can send to others' names."""
    about = message.metadata
    return about.reply_to_message_id == name and (message.has_error() or about.src_node_id == node)


def numbers_of(reply: Message | Exception | None) -> dict[str, Any]:
    """The numbers of an answer; RefusedError where it has none, or is an error."""
    if reply is None:
        raise RefusedError("silent", "it did not answer in time")
    if isinstance(reply, Exception):
        raise RefusedError("garbage", f"it cannot be read ({reply})")
    if reply.has_error():
        raise RefusedError("failed", str(reply.error.reason))
    records = reply.content.metric_records
    if set(records) != {NUMBERS}:
        raise RefusedError("records", f"it has the numbers {', '.join(sorted(records)) or 'none'}")
    numbers = dict(records[NUMBERS])
    if numbers.get(STALE):
        raise RefusedError(STALE, "it does not have the state that was to be changed")
    return numbers
