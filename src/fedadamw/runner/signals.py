"""What Ctrl-C and SIGTERM do to a run: an exception between two of its steps, and its checkpoint."""

import signal
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM, handled as Ctrl-C is."""


def terminate(_signal: int, _frame: FrameType | None) -> None:
    """What SIGTERM does."""
    raise Terminated


def stop_once(number: int, _frame: FrameType | None) -> None:
    """What either signal does where several may come: the first stops the run, which then writes its checkpoint."""
    for later in (signal.SIGINT, signal.SIGTERM):
        signal.signal(later, signal.SIG_IGN)
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated
