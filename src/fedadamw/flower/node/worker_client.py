"""Passes the client app's requests to the node's worker (worker.py); starts it if it is not running.

They communicate over a Unix socket in a folder that only their user can enter.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from multiprocessing.connection import Client, Connection
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from flwr.app import Array

from fedadamw.flower.protocol import (
    DECLINED,
    OTHER_DATA,
    DeclinedError,
    NodeConfig,
    Numbers,
    OtherDataError,
    WorkerRequest,
)

START_S = 60.0  # in which a worker must start listening
MAX_SOCKET_PATH_BYTES = 100  # Linux takes 107, macOS 103


def ask_worker(request: WorkerRequest, arrays: Mapping[str, Array]) -> tuple[Numbers, dict[str, Array]]:
    """Return the worker's reply.

    Raises OtherDataError if the node's data do not fit the run, DeclinedError if the privacy that it demands does not
    allow it, RuntimeError with the worker's error if it failed.
    """
    parent = os.getppid()
    with _connect(_socket_path(parent, request["config"]), parent) as connection:
        try:
            send(connection, request, arrays)
            numbers, reply_arrays = receive(connection)
        except (EOFError, OSError):
            raise RuntimeError("the node's worker was killed while it worked: out of memory?") from None
    if OTHER_DATA in numbers:
        raise OtherDataError(numbers[OTHER_DATA])
    if DECLINED in numbers:
        raise DeclinedError(numbers[DECLINED])
    if "error" in numbers:
        raise RuntimeError(numbers["error"])
    return numbers, reply_arrays


def send(connection: Connection, facts: Mapping[str, object], arrays: Mapping[str, Array]) -> None:
    """Send facts (as JSON) and arrays."""
    about = [[name, array.dtype, list(array.shape), array.stype] for name, array in arrays.items()]
    connection.send_bytes(json.dumps({"facts": dict(facts), "arrays": about}).encode())
    for array in arrays.values():
        connection.send_bytes(array.data)


def receive(connection: Connection) -> tuple[dict[str, Any], dict[str, Array]]:
    """Receive what `send` sent."""
    header = json.loads(connection.recv_bytes())
    arrays = {
        name: Array(dtype=dtype, shape=tuple(shape), stype=stype, data=connection.recv_bytes())
        for name, dtype, shape, stype in header["arrays"]
    }
    return header["facts"], arrays


def _socket_path(parent: int, config: NodeConfig) -> Path:
    """Return the socket of the node with this config and the SuperNode process `parent`."""
    folder = Path(gettempdir()) / f"fedadamw-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    about = folder.lstat()
    if about.st_uid != os.getuid() or about.st_mode & 0o077:
        raise RuntimeError(f"{folder}: other users can enter it; remove it, or set TMPDIR")
    key = json.dumps([parent, config], sort_keys=True)
    path = folder / f"{parent}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise RuntimeError(f"{path}: too long for a socket; set TMPDIR to a shorter folder")
    return path


def _connect(path: Path, parent: int) -> Connection:
    """Connect to the worker, starting it if needed; a lock prevents starting two."""
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.suppress(OSError):
            return Client(str(path), "AF_UNIX")
        path.unlink(missing_ok=True)  # left by a worker that was killed
        module = ["-P", "-m", "fedadamw.flower.node.worker"]  # -P: import nothing from the working folder
        command = [sys.executable, *module, str(path), str(parent)]
        worker = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                return Client(str(path), "AF_UNIX")
            if worker.poll() is not None:
                raise RuntimeError(f"the node's worker ended with exit code {worker.returncode}")
            time.sleep(0.05)
    raise RuntimeError(f"the node's worker did not listen within {START_S:.0f} s")
