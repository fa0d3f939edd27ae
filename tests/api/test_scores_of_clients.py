"""A run whose clients keep parameters of their own has no test score: what Python sees of it instead."""

import pytest

import fedadamw

PERSONAL = {
    "training.rounds": 4,
    "training.clients_per_round": 2,
    "training.steps": 1,
    "training.client_evaluation": 1,
    "training.schedule": "constant",
    "partition.held_out": 0.2,
    "partition.clients": 4,
    "personal.parameters": ["classifier.*"],
    "personal.finetune": 1,
    "algorithm.name": "fedavg",
    "training.lr": 0.1,
    "threads": 1,
}


class Evaluations(fedadamw.Callback):
    """The clients' means, and the weights that the callback was given after each."""

    def __init__(self):
        self.means, self.weights = [], []

    def on_evaluate(self, record, model):
        self.means.append(record.clients_mean)
        self.weights.append(model.classifier.weight.detach().clone())


def test_the_clients_mean_is_the_score(tmp_path):
    seen = Evaluations()
    stopping = fedadamw.EarlyStopping(2, min_delta=1.0)  # no round is so much better than the first
    with pytest.warns(UserWarning, match="no model was tuned, since the run was ended after round 3 of 4"):
        result = fedadamw.run("digits", settings=PERSONAL, out=tmp_path, callbacks=[seen, stopping], quiet=True)
    assert len(result.records) == 3
    assert seen.means == [record.clients_mean for record in result.records]
    assert all((weights == seen.weights[0]).all() for weights in seen.weights), "the shared model, not a client's own"
    assert (result.loss, result.metrics) == (None, {})
    assert f"clients_mean={result.records[-1].clients_mean:.4g}" in repr(result)
    for what in (None, "loss", "clients"):
        assert result.plot(what).chart.to_dict(validate=False)
    assert "mean accuracy of clients" in (tmp_path / "report.html").read_text()
    assert {"clients_mean", "clients_pooled_accuracy"} <= set(result.to_pandas().columns)
