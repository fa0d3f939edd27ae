"""Pulls replies from Flower's Grid in a thread, with a limit on the memory of one reply."""

import json
import threading
import time
from typing import cast

from flwr.app import Array, Message
from flwr.app.message.arraychunk import ArrayChunk
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_object_body,
    get_object_children_ids_from_object_content,
)
from flwr.supercore.inflatable.inflatable_utils import inflatable_class_registry

from fedadamw.flower.wire import RefusedError


class Pull(threading.Thread):
    """Pulls the reply to one message; sets `messages` or `error` at its end. max_nbytes: limit on its arrays."""

    def __init__(self, grid: Grid, message_id: str, node: int, max_nbytes: int) -> None:
        super().__init__(daemon=True)
        self._grid, self._message_id, self._max_nbytes = grid, message_id, max_nbytes
        self.node, self.late, self.started_at = node, False, time.monotonic()
        self.messages: list[Message] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        _budget.nbytes = self._max_nbytes
        try:
            self.messages = list(self._grid.pull_messages([self._message_id]))
        except BaseException as error:  # a node can send anything; the signal that the run ended is not an Exception
            self.error = error


_budget = threading.local()  # nbytes: of arrays that this thread's pull may still assemble


class LimitedArray(Array):
    """Flower's Array with a limit on the bytes that this thread assembles: a reply can name one chunk many times."""

    @classmethod
    def inflate(cls, object_content: bytes, children: dict[str, InflatableObject] | None = None) -> Array:
        if not hasattr(_budget, "nbytes"):  # not in one of our pulls
            return Array.inflate(object_content, children)
        chunks, names = children or {}, get_object_children_ids_from_object_content(object_content)
        about = json.loads(get_object_body(object_content, Array))
        _budget.nbytes -= sum(len(cast(ArrayChunk, chunks[names[i]]).data) for i in about["arraychunk_ids"])
        if _budget.nbytes < 0:
            raise RefusedError("garbage", f"its arrays are {-_budget.nbytes:,} bytes too large")
        return Array.inflate(object_content, children)


inflatable_class_registry[Array.__qualname__] = LimitedArray  # Flower then assembles arrays with it
