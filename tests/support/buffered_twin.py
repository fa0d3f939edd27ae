"""A literal twin of a buffered run: the state that follows from the jobs that counted, one after the other."""

import math

import torch

from fedadamw.engine.client import Broadcast, Shard


def replay(simulation, jobs, versions, *, root=True):
    """Return the server's state after so many versions, and the model before the first.

    simulation: the same experiment, synchronous, new. jobs: dicts of those that counted, with their round (from 1).
    """
    clients, algorithm, training = simulation.clients, simulation.algorithm, simulation.training
    server, statistics, base = simulation.state.server, simulation.state.statistics, simulation.state.base
    broadcasts = []
    for version in range(versions):
        broadcasts.append(Broadcast(version, algorithm.broadcast(server), statistics, base))
        ups, discounts, lrs = [], [], []
        for job in sorted((job for job in jobs if job["round"] == version + 1), key=lambda job: job["job"]):
            shard = Shard(job["client"], clients.partition[job["client"]], None, repeat=job["repeat"])
            ((_, answer),) = clients.engine.train([shard], broadcasts[job["version"]])
            ups.append({name: t.double().clone() for name, t in answer.up._asdict().items()})
            discounts.append(1 / math.sqrt(1 + version - job["version"]) if root else 1.0)
            lrs.append(training.lr_at(job["version"]))
        total, m = sum(discounts), len(ups)
        mean = {name: sum(s * up[name] for s, up in zip(discounts, ups, strict=True)) / total for name in ups[0]}
        mean["delta"] = mean["delta"] * total / m
        lr = sum(s * lr for s, lr in zip(discounts, lrs, strict=True)) / total * total / m  # all take the same steps
        up = type(answer.up)(**{name: t.float() for name, t in mean.items()})
        number = server.x.new_tensor
        server = algorithm.server_update(server, up, number(lr), number(m / len(clients)))
    return server, simulation.state.server.x


def assert_follows(server, twin, start):
    """Assert that a server's state is the twin's up to rounding, as a share of the way from `start`, the first model.

    By norms: a step of Adam can turn on the last bit of a gradient that is nearly 0.
    """
    origins = {"x": start}
    for name, t in twin._asdict().items():
        moved = torch.linalg.vector_norm(t - origins.get(name, 0.0))
        assert torch.linalg.vector_norm(getattr(server, name) - t) <= 5e-3 * moved, name
