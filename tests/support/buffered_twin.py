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
        total, discounts, ratios = None, [], []
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
            ratios.append(s * answer.steps * lr_at(job["version"]) / lr_at(version))
        mean = type(answer.up)(*(t / sum(discounts) for t in total))
        shrink = sum(discounts) / len(discounts)  # by M, not by the sum of the discounts
        taken = sum(ratios) / sum(s * answer.steps for s in discounts)  # all take the same steps
        number = server.x.new_tensor
        mean = mean._replace(delta=mean.delta * shrink)
        lr = number(lr_at(version) * taken * shrink)
        server = algorithm.server_update(server, mean, lr, number(len(discounts) / len(clients)))
    return server


def assert_same_server(server, twin):
    """Assert that a server's state is the twin's, bit for bit."""
    for name, t in twin._asdict().items():
        assert torch.equal(getattr(server, name), t), name
