"""Flower's SuperLink and SuperNode as services, mended where flwr 1.41's own commands do not outlast a busy disk.

A SuperLink whose database is locked for 5 s answers 500. A SuperNode that gets that for an answer which it sends drops
the answer; one that gets it when it looks for messages never looks again, and its process stays: nobody starts it anew.
"""

import sys
from collections.abc import Sequence
from typing import NoReturn

from flwr.supercore import sql_mixin
from flwr.supercore.constant import SQLITE_PRAGMAS
from flwr.supercore.exit import ExitCode, flwr_exit
from flwr.superlink.cli import flower_superlink
from flwr.supernode.cli import flower_supernode

BUSY_S = 25  # that a request waits for the database; its sender waits 30 s


def superlink(arguments: Sequence[str]) -> None:
    """`flower-superlink` with these arguments, which waits longer for its database."""
    vars(sql_mixin)["SQLITE_PRAGMAS"] = (*SQLITE_PRAGMAS, ("busy_timeout", str(1000 * BUSY_S)))  # the last one counts
    sys.argv = ["flower-superlink", *arguments]
    flower_superlink()


def supernode(arguments: Sequence[str]) -> NoReturn:
    """`flower-supernode` with these arguments, which ends where it no longer looks for messages."""
    sys.argv = ["flower-supernode", *arguments]
    flower_supernode()
    flwr_exit(
        ExitCode.SUPERNODE_CONNECTION_ERROR,
        "The SuperNode stopped to look for messages, for the error above. A supervisor (systemd, Compose, Kubernetes) "
        "starts it again.",
    )
