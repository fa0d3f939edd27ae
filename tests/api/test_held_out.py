"""Clients' own held-out samples in `fedadamw.simulate`."""

import numpy as np
import pytest
import torch
from support.own_objects import CLIENTS, accuracy, cnn, numbers, points, simulate, weights

import fedadamw
from fedadamw.validation import InputError


def error_rate(outputs, targets):
    return 1 - accuracy(outputs, targets)


def test_a_share_is_the_partition_that_hold_out_gives():
    train, own = fedadamw.partition.hold_out(CLIENTS, 0.2)
    ours = simulate(held_out=0.2)
    theirs = simulate(clients=train, held_out=own)
    assert numbers(ours) == numbers(theirs)
    assert ours.client_scores == theirs.client_scores
    first = ours.client_scores[0]
    assert (first["round"], first["clients"], first["samples"]) == (1, list(range(8)), [5] * 8)
    assert [line["round"] for line in ours.client_scores] == [1, 2, 3]


def test_every_client_is_scored_by_all_metrics():
    _, own = fedadamw.partition.hold_out(CLIENTS, 0.2)
    result = simulate(held_out=0.2, metrics={"accuracy": accuracy, "error": error_rate})
    x, y = points()
    with torch.no_grad():
        expected = [float(accuracy(result.model(x[own[i]]), y[own[i]])) for i in range(8)]
    last, record = result.client_scores[-1], result.records[-1]
    assert last["accuracy"] == pytest.approx(expected)
    assert last["error"] == pytest.approx([1 - a for a in expected])
    assert record.clients_mean == pytest.approx(np.mean(expected))
    assert record.clients_metrics["accuracy"] == pytest.approx(np.mean(expected))
    table, records = result.clients_to_pandas(), result.to_pandas()
    assert list(table.columns) == ["round", "clients", "samples", "loss", "accuracy", "error"]
    assert len(table) == 24
    assert records["clients_pooled_accuracy"].iloc[-1] == pytest.approx(np.mean(expected))


def test_how_often_and_how_many_clients_are_scored_can_be_set():
    settings = {"training.client_evaluation": 2, "training.evaluate_clients": 3}
    result = simulate(held_out=0.2, settings=settings, metrics=None)
    assert [(line["round"], len(line["clients"])) for line in result.client_scores] == [(2, 3), (3, 3)]
    assert result.records[0].clients_mean is None
    assert result.records[1].clients_mean == pytest.approx(np.mean(result.client_scores[0]["loss"]))
    plain = simulate()
    assert plain.client_scores == []
    assert plain.clients_to_pandas().empty


def test_clients_without_held_out_samples_are_not_scored():
    own = [[0, 8], [], [], [10], [], [], [], []]
    clients = [[i for i in range(k, 200, 8) if i > 10] for k in range(8)]
    own[2], own[3] = [10], []
    result = simulate(clients=clients, held_out=own)
    assert result.client_scores[-1]["clients"] == [0, 2]
    assert result.client_scores[-1]["samples"] == [2, 1]


@pytest.mark.slow
def test_a_resumed_run_holds_out_the_same_samples(tmp_path):
    whole = simulate(held_out=0.2, out=tmp_path / "whole")
    simulate(held_out=0.2, out=tmp_path / "run", callbacks=[lambda record: record.round == 1])
    resumed = simulate(held_out=0.2, out=tmp_path / "run", resume=True)
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed.client_scores == whole.client_scores
    train, own = fedadamw.partition.hold_out(CLIENTS, 0.2, seed=1)
    with pytest.raises(ValueError, match="settings|partition changed"):
        simulate(clients=train, held_out=own, out=tmp_path / "run", resume=True)


WRONG = {
    "a share of all": ({"held_out": 1.0}, "held_out=1.0 must be between 0 and 1"),
    "no list": ({"held_out": True}, "held_out=True: give a share, or each client's sample numbers"),
    "a number in a tensor": (
        {"held_out": torch.tensor(0.2)},
        "held_out=tensor(0.2000): give a share",
    ),
    "text": ({"held_out": "8 signs."}, "held_out='8 signs.': give a share, or each client's sample numbers"),
    "of several": ({"held_out": 0.2, "clients": [*CLIENTS, CLIENTS[0]]}, "sample 0 belongs to several clients"),
    "other clients": ({"held_out": [[1]]}, "held_out: has 1 clients, and clients 8"),
    "no sample": ({"held_out": [[500], *[[]] * 7]}, "held_out: 500 is not a sample number, 0 to 199"),
    "trained on": ({"held_out": [[0], *[[]] * 7]}, "held_out: 1 samples are trained on too, such as [0]"),
    "words": ({"held_out": [["a"], *[[]] * 7]}, "held_out[0]: ['a'] is not a list of sample numbers"),
    "a name of tuned models": (
        {"held_out": 0.2, "metrics": {"tuned_loss": accuracy}},
        "metrics: 'tuned_loss' is taken",
    ),
    "a name": ({"held_out": 0.2, "metrics": {"samples": accuracy}}, "metrics: 'samples' is taken"),
    "none": ({"settings": {"training.client_evaluation": 1}}, "training.client_evaluation=1 needs held_out"),
}


@pytest.mark.parametrize(("given", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_held_out_is_said_in_one_line(given, message):
    with pytest.raises(InputError) as error:
        simulate(**given)
    assert message in str(error.value)


@pytest.mark.slow
def test_two_ranks_score_the_clients_that_one_process_does():
    model = cnn(torch.float64)
    how = {"held_out": 0.2, "dtype": torch.float64}
    one, two = simulate(cnn(torch.float64), **how), simulate(model, **how, ranks=2)
    for ours, theirs in zip(two.client_scores, one.client_scores, strict=True):
        assert ours["clients"] == theirs["clients"]
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-10)
        assert ours["accuracy"] == theirs["accuracy"]


def test_a_run_that_a_callback_ends_says_that_no_model_was_tuned():
    with pytest.warns(UserWarning, match="personal.finetune=2: no model was tuned.* after round 1 of 3"):
        simulate(held_out=0.2, settings={"personal.finetune": 2}, callbacks=[lambda record: record.round == 1])


def test_a_clients_own_model_can_be_loaded():
    result = simulate(held_out=0.2, settings={"personal.parameters": ["4.*"]}, clients_per_round=8)
    _, own = fedadamw.partition.hold_out(CLIENTS, 0.2)
    x, y = points()
    last = result.client_scores[-1]
    for client in (0, 3):
        result.load_client(client)
        with torch.no_grad():
            assert last["accuracy"][client] == pytest.approx(
                float(accuracy(result.model(x[own[client]]), y[own[client]]))
            )
    expected = weights(result)
    result.load_client(torch.tensor(3))
    assert torch.equal(weights(result), expected), "also of torch's numbers"
    for wrong in ("3", 3.0, True, None):
        with pytest.raises(InputError, match="give the number of a client"):
            result.load_client(wrong)
    with pytest.raises(InputError, match="all clients of .* have one model"):
        simulate(held_out=0.2).load_client(0)
