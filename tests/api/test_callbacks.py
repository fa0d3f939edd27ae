"""Callbacks see what happens, and can stop a run; what stops it otherwise loses no round."""

import pytest
import torch
from support.own_objects import accuracy, cnn, numbers, points, simulate

import fedadamw


class Notes(fedadamw.Callback):
    """Everything it was told, in order."""

    def __init__(self, stop=()):
        self.told, self.stop = [], stop

    def on_start(self, records):
        self.told.append(("start", len(records)))

    def on_client(self, update):
        assert update.delta.shape == (144 * 4 + 4 + 40,)
        assert update.samples == 25
        self.told.append(("client", update.round, update.client))
        return ("client", update.round) in self.stop

    def on_evaluate(self, record, model):
        x, y = points()
        assert not model.training
        assert record.test_metrics["accuracy"] == accuracy(model(x[200:]), y[200:])
        self.told.append(("evaluate", record.round))
        return ("evaluate", record.round) in self.stop

    def on_round(self, record):
        self.told.append(("round", record.round))
        return ("round", record.round) in self.stop


def test_callbacks_see_clients_evaluations_and_rounds():
    notes, rounds = Notes(), []
    result = simulate(callbacks=[notes, lambda record: rounds.append(record.round)])
    assert rounds == [1, 2, 3]
    assert notes.told[0] == ("start", 0)
    assert [line[0] for line in notes.told[1:]] == [*["client"] * 4, "evaluate", "round"] * 3
    assert [line[1] for line in notes.told[1:7]] == [1] * 6
    assert numbers(result) == numbers(simulate())


@pytest.mark.parametrize("where", ["client", "evaluate", "round"])
def test_each_callback_can_stop_the_run(where, tmp_path):
    result = simulate(callbacks=[Notes(stop={(where, 2)})], out=tmp_path)
    assert [r.round for r in result.records] == [1, 2]
    assert result.stopped
    assert "report.html" in {p.name for p in tmp_path.iterdir()}


def test_early_stopping_counts_from_the_first_round_also_after_a_resume(tmp_path):
    stopping = fedadamw.EarlyStopping(2, min_delta=2.0)  # nothing improves an accuracy by 2
    result = simulate(rounds=9, callbacks=[stopping], out=tmp_path)
    assert len(result.records) == 3
    again = simulate(rounds=9, callbacks=[fedadamw.EarlyStopping(2, min_delta=2.0)], out=tmp_path, resume=True)
    assert len(again.records) == 3


def test_an_error_of_a_callback_loses_no_round(tmp_path):
    def fail(record):
        if record.round == 2:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        simulate(callbacks=[fail], out=tmp_path)
    resumed = simulate(out=tmp_path, resume=True)
    assert numbers(resumed) == numbers(simulate())


def test_ctrl_c_saves_the_round_and_says_how_to_go_on(tmp_path):
    def interrupt(record):
        if record.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="saved after round 2.*resume=True"):
        simulate(callbacks=[interrupt], out=tmp_path)
    assert numbers(simulate(out=tmp_path, resume=True)) == numbers(simulate())


def test_ctrl_c_without_a_folder_promises_no_resume():
    def interrupt(record):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="^stopped; without out no file is kept$"):
        simulate(callbacks=[interrupt])


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_an_error_leaves_the_model_of_the_last_complete_round(error):
    class FailsInRound3(fedadamw.Callback):
        def on_client(self, update):
            if update.round == 3:
                raise error

    model, whole = cnn(), simulate(settings={"training.schedule": "constant"}, rounds=2)
    with pytest.raises(error):
        simulate(model, settings={"training.schedule": "constant"}, callbacks=[FailsInRound3()])
    assert not model.training
    for own, other in zip(model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(own, other)
        assert own.grad is None
