"""What a round is judged by: its test score or, where no model is tested, the mean of its clients' scores."""

from dataclasses import replace

import pytest
import torch
from support.studies import of_clients, rounds

from fedadamw.api.callbacks import Callbacks, EarlyStopping
from fedadamw.engine.best import choose_best
from fedadamw.engine.evaluation import ClientScores
from fedadamw.engine.record import Record
from fedadamw.task import Evaluation


class NoState:
    """A state without numbers."""

    def tensors(self):
        return dict.fromkeys(("server.x", "statistics", "base"), torch.zeros(0))


def loss_only(**fields) -> Record:
    return replace(rounds([{}, {}])[1], **fields)


def test_the_score_is_of_the_test_set_or_of_the_clients():
    tested, untested = of_clients([0.5, 0.5])[1], of_clients([0.5, 0.5], tested=False)[1]
    assert (tested.score(of_clients=False), tested.score(of_clients=True)) == (0.6, 0.5)
    assert (untested.score(of_clients=False), untested.score(of_clients=True)) == (None, 0.5)
    assert [record.score(of_clients=True) for record in rounds()] == [None] * 4


def test_without_metrics_a_lower_loss_is_better():
    record = loss_only(test_loss=0.75, clients_mean=0.25, clients_metrics={"loss": 0.5})
    assert (record.score(of_clients=False), record.score(of_clients=True)) == (-0.75, -0.25)


@pytest.mark.parametrize(("tested", "best"), [(True, 2), (False, 4)])
def test_the_best_round_is_the_best_by_the_runs_own_score(tested, best):
    found = None
    records = [r for r in of_clients([0.5, 0.6], tested) if r.clients_mean is not None]
    records[0] = replace(records[0], test_metrics={"accuracy": 0.9} if tested else None)
    for record in records:
        found = choose_best(found, record, NoState(), of_clients=not tested)
    assert found.round == best


def test_a_tuned_loss_is_not_the_main_metric_of_what_was_tuned():
    before, after = Evaluation(2.0, {}), Evaluation(1.0, {})
    tuned = ClientScores([0], [5], [after], after)
    summary = ClientScores([0], [5], [before], before, tuned).summary()
    assert (summary["clients_mean"], summary["tuned"]["clients_mean"]) == (2.0, 1.0)


def test_early_stopping_watches_the_clients_where_no_model_is_tested():
    stopping = EarlyStopping(1)
    records = of_clients([0.5, 0.4], tested=False)
    callbacks = Callbacks([stopping], of_clients=True)
    assert not callbacks.start([])
    assert [callbacks.end_round(record, None) for record in records] == [False, False, False, True]
    assert Callbacks([stopping], of_clients=True).start(records), "a resumed run stops where it had stopped"
    other = Callbacks([stopping])
    assert not other.start(of_clients([0.5, 0.6])), "the same object in another run watches the test score again"
