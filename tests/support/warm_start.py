"""A command `fedadamw` that starts at once: a fork of a process that has imported what every command needs.

A page has a dozen commands, and each would import torch and transformers anew, which takes longer than what it does.
"""

import json
import os
import signal
import socket
import sys
from pathlib import Path

# the command itself: it hands its arguments, folder, environment and streams over, and ends as the fork does
COMMAND = """#!{python} -IS
import json, os, signal, socket, sys
if sys.argv[1:2] in (["flower"], ["watch"]):  # they start processes that are killed by their numbers
    os.execv({python!r}, [{python!r}, "-m", "fedadamw", *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect({address!r})
    about = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(connection, [len(about).to_bytes(8, "big")], [0, 1, 2])
    connection.sendall(about)
    fork = int.from_bytes(connection.recv(8), "big")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os.kill(fork, number))
    said = b"".join(iter(lambda: connection.recv(8), b""))
sys.exit(said[0] if said else 1)
"""


def start(folder: Path) -> int:
    """Write the command into `folder` and start the process behind it; return the number of that process."""
    command, address = folder / "fedadamw", str(folder / "socket")
    command.write_text(COMMAND.format(python=sys.executable, address=address))
    command.chmod(0o755)
    import transformers.modeling_utils  # noqa: F401

    import fedadamw.runner.execute  # noqa: F401

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    server = os.fork()
    if server == 0:
        serve(listener)
    listener.close()
    return server


def serve(listener: socket.socket) -> None:
    """Run each command in a fork; returns in the forks only, by SystemExit."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended forks are not waited for
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            run(connection)
        connection.close()


def run(connection: socket.socket) -> None:
    """Be the command that connected, to its end."""
    size, streams, _, _ = socket.recv_fds(connection, 8, 3)
    about = b""
    while len(about) < int.from_bytes(size, "big"):
        about += connection.recv(2**16)
    arguments, folder, environment = json.loads(about)
    for stream, number in zip(streams, (0, 1, 2), strict=True):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["fedadamw", *arguments]
    connection.sendall(os.getpid().to_bytes(8, "big"))
    from fedadamw.cli import main

    code = 1
    try:
        code = main() or 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    finally:
        connection.sendall(bytes([code % 256]))
    sys.exit(code)  # the command ends when this process does
