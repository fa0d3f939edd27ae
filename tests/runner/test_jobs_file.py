"""jobs.jsonl, and runs with a virtual clock that are killed and resumed."""

import json
import random
import signal
import time

import pytest
from support.command import SHORT_RUN, run_command
from support.run_folders import assert_same_files, start_run, wait_for_line

from fedadamw.engine.clients import EndedJob
from fedadamw.runner.jobs_file import JobsFile

DEVICES = (
    "devices={speed: {kind: log-normal}, availability: {kind: daily, day_s: 100, online: 0.8, dropout: 0.1}}",
    "federation={over_selection: 0.3, deadline_s: 8, quorum: 2}",
    "partition.clients=12",
    "training.clients_per_round=4",
)


def test_jobs_are_cut_back_to_the_round_that_a_run_goes_on_from(tmp_path):
    file = JobsFile(tmp_path)
    for round_ in (1, 2, 3):
        file.append(round_, [EndedJob(round_, 5, round_ - 1, 0, 0.5, 2.25, "counted", 0, 10)])
    file.append(4, [])
    whole = file.path.read_bytes()
    file.path.write_bytes(whole + b'{"round": 4, "jo')  # of a process that was killed
    file.keep(3)
    assert file.path.read_bytes() == whole
    file.keep(2)
    lines = [json.loads(line) for line in file.path.read_text().splitlines()]
    assert [line["round"] for line in lines] == [1, 2]
    assert lines[1] == {
        "round": 2, "job": 2, "client": 5, "version": 1, "repeat": 0, "start_s": 0.5, "finish_s": 2.25,
        "outcome": "counted", "staleness": 0, "steps": 10,
    }  # fmt: skip
    file.keep(0)
    assert file.path.read_bytes() == b""
    JobsFile(tmp_path / "none").keep(0)  # a run without a clock


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [DEVICES, (*DEVICES[:1], *DEVICES[2:], "training.aggregation=buffered", "training.buffer=2")]
)
def test_a_run_with_a_clock_is_the_same_after_sigkill(more, tmp_path):
    settings = ["digits", *SHORT_RUN, *(part for setting in more for part in ("-s", setting))]
    whole = run_command("run", *settings, "--out", str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    assert " virtual " in whole.stdout
    rng = random.Random(5)
    for target in (2, 5, 11):
        process = start_run(*settings, "--out", str(tmp_path / "run"), "--resume")
        wait_for_line(process, f"round {target}/12")
        time.sleep(rng.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    last = run_command("run", *settings, "--out", str(tmp_path / "run"), "--resume")
    assert last.returncode == 0, last.stderr
    assert_same_files(tmp_path / "whole", tmp_path / "run")
