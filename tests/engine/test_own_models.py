"""Scores of clients' own models, kept or tuned, and running statistics that stay with a client."""

import numpy as np
import pytest
import torch
from support.cases import CASES
from support.of_two_ranks import OWN_MODELS, own_scores
from support.personal import normed_model, own_numbers, personal_simulation
from support.runs import simulation
from support.sequences import SequenceTask, held_out_samples

from fedadamw.engine.simulate import Saved
from fedadamw.vector import Layout, statistics, trainable


@pytest.mark.parametrize("kind", [*(pytest.param(k, marks=[pytest.mark.slow] * (k != "heads")) for k in OWN_MODELS)])
def test_stacked_clients_get_the_scores_of_single_ones(kind):
    for ours, theirs in zip(own_scores(kind, stack=3), own_scores(kind), strict=True):
        for own, expected in zip(ours, theirs, strict=True):
            assert own == pytest.approx(expected, abs=1e-10)


def test_each_client_is_scored_with_its_own_numbers_and_statistics(task):
    held_out = held_out_samples(task)
    how = {"own": ("classifier.*", "before.*"), "held_out": held_out, "client_evaluation": 1, "clients_per_round": 3}
    sim = personal_simulation(CASES["fedadamw-mean-v"], task, model=normed_model(), **how)
    for _ in range(2):
        sim.step()
    first = personal_simulation(CASES["fedadamw-mean-v"], task, model=normed_model(), **how).algorithm
    model = normed_model()
    for client, loss in zip(sim.scores.clients, sim.scores.columns["loss"], strict=True):
        memory = sim.clients.store.get(client, 2)
        own, of_layers = (
            (first.initial, first.statistics) if memory is None else (memory.own_server_x, memory.statistics)
        )
        put(model, sim.workspace.layout.names, trainable(model), torch.cat([sim.state.server.x, own]))
        names = sim.workspace.statistics_layout.names
        put(model, names, statistics(model), torch.cat([sim.state.statistics, of_layers]))
        with torch.no_grad():
            expected = task.score(task.outputs_of(model.eval(), torch.from_numpy(held_out[client])))
        assert loss == pytest.approx(expected.loss, abs=1e-10)
    assert any(sim.clients.store.get(client, 2) is None for client in sim.scores.clients), (
        "one that has not trained yet"
    )


def put(model, names, tensors, numbers):
    """Write the numbers (n,) into the named tensors, in the order of the names."""
    views = Layout.of_tensors({name: tensors[name] for name in names}).views(numbers)
    for name in names:
        tensors[name].data.copy_(views[name])


def test_running_statistics_of_personal_layers_stay_with_the_client(task):
    how = {"own": ("before.*",), "clients_per_round": 5, "rounds": 2}
    sim, stacked = (personal_simulation(CASES["fedavg"], task, model=normed_model(), stack=n, **how) for n in (1, 5))
    record = sim.step()
    assert len(sim.state.statistics) == 10, "mean and variance of the layer that is shared"
    d = Layout.of(normed_model()).d
    assert record.up_bytes == 5 * 8 * (d - 10 + 10), "without a weight and a bias, with statistics of the other layer"
    kept = torch.stack([sim.clients.store.get(i, 1).statistics for i in range(5)])
    assert kept.shape == (5, 10)
    assert (kept.std(0) > 0).all(), "each client has its own"
    sim.step()
    list(stacked.rounds())
    torch.testing.assert_close(stacked.tensors(), sim.tensors(), rtol=1e-10, atol=1e-10)


def test_statistics_alone_can_be_personal(task):
    """SiloBN (arXiv 2008.07424)."""
    sim = personal_simulation(CASES["fedavg"], task, model=normed_model(), own=("*.running_*",), clients_per_round=5)
    sim.step()
    assert len(sim.state.server.x) == Layout.of(normed_model()).d
    assert len(sim.state.statistics) == 0
    assert len(sim.clients.store.get(0, 1).statistics) == 20


@pytest.mark.slow
def test_one_client_alone_has_the_plain_runs_statistics(task):
    clients = [np.arange(60)]
    own = personal_simulation(
        CASES["fedavg"], task, model=normed_model(), own=("before.*",), clients=clients, clients_per_round=1
    )
    plain = personal_simulation(
        CASES["fedavg"], task, model=normed_model(), own=(), clients=clients, clients_per_round=1
    )
    for _ in zip(own.rounds(), plain.rounds(), strict=True):
        mine = torch.cat([own.state.statistics, own.clients.store.get(0, own.state.round).statistics])
        torch.testing.assert_close(mine.sort().values, plain.state.statistics.sort().values, rtol=0, atol=1e-10)


def test_tuning_is_one_more_round_of_a_client_alone(task):
    """The global model, tuned by SGD: a literal loop."""
    held_out = held_out_samples(task)
    how = {"held_out": held_out, "client_evaluation": 5, "clients_per_round": 5}
    sim = personal_simulation(CASES["fedavg"], task, own=(), finetune=2, batch_size=100, **how)
    plain = simulation(CASES["fedavg"], task, batch_size=100, **how)
    for record, expected in zip(sim.rounds(), plain.rounds(), strict=True):
        assert record.clients_mean == expected.clients_mean
        assert (record.tuned is None) == (record.round < 5)
    model, lr = sim.workspace.module, sim.training.lr
    for client, loss in zip(sim.scores.clients, sim.scores.columns["tuned_loss"], strict=True):
        sim.load()
        samples = torch.from_numpy(sim.clients.partition[client])
        y = {name: p.detach().clone() for name, p in model.named_parameters()}
        for _ in range(2):  # with batches of all samples
            leaves = {name: t.requires_grad_() for name, t in y.items()}
            logits = torch.func.functional_call(model, leaves, (task.inputs[samples],))
            mean = torch.nn.functional.cross_entropy(logits, task.labels[samples])
            gradients = torch.autograd.grad(mean, list(leaves.values()))
            y = {n: (t - lr * (g + 1e-3 * t)).detach() for (n, t), g in zip(leaves.items(), gradients, strict=True)}
        own = torch.from_numpy(held_out[client])
        logits = torch.func.functional_call(model, y, (task.inputs[own],))
        assert loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, task.labels[own])), abs=1e-10)


def test_scoring_and_tuning_change_no_number_of_a_run():
    task = SequenceTask()
    scored = personal_simulation(
        CASES["scaffold"], task, held_out=held_out_samples(task), client_evaluation=2, finetune=3, upload="int8"
    )
    plain = personal_simulation(CASES["scaffold"], task, upload="int8")
    for _ in zip(scored.rounds(), plain.rounds(), strict=True):
        pass
    expected = plain.tensors()
    assert all(torch.equal(t, expected[name]) for name, t in scored.tensors().items())
    again = personal_simulation(
        CASES["scaffold"], task, held_out=held_out_samples(task), client_evaluation=2, finetune=3, upload="int8"
    )
    again.restore(Saved(scored.state.round, scored.tensors()))
    assert again.evaluate_clients() == scored.scores, "the same numbers from a checkpoint"
    assert own_numbers(again, 0) is not None or own_numbers(again, 1) is not None
