"""Clients' own held-out samples: which settings go together, and who holds out what."""

import pytest

from fedadamw.prepare.checks import check_settings
from fedadamw.prepare.samples import load_samples, make_partition, make_partitions
from fedadamw.prepare.simulation import prepare
from fedadamw.settings.load import load
from fedadamw.validation import InputError

EVERY = "training.client_evaluation=2"
WRONG = {
    "no held-out share": ([EVERY], "training.client_evaluation=2 needs partition.held_out, such as 0.2"),
    "nobody to evaluate": (["training.evaluate_clients=3"], "evaluate_clients=3 needs training.client_evaluation"),
    "too many": (
        [EVERY, "partition={held_out: 0.2, clients: 20}", "training.evaluate_clients=30"],
        "training.evaluate_clients=30 is more than the 20 clients",
    ),
    "all of it": ([EVERY, "partition.held_out=1"], "partition.held_out=1"),
    "less than nothing": (["partition.held_out=-0.1"], "partition.held_out=-0.1"),
}


@pytest.mark.parametrize(("settings", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_said_in_one_line(settings, message):
    with pytest.raises(InputError) as error:
        check_settings(load("digits", settings), remote=False)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_nodes_with_data_of_their_own_hold_out_by_their_own_config():
    experiment = load("digits", ["partition={kind: nodes, held_out: 0.2}"])
    with pytest.raises(InputError, match="nodes with data of their own have it in --node-config"):
        check_settings(experiment, remote=True)


def test_clients_of_one_sample_each_cannot_be_evaluated():
    single = ["data.max_train=10", "partition={kind: iid, clients: 10, held_out: 0.5}", EVERY]
    with pytest.raises(InputError, match="no client has held-out samples"):
        prepare(load("digits", single))


def test_only_clients_with_held_out_samples_can_be_asked_for():
    few = ["data.max_train=11", "partition={kind: iid, clients: 10, held_out: 0.5}", EVERY]
    with pytest.raises(InputError, match="training.evaluate_clients=2: 1 clients have held-out samples"):
        prepare(load("digits", [*few, "training.evaluate_clients=2"]))


@pytest.mark.parametrize("kind", ["mix", "dirichlet", "iid", "classes"])
def test_a_partition_without_held_out_samples_stays_as_it_is(kind):
    given = f"partition.kind={kind}"
    plain, held = (load("digits", [given, *more]) for more in ([], ["partition.held_out=0.2"]))
    train, _ = load_samples(plain)
    whole = make_partition(plain, train)
    part, own = make_partitions(held, train)
    assert make_partitions(plain, train)[1] is None
    assert make_partition(held, train).fingerprint == part.fingerprint
    for i in range(len(whole)):
        assert sorted([*part[i], *own[i]]) == sorted(whole[i])
        assert list(part[i]) == [n for n in whole[i] if n in part[i]], "in the same order"
