"""Work on the rows of a data set, shared by forks of this process, one a core.

Processes, not threads: of a small image's decoding, most is Python. A fork that fails gives nothing, and this process
then does its part itself, and raises its error.
"""

import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

PART = 1024  # rows of a part: to begin one takes as long as to decode thirty small images
MAX_PROCESSES = 16  # a container may see more cores than it may use
MIN_ROWS = 2048  # fewer are done before a fork has begun
Work = Callable[[range], Any]  # returns what JSON can hold


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Fork:
    """A process that works on some of the parts; without a result if it fails."""

    def __init__(self, work: Work, parts: Sequence[range]) -> None:
        self._output, place = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads: the fork uses none
            self._process = os.fork()
        if self._process == 0:
            _work_and_exit(work, parts, place)
        os.close(place)

    def result(self) -> list[Any] | None:
        """Wait, and return the result of each part; None if the fork failed."""
        with os.fdopen(os.dup(self._output), "rb") as output:
            content = output.read()
        try:
            found: list[Any] | None = json.loads(content)
        except ValueError:
            return None
        return found

    def end(self) -> None:
        """End the fork if it still works."""
        os.close(self._output)  # a fork that still works fails when it writes
        os.kill(self._process, 9)
        os.waitpid(self._process, 0)


def _work_and_exit(work: Work, parts: Sequence[range], place: int) -> NoReturn:
    """Work in the fork, which never returns to its parent's code."""
    try:
        content = json.dumps([work(part) for part in parts]).encode()
        with os.fdopen(place, "wb") as output:
            output.write(content)
    finally:
        os._exit(0)


def map_parts(work: Work, rows: int) -> list[Any]:
    """Return `work` of each part of so many rows, in order; what it writes must be in memory that forks share."""
    parts = [range(start, min(start + PART, rows)) for start in range(0, rows, PART)]
    count = _count_processes(rows)
    forks: list[_Fork] = []
    results: list[Any] = [None] * len(parts)
    try:
        for number in range(1, count):
            forks.append(_Fork(work, parts[number::count]))
        results[::count] = [work(part) for part in parts[::count]]
        for number, fork in enumerate(forks, 1):
            found = fork.result()
            mine = parts[number::count]
            results[number::count] = [work(part) for part in mine] if found is None else found
    finally:
        for fork in forks:
            fork.end()
    return results


def _count_processes(rows: int) -> int:
    """Return how many processes to use: as many as cores, one for few rows or where processes do not fork safely."""
    if rows < MIN_ROWS or not hasattr(os, "fork") or sys.platform == "darwin":
        return 1
    return min(count_cores(), MAX_PROCESSES, -(-rows // PART))
