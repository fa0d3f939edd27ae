"""The loop engine and the simulation: unequal clients, statistics, rejected updates, memory, schedules."""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from support.engine import PoisonedTask
from support.sequences import SequenceTask, attention_model, unequal_clients
from torch import Tensor, nn

from fedadamw.algorithm import Algorithm
from fedadamw.algorithms import registry
from fedadamw.algorithms.fedavg import FedAvg, Server
from fedadamw.blocks.blocks import Blocks
from fedadamw.engine.client import Answer, Shard, Workspace, work_of
from fedadamw.engine.record import DivergedError
from fedadamw.engine.robust import Robust
from fedadamw.engine.round import run_round
from fedadamw.engine.simulate import Simulation
from fedadamw.engine.step import clipped
from fedadamw.models.loading import initial
from fedadamw.prepare.device import select_device
from fedadamw.randomness import draw_batches, sample_clients, torch_seed
from fedadamw.settings.load import load
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


def make(model, task, clients, *, algorithm=None, **training):
    settings = {"rounds": 3, "clients_per_round": 3, "steps": 4, "batch_size": 8, "lr": 0.05, **training}
    return Simulation(model, algorithm or FedAvg(), task, clients, TrainingSettings(**settings))


def test_batch_norm_statistics_are_averaged_over_clients(task):
    torch.manual_seed(0)
    model = NormModel().double()
    clients = unequal_clients(task)
    sim = make(model, task, clients)
    start = sim.state.statistics.clone()
    assert len(start) == 8
    own = [sim.engine.train(Shard(i, clients[i], None), 0, sim.state.server, start).statistics for i in range(5)]
    sampled = sample_clients(0, 0, 5, 3)
    record = sim.step()
    expected = torch.stack([own[i] for i in sampled]).mean(0)
    torch.testing.assert_close(sim.state.statistics, expected)
    assert not torch.allclose(sim.state.statistics, start)
    d = sim.workspace.layout.d
    assert record.up_bytes == 3 * 8 * (d + 8), "statistics travel, and are counted"


def test_a_client_does_not_feel_who_trained_before_it(task):
    clients = unequal_clients(task)
    sim = make(NormModel().double(), task, clients)
    first = sim.engine.train(Shard(1, clients[1], None), 0, sim.state.server, sim.state.statistics)
    sim.engine.train(Shard(2, clients[2], None), 0, sim.state.server, sim.state.statistics)
    again = sim.engine.train(Shard(1, clients[1], None), 0, sim.state.server, sim.state.statistics)
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
def test_constants_among_the_buffers_stay_and_others_begin_anew(task, stack, weighting):
    def run(clients, rows=stack):
        torch.manual_seed(0)
        model = Buffered()
        model.classifier.double()
        training = TrainingSettings(rounds=3, clients_per_round=3, steps=2, batch_size=8, lr=0.05, weighting=weighting)
        sim = Simulation(model, FedAvg(), task, clients, training, stack=rows)
        assert [record.rejected for record in sim.rounds()] == [0, 0, 0]
        return sim, model

    clients = unequal_clients(task)[:3]
    sim, model = run(clients)
    least = torch.finfo(torch.float32).min
    assert sim.state.statistics.tolist() == [*[least] * 3, *torch.tensor([1 / 3]).tolist()]
    assert model.mask.tolist() == [0.0, -torch.inf, 0.0]
    assert model.least.tolist() == [least] * 3
    torch.testing.assert_close(sim.state.server.x, run(clients, rows=1)[0].state.server.x, rtol=0, atol=1e-10)


class Told:
    """An engine whose clients answer with these statistics."""

    def __init__(self, told):
        self.told = told

    def answers(self, shards, round_, down, statistics):
        for shard, told in zip(shards, self.told, strict=True):
            yield shard, Answer(down, (), told, torch.zeros(()), len(shard.samples), None)


