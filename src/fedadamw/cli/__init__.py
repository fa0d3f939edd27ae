"""The command line: run.py trains, studies.py compares, models.py exports, flower.py federates, views.py shows."""

import signal
import sys
import warnings
from collections.abc import Callable

import typer

from fedadamw.cli import flower, models, run, studies, views  # noqa: F401  (they add their commands)
from fedadamw.cli.app import app, say
from fedadamw.signals import terminate
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
    except (RuntimeError, OSError) as error:
        if not _told(error):
            raise
        say(f"error: {error}")
        sys.exit(1)


def _told(error: Exception) -> bool:
    """Whether an error says all that a user needs to know; torch is imported for the answer alone."""
    from fedadamw.engine.ranks import RankLostError
    from fedadamw.engine.simulate import DivergedError

    return isinstance(error, DivergedError | RankLostError | OSError)
