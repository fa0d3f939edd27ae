"""Run the command `fedadamw` as a user does."""

import subprocess
import sys
from pathlib import Path

# settings of a run of a few seconds; the steps are small, so that a test can kill it in every phase of a round
SHORT_RUN = ("-s", "training.rounds=12", "-s", "training.steps=2", "-s", "threads=1", "-s", "checkpoint_every=3")


def run_command(*arguments: str, cwd: Path | None = None, timeout: float = 240) -> subprocess.CompletedProcess:
    """Run `fedadamw` with these arguments in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "fedadamw", *arguments], cwd=cwd, capture_output=True, text=True, timeout=timeout
    )
