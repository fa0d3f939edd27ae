"""Runs whose clients are nodes of a grid, the simulations to compare them with, and lies that nodes tell."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Array

from fedadamw.flower.server_app import connect_nodes
from fedadamw.prepare.counter import tell_unequal_steps
from fedadamw.prepare.simulation import prepare
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.load import load
from support.grids import LocalGrid

COMMON = [
    "partition.clients=3",
    "training={rounds: 2, clients_per_round: 2, steps: 3, batch_size: 20, lr: 0.001}",
    "device=cpu",
    "threads=1",
]
EVALUATE = ["partition.held_out=0.2", "training.client_evaluation=1"]


def federated(tmp_path, settings, grid=None, entropy=None, **lies):
    """Return a simulation whose clients are the nodes of a grid, and the grid. lies: `_2=lie` for node 2.

    entropy: of the server's noise; None: the operating system's.
    """
    experiment = load("digits", [*COMMON, *settings])
    prepared = prepare(experiment, remote=True)
    grid = grid or LocalGrid(experiment.partition.clients, tmp_path / "state", {int(k[1:]): v for k, v in lies.items()})
    folder = RunFolder(tmp_path / "run")
    return prepared.simulation(connect_nodes(experiment, prepared, grid, folder), entropy=entropy), grid


def simulated(settings, clients=None, *, unequal_steps=None):
    """Return the simulation of the same experiment, with these clients in every round if given.

    unequal_steps: what its algorithm is told, if not what follows from the settings.
    """
    prepared = prepare(load("digits", [*COMMON, *settings]))
    simulation = (prepared if unequal_steps is None else told(prepared, unequal=unequal_steps)).simulation()
    if clients is not None:
        simulation.clients.sample = lambda _: clients
    return simulation


def told(prepared, *, unequal):
    """Return what is prepared with an algorithm that is told whether clients take unequal numbers of steps."""
    algorithm = tell_unequal_steps(prepared.algorithm, prepared.halves, unequal=unequal)
    return replace(prepared, algorithm=algorithm)


def read_events(tmp_path, kind):
    """Return the events of one kind of a federation in `tmp_path`."""
    lines = (tmp_path / "run/events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def assert_same_scores(ours, theirs):
    """Assert that two ClientScores are of the same clients and samples, and the same up to rounding."""
    assert (ours.clients, ours.samples) == (theirs.clients, theirs.samples)
    assert ours.columns == {name: pytest.approx(values, abs=1e-5) for name, values in theirs.columns.items()}
    assert ours.summary() == {name: pytest.approx(value, abs=1e-5) for name, value in theirs.summary().items()}


def assert_same(ours, theirs):
    tensors = ours.state.tensors()
    for name, t in theirs.state.tensors().items():
        assert torch.equal(tensors[name], t), name


def changed(field, change):
    """Return a lie that replaces a field of the upload by change(field)."""

    def lie(arrays, numbers):
        arrays[field] = Array(change(arrays[field].numpy().copy()))

    return lie


def with_nan(delta):
    delta[7] = np.nan
    return delta


def garbage(arrays, numbers):
    delta = arrays["up.delta"]
    arrays["up.delta"] = Array(dtype=delta.dtype, shape=delta.shape, stype=delta.stype, data=b"garbage" * 1000)


def bomb(arrays, numbers):
    delta = arrays["up.delta"]
    arrays["up.delta"] = Array(dtype=delta.dtype, shape=delta.shape, stype=delta.stype, data=b"x" * 10**7)


def objects(arrays, numbers):
    """Send Python objects in numpy's format, which could run code if unpickled."""
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object))
    delta = arrays["up.delta"]
    arrays["up.delta"] = Array(dtype=delta.dtype, shape=delta.shape, stype=delta.stype, data=file.getvalue())


LIES = {
    "nan": (changed("up.delta", with_nan), "not-finite"),
    "shape": (changed("up.delta", lambda a: a[:-1]), "wrong-shape"),
    "dtype": (changed("up.delta", lambda a: a.astype(np.float64)), "wrong-dtype"),
    "extra": (lambda arrays, _: arrays.update(more=arrays["up.k"]), "extra-array"),
    "missing": (lambda arrays, _: arrays.pop("up.k"), "missing-array"),
    "negative": (changed("up.v", lambda a: -a - 1), "negative"),
    "steps": (changed("up.k", lambda a: a * 100), "steps"),
    "no-steps": (changed("up.k", lambda a: a * 0), "steps"),
    "weight": (lambda _, numbers: numbers.update({"num-examples": 10**12}), "samples"),
    "no-weight": (lambda _, numbers: numbers.pop("num-examples"), "samples"),
    "loss": (lambda _, numbers: numbers.update(loss=float("inf")), "not-finite"),
    "large-loss": (lambda _, numbers: numbers.update(loss=3e38), "too-long"),
    "more": (lambda _, numbers: numbers.update(more=1), "records"),
    "no-loss": (lambda _, numbers: numbers.pop("loss"), "not-finite"),
    "long": (changed("up.delta", lambda a: 1000 * a), "too-long"),
    "long-v": (changed("up.v", lambda a: 1000 * a), "too-long"),
    "garbage": (garbage, "garbage"),
    "bomb": (bomb, "garbage"),
    "objects": (objects, "garbage"),
}


def federated_step(simulation, **federation):
    """Take one step with changed settings of `federation`."""
    rounds = simulation.clients
    rounds.federation = rounds.federation.model_copy(update=federation)
    return simulation.step()
