"""Two processes under torchrun match one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from support.cases import EVERYWHERE
from support.checkout import ROOT
from support.command import run_command
from support.of_two_ranks import CODED, EACH, EVALUATED, NORMALIZED, OWN_MODELS, SLEEP_S, evaluated, own_scores
from support.personal import personal_simulation
from support.runs import PRIVATE, simulation
from support.sequences import SequenceTask
from support.studies import wait_for

from fedadamw.checkpoint import read
from fedadamw.cli.run import run_rank
from fedadamw.engine import evaluation
from fedadamw.engine.ranks import assign_clients
from fedadamw.runner.folder import RunFolder
from fedadamw.runner.launch import choose_ranks
from fedadamw.settings.load import load
from fedadamw.settings.training import TrainingSettings
from fedadamw.validation import InputError

RUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module", params=[pytest.param(1, marks=pytest.mark.slow), 3])
def of_two_ranks(request, shared_folder) -> Path:
    """What two ranks left of every algorithm; each trains its clients one after the other, or stacked."""

    def make(folder: Path) -> None:
        arguments = [sys.executable, *RUN, "-m", "support.of_two_ranks", str(folder), str(request.param)]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, cwd=ROOT / "tests")
        assert done.returncode == 0, done.stderr

    return shared_folder(f"ranks-{request.param}", make)


@pytest.mark.parametrize(("name", "upload"), [*((name, "float32") for name in EVERYWHERE), *CODED])
@pytest.mark.usefixtures("all_algorithms")
def test_two_ranks_match_one_process(name, upload, of_two_ranks):
    tensors, facts = read(of_two_ranks / f"{name}-{upload}", "checkpoint")
    alone = simulation(EVERYWHERE[name], SequenceTask(), **EACH, upload=upload)
    losses = [
        (record.train_loss, record.test_loss, record.up_bytes, *alone.losses.values()) for record in alone.rounds()
    ]
    expected = alone.tensors()
    assert tensors.keys() == expected.keys(), "clients' memories and residuals among them"
    for key, t in expected.items():
        torch.testing.assert_close(tensors[key], t, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(facts["losses"], losses, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-10)


@pytest.mark.parametrize("name", EVALUATED)
def test_two_ranks_give_clients_the_scores_of_one_process(name, of_two_ranks, monkeypatch):
    monkeypatch.setattr(evaluation, "GROUP", 4)
    scores = read(of_two_ranks / f"scores-{name}", "checkpoint")[1]["scores"]
    alone = evaluated(EVALUATED[name])
    assert [line[0] for line in alone] == [2, 4, 5]
    for ours, theirs in zip(scores, alone, strict=True):
        assert ours[:3] == theirs[:3] == [theirs[0], [0, 2, 3, 4], [9, 1, 23, 4]]
        for own, expected in zip([*ours[3], ours[4]], [*theirs[3], theirs[4]], strict=True):
            assert own == pytest.approx(expected, abs=1e-10)
        assert ours[5] == pytest.approx(theirs[5], abs=1e-10)


@pytest.mark.parametrize("kind", OWN_MODELS)
def test_two_ranks_give_clients_own_models_the_scores_of_one_process(kind, of_two_ranks):
    scores = read(of_two_ranks / f"own-{kind}", "checkpoint")[1]["scores"]
    for ours, theirs in zip(scores, own_scores(kind), strict=True):
        for own, expected in zip(ours, theirs, strict=True):
            assert own == pytest.approx(expected, abs=1e-10)


def test_two_ranks_keep_clients_own_numbers_as_one_process_does(of_two_ranks):
    tensors, _ = read(of_two_ranks / "own-numbers", "checkpoint")
    alone = personal_simulation(EVERYWHERE["scaffold"], SequenceTask(), upload="int8")
    list(alone.rounds())
    assert tensors.keys() == alone.tensors().keys()
    for key, t in alone.tensors().items():
        torch.testing.assert_close(tensors[key], t, rtol=1e-10, atol=1e-10)


def test_two_ranks_clip_and_noise_as_one_process_does(of_two_ranks):
    tensors, _ = read(of_two_ranks / "private", "checkpoint")
    alone = simulation(EVERYWHERE["fedadamw-mean-v"], SequenceTask(), **PRIVATE)
    list(alone.rounds())
    for key, t in alone.tensors().items():
        torch.testing.assert_close(tensors[key], t, rtol=1e-10, atol=1e-10)


def test_two_ranks_normalise_unequal_steps_as_one_process_does(of_two_ranks):
    tensors, facts = read(of_two_ranks / "normalized", "checkpoint")
    alone = simulation(EVERYWHERE["fedexp"], SequenceTask(), **NORMALIZED)
    assert facts["losses"] == pytest.approx([record.train_loss for record in alone.rounds()], abs=1e-10)
    for key, t in alone.tensors().items():
        torch.testing.assert_close(tensors[key], t, rtol=1e-10, atol=1e-10)


def test_a_record_says_how_long_ranks_waited_for_the_slowest(of_two_ranks):
    mean, of_rank_0 = read(of_two_ranks / "waited", "checkpoint")[1]["mean and of rank 0"]
    assert of_rank_0 > SLEEP_S / 2, "rank 0 waits for the other's sleep"
    assert mean > SLEEP_S / 4
    alone = simulation(EVERYWHERE["fedavg"], SequenceTask())
    assert alone.step().waited_s is None


def test_work_is_balanced_over_ranks():
    assert assign_clients([9, 1, 1, 1, 1, 1, 1, 1, 1, 1], 2) == [{0}, set(range(1, 10))]
    assert sorted(len(places) for places in assign_clients([50] * 10, 3)) == [3, 3, 4]
    assert TrainingSettings(steps=10, batch_size=50).samples_per_round(30) == 300
    assert TrainingSettings(steps=10, batch_size=50).samples_per_round(3000) == 500, "more samples are not more steps"
    assert TrainingSettings(epochs=2, batch_size=50).samples_per_round(30) == 60
    assert TrainingSettings(epochs=2, batch_size=50).samples_per_round(30, 4) == 120, "steps of its own"
    assert TrainingSettings(epochs=2, batch_size=50).steps_per_round(110) == 6, "a last batch of each epoch is smaller"


SETTINGS = ("algorithm.name=scaffold", "training.steps=1", "training.rounds=32", "checkpoint_every=1000")
SHORT = ["run", "digits", *(part for setting in SETTINGS for part in ("-s", setting))]


def losses(out: Path) -> list[float]:
    return [json.loads(line)["train_loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_which_resumes_exactly_on_any_number(tmp_path):
    one, two, killed = tmp_path / "one", tmp_path / "two", tmp_path / "killed"
    assert run_command(*SHORT, "--ranks", "1", "--out", str(one), "-q").returncode == 0
    assert run_command(*SHORT, "--ranks", "2", "--out", str(two), "-q").returncode == 0
    arguments = [sys.executable, "-m", "fedadamw", *SHORT, "--ranks", "2", "--out", str(killed), "-q"]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (killed / "metrics.jsonl").exists() and len(losses(killed)) > 2)
    os.kill(other_rank(process.pid), signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1, said
    assert "Traceback" not in said
    assert "rank 1 was killed (SIGKILL)" in said
    assert 2 < len(losses(killed)) < 32
    assert (killed / "checkpoint" / "state.safetensors").exists(), "rank 0 saved the last whole round"
    on_one = tmp_path / "on-one"
    shutil.copytree(killed, on_one)
    assert run_command("run", "--resume", "--out", str(killed), "--ranks", "2", "-q").returncode == 0
    assert losses(killed) == losses(two), "bit for bit, as if nothing had happened"
    assert run_command("run", "--resume", "--out", str(on_one), "--ranks", "1", "-q").returncode == 0
    for folder in (two, on_one):  # in float32 rounding grows with the rounds
        assert losses(folder) == pytest.approx(losses(one), rel=0.02)
        assert losses(folder)[:20] == pytest.approx(losses(one)[:20], rel=1e-5)


@pytest.mark.parametrize(
    "setting", ["training.mean=krum", "training.diagnostics=true", "training.rounds=1", "devices={}"]
)
def test_number_of_ranks_is_chosen_by_the_run(setting):
    assert choose_ranks(load("digits", ["device=cpu", setting])) == 1


@pytest.mark.slow
def test_ranks_of_torchs_agent_give_the_same_as_forks(tmp_path):
    where, settings = [tmp_path / "agent", tmp_path / "forks"], ["-s", "training.rounds=2", "--ranks", "2", "-q"]
    agent = (
        "import fedadamw.runner.forked_ranks as f; f.can_fork = lambda: False; from fedadamw.cli import main; main()"
    )
    for out, start in zip(where, (["-c", agent], ["-m", "fedadamw"]), strict=True):
        command = [sys.executable, *start, *SHORT, *settings, "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert (done.returncode, done.stderr) == (0, "")
    states = [(out / "checkpoint" / "state.safetensors").read_bytes() for out in where]
    assert states[0] == states[1]


@pytest.mark.slow
def test_invalid_input_is_one_line_with_any_number_of_ranks(tmp_path):
    out = tmp_path / "out"
    done = run_command("run", "digits", "-s", "partition.clients=5000", "--ranks", "2", "--out", str(out))
    assert done.returncode == 2
    assert done.stderr == "error: partition.clients=5,000 is more than the 1,437 training samples\n"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopping_the_launcher_stops_the_ranks_and_frees_the_folder(number, tmp_path):
    out = tmp_path / "out"
    arguments = [*SHORT, "-s", "training.rounds=2000", "--ranks", "2", "--out", str(out), "-q"]
    process = subprocess.Popen([sys.executable, "-m", "fedadamw", *arguments], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (out / "metrics.jsonl").exists() and len(losses(out)) > 2)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert "Traceback" not in said
    if number == signal.SIGKILL:
        wait_for(lambda: not held(out))
    else:
        assert process.returncode == 128 + number
        assert said == f"stopped; resume with: fedadamw run --resume --out {out}\n"
        assert (out / "checkpoint" / "state.safetensors").exists()
        assert not held(out)


def held(out: Path) -> bool:
    """Whether a process has this run's folder."""
    try:
        with RunFolder(out).lock():
            return False
    except InputError:
        return True


def other_rank(first: int) -> int:
    """The process that `first`, which is rank 0, has forked."""
    (found,) = Path(f"/proc/{first}/task/{first}/children").read_text().split()
    return int(found)


def test_unexpected_errors_are_reported_by_their_rank(tmp_path, monkeypatch, capsys):
    def fails(*_args, **_settings):
        raise KeyError("nobody foresaw this")

    monkeypatch.setenv("RANK", "0")
    # join would give this process a rank's signals
    monkeypatch.setattr("fedadamw.runner.launch.join", lambda *, leads: None)
    monkeypatch.setattr("fedadamw.cli.run.run_leader", fails)
    terminate, shown = signal.getsignal(signal.SIGTERM), warnings.showwarning
    try:
        with pytest.raises(SystemExit) as ended:
            run_rank(load("digits").to_yaml(), str(tmp_path / "run"), resume=False, quiet=True)
    finally:
        signal.signal(signal.SIGTERM, terminate)
        warnings.showwarning = shown
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("rank 0:\nTraceback")
    assert "KeyError: 'nobody foresaw this'" in said