@pytest.mark.parametrize("mean", [None, Robust("median", 1), Robust("trimmed-mean", 1), Robust("krum", 1)])
@pytest.mark.parametrize("before", [300.0, 5000.0])
def test_variances_that_fall_far_stay_variances(before, mean):
    shards = [Shard(i, np.arange(size), None) for i, size in enumerate((7, 9, 12, 20, 31))]
    told = [torch.tensor([1e-6, torch.finfo(torch.float32).min, 1 / 3])] * 5
    start = torch.cat([torch.tensor([before]), told[0][1:]])
    result = run_round(Told(told), 0, Server(torch.zeros(2)), start, shards, weighting="samples", mean=mean)
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
@pytest.mark.filterwarnings("ignore:BatchNorm takes no batch of one")
def test_a_last_batch_of_one_sample_joins_the_one_before_it_where_batch_norm_needs_it(task, what):
    """9, 12 and 14 samples in batches of 4: the first client has one left over, the last one two."""
    clients = [np.arange(0, 9), np.arange(9, 21), np.arange(21, 35)]
    sizes = {"batch": [(4, 5), (4, 4, 4), (4, 4, 4, 2)], "places": [(4, 4, 1), (4, 4, 4), (4, 4, 4, 2)]}[what]
    ends = []
    for stack in (1, 3):
        training = TrainingSettings(rounds=2, clients_per_round=3, epochs=1, batch_size=4, lr=0.05)
        sim = Simulation(batch_norm_over(what), FedAvg(), task, clients, training, stack=stack)
        works = [work_of(task, training, 0, i, clients[i], 0, sim.workspace) for i in range(3)]
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
def test_a_client_that_batch_norm_cannot_train_is_named_before_the_first_round(task, sizes, batch_size, said):
    clients = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    with pytest.raises(InputError, match=said):
        make(batch_norm_over("batch"), task, clients, batch_size=batch_size)
    make(batch_norm_over("places"), task, clients, batch_size=batch_size).step()


def test_weights_by_sample_count(task):
    clients = unequal_clients(task)
    sim = make(attention_model(), task, clients, weighting="samples", clients_per_round=5)
    down, start = sim.state.server, sim.state.statistics
    ups = [sim.engine.train(Shard(i, c, None), 0, down, start).up for i, c in enumerate(clients)]
    sizes = torch.tensor([len(c) for c in clients], dtype=torch.float64)
    expected = sim.state.server.x + (torch.stack([up.delta for up in ups]) * sizes[:, None]).sum(0) / sizes.sum()
    sim.step()
    torch.testing.assert_close(sim.state.server.x, expected, rtol=0, atol=1e-12)


def test_a_client_that_is_not_finite_is_left_out_and_counted():
    task = PoisonedTask()
    clients = unequal_clients(task)
    task.poison = frozenset(clients[0].tolist())
    sim = make(attention_model(), task, clients, clients_per_round=5)
    down, start = sim.state.server, sim.state.statistics
    healthy = [sim.engine.train(Shard(i, clients[i], None), 0, down, start).up for i in range(1, 5)]
    expected = sim.state.server.x + torch.stack([up.delta for up in healthy]).mean(0)
    record = sim.step()
    assert (record.clients, record.rejected) == (4, 1)
    assert np.isfinite(record.train_loss)
    assert record.up_bytes == 4 * 8 * sim.workspace.layout.d
    torch.testing.assert_close(sim.state.server.x, expected, rtol=0, atol=1e-12)


def test_when_every_client_fails_the_run_stops_and_keeps_its_state():
    task = PoisonedTask()
    sim = make(attention_model(), task, unequal_clients(task))
    sim.step()
    before = sim.state
    task.poison = frozenset(range(200))
    with pytest.raises(DivergedError, match=r"round 2: all 3 clients .* smaller training\.lr \(now 0\.0375\)"):
        sim.step()
    assert sim.state is before


class Seen(NamedTuple):
    rounds: Tensor


class CountingLocal(NamedTuple):
    y: Tensor
    rounds: Tensor


class Counting(Algorithm):
    """FedAvg whose clients count their rounds: the smallest algorithm with a memory."""

    def server_init(self, x):
        return FedAvg().server_init(x)

    def broadcast(self, server):
        return server

    def client_init(self, down):
        return Seen(down.x.new_zeros(1))

    def client_start(self, down, memory):
        return CountingLocal(down.x, memory.rounds)

    def client_step(self, local, down, g, lr):
        return local._replace(y=local.y - lr * g)

    def client_finish(self, local, down, lr):
        return FedAvg().client_finish(local, down, lr)[0], Seen(local.rounds + 1)

    def server_update(self, server, up, lr, participation):
        return FedAvg().server_update(server, up, lr, participation)


def test_memories_of_clients_are_kept_and_restored(task):
    clients = unequal_clients(task)
    sim = make(attention_model(), task, clients, algorithm=Counting(), clients_per_round=2)
    sim.step()
    kept = [i for i in range(5) if sim.store.get(i, 1) is not None]
    assert kept == sample_clients(0, 0, 5, 2).tolist()
    other = make(attention_model(), task, clients, algorithm=Counting(), clients_per_round=2)
    other.restore(1, sim.tensors())
    list(other.rounds())
    drawn = np.concatenate([sample_clients(0, r, 5, 2) for r in range(3)])
    expected = {int(i): int((drawn == i).sum()) for i in set(drawn)}
    assert {i: int(other.store.get(i, 3).rounds) for i in expected} == expected


