"""A comparison that several files of tests look at."""

from pathlib import Path

import pytest
from support.command import run_command
from support.studies import TINY


@pytest.fixture(scope="session")
def finished(shared_folder) -> Path:
    """A comparison of two algorithms with two seeds that was never interrupted."""

    def make(folder: Path) -> None:
        both = ("-a", "fedadamw,fedavg", "--seeds", "2", "-s", "training.diagnostics=true", "--export", "tex")
        rounds = ("-s", "training.rounds=6", "--out", str(folder / "whole"))
        done = run_command("compare", "digits", *TINY, *rounds, *both)
        assert done.returncode == 0, done.stderr

    return shared_folder("study", make) / "whole"
