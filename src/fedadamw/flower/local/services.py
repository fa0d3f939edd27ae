"""Runs Flower's SuperLink and SuperNode as services, with patches for faults of flwr 1.41.

- A SuperLink whose database is locked for 5 s answers 500. Patch: it waits for BUSY_S.
- A SuperLink whose SuperExec, which starts runs, has ended keeps running. Patch: it ends, so that it is restarted.
- After a 500 a SuperNode stops asking for messages, or its heartbeats, and keeps running. Patch: heartbeats continue,
  and a SuperNode that no longer asks for messages ends.
- A SuperNode looks for replies to send only after it has received a message. If a run ends while it receives one,
  every later reply waits for the message after its own. Patch: it also sends replies when there was no message.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from logging import ERROR
from typing import NoReturn

import httpx
from flwr.supercore import heartbeat, log, sql_mixin
from flwr.supercore.constant import SQLITE_PRAGMAS
from flwr.supercore.exit.exit_handler import trigger_exit_handlers
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan, flower_superlink
from flwr.supernode import start_client_internal
from flwr.supernode.cli import flower_supernode
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

BUSY_S = 25  # how long a statement waits for the database; a request's sender waits 30 s
END_S = 2.0  # a SuperLink that is being stopped forgets its SuperExec within this time


def run_superlink(arguments: Sequence[str]) -> None:
    """Run `flower-superlink` with these arguments and the patches."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    vars(sql_mixin)["SQLITE_PRAGMAS"] = (*SQLITE_PRAGMAS, ("busy_timeout", str(1000 * BUSY_S)))  # overrides the first
    wrap_attribute(SuperLinkLifespan, "_start_superexec_if_needed", end_with_superexec)
    sys.argv = ["flower-superlink", *arguments]
    flower_superlink()


def run_supernode(arguments: Sequence[str]) -> NoReturn:
    """Run `flower-supernode` with these arguments and the patches; exit with 1 when it can no longer work."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    wrap_attribute(start_client_internal, "_pull_and_store_message", send_pending_replies)
    wrap_attribute(heartbeat.HeartbeatSender, "_heartbeat", retry_heartbeats)
    sys.argv = ["flower-supernode", *arguments]
    reason = "the error above"
    try:
        flower_supernode()
    except Exception as error:
        reason = str(error)
    log(ERROR, "The SuperNode cannot continue (%s): systemd, Compose or Kubernetes start it again.", reason)
    trigger_exit_handlers(run_before_force_exit=False)
    os._exit(1)  # Flower's threads would keep the process alive


def wrap_attribute(holder: object, name: str, wrap: Callable[..., object]) -> None:
    """Replace a function by wrap(function); raises AttributeError if there is none of that name."""
    setattr(holder, name, wrap(getattr(holder, name)))


def end_with_superexec(start: Callable[[SuperLinkLifespan], None]) -> Callable[[SuperLinkLifespan], None]:
    """Wrap Flower's function that starts the SuperExec, so that the SuperLink ends when the SuperExec does."""

    def start_and_watch(lifespan: SuperLinkLifespan) -> None:
        start(lifespan)
        process = lifespan.superexec_process
        if process is None:
            return

        def watch() -> None:
            process.wait()
            time.sleep(END_S)
            if lifespan.superexec_process is process:
                log(ERROR, "The SuperExec, which starts runs, has ended; the SuperLink ends, to be started again.")
                os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=watch, daemon=True).start()

    return start_and_watch


def retry_heartbeats(
    send_heartbeat: Callable[[heartbeat.HeartbeatSender], None],
) -> Callable[[heartbeat.HeartbeatSender], None]:
    """Wrap Flower's function that sends a heartbeat, so that it is retried after every error, not only some."""

    def send_or_retry(sender: heartbeat.HeartbeatSender) -> None:
        try:
            send_heartbeat(sender)
        except (httpx.HTTPError, RuntimeError) as error:
            raise heartbeat.HeartbeatFailure from error  # Flower retries after this one

    return send_or_retry


def send_pending_replies(pull: Callable[..., int | None]) -> Callable[..., int | None]:
    """Wrap Flower's function that receives a message and returns its run; Flower sends replies only if it is not None.

    If there is no message, the wrapped function returns the run of a reply that waits to be sent.
    """

    def pull_or_find_reply(*, state: InMemoryNodeState, **others: object) -> int | None:
        run = pull(state=state, **others)
        if run is not None:
            return run
        with state.lock_msg_store:
            unsent = [entry.message.metadata for entry in state.msg_store.values() if not entry.is_retrieved]
        return next((metadata.run_id for metadata in unsent if metadata.reply_to_message_id), None)

    return pull_or_find_reply
