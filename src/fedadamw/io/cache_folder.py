"""A folder of caches that several processes use: one writes at a time, and it stays below a size."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LIMIT = 20 * 10**9  # bytes of a folder's files
KEEP_S = 7 * 86400.0  # what was used since then is never removed


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """A block that one process at a time runs; where the file cannot be made, all do. No file is left."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "wb")  # noqa: SIM115  (closed below)
    except OSError:
        yield
        return
    with file:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            _forget(path)  # a process that waits for this file gets its lock and finds the cache written


def mark_used(path: Path) -> None:
    """Note that a file is used now, if that can be noted."""
    with suppress(OSError):
        os.utime(path)


def remove_unused(folder: Path, limit: int = LIMIT) -> None:
    """Remove files that were not used for a week, the oldest first, while the folder has more than `limit` bytes.

    A process that has such a file mapped keeps it.
    """
    with suppress(OSError):
        files = [(place, place.stat()) for place in folder.iterdir() if place.is_file()]
        size = sum(facts.st_size for _, facts in files)
        for place, facts in sorted(files, key=lambda file: file[1].st_mtime):
            if size <= limit or facts.st_mtime > time.time() - KEEP_S:
                return
            place.unlink(missing_ok=True)
            size -= facts.st_size


def _forget(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
