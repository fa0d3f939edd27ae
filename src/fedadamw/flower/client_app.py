"""The node's half as a Flower ClientApp; it imports little, since Flower starts a process for every message."""

import time
from collections.abc import Mapping
from typing import Any

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedadamw.flower.node.worker import ask_worker
from fedadamw.flower.protocol import ARRAYS, NUMBERS, PROTOCOL, REQUEST


def client_app() -> ClientApp:
    """An app that trains whatever fedadamw's ServerApp asks for, on this node's data."""
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return answer_message(message, context)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return answer_message(message, context)

    return app


def answer_message(message: Message, context: Context) -> Message:
    """The answer to a message of fedadamw's ServerApp; what fails goes back as Flower's error, with its reason."""
    asked: Any = dict(message.content.config_records[REQUEST])
    if asked.get("protocol") != PROTOCOL:
        raise RuntimeError(f"the server speaks protocol {asked.get('protocol')!r}, this node {PROTOCOL}: upgrade one")
    records = message.content.array_records
    arrays = dict(records[ARRAYS]) if ARRAYS in records else {}
    return pack_reply(message, *ask_worker({**asked, "came": time.time(), "config": dict(context.node_config)}, arrays))


def pack_reply(message: Message, numbers: dict[str, Any], arrays: Mapping[str, Array]) -> Message:
    """The answer to `message` with these numbers and arrays."""
    content = RecordDict({NUMBERS: MetricRecord(numbers)})
    if arrays:
        content[ARRAYS] = ArrayRecord(dict(arrays))
    return Message(content, reply_to=message)
