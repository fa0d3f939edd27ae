"""Rounds and evaluations on a device that is no CPU mix no tensors of the two."""

import subprocess
import sys

from support.checkout import ROOT


def test_no_operation_mixes_tensors_of_two_devices():
    """In a process of its own: torch takes a private backend for good, and only before the first backward."""
    tests = ROOT / "tests" / "support" / "rounds_on_a_fake_device.py"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
