"""One run of a study in its own process, forked from a server that has imported the libraries."""

import os
import signal
import sys
from pathlib import Path

import yaml

from fedadamw.engine.clients import QuorumError
from fedadamw.engine.record import DivergedError
from fedadamw.plan.refusal import check_fits
from fedadamw.runner.execute import Interrupted, execute
from fedadamw.runner.folder import RunFolder
from fedadamw.runner.fork_server import end_with_parent
from fedadamw.runner.signals import stop_once
from fedadamw.settings.load import parse_settings
from fedadamw.validation import InputError

LOG_FILE = "log.txt"


def run_child(settings: str, path: str) -> None:
    """Run or resume the experiment of the YAML `settings` in the folder `path`; output goes to log.txt.

    One that cannot fit in memory is not begun.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent stops us
    signal.signal(signal.SIGTERM, stop_once)
    end_with_parent()
    Path(path).mkdir(parents=True, exist_ok=True)
    with open(Path(path) / LOG_FILE, "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        experiment, folder = parse_settings(yaml.safe_load(settings)), RunFolder(Path(path))
        try:
            if not folder.started:
                check_fits(experiment, 1, "`fedadamw run` with --force tries it all the same")
            execute(experiment, folder, resume=True, report=False)
        except (InputError, DivergedError, QuorumError) as error:
            sys.stderr.write(f"{error}\n")
            sys.exit(1)
        except (Interrupted, KeyboardInterrupt):
            sys.exit(143)
