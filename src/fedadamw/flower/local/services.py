"""Flower's SuperLink and SuperNode as services, mended where flwr 1.41's own do not outlast a fault, or stay after it.

A SuperLink whose database is locked for 5 s answers 500; one whose SuperExec has ended, which starts the runs, stays.

A 500 ends a SuperNode's looks for messages, or its heartbeats, for good, and its process stays: nobody starts it anew.
And it sends answers only after it took a message: where a run ends while it takes one, that message's answer is one too
many, and from then on every answer waits for the message after its own.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from logging import ERROR
from typing import Any, NoReturn

import httpx
from flwr.supercore import heartbeat, log, sql_mixin
from flwr.supercore.constant import SQLITE_PRAGMAS
from flwr.supercore.exit.exit_handler import trigger_exit_handlers
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan, flower_superlink
from flwr.supernode import start_client_internal
from flwr.supernode.cli import flower_supernode
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

BUSY_S = 25  # that a statement waits for the database; a request's sender waits 30 s
END_S = 2.0  # after which a SuperLink that ends has forgotten its SuperExec


def run_superlink(arguments: Sequence[str]) -> None:
    """`flower-superlink` with these arguments, which waits longer for its database, and ends with its SuperExec."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    vars(sql_mixin)["SQLITE_PRAGMAS"] = (*SQLITE_PRAGMAS, ("busy_timeout", str(1000 * BUSY_S)))  # the last one counts
    wrap_attribute(SuperLinkLifespan, "_start_superexec_if_needed", end_with_superexec)
    sys.argv = ["flower-superlink", *arguments]
    flower_superlink()


def run_supernode(arguments: Sequence[str]) -> NoReturn:
    """`flower-supernode` with these arguments, which sends every answer, and ends where it would only stay."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    wrap_attribute(start_client_internal, "_pull_and_store_message", send_pending_replies)
    wrap_attribute(heartbeat.HeartbeatSender, "_heartbeat", retry_heartbeats)
    sys.argv = ["flower-supernode", *arguments]
    why = "the error above"
    try:
        flower_supernode()
    except Exception as error:
        why = str(error)
    log(ERROR, "The SuperNode cannot continue (%s): systemd, Compose or Kubernetes start it again.", why)
    trigger_exit_handlers(run_before_force_exit=False)
    os._exit(1)  # threads of Flower's would keep the process


def wrap_attribute(holder: Any, name: str, by: Callable[[Any], Any]) -> None:
    """Put by(function) in the place of a function; AttributeError where there is none of that name."""
    setattr(holder, name, by(getattr(holder, name)))


def end_with_superexec(start: Callable[[Any], None]) -> Callable[[Any], None]:
    """Flower's function that starts the SuperExec; with this, the SuperLink ends where that does."""

    def watched(lifespan: Any) -> None:
        start(lifespan)
        process = lifespan.superexec_process
        if process is None:
            return

        def watch() -> None:
            process.wait()
            time.sleep(END_S)
            if lifespan.superexec_process is process:
                log(
                    ERROR,
                    "The SuperExec, which starts runs, has ended, and so does the SuperLink, to be started again.",
                )
                os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=watch, daemon=True).start()

    return watched


def retry_heartbeats(beat: Callable[[Any], None]) -> Callable[[Any], None]:
    """Flower's function that sends a heartbeat, tried again after a HeartbeatFailure; with this, after all errors."""

    def lasted(sender: Any) -> None:
        try:
            beat(sender)
        except (httpx.HTTPError, RuntimeError) as error:
            raise heartbeat.HeartbeatFailure from error

    return lasted


def send_pending_replies(take: Callable[..., int | None]) -> Callable[..., int | None]:
    """Flower's function that takes a message and tells its run, None where there was none; then nothing is sent.

    With this, a run is told, too, where an answer waits to be sent.
    """

    def taken(*, state: InMemoryNodeState, **others: Any) -> int | None:
        run = take(state=state, **others)
        if run is not None:
            return run
        with state.lock_msg_store:
            waiting = [entry.message.metadata for entry in state.msg_store.values() if not entry.is_retrieved]
        return next((about.run_id for about in waiting if about.reply_to_message_id), None)

    return taken
