"""A literal twin of a buffered run: the state that follows from the jobs that counted, one after the other."""

import math

import torch

from fedadamw.engine.client import Broadcast, Shard


def replay(simulation, jobs, versions):
    """Return the server's state after so many versions, bit for bit.

    simulation: the same experiment, synchronous, new. jobs: dicts of those that counted, with their round (from 1).
    """
    clients, algorithm, lr_at = simulation.clients, simulation.algorithm, simulation.training.lr_at
    server, statistics, base = simulation.state.server, simulation.state.statistics, simulation.state.base
    broadcasts = []
    for version in range(versions):
        broadcasts.append(Broadcast(version, algorithm.broadcast(server), statistics, base))
        total, discounts, rest = None, [], None
        for job in sorted((job for job in jobs if job["round"] == version + 1), key=lambda job: job["job"]):
            shard = Shard(job["client"], clients.partition[job["client"]], None, repeat=job["repeat"])
            ((_, answer),) = clients.engine.train([shard], broadcasts[job["version"]])
            s = 1 / math.sqrt(1 + version - job["version"])
            up = [t.clone() for t in answer.up]
            total = (
                [s * t for t in up]
                if total is None
                else [torch.add(a, t, alpha=s) for a, t in zip(total, up, strict=True)]
            )
            discounts.append(s)
            if (ratio := lr_at(version) / lr_at(job["version"])) != 1:
                more = s * (up[0] * ratio - up[0])
                rest = more if rest is None else rest + more
        mean = type(answer.up)(*(t / sum(discounts) for t in total))
        shrink = sum(discounts) / len(discounts)  # by M, not by the sum of the discounts
        number, share = server.x.new_tensor, server.x.new_tensor(len(discounts) / len(clients))
        moved = mean._replace(delta=mean.delta * shrink)
        after = algorithm.server_update(server, moved, number(lr_at(version) * shrink), share)
        if rest is not None:  # Delta_G is by the learning rate of each
            aimed = mean._replace(delta=mean.delta + rest / sum(discounts))
            after = algorithm.server_update(server, aimed, number(lr_at(version)), share)._replace(x=after.x)
        server = after
    return server


def assert_same_server(server, twin):
    """Assert that a server's state is the twin's, bit for bit."""
    for name, t in twin._asdict().items():
        assert torch.equal(getattr(server, name), t), name
