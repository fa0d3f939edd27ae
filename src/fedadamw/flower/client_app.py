"""The node's ClientApp. It imports no torch, since Flower starts a process for every message."""

import sys
import time
from collections.abc import Mapping
from typing import cast

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedadamw.flower.node.worker_client import ask_worker
from fedadamw.flower.protocol import (
    ARRAYS,
    DECLINED,
    NUMBERS,
    OTHER_DATA,
    PROTOCOL,
    REQUEST,
    DeclinedError,
    Numbers,
    OtherDataError,
    Request,
)


def client_app() -> ClientApp:
    """Return an app that answers the requests of fedadamw's ServerApp with this node's data."""
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return answer_message(message, context)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return answer_message(message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return answer_message(message, context)

    return app


def answer_message(message: Message, context: Context) -> Message:
    """Return the reply to a request of fedadamw's ServerApp; Flower turns an exception into an error reply."""
    request = cast(Request, dict(message.content.config_records[REQUEST]))
    if request.get("protocol") != PROTOCOL:
        raise RuntimeError(f"the server speaks protocol {request.get('protocol')!r}, this node {PROTOCOL}: upgrade one")
    records = message.content.array_records
    arrays = dict(records[ARRAYS]) if ARRAYS in records else {}
    config = dict(context.node_config)
    try:
        return pack_reply(message, *ask_worker({**request, "came": time.time(), "config": config}, arrays))
    except OtherDataError as error:
        place = f"data={config.get('data')!r}"
        print(f"this node's {place} do not fit the run, and it is left out: {error}", file=sys.stderr, flush=True)
        return pack_reason(message, OTHER_DATA, config.get("partition-id"), str(error))
    except DeclinedError as error:
        return pack_reason(message, DECLINED, config.get("partition-id"), error.told)


def pack_reason(message: Message, kind: str, client: object, why: str) -> Message:
    """Return the reply to `message` of a node, which is `client` and takes no part; kind: OTHER_DATA or DECLINED."""
    return Message(RecordDict({kind: ConfigRecord({"client": str(client), "why": why})}), reply_to=message)


def pack_reply(message: Message, numbers: Numbers, arrays: Mapping[str, Array]) -> Message:
    """Return the reply to `message` with these numbers and arrays."""
    content = RecordDict({NUMBERS: MetricRecord({**numbers})})
    if arrays:
        content[ARRAYS] = ArrayRecord(dict(arrays))
    return Message(content, reply_to=message)
