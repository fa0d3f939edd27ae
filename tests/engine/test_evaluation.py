"""The global model's score on each client's own held-out samples."""

import time

import numpy as np
import pytest
import torch
from support.cases import EVERYWHERE
from support.of_two_ranks import EVALUATED, evaluated
from support.runs import simulation
from support.sequences import SequenceTask, attention_model, held_out_samples

from fedadamw.engine import evaluation
from fedadamw.engine.evaluation import ClientScores, choose_clients, evaluate_clients
from fedadamw.engine.ranks import ALONE
from fedadamw.settings.training import TrainingSettings
from fedadamw.task import Evaluation


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch):
    monkeypatch.setattr(evaluation, "GROUP", 4)


@pytest.mark.parametrize("name", EVALUATED)
def test_stacked_clients_get_the_scores_of_single_ones(name):
    task = EVALUATED[name]
    for ours, theirs in zip(evaluated(task, stack=3), evaluated(task), strict=True):
        assert ours[:3] == theirs[:3]
        for own, expected in zip(ours[3], theirs[3], strict=True):
            assert own == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("task", EVALUATED.values(), ids=EVALUATED)
def test_the_weighted_mean_is_the_score_on_the_union(task):
    held_out = held_out_samples(task)
    sim = simulation(EVERYWHERE["fedadamw-vm"], task, held_out=held_out, client_evaluation=1)
    record = sim.step()
    module = sim.workspace.module.eval()
    with torch.no_grad():
        central = task.score(task.outputs_of(module, torch.from_numpy(np.concatenate(held_out))))
        each = [task.score(task.outputs_of(module, torch.from_numpy(own))) for own in held_out if len(own)]
    scores = sim.scores
    assert [e.loss for e in scores.each] == pytest.approx([e.loss for e in each], abs=1e-10)
    assert scores.columns["accuracy"] == pytest.approx([e.metrics["accuracy"] for e in each], abs=1e-10)
    assert record.clients_weighted == pytest.approx(central.metrics["accuracy"], abs=1e-10)
    weighted = np.average(scores.columns["loss"], weights=scores.samples)
    assert weighted == pytest.approx(central.loss, abs=1e-10)
    assert record.clients_metrics == pytest.approx({"loss": central.loss, **central.metrics}, abs=1e-10)


def test_evaluating_clients_changes_no_number_of_a_run():
    task = SequenceTask()
    plain = simulation(EVERYWHERE["fedadamw-vm"], task)
    scored = simulation(EVERYWHERE["fedadamw-vm"], task, held_out=held_out_samples(task), client_evaluation=2)
    for ours, theirs in zip(scored.rounds(), plain.rounds(), strict=True):
        assert (ours.train_loss, ours.test_loss) == (theirs.train_loss, theirs.test_loss)
        assert (ours.clients_mean is None) == (ours.round in (1, 3))
        assert theirs.clients_mean is theirs.clients_metrics is None
    expected = plain.tensors()
    assert all(torch.equal(t, expected[name]) for name, t in scored.tensors().items())


def test_the_summary_is_of_the_main_metric():
    accuracies, samples = [0.1 * i for i in range(1, 12)], [1] * 10 + [10]
    each = [Evaluation(1.0, {"accuracy": a, "f1": 0.0}) for a in accuracies]
    found = ClientScores(list(range(11)), samples, each, Evaluation(1.0, {"accuracy": 0.5, "f1": 0.1})).summary()
    assert found["clients_mean"] == pytest.approx(np.mean(accuracies))
    assert found["clients_weighted"] == pytest.approx((sum(accuracies[:10]) + 11) / 20)
    assert found["clients_std"] == pytest.approx(np.std(accuracies))
    assert found["clients_worst_decile"] == pytest.approx(0.15), "two of eleven"
    assert found["clients_metrics"] == {"loss": 1.0, "accuracy": 0.5, "f1": 0.1}


def test_without_a_metric_the_summary_is_of_the_loss_and_the_highest_is_the_worst():
    each = [Evaluation(loss, {}) for loss in (1.0, 5.0, 3.0)]
    found = ClientScores([0, 1, 2], [1, 1, 2], each, Evaluation(3.0, {})).summary()
    assert found["clients_mean"] == pytest.approx(3.0)
    assert found["clients_worst_decile"] == 5.0


def test_so_many_clients_as_asked_are_drawn_of_those_with_held_out_samples():
    held_out = [np.arange(i % 3) for i in range(30)]
    there = set(range(30)) - set(range(0, 30, 3))
    assert set(choose_clients(held_out, 0, None)) == there
    chosen = [list(choose_clients(held_out, seed, 5)) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert all(len(own) == 5 and own == sorted(own) and set(own) <= there for own in chosen)
    fewer = choose_clients([own if i < 20 else own[:0] for i, own in enumerate(held_out)], 0, 5)
    joined = set(chosen[0]) - set(fewer)
    assert all(client >= 20 for client in joined), "as more of them have samples, nobody else comes in"
    assert 0 < len(joined) < 5


def test_ten_thousand_clients_are_evaluated_in_seconds(monkeypatch):
    monkeypatch.setattr(evaluation, "GROUP", 256)
    task = SequenceTask(samples=30_000)
    held_out = {i: np.arange(3 * i, 3 * i + 3) for i in range(10_000)}
    start = time.perf_counter()
    training = TrainingSettings(steps=1)
    scores = evaluate_clients(task, attention_model(), training, held_out, torch.device("cpu"), ALONE)
    assert time.perf_counter() - start < 20
    assert len(scores.each) == 10_000
    weighted = np.average(scores.columns["accuracy"], weights=scores.samples)
    assert weighted == pytest.approx(scores.pooled.metrics["accuracy"], abs=1e-10)
