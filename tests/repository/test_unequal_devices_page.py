"""docs/unequal-devices.md says what the committed records say; the benchmarks' clock is that of a run."""

import json

import numpy as np
import pytest
from support.cases import CASES
from support.runs import simulation
from support.sequences import unequal_clients

from benchmarks.common.clock import Clock
from benchmarks.measure import asynchronous as measured
from benchmarks.measure import fleet
from benchmarks.measure.asynchronous_jobs import cells, jobs
from benchmarks.pages import asynchronous
from fedadamw.data.partition import Partition
from fedadamw.devices.traces import read_times
from fedadamw.engine.clients import Clients
from fedadamw.settings.devices import DevicesSettings
from fedadamw.settings.federation import FederationSettings

PAGE = asynchronous.PAGE.read_text()
DEVICES = DevicesSettings(speed={"kind": "log-normal", "spread": 10, "jitter": 0.3}, availability={"dropout": 0.1})
FEDERATION = FederationSettings(over_selection=0.5, deadline_s=1.5)


def test_the_sections_are_written_from_the_committed_records():
    assert asynchronous.fill(PAGE) == PAGE, "run python -m benchmarks.pages.asynchronous"
    assert {part["name"] for part in asynchronous.PART.finditer(PAGE)} == set(asynchronous.SECTIONS)
    drawn = {path.stem for path in asynchronous.PICTURES.glob("*.svg")}
    assert drawn == set(asynchronous.pictures()), "run python -m benchmarks.pages.asynchronous"


@pytest.mark.parametrize("how", [{}, {"aggregation": "buffered", "buffer": 2, "concurrency": 4}])
def test_a_clock_without_training_is_that_of_the_run(task, how):
    run = simulation(CASES["local-adamw"], task, devices=DEVICES, federation=FEDERATION, rounds=5, **how)
    own = unequal_clients(task)
    partition = Partition(np.concatenate(own), np.cumsum([len(samples) for samples in own]))
    clients: Clients = run.clients
    of = run.workspace, run.algorithm, task, partition, run.training, FEDERATION, clients.fleet
    ends = [record.virtual_s for record in run.rounds()]
    clock = Clock(*of)
    assert [clock.step() for _ in ends] == ends
    assert Clock(*of).end_of(4) == ends[3]
    assert Clock(*of).rounds_within(ends[3]) == 4


def test_a_run_is_told_by_its_records_and_jobs(tmp_path):
    records = [
        {"round": n, "virtual_s": 10.0 * n * n, "test_metrics": {"accuracy": 0.1 * n}, "up_bytes": 500_000,
         "devices": {"idle": idle}} for n, idle in ((1, 0.5), (2, 0.1))
    ]  # fmt: skip
    told = jobs.describe_rounds(records, 2)
    assert told == {"rounds": 2, "score": 20.0, "curve": [[10, 0.1], [40, 0.2]], "idle": 0.2, "up_mb": 1.0}
    assert jobs.describe_rounds([], None)["score"] is None
    lines = [
        json.dumps({"outcome": outcome, "client": client, "staleness": staleness, "steps": 10})
        for outcome, client, staleness in (("counted", 0, 2), ("counted", 1, 0), ("late", 0, 0))
    ]
    (tmp_path / "jobs.jsonl").write_text("\n".join(lines) + "\n")
    of = jobs.describe_jobs(tmp_path / "jobs.jsonl", np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert of == {
        "jobs": {"counted": 2, "late": 1},
        "steps": 20,
        "staleness_mean": 1,
        "staleness_max": 2,
        "slowest": 0.5,
    }


def test_alpha_is_tried_after_the_rate_and_each_mode_has_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "FOLDER", tmp_path)
    cell, tried = cells.Cell("digits", "buffered", "fedadamw"), []
    while (trial := next(cell.missing())).tuning:
        tried.append((trial.lr, trial.alpha))
        score = 60 - abs(trial.lr - 3e-3) * 1e4 - 10 * trial.alpha
        trial.file.write_text(json.dumps({"lr": trial.lr, "alpha": trial.alpha, "seed": trial.seed, "score": score}))
    assert tried == [(1e-3, 0.25), (3e-3, 0.25), (1e-2, 0.25), (3e-3, 0.0), (3e-3, 0.5)]
    assert cell.choice() == (3e-3, 0.0)
    assert [(job.lr, job.alpha, job.seed) for job in cell.missing()] == [(3e-3, 0.0, seed) for seed in range(10, 15)]
    assert cells.Cell("digits", "deadline", "fedadamw").tried() == []


def made_cell(mode, algorithm, scores):
    """A cell with runs of these scores."""
    run = {"error": None, "end_s": 100.0, "rounds": 10, "idle": 0.3, "up_mb": 1.0, "steps": 100, "staleness_mean": 1.5}
    run |= {"staleness_max": 4, "slowest": 0.12, "cpu_s": 1.0, "jobs": {"counted": 80, "late": 20}}
    runs = [
        {**run, "seed": 10 + n, "score": score, "curve": [[50.0, 0.4], [100.0, score / 100]]}
        for n, score in enumerate(scores)
    ]
    trials = [{"lr": 0.001, "alpha": alpha, "seed": 0, "score": 70 + alpha} for alpha in (0.0, 0.25)]
    alpha = 0.25 if algorithm == "fedadamw" else None
    trials = trials if alpha is not None else [{"lr": 0.001, "alpha": None, "seed": 0, "score": 70.0}]
    return {"mode": mode, "algorithm": algorithm, "lr": 0.001, "alpha": alpha, "trials": trials, "runs": runs}


def test_modes_and_algorithms_are_compared_by_seed():
    found = [
        made_cell(mode, algorithm, [80.0 + 2 * place, 82.0 + 2 * place, 81.0 + 2 * place, 80.5, 81.5])
        for algorithm in cells.ALGORITHMS
        for place, mode in enumerate(jobs.MODES)
    ]
    pairs = measured.pair(found)
    assert len(pairs) == 2 * 3 + 3
    subject = {"title": "digits", "deadline_s": 35.0, "cells": found, "paired": pairs}
    record = {
        "devices": jobs.DEVICES,
        "modes": jobs.MODES,
        "at_work": 10,
        "device": "cpu",
        "subjects": {"digits": subject},
    }
    text = asynchronous.describe(record)
    assert "| FedAdamW, waits for all | 10 | 81.0 ± 1.0 | 0.001 | 0.25 | 1.5 | 30% | 80 of 100 | 12% |" in text
    assert "| FedAdamW: buffered less waits for all | +2.4 (-0.3 to +5.1) | not told apart |" in text
    assert "| buffered: FedAdamW less Local AdamW | +0.0 (+0.0 to +0.0) | not told apart |" in text
    assert "| buffered | 70.0 | 70.2 |" in text
    assert {row["of"] for row in asynchronous.rows_of(subject)} == set(asynchronous.MODES.values())
    assert asynchronous.draw(subject).to_dict()["facet"]


def test_a_made_up_trace_is_one_of_two_times_a_day(tmp_path, monkeypatch):
    monkeypatch.setattr(fleet, "DEVICES", 5)
    fleet.write_trace(tmp_path / "trace.csv")
    times = read_times(str(tmp_path / "trace.csv"), fleet.DAY_S)
    assert len(times.first) == 6
    assert (times.to_s > times.from_s).all()
