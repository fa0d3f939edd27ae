"""Tuning by the scores of clients: which trial is the best, and what is refused before any runs."""

import json

import pytest

from fedadamw.study import tune
from fedadamw.study.search import Search, open_journal
from fedadamw.validation import InputError

pytest.importorskip("optuna", reason="optuna is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

EVALUATED = [("partition.held_out", 0.2), ("training.client_evaluation", 1)]
PERSONAL = ("personal.parameters", ["classifier.*"])


def finish(folder, by: str, *, tested: bool = True) -> Search:
    """A search in which the test score falls with the learning rate, and the scores of clients rise."""
    found = Search("digits", "fedadamw", EVALUATED, ("lr",), folder / "runs", open_journal(folder / "log"), by=by)
    while not found.done:
        run = found.pending[0]
        found.begin(run)
        lr = run.experiment.training.lr
        record = {
            "round": 1,
            "test_metrics": {"accuracy": 0.5 - lr} if tested else None,
            "clients_mean": lr,
            "clients_worst_decile": lr / 2,
            "clients_metrics": {"loss": 1.0, "accuracy": lr},
        }
        run.folder.path.mkdir(parents=True, exist_ok=True)
        run.folder.config.write_text(run.experiment.to_yaml())
        run.folder.metrics.write_text(json.dumps(record) + "\n")
        found.end(run)
    return found


def test_the_best_is_that_of_the_chosen_score(tmp_path):
    by_test = finish(tmp_path, "test")
    by_clients = finish(tmp_path, "clients_worst_decile")  # in the same journal, whose trials have another score
    assert by_test.best["lr"] < 3e-4 < 3e-3 < by_clients.best["lr"]
    (stage,) = by_clients.history
    assert (stage["metric"], stage["by"]) == ("accuracy", "clients_worst_decile")
    assert max(trial["score"] for trial in stage["trials"]) == pytest.approx(by_clients.best["lr"] / 2)
    assert "tried: accuracy of the worst tenth of clients |" in tune.format_table([stage])
    older = [{key: value for key, value in by_test.history[0].items() if key != "by"}]
    assert "tried: held-out accuracy |" in tune.format_table(older)
    path = tune.write_tuned("digits", [], [by_clients], tmp_path)
    assert path.read_text().startswith("# digits with tuned settings for fedadamw, chosen by clients_worst_decile.\n")


def test_trials_without_a_test_score_are_told_by_the_clients_mean(tmp_path):
    found = finish(tmp_path, "clients_mean", tested=False)
    assert found.error is None
    assert finish(tmp_path, "test", tested=False).error.startswith("fedadamw: no trial of lr finished")


@pytest.mark.filterwarnings("ignore:personal.parameters")
@pytest.mark.parametrize(
    ("overrides", "by", "message"),
    [
        ([], "mean", "--by='mean' is unknown; use one of test, clients_mean, clients_worst_decile"),
        ([], "clients_mean", "--by clients_mean: set partition.held_out and training.client_evaluation"),
        ([PERSONAL], None, "--by clients_mean: set partition.held_out and training.client_evaluation"),
        ([PERSONAL, *EVALUATED], "test", "--by test: with personal.parameters no model is tested"),
    ],
)
def test_a_score_that_the_runs_will_not_have_is_refused(tmp_path, overrides, by, message):
    with pytest.raises(InputError) as raised:
        tune.tune("digits", ["fedadamw"], overrides, tmp_path / "out", by=by, quiet=True)
    assert str(raised.value).startswith(message)
    assert not (tmp_path / "out").exists()


def test_patterns_of_personal_parameters_are_one_value():
    assert tune.select_single([PERSONAL], ["fedadamw"]) == [PERSONAL]
    assert tune.select_single([("personal.parameters", [["a"], ["b"]])], ["fedadamw"]) == []
