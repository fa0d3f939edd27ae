"""BatchNorm: statistics averaged over clients, buffers, batches of one sample."""

import numpy as np
import pytest
import torch
from support.runs import NO_BASE, simulate
from support.sequences import unequal_clients
from torch import nn

from fedadamw.algorithms.fedavg import FedAvg, Server
from fedadamw.engine.client import Answer, Broadcast, Shard, plan_work
from fedadamw.engine.round import Aggregation, run_round
from fedadamw.engine.simulate import Simulation
from fedadamw.engine.simulated import SimulatedClients
from fedadamw.randomness import sample_clients
from fedadamw.settings.training import TrainingSettings
from fedadamw.validation import InputError


class NormModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4, momentum=None)  # a cumulative mean: it depends on the batch counter
        self.classifier = nn.Linear(4, 3)

    def forward(self, x):
        return self.classifier(torch.relu(self.norm(self.first(x[:, 0]))))


def test_batch_norm_statistics_are_averaged_over_clients(task):
    torch.manual_seed(0)
    model = NormModel().double()
    clients = unequal_clients(task)
    sim = simulate(model, task, clients)
    start = sim.state.statistics.clone()
    assert len(start) == 8
    own = [
        sim.clients.engine.train_client(
            Shard(i, clients[i], None), Broadcast(0, sim.state.server, start, NO_BASE)
        ).statistics
        for i in range(5)
    ]
    sampled = sample_clients(0, 0, 5, 3)
    record = sim.step()
    expected = torch.stack([own[i] for i in sampled]).mean(0)
    torch.testing.assert_close(sim.state.statistics, expected)
    assert not torch.allclose(sim.state.statistics, start)
    d = sim.workspace.layout.d
    assert record.up_bytes == 3 * 8 * (d + 8), "statistics travel, and are counted"


def test_a_client_is_independent_of_the_one_before(task):
    clients = unequal_clients(task)
    sim = simulate(NormModel().double(), task, clients)
    first = sim.clients.engine.train_client(
        Shard(1, clients[1], None), Broadcast(0, sim.state.server, sim.state.statistics, NO_BASE)
    )
    sim.clients.engine.train_client(
        Shard(2, clients[2], None), Broadcast(0, sim.state.server, sim.state.statistics, NO_BASE)
    )
    again = sim.clients.engine.train_client(
        Shard(1, clients[1], None), Broadcast(0, sim.state.server, sim.state.statistics, NO_BASE)
    )
    assert torch.equal(first.up.delta, again.up.delta)
    assert torch.equal(first.statistics, again.statistics)


