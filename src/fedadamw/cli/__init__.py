"""The command line.

run.py trains, plan.py says what that needs, studies.py compares, report.py exports results and models.py models,
predict.py predicts, privacy.py counts epsilons, generate.py asks, flower.py federates, theory.py measures theorems,
views.py, reference.py, doctor.py and watch.py show.
"""

import os
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext

import typer

from fedadamw.cli import (  # noqa: F401  (they add their commands)
    doctor,
    flower,
    generate,
    models,
    plan,
    predict,
    privacy,
    reference,
    report,
    run,
    studies,
    theory,
    theory_runs,
    views,
    watch,
)
from fedadamw.cli.app import app, describe_full_memory, say
from fedadamw.cli.complete import words_of_bash
from fedadamw.runner.signals import terminate
from fedadamw.validation import InputError

BEFORE_TRAINING = ("list", "settings", "recipe", "blocks", "partition", "plan")
ORDER = [
    "run",
    "compare",
    "tune",
    "ablate",
    *BEFORE_TRAINING,
    "watch",
    "report",
    "export",
    "eval",
    "predict",
    "generate",
    "doctor",
]  # in help
app.registered_commands.sort(key=lambda command: ORDER.index(command.name) if command.name in ORDER else len(ORDER))


def main() -> None:
    """Run the command `fedadamw`; see `run_and_exit` for its exit codes."""
    if sys.platform == "win32":
        say("error: fedadamw's commands run on Linux and macOS; on Windows use WSL. `import fedadamw` works there")
        sys.exit(2)
    in_bash = os.environ.get("_FEDADAMW_COMPLETE") == "complete_bash"
    with words_of_bash() if in_bash else nullcontext():
        run_and_exit(app)


def run_and_exit(command: Callable[[], None]) -> None:
    """Run a command; errors a user can act on are one line. Exit codes: 2 wrong input, 1 failed, 130 interrupted."""
    signal.signal(signal.SIGTERM, terminate)
    warnings.simplefilter("ignore", FutureWarning)  # between libraries; a user cannot act on them
    said = set[str]()  # settings are checked before a run starts, and again with its data

    def show(message: Warning | str, *_args: object, **_kwargs: object) -> None:
        if str(message) not in said:
            said.add(str(message))
            say(f"warning: {message}")

    warnings.showwarning = show
    try:
        command()
    except typer.Exit as ended:
        sys.exit(ended.exit_code)
    except InputError as error:
        say(f"error: {error}")
        sys.exit(2)
    except (RuntimeError, OSError, MemoryError) as error:
        message = _describe(error)
        if message is None:
            raise
        say(f"error: {message}")
        sys.exit(1)


def _describe(error: Exception) -> str | None:
    """The message of an error that needs no traceback; None for others. Imports torch only now."""
    from fedadamw.engine.clients import QuorumError
    from fedadamw.engine.device_memory import is_out_of_memory
    from fedadamw.engine.ranks import RankLostError
    from fedadamw.engine.record import DivergedError

    if isinstance(error, DivergedError | QuorumError | RankLostError | OSError):
        return str(error)
    return describe_full_memory(error) if is_out_of_memory(error) else None
