"""A server that imports the heavy libraries once and forks processes that have them."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, get_context, parent_process, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext
from types import ModuleType

LIBRARIES = "fedadamw.runner.preload"


def start_fork_server() -> ForkServerContext:
    """Start the server if it is not running yet, and return a context whose processes are forked from it."""
    context = get_context("forkserver")
    if sys.platform != "darwin":  # its frameworks do not survive a fork once loaded: each process imports its own
        context.set_forkserver_preload([LIBRARIES])
    resource_tracker.ensure_running()  # first, since it would reset the mask set below
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the server inherits this
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)
    return context


@contextmanager
def without_main_module() -> Iterator[None]:
    """A block in which a process can start without the caller's script, which would run again in it.

    The functions that are started are this package's own: they need no `if __name__ == "__main__"` in the script.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def end_with_parent() -> None:
    """End this forked process as soon as its parent is killed, so that no folder stays locked."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
