"""Reads the numbers of a reply."""

from flwr.app import Message
from flwr.common.constant import ErrorCode

from fedadamw.flower.protocol import DECLINED, NUMBERS, OTHER_DATA, REPLY_NUMBERS, STALE
from fedadamw.flower.wire import RefusedError


def read_numbers(reply: Message | Exception | None) -> dict[str, object]:
    """Return the numbers of a reply; raises RefusedError if it is an error or has unexpected records."""
    if reply is None:
        raise RefusedError("silent", "it did not answer in time")
    if isinstance(reply, Exception):
        raise RefusedError("garbage", f"it cannot be read ({reply})")
    if reply.has_error():
        raise RefusedError("failed", str(reply.error.reason))
    records = reply.content.metric_records
    for kind in (OTHER_DATA, DECLINED):
        if set(reply.content) == {kind}:
            told: dict[str, object] = dict(reply.content.config_records.get(kind, {}))
            raise RefusedError(kind, f"client {str(told.get('client'))[:10]}: {told.get('why')}")
    if set(records) != {NUMBERS} or reply.content.config_records:
        names = sorted([*records, *reply.content.config_records])
        raise RefusedError("records", f"its metric and config records are {', '.join(names) or 'none'}")
    numbers: dict[str, object] = dict(records[NUMBERS])
    if extra := sorted(numbers.keys() - REPLY_NUMBERS):
        raise RefusedError("records", f"it has the number {extra[0]!r}, which is not expected")
    if numbers.get(STALE):
        raise RefusedError(STALE, "it lacks the state that the change applies to")
    return numbers


def is_node_gone(reply: Message | Exception) -> bool:
    """Return whether Flower replied instead of a node that is gone."""
    return isinstance(reply, Message) and reply.has_error() and reply.error.code == ErrorCode.NODE_UNAVAILABLE


def count_bytes(reply: Message | Exception) -> int:
    """Return the bytes of a reply's arrays."""
    if not isinstance(reply, Message) or reply.has_error():
        return 0
    return sum(len(array.data) for arrays in reply.content.array_records.values() for array in arrays.values())
