"""client_scores.jsonl: every evaluated client's score; of resumed runs and damaged files too."""

import json
import math
import shutil

import pytest

from fedadamw.engine.evaluation import ClientScores
from fedadamw.report.client_scores import NAME, read_lines
from fedadamw.runner.client_scores import ClientScoresFile
from fedadamw.runner.digest import settings_digest
from fedadamw.runner.execute import execute
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.load import load
from fedadamw.task import Evaluation

SMALL = [
    "training={rounds: 4, steps: 1, clients_per_round: 2, client_evaluation: 2}",
    "partition={clients: 12, held_out: 0.2}",
    "checkpoint_every=3",
    "threads=1",
    "device=cpu",
]


@pytest.mark.usefixtures("restore_threads")
def test_a_run_that_was_killed_repeats_the_scores_after_its_checkpoint(tmp_path):
    folder, kept = RunFolder(tmp_path / "run"), tmp_path / "state"
    experiment = load("digits", SMALL)

    def copy_checkpoint(record):
        if record.round == 4:
            shutil.copy(folder.state, kept)  # of round 3

    execute(experiment, folder, resume=False, report=False, on_round=copy_checkpoint)
    lines, state, records = read_lines(folder.path / NAME), folder.state.read_bytes(), folder.records()
    assert [line["round"] for line in lines] == [2, 4]
    assert set(lines[0]) == {"round", "clients", "samples", "loss", "accuracy"}
    shutil.copy(kept, folder.state)
    execute(experiment, folder, resume=True, report=False)
    assert folder.state.read_bytes() == state
    assert read_lines(folder.path / NAME) == lines
    assert [r["clients_mean"] for r in folder.records()[1::2]] == [r["clients_mean"] for r in records[1::2]]
    last = folder.records()[-1]
    assert last["clients_mean"] == pytest.approx(sum(lines[-1]["accuracy"]) / 12, abs=1e-10)
    assert last["clients_metrics"]["accuracy"] == pytest.approx(last["clients_weighted"], abs=1e-10)
    assert folder.read_manifest()["partition"].keys() == {"clients", "fingerprint", "held_out"}
    assert "clients_mean" not in folder.records()[0]


@pytest.mark.usefixtures("restore_threads")
def test_a_run_without_the_settings_has_nothing_of_them(tmp_path):
    folder = RunFolder(tmp_path / "run")
    plain = ["training={rounds: 1, steps: 1, clients_per_round: 2}", "partition.clients=12", *SMALL[2:]]
    execute(load("digits", plain), folder, resume=False, report=False)
    assert not (folder.path / NAME).exists()
    assert not any(name.startswith("clients_") for name in folder.records()[0])
    assert folder.read_manifest()["partition"].keys() == {"clients", "fingerprint"}


def test_runs_that_evaluate_clients_are_other_runs():
    digests = [settings_digest(load("digits", given)) for given in ([], SMALL[:1], SMALL[1:2])]
    assert len(set(digests)) == 3


def test_scores_after_the_round_that_a_run_resumes_from_are_dropped(tmp_path):
    file = ClientScoresFile(tmp_path)
    file.keep(0)
    file.append(1, None)
    assert not file.path.exists(), "nothing to drop, and no scores yet"
    each = [Evaluation(0.5, {"accuracy": 0.25}), Evaluation(math.nan, {"accuracy": 1.0})]
    for round_ in (2, 4, 6):
        file.append(round_, ClientScores([3, 7], [4, 1], each, each[0]))
    file.keep(4)
    line = {"clients": [3, 7], "samples": [4, 1], "loss": [0.5, None], "accuracy": [0.25, 1.0]}
    assert read_lines(file.path) == [{"round": 2, **line}, {"round": 4, **line}]


TEXT_AS_ROUND = '{"round": "1", "clients": [0], "samples": [5], "loss": [1.0]}'


@pytest.mark.parametrize(
    "damage", ["{", "[]", '{"round": 1}', '{"round": 1, "clients": [1]}', "\x00", "null", TEXT_AS_ROUND]
)
def test_damaged_lines_are_left_out(tmp_path, damage):
    good = {"round": 1, "clients": [0], "samples": [5], "loss": [1.0]}
    path = tmp_path / NAME
    path.write_text(f"{damage}\n{json.dumps(good)}\n" + json.dumps(good)[:20])
    assert read_lines(path) == [good]
    assert read_lines(tmp_path / "none") == []
