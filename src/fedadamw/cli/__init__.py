"""The command line: run.py trains, studies.py compares, models.py exports, flower.py federates, views.py shows."""

import signal
import sys
import warnings
from collections.abc import Callable

import typer

from fedadamw.cli import flower, models, run, studies, views  # noqa: F401  (they add their commands)
from fedadamw.cli.app import app, memory_full, say
from fedadamw.runner.signals import terminate
from fedadamw.validation import InputError


def main() -> None:
    """The command `fedadamw`: wrong input is one line and exit code 2, a run that failed 1, an interrupted one 130."""
    if sys.platform == "win32":
        say("error: fedadamw's commands run on Linux and macOS; on Windows use WSL. `import fedadamw` works there")
        sys.exit(2)
    guarded(app)


def guarded(command: Callable[[], None]) -> None:
    """Run a command, and end with one line and an exit code where it fails."""
    signal.signal(signal.SIGTERM, terminate)
    warnings.simplefilter("ignore", FutureWarning)  # between libraries, nothing a user can act on
    warnings.showwarning = lambda message, *_args, **_kwargs: say(f"warning: {message}")
    try:
        command()
    except typer.Exit as ended:
        sys.exit(ended.exit_code)
    except InputError as error:
        say(f"error: {error}")
        sys.exit(2)
    except (RuntimeError, OSError, MemoryError) as error:
        told = _told(error)
        if told is None:
            raise
        say(f"error: {told}")
        sys.exit(1)


def _told(error: Exception) -> str | None:
    """What an error says, where that is all that a user needs to know; torch is imported for the answer alone."""
    from fedadamw.engine.device_memory import is_out_of_memory
    from fedadamw.engine.ranks import RankLostError
    from fedadamw.engine.record import DivergedError

    if isinstance(error, DivergedError | RankLostError | OSError):
        return str(error)
    return memory_full(error) if is_out_of_memory(error) else None
