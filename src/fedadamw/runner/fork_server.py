"""A server that imports the heavy libraries once and forks processes that have them."""

import os
import signal
import sys
import threading
from multiprocessing import forkserver, get_context, parent_process, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext

LIBRARIES = "fedadamw.runner.preload"


def start_fork_server() -> ForkServerContext:
    """Start it, where it does not run yet, and return at once; processes of this context come from it."""
    context = get_context("forkserver")
    if sys.platform != "darwin":  # whose frameworks, once loaded, do not survive a fork: each process imports its own
        context.set_forkserver_preload([LIBRARIES])
    resource_tracker.ensure_running()  # which would lift the mask that follows
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C is ours: the server inherits this
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)
    return context


def end_with_parent() -> None:
    """In a forked process: end at once where the process that asked for it was killed, whatever is under way.

    Else its successor would find folders in use.
    """
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
