"""Runs with differential privacy: what is recorded, budgets, resuming, and `fedadamw privacy`."""

import json
import shutil
import sys

import pytest
from support.run_folders import assert_same_files

from fedadamw.checkpoint import CheckpointError
from fedadamw.privacy.accountant import Mechanism, compute_epsilon
from fedadamw.report.run_files import LossesDict
from fedadamw.report.run_status import describe_stopped
from fedadamw.runner.asked_file import AskedFile, read_asked
from fedadamw.runner.digest import settings_digest
from fedadamw.runner.execute import execute
from fedadamw.runner.folder import RunFolder
from fedadamw.runner.noise import read_noise
from fedadamw.runner.privacy_file import read_sizes
from fedadamw.runner.spent import find_spent
from fedadamw.settings.load import load
from fedadamw.validation import InputError
from fedadamw.watch.state import find_state

SHORT = ["training.steps=2", "training.batch_size=20", "training.clients_per_round=2", "partition.clients=6"]
SHORT += ["training.rounds=6", "training.schedule=constant", "threads=1", "device=cpu", "training.evaluate_every=4"]


def run(path, *settings, resume=False, report=False):
    folder = RunFolder(path)
    execute(load("digits", [*SHORT, *settings]), folder, resume=resume, report=report)
    return folder


