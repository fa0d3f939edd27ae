"""Ctrl-C in a terminal reaches all ranks of a script; one message comes out, and the round is saved."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys, time; sys.path[:0] = {paths!r}
from support.own_objects import *

def slow(model, batch):
    time.sleep(0.02)
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

try:
    started = lambda record: print("started", flush=True)
    simulate(sample_losses=slow, metrics=None, ranks=2, rounds=500, out={out!r}, callbacks=[started])
except KeyboardInterrupt as stop:
    print(stop)
"""


@pytest.mark.slow
def test_ctrl_c_reaches_all_ranks_and_saves_once(tmp_path):
    script = tmp_path / "own.py"
    script.write_text(SCRIPT.format(paths=[str(Path(__file__).parent.parent)], out=str(tmp_path / "run")))
    command = [sys.executable, str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        os.killpg(process.pid, signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    assert errors == ""
    assert out.splitlines()[-1].startswith("saved after round")
    assert (tmp_path / "run" / "checkpoint" / "state.safetensors").is_file()
