"""Rounds with privacy of samples: the same in every engine, resumed bit for bit, and plain training without noise."""

import numpy as np
import pytest
import torch
from support.cases import CASES, EVERYWHERE
from support.personal import personal_simulation
from support.runs import PRIVACY, PRIVATE, simulation
from support.sequences import SequenceTask, attention_model, unequal_clients
from torch import nn

from fedadamw.algorithms.fedavg import FedAvg
from fedadamw.directions.adamw import NoiseInMoments
from fedadamw.engine.client import plan_work
from fedadamw.engine.private_gradient import SamplePrivacy
from fedadamw.engine.simulate import Saved, Simulation
from fedadamw.randomness import OperatingSystem, Purpose, Seeded, numpy_generator
from fedadamw.settings.training import TrainingSettings

HOW = {key: value for key, value in PRIVATE.items() if key != "privacy"}
FAST = ("fedadamw-mean-v", "scaffold", "ditto")
FEW = SamplePrivacy(0.7, 1.3, 1, Seeded(0))  # most batches are empty


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in EVERYWHERE]
)
@pytest.mark.usefixtures("all_algorithms")
def test_stacked_clients_match_the_loop(name, task):
    more = {"noise": NoiseInMoments(PRIVACY.phi, 0.01)} if name == "fedadamw-mean-v" else {}
    loop, *stacked = (simulation(EVERYWHERE[name], task, privacy=PRIVACY, stack=s, **more, **HOW) for s in (1, 3))
    list(loop.rounds())
    for sim in stacked:
        list(sim.rounds())
        torch.testing.assert_close(sim.state.tensors(), loop.state.tensors(), rtol=1e-10, atol=1e-10)


def test_rounds_whose_batches_are_mostly_empty(task):
    loop, stacked = (
        simulation(CASES["fedadamw-mean-v"], task, privacy=FEW, stack=stack, **HOW | {"batch_size": 1})
        for stack in (1, 2)
    )
    for _ in zip(loop.rounds(), stacked.rounds(), strict=True):
        torch.testing.assert_close(stacked.state.tensors(), loop.state.tensors(), rtol=1e-10, atol=1e-10)
    sizes = [works_of(task, loop, client, FEW).sizes for client in range(5)]
    assert sum(size == 0 for own in sizes for size in own) > 2
    assert torch.isfinite(loop.state.server.x).all()


def works_of(task, sim, client, privacy, round_=0):
    return plan_work(task, sim.training, 0, client, sim.clients.partition[client], round_, None, privacy)


def test_steps_without_a_sample_take_the_noise_alone(task, monkeypatch):
    rare = SamplePrivacy(0.7, 1.3, 1, Seeded(0))
    monkeypatch.setattr(SamplePrivacy, "rate", lambda *_: 0.0)
    runs = [
        simulation(CASES["fedavg"], task, privacy=rare, stack=s, **HOW | {"clients_per_round": 1, "rounds": 1})
        for s in (1, 3)
    ]
    for sim in runs:
        start = sim.state.server.x.clone()
        (client,) = sim.clients.sample(0)
        list(sim.rounds())
        noise, lr = rare.noise(0, client, torch.device("cpu")), sim.training.lr_at(0)
        y = start.clone()
        for _ in range(3):
            g = torch.zeros_like(y)
            rare.finish(g, noise)
            y = y - lr * (g + 1e-3 * y)
        torch.testing.assert_close(sim.state.server.x, y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["fedadamw-mean-v", "fedavg"])
