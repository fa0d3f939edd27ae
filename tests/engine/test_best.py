"""keep_best: the model of the best evaluated round, as export, eval and predict give it."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from support.run_folders import DIE_AT_A_RENAME, assert_same_files

from fedadamw.checkpoint import read
from fedadamw.engine.best import choose_best, read_best
from fedadamw.engine.record import Record
from fedadamw.engine.simulate import State
from fedadamw.runner.execute import Interrupted, execute
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.load import load
from fedadamw.trained.evaluate import evaluate
from fedadamw.trained.export import export
from fedadamw.trained.load import open_run, open_trained
from fedadamw.validation import InputError

# a learning rate so large that a middle round is the best
SETTINGS = ["training.rounds=9", "training.steps=3", "training.evaluate_every=1", "threads=1", "checkpoint_every=4"]
SETTINGS += ["training.schedule=constant", "training.lr=0.004", "device=cpu", "keep_best=true"]
SETTINGS += ["training.clients_per_round=2"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = RunFolder(tmp_path_factory.mktemp("best") / "run")
    execute(load("digits", SETTINGS), folder, resume=False, report=False)
    return folder


def scores(folder):
    return [record["test_metrics"]["accuracy"] for record in folder.records()]


def test_the_best_round_is_evaluated_and_exported(kept, tmp_path):
    best = max(scores(kept))
    round_ = scores(kept).index(best) + 1
    assert 1 < round_ < 9, "neither the first nor the last: else this test shows nothing"
    trained = open_trained(kept.path, [], best=True)
    assert trained.records[-1]["round"] == round_
    assert evaluate(trained)[0].metrics["accuracy"] == pytest.approx(best, abs=1e-12)
    assert evaluate(open_trained(kept.path, []))[0].metrics["accuracy"] == pytest.approx(scores(kept)[-1], abs=1e-12)
    export(open_run(kept.path, best=True), tmp_path / "out")
    assert evaluate(open_trained(tmp_path / "out", []))[0].metrics["accuracy"] == pytest.approx(best, abs=1e-12)
    assert f"held out, after round {round_}, chosen by this result" in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "fedadamw.json").read_text())["records"][0]["round"] == round_
    with pytest.raises(InputError, match="--best: .* is no run's folder"):
        open_trained(tmp_path / "out", [], best=True)


def test_keeping_the_best_changes_nothing_else(kept, tmp_path):
    plain = RunFolder(tmp_path / "run")
    execute(load("digits", [*SETTINGS, "keep_best=false"]), plain, resume=False, report=False)
    (a, about_a), (b, about_b) = read(kept.state, "checkpoint"), read(plain.state, "checkpoint")
    assert about_a == about_b
    assert {name for name in a if name.startswith("best.")} == set(a) - set(b)
    assert all(torch.equal(a[name], b[name]) for name in b)
    with pytest.raises(InputError, match="keeps no best round; a run keeps it with -s keep_best=true"):
        open_run(plain.path, best=True)


@pytest.mark.parametrize("moment", [4, 7])
def test_an_interrupted_run_has_the_same_best_round(kept, tmp_path, moment):
    folder = RunFolder(tmp_path / "run")

    def stop(record):
        if record.round == moment:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        execute(load("digits", SETTINGS), folder, resume=False, report=False, on_round=stop)
    assert read_best(read(folder.state, "checkpoint")[0]).round == scores(folder).index(max(scores(folder))) + 1
    execute(load("digits", SETTINGS), folder, resume=True, report=False)
    assert_same_files(kept.path, folder.path)


def test_a_run_that_keeps_the_best_only_from_now_on_says_so(tmp_path):
    folder, settings = RunFolder(tmp_path / "run"), [*SETTINGS, "training.steps=1"]
    execute(load("digits", [*settings, "training.rounds=1", "keep_best=false"]), folder, resume=False, report=False)
    with pytest.warns(UserWarning, match="keep_best: the models of rounds 1 to 1 were not kept; the best will be"):
        execute(load("digits", [*settings, "training.rounds=2"]), folder, resume=True, report=False)
    execute(load(str(folder.config)), folder, resume=True, report=False)
    assert read_best(read(folder.state, "checkpoint")[0]).round == 2, "config.yaml has the setting now"


@pytest.mark.slow
def test_a_killed_run_has_the_same_best_round(kept, tmp_path):
    out = str(tmp_path / "run")
    for n, when in ((4, "before"), (4, "after"), (2, "before"), (3, "before")):
        arguments = [out, str(n), when, "run", "digits", *(w for s in SETTINGS for w in ("-s", s))]
        arguments += ["--out", out, "--resume", "--quiet"]
        died = subprocess.run([sys.executable, "-c", DIE_AT_A_RENAME, *arguments], capture_output=True, text=True)
        assert died.returncode == -signal.SIGKILL, died.stderr
    execute(load("digits", SETTINGS), RunFolder(tmp_path / "run"), resume=True, report=False)
    shutil.rmtree(tmp_path / "run" / "clients", ignore_errors=True)
    assert_same_files(kept.path, tmp_path / "run")


RECORD = Record(1, 0.1, 1.0, 2.0, {"accuracy": 0.5, "other": 9.0}, 3, 0, 1, 1, 0.1)


def state(value):
    t = torch.full((2,), float(value))
    server = type("Server", (tuple,), {"_asdict": lambda _: {"x": t}})()
    return State(1, server, t, t, t, t[:0])


def test_the_first_of_equal_rounds_is_kept_and_a_round_without_a_number_is_not():
    record = RECORD
    best = choose_best(None, record, state(1))
    assert (best.round, best.score, best.model["server.x"].tolist()) == (1, 0.5, [1, 1])
    for worse in ({"accuracy": 0.5}, {"accuracy": float("nan")}, {"accuracy": 0.4}):
        assert choose_best(best, replace(record, round=2, test_metrics=worse), state(2)) is best
    assert choose_best(best, replace(record, round=2, test_loss=None, test_metrics=None), state(2)) is best
    assert choose_best(best, replace(record, round=3, test_metrics={"accuracy": 0.6}), state(3)).round == 3
    without = [replace(record, round=r, test_loss=loss, test_metrics={}) for r, loss in ((1, 3.0), (2, 2.5), (3, 2.7))]
    chosen = None
    for each in without:
        chosen = choose_best(chosen, each, state(each.round))
    assert chosen.round == 2, "the lowest loss"
    assert read_best(chosen.tensors()).score == -2.5


def test_without_a_held_out_set_the_best_round_is_that_of_the_clients_mean_score():
    record = replace(RECORD, test_loss=None, test_metrics=None, clients_mean=0.5)
    accuracy = replace(record, clients_metrics={"loss": 1.0, "accuracy": 0.5})
    best = choose_best(None, accuracy, state(1), of_clients=True)
    assert best.score == 0.5
    assert choose_best(best, replace(accuracy, round=2, clients_mean=0.6), state(2), of_clients=True).round == 2
    loss = replace(record, clients_metrics={"loss": 0.5})
    best = choose_best(None, loss, state(1), of_clients=True)
    assert best.score == -0.5
    assert choose_best(best, replace(loss, round=2, clients_mean=0.4), state(2), of_clients=True).round == 2
    assert choose_best(None, replace(record, clients_mean=None), state(1), of_clients=True) is None
