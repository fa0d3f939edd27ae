"""Buffered rounds: the synchronous run as a special case, literal twins of clock and sums, resuming, stability."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from support import literal_clock
from support.cases import EVERYWHERE, rows
from support.engine import PoisonedTask
from support.runs import gradients_of_job, simulation
from support.sequences import attention_model, unequal_clients
from torch import nn

from fedadamw.algorithms import registry
from fedadamw.algorithms.fedadamw import MeasuredUp as FedAdamWUp
from fedadamw.blocks.blocks import Blocks
from fedadamw.devices.fleet import Fleet
from fedadamw.engine.client import Answer
from fedadamw.engine.discounts import Discounts
from fedadamw.engine.jobs import Boundary, Cost, Rules, Version
from fedadamw.engine.record import DivergedError
from fedadamw.engine.simulate import Simulation
from fedadamw.engine.state import Saved
from fedadamw.settings.devices import DevicesSettings
from fedadamw.settings.training import TrainingSettings
from fedadamw.vector import Layout, trainable

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
    plain, records, losses = run(case, task, rounds=3)
    buffered, own_records, own_losses = run(case, task, rounds=3, aggregation="buffered")
    assert (without_clock(own_records), own_losses) == (without_clock(records), losses)
    tensors = buffered.tensors()
    assert [r["virtual_s"] for r in own_records] == [1, 2, 3]
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


def test_sums_of_stale_answers_are_those_of_the_literal_twin(task):
    sim = simulation(EVERYWHERE["fedadamw-none"], task, weighting="samples", **STALE)
    partition, training, versions, found = sim.clients.clients.partition, sim.training, [], []
    for _ in sim.rounds():
        counted = [job for job in sim.clients.ended_jobs if job.outcome == "counted"]
        versions.append([])
        for _, client, version, repeat, *_ in counted:
            gradients = gradients_of_job(task, partition[client], client, version, repeat=repeat)
            versions[-1].append((version, len(partition[client]), training.lr_at(version), gradients))
        found.append(sim.state.server.x.tolist())
    x0 = Layout.of(attention_model()).flatten(trainable(attention_model())).tolist()
    np.testing.assert_allclose(found, literal_clock.fedadamw(x0, versions), rtol=0, atol=1e-10)


def test_rejected_answers_take_their_places_as_in_a_synchronous_round():
    task = PoisonedTask()
    clients = unequal_clients(task)
    task.poison = frozenset(clients[0].tolist())
    how = {"clients": clients, "clients_per_round": 5}
    plain, records, losses = run(EVERYWHERE["fedavg"], task, **how)
    buffered, own_records, own_losses = run(EVERYWHERE["fedavg"], task, aggregation="buffered", **how)
    assert (without_clock(own_records), own_losses) == (without_clock(records), losses)
    assert own_records[0]["devices"]["rejected"] == 1
    assert torch.equal(buffered.state.server.x, plain.state.server.x)
    task.poison = frozenset(range(200))
    sim = simulation(EVERYWHERE["fedavg"], task, aggregation="buffered", **how)
    with pytest.raises(DivergedError, match="round 1: all 5 clients"):
        sim.step()
    task.poison = frozenset(clients[0].tolist())
    assert asdict(sim.step()) | {"wall_s": 0} == {**own_records[0], "wall_s": 0}, "the failed step left no trace"


def test_stale_squares_shrink_with_the_updates_and_a_direction_is_by_each_learning_rate():
    up = FedAdamWUp(torch.tensor([3.0]), *[torch.zeros(0)] * 2, torch.tensor([5.0]), torch.tensor([8.0]))
    discounts = Discounts(lambda round_: 0.1 * (round_ + 1), 2)
    answer = Answer(up, (), torch.zeros(0), torch.zeros(()), 1, up)
    weights, aimed, squares = [], 0.0, 0.0
    for delta, version, s, w in STALE_ANSWERS:
        own, at_present = up._replace(delta=torch.tensor([delta]), square=torch.tensor([delta**2])), 3 / (version + 1)
        weights.append(discounts.add(answer._replace(version=version, discount=s), w, own))
        aimed, squares = aimed + w * s * delta * at_present, squares + w * s * (delta * at_present) ** 2
    assert weights == [1.0, 1.5, 0.5]
    shrunk, f = discounts.shrink(up), 3.0 / 5.0
    assert (float(shrunk.delta), float(shrunk.square), float(shrunk.k)) == pytest.approx((3 * f, 8 * f * f, 5))
    assert discounts.server_lr == pytest.approx(0.3 * f)
    sums = [sum(w * s * delta**power for delta, _, s, w in STALE_ANSWERS) / 3 for power in (1, 2)]
    found = discounts.aim(up._replace(delta=torch.tensor([sums[0]]), square=torch.tensor([sums[1]])))
    assert (float(found.delta), float(found.square)) == pytest.approx((aimed / 3, squares / 3))


STALE_ANSWERS = [(2.0, 2, 1.0, 1.0), (-3.0, 1, 0.75, 2.0), (5.0, 0, 0.25, 2.0)]  # delta, version, discount, weight


@pytest.mark.parametrize(("clients", "places", "buffer", "oldest"), [(9, 7, 3, 2), (200, 30, 4, 9), (6, 6, 5, 0)])
def test_the_clock_is_the_literal_one(clients, places, buffer, oldest):
    fleet = Fleet.of(UNEQUAL, clients, 3)

    def ends(client, version, repeat, start):
        end, lost = fleet.plan_jobs([client], [version], [repeat], start, [cost(client).samples], [0], [0])
        return float(end[0]), bool(lost[0])

    def cost(client):
        return Cost(1, 100 + client, 0, 0)

    rules, before, found = Rules(fleet, 3, clients, buffer, places, oldest, cost), Boundary(0.0, 0, ()), []
    for number in range(12):
        version = Version(rules, number, before)
        assert Boundary.of(version.after.tensors()) == version.after
        before = version.after
        found.append(([describe(rules, job, number) for job in version.ended], version.clock_s))
    own = {"clients": clients, "buffer": buffer, "places": places, "max_staleness": oldest}
    assert found == literal_clock.run_clock(ends, **own, versions=12, seed=3)
    assert {job[6] for jobs, _ in found for job in jobs} == {"counts", "stale", "lost"}


def describe(rules, job, version):
    outcome = "lost" if job.lost else "stale" if rules.is_stale(job, version) else "counts"
    own = (job.number, job.client, job.version, job.repeat, job.start_s, job.finish_s)
    return (*own, outcome, version - job.version)


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
    0.0: {0: 2, 1: 1, 2: 0.618, 4: 0.347, 8: 0.185, 16: 0.095},
    0.5: {0: 3, 1: 0.750, 2: 0.411, 4: 0.216, 8: 0.111, 16: 0.056},
    0.75: {0: 3.5, 1: 0.438, 2: 0.229, 4: 0.117, 8: 0.059, 16: 0.030},
}


FAST = {(0.0, 1), (0.5, 2)}


def limits():
    cases = [(alpha, tau) for alpha, row in LIMITS.items() for tau in row]
    return [pytest.param(*case, marks=[] if case in FAST else [pytest.mark.slow]) for case in cases]


@pytest.mark.parametrize(("alpha", "tau"), limits())
def test_the_largest_stable_step_is_the_documented_one_at_constant_staleness(alpha, tau):
    limit, versions = LIMITS[alpha][tau], max(200, 25 * tau)
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
    quarter = versions // 4  # as long as an oscillation at least
    early, late = (torch.stack(part).amax(0) for part in (sizes[-2 * quarter : -quarter], sizes[-quarter:]))
    stable = torch.from_numpy(h)[late < early]
    assert 0.95 < float(stable.max()) / limit < 1.05