class Buffered(nn.Module):
    """Has constants that no mean in single precision leaves as they are, and a running number that is not saved."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(3, 3)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf, 0.0]))
        self.register_buffer("least", torch.full((3,), torch.finfo(torch.float32).min))
        self.register_buffer("third", torch.tensor(1 / 3))
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        self.register_buffer("spread", torch.zeros(1).expand(3), persistent=False)

    def forward(self, x):
        self.seen += 0.1
        kept = torch.softmax(self.mask + x.mean(1), -1) + torch.softmax(self.least.clamp(max=0) + x.mean(1), -1)
        return self.classifier(kept * self.third + torch.tanh(self.seen) + self.spread)


@pytest.mark.parametrize("weighting", ["uniform", "samples"])
@pytest.mark.parametrize("stack", [1, 3])
def test_constant_buffers_stay_and_others_are_reset(task, stack, weighting):
    def run(clients, rows=stack):
        torch.manual_seed(0)
        model = Buffered()
        model.classifier.double()
        training = TrainingSettings(rounds=3, clients_per_round=3, steps=2, batch_size=8, lr=0.05, weighting=weighting)
        sim = Simulation.in_process(model, FedAvg(), task, clients, training, stack=rows)
        assert [record.rejected for record in sim.rounds()] == [0, 0, 0]
        return sim, model

    clients = unequal_clients(task)[:3]
    sim, model = run(clients)
    least = torch.finfo(torch.float32).min
    assert sim.state.statistics.tolist() == [*[least] * 3, *torch.tensor([1 / 3]).tolist()]
    assert model.mask.tolist() == [0.0, -torch.inf, 0.0]
    assert model.least.tolist() == [least] * 3
    torch.testing.assert_close(sim.state.server.x, run(clients, rows=1)[0].state.server.x, rtol=0, atol=1e-10)


class FixedClients(SimulatedClients):
    """Clients that answer with these statistics."""

    def __init__(self, partition, statistics):
        self.partition, self.statistics = partition, statistics

    def train(self, sampled, broadcast):
        for i in sampled:
            shard = Shard(i, self.partition[i], None)
            yield shard, Answer(broadcast.down, (), self.statistics[i], torch.zeros(()), len(shard.samples), None)


@pytest.mark.parametrize("mean", ["weighted", "median", "trimmed-mean", "krum"])
@pytest.mark.parametrize("before", [300.0, 5000.0])
def test_averaged_variances_never_become_negative(before, mean):
    partition = [np.arange(size) for size in (7, 9, 12, 20, 31)]
    told = [torch.tensor([1e-6, torch.finfo(torch.float32).min, 1 / 3])] * 5
    start = torch.cat([torch.tensor([before]), told[0][1:]])
    broadcast = Broadcast(0, Server(torch.zeros(2)), start, NO_BASE)
    result = run_round(FixedClients(partition, told), range(5), broadcast, Aggregation("samples", mean, 1))
    assert result.statistics.dtype == torch.float32
    assert result.statistics.tolist() == told[0].tolist()


def batch_norm_over(what):
    """A model whose BatchNorm averages over a batch alone, or over places too."""
    torch.manual_seed(0)
    model = NormModel().double()
    model.norm.momentum = 0.1
    if what == "places":
        model.norm.register_forward_pre_hook(lambda _, inputs: inputs[0].unsqueeze(-1).expand(-1, -1, 2))
        model.norm.register_forward_hook(lambda _, inputs, output: output.mean(-1))
    return model


@pytest.mark.parametrize("what", ["batch", "places"])
@pytest.mark.filterwarnings("ignore:BatchNorm needs two samples")
def test_a_batch_of_one_sample_is_merged_if_batch_norm_needs_two(task, what):
    """9, 12 and 14 samples in batches of 4: the first client has one left over, the last one two."""
    clients = [np.arange(0, 9), np.arange(9, 21), np.arange(21, 35)]
    sizes = {"batch": [(4, 5), (4, 4, 4), (4, 4, 4, 2)], "places": [(4, 4, 1), (4, 4, 4), (4, 4, 4, 2)]}[what]
    ends = []
    for stack in (1, 3):
        training = TrainingSettings(rounds=2, clients_per_round=3, epochs=1, batch_size=4, lr=0.05)
        sim = Simulation.in_process(batch_norm_over(what), FedAvg(), task, clients, training, stack=stack)
        works = [plan_work(task, training, 0, i, clients[i], 0, sim.workspace) for i in range(3)]
        assert [work.sizes for work in works] == sizes
        assert [sorted(work.samples.tolist()) for work in works] == [list(own) for own in clients]
        assert sim.workspace.statistics.tolist() == [0.0] * 4 + [1.0] * 4, "to try it left nothing behind"
        list(sim.rounds())
        ends.append(sim.state)
    torch.testing.assert_close(ends[0].server.x, ends[1].server.x, rtol=0, atol=1e-10)
    torch.testing.assert_close(ends[0].statistics, ends[1].statistics, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("sizes", "batch_size", "said"),
    [
        ((9, 1, 12), 4, "client 1 has a single sample, and this model's BatchNorm .*partition.minimum=2"),
        ((9, 5, 12), 1, "training.batch_size=1: this model's BatchNorm averages over a batch, of two samples at least"),
    ],
)
def test_clients_too_small_for_batch_norm_are_named_before_the_first_round(task, sizes, batch_size, said):
    clients = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    with pytest.raises(InputError, match=said):
        simulate(batch_norm_over("batch"), task, clients, batch_size=batch_size)
    simulate(batch_norm_over("places"), task, clients, batch_size=batch_size).step()
