"""Clients with unequal numbers of local steps, and those that train from one broadcast more than once."""

import pytest
import torch
from support.cases import CASES
from support.runs import NO_BASE, simulation

from fedadamw.engine.client import Broadcast, Shard
from fedadamw.engine.uploads import CodedEngine


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
