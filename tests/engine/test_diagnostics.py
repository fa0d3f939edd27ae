"""Diagnostics of a round against the same quantities written out."""

import math

import pytest
import torch
from support.cases import CASES
from support.runs import NO_BASE, simulation

from fedadamw.blocks.blocks import Blocks
from fedadamw.engine.client import Broadcast, Shard
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
