"""Ditto's own models: those of the literal twin, scored, and in the limit each client alone."""

import numpy as np
import pytest
import torch
from support.cases import CASES, Case
from support.reference_sgd import ditto
from support.runs import ROUNDS, gradients_of_round, literal_problem, simulation
from support.sequences import attention_model, held_out_samples

from fedadamw.algorithms.ditto import Ditto
from fedadamw.validation import InputError
from fedadamw.vector import Layout, trainable


def start():
    return Layout.of(attention_model()).flatten(trainable(attention_model()))


@pytest.mark.parametrize("stack", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_own_models_are_the_literal_twins_and_clients_are_scored_by_them(task, stack):
    held_out = held_out_samples(task)
    sim = simulation(CASES["ditto"], task, stack=stack, held_out=held_out, client_evaluation=ROUNDS)
    list(sim.rounds())
    clients, training, own = sim.clients.partition, sim.training, {}
    rounds = [(training.lr_at(r), gradients_of_round(task, clients, r, training)) for r in range(ROUNDS)]
    ditto(start().tolist(), rounds, literal_problem(attention_model(), len(clients)), own=own, pull=0.5)
    model = attention_model()
    for client, loss in zip(sim.scores.clients, sim.scores.columns["loss"], strict=True):
        v = sim.clients.store.get(client, ROUNDS).v
        np.testing.assert_allclose(v.numpy(), own[client], rtol=0, atol=1e-10)
        for name, value in Layout.of(model).views(v).items():
            trainable(model)[name].data.copy_(value)
        with torch.no_grad():
            expected = task.score(task.outputs_of(model, torch.from_numpy(held_out[client])))
        assert loss == pytest.approx(expected.loss, abs=1e-10)


@pytest.mark.slow
def test_without_a_pull_each_client_learns_alone(task):
    clients = [np.arange(30), np.arange(30, 60)]
    how = {"clients_per_round": 2, "epochs": None, "steps": 6, "batch_size": 30}
    both = simulation(Case("ditto", {"pull": 0.0}, None, 0.1, "", ""), task, clients=clients, **how)
    alone = simulation(CASES["fedavg"], task, clients=clients[:1], **{**how, "clients_per_round": 1, "steps": 3})
    for _ in zip(both.rounds(), alone.rounds(), strict=True):
        v = both.clients.store.get(0, both.state.round).v
        torch.testing.assert_close(v, alone.state.server.x, rtol=0, atol=1e-10)


def test_its_global_model_is_fedavgs_with_half_of_the_steps(task):
    clients = [np.arange(30), np.arange(30, 60)]
    how = {"clients": clients, "clients_per_round": 2, "epochs": None, "batch_size": 30}
    ours, plain = (simulation(CASES[name], task, steps=n, **how) for name, n in (("ditto", 6), ("fedavg", 3)))
    for _ in zip(ours.rounds(), plain.rounds(), strict=True):
        torch.testing.assert_close(ours.state.server.x, plain.state.server.x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("pull", [-0.1, float("nan"), float("inf")])
def test_a_pull_is_a_finite_number_from_0(pull):
    with pytest.raises(InputError, match="pull=.* must not be negative, nor infinite"):
        Ditto(pull=pull)
