"""Simulated devices: their speeds, links and classes as the settings say, and the time of a job by hand."""

import numpy as np
import pytest

from fedadamw.devices.fleet import Fleet
from fedadamw.settings.devices import DevicesSettings
from fedadamw.settings.training import TrainingSettings
from fedadamw.validation import InputError

CLIENTS = 20_000


def fleet_of(clients: int = CLIENTS, **settings) -> Fleet:
    return Fleet.of(DevicesSettings.model_validate(settings), clients, seed=3)


def quantiles(values, *shares):
    return np.quantile(values, shares)


def test_speeds_and_links_have_the_spread_that_was_asked_for():
    log_normal = fleet_of(speed={"kind": "log-normal", "spread": 10, "samples_per_s": 50}, link={"up_mbps": 8.0})
    low, median, high = quantiles(log_normal.samples_per_s, 0.1, 0.5, 0.9)
    assert high / low == pytest.approx(10, rel=0.05)
    assert median == pytest.approx(50, rel=0.03)
    half_normal = fleet_of(speed={"kind": "half-normal", "samples_per_s": 50})
    median, much = quantiles(1 / half_normal.samples_per_s, 0.5, 0.9545)
    assert median == pytest.approx(1 / 50, rel=0.03)
    assert much / median == pytest.approx(2 / 0.6745, rel=0.03)  # |z| < 2 in 95.45 %
    links = fleet_of(link={"down_mbps": 8.0, "spread": 4})
    low, median, high = quantiles(links.down_bytes_per_s, 0.1, 0.5, 0.9)
    assert high / low == pytest.approx(4, rel=0.05)
    assert median == pytest.approx(1e6, rel=0.03)
    assert np.isinf(links.up_bytes_per_s).all()
    assert fleet_of(speed={"kind": "log-normal"}).fingerprint != Fleet.of(log_normal.settings, CLIENTS, 4).fingerprint


def test_classes_have_their_shares_their_steps_and_their_speeds():
    fleet = fleet_of(
        10, classes={"fast": {"share": 0.3, "steps": 50}, "slow": {"share": 0.7, "speed": 0.1}}, time_budget_s=20
    )
    assert fleet.class_names == ("fast", "slow")
    assert np.bincount(fleet.class_of).tolist() == [3, 7]
    fast, slow = int(np.flatnonzero(fleet.class_of == 0)[0]), int(np.flatnonzero(fleet.class_of == 1)[0])
    twenty = TrainingSettings(steps=20, batch_size=50)
    assert fleet.steps_of(fast, twenty, 500) == 40  # 2000 samples in 20 s, at most 50 steps
    assert fleet.steps_of(slow, twenty, 500) == 4
    assert fleet.steps_of(slow, twenty, 5) is None  # 20 steps of 5 samples take 10 s
    assert fleet.steps_of(slow, TrainingSettings(epochs=1), 190) is None  # 4 steps; 4 fit
    assert fleet.steps_of(slow, TrainingSettings(epochs=1), 210) == 4
    assert fleet_of(10, classes={"one": {"share": 1, "steps": 7}}).steps_of(0, twenty, 500) == 7
    assert Fleet.of(None, 10, 0).steps_of(3, twenty, 500) is None


def test_a_job_takes_the_time_of_its_messages_and_its_samples():
    settings = {"speed": {"samples_per_s": 10}, "link": {"down_mbps": 8, "up_mbps": 0.8}}
    finish, lost = fleet_of(10, **settings).plan_jobs([4, 2], [0, 1], [0, 0], [5.0, 6.0], [100, 50], 2e6, [1e5, 0])
    assert finish.tolist() == pytest.approx([5 + 2 + 10 + 1, 6 + 2 + 5])
    assert not lost.any()
    finish, lost = Fleet.of(None, 10, 3).plan_jobs([4, 2], [0, 1], [0, 0], 5.0, [100, 50], 2e6, 1e5)
    assert (finish.tolist(), lost.any()) == ([6.0, 6.0], False)


def test_a_job_is_the_same_whoever_else_has_one_and_another_when_it_is_repeated():
    fleet = fleet_of(speed={"jitter": 0.5}, availability={"dropout": 0.25})
    clients = np.arange(2000)
    finish, lost = fleet.plan_jobs(clients, clients * 0 + 2, clients * 0, 0.0, 100, 0, 0)
    assert lost.mean() == pytest.approx(0.25, abs=0.03)
    assert np.log(finish[~lost]).std() == pytest.approx(0.5, rel=0.1)
    assert (finish[lost] < 4).all()  # within the job: at most three standard deviations above a second
    alone, _ = fleet.plan_jobs([70], [2], [0], 0.0, 100, 0, 0)
    others = [fleet.plan_jobs([70], *key, 0.0, 100, 0, 0)[0][0] for key in (([3], [0]), ([2], [1]))]
    assert alone[0] == finish[70]
    assert len({alone[0], *others}) == 3


def test_a_device_that_leaves_before_the_end_loses_its_job():
    fleet = fleet_of(200, speed={"samples_per_s": 1}, availability={"kind": "daily", "online": 0.5, "day_s": 100})
    there = np.flatnonzero(fleet.online(None, 40.0))
    assert 60 < len(there) < 140
    finish, lost = fleet.plan_jobs(there, there * 0, there * 0, 40.0, 30, 0, 0)
    leaves = fleet.availability.leaves(there, 40.0)
    assert (finish == np.minimum(leaves, 70.0)).all()
    assert (lost == (leaves < 70.0)).all()
    assert 0.4 < lost.mean() < 0.8  # 30 s of 50 are too many for three fifths


def test_a_trace_gives_speeds_and_classes_in_turn(tmp_path):
    path = tmp_path / "devices.csv"
    path.write_text("samples_per_s,class,up_mbps\n10,slow,8\n40,fast,16\n20,slow,8\n")
    fleet = fleet_of(5, trace=str(path), speed={"samples_per_s": 7}, link={"down_mbps": 8})
    assert fleet.samples_per_s.tolist() == [10, 40, 20, 10, 40]
    assert [fleet.class_names[i] for i in fleet.class_of] == ["slow", "fast", "slow", "slow", "fast"]
    assert fleet.up_bytes_per_s.tolist() == [1e6, 2e6, 1e6, 1e6, 2e6]
    assert fleet.down_bytes_per_s.tolist() == [1e6] * 5
    with pytest.raises(InputError, match="class 'slow' is none of devices.classes: fast"):
        fleet_of(5, trace=str(path), classes={"fast": {"share": 1}})
    path.write_text("samples_per_s\n0\n")
    with pytest.raises(InputError, match="line 2: samples_per_s=0 must be above 0"):
        fleet_of(5, trace=str(path))
    path.write_text("speed\n1\n")
    with pytest.raises(InputError, match="has a column 'speed'; columns are samples_per_s"):
        fleet_of(5, trace=str(path))
    with pytest.raises(InputError, match="cannot be read"):
        fleet_of(5, trace=str(tmp_path / "none.csv"))


def test_a_job_that_would_never_end_is_refused():
    fleet = fleet_of(speed={"jitter": 1000.0})
    with (
        np.errstate(over="raise", invalid="raise"),
        pytest.raises(InputError, match="more seconds than a number can hold"),
    ):
        fleet.plan_jobs(range(20), [0] * 20, [0] * 20, 0.0, [10] * 20, 0, 0)
