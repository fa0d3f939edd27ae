"""Messages over Flower's Grid, and what every one of them tells."""

import json
import math
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import httpx
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message.arraychunk import ArrayChunk
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_object_body,
    get_object_children_ids_from_object_content,
)
from flwr.supercore.inflatable.inflatable_utils import inflatable_class_registry
from flwr.supercore.run import RunNotRunningException
from torch import Tensor

from fedadamw.flower.protocol import ARRAYS, NUMBERS, PROTOCOL, REPLY_NUMBERS, REQUEST, STALE
from fedadamw.flower.wire import RefusedError, to_array
from fedadamw.vector import nbytes

BRIEF_S = 0.5  # that an answer is waited for in the first look
IN_FLIGHT = 4  # answers that are taken at a time: as many may be in memory
LATE = 1  # and answers that came too late
HELD_S = 20.0  # that an answer may take, before another one is taken beside it
OF_A_NODE = 2  # answers of one node that are taken at a time, however long that lasts
BROKEN_S = 60.0  # that the SuperLink may answer with nothing but errors
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


class Messenger:
    """Sends messages to nodes and looks for their answers.

    facts: go with every message. most: bytes of arrays that an answer may have.
    """

    def __init__(self, grid: Grid, facts: Mapping[str, Any], most: int) -> None:
        self.grid, self.facts, self.most = grid, dict(facts), most
        self._pulls: dict[str, _Pull] = {}
        self._forgotten: list[_Pull] = []
        self._broken = self._last_error = -math.inf  # since when the SuperLink has answered with errors alone

    def send(
        self, node: int, ask: str, seconds: float, content: Content | None = None, *, keep: float = 0.0
    ) -> str | None:
        """Ask a node for work, to begin within so many seconds of its coming; the message's name, None where not sent.

        keep: seconds after these in which its answer may still come.
        """
        if self._hangs(node):
            return None
        facts = {} if content is None else content.facts
        own = {"protocol": PROTOCOL, "ask": ask, "sent": time.time(), "seconds": seconds, **facts}
        records: dict[str, Any] = {REQUEST: ConfigRecord({**self.facts, **own})}
        if content is not None:
            records[ARRAYS] = content.arrays
        kind = "query" if ask == "hello" else "train"
        message = Message(RecordDict(records), node, kind, ttl=seconds + max(keep, SURE_S))
        return next(iter(self.grid.push_messages([message])), None) or None  # "": for a node that is gone

    def answer(self, name: str, node: int, *, late: bool = False) -> Message | Exception | None:
        """The answer of `node` to a message; None where none is here yet; the error where it can be read by nobody.

        Taking an answer may last: it is seen before all of it has come, and its node may stop. So it is taken aside,
        and looked for again with the next call. late: it only matters that it came.
        """
        pull = self._pulls.get(name)
        if pull is None:
            if self._hangs(node) or not self._free(late=late):
                return None
            pull = self._pulls[name] = _Pull(self.grid, name, node, self.most)
            pull.start()
            pull.join(BRIEF_S)
        pull.late = late
        if pull.is_alive():
            return None
        del self._pulls[name]
        if isinstance(pull.error, httpx.HTTPStatusError) and pull.error.response.status_code >= 500:
            now = time.monotonic()
            self._broken = self._broken if now - self._last_error < BRIEF_S * 20 else now
            self._last_error = now
            if now - self._broken > BROKEN_S:
                raise pull.error
            return None
        self._broken = self._last_error = -math.inf
        if isinstance(pull.error, httpx.HTTPError | RunNotRunningException | ConnectionError):
            raise pull.error
        if isinstance(pull.error, Exception):
            return pull.error
        return next((m for m in pull.found if _is_answer(m, name, node)), None)

    def forget(self, name: str) -> None:
        """Look no more for the answer to a message."""
        if (pull := self._pulls.pop(name, None)) is not None:
            self._forgotten.append(pull)

    def _hangs(self, node: int) -> bool:
        """Whether so many answers of a node are on their way that no other is taken."""
        self._forgotten = [pull for pull in self._forgotten if pull.is_alive()]
        return sum(pull.node == node for pull in (*self._pulls.values(), *self._forgotten)) >= OF_A_NODE

    def _free(self, *, late: bool) -> bool:
        """Whether one more answer may be taken now; who stops while it is taken holds up the others for a while."""
        now = time.monotonic()
        taken = sum(pull.late == late and now - pull.since < HELD_S for pull in self._pulls.values())
        return taken < (LATE if late else IN_FLIGHT)


class _Pull(threading.Thread):
    """Takes what there is in answer to one message."""

    def __init__(self, grid: Grid, name: str, node: int, most: int) -> None:
        super().__init__(daemon=True)
        self._grid, self._message, self._most = grid, name, most
        self.node, self.late, self.since = node, False, time.monotonic()
        self.found: list[Message] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        _allowed.nbytes = self._most
        try:
            self.found = list(self._grid.pull_messages([self._message]))
        except BaseException as error:  # whatever a node sent; Flower's end of a run is no Exception
            self.error = error


_allowed = threading.local()  # nbytes: of arrays that may yet be put together in a pull


class _Limited(Array):
    """Flower's Array; one piece of a few bytes can be named in it a thousand times."""

    @classmethod
    def inflate(cls, object_content: bytes, children: dict[str, InflatableObject] | None = None) -> Array:
        if not hasattr(_allowed, "nbytes"):  # somebody else's pull
            return Array.inflate(object_content, children)
        pieces, names = children or {}, get_object_children_ids_from_object_content(object_content)
        about = json.loads(get_object_body(object_content, Array))
        size = sum(len(cast(ArrayChunk, pieces[names[i]]).data) for i in about["arraychunk_ids"])
        _allowed.nbytes -= size
        if _allowed.nbytes < 0:
            raise RefusedError("garbage", f"it has {-_allowed.nbytes:,} bytes of arrays too many")
        return Array.inflate(object_content, children)


inflatable_class_registry[Array.__qualname__] = _Limited  # for whoever takes answers by this module


def _is_answer(message: Message, name: str, node: int) -> bool:
    """Whether it is what `node`, or Flower in its place, says to the message: nodes can send to others' names."""
    about = message.metadata
    return about.reply_to_message_id == name and (message.has_error() or about.src_node_id == node)


def read_numbers(reply: Message | Exception | None) -> dict[str, Any]:
    """The numbers of an answer; RefusedError where it has none, or is an error."""
    if reply is None:
        raise RefusedError("silent", "it did not answer in time")
    if isinstance(reply, Exception):
        raise RefusedError("garbage", f"it cannot be read ({reply})")
    if reply.has_error():
        raise RefusedError("failed", str(reply.error.reason))
    records = reply.content.metric_records
    if set(records) != {NUMBERS} or reply.content.config_records:
        found = sorted([*records, *reply.content.config_records])
        raise RefusedError("records", f"it has the records {', '.join(found) or 'none'} of numbers and settings")
    numbers = dict(records[NUMBERS])
    if extra := sorted(numbers.keys() - REPLY_NUMBERS):
        raise RefusedError("records", f"it has the number {extra[0]!r}, which nobody asked for")
    if numbers.get(STALE):
        raise RefusedError(STALE, "it does not have the state that was to be changed")
    return numbers
