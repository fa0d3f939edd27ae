"""Several requests to stop at once are one."""

import subprocess
import sys

BOTH_AT_ONCE = """
import os, signal
from fedadamw.runner.signals import stop_once

both = {signal.SIGINT, signal.SIGTERM}
for number in both:
    signal.signal(number, stop_once)
signal.pthread_sigmask(signal.SIG_BLOCK, both)
for number in both:
    os.kill(os.getpid(), number)
try:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
except KeyboardInterrupt:
    print("stopped")
"""


def test_signals_that_arrive_together_stop_once_and_print_nothing():
    done = subprocess.run([sys.executable, "-c", BOTH_AT_ONCE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "stopped\n", "")
