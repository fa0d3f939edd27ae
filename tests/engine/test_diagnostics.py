"""Diagnostics of a round against the same quantities written out."""

import math

import pytest
import torch
from support.cases import CASES
from support.runs import NO_BASE, simulation

from fedadamw.blocks.blocks import Blocks
from fedadamw.directions.adamw import debias
from fedadamw.engine.client import Broadcast, Shard
from fedadamw.engine.likelihood import MEMORIES, Likelihood
from fedadamw.engine.simulate import Saved
from fedadamw.engine.states import clone_tensors
from fedadamw.randomness import sample_clients


@pytest.mark.parametrize("name", ["fedadamw-mean-v", "local-adamw", "fedavg"])
def test_diagnostics_match_the_clients_of_the_round(name, task):
    sim = simulation(CASES[name], task, diagnostics=True)
    first = sim.step().diagnostics
    assert first["cosine"] is None, "there was no round before"
    before = sim.state
    down = sim.algorithm.broadcast(before.server)
    shards = [Shard(int(i), sim.clients.partition[int(i)], None) for i in sample_clients(0, 1, len(sim.clients), 3)]
    ends = [
        clone_tensors(sim.clients.engine.train_client(shard, Broadcast(1, down, before.statistics, NO_BASE)).local)
        for shard in shards
    ]
    updates = torch.stack([end.y - down.x for end in ends])
    found = sim.step().diagnostics
    distances = [float((u - updates.mean(0)).norm()) for u in updates]
    assert found["drift"] == pytest.approx(sum(distances) / 3)
    cosines = [float(u @ before.last / u.norm() / before.last.norm()) for u in updates]
    assert found["cosine"] == pytest.approx(sum(cosines) / 3)
    assert found["update_norm"] == pytest.approx(float(updates.norm(dim=1).mean()))
    kinds = found["update_norm_by_kind"]
    assert math.sqrt(sum(v**2 for v in kinds.values())) == pytest.approx(float(updates.square().sum(1).mean().sqrt()))
    if name == "fedavg":
        assert "v_variance" not in found
        return
    v = torch.stack([end.moments.v for end in ends])
    assert found["v_variance"] == pytest.approx(float(v.var(0).mean()))
    assert found["v_mean"] == pytest.approx(float(v.mean()))
    assert found["v_dispersion"] == pytest.approx(float(v.var(0).mean().sqrt() / v.mean()))
    blocks = Blocks.of(sim.workspace.module)
    layout = blocks.layout
    head = [n for n, kind in zip(layout.names, blocks.kinds, strict=True) if kind == "head"]
    of_head = torch.cat([layout.views(v.var(0))[n].reshape(-1) for n in head])
    assert found["v_variance_by_kind"]["head"] == pytest.approx(float(of_head.mean()))
    means = torch.cat([layout.views(v.mean(0))[n].reshape(-1) for n in head])
    assert found["v_mean_by_kind"]["head"] == pytest.approx(float(means.mean()))


def test_diagnostics_change_nothing_and_are_absent_when_off(task):
    quiet, loud = (
        simulation(CASES["fedadamw-mean-v"], task),
        simulation(CASES["fedadamw-mean-v"], task, diagnostics=True),
    )
    assert [r.diagnostics for r in quiet.rounds()] == [None] * 5
    assert all(r.diagnostics for r in loud.rounds())
    assert torch.equal(quiet.state.server.x, loud.state.server.x)
    assert len(quiet.state.last) == 0


def test_a_resumed_run_has_the_same_cosines(task):
    whole = simulation(CASES["fedadamw-mean-v"], task, diagnostics=True)
    expected = [r.diagnostics for r in whole.rounds()]
    first = simulation(CASES["fedadamw-mean-v"], task, diagnostics=True)
    first.step()
    first.step()
    second = simulation(CASES["fedadamw-mean-v"], task, diagnostics=True)
    second.restore(Saved(2, first.tensors()))
    assert [r.diagnostics for r in second.rounds()] == expected[2:]


def test_likelihoods_are_those_of_the_literal_mean():
    g = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).double()
    g[2, 1] = 0.0  # does not count
    v_hat, b = [0.3, 2.0, 1.0, 1e-4, 5.0], 0.9
    ours = Likelihood(torch.tensor(v_hat, dtype=torch.float64), (2, 3), None, beta2=b, eps=1e-8)
    for step in g:
        ours.add(step)
    scores, counts = ours.sums()
    assert counts.tolist() == [7, 12]
    for row, memory in zip(scores.tolist(), MEMORIES.values(), strict=True):
        expected = [0.0, 0.0]
        for j in range(5):
            for k in range(4):
                own = sum((1 - b) * b ** (k - 1 - i) * float(g[i, j]) ** 2 for i in range(k))
                weight = (1 - b**memory) * b**k
                v = (weight * v_hat[j] + own) / (weight + 1 - b**k) if k else v_hat[j]
                if g[k, j]:
                    expected[j > 1] -= (math.log(v) + float(g[k, j]) ** 2 / v) / 2
        assert row == pytest.approx(expected, rel=1e-12)


def test_likelihood_of_the_runs_own_memory_is_that_of_the_v_it_steps_by(task):
    case = CASES["fedadamw-memory-1"]
    sim = simulation(case, task, diagnostics=True, clip=0.5)
    assert "likelihood" not in sim.step().diagnostics, "nothing was carried to the first round"
    found, inner = [], sim.clients.engine.step
    t, beta2 = sim.state.server.t, 0.999
    assert float(t) == 1

    def watch(local, down, g, lr):
        v = local.moments.v / debias(beta2, t + local.k)
        clipped = g * min(1.0, 0.5 / (float(g.norm()) + 1e-6))
        found.append((-0.5 * (v.log() + clipped.square() / v))[clipped != 0])
        inner(local, down, g, lr)

    sim.clients.engine.step = watch
    likelihood = sim.step().diagnostics["likelihood"]
    assert likelihood["all"]["1"] == pytest.approx(float(torch.cat(found).mean()))
    assert set(likelihood) == {"all", *Blocks.of(sim.workspace.module).kinds}
    assert all(list(of_kind) == list(MEMORIES) for of_kind in likelihood.values())


@pytest.mark.parametrize("name", ["fedadamw-mean-v", "fedlamb"])
def test_stacked_clients_have_the_same_likelihoods(name, task):
    ours, theirs = (simulation(CASES[name], task, diagnostics=True, stack=stack) for stack in (1, 3))
    for one, other in zip(ours.rounds(), theirs.rounds(), strict=True):
        for kind, of_kind in (one.diagnostics.get("likelihood") or {}).items():
            assert other.diagnostics["likelihood"][kind] == pytest.approx(of_kind, rel=1e-9)
    assert "likelihood" in one.diagnostics


@pytest.mark.parametrize("name", ["local-adamw", "fedadamw-none", "fedavg"])
def test_there_is_no_likelihood_without_a_carried_v(name, task):
    sim = simulation(CASES[name], task, diagnostics=True)
    sim.step()
    assert "likelihood" not in sim.step().diagnostics
