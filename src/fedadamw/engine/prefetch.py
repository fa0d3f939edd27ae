"""Items made in a thread of their own, some ahead of who uses them: batches that come from disk."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

DEPTH = 3
Item = TypeVar("Item")


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items in the same order; up to DEPTH of them are made beforehand. An error comes where it belongs."""
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        end = object()
        waiting = deque(thread.submit(next, items, end) for _ in range(DEPTH))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(thread.submit(next, items, end))
            yield item  # type: ignore[misc]  # it is not the end
