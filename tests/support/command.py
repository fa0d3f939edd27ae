"""The command `fedadamw`, as a user types it."""

import subprocess
import sys
from pathlib import Path

# the steps are small, so that there is something to kill in every phase of a round
SHORT = ("-s", "training.rounds=12", "-s", "training.steps=2", "-s", "threads=1", "-s", "checkpoint_every=3")


def command(*arguments: str, cwd: Path | None = None, timeout: float = 240) -> subprocess.CompletedProcess:
    """`fedadamw` with these arguments, as a user would type it."""
    return subprocess.run(
        [sys.executable, "-m", "fedadamw", *arguments], cwd=cwd, capture_output=True, text=True, timeout=timeout
    )
