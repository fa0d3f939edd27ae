"""Buffered rounds: the synchronous run as a special case, literal twins of clock and sums, resuming, stability."""

from dataclasses import asdict

import pytest
import torch
from support.cases import EVERYWHERE, rows
from support.runs import simulation

from fedadamw.engine.state import Saved
from fedadamw.settings.devices import DevicesSettings

UNEQUAL = DevicesSettings(speed={"kind": "log-normal", "spread": 30, "jitter": 0.5}, availability={"dropout": 0.2})
STALE = {"aggregation": "buffered", "buffer": 2, "concurrency": 4, "rounds": 12, "devices": UNEQUAL}


def run(case, task, **changes):
    """Run a case to its end; returns the simulation, its records without wall seconds, and losses by round."""
    sim, records, losses = simulation(case, task, **changes), [], []
    for record in sim.rounds():
        columns = asdict(record)
        records.append({key: value for key, value in columns.items() if key != "wall_s"})
        losses.append(sim.losses)
    return sim, records, losses


def without_clock(records):
    return [{key: value for key, value in r.items() if key not in ("virtual_s", "devices")} for r in records]


def assert_same_tensors(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, t in theirs.items():
        assert torch.equal(ours[name], t), name


@pytest.mark.parametrize("name", rows(EVERYWHERE))
@pytest.mark.usefixtures("all_algorithms")
def test_equal_devices_and_a_buffer_for_all_are_the_synchronous_run(name, task):
    case = EVERYWHERE[name]
    plain, records, losses = run(case, task)
    buffered, own_records, own_losses = run(case, task, aggregation="buffered")
    assert (without_clock(own_records), own_losses) == (without_clock(records), losses)
    tensors = buffered.tensors()
    assert [r["virtual_s"] for r in own_records] == [1, 2, 3, 4, 5]
    assert_same_tensors({k: t for k, t in tensors.items() if not k.startswith("jobs.")}, plain.tensors())


@pytest.mark.parametrize("name", ["scaffold", "fedadamw-mean-v", "diloco"])
def test_it_resumes_bit_for_bit_from_the_present_boundary_and_from_the_one_before(name, task):
    how = {**STALE, "staleness": "none" if name == "scaffold" else "root", "upload": "int8"}
    whole, records, _ = run(EVERYWHERE[name], task, **how)
    part, before = simulation(EVERYWHERE[name], task, **how), None
    for _ in range(7):
        before = part.state
        part.step()
    for state in (part.state, before):
        resumed = simulation(EVERYWHERE[name], task, saved=Saved(state.round, part.tensors(state)), **how)
        rest = [{k: v for k, v in asdict(record).items() if k != "wall_s"} for record in resumed.rounds()]
        assert rest == records[state.round :]
        assert_same_tensors(resumed.tensors(), whole.tensors())
    assert max(record["devices"]["staleness_max"] for record in records) > 2
