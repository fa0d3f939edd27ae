"""Federations whose nodes have differential privacy of samples, and requests to one such node."""

import json
import time

from fedadamw.flower.node.ledger import Ledger
from fedadamw.flower.node.worker import Worker
from fedadamw.flower.protocol import ARRAYS, REQUEST
from fedadamw.io.yaml_text import read_yaml
from fedadamw.privacy.accountant import Mechanism
from support.federated import federated
from support.grids import LocalGrid

SMALL = ["data.max_train=120", "data.max_test=20"]  # 40 samples a client
NOISE = "privacy.noise_multiplier=1.5"
PRIVATE = [NOISE, "privacy.clip=0.5", *SMALL]
EVERYONE = ["training.clients_per_round=3"]
SEED = 0  # that of the experiment
BUDGET = "its own privacy budget does not cover another training"


def of_trainings(count, noise=1.5):
    """Return what so many trainings of a client are, of three steps each on batches of 20."""
    return Mechanism(noise, 20 / 40, 3 * count)


def private(tmp_path, settings=(), entropy=None, **config):
    """Return a federation with privacy of samples, and its grid; each node has a state folder of its own.

    config: `_1={...}` is added to that of node 1, `all={...}` to everyone's.
    """
    grid = LocalGrid(3, tmp_path / "state", entropy=entropy)
    for i in range(3):
        own = {"state-dir": str(tmp_path / f"state-{i}"), **config.get("all", {}), **config.get(f"_{i}", {})}
        grid.configs[100 + i] |= own
    ours, _ = federated(tmp_path, [*PRIVATE, *settings], grid)
    return ours, grid


def meet(ours, joined):
    """Wait until so many nodes have joined, and the others have declined."""
    registry, until = ours.clients.registry, time.monotonic() + 60
    while len(registry.poll_online()) < joined or len(registry._left_out) < registry.clients - joined:
        assert time.monotonic() < until
        time.sleep(0.05)


def requests_of(grid, ask):
    """Return the requests of a kind that were sent, with their arrays."""
    sent = [(dict(m.content.config_records[REQUEST]), m.content.array_records) for m in grid.waiting.values()]
    return [(r, dict(a[ARRAYS]) if ARRAYS in a else {}) for r, a in sent if r["ask"] == ask]


def answer(asked, folder, worker=None, config=None, **changed):
    """Return the answer of a node with this state folder to a request with its arrays."""
    request, arrays = asked
    told = {"partition-id": 0, "state-dir": str(folder), **(config or {})}
    request = {**request, "came": time.time(), "seconds": 600.0, "sent": time.time(), "config": told, **changed}
    return (worker or Worker()).answer(request, arrays)


def with_settings(asked, change):
    """Return a request whose settings `change` has changed."""
    request, arrays = asked
    raw = read_yaml("settings", request["settings"])
    change(raw)
    return {**request, "settings": json.dumps(raw)}, arrays


def charges(state):
    return Ledger.of(state).charges()
