"""Prefetching: items made in a thread, ahead of their use, such as batches that come from disk."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fedadamw.task import Task

DEPTH = 3
Item = TypeVar("Item")


def read_ahead(batches: Iterator[Item], task: Task) -> Iterator[Item]:
    """Yield the batches of a task, read in a thread if they are slow to read and the task allows it."""
    return batches if task.resident or getattr(task, "in_turn", False) else prefetch(batches)


def prefetch(items: Iterator[Item]) -> Iterator[Item]:
    """Yield the same items in the same order, up to DEPTH of them made beforehand. An error is raised in its turn."""
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as thread:
        end = object()
        waiting = deque(thread.submit(next, items, end) for _ in range(DEPTH))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(thread.submit(next, items, end))
            yield item  # type: ignore[misc]  # it is not the end
