"""A run that was killed, interrupted or started by an earlier version, resumed."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.checkout import ROOT
from support.command import SHORT_RUN, run_command
from support.run_folders import DIE_AT_A_RENAME, assert_same_files, start_run, wait_for_line, wait_for_rounds

from fedadamw.checkpoint import read
from fedadamw.runner import digest as run_digest
from fedadamw.runner.digest import settings_digest
from fedadamw.runner.execute import execute
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.load import load
from fedadamw.trained.export import export
from fedadamw.trained.load import open_run
from fedadamw.validation import InputError


@pytest.mark.slow
def test_resume_is_bit_identical_after_sigkill_at_ten_random_moments(finished_run, tmp_path):
    out = tmp_path / "run"
    rng = random.Random(11)
    done = kills = 0
    for _ in range(10):
        process = start_run("digits", *SHORT_RUN, "--out", str(out), "--resume")
        target = min(done + rng.randint(1, 3), 12)
        wait_for_line(process, f"round {target}/12" if done < 12 else "resumed")
        time.sleep(rng.random() * 0.2)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        state = out / "checkpoint" / "state.safetensors"
        done = read(state, "checkpoint")[1]["round"] if state.exists() else 0
    assert kills == 10, "each was killed while it trained or reported, not after it had ended"
    last = run_command("run", "digits", *SHORT_RUN, "--out", str(out), "--resume")
    assert last.returncode == 0, last.stderr
    assert_same_files(finished_run, out)


BUFFERED_RUN = (
    *SHORT_RUN,
    *("-s", "training.aggregation=buffered", "-s", "training.buffer=2", "-s", "training.concurrency=5"),
    *("-s", "training.upload=int8", "-s", "training.max_staleness=4", "-s", "checkpoint_every=4"),
    *("-s", "devices={speed: {kind: log-normal, jitter: 0.3}, availability: {kind: daily, day_s: 40, dropout: 0.1}}"),
)


@pytest.mark.slow
def test_resume_is_bit_identical_after_sigkill_while_a_buffer_fills(tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "run"
    done = run_command("run", "digits", *BUFFERED_RUN, "--out", str(whole))
    assert done.returncode == 0, done.stderr
    for rounds in (3, 6, 11):
        process = start_run("digits", *BUFFERED_RUN, "--out", str(out), "--resume")
        wait_for_rounds(out, rounds, process)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    last = run_command("run", "digits", *BUFFERED_RUN, "--out", str(out), "--resume")
    assert last.returncode == 0, last.stderr
    assert_same_files(whole, out)
    jobs = (whole / "jobs.jsonl").read_text()
    assert jobs == (out / "jobs.jsonl").read_text()
    assert {json.loads(line)["outcome"] for line in jobs.splitlines()} >= {"counted", "lost"}


@pytest.mark.slow
def test_resume_is_bit_identical_after_sigkill_during_every_kind_of_write(finished_run, tmp_path):
    """A fresh run renames manifest, metrics, settings, checkpoints; a resumed one metrics and clients first."""
    out = str(tmp_path / "run")
    moments = [(1, "after"), (2, "after"), (3, "before"), (3, "after"), (2, "before"), (2, "after"), (3, "after")]
    for n, when in moments:
        arguments = [out, str(n), when, "run", "digits", *SHORT_RUN, "--out", out, "--resume", "--quiet"]
        died = subprocess.run([sys.executable, "-c", DIE_AT_A_RENAME, *arguments], capture_output=True, text=True)
        assert died.returncode == -signal.SIGKILL, died.stderr
    last = run_command("run", "digits", *SHORT_RUN, "--out", out, "--resume")
    assert last.returncode == 0, last.stderr
    leftover = Path(out) / "checkpoint" / "state.safetensors.new"
    assert not leftover.exists()
    assert_same_files(finished_run, Path(out))


@pytest.mark.slow
def test_a_run_killed_before_its_config_is_written_can_start_again(tmp_path):
    out = tmp_path / "run"
    arguments = [str(out), "3", "before", "run", "digits", *SHORT_RUN, "--out", str(out)]
    died = subprocess.run([sys.executable, "-c", DIE_AT_A_RENAME, *arguments], capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL
    done = run_command("run", "digits", *SHORT_RUN, "-s", "training.rounds=1", "--out", str(out), "--quiet")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_an_interrupted_run_says_how_to_resume(finished_run, tmp_path, run_main, sent, code):
    out = tmp_path / "run"
    process = start_run("digits", *SHORT_RUN, "--out", str(out))
    wait_for_rounds(out, 4, process)
    process.send_signal(sent)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"resume with: fedadamw run --resume --out {out}" in stderr
    assert "Traceback" not in stderr
    _, facts = read(out / "checkpoint" / "state.safetensors", "checkpoint")
    assert facts["round"] >= 3  # the round whose record was just written may still count as under way
    done = run_main("run", "--resume", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert f"resumed after round {facts['round']} of 12" in done.stdout
    assert_same_files(finished_run, out)


def test_a_run_started_by_an_earlier_version_resumes(tmp_path):
    """tests/runner/begun: two of four rounds, from before there were settings such as training.evaluate_batch."""
    out = RunFolder(shutil.copytree(ROOT / "tests" / "runner" / "begun", tmp_path / "begun"))
    before, experiment = out.metrics.read_bytes(), load(str(out.config))
    assert read(out.state, "checkpoint")[1]["settings"] == settings_digest(experiment), (
        "a new setting is in digest.NOT_IN_DIGEST, or in ADDED_LATER with the value that means as before"
    )
    out.check_settings(load(str(out.config), ["training.evaluate_batch=3"]))
    execute(load(str(out.config), ["training.evaluate_batch=3"]), out, resume=True, report=False)
    assert out.metrics.read_bytes().startswith(before)
    rows = out.records()
    assert [row["round"] for row in rows] == [1, 2, 3, 4]
    assert rows[2]["train_loss"] == pytest.approx(2.39569, rel=1e-3), "as that version came to without a stop"
    assert rows[3]["test_loss"] == pytest.approx(2.48696, rel=1e-3)


def test_settings_that_only_an_earlier_version_accepted_still_export_but_do_not_train(tmp_path):
    out = RunFolder(shutil.copytree(ROOT / "tests" / "runner" / "begun", tmp_path / "begun"))
    begun = out.config.read_text()
    for was, now in (("device: cpu", "device: mps"), ("eps: 1.0e-08", "eps: 0.0")):
        assert was in begun
        out.config.write_text(begun.replace(was, now))
        export(open_run(out.path), tmp_path / now)
        assert (tmp_path / now / "model.safetensors").is_file()
        with pytest.raises(InputError, match="is not a device to train on|eps=0.0 must be at least"):
            execute(load(str(out.config)), out, resume=True, report=False)
    out.config.write_text(begun.replace("device: cpu", "device: mps"))
    experiment = load(str(out.config), ["device=cpu"])
    out.check_settings(experiment)
    execute(experiment, out, resume=True, report=False)
    assert len(out.records()) == 4


def test_the_digest_covers_only_settings_that_change_numbers(monkeypatch):
    def digest(*settings):
        return settings_digest(load("digits", settings))

    assert digest() == digest("training.evaluate_batch=3", "training.micro_batch=2", "data.resident=false", "stack=2")
    assert digest() == digest("training.gradient_checkpointing=true")
    assert digest() == digest("data.max_length=null"), "which was the default"
    assert digest("data.task=text", "data.max_length=64") != digest("data.task=text")
    assert digest() != digest("training.lr=0.1")
    monkeypatch.setitem(run_digest.ADDED_LATER, "data.flip", False)  # as a setting that came later
    assert digest() == digest("data.flip=false")
    assert digest() != digest("data.flip=true")
    monkeypatch.setitem(run_digest.ADDED_LATER, "lora.r", 16)
    assert digest() != digest("lora.r=16"), "a section that is not there is none with its usual values"
    assert digest("lora.r=16") == digest("lora.alpha=32")
