"""When algorithms are told that clients take unequal numbers of steps."""

import numpy as np
import pytest

from fedadamw.data.partition import Partition
from fedadamw.prepare.counter import has_unequal_steps, is_told_unequal_steps
from fedadamw.prepare.simulation import prepare
from fedadamw.settings.load import load

EPOCHS = ["training.steps=null", "training.epochs=2", "training.batch_size=10"]


@pytest.mark.parametrize(
    ("sizes", "settings", "unequal"),
    [
        ([20, 20], EPOCHS, False),
        ([12, 20], EPOCHS, False),  # two batches each
        ([11, 20], EPOCHS, True),  # of which BatchNorm merges those of one sample
        ([20, 21], EPOCHS, True),
        ([20, 200], ["training.steps=3"], False),
        ([20, 20], [*EPOCHS, "partition.kind=nodes"], True),  # whose sizes nobody knows
        ([20, 200], ["training.steps=3", "partition.kind=nodes"], False),
        ([20, 20], ["training.steps=3", "training.aggregation=buffered"], True),
        ([20, 20], ["training.steps=3", "devices={speed: {kind: log-normal}}"], False),
        ([20, 20], ["training.steps=3", "devices={time_budget_s: 2}"], True),
        ([20, 20], ["training.steps=3", "devices={classes: {a: {share: 0.5, steps: 2}, b: {share: 0.5}}}"], True),
        ([20, 20], ["training.steps=3", "devices={classes: {a: {share: 0.5, speed: 2}, b: {share: 0.5}}}"], False),
    ],
)
def test_steps_are_unequal_by_samples_devices_or_versions(sizes, settings, unequal):
    partition = Partition(np.arange(sum(sizes)), np.cumsum(sizes))
    assert has_unequal_steps(load("digits", settings), partition) is unequal


@pytest.mark.parametrize("name", ["fedadamw", "fedlamb", "fedlada", "fedavg"])
def test_the_algorithm_is_told_if_it_asks(name):
    of = [f"algorithm.name={name}", *EPOCHS, "partition={kind: dirichlet, clients: 10}", "device=cpu"]
    assert is_told_unequal_steps(prepare(load("digits", of)).algorithm) is (name != "fedavg")
    equal = ["partition.kind=iid", "partition.clients=4", "training.clients_per_round=4"]
    assert not is_told_unequal_steps(prepare(load("digits", [*of, *equal])).algorithm)


def test_parameters_that_stay_with_a_client_are_its_own_count():
    own = ['personal={parameters: ["*bias"]}', "partition.held_out=0.2", "training.client_evaluation=5"]
    settings = [*EPOCHS, "partition={kind: dirichlet, clients: 10}", "device=cpu", *own]
    algorithm = prepare(load("digits", settings)).algorithm
    assert (algorithm.shared.unequal_steps, algorithm.own.unequal_steps) == (True, False)
    assert algorithm.carried == (0.999,)
