"""One process a node that stays: it has the libraries, the model and the data loaded when the next round comes.

Flower starts a process for every message, which would take seconds to import torch and load model and data again.
That process asks this one, over a socket in a folder that only its user may enter; this one starts with the first
message, and ends with the node, or after it was idle.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import select
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from flwr.app import Array

from fedadamw.flower.protocol import STALE, LateError, StaleError

START_S = 60.0  # that a worker may take to listen
IDLE_S = 3600.0  # without work, after which it ends
LONGEST = 100  # bytes of a socket's path; Linux takes 107, macOS 103
TOLD = 300  # letters of an error that leave the node
LOOK_S = 0.5  # between looks whether the node is still there
READY = 2  # runs whose model and data it keeps


def ask_worker(facts: Mapping[str, Any], arrays: Mapping[str, Array]) -> tuple[dict[str, Any], dict[str, Array]]:
    """What the node's worker answers, started where there is none; RuntimeError with what went wrong there."""
    parent = os.getppid()
    with _connected(_place(parent, facts["config"]), parent) as connection:
        try:
            send(connection, facts, arrays)
            numbers, found = receive(connection)
        except (EOFError, OSError):
            raise RuntimeError("the node's worker ended while it worked: out of memory?") from None
    if "error" in numbers:
        raise RuntimeError(numbers["error"])
    return numbers, found


def send(connection: Connection, facts: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Facts (JSON) and arrays, as bytes."""
    about = [[name, array.dtype, list(array.shape), array.stype] for name, array in arrays.items()]
    connection.send_bytes(json.dumps({"facts": dict(facts), "arrays": about}).encode())
    for array in arrays.values():
        connection.send_bytes(array.data)


def receive(connection: Connection) -> tuple[dict[str, Any], dict[str, Array]]:
    """What `send` sent."""
    header = json.loads(connection.recv_bytes())
    arrays = {
        name: Array(dtype=dtype, shape=tuple(shape), stype=stype, data=connection.recv_bytes())
        for name, dtype, shape, stype in header["arrays"]
    }
    return header["facts"], arrays


def _place(parent: int, config: Mapping[str, Any]) -> Path:
    """The socket of the worker of the node that was started with `config`; `parent` starts that node's work."""
    folder = Path(gettempdir()) / f"fedadamw-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    about = folder.lstat()
    if about.st_uid != os.getuid() or about.st_mode & 0o077:
        raise RuntimeError(f"{folder}: others may enter it; remove it, or set TMPDIR")
    key = json.dumps([parent, config], sort_keys=True)
    place = folder / f"{parent}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if len(os.fsencode(place)) > LONGEST:
        raise RuntimeError(f"{place}: too long for a socket; set TMPDIR to a shorter folder")
    return place


def _connected(place: Path, parent: int) -> Connection:
    """A connection to the worker, started where there is none; one process at a time looks."""
    with open(place.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.suppress(OSError):
            return Client(str(place), "AF_UNIX")
        place.unlink(missing_ok=True)  # of a worker that was killed
        command = [
            sys.executable,
            "-P",
            "-m",
            "fedadamw.flower.node.worker",
            str(place),
            str(parent),
        ]  # -P: not from here
        worker = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                return Client(str(place), "AF_UNIX")
            if worker.poll() is not None:
                raise RuntimeError(f"the node's worker ended with exit code {worker.returncode}")
            time.sleep(0.05)
    raise RuntimeError(f"the node's worker did not listen within {START_S:.0f} s")


class Worker:
    """Answers at a socket, with the nodes of the last runs ready."""

    def __init__(self) -> None:
        self.since = time.monotonic()  # idle; inf while it works
        self._nodes: OrderedDict[str, Any] = OrderedDict()

    def serve(self, place: Path) -> None:
        """Answer one question after the other, without end."""
        with Listener(str(place), "AF_UNIX", backlog=64) as listener:
            while True:
                with contextlib.suppress(EOFError, OSError), listener.accept() as connection:
                    facts, arrays = receive(connection)
                    self.since = math.inf
                    try:
                        send(connection, *self.answer(facts, arrays))
                    finally:
                        self.since = time.monotonic()

    def answer(self, facts: Mapping[str, Any], arrays: Mapping[str, Array]) -> tuple[dict[str, Any], dict[str, Array]]:
        """Numbers and arrays for one message, or its error."""
        from fedadamw.engine.device_memory import give_back, is_out_of_memory

        try:
            return self._worked(facts, arrays)
        except Exception as error:  # to the server, with its reason
            told: dict[str, Any] = {STALE: 1} if isinstance(error, StaleError) else {"error": _told(error)}
            full = is_out_of_memory(error)
        if full:  # not before: the error held what it met
            self._nodes.clear()
            give_back()
        return told, {}

    def _worked(self, facts: Mapping[str, Any], arrays: Mapping[str, Array]) -> tuple[dict[str, Any], dict[str, Array]]:
        """What a node answers to one message."""
        wanted = [facts[key] for key in ("settings", "about", "config", "federation")]
        key = json.dumps(wanted, sort_keys=True)  # a node's settings come in any order
        if facts["ask"] != "hello" and time.time() - facts["came"] > facts["seconds"]:
            raise LateError("the time for it was over before it was begun")
        node = self._nodes.pop(key, None) or self._loaded(wanted)
        try:
            reply = node.hello() if facts["ask"] == "hello" else node.train(arrays, facts)
        except (StaleError, LateError):
            self._nodes[key] = node  # after any other error it is loaded again: it may be half-way
            raise
        self._nodes[key] = node
        while len(self._nodes) > READY:
            self._nodes.popitem(last=False)
        return reply.numbers, reply.arrays

    def _loaded(self, wanted: list[Any]) -> Any:
        """A node for a run; it takes the place of one of the same run with other settings."""
        from fedadamw.flower.node import node

        run = json.dumps(wanted[2:], sort_keys=True)
        self._nodes = OrderedDict((k, n) for k, n in self._nodes.items() if json.dumps(json.loads(k)[2:]) != run)
        return node.load_node(*wanted)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:TOLD]


def watching(process: int) -> Callable[[], bool]:
    """A function that waits for half a second and says whether the process `process` has ended."""
    if hasattr(os, "pidfd_open"):  # Linux; true also where nobody reaps the process
        with contextlib.suppress(OSError):  # it has ended, which the other way finds, or the kernel is old
            watched = os.pidfd_open(process)
            return lambda: bool(select.select([watched], [], [], LOOK_S)[0])

    def ended() -> bool:
        try:
            os.kill(process, 0)
        except OSError:
            return True
        time.sleep(LOOK_S)
        return False

    return ended


def serve(place: Path, parent: int) -> None:
    """Be the worker at the socket `place`, until the process `parent` is gone or no work came for long."""
    worker = Worker()
    ended = watching(parent)

    def watch() -> None:
        while time.monotonic() - worker.since < IDLE_S and not ended():
            pass
        place.unlink(missing_ok=True)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    worker.serve(place)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
