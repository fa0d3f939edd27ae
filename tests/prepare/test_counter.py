"""When algorithms are told that clients take unequal numbers of steps."""

import numpy as np
import pytest
import torch

from fedadamw.data.partition import Partition
from fedadamw.prepare.counter import has_unequal_steps, is_told_unequal_steps
from fedadamw.prepare.simulation import prepare
from fedadamw.settings.load import load

BUFFERED = "training.aggregation=buffered"
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
        ([20, 20], ["training.steps=3", BUFFERED], False),  # all of one version
        ([20, 20], ["training.steps=3", BUFFERED, "training.buffer=5"], True),
        ([20, 20], ["training.steps=3", BUFFERED, "devices={speed: {kind: log-normal}}"], True),
        ([20, 20], ["training.steps=3", "devices={speed: {kind: log-normal}}"], False),
        ([20, 20], ["training.steps=3", "devices={time_budget_s: 2}"], True),
        ([20, 20], ["training.steps=3", "devices={classes: {a: {share: 0.5, steps: 2}, b: {share: 0.5}}}"], True),
        ([20, 20], ["training.steps=3", "devices={classes: {a: {share: 0.5, speed: 2}, b: {share: 0.5}}}"], False),
    ],
)
def test_steps_are_unequal_by_samples_devices_or_versions(sizes, settings, unequal):
    partition = Partition(np.arange(sum(sizes)), np.cumsum(sizes))
    assert has_unequal_steps(load("digits", settings), partition) is unequal


def test_nodes_that_fill_a_buffer_may_have_other_versions():
    partition = Partition(np.arange(40), np.array([20, 40]))
    experiment = load("digits", ["training.steps=3", BUFFERED])
    assert has_unequal_steps(experiment, partition, remote=True)


def test_a_prepared_run_whose_buffer_is_for_all_is_the_synchronous_one():
    settings = ["algorithm.share=vm", "training.steps=2", "training.rounds=2", "device=cpu"]
    plain, buffered = (prepare(load("digits", [*settings, *more])).simulation() for more in ([], [BUFFERED]))
    for ours, theirs in zip(buffered.rounds(), plain.rounds(), strict=True):
        assert (ours.train_loss, ours.test_loss) == (theirs.train_loss, theirs.test_loss)
        assert (ours.up_bytes, ours.down_bytes) == (theirs.up_bytes, theirs.down_bytes)
    tensors = buffered.tensors()
    assert all(torch.equal(tensors[name], t) for name, t in plain.tensors().items())


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