@pytest.fixture(scope="module")
def private(tmp_path_factory):
    """A whole run with an epsilon to keep to."""
    return run(tmp_path_factory.mktemp("private") / "run", "privacy.epsilon=5", report=True).path


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A run that its budget ended."""
    given = ["privacy.noise_multiplier=1", "privacy.budget=2.2"]
    return run(tmp_path_factory.mktemp("ended") / "run", *given, report=True).path


def test_records_have_the_epsilon_of_the_worst_client_and_no_training_loss(private):
    folder = RunFolder(private)
    records = folder.records()
    spent = [record["epsilon"] for record in records]
    assert spent == sorted(spent)
    assert 5 * (1 - 1e-3) <= spent[-1] <= 5
    assert [record["train_loss"] for record in records] == [None] * 6
    lines: list[LossesDict] = [json.loads(line) for line in (private / "clients.jsonl").read_text().splitlines()]
    assert all(line["losses"] == [None, None] for line in lines)
    noise, sizes = read_noise(folder.read_manifest()), read_sizes(private)
    times = [2 * sum(i in line["clients"] for line in lines) for i in range(6)]
    expected = [compute_epsilon([Mechanism(noise, min(1, 20 / n), t)], 1e-5) for n, t in zip(sizes, times, strict=True)]
    assert spent[-1] == max(expected)


def test_a_resumed_run_counts_and_adds_noise_as_one_that_was_never_stopped(private, tmp_path):
    stopped = tmp_path / "run"
    experiment = load("digits", [*SHORT, "privacy.epsilon=5"])
    execute(experiment, RunFolder(stopped), resume=False, on_round=lambda record: record.round == 3)
    execute(experiment, RunFolder(stopped), resume=True)
    assert_same_files(private, stopped)


def test_the_noise_of_a_resumed_run_is_that_of_its_manifest(private, tmp_path):
    out = shutil.copytree(private, tmp_path / "run")
    found = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**found, "privacy": {"noise_multiplier": 7.5}}))
    seen = []
    execute(
        load(str(out / "config.yaml")),
        RunFolder(out),
        resume=True,
        report=False,
        on_start=lambda simulation: seen.append(simulation.account.noise_multiplier),
    )
    assert seen == [7.5]
    with pytest.raises(CheckpointError, match=r"privacy.noise_multiplier=None is not that of a run"):
        read_noise({})


def test_more_rounds_would_spend_more_than_the_noise_was_searched_for(private):
    with pytest.raises(InputError, match=r"its noise was searched for 6 rounds, after which privacy.epsilon is spent"):
        RunFolder(private).check_settings(load(str(private / "config.yaml"), ["training.rounds=9"]))


def test_a_budget_ends_a_run_as_a_finished_one_with_an_evaluation(ended):
    folder = RunFolder(ended)
    records = folder.records()
    assert 0 < len(records) < 6
    assert records[-1]["epsilon"] <= 2.2
    assert records[-1]["test_loss"] is not None
    line = folder.ended
    assert line.startswith(f"privacy.budget=2.2 ended the run after round {len(records)} of 6: epsilon is ")
    assert find_state(ended, records, 6) == ("finished", f"finished: {line}")
    assert line in (ended / "report.html").read_text()
    assert describe_stopped(len(records), 6, "").startswith("stopped"), "what is not said of it"


def test_resuming_says_so_again_and_a_larger_budget_goes_on(ended, tmp_path, run_main):
    out = shutil.copytree(ended, tmp_path / "run")
    done = RunFolder(out).records()
    again = run_main("run", "--resume", "--out", str(out), "--quiet")
    assert (again.returncode, again.stderr) == (0, "")
    assert RunFolder(out).records() == done
    shown = run_main("run", "--resume", "--out", str(out))
    assert RunFolder(out).ended in shown.stdout
    more = run_main("run", "--resume", "--out", str(out), "-s", "privacy.budget=1000", "--quiet")
    assert (more.returncode, more.stderr) == (0, "")
    assert RunFolder(out).ended == ""
    assert len(RunFolder(out).records()) == 6
    assert load(str(out / "config.yaml")).privacy.budget == 1000
    assert find_state(out, RunFolder(out).records(), 6).line == "finished: 6 rounds"


def test_the_digest_knows_privacy_but_not_its_budget():
    plain, one, other, budget = (
        settings_digest(load("digits", given))
        for given in (
            [],
            ["privacy.noise_multiplier=1"],
            ["privacy.noise_multiplier=2"],
            ["privacy.noise_multiplier=1", "privacy.budget=3"],
        )
    )
    assert len({plain, one, other}) == 3
    assert one == budget


def test_spent_tells_of_classes_and_of_the_client_that_spent_most(private, run_main):
    found = find_spent(private)
    assert found.epsilon == RunFolder(private).records()[-1]["epsilon"]
    assert sum(each.clients for each in found.classes) == 6
    assert max(each.epsilon for each in found.classes) == found.epsilon
    shown = run_main("privacy", "spent", str(private))
    assert shown.returncode == 0, shown.stderr
    assert f"epsilon    {found.epsilon:.4g} at delta 1e-05, client {found.client}" in shown.stdout
    assert "rounds     6 of 6" in shown.stdout
    assert "differential privacy of each sample, against the server" in shown.stdout
    as_json = json.loads(run_main("privacy", "spent", str(private), "--json").stdout)
    assert as_json["epsilon"] == found.epsilon
    assert as_json["unit"] == "sample"


def test_spent_of_a_run_without_privacy_or_of_no_run_is_one_line(tmp_path, finished_run, run_main):
    done = run_main("privacy", "spent", str(finished_run))
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {finished_run}: a run without differential privacy (privacy is null): no epsilon is guaranteed\n"
    )
    other = run_main("privacy", "spent", str(finished_run), "--delta", "1e-6")
    assert other.stderr == "error: --delta 1e-06 is for a node's ledger; a run has privacy.delta\n"
    nothing = run_main("privacy", "spent", str(tmp_path))
    assert nothing.returncode == 2
    assert nothing.stderr == f"error: {tmp_path}: holds neither a run (config.yaml) nor a node's privacy ledger\n"


@pytest.mark.parametrize("samples", ["null", "[1, 2]", "[0, 1, 2, 3, 4, 5]"])
def test_numbers_of_samples_that_are_not_the_runs_are_named(ended, tmp_path, samples):
    out = shutil.copytree(ended, tmp_path / "run")
    (out / "privacy.json").write_text(f'{{"samples": {samples}}}')
    with pytest.raises(CheckpointError, match=r"privacy.json: (has not the samples of the run's 6 clients|cannot be)"):
        find_spent(out)


def test_a_budget_below_one_round_is_refused_before_the_run_begins(tmp_path):
    with pytest.raises(
        InputError, match=r"^privacy.budget=0.1: one round alone spends more; see fedadamw privacy plan$"
    ):
        run(tmp_path / "run", "privacy.noise_multiplier=1", "privacy.budget=0.1", report=True)
    assert not (tmp_path / "run/config.yaml").exists()


def test_without_the_library_no_run_begins(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting.pld", None)
    with pytest.raises(InputError, match="an epsilon needs dp-accounting: pip install"):
        run(tmp_path / "run", "privacy.noise_multiplier=1")
    assert not (tmp_path / "run/config.yaml").exists()


def test_requests_are_on_disk_before_they_are_sent_and_survive(tmp_path):
    assert read_asked(tmp_path) is None
    asked = AskedFile(tmp_path, new=True)
    for client in (3, 1, 3):
        asked.add(client, 0)
    with open(asked.path, "ab") as file:
        file.write(b'{"round": 2, "cl')  # a process that was killed
    again = AskedFile(tmp_path, new=False)
    assert dict(again.counts) == {3: 2, 1: 1}
    again.add(1, 0)
    again.add_sum(0)
    assert read_asked(tmp_path) == ({3: 2, 1: 2}, 1), "the torn line is gone, and tears no other"
    assert AskedFile(tmp_path, new=False).sums == 1
    assert dict(AskedFile(tmp_path, new=True).counts) == {}
    (tmp_path / "asked.jsonl").write_text("no\n")
    with pytest.raises(CheckpointError, match=r"asked.jsonl: cannot be read"):
        read_asked(tmp_path)
