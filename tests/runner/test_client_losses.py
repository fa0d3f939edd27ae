"""clients.jsonl: who was sampled in each round, with which loss; of older runs and damaged files too."""

import json
import math

import pytest

from fedadamw.randomness import sample_clients
from fedadamw.runner.client_losses import ClientLosses, read_losses
from fedadamw.runner.execute import execute
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.load import load

SMALL = ["training.rounds=3", "training.steps=1", "training.clients_per_round=4", "training.evaluate_every=3"]


@pytest.mark.usefixtures("restore_threads")
def test_a_run_records_its_clients_and_their_losses_average_to_its_own(tmp_path):
    folder = RunFolder(tmp_path / "run")
    experiment = load("digits", [*SMALL, "threads=1"])
    execute(experiment, folder, resume=False, report=False)
    lines, clients = read_losses(folder.path / "clients.jsonl"), experiment.partition.clients
    assert [line["round"] for line in lines] == [1, 2, 3]
    for line, record in zip(lines, folder.records(), strict=True):
        assert line["clients"] == list(sample_clients(experiment.seed, line["round"] - 1, clients, 4))
        assert sum(line["losses"]) / 4 == pytest.approx(record["train_loss"], rel=1e-5)


def test_rounds_after_the_one_that_a_run_resumes_from_are_dropped(tmp_path):
    losses = ClientLosses(tmp_path)
    losses.keep(0)
    assert not losses.path.exists(), "nothing to drop"
    for round_ in (1, 2, 3):
        losses.append(round_, {7: 0.123456789, 8: math.nan, 9: None})
    losses.keep(2)
    assert read_losses(losses.path) == [
        {"round": round_, "clients": [7, 8, 9], "losses": [0.123457, None, None]} for round_ in (1, 2)
    ]


@pytest.mark.parametrize("damage", ["{", "[]", '{"round": 1}', '{"round": null, "clients": [], "losses": []}', "\x00"])
def test_damaged_lines_are_left_out(tmp_path, damage):
    good = {"round": 1, "clients": [0], "losses": [1.0]}
    path = tmp_path / "clients.jsonl"
    path.write_text(f"{damage}\n{json.dumps(good)}\n" + json.dumps(good)[:20])
    assert read_losses(path) == [good]
    assert read_losses(tmp_path / "none") == []
