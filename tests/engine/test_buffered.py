"""Buffered rounds: the synchronous run as a special case, literal twins of clock and sums, resuming, stability."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from support.cases import EVERYWHERE, rows
from support.runs import simulation
from torch import nn

from fedadamw.algorithms import registry
from fedadamw.blocks.blocks import Blocks
from fedadamw.engine.simulate import Simulation
from fedadamw.engine.state import Saved
from fedadamw.settings.devices import DevicesSettings
from fedadamw.settings.training import TrainingSettings

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


class Quadratic:
    """Half of w^T H w, H diagonal: one sample's loss, in float64."""

    held_out, resident, lengths = 0, True, None

    def __init__(self, h):
        self.h = torch.tensor(h, dtype=torch.float64)

    def draw(self, count, generator):
        return torch.zeros(count, 0)

    def batch(self, samples, drawn):
        return (samples,)

    def losses(self, model, batch):
        return (self.h * model.weight[0].square()).sum() / 2 * torch.ones_like(batch[0], dtype=torch.float64)


def stagger(sim, places):
    """Let the jobs of all places end one after the other, at equal distances, so that each is as stale as the others.

    They all began at 0 s, and one ended at 1 s.
    """
    tensors = sim.tensors()
    tensors["jobs.times"][:, 0] = 1 + torch.arange(1, places, dtype=torch.float64) / places
    sim.restore(Saved(1, tensors))


LIMITS = {  # of K lr h / sqrt(v), by alpha and staleness: DEVICES.md
    0.0: {0: 2, 1: 1, 2: 0.618, 4: 0.347, 8: 0.185},
    0.5: {0: 3, 1: 0.750, 2: 0.411, 4: 0.216, 8: 0.111},
    0.75: {0: 3.5, 1: 0.438, 2: 0.229, 4: 0.117, 8: 0.059},
}


FAST = {(0.0, 1), (0.5, 2)}


def limits():
    cases = [(alpha, tau) for alpha, row in LIMITS.items() for tau in row]
    return [pytest.param(*case, marks=[] if case in FAST else [pytest.mark.slow]) for case in cases]


@pytest.mark.parametrize(("alpha", "tau"), limits())
def test_the_largest_stable_step_is_the_documented_one_at_constant_staleness(alpha, tau):
    limit, versions = LIMITS[alpha][tau], 200
    h = np.linspace(0.9, 1.1, 41) * limit
    model = nn.Linear(len(h), 1, bias=False).double()
    nn.init.constant_(model.weight, 1e-90)  # so that sqrt(v) is nothing beside eps, which is 1
    settings = {"alpha": alpha, "share": "none", "betas": (0.0, 0.999), "eps": 1.0, "weight_decay": 0.0}
    algorithm = registry.make("fedadamw", registry.validate("fedadamw", settings), Blocks.of(model))
    training = TrainingSettings(
        **{"aggregation": "buffered", "staleness": "none", "buffer": 1, "concurrency": tau + 1},
        **{"rounds": versions, "clients_per_round": 1, "steps": 1, "lr": 1.0, "schedule": "constant", "clip": None},
    )
    clients = [np.array([i]) for i in range(tau + 1)]
    sim = Simulation.in_process(model, algorithm, Quadratic(h), clients, training)
    sim.step()
    stagger(sim, tau + 1)
    sizes = []
    for record in sim.rounds():
        assert record.devices["staleness_max"] == min(tau, record.round - 1)
        sizes.append(sim.state.server.x.abs())
    early, late = torch.stack(sizes[-100:-50]).amax(0), torch.stack(sizes[-50:]).amax(0)
    stable = torch.from_numpy(h)[late < early]
    assert 0.95 < float(stable.max()) / limit < 1.05
