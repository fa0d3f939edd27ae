"""Clients with unequal numbers of local steps, and those that train from one broadcast more than once."""

import numpy as np
import pytest
import torch
from support.cases import CASES, EVERYWHERE, rows
from support.runs import NO_BASE, simulation
from support.sequences import SequenceTask

from fedadamw.algorithms import registry
from fedadamw.algorithms.fedadamw import MeasuredUp, Server
from fedadamw.blocks.blocks import Blocks
from fedadamw.engine.client import Answer, Broadcast, Shard
from fedadamw.engine.round import Aggregation, run_round
from fedadamw.engine.simulate import Simulation
from fedadamw.engine.simulated import SimulatedClients
from fedadamw.engine.uploads import CodedEngine
from fedadamw.settings.training import TrainingSettings


def ups_of(sim, jobs):
    """The coded upload and the steps of each job (client, repeat, steps), trained in one call, by job."""
    partition, down = sim.clients.partition, sim.algorithm.broadcast(sim.state.server)
    shards = [Shard(i, partition[i], None, repeat=repeat, steps=steps) for i, repeat, steps in jobs]
    engine = CodedEngine(sim.clients.engine, sim.clients.uploads, 0)
    answers = engine.train(shards, Broadcast(0, down, sim.state.statistics, NO_BASE))
    return {(s.client, s.repeat): (torch.cat([*a.up]).clone(), a.steps) for s, a in answers}


@pytest.mark.parametrize("stack", [1, 2, 5])
def test_steps_and_repeats_of_one_call(stack, task):
    case = CASES["fedadamw-mean-v"]
    sim = simulation(case, task, stack=stack, upload="int8")
    jobs = [(1, 0, None), (1, 1, None), (3, 0, 2), (1, 2, 7)]
    found = ups_of(sim, jobs)
    assert {job: steps for job, (_, steps) in found.items()} == {(1, 0): 10, (1, 1): 10, (3, 0): 2, (1, 2): 7}
    alone = simulation(case, task, upload="int8")
    for job in jobs:  # as when each trains alone, one after the other
        torch.testing.assert_close(found[job[:2]], ups_of(alone, [job])[job[:2]], rtol=0, atol=1e-10)
    assert not torch.allclose(found[1, 0][0], found[1, 1][0], atol=1e-3), "other batches"


class OppositeTask(SequenceTask):
    """The first client wants 1, the second -1, and both together 0."""

    goals = torch.tensor([1.0, -1.0], dtype=torch.float64)
    held_out, resident = 0, True

    def __init__(self):
        """Nothing to draw."""

    def batch(self, samples, drawn):
        return (self.goals[samples],)

    def losses(self, model, batch):
        x = model(torch.ones(1, 1, dtype=torch.float64)).reshape(())
        return 0.5 * (x - batch[0]).square()


@pytest.mark.parametrize(("name", "stack"), [("fedavg", 1), ("fedadamw", 2)])
def test_a_client_with_more_steps_pulls_harder_unless_updates_are_normalised(name, stack):
    def final(*, normalize):
        model = torch.nn.Linear(1, 1, bias=False).double()
        torch.nn.init.zeros_(model.weight)
        settings = registry.validate(name, {"weight_decay": 0.0})
        algorithm = registry.make(name, settings, Blocks.of(model, "coordinate"))
        rounds = {"rounds": 50, "clients_per_round": 2, "steps": 5, "lr": 0.005, "schedule": "constant", "clip": None}
        training = TrainingSettings(**rounds, normalize=normalize)
        how = (model, algorithm, OppositeTask(), [np.array([0]), np.array([1])], training)
        sim = Simulation.in_process(*how, stack=stack)
        sim.clients.steps_of = [20, 2].__getitem__
        list(sim.rounds())
        return float(sim.state.server.x)

    assert final(normalize=False) > 0.7, "near 18/22, the optimum of clients weighted by their steps"
    assert abs(final(normalize=True)) < 0.03


@pytest.mark.parametrize("name", rows(EVERYWHERE))
@pytest.mark.usefixtures("all_algorithms")
def test_normalised_updates_of_equal_steps_are_the_updates(name, task):
    case, equal = EVERYWHERE[name], {"rounds": 3, "epochs": None, "steps": 3}
    plain, normalised = (simulation(case, task, normalize=n, weighting="samples", **equal) for n in (False, True))
    for ours, theirs in zip(normalised.rounds(), plain.rounds(), strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, abs=1e-12)
    atol = 1e-10 if name == "fedadamw-m" else 1e-12  # which divides by gradients near 0
    torch.testing.assert_close(normalised.state.tensors(), plain.state.tensors(), rtol=1e-12, atol=atol)


