"""One run in a process of its own. Importing this module loads the heavy libraries, once, in the fork server."""

import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType

import datasets  # noqa: F401  (loaded before the fork)
import sklearn.datasets  # noqa: F401
import yaml
from transformers import ResNetForImageClassification, SwinForImageClassification, ViTForImageClassification  # noqa: F401

from fedadamw.engine.simulate import DivergedError
from fedadamw.experiment import parse
from fedadamw.run import Interrupted, execute
from fedadamw.run_folder import RunFolder
from fedadamw.validation import InputError

LOG = "log.txt"


def work(settings: str, path: str) -> None:
    """Run, or go on with, the experiment of the YAML `settings` in the folder `path`; what it says goes to log.txt."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent asks us to stop
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    Path(path).mkdir(parents=True, exist_ok=True)
    with open(Path(path) / LOG, "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            execute(parse(yaml.safe_load(settings)), RunFolder(Path(path)), resume=True, report=False)
        except (InputError, DivergedError) as error:
            sys.stderr.write(f"{error}\n")
            sys.exit(1)
        except (Interrupted, KeyboardInterrupt):
            sys.exit(143)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: the checkpoint is being written
    raise KeyboardInterrupt


def _end_with_parent() -> None:
    """End at once where the parent was killed: else its successor would find the folders in use."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
