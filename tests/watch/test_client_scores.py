"""The live page shows how clients' scores are spread, and who is served worst, as the run's own page does."""

import json

import pytest
from support.studies import MANIFEST, of_clients

from fedadamw.report.client_scores import NAME
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.load import load
from fedadamw.watch.snapshot import describe_run, describe_study


@pytest.mark.parametrize(("tested", "score"), [(True, "accuracy 60.00%"), (False, "mean accuracy of clients 50.00%")])
def test_scores_of_clients_are_shown_while_the_run_goes_on(tmp_path, tested, score):
    run = RunFolder(tmp_path / "run")
    run.start(load("digits", ["training.rounds=4", "partition.clients=3"]), MANIFEST)
    records = of_clients([0.5, 0.7], tested)[:3]
    for record in records:
        run.append(record)
    lines = [
        {"round": r, "clients": [0, 2], "samples": [4, 5], "loss": [1.0, 2.0], "accuracy": [0.75, 0.25]} for r in (2, 4)
    ]
    (run.path / NAME).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (run.path / "events.jsonl").write_text('{"time": 1.0, "event": "joined", "client": 2, "node": "77"}\n')
    now = describe_run(run.path)
    assert [name for name in now["charts"] if name in ("spread", "sorted", "by-samples")] == [
        "spread",
        "sorted",
        "by-samples",
    ]
    rounds = {row["round"] for row in now["charts"]["spread"]["data"]["values"]}
    assert rounds == {2}, "the line of round 4 is of a round without a record"
    assert now["worst"]["headings"] == ["client", "accuracy", "loss", "held-out samples"]
    assert now["worst"]["rows"][0] == ["client 2, node 77", "25.00%", "2", "5"]
    assert ["accuracy of the worst tenth of clients", "30.00%"] in [list(card) for card in now["cards"]]
    assert now["logs"]["Rounds"][1].endswith("mean accuracy of clients 50.00%  1.00 s")
    (row,) = describe_study(tmp_path, {"run": run.path})["runs"]
    assert row["score"] == score


def test_a_run_without_scores_of_clients_has_none(tmp_path):
    run = RunFolder(tmp_path)
    run.start(load("digits", ["training.rounds=4"]), MANIFEST)
    assert describe_run(run.path)["worst"] == {}
