"""Turns Ctrl-C and SIGTERM into exceptions, after which a run writes its checkpoint."""

import signal
from types import FrameType


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM, and handled like Ctrl-C."""


def terminate(_signal: int, _frame: FrameType | None) -> None:
    """Handle SIGTERM by raising Terminated."""
    raise Terminated


def _ignore(_signal: int, _frame: FrameType | None) -> None:
    """Handle a signal by nothing."""


def stop_once(number: int, _frame: FrameType | None) -> None:
    """Handle the first of several signals and ignore the others, so that the checkpoint gets written."""
    for later in (signal.SIGINT, signal.SIGTERM):
        signal.signal(later, _ignore)  # not SIG_IGN: Python would print an error if one has arrived already
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated
