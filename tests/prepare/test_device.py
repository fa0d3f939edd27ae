"""Rounds and evaluations on a device that is no CPU mix no tensors of the two."""

import subprocess
import sys

import pytest
from support.checkout import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("which", ["not slow", "slow"])
def test_no_operation_mixes_tensors_of_two_devices_or_waits_for_one(which):
    """In a process of its own: torch takes a private backend for good, and only before the first backward."""
    tests = ROOT / "tests" / "support" / "rounds_on_a_fake_device.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", which, tests],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
