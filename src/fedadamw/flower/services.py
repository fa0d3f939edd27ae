"""Flower's SuperLink and SuperNode as services, mended in three places where flwr 1.41's own do not outlast a fault.

A SuperLink whose database is locked for 5 s answers 500. A SuperNode that gets that for an answer which it sends drops
the answer; one that gets it when it looks for messages never looks again, and its process stays: nobody starts it anew.

A SuperNode sends answers only after it took a message. Where a run ends while it takes one, that message's answer is
one too many, and from then on every answer waits for the message after its own.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from flwr.supercore import sql_mixin
from flwr.supercore.constant import SQLITE_PRAGMAS
from flwr.supercore.exit import ExitCode, flwr_exit
from flwr.superlink.cli import flower_superlink
from flwr.supernode import start_client_internal
from flwr.supernode.cli import flower_supernode
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

BUSY_S = 25  # that a request waits for the database; its sender waits 30 s
TAKE = "_pull_and_store_message"  # of start_client_internal


def superlink(arguments: Sequence[str]) -> None:
    """`flower-superlink` with these arguments, which waits longer for its database."""
    vars(sql_mixin)["SQLITE_PRAGMAS"] = (*SQLITE_PRAGMAS, ("busy_timeout", str(1000 * BUSY_S)))  # the last one counts
    sys.argv = ["flower-superlink", *arguments]
    flower_superlink()


def supernode(arguments: Sequence[str]) -> NoReturn:
    """`flower-supernode` with these arguments, which sends every answer, and ends where it would only stay."""
    vars(start_client_internal)[TAKE] = sending(vars(start_client_internal)[TAKE])
    sys.argv = ["flower-supernode", *arguments]
    flower_supernode()
    flwr_exit(
        ExitCode.SUPERNODE_CONNECTION_ERROR,
        "The SuperNode stopped to look for messages, for the error above. A supervisor (systemd, Compose, Kubernetes) "
        "starts it again.",
    )


def sending(take: Callable[..., int | None]) -> Callable[..., int | None]:
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
