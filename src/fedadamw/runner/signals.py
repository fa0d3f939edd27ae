"""Turns Ctrl-C and SIGTERM into exceptions, after which a run writes its checkpoint."""

import signal
from types import FrameType


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM, and handled like Ctrl-C."""


def terminate(_signal: int, _frame: FrameType | None) -> None:
    """Handle SIGTERM by raising Terminated."""
    raise Terminated


def stop_once(number: int, _frame: FrameType | None) -> None:
    """Handle the first of several signals and ignore the others, so that the checkpoint gets written."""
    for later in (signal.SIGINT, signal.SIGTERM):
        signal.signal(later, signal.SIG_IGN)
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated
