"""Rounds under a virtual clock: the plain run as a special case, scenes that were worked out by hand, resuming."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from support.cases import CASES
from support.runs import simulation

from fedadamw.checkpoint import CheckpointError
from fedadamw.engine.clients import QuorumError
from fedadamw.engine.state import Saved
from fedadamw.settings.devices import DevicesSettings
from fedadamw.settings.federation import FederationSettings

EQUAL = DevicesSettings()
CASE = CASES["fedadamw-mean-v"]
SIZES = (5, 40, 13, 60, 22)  # samples of the clients of support.sequences.unequal_clients


def run(case, task, **changes):
    """Run a case to its end; returns the simulation, its records without wall seconds, and its jobs."""
    sim, records, jobs = simulation(case, task, **changes), [], []
    for record in sim.rounds():
        records.append({key: value for key, value in asdict(record).items() if key != "wall_s"})
        jobs.append(list(sim.clients.ended_jobs))
    return sim, records, jobs


def without_clock(records):
    return [{key: value for key, value in r.items() if key not in ("virtual_s", "devices")} for r in records]


def write(tmp_path, name, *rows):
    path = tmp_path / f"{name}.csv"
    path.write_text("\n".join(rows) + "\n")
    return str(path)


@pytest.mark.parametrize("name", ["fedadamw-mean-v", "scaffold"])
def test_equal_devices_are_the_plain_run_bit_for_bit(name, task):
    plain, records, _ = run(CASES[name], task, rounds=2)
    timed, own, jobs = run(CASES[name], task, rounds=2, devices=EQUAL)
    assert without_clock(own) == without_clock(records)
    tensors, expected = timed.tensors(), plain.tensors()
    assert {key for key in tensors if not key.startswith("clock.")} == expected.keys()
    assert all(torch.equal(tensors[key], t) for key, t in expected.items())
    assert [job.client for job in sorted(jobs[0], key=lambda job: job.job)] == plain.clients.sample(0)
    longest = np.cumsum([max(2 * SIZES[job.client] / 100 for job in each) for each in jobs])  # 100 samples a second
    assert [r["virtual_s"] for r in own] == pytest.approx(longest.tolist())
    first = own[0]["devices"]
    busy = sum(2 * SIZES[job.client] / 100 for job in jobs[0])
    assert first["idle"] == pytest.approx(1 - busy / (3 * longest[0]), abs=1e-6)
    assert (first["asked"], first["counted"], first["work"]) == (3, 3, {"all": sum(job.steps for job in jobs[0])})


def test_the_first_answers_count_and_a_deadline_ends_a_round(task, tmp_path):
    speeds = write(tmp_path, "speeds", "samples_per_s", "2", "1", "8", "4", "16")
    work = {"steps": 2, "epochs": None, "batch_size": 4, "rounds": 1}  # 8 samples: 4, 8, 1, 2 and 0.5 s
    devices = DevicesSettings(trace=speeds)
    surplus = FederationSettings(over_selection=2 / 3)
    _, (record,), (jobs,) = run(CASE, task, devices=devices, federation=surplus, **work)
    outcomes = {job.client: (job.outcome, job.finish_s) for job in jobs}
    assert outcomes == {
        4: ("counted", 0.5), 2: ("counted", 1.0), 3: ("counted", 2.0), 0: ("surplus", 2.0), 1: ("surplus", 2.0)
    }  # fmt: skip
    assert (record["virtual_s"], record["clients"], record["devices"]["surplus"]) == (2.0, 3, 2)
    assert record["devices"]["idle"] == pytest.approx(1 - (0.5 + 1 + 2 + 2 + 2) / 10, abs=1e-6)
    everyone = {**work, "clients_per_round": 5}
    _, (record,), (jobs,) = run(CASE, task, devices=devices, federation=FederationSettings(deadline_s=5), **everyone)
    assert [job.client for job in jobs if job.outcome == "counted"] == [4, 2, 3, 0]
    assert [(job.client, job.finish_s) for job in jobs if job.outcome == "late"] == [(1, 5.0)]
    assert (record["virtual_s"], record["clients"]) == (5.0, 4)
    _, (plain,), _ = run(CASE, task, **everyone)
    assert plain["down_bytes"] == record["down_bytes"]  # who is late received the model, too


def test_without_a_quorum_others_are_asked_as_they_come_online(task, tmp_path):
    times = ["0,0,5", "1,0,5", "2,30,100", "3,40,100", "4,95,100"]
    trace = write(tmp_path, "times", "device,from_s,to_s", *times)
    there = {"kind": "trace", "trace": trace, "day_s": 200}
    devices = DevicesSettings(availability=there, speed={"samples_per_s": 1})
    work = {"steps": 5, "epochs": None, "batch_size": 2, "rounds": 2, "clients_per_round": 2}  # 10 s
    sim, records, jobs = run(CASE, task, devices=devices, federation=FederationSettings(quorum=2), **work)
    found = [(j.job, j.client, j.start_s, j.finish_s, j.outcome) for j in jobs[0]]
    assert found == [
        (0, 0, 0, 5, "lost"),
        (1, 1, 0, 5, "lost"),
        (2, 2, 30, 40, "counted"),
        (3, 3, 40, 50, "counted"),
    ]
    assert [(j.job, j.client, j.start_s, j.finish_s) for j in jobs[1]] == [(4, 2, 50, 60), (5, 3, 50, 60)]
    assert [r["virtual_s"] for r in records] == [50, 60]
    assert sim.losses.keys() == {2, 3}
    waits = FederationSettings(quorum=2, wait_s=20)
    with pytest.raises(QuorumError, match=r"round 1: 0 clients answered, 2 are needed .*waited 20 s of the virtual"):
        run(CASE, task, devices=devices, federation=waits, **work)
    from_three = DevicesSettings(availability={**there, "day_s": 100}, speed={"samples_per_s": 100})
    needs = FederationSettings(quorum=3, wait_s=100)
    _, _, jobs = run(CASE, task, devices=from_three, federation=needs, **{**work, "clients_per_round": 3, "rounds": 1})
    assert {(job.client, job.start_s) for job in jobs[0]} == {(2, 95), (3, 95), (4, 95)}  # not before three are there
    late = FederationSettings(quorum=3, wait_s=90)
    with pytest.raises(QuorumError, match="round 1: 1 of 5 clients are online, 3 are needed"):
        run(CASE, task, devices=from_three, federation=late, **{**work, "clients_per_round": 3})


@pytest.mark.parametrize("aggregation", ["synchronous", "buffered"])
def test_steps_of_a_class_are_taken_and_counted(task, aggregation):
    devices = DevicesSettings(classes={"fast": {"share": 0.4, "steps": 3}, "slow": {"share": 0.6, "steps": 1}})
    work = {"steps": 2, "epochs": None, "rounds": 1, "clients_per_round": 5, "aggregation": aggregation}
    sim, taken = simulation(CASE, task, devices=devices, **work), []
    sim.listeners.append(lambda shard, answer: taken.append((shard.client, answer.steps)))
    record = sim.step()
    assert sorted(taken) == sorted((job.client, job.steps) for job in sim.clients.ended_jobs)
    found = [steps for _, steps in taken]
    assert record.devices["work"] == {"fast": 3 * found.count(3), "slow": found.count(1)}
    assert (len(found), min(found), max(found)) == (5, 1, 3)


def test_it_resumes_bit_for_bit_and_not_without_its_clock(task):
    devices = DevicesSettings(
        speed={"kind": "log-normal", "jitter": 0.3}, availability={"kind": "daily", "online": 0.9, "dropout": 0.3}
    )
    how = {"devices": devices, "federation": FederationSettings(quorum=1, over_selection=0.4), "epochs": 1}
    whole, records, jobs = run(CASE, task, **how)
    assert any(job.outcome == "lost" for each in jobs for job in each)
    part = simulation(CASE, task, **how)
    for _ in range(2):
        part.step()
    before = part.state
    part.step()
    for state in (before, None):
        tensors = part.tensors(state)
        saved = Saved(2 if state else 3, tensors)
        resumed, own, own_jobs = run(CASE, task, **how, saved=saved)
        assert own == records[saved.round :]
        assert own_jobs == jobs[saved.round :]
        assert all(torch.equal(t, resumed.tensors()[key]) for key, t in whole.tensors().items())
    with pytest.raises(CheckpointError, match="no virtual clock"):
        simulation(CASE, task, **how, saved=Saved(3, {k: t for k, t in tensors.items() if k != "clock.jobs"}))