@pytest.mark.parametrize("weighting", ["uniform", "samples"])
@pytest.mark.parametrize("name", ["fedadamw-mean-v", "fedadamw-agreement", "scaffold", "fedexp"])
def test_the_mean_upload_is_that_of_steps_times_that_of_normalised_updates(name, weighting, task):
    steps = [2, 20, 7, 1, 5]
    changes = {"clients_per_round": 5, "weighting": weighting, "epochs": None, "steps": 4}
    sim = simulation(CASES[name], task, **changes, normalize=True, steps_of=steps.__getitem__)
    ups, broadcast = [], Broadcast(0, sim.algorithm.broadcast(sim.state.server), sim.state.statistics, NO_BASE)
    for shard, answer in sim.clients.train(range(5), broadcast):
        assert answer.steps == steps[shard.client]
        ups.append(answer.up)
    weights = [len(own) if weighting == "samples" else 1 for own in sim.clients.partition]

    def mean(values):
        return sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)

    found, k = run_round(sim.clients, range(5), broadcast, sim.aggregation).up, mean(steps)
    by_step = mean([up.delta / own for up, own in zip(ups, steps, strict=True)])
    torch.testing.assert_close(found.delta, k * by_step, rtol=0, atol=1e-12)
    if hasattr(found, "square"):
        square = k**2 * mean([(up.delta / own).square().sum() for up, own in zip(ups, steps, strict=True)])
        torch.testing.assert_close(found.square[0], square, rtol=1e-12, atol=0)
    for field in {"m", "v", "k", "dc"} & {*found._fields}:  # as they are
        torch.testing.assert_close(getattr(found, field), mean([getattr(up, field) for up in ups]), rtol=0, atol=1e-12)
    if name == "fedadamw-mean-v":
        sim.step()
        direction = -by_step / sim.training.lr_at(0)
        torch.testing.assert_close(sim.state.server.delta, direction, rtol=1e-10, atol=1e-10)


class StaleClients(SimulatedClients):
    """Clients of one number each that answer with these."""

    def __init__(self, answers):
        self.answers, self.partition = answers, [np.arange(a.samples) for a in answers]

    def train(self, sampled, broadcast):
        yield from ((Shard(i, self.partition[i], None), self.answers[i]) for i in sampled)

    def accept(self, shard, answer):
        """They remember nothing."""


@pytest.mark.parametrize("normalize", [False, True])
def test_stale_answers_of_unequal_steps_are_discounted_and_still_a_direction(normalize):
    lr, k, s = [0.1, 0.05, 0.02], [2.0, 20.0, 5.0], [0.5**0.5, 1.0, 3**-0.5]
    delta, samples, versions = [0.3, -1.0, 0.7], [10, 30, 20], [1, 2, 0]
    one = torch.ones(1, dtype=torch.float64)
    answers = [
        Answer((), (), one[:0], one[0], samples[i], None, steps=int(k[i]), version=versions[i], discount=s[i])._replace(
            up=MeasuredUp(delta[i] * one, one[:0], i * one, k[i] * one, delta[i] ** 2 * one)
        )
        for i in range(3)
    ]
    broadcast = Broadcast(2, Server(one, one, one[:0], one, one), one[:0], NO_BASE)
    aggregation = Aggregation("samples", normalize=normalize)
    result = run_round(StaleClients(answers), range(3), broadcast, aggregation, lr_at=lr.__getitem__)
    ws, lr = [samples[i] * s[i] for i in range(3)], [lr[version] for version in versions]
    k_mean = sum(ws[i] * k[i] for i in range(3)) / sum(ws)
    own = [k_mean / k[i] if normalize else 1.0 for i in range(3)]  # what an update counts
    assert float(result.up.delta) == pytest.approx(sum(ws[i] * own[i] * delta[i] for i in range(3)) / sum(samples))
    squares = sum(ws[i] * (own[i] * delta[i]) ** 2 for i in range(3)) / sum(ws)
    assert float(result.up.square) == pytest.approx(squares * (sum(ws) / sum(samples)) ** 2)
    assert (float(result.up.k), float(result.up.v)) == pytest.approx((k_mean, (ws[1] + 2 * ws[2]) / sum(ws)))
    direction = -float(result.aimed.delta) / (float(result.aimed.k) * 0.02)
    counted, gone = sum(ws) if normalize else sum(ws[i] * k[i] for i in range(3)), k if normalize else [1.0] * 3
    assert direction == pytest.approx(-sum(ws[i] * delta[i] / lr[i] / gone[i] for i in range(3)) / counted)
    assert result.lr == pytest.approx(0.02 * sum(ws) / sum(samples))
