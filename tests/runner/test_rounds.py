"""--rounds: a run goes on to more rounds as a longer one would have gone, or says why it cannot."""

import shutil
import subprocess
import sys

import pytest
from support.run_folders import DIE_AT_A_RENAME, assert_same_files

from fedadamw.runner.digest import settings_digest
from fedadamw.runner.execute import execute
from fedadamw.runner.folder import RunFolder
from fedadamw.runner.rounds import check_new_rounds
from fedadamw.settings.load import load
from fedadamw.validation import InputError

SHORT = ["training.steps=2", "threads=1", "checkpoint_every=3", "training.schedule=constant", "device=cpu"]
SHORT += ["training.clients_per_round=2"]


def run(path, rounds, *settings, resume=False):
    folder = RunFolder(path)
    given = [*SHORT, f"training.rounds={rounds}", *settings]
    execute(load("digits", given), folder, resume=resume, report=False)
    return folder


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A run of 8 rounds from the start."""
    return run(tmp_path_factory.mktemp("long") / "run", 8, "keep_best=true").path


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """The first 4 of them; the recipe evaluates every other round."""
    return run(tmp_path_factory.mktemp("short") / "run", 4, "keep_best=true").path


def test_a_finished_run_goes_on_as_a_longer_one_would_have(long, short, tmp_path):
    out = shutil.copytree(short, tmp_path / "run")
    run(out, 6, "keep_best=true", resume=True)
    run(out, 8, "keep_best=true", resume=True)
    assert_same_files(long, out)


@pytest.mark.slow
def test_a_run_killed_while_it_changes_its_rounds_goes_on(long, short, tmp_path):
    for n, when in ((1, "before"), (1, "after"), (2, "after")):
        out = shutil.copytree(short, tmp_path / f"{n}-{when}")
        arguments = [str(out), str(n), when, "run", "--resume", "--out", str(out), "--rounds", "8", "--quiet"]
        died = subprocess.run([sys.executable, "-c", DIE_AT_A_RENAME, *arguments], capture_output=True, text=True)
        assert died.returncode == -9, died.stderr
        if (n, when) == (1, "after"):  # the checkpoint was written, config.yaml was not: it is still a run of 4
            folder = RunFolder(out)
            assert load(str(folder.config)).training.rounds == 4
            execute(load(str(folder.config)), folder, resume=True, report=False)
            assert len(folder.records()) == 4
        run(out, 8, "keep_best=true", resume=True)
        assert_same_files(long, out)


def test_a_stopped_run_may_also_become_shorter(short, tmp_path):
    out = RunFolder(shutil.copytree(short, tmp_path / "run"))
    config = load(str(out.config), ["training.rounds=100"])
    out.adopt_changes(config)  # as if it had been begun with 100
    run(out.path, 6, "keep_best=true", resume=True)
    assert (len(out.records()), load(str(out.config)).training.rounds) == (6, 6)


def test_the_option_is_short_for_the_setting_and_works_with_ranks(long, short, tmp_path, run_main):
    out = shutil.copytree(short, tmp_path / "run")
    done = run_main("run", "--resume", "--out", str(out), "--rounds", "8", "--ranks", "1", "--quiet")
    assert done.returncode == 0, done.stderr
    for name in ("curves.png", "partition.json", "report.html"):  # `long` was run without its report
        (out / name).unlink()
    assert_same_files(long, out)


@pytest.mark.slow
def test_several_ranks_go_on_to_more_rounds(long, short, tmp_path):
    from support.command import run_command

    out = shutil.copytree(short, tmp_path / "run")
    done = run_command("run", "--resume", "--out", str(out), "--rounds", "8", "--ranks", "2", "--quiet")
    assert done.returncode == 0, done.stderr
    a, b = (RunFolder(path).records() for path in (long, out))
    assert [r["round"] for r in b] == list(range(1, 9))
    assert [r["train_loss"] for r in a] == pytest.approx([r["train_loss"] for r in b], rel=1e-4)


def test_a_run_without_one_model_for_all_goes_on_from_a_clients(tmp_path):
    begun = load("digits", ["personal.parameters=[classifier.*]"])
    with pytest.raises(InputError, match=r"from one client's model: fedadamw export .*runs/heads --client NUMBER"):
        check_new_rounds(tmp_path / "runs/heads", begun, 200, 1, in_study=False)


def test_what_cannot_go_on_says_why(finished_run, short, tmp_path, run_main):
    def refuse(out, *arguments):
        done = run_main("run", "--resume", "--out", str(out), *arguments)
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        return line

    line = refuse(finished_run, "--rounds", "20")
    assert "a run of 12 rounds cannot become one of 20: with training.schedule=cosine every round's learning" in line
    assert f"start a new run from its model with -s model.name={finished_run}" in line
    assert "has 4 rounds already; training.rounds=3 must be more" in refuse(short, "--rounds", "3")
    assert "was run with other settings" in refuse(short, "--rounds", "9", "-s", "training.lr=1")
    of_study = tmp_path / f"fedadamw-seed0-{settings_digest(load(str(short / 'config.yaml')))[:10]}"
    shutil.copytree(short, of_study)
    assert "is a run of a study, all of whose runs have 4 rounds" in refuse(of_study, "--rounds", "9")