def test_batches_cover_every_sample_and_are_never_short():
    samples = np.arange(100, 123)
    generator = np.random.default_rng(0)
    steps = draw_batches(samples, generator, batch_size=10, steps=7, epochs=None)
    assert [len(b) for b in steps] == [10] * 7
    counts = np.bincount(np.concatenate(steps) - 100, minlength=23)
    assert set(counts) <= {3, 4}
    passes = draw_batches(samples, generator, batch_size=10, steps=None, epochs=2)
    assert [len(b) for b in passes] == [10, 10, 3] * 2
    assert sorted(np.concatenate(passes[:3])) == list(samples)
    small = draw_batches(samples[:4], generator, batch_size=10, steps=3, epochs=None)
    assert [sorted(b) for b in small] == [[100, 101, 102, 103]] * 3


def test_generators_differ_by_every_coordinate():
    seeds = {torch_seed(s, p, r, c) for s in range(3) for p in (1, 2) for r in range(5) for c in range(5)}
    assert len(seeds) == 3 * 2 * 5 * 5


def test_learning_rates_over_rounds():
    cosine = TrainingSettings(rounds=10, steps=1, lr=1.0, warmup_rounds=2)
    rates = [cosine.lr_at(r) for r in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.5)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert min(rates) > 0
    assert {TrainingSettings(rounds=5, steps=1, lr=0.1, schedule="constant").lr_at(r) for r in range(5)} == {0.1}


def test_clipping_is_torchs():
    g = torch.randn(50, dtype=torch.float64) * 10
    p = nn.Parameter(torch.zeros(50, dtype=torch.float64))
    p.grad = g.clone()
    nn.utils.clip_grad_norm_([p], 3.0)
    torch.testing.assert_close(clipped(g, 3.0), p.grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(clipped(g, 1e6), g, rtol=0, atol=1e-12)


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = attention_model()
        self.spare = nn.Linear(2, 2).double()

    def forward(self, x):
        return self.inner(x)


def test_parameters_that_the_loss_does_not_reach_are_named_once(task):
    sim = make(Unused(), task, unequal_clients(task))
    with pytest.warns(UserWarning, match=r"does not depend on spare\.weight, spare\.bias"):
        sim.step()
    sim.step()  # warnings are errors here: it would fail


def test_half_precision_is_no_master_copy():
    with pytest.raises(ValueError, match=r"must all be float32, or all float64; their dtypes: torch\.bfloat16"):
        Workspace(nn.Linear(2, 2).bfloat16())


def test_a_model_without_anything_to_train_is_refused():
    with pytest.raises(ValueError, match="their dtypes: none"):
        Workspace(nn.Identity())
    mixed = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    with pytest.raises(ValueError, match=r"torch\.float32, torch\.float64"):
        Workspace(mixed)


def test_more_clients_a_round_than_there_are(task):
    with pytest.raises(ValueError, match="clients_per_round=6 is more than the 5 clients there are"):
        make(attention_model(), task, unequal_clients(task), clients_per_round=6)


def test_a_thousand_clients_with_4_to_400_samples_each_run():
    generator = np.random.default_rng(0)
    sizes = generator.permutation(np.r_[4, 400, generator.integers(4, 401, 998)])
    task = SequenceTask(samples=int(sizes.sum()))
    ends = np.cumsum(sizes)
    clients = [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    algorithm = registry.make("fedadamw", registry.settings_of("fedadamw"), Blocks.of(attention_model()))
    epochs = {"steps": None, "epochs": 1, "batch_size": 50, "rounds": 1, "lr": 1e-3}
    record = make(attention_model(), task, clients, algorithm=algorithm, clients_per_round=1000, **epochs).step()
    assert (record.clients, record.rejected) == (1000, 0)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_clients_of_a_round():
    def megabytes(clients_per_round):
        code = f"from support.engine import peak_memory; peak_memory({clients_per_round})"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="tests", timeout=200
        )
        return json.loads(done.stdout)

    few, many = megabytes(5), megabytes(200)
    kept = 195 * 8  # MB, if one vector stayed for each further client
    assert many < few + kept / 10, f"{few} MB with 5 clients a round, {many} MB with 200"


def test_a_model_is_built_without_a_gpu_being_asked_for_its_generator(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda *_: pytest.fail("a GPU was begun"))
    before = torch.get_rng_state()
    first, second = (initial(lambda: torch.rand(3), 7) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_float32_is_not_rounded_to_tf32():
    before = torch.backends.cudnn.allow_tf32
    try:
        for precision in ("float32", "bf16"):
            select_device(load("digits", ["device=cpu", f"training.precision={precision}"]))
            assert torch.backends.cudnn.allow_tf32 is (precision == "bf16")
    finally:
        torch.backends.cudnn.allow_tf32 = before
