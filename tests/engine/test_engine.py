"""The loop engine and the simulation: weights, rejected answers, memories, schedules."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from support.engine import PoisonedTask
from support.runs import NO_BASE, simulate
from support.sequences import SequenceTask, attention_model, unequal_clients
from torch import Tensor, nn

from fedadamw.algorithm import Algorithm
from fedadamw.algorithms import registry
from fedadamw.algorithms.fedavg import FedAvg
from fedadamw.blocks.blocks import Blocks
from fedadamw.engine.client import Broadcast, Shard
from fedadamw.engine.record import DivergedError
from fedadamw.engine.simulate import Saved, Simulation
from fedadamw.engine.step import clip_gradient
from fedadamw.engine.workspace import Workspace
from fedadamw.models.loading import build_seeded
from fedadamw.prepare.device import select_device
from fedadamw.randomness import draw_batches, sample_clients, torch_seed
from fedadamw.settings.load import load
from fedadamw.settings.training import TrainingSettings


def test_weights_by_sample_count(task):
    clients = unequal_clients(task)
    sim = simulate(attention_model(), task, clients, weighting="samples", clients_per_round=5)
    down, start = sim.state.server, sim.state.statistics
    ups = [
        sim.clients.engine.train_client(Shard(i, c, None), Broadcast(0, down, start, NO_BASE)).up
        for i, c in enumerate(clients)
    ]
    sizes = torch.tensor([len(c) for c in clients], dtype=torch.float64)
    expected = sim.state.server.x + (torch.stack([up.delta for up in ups]) * sizes[:, None]).sum(0) / sizes.sum()
    sim.step()
    torch.testing.assert_close(sim.state.server.x, expected, rtol=0, atol=1e-12)


def test_a_client_with_non_finite_numbers_is_rejected_and_counted():
    task = PoisonedTask()
    clients = unequal_clients(task)
    task.poison = frozenset(clients[0].tolist())
    sim = simulate(attention_model(), task, clients, clients_per_round=5)
    down, start = sim.state.server, sim.state.statistics
    healthy = [
        sim.clients.engine.train_client(Shard(i, clients[i], None), Broadcast(0, down, start, NO_BASE)).up
        for i in range(1, 5)
    ]
    expected = sim.state.server.x + torch.stack([up.delta for up in healthy]).mean(0)
    record = sim.step()
    assert (record.clients, record.rejected) == (4, 1)
    assert np.isfinite(record.train_loss)
    assert record.up_bytes == 4 * 8 * sim.workspace.layout.d
    torch.testing.assert_close(sim.state.server.x, expected, rtol=0, atol=1e-12)


def test_when_every_client_fails_the_run_stops_and_keeps_its_state():
    task = PoisonedTask()
    sim = simulate(attention_model(), task, unequal_clients(task))
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


def test_memories_of_clients_are_saved_and_restored(task):
    clients = unequal_clients(task)
    sim = simulate(attention_model(), task, clients, algorithm=Counting(), clients_per_round=2)
    sim.step()
    kept = [i for i in range(5) if sim.clients.store.get(i, 1) is not None]
    assert kept == sample_clients(0, 0, 5, 2).tolist()
    other = simulate(attention_model(), task, clients, algorithm=Counting(), clients_per_round=2)
    other.restore(Saved(1, sim.tensors()))
    list(other.rounds())
    drawn = np.concatenate([sample_clients(0, r, 5, 2) for r in range(3)])
    expected = {int(i): int((drawn == i).sum()) for i in set(drawn)}
    assert {i: int(other.clients.store.get(i, 3).rounds) for i in expected} == expected


class Remembered(NamedTuple):
    y: Tensor


class RemembersModel(Counting):
    """Clients remember their local model, in the tensor that was trained."""

    def client_init(self, down):
        return Remembered(torch.zeros_like(down.x))

    def client_start(self, down, memory):
        return CountingLocal(down.x, down.x.new_zeros(1))

    def client_finish(self, local, down, lr):
        return FedAvg().client_finish(local, down, lr)[0], Remembered(local.y)


def test_a_memory_is_not_overwritten_by_the_next_client(task):
    memories = {}
    for stack in (1, 5):
        sim = Simulation.in_process(
            attention_model(),
            RemembersModel(),
            task,
            unequal_clients(task),
            TrainingSettings(rounds=1, clients_per_round=5, steps=2, batch_size=8, lr=0.05),
            stack=stack,
        )
        sim.step()
        memories[stack] = [sim.clients.store.get(client, 1).y for client in range(5)]
    for one_by_one, stacked in zip(memories[1], memories[5], strict=True):
        torch.testing.assert_close(one_by_one, stacked, rtol=0, atol=1e-10)


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


def test_clipping_matches_torch():
    g = torch.randn(50, dtype=torch.float64) * 10
    p = nn.Parameter(torch.zeros(50, dtype=torch.float64))
    p.grad = g.clone()
    nn.utils.clip_grad_norm_([p], 3.0)
    torch.testing.assert_close(clip_gradient(g, 3.0), p.grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(clip_gradient(g, 1e6), g, rtol=0, atol=1e-12)


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = attention_model()
        self.spare = nn.Linear(2, 2).double()

    def forward(self, x):
        return self.inner(x)


def test_unused_parameters_are_named_once(task):
    sim = simulate(Unused(), task, unequal_clients(task))
    with pytest.warns(UserWarning, match=r"does not depend on spare\.weight, spare\.bias"):
        sim.step()
    sim.step()  # warnings are errors here: it would fail


def test_half_precision_parameters_are_refused():
    with pytest.raises(ValueError, match=r"must all be float32, or all float64; their dtypes: torch\.bfloat16"):
        Workspace(nn.Linear(2, 2).bfloat16())


def test_a_model_without_anything_to_train_is_refused():
    with pytest.raises(ValueError, match="their dtypes: none"):
        Workspace(nn.Identity())
    mixed = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    with pytest.raises(ValueError, match=r"torch\.float32, torch\.float64"):
        Workspace(mixed)


def test_more_clients_per_round_than_clients_is_refused(task):
    with pytest.raises(ValueError, match="clients_per_round=6 is more than the 5 clients of the partition"):
        simulate(attention_model(), task, unequal_clients(task), clients_per_round=6)


@pytest.mark.slow
def test_a_thousand_clients_with_4_to_400_samples_each_run():
    generator = np.random.default_rng(0)
    sizes = generator.permutation(np.r_[4, 400, generator.integers(4, 401, 998)])
    task = SequenceTask(samples=int(sizes.sum()))
    ends = np.cumsum(sizes)
    clients = [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    algorithm = registry.make("fedadamw", registry.settings_of("fedadamw"), Blocks.of(attention_model()))
    epochs = {"steps": None, "epochs": 1, "batch_size": 50, "rounds": 1, "lr": 1e-3}
    record = simulate(attention_model(), task, clients, algorithm=algorithm, clients_per_round=1000, **epochs).step()
    assert (record.clients, record.rejected) == (1000, 0)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_clients_of_a_round():
    def megabytes(clients_per_round):
        code = f"from support.engine import peak_memory; peak_memory({clients_per_round})"
        alone = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}  # tensors, not how the C library's heap is filled
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            cwd="tests",
            timeout=200,
            env=alone,
        )
        return json.loads(done.stdout)

    few, many = megabytes(5), megabytes(200)
    kept = 195 * 8  # MB, if one vector stayed for each further client
    assert many < few + kept / 10, f"{few} MB with 5 clients a round, {many} MB with 200"


def test_building_a_model_leaves_the_gpu_generator_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda *_: pytest.fail("a GPU was begun"))
    before = torch.get_rng_state()
    first, second = (build_seeded(lambda: torch.rand(3), 7) for _ in range(2))
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
