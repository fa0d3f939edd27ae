"""A run's folder that is damaged, or another's, is refused and kept as it is."""

import os
import pickle
import shutil
from pathlib import Path

import pytest
from support.command import SHORT_RUN

from fedadamw.checkpoint import CheckpointError, read, write
from fedadamw.runner.execute import execute
from fedadamw.runner.folder import RunFolder
from fedadamw.settings.load import load
from fedadamw.study.compare import lock_study
from fedadamw.validation import InputError

QUICK = ("training.rounds=1", "training.steps=1", "training.clients_per_round=2", "device=cpu", "threads=1")


def damaged_copy(finished_run: Path, tmp_path: Path, damage) -> tuple[Path, bytes]:
    """A copy of the run cut back to before its end, with a checkpoint that `damage` changed."""
    out = tmp_path / "run"
    out.mkdir()
    (out / "checkpoint").mkdir()
    for name in ("config.yaml", "manifest.json", "metrics.jsonl"):
        (out / name).write_bytes((finished_run / name).read_bytes())
    content = damage((finished_run / "checkpoint" / "state.safetensors").read_bytes())
    (out / "checkpoint" / "state.safetensors").write_bytes(content)
    return out, content


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hostile-was-here",)


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda c: c[: len(c) // 2], "damaged"),
        (flipped, "does not match its digest"),
        (lambda c: b"", "damaged"),
        (lambda c: pickle.dumps(Hostile()), "damaged, or not a safetensors file"),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_kept(finished_run, tmp_path, run_main, monkeypatch, damage, message):
    out, content = damaged_copy(finished_run, tmp_path, damage)
    before = (out / "metrics.jsonl").read_bytes()
    monkeypatch.chdir(tmp_path)
    done = run_main("run", "--resume", "--out", str(out))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert (out / "checkpoint" / "state.safetensors").read_bytes() == content
    assert (out / "metrics.jsonl").read_bytes() == before
    assert not (tmp_path / "hostile-was-here").exists()


def test_a_foreign_checkpoint_is_refused_and_kept(finished_run, tmp_path, run_main):
    out, content = damaged_copy(finished_run, tmp_path, lambda content: content)
    other = (out / "config.yaml").read_text().replace("alpha: 0.5", "alpha: 0.25")
    (out / "config.yaml").write_text(other)
    done = run_main("run", "--resume", "--out", str(out))
    assert done.returncode == 2
    assert "belongs to a run with other settings" in done.stderr
    assert (out / "checkpoint" / "state.safetensors").read_bytes() == content


def test_damaged_records_are_refused_and_kept(finished_run, tmp_path, run_main):
    out, _ = damaged_copy(finished_run, tmp_path, lambda content: content)
    good = (out / "metrics.jsonl").read_bytes()
    for content, message in ((good.replace(b'"round": 4', b'"round": 9'), "line 4"), (b"{}\n" + good, "line 1")):
        (out / "metrics.jsonl").write_bytes(content)
        done = run_main("run", "--resume", "--out", str(out))
        assert done.returncode == 2
        assert f"{message} is not the record of round" in done.stderr
        assert (out / "metrics.jsonl").read_bytes() == content
    (out / "metrics.jsonl").write_bytes(good)
    (out / "checkpoint" / "state.safetensors").unlink()
    done = run_main("run", "--resume", "--out", str(out))
    assert done.returncode == 2
    assert "is missing, though" in done.stderr
    assert (out / "metrics.jsonl").read_bytes() == good


def test_an_upload_is_not_a_checkpoint(tmp_path):
    write(tmp_path / "a", "upload", {}, {})
    with pytest.raises(CheckpointError, match="not a fedadamw checkpoint"):
        read(tmp_path / "a", "checkpoint")
    with pytest.raises(CheckpointError, match="no such file"):
        read(tmp_path / "b", "checkpoint")


def test_a_run_is_never_overwritten(finished_run, tmp_path, run_main):
    out = tmp_path / "run"
    shutil.copytree(finished_run, out)
    before = (out / "metrics.jsonl").read_bytes()
    done = run_main("run", "digits", *SHORT_RUN, "--out", str(out))
    assert done.returncode == 2
    assert "holds a run already; resume it with --resume" in done.stderr
    done = run_main("run", "digits", *SHORT_RUN, "-s", "seed=1", "--out", str(out), "--resume")
    assert done.returncode == 2
    assert "was run with other settings" in done.stderr
    assert (out / "metrics.jsonl").read_bytes() == before


def test_a_run_that_ended_between_check_and_lock_is_not_overwritten(tmp_path):
    """Between the check of the command line and the lock a process loads for seconds: another may have run by then."""
    folder, experiment = RunFolder(tmp_path / "run"), load("digits", QUICK)
    execute(experiment, folder, resume=False)
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    for other, resume, line in (
        (experiment, False, "holds a run already; resume it, or choose another folder"),
        (load("digits", [*QUICK, "client_memory=disk", "seed=1"]), True, "was run with other settings"),
    ):
        with pytest.raises(InputError, match=line):
            execute(other, folder, resume=resume)
        assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before


def test_a_study_is_not_overwritten_by_a_run(tmp_path, run_main):
    (tmp_path / "results.json").write_text("{}")
    done = run_main("run", "digits", "--out", str(tmp_path))
    assert (done.returncode, done.stderr) == (
        2,
        f"error: {tmp_path} holds a study already; choose another --out\n",
    )


def test_a_study_checks_for_a_single_run_while_holding_the_lock(tmp_path):
    (tmp_path / "config.yaml").touch()
    with RunFolder(tmp_path).lock(), pytest.raises(InputError, match="another process"), lock_study(tmp_path):
        pass
    with pytest.raises(InputError, match="holds a single run"), lock_study(tmp_path):
        pass


def test_other_blocking_errors_are_not_reported_as_a_locked_folder(tmp_path):
    with pytest.raises(BlockingIOError, match="a pipe is full"), RunFolder(tmp_path).lock():
        raise BlockingIOError("a pipe is full")
