"""Runs the node's worker: a process that keeps libraries, model and data loaded between rounds.

Flower starts a process for every message; importing torch and loading model and data there would take seconds a round.
That process asks this one (worker_client.py). The worker starts with the first message and ends with the node, or
after an hour without work.
"""

import contextlib
import json
import math
import os
import select
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from multiprocessing.connection import Listener
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from flwr.app import Array

from fedadamw.flower.node.worker_client import receive, send
from fedadamw.flower.protocol import DeclinedError, LateError, StaleError, WorkerRequest

if TYPE_CHECKING:
    from fedadamw.flower.node.node import Node
    from fedadamw.randomness import Entropy

IDLE_S = 3600.0  # without work, then it ends
POLL_S = 0.5  # between checks whether the SuperNode is still running
MAX_NODES = 2  # runs whose model and data it keeps loaded


class Worker:
    """Answers requests and keeps the nodes of the last runs loaded.

    entropy: of private noise and batches; None, as always but in tests: the operating system's.
    """

    def __init__(self, entropy: "Entropy | None" = None) -> None:
        self.entropy = entropy
        self.idle_since = time.monotonic()  # inf while it works
        self._nodes: OrderedDict[str, Node] = OrderedDict()  # by settings and config, oldest first

    def serve(self, socket: Path) -> None:
        """Answer one request after another, forever."""
        with Listener(str(socket), "AF_UNIX", backlog=64) as listener:
            while True:
                with contextlib.suppress(EOFError, OSError), listener.accept() as connection:
                    request, arrays = receive(connection)
                    self.idle_since = math.inf
                    try:
                        send(connection, *self.answer(cast(WorkerRequest, request), arrays))
                    finally:
                        self.idle_since = time.monotonic()

    def answer(
        self, request: WorkerRequest, arrays: Mapping[str, Array]
    ) -> tuple[Mapping[str, int | float | str], dict[str, Array]]:
        """Return numbers and arrays for a request; after an error no arrays.

        The numbers are then those of `describe_error`.
        """
        from fedadamw.engine.device_memory import is_out_of_memory, release_memory
        from fedadamw.flower.node.told import describe_error, is_private

        try:
            return self._handle(request, arrays)
        except Exception as error:
            numbers = describe_error(error, private=is_private(request))
            out_of_memory = is_out_of_memory(error)
        if out_of_memory:  # only now: until here the error's traceback referred to the node's tensors
            self._nodes.clear()
            release_memory()
        return numbers, {}

    def _handle(
        self, request: WorkerRequest, arrays: Mapping[str, Array]
    ) -> tuple[Mapping[str, int | float], dict[str, Array]]:
        """Do the request's work with its node, loading the node if needed."""
        if request["ask"] != "hello" and time.time() - request["came"] > request["seconds"]:
            raise LateError("its time was over before the work began")
        key = _key(request)
        node = self._nodes.pop(key, None) or self._load(request)
        try:
            if request["ask"] == "hello":
                reply = node.hello()
            else:
                reply = (node.evaluate if request["ask"] == "evaluate" else node.train)(arrays, request)
        except (StaleError, LateError, DeclinedError):
            self._nodes[key] = node  # after other errors it is rebuilt: its state may be half changed
            raise
        self._nodes[key] = node
        while len(self._nodes) > MAX_NODES:
            self._nodes.popitem(last=False)
        return reply.numbers, reply.arrays

    def _load(self, request: WorkerRequest) -> "Node":
        """Build the request's node; it replaces one that has the same run and other settings."""
        from fedadamw.flower.node import node

        run = json.dumps([request["config"], request["federation"]], sort_keys=True)
        self._nodes = OrderedDict((k, n) for k, n in self._nodes.items() if json.dumps(json.loads(k)[3:]) != run)
        facts = (request["settings"], request["about"], request["config"], request["federation"])
        return node.load_node(*facts, self.entropy, unequal_steps=request["unequal_steps"])


def _key(request: WorkerRequest) -> str:
    """Return the inputs that a node is built from, as text; sorted: the config's order varies between messages."""
    of_run: list[Any] = [request["config"], request["federation"]]
    parts = [request["settings"], request["about"], request["unequal_steps"], *of_run]
    return json.dumps(parts, sort_keys=True)


def watch_process(process: int) -> Callable[[], bool]:
    """Return a function that waits up to POLL_S and returns whether `process` has ended."""
    if hasattr(os, "pidfd_open"):  # Linux; also detects an ended process that was not waited for
        with contextlib.suppress(OSError):  # it has ended already, or the kernel is old: poll instead
            descriptor = os.pidfd_open(process)
            return lambda: bool(select.select([descriptor], [], [], POLL_S)[0])

    def has_ended() -> bool:
        try:
            os.kill(process, 0)
        except OSError:
            return True
        time.sleep(POLL_S)
        return False

    return has_ended


def run_worker(socket: Path, parent: int) -> None:
    """Serve requests at `socket` until the process `parent` ends or no request has come for IDLE_S."""
    worker = Worker()
    has_ended = watch_process(parent)

    def watch() -> None:
        while time.monotonic() - worker.idle_since < IDLE_S and not has_ended():
            pass
        socket.unlink(missing_ok=True)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    worker.serve(socket)


if __name__ == "__main__":
    run_worker(Path(sys.argv[1]), int(sys.argv[2]))