def test_without_noise_and_clipping_it_is_plain_training_on_whole_batches(name, task):
    clients = [np.arange(i * 40, (i + 1) * 40) for i in range(5)]
    how = {**HOW, "batch_size": 40}
    off = SamplePrivacy(1e12, 0.0, 40, Seeded(0))
    noise = {"noise": NoiseInMoments(off.phi, 0.01)} if name != "fedavg" else {}
    private = simulation(CASES[name], task, clients=clients, privacy=off, **noise, **how)
    plain = simulation(CASES[name], task, clients=clients, **how)
    for _ in zip(private.rounds(), plain.rounds(), strict=True):
        torch.testing.assert_close(private.state.tensors(), plain.state.tensors(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("stack", [1, 3])
def test_a_resumed_run_ends_with_the_same_bits(stack, task):
    def start(saved=None):
        return simulation(CASES["scaffold"], task, privacy=PRIVACY, stack=stack, upload="int8", saved=saved, **HOW)

    whole, first = start(), start()
    list(whole.rounds())
    first.step()
    resumed = start(Saved(1, {name: t.clone() for name, t in first.tensors().items()}))
    list(resumed.rounds())
    assert resumed.tensors().keys() == whole.tensors().keys()
    for name, t in whole.tensors().items():
        assert torch.equal(resumed.tensors()[name], t), name


class Dropping(nn.Module):
    """A model that drops at random."""

    def __init__(self):
        super().__init__()
        self.body, self.drop = attention_model(), nn.Dropout(0.3)

    def forward(self, x):
        return self.body(self.drop(x))


@pytest.mark.parametrize("stack", [1, 3])
def test_what_is_dropped_is_the_same_in_a_resumed_run(stack, task):
    def start(saved=None):
        training = TrainingSettings(clip=None, **{k: v for k, v in HOW.items() if v is not None})
        clients = unequal_clients(task)
        how = {"stack": stack, "privacy": PRIVACY, "saved": saved}
        return Simulation.in_process(Dropping(), FedAvg(), task, clients, training, **how)

    whole, first = start(), start()
    list(whole.rounds())
    first.step()
    resumed = start(Saved(1, {name: t.clone() for name, t in first.tensors().items()}))
    list(resumed.rounds())
    assert torch.equal(resumed.state.server.x, whole.state.server.x)


def test_noise_and_batches_of_the_operating_system_differ_between_equal_runs(task):
    secret = SamplePrivacy(0.7, 1.3, 6, OperatingSystem())
    runs = [simulation(CASES["fedavg"], task, privacy=secret, **HOW) for _ in range(2)]
    for sim in runs:
        sim.step()
    assert not torch.equal(*(sim.state.server.x for sim in runs))


class Recorded(Seeded):
    """Entropy that says what it was asked for."""

    asked = frozenset()

    def numpy(self, purpose, round_=0, client=0):
        type(self).asked |= {purpose}
        return super().numpy(purpose, round_, client)

    def torch(self, purpose, round_=0, client=0, *, device):
        type(self).asked |= {purpose}
        return super().torch(purpose, round_, client, device=device)


@pytest.mark.parametrize("stack", [1, 3])
def test_all_that_a_sample_meets_at_random_comes_from_the_same_entropy(stack, task, monkeypatch):
    monkeypatch.setattr(Recorded, "asked", frozenset())
    sim = simulation(CASES["fedavg"], task, privacy=SamplePrivacy(1.0, 1.0, 6, Recorded(0)), stack=stack, **HOW)
    sim.step()
    random = {Purpose.PRIVATE_BATCHES, Purpose.PRIVATE_NOISE, Purpose.AUGMENT, Purpose.MODULE}
    assert Recorded.asked == random, "with one sample less, the draws of the others move: nobody may know them"


def test_batches_are_drawn_by_the_size_of_the_client(task):
    sim = simulation(CASES["fedavg"], task, privacy=PRIVACY, **HOW)
    for client, own in enumerate(sim.clients.partition):
        work = works_of(task, sim, client, PRIVACY, round_=2)
        draws = numpy_generator(0, Purpose.PRIVATE_BATCHES, 2, client)
        expected = [own[draws.random(len(own)) < min(1, 6 / len(own))] for _ in range(3)]
        assert [samples.tolist() for samples, _ in work.batches()] == [e.tolist() for e in expected]


def test_no_loss_is_told(task):
    for stack in (1, 3):
        sim = simulation(CASES["fedavg"], task, privacy=PRIVACY, stack=stack, **HOW)
        heard = []
        sim.listeners.append(lambda _, answer: heard.append(float(answer.loss)))  # noqa: B023
        sim.step()
        assert len(heard) == 5
        assert np.isnan(heard).all()


def test_personal_parameters_are_clipped_with_the_others(task):
    loop, stacked = (personal_simulation(CASES["scaffold"], task, stack=stack, **PRIVATE) for stack in (1, 3))
    for _ in zip(loop.rounds(), stacked.rounds(), strict=True):
        torch.testing.assert_close(stacked.tensors(), loop.tensors(), rtol=1e-10, atol=1e-10)


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.spare = attention_model(), nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x):
        return self.body(x)


def test_parameters_that_only_the_noise_moves_are_named():
    task = SequenceTask()
    training = TrainingSettings(rounds=1, clients_per_round=1, steps=2, batch_size=4, clip=None)
    sim = Simulation.in_process(Unused(), FedAvg(), task, unequal_clients(task), training, privacy=PRIVACY)
    with pytest.warns(UserWarning, match=r"does not depend on spare"):
        sim.step()
