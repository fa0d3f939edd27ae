"""The harness of comparisons runs real trainings, and goes on after it was killed."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from support.checkout import ROOT

from benchmarks.evidence.agenda import LEVELS, Agenda
from benchmarks.evidence.store import Store, points
from benchmarks.evidence.variants import MAIN
from benchmarks.evidence.workloads import WORKLOADS
from fedadamw.runner.folder import RunFolder

COMMAND = [sys.executable, "-m", "benchmarks.evidence", "--small", "--only", "digits"]


def start(folder, *options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    pipe = subprocess.PIPE
    command = [*COMMAND, "--out", str(folder), *options]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def wait_for_results(folder, count, process):
    deadline = time.monotonic() + 300
    while len(list(folder.glob("small/results/*.json"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_it_goes_on_where_it_was_killed_and_stops_when_it_is_told(tmp_path):
    first = start(tmp_path)
    wait_for_results(tmp_path, 2, first)
    first.kill()
    first.communicate()
    before = {path.name: path.read_bytes() for path in tmp_path.glob("small/results/*.json")}
    second = start(tmp_path)
    wait_for_results(tmp_path, len(before) + 2, second)
    second.send_signal(signal.SIGTERM)
    _, errors = second.communicate(timeout=90)
    assert (second.returncode, errors.splitlines()[-1]) == (130, "stopped; the same command goes on")
    after = {path.name: path.read_bytes() for path in tmp_path.glob("small/results/*.json")}
    assert before.items() <= after.items(), "what had ended was not run again"
    assert all(json.loads(text)["score"] for text in after.values())


@pytest.mark.slow
def test_a_small_pass_tunes_and_runs_five_seeds_of_the_main_variants(tmp_path):
    process = start(tmp_path)
    store = Store(tmp_path, small=True)
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline:
        results = store.refresh().results
        agenda = Agenda({job: points(result) for job, result in results.items()}, ("digits",), small=True)
        if not agenda.jobs_of(LEVELS[0]):
            break
        time.sleep(0.5)
    process.terminate()
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 130, errors
    for variant in MAIN:
        assert set(agenda.points(WORKLOADS["digits"], variant)) >= {10, 11, 12, 13, 14}
        assert agenda.rate(WORKLOADS["digits"], variant) is not None
    result = next(result for result in results.values() if not result["tuning"])
    assert result["cpu_s"] > 0
    assert (result["rounds"], result["steps"], result["round"]) == (4, 2, [1, 2, 3, 4])


@pytest.mark.slow
def test_a_run_that_another_session_has_is_passed_over(tmp_path):
    first = next(Agenda({}, ("digits",), small=True).next_jobs())
    with RunFolder(Store(tmp_path, small=True).work(first)).lock():
        process = start(tmp_path)
        wait_for_results(tmp_path, 1, process)
        process.terminate()
        printed, errors = process.communicate(timeout=90)
    assert process.returncode == 130, errors
    assert "failed" not in printed
    assert first not in Store(tmp_path, small=True).refresh().results


@pytest.mark.slow
def test_no_run_starts_that_would_end_after_the_budget(tmp_path):
    process = start(tmp_path, "--budget", "0.001")
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "\n0 runs ended" in printed
